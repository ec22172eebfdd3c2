"""Rewards, advantages and losses: golden numbers, gradients, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb.policy.objectives import (
    APA,
    AWR,
    P3O,
    PPO,
    Sampled,
    apa_loss,
    awr_loss,
    gae,
    kl_estimate,
    p3o_loss,
    ppo_loss,
    shape_rewards,
    value_loss,
    whiten,
)


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


# The golden example: its fourth action is padding for the losses, an action for GAE.
VALUES, REWARDS = row(0.1, 0.2, 0.3, 0.4), row(-0.01, 0.02, 0.0, 1.0)
ADVANTAGES = row(0.808675, 0.7565, 0.67, 0.6)
LOGPROBS, OLD = row(-1.0, -2.0, -0.5, -3.0), row(-1.1, -1.9, -0.7, -2.0)
MASK = torch.tensor([[True, True, True, False]])


def batch(seed, rows=4, width=5):
    """Random (B, R) tensors with prefixes of 1 to R actions: logprobs, old, advantages, mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    mask = torch.arange(width) < lengths
    logprobs, old, advantages = torch.randn(
        3, rows, width, generator=generator, dtype=torch.float64
    )
    return logprobs.abs().neg(), old.abs().neg(), advantages, mask


# Each loss as a function of (logprobs, old or anchor, advantages, mask).
LOSSES = {
    "ppo": ppo_loss,
    "value": value_loss,
    "apa": lambda new, old, a, mask: apa_loss(new, old, a, mask, 0.3),
    "awr": lambda new, old, a, mask: awr_loss(new, a, mask, 0.5),
    "p3o": lambda new, old, a, mask: p3o_loss(new, old, old / 2, a[:, 0], mask, 0.1),
}


def test_golden_numbers():
    advantages, returns = gae(REWARDS, VALUES, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(advantages, ADVANTAGES, rtol=0, atol=1e-12)
    torch.testing.assert_close(returns, row(0.908675, 0.9565, 0.97, 1.0), rtol=0, atol=1e-12)
    losses = [
        (ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK), -0.794078),
        (apa_loss(LOGPROBS, OLD, ADVANTAGES, MASK, lam=1.0), 0.485571),
        (apa_loss(LOGPROBS, OLD, ADVANTAGES, MASK, lam=0.1), 54.930134),
        (awr_loss(LOGPROBS, ADVANTAGES, MASK, lam=1.0), 2.494554),
    ]
    for (loss, _), golden in losses:
        assert loss.item() == pytest.approx(golden, abs=1e-6)


def test_gae_on_two_rows_by_hand():
    """The shorter row ends at its own end of turn, whatever stands on its padding."""
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    scores = torch.tensor([2.0, 1.0])
    kl = torch.tensor([[0.1, 0.1, 0.1, 9.0, 9.0], [0.0, 0.2, 0.0, 0.0, 0.0]])
    rewards = shape_rewards(scores, kl, mask, kl_coef=0.5)
    expected = torch.tensor([[-0.05, -0.05, 1.95, 0, 0], [0, -0.1, 0, 0, 1.0]])
    torch.testing.assert_close(rewards, expected)
    advantages, returns = gae(rewards, torch.full((2, 5), 0.5), mask, gamma=1.0, lam=1.0)
    torch.testing.assert_close(
        returns, torch.tensor([[1.85, 1.9, 1.95, 0, 0], [0.9, 0.9, 1.0, 1.0, 1.0]])
    )
    torch.testing.assert_close(advantages, torch.where(mask, returns - 0.5, torch.zeros(2, 5)))


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.5, 1.0), lam=st.floats(0.0, 1.0))
def test_gae_equals_its_definition(seed, gamma, lam):
    rewards, values, _, mask = batch(seed)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, length in enumerate(mask.sum(1).tolist()):
        v = [*values[b, :length].tolist(), 0.0]
        delta = [rewards[b, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            terms = [(gamma * lam) ** (k - t) * delta[k] for k in range(t, length)]
            assert advantages[b, t].item() == pytest.approx(sum(terms), abs=1e-9)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_gae_at_lambda_zero_and_one(seed):
    rewards, values, _, mask = batch(seed)
    rewards, values = rewards * mask, values * mask
    following = torch.nn.functional.pad(values, (0, 1))[:, 1:]
    one_step, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    torch.testing.assert_close(one_step, (rewards + 0.9 * following - values) * mask)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_the_end = rewards.flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(returns, to_the_end)


@given(st.integers(0, 1000))
def test_bootstrap_is_the_value_of_one_more_state(seed):
    """A cut answer: as if one more action of reward 0 followed, in a state of that value."""
    values, _, rewards, mask = batch(seed)
    after = torch.linspace(-1, 2, 4, dtype=torch.float64)
    found = gae(rewards, values, mask, gamma=0.9, bootstrap=after)
    last = mask.sum(1, keepdim=True)
    longer = torch.cat([mask, torch.zeros(4, 1, dtype=torch.bool)], 1).scatter(1, last, True)
    wider = [torch.cat([x.masked_fill(~mask, 0), torch.zeros(4, 1)], 1) for x in (rewards, values)]
    wider[0].scatter_(1, last, after[:, None])  # a terminal reward with V = reward has advantage 0
    wider[1].scatter_(1, last, after[:, None])
    expected = gae(*wider, longer, gamma=0.9)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want[:, :-1].masked_fill(~mask, 0.0))


def test_gae_carries_no_gradient():
    values = VALUES.clone().requires_grad_()
    advantages, returns = gae(REWARDS, values, MASK)
    assert not advantages.requires_grad
    assert not returns.requires_grad


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_kl_estimates_average_to_the_exact_divergence(seed):
    """Weighted by the policy's own probabilities, k1 and k3 give KL exactly; k3 is never < 0."""
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, 6, generator=generator).double().log_softmax(-1)
    exact = torch.nn.functional.kl_div(reference, policy, log_target=True, reduction="sum").item()
    for kind in ("k1", "k3"):
        mean = (policy.exp() * kl_estimate(policy, reference, kind)).sum().item()
        assert mean == pytest.approx(exact, abs=1e-9)
    assert (kl_estimate(policy, reference, "k3") >= 0).all()
    near = policy + 1e-3 * torch.randn(6, generator=generator)
    torch.testing.assert_close(
        kl_estimate(policy, near, "k2"), kl_estimate(policy, near, "k3"), rtol=0.01, atol=0
    )
    with pytest.raises(ValueError, match="expected k1, k2 or k3, found 'k4'"):
        kl_estimate(policy, reference, "k4")


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_whiten_has_mean_zero_variance_one_and_forgets_shift_and_scale(seed, shift, scale):
    values, _, _, mask = batch(seed, rows=6)
    white = whiten(values, mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-9)
    assert white[mask].square().mean().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(whiten(values * scale + shift, mask), white, rtol=0, atol=1e-6)
    assert (white[~mask] == 0).all()


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3, -1e4])
def test_whiten_of_many_equal_values_is_zero_in_float32_too(value):
    values = torch.full((1000, 7), value)
    assert whiten(values, torch.ones_like(values, dtype=torch.bool)).abs().max() < 1e-3


def test_whiten_of_equal_values_is_zero():
    assert (whiten(torch.full((2, 3), 5.0), torch.ones(2, 3, dtype=torch.bool)) == 0).all()


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(LOSSES)))
def test_padding_changes_neither_loss_nor_gradient_nor_diagnostics(seed, name):
    """Whatever stands on padding, and however much of it there is, NaN and infinity included."""
    logprobs, old, advantages, mask = batch(seed)
    inputs = [x.masked_fill(~mask, 0.0) for x in (logprobs, old, advantages)]
    dirty = [x.masked_fill(~mask, bad) for x, bad in zip(inputs, (math.inf, math.nan, -7e30))]  # noqa: B905
    wide = [torch.nn.functional.pad(x, (0, 2), value=math.nan) for x in dirty]
    outcomes = []
    for new, other, a, m in ((*inputs, mask), (*wide, torch.nn.functional.pad(mask, (0, 2)))):
        new = new.clone().requires_grad_()
        loss, diagnostics = LOSSES[name](new, other, a, m)
        loss.backward()
        assert all(not value.requires_grad for value in diagnostics.values())
        outcomes.append((loss, new.grad[:, : mask.shape[1]], diagnostics))
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=0, atol=1e-9, equal_nan=True)
    assert (outcomes[0][1][~mask] == 0).all()


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), lam=st.floats(0.05, 5))
def test_gradient_of_apa_is_that_of_ppo_at_the_anchor(seed, lam):
    _, anchor, advantages, mask = batch(seed)
    gradients = []
    for loss_fn in (ppo_loss, lambda *inputs: apa_loss(*inputs, lam=lam)):
        logprobs = anchor.clone().requires_grad_()
        loss_fn(logprobs, anchor, advantages, mask)[0].backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(gradients[1], 2 / lam * gradients[0])


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_advantage_no_gradient(seed):
    _, old, advantages, mask = batch(seed)
    for loss_fn in (ppo_loss, lambda *inputs: apa_loss(*inputs, lam=0.3)):
        logprobs = old.clone().requires_grad_()
        loss_fn(logprobs, old, torch.zeros_like(advantages), mask)[0].backward()
        assert (logprobs.grad == 0).all()


def test_ppo_stops_pushing_outside_the_clip_range_only_where_it_gains():
    """Ratio 1.5, 0.5, 1.5, 0.5 with advantage +, -, -, +: the first two are clipped."""
    logprobs = row(math.log(1.5), math.log(0.5), math.log(1.5), math.log(0.5)).requires_grad_()
    advantages, mask = row(1.0, -1.0, -1.0, 1.0), torch.ones(1, 4, dtype=torch.bool)
    loss, diagnostics = ppo_loss(logprobs, torch.zeros(1, 4).double(), advantages, mask)
    assert loss.item() == pytest.approx((-1.2 + 0.8 + 1.5 - 0.5) / 4)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, row(0.0, 0.0, 1.5 / 4, -0.5 / 4))
    assert diagnostics["clipfrac"].item() == 1
    assert diagnostics["ratio"].item() == pytest.approx(1.0)


def test_the_first_step_has_ratio_one():
    _, diagnostics = ppo_loss(OLD, OLD, ADVANTAGES, MASK)
    found = {name: value.item() for name, value in diagnostics.items()}
    assert found == {"ratio": 1.0, "approxkl": 0.0, "clipfrac": 0.0}


def test_value_loss_takes_the_worse_of_clipped_and_unclipped():
    values, old, returns = row(1.0, 0.0, 0.1), row(0.0, 0.0, 0.0), row(1.0, 1.0, 1.0)
    loss, diagnostics = value_loss(values, old, returns, torch.ones(1, 3, dtype=torch.bool))
    # V 1.0 is clipped to 0.2, its error 0.64 instead of 0; the others are within the range.
    assert loss.item() == pytest.approx((0.64 + 1.0 + 0.81) / 6)
    assert diagnostics["vf_clipfrac"].item() == pytest.approx(1 / 3)
    perfect = value_loss(VALUES, VALUES, VALUES, MASK)
    assert perfect[0].item() == 0
    assert perfect[1]["explained_variance"].item() == 1


@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_apa_is_zero_at_the_exact_optimum(lam):
    """With A = lam log sum-normalised weights, Z is 1 and pi* = anchor exp(A / lam) is attained."""
    anchor, optimum = torch.randn(
        2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).log_softmax(-1)
    advantages, mask = lam * (optimum - anchor), torch.ones(3, 6, dtype=torch.bool)
    loss, diagnostics = apa_loss(optimum, anchor, advantages, mask, lam)
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert diagnostics["unattainable"].item() == 0
    assert apa_loss(anchor, anchor, advantages, mask, lam)[0].item() > 0.01
    # A target probability above 1 is counted: log 0.5 + 1 / 0.5 > 0, log 0.5 - 1 / 0.5 < 0.
    half = torch.full((1, 2), 0.5).log()
    _, diagnostics = apa_loss(half, half, torch.tensor([[1.0, -1.0]]), half < 0, lam=0.5)
    assert diagnostics["unattainable"].item() == 0.5


def test_awr_limits_its_weights():
    logprobs = row(-1.0, -1.0).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, diagnostics = awr_loss(logprobs, row(1000.0, 0.0), mask, lam=0.5, max_weight=20.0)
    assert loss.item() == pytest.approx((20 + 1) / 2)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, row(-10.0, -0.5))
    assert diagnostics["weight_clipfrac"].item() == 0.5


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-20, 20))
def test_p3o_forgets_what_both_answers_of_a_prompt_share(seed, shift):
    logprobs, old, scores, mask = batch(seed)
    scores, reference = scores[:, 0], old / 2
    loss, _ = p3o_loss(logprobs, old, reference, scores, mask, kl_coef=0.1)
    shifted, _ = p3o_loss(logprobs, old, reference, scores + shift, mask, kl_coef=0.1)
    assert shifted.item() == pytest.approx(loss.item(), abs=1e-8)
    swap = [1, 0, 3, 2]
    swapped, _ = p3o_loss(
        logprobs[swap], old[swap], reference[swap], scores[swap], mask[swap], kl_coef=0.1
    )
    assert swapped.item() == pytest.approx(loss.item(), abs=1e-9)


def test_p3o_gradient_on_policy_and_at_its_optimum():
    """On the policy that sampled: -q/2 on the first answer, q/2 on the second; q = 0 at pi*."""
    reference, mask = row(-1.0, -2.0).T, torch.ones(2, 1, dtype=torch.bool)
    old = row(-0.5, -2.5).T  # l_0 - l_1 = 0.5 + 0.5
    logprobs = old.clone().requires_grad_()
    loss, diagnostics = p3o_loss(logprobs, old, reference, row(3.0, 1.0)[0], mask, kl_coef=0.5)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, row(-0.75, 0.75).T)  # q = 3 - 1 - 0.5
    assert diagnostics["margin"].item() == pytest.approx(1.5)
    logprobs = old.clone().requires_grad_()
    p3o_loss(logprobs, old, reference, row(1.5, 1.0)[0], mask, kl_coef=0.5)[0].backward()
    assert (logprobs.grad == 0).all()


def test_p3o_limits_step_and_weight():
    """d has moved by 1, past the clip of 0.2, in the direction that q rewards: no more push."""
    old, reference, mask = row(-1.0, -1.0).T, row(-1.0, -1.0).T, torch.ones(2, 1).bool()
    logprobs = row(-0.5, -1.5).T.requires_grad_()
    loss, diagnostics = p3o_loss(logprobs, old, reference, row(1.0, 0.0)[0], mask, kl_coef=0.0)
    assert loss.item() == pytest.approx(-0.1)
    loss.backward()
    assert (logprobs.grad == 0).all()
    assert diagnostics["clipfrac"].item() == 1
    both_up = row(2.0, 2.0).T  # pi/pi_old of the two together is e^6, limited to 10; d is 0
    logprobs = both_up.clone().requires_grad_()
    p3o_loss(logprobs, old, reference, row(1.0, 0.0)[0], mask, kl_coef=0.0)[0].backward()
    torch.testing.assert_close(logprobs.grad, row(-5.0, 5.0).T)


def test_objectives_read_what_their_losses_name():
    """Each factory hands its loss the right tensors: every one of them here is different."""
    new, old, advantages, mask = batch(3)
    sampled = Sampled(old, old - 0.5, advantages, advantages[:, 0], mask)
    anchors = {"init": sampled.reference_logprobs, "old": old}
    expected = [
        (PPO(0.1), ppo_loss(new, old, advantages, mask, 0.1)),
        *(
            (APA(0.3, name), apa_loss(new, anchors[name], advantages, mask, 0.3))
            for name in anchors
        ),
        (AWR(0.5, 3.0), awr_loss(new, advantages, mask, 0.5, 3.0)),
        (
            P3O(0.2, 0.1, 5.0),
            p3o_loss(new, old, old - 0.5, advantages[:, 0], mask, 0.2, 0.1, 5.0),
        ),
    ]
    losses = [loss.item() for _, (loss, _) in expected]
    assert len(set(losses)) == len(losses)
    assert [objective(new, sampled)[0].item() for objective, _ in expected] == losses
    with pytest.raises(ValueError, match="anchor: expected init or old, found 'initial'"):
        APA(0.3, anchor="initial")


def test_rows_of_a_sample_are_rows_of_all_its_tensors():
    _, old, advantages, mask = batch(4)
    rows = torch.tensor([2, 0])
    part = Sampled(old, old - 1, advantages, advantages[:, 0], mask)[rows]
    assert torch.equal(part.reference_logprobs, old[rows] - 1)
    assert torch.equal(part.scores, advantages[rows, 0])
    assert torch.equal(part.mask, mask[rows])
