"""Exact answers on enumerable problems, held to definitions, to a search and to apa_loss."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import lambertw

from starling_nb.policy.bandit import (
    advantages,
    apa_iterations,
    apa_minimiser,
    divergence,
    expected,
    lambert,
    optimum,
    random_problems,
)
from starling_nb.policy.objectives import apa_loss

LAMBDAS = (5.0, 1.0, 0.5, 0.2, 0.1)


def squared(log_pi, log_old, target):
    return expected(log_old, (log_pi - target) ** 2)


def test_problems_are_in_standard_deviations_of_their_reward():
    log_init, rewards = random_problems(50, 8, 0)
    torch.testing.assert_close(log_init.exp().sum(-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(expected(log_init, rewards), torch.zeros(50, dtype=torch.float64))
    torch.testing.assert_close(expected(log_init, rewards**2), torch.ones(50, dtype=torch.float64))


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_optimum_is_above_every_other_policy(lam):
    """By the gap that the theory gives: lam KL(pi || pi*)."""
    log_init, rewards = random_problems(20, 8, 1)
    best, log_z = optimum(log_init, rewards, lam)

    def value(log_pi):
        return expected(log_pi, rewards) - lam * divergence(log_pi, log_init)

    torch.testing.assert_close(value(best), lam * log_z)
    generator = torch.Generator().manual_seed(2)
    for scale in (0.1, 1.0, 3.0):
        noise = scale * torch.randn(20, 8, dtype=torch.float64, generator=generator)
        other = (best + noise).log_softmax(-1)
        torch.testing.assert_close(value(best) - value(other), lam * divergence(other, best))
    assert (log_z >= -1e-12).all()  # Jensen, since E A = 0 under pi_init


@given(st.floats(-700, 400))
def test_lambert_is_that_of_scipy_where_scipy_has_one(log_z):
    found = lambert(torch.tensor([log_z], dtype=torch.float64)).item()
    assert found == pytest.approx(lambertw(np.exp(log_z)).real, rel=1e-12)


@given(st.floats(400, 1e8))
def test_lambert_solves_its_equation_where_the_argument_overflows(log_z):
    w = lambert(torch.tensor([log_z], dtype=torch.float64)).item()
    assert w + np.log(w) == pytest.approx(log_z, rel=1e-12)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_minimiser_is_found_by_a_search_too(lam):
    """LBFGS over logits, on the same sum, ends where Lambert's function says and not below."""
    log_old, rewards = random_problems(6, 8, 3)
    target = log_old + rewards / lam
    found = apa_minimiser(log_old, target)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(6, dtype=torch.float64))
    logits = log_old.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [logits],
        max_iter=4000,
        tolerance_grad=1e-10,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss():
        search.zero_grad()
        value = squared(logits.log_softmax(-1), log_old, target).sum()
        value.backward()
        return value

    search.step(loss)
    searched = logits.detach().log_softmax(-1)
    least, reached = squared(found, log_old, target), squared(searched, log_old, target)
    assert (least <= reached + 1e-9 * reached).all()
    torch.testing.assert_close(found.exp(), searched.exp(), rtol=0, atol=1e-4)


def test_it_minimises_apa_loss_over_actions_in_their_shares():
    """pi_old = (1, 2, 5)/8 as eight sampled actions: the same loss, whose gradient is 0 there."""
    log_old = torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).div(8).log()
    gain = torch.tensor([[1.5, -0.9, 0.06]], dtype=torch.float64)
    found = apa_minimiser(log_old, log_old + gain / 0.4)
    logits = found.clone().requires_grad_()
    actions = torch.tensor([[0, 1, 1, 2, 2, 2, 2, 2]])
    logprobs = logits.log_softmax(-1).gather(1, actions)
    mask = torch.ones_like(actions, dtype=torch.bool)
    loss, _ = apa_loss(logprobs, log_old.gather(1, actions), gain.gather(1, actions), mask, lam=0.4)
    assert loss.item() == pytest.approx(squared(found, log_old, log_old + gain / 0.4).item())
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


def test_where_z_is_one_the_minimiser_is_the_optimum():
    log_old, rewards = random_problems(10, 8, 4)
    best, log_z = optimum(log_old, rewards, 1.0)
    torch.testing.assert_close(
        apa_minimiser(log_old, log_old + rewards - log_z[:, None]), best, rtol=0, atol=1e-6
    )


def test_a_target_below_every_policy_is_refused():
    log_old, _ = random_problems(2, 8, 5)
    with pytest.raises(ValueError, match=r"expected exp\(target\) to sum to 1 or more"):
        apa_minimiser(log_old, log_old - 0.1)


def test_whitening_is_over_all_problems_together():
    log_init, rewards = random_problems(30, 8, 6)
    scale = torch.linspace(0.5, 3, 30, dtype=torch.float64)[:, None]
    plain, white = (advantages(log_init, 1 + scale * rewards, whiten) for whiten in (False, True))
    torch.testing.assert_close(plain, scale * rewards)
    torch.testing.assert_close(white, plain / (scale**2).mean().sqrt())


def test_the_first_round_forgets_which_anchor_and_the_first_kl_is_zero():
    log_init, rewards = random_problems(10, 8, 7)
    rounds = [
        next(apa_iterations(log_init, rewards, lam=0.5, anchor=anchor, kl_coef=kl_coef))
        for anchor in ("init", "old")
        for kl_coef in (0.0, 0.5)
    ]
    for other in rounds[1:]:
        torch.testing.assert_close(other, rounds[0])
    torch.testing.assert_close(rounds[0], apa_minimiser(log_init, log_init + rewards / 0.5))


def test_anchored_at_the_start_it_comes_to_rest_and_anchored_at_itself_it_goes_on():
    log_init, rewards = random_problems(40, 8, 8)
    kl = {}
    for anchor in ("init", "old"):
        rounds = apa_iterations(log_init, rewards, lam=1.0, anchor=anchor, whiten=False)
        kl[anchor] = [divergence(log_pi, log_init).mean().item() for log_pi in islice(rounds, 40)]
    assert kl["init"][-1] == pytest.approx(kl["init"][-2], abs=1e-6)
    assert kl["old"][-1] > kl["old"][9] > 3 * kl["init"][-1]


def test_rounds_stay_finite_when_the_policy_has_become_certain():
    log_init, rewards = random_problems(20, 8, 9)
    for options in ({}, {"anchor": "old"}, {"kl_coef": 0.01}):
        last = [*islice(apa_iterations(log_init, rewards, lam=0.1, **options), 40)][-1]
        assert last.isfinite().all()
        torch.testing.assert_close(last.exp().sum(-1), torch.ones(20, dtype=torch.float64))
