"""Linear rewards: estimators, rank breaking, Σ_D, and greedy against pessimistic policies.

Seeds are fixed; a false-alarm rate is the chance that another seed would have failed.
"""

import math
from functools import partial
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare
from torch import Tensor

from starling_nb.reward.kwise import BREAKINGS, pairwise_nll, plackett_luce_nll
from starling_nb.reward.linear import (
    ACTIONS,
    RADIUS,
    THETA,
    bonus_factor,
    data_covariance,
    error_ratio_at_zero,
    least_slope,
    mle_2,
    mle_k,
    pairwise_derivatives,
    pessimistic_values,
    plackett_luce_derivatives,
    rewards,
    sample_bandit,
    sample_rankings,
    semi_norm,
    suboptimality,
)

DOUBLE = torch.float64
CONSISTENT = ("full", "best_vs_rest")
ESTIMATORS = {"mle_k": (mle_k, plackett_luce_nll, plackett_luce_derivatives)} | {
    breaking: (
        partial(mle_2, breaking=breaking),
        partial(pairwise_nll, breaking=breaking),
        partial(pairwise_derivatives, breaking=breaking),
    )
    for breaking in BREAKINGS
}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def lists(trials: int, n: int, k: int, d: int, *, seed: int, scale: float = 1.0):
    """Ranked lists (trials, n, k, d) under θ* ~ N(0, scale² I), and θ* (trials, d)."""
    theta = scale * normal(trials, d, seed=seed)
    features = normal(trials, n, k, d, seed=seed + 1000)
    generator = torch.Generator().manual_seed(seed + 2000)
    return sample_rankings(features, theta, generator), theta


def plackett_luce_probability(scores: list[float]) -> float:
    """Choose the best of all, then of the rest, and so on."""
    return math.prod(
        1 / math.fsum(math.exp(s - scores[j]) for s in scores[j:]) for j in range(len(scores))
    )


# ------------------------------------------------------------------------------------- derivatives
@pytest.mark.parametrize("name", ESTIMATORS)
@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-9.9, 9.9), min_size=2, max_size=7))
def test_derivatives_equal_autograd(name, scores):
    """At gaps below 20: beyond, torch takes softplus for a straight line."""
    _, nll, derivatives = ESTIMATORS[name]
    scores = torch.tensor(scores, dtype=DOUBLE)
    loss = lambda s: nll(s[None])[0]  # noqa: E731
    gradient, hessian = derivatives(scores)
    expected = torch.autograd.functional.jacobian(loss, scores)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
    expected = torch.autograd.functional.hessian(loss, scores)
    torch.testing.assert_close(hessian, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_derivatives_at_a_large_gap(sign):
    """Two answers 21 apart, as ranked or the other way round."""
    q = 1 / (1 + math.exp(sign * 21))  # σ(s_1 − s_0)
    weight = math.exp(-21) / (1 + math.exp(-21)) ** 2  # q (1 − q)
    for _, _, derivatives in ESTIMATORS.values():
        gradient, hessian = derivatives(torch.tensor([sign * 21.0, 0], dtype=DOUBLE))
        expected = torch.tensor([-q, q], dtype=DOUBLE)
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=0)
        expected = weight * torch.tensor([[1.0, -1], [-1, 1]], dtype=DOUBLE)
        torch.testing.assert_close(hessian, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=5, unique_by=lambda s: round(s, 1)))
def test_which_breakings_are_consistent(name, scores):
    """The mean gradient at the truth, over all K! orders: 0 for what converges to it, exactly."""
    _, _, derivatives = ESTIMATORS[name]
    size = len(scores)
    mean = torch.zeros(size, dtype=DOUBLE)
    for order in permutations(range(size)):
        ranked = [scores[i] for i in order]
        gradient, _ = derivatives(torch.tensor(ranked, dtype=DOUBLE))
        mean[list(order)] += plackett_luce_probability(ranked) * gradient
    if name in ("mle_k", *CONSISTENT):
        assert mean.abs().max() < 1e-12
    else:
        assert mean.abs().max() > 1e-4


# ---------------------------------------------------------------------------------------- sampling
def test_rankings_have_the_law_of_plackett_luce():
    """Chi-squared over the 6 orders, for two data sets with a θ each: false-alarm rate 2e-4."""
    theta = torch.tensor([[1.0, -0.5], [-2.0, 0.3]], dtype=DOUBLE)
    items = torch.tensor([[1.0, 0], [0, 1], [0.5, 2]], dtype=DOUBLE)
    drawn = sample_rankings(items.expand(2, 20000, 3, 2), theta, torch.Generator().manual_seed(0))
    for ranked, weights in zip(drawn, theta, strict=True):
        counts, chances = [], []
        for order in permutations(range(3)):
            counts.append((ranked == items[list(order)]).all(-1).all(-1).sum().item())
            scores = (items[list(order)] @ weights).tolist()
            chances.append(plackett_luce_probability(scores))
        assert sum(counts) == 20000
        assert chisquare(counts, 20000 * np.array(chances)).pvalue > 1e-4


# -------------------------------------------------------------------------------------- estimators
def losses_and_gradients(nll, features: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    theta = theta.clone().requires_grad_()
    loss = nll(torch.einsum("tnkd,td->tnk", features, theta).flatten(0, 1))
    loss = loss.unflatten(0, features.shape[:2]).sum(-1)
    return loss.detach(), torch.autograd.grad(loss.sum(), theta)[0]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_maxima(name):
    """Where the likelihood, by autograd, is flat. Its convexity makes that the maximum."""
    estimate, nll, _ = ESTIMATORS[name]
    features, _ = lists(20, 100, 5, 3, seed=0, scale=0.5)
    theta = estimate(features)
    _, gradient = losses_and_gradients(nll, features, theta)
    assert gradient.abs().max() < 1e-6
    assert theta.norm(dim=-1).min() > 0.1
    assert theta.norm(dim=-1).max() < 20


@pytest.mark.parametrize("name", ["mle_k", "full", "best_vs_worst"])
def test_estimates_in_a_ball_are_maxima(name):
    """On the edge the gradient points to the centre; lists of very unequal size, some separable.

    At full length, Newton's steps would go astray in about one data set of a hundred here.
    """
    estimate, nll, _ = ESTIMATORS[name]
    features, _ = lists(1000, 15, 3, 3, seed=1, scale=0.3)
    features = features * (2 * normal(1000, 15, 1, 1, seed=2)).clamp(max=2).exp()
    theta = estimate(features, radius=2.0)
    size = theta.norm(dim=-1)
    assert size.max() < 2 + 1e-9
    on_edge = size > 2 - 1e-6
    assert 10 < on_edge.sum() < 990
    _, gradient = losses_and_gradients(nll, features, theta)
    scale = features.abs().amax((1, 2, 3))
    assert (gradient[~on_edge].abs().amax(-1) < 1e-6 * scale[~on_edge]).all()
    outwards = (gradient * theta).sum(-1) / 4
    assert (outwards[on_edge] < 0).all()
    sideways = gradient - outwards[:, None] * theta
    assert (sideways[on_edge].abs().amax(-1) < 1e-6 * scale[on_edge]).all()


def test_data_sets_do_not_mix():
    features, _ = lists(6, 40, 4, 3, seed=3)
    for estimate in (mle_k, mle_2):
        together = estimate(features)
        for i in range(6):
            torch.testing.assert_close(estimate(features[i]), together[i], rtol=1e-9, atol=1e-9)
        nested = estimate(features.reshape(2, 3, 40, 4, 3))
        torch.testing.assert_close(nested.reshape(6, 3), together, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(estimate(features.float()), together, rtol=1e-5, atol=1e-5)


def test_of_two_answers_all_estimates_are_bradley_terry():
    features, _ = lists(5, 60, 2, 3, seed=4)
    for estimate, _, _ in ESTIMATORS.values():
        torch.testing.assert_close(estimate(features), mle_k(features), rtol=1e-8, atol=1e-8)


def ranked_items() -> tuple[list[tuple[int, ...]], Tensor]:
    """Rankings of 4 items out of 8, and the same as indicator features (1, 120, 4, 8)."""
    generator = torch.Generator().manual_seed(5)
    shown = torch.stack([torch.randperm(8, generator=generator)[:4] for _ in range(120)])
    worth = torch.linspace(-1, 1, 8, dtype=DOUBLE)
    features = sample_rankings(torch.eye(8, dtype=DOUBLE)[shown][None], worth[None], generator)
    return [tuple(ranking) for ranking in features[0].argmax(-1).tolist()], features


def test_choix_finds_the_same_maxima():
    choix = pytest.importorskip("choix")
    rankings, features = ranked_items()
    expected = choix.opt_rankings(8, rankings, alpha=1e-10, tol=1e-10)
    found = mle_k(features)[0].numpy()
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-5)

    pairs = [pair for ranking in rankings for pair in combinations(ranking, 2)]
    expected = choix.opt_pairwise(8, pairs, alpha=1e-10, tol=1e-10)
    found = mle_2(features)[0].numpy()
    np.testing.assert_allclose(found, expected - expected.mean(), atol=1e-5)


def test_directions_without_data_stay_at_zero():
    _, items = ranked_items()  # only differences of items are compared
    for estimate in (mle_k, mle_2):
        assert estimate(items).sum().abs() < 1e-9
    features, _ = lists(3, 50, 4, 2, seed=6)
    wider = torch.cat([features, torch.ones_like(features[..., :1])], -1)  # the same in all answers
    for estimate in (mle_k, mle_2):
        expected = torch.cat([estimate(features), torch.zeros(3, 1, dtype=DOUBLE)], -1)
        torch.testing.assert_close(estimate(wider), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_rankings_that_one_theta_explains_have_no_maximum(name):
    estimate, _, _ = ESTIMATORS[name]
    features, _ = lists(3, 50, 4, 2, seed=7, scale=0.5)
    order = features[1, ..., 0].argsort(descending=True)
    features[1] = features[1].take_along_dim(order[..., None], dim=-2)
    with pytest.raises(ValueError, match=r"no maximum found in 1 of 3 data sets: .* finite radius"):
        estimate(features)
    bounded = estimate(features, radius=10.0)
    assert bounded[1].norm() == pytest.approx(10, abs=1e-6)
    free = estimate(features[[0, 2]])
    torch.testing.assert_close(bounded[[0, 2]], free, rtol=1e-6, atol=1e-6)


def test_other_breakings_are_refused():
    with pytest.raises(ValueError, match="breaking: expected one of full, adjacent"):
        mle_2(normal(1, 5, 3, 2, seed=0), breaking="random")


# ---------------------------------------------------------------------------- error of estimators
@pytest.mark.parametrize(
    ("k", "golden"), [(2, 1.0), (3, 1.018), (4, 1.032), (5, 1.042), (7, 1.058), (9, 1.069)]
)
def test_error_ratio_golden_numbers(k, golden):
    assert error_ratio_at_zero(k) == pytest.approx(golden, abs=5.1e-4)


def test_error_ratio_is_bounded():
    assert error_ratio_at_zero(20000) == pytest.approx(2 / math.sqrt(3), abs=5e-4)


@pytest.mark.parametrize("k", [2, 3, 4, 7, 9])
def test_error_ratio_follows_from_the_losses(k):
    """√ of (HVH)/(H⁻¹) on the space of differences, H and V averaged over all orders at θ* = 0."""
    zeros = torch.zeros(k, dtype=DOUBLE)
    variance = []
    for derivatives in (plackett_luce_derivatives, pairwise_derivatives):
        gradient, hessian = derivatives(zeros)
        curvature = hessian.trace() / (k - 1)  # averaged over orders: a multiple of I − 11ᵀ/K
        variance.append(gradient @ gradient / (k - 1) / curvature**2)
    assert error_ratio_at_zero(k) == pytest.approx((variance[1] / variance[0]).sqrt().item())


@pytest.mark.parametrize("k", [4, 7, 9])
def test_measured_error_ratio_at_zero(k):
    """|z| < 4 around the closed form: false-alarm rate 6e-5 each; 1 is excluded."""
    features = normal(400, 200, k, 4, seed=k)  # θ* = 0: any order is as likely as any
    by_k, by_2 = mle_k(features).square().sum(-1), mle_2(features).square().sum(-1)
    ratio = (by_2.mean() / by_k.mean()).sqrt().item()
    spread = (by_2 / by_2.mean() - by_k / by_k.mean()).std().item() / 2
    error = ratio * spread / math.sqrt(len(features))
    assert abs(ratio - error_ratio_at_zero(k)) < 4 * error
    assert ratio > 1 + 2 * error


def test_whole_rankings_tell_more_where_signal_is_strong():
    """K = 9, θ* ~ N(0, I): paired log ratio of errors, z about 6.5; z > 2.5 fails at 1e-4."""
    features, theta = lists(400, 100, 9, 3, seed=8)
    sigma = data_covariance(features)
    by_k, by_2 = (semi_norm(f(features) - theta, sigma) for f in (mle_k, mle_2))
    log_ratio = (by_2 / by_k).log()
    assert log_ratio.mean() / log_ratio.std() * math.sqrt(400) > 2.5


def slope_with_error(x: list[int], errors: list[Tensor]) -> tuple[float, float]:
    """Least-squares slope of log √mean(error²) against log x, and its standard error."""
    log_x = np.log(x) - np.log(x).mean()
    weight = log_x / (log_x**2).sum()
    squares = [error.square() for error in errors]
    logs = np.array([math.log(square.mean()) / 2 for square in squares])
    noise = np.array([square.std() / square.mean() / 2 / len(square) ** 0.5 for square in squares])
    return float(weight @ logs), float(np.sqrt((weight**2) @ (noise**2)))


@pytest.mark.parametrize("estimate", [mle_k, mle_2])
def test_error_falls_with_the_root_of_n(estimate):
    """Slope −½ in log n: |z| < 4, false-alarm rate 6e-5 each."""
    sizes, errors = [100, 200, 400, 800, 1600], []
    for n in sizes:
        features, theta = lists(150, n, 4, 3, seed=n, scale=0.5)
        errors.append(semi_norm(estimate(features) - theta, data_covariance(features)))
    slope, error = slope_with_error(sizes, errors)
    assert error < 0.025
    assert abs(slope + 0.5) < 4 * error


def test_error_grows_with_the_root_of_d():
    """Slope ½ in log d at θ* = 0: |z| < 4, false-alarm rate 6e-5."""
    dimensions, errors = [2, 4, 8, 16], []
    for d in dimensions:
        features = normal(150, 400, 4, d, seed=d)
        errors.append(semi_norm(mle_k(features), data_covariance(features)))
    slope, error = slope_with_error(dimensions, errors)
    assert error < 0.025
    assert abs(slope - 0.5) < 4 * error


def test_inconsistent_breakings_stay_wrong():
    """Error at 1 500 and at 150 lists of seven, θ* = (1, −1, ½): falling with √10, or not at all.

    The margins are 4 or more standard errors wide: false-alarm rate below 1e-3 in all.
    """
    theta = torch.tensor([1.0, -1.0, 0.5], dtype=DOUBLE)
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for n, trials in ((150, 60), (1500, 20)):
        features = sample_rankings(
            normal(trials, n, 7, 3, seed=n),
            theta.expand(trials, 3),
            torch.Generator().manual_seed(n + 1),
        )
        for name, (estimate, _, _) in ESTIMATORS.items():
            found = estimate(features, radius=10.0)
            errors[name].append((found - theta).norm(dim=-1).mean().item())
            if n == 1500:  # of isotropic features all find the direction; the length is wrong
                assert torch.cosine_similarity(found, theta, dim=-1).mean() > 0.98
    for name, (few, many) in errors.items():
        if name in ("mle_k", *CONSISTENT):
            assert many < 0.6 * few
        else:
            assert many > 0.6
    for name in ("adjacent", "best_vs_second", "rest_vs_worst"):
        few, many = errors[name]
        assert many > 0.8 * few


# -------------------------------------------------------------------------------- norms and bounds
def test_data_covariance_equals_the_naive_loop():
    features = normal(2, 6, 4, 3, seed=9)
    for trial in range(2):
        expected = torch.zeros(3, 3, dtype=DOUBLE)
        for ranking in features[trial]:
            for j in range(4):
                for k in range(j + 1, 4):
                    difference = ranking[j] - ranking[k]
                    expected += torch.outer(difference, difference)
        expected *= 2 / (4 * 3 * 6)
        torch.testing.assert_close(data_covariance(features)[trial], expected)


def test_semi_norm_is_the_root_mean_square_difference():
    """‖x‖²_Σ is the mean over lists and pairs of (xᵀ(φ_j − φ_k))²."""
    features, x = normal(3, 6, 4, 3, seed=10), normal(3, 3, seed=11)
    r = rewards(features, x[:, None])  # (3, 6, 4)
    squares = [(r[..., j] - r[..., k]).square().mean(-1) for j, k in combinations(range(4), 2)]
    expected = torch.stack(squares).mean(0).sqrt()
    torch.testing.assert_close(semi_norm(x, data_covariance(features)), expected)


def test_least_slope_is_the_logistics():
    margins = torch.linspace(-2.8, 2.8, 10001, dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(margins.sigmoid().sum(), margins)
    assert least_slope(1.4, 2.0) == pytest.approx(slope.min().item())


def test_bonus_factor():
    assert bonus_factor(100, 3) == pytest.approx(math.sqrt((3 + math.log(20)) / 100))
    full = bonus_factor(50, 4, delta=0.1, gamma=0.5, ridge=0.01, radius=3.0, constant=2.0)
    assert full == pytest.approx(2 * math.sqrt((4 + math.log(10)) / (0.25 * 50) + 0.01 * 9))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0, 5), st.floats(1e-3, 1))
def test_pessimistic_value_is_the_least_in_the_ellipsoid(seed, bonus, ridge):
    features, x = normal(5, 3, 3, seed=seed), normal(6, 3, seed=seed + 1)
    policies, theta, reference = x[:4], x[4], x[5]
    sigma = data_covariance(features)
    options = {"bonus": bonus, "reference": reference, "ridge": ridge}
    values = pessimistic_values(policies, theta, sigma, **options)

    metric = sigma + ridge * torch.eye(3, dtype=DOUBLE)
    root = torch.linalg.cholesky(metric)  # θ = θ̂ + f L⁻ᵀu with ‖u‖ = 1 has norm f
    u = torch.nn.functional.normalize(normal(4000, 3, seed=seed + 2), dim=-1)
    edge = theta + bonus * torch.linalg.solve(root.mT, u.mT).mT
    worth = edge @ (policies - reference).mT  # (4000, 4)
    spread = bonus * torch.linalg.solve(root, (policies - reference).mT).norm(dim=0)
    assert (worth >= values - 1e-9 * (1 + spread)).all()  # nobody in the set is below
    assert (worth.min(0).values <= values + 0.02 * spread + 1e-9).all()  # and some come near


def test_pessimism_without_bonus_is_greed():
    x = normal(2, 6, 3, seed=12)
    sigma = torch.eye(3, dtype=DOUBLE).expand(2, 3, 3)
    options = {"bonus": 0.0, "reference": x[0, 5], "ridge": 0.1}
    values = pessimistic_values(x[:, :4], x[:, 4], sigma, **options)
    greedy = rewards(x[:, :4], x[:, 4])
    assert (values.argmax(-1) == greedy.argmax(-1)).all()
    torch.testing.assert_close(values.diff(dim=-1), greedy.diff(dim=-1))
    one_by_one = [
        pessimistic_values(x[i, :4], x[i, 4], sigma[i] * 3, **(options | {"bonus": 1.0}))
        for i in range(2)
    ]
    together = pessimistic_values(x[:, :4], x[:, 4], sigma * 3, **(options | {"bonus": 1.0}))
    torch.testing.assert_close(together, torch.stack(one_by_one))


# -------------------------------------------------------------------------- greedy and pessimistic
def all_bandit_data(n: int) -> tuple[Tensor, Tensor]:
    """Every outcome of the bandit's n comparisons, (2n, n, 2, 3), and its probability, (2n,)."""
    data, chances = [], []
    for wins in range(n):  # of a1 over a2
        for a2_wins in (True, False):  # over a3
            first = [ACTIONS[[0, 1]]] * wins + [ACTIONS[[1, 0]]] * (n - 1 - wins)
            data.append(torch.stack([*first, ACTIONS[[1, 2]] if a2_wins else ACTIONS[[2, 1]]]))
            chances.append(
                binom.pmf(wins, n - 1, 1 / (1 + math.exp(-0.1)))
                / (1 + math.exp(1 if a2_wins else -1))
            )
    return torch.stack(data), torch.tensor(chances, dtype=DOUBLE)


def bandit_policies(data: Tensor) -> dict[str, Tensor]:
    """Sub-optimality on each data set of the greedy and three pessimistic policies."""
    n = data.shape[1]
    theta = mle_k(data - data.mean(-1, keepdim=True), radius=RADIUS)
    sigma = data_covariance(data)
    gamma = least_slope(math.sqrt(2), RADIUS)
    pessimistic = partial(pessimistic_values, ACTIONS, theta, sigma, ridge=1e-6)
    values = {
        "greedy": rewards(ACTIONS, theta),
        "theorem": pessimistic(bonus=bonus_factor(n, 3, gamma=gamma), reference=ACTIONS[2]),
        "plain": pessimistic(bonus=bonus_factor(n, 3), reference=ACTIONS[2]),
        "frequent": pessimistic(bonus=bonus_factor(n, 3), reference=ACTIONS[1]),
    }
    return {name: suboptimality(value, rewards(ACTIONS, THETA)) for name, value in values.items()}


@pytest.mark.parametrize("n", [2, 10, 20, 50, 100, 200, 500])
def test_greed_fails_and_pessimism_does_not(n):
    """Exact, over all data sets; Theorem 3.9 of arXiv 2301.11270 and its simulation."""
    data, chances = all_bandit_data(n)
    assert chances.sum().item() == pytest.approx(1)
    lost = {name: (chances @ value).item() for name, value in bandit_policies(data).items()}
    assert 0.27 < lost["greedy"] < 0.32  # σ(−1) · 1.0 = 0.269 even with n = ∞
    assert lost["theorem"] == pytest.approx(0.1)  # so cautious that it always plays a3
    assert lost["plain"] == pytest.approx(PESSIMISTIC[n], abs=5e-4)
    assert lost["frequent"] == pytest.approx(1 + PESSIMISTIC[n], abs=5e-4)  # safe, and never good


PESSIMISTIC = {2: 0.1, 10: 0.0883, 20: 0.0878, 50: 0.0786, 100: 0.0761, 200: 0.0716, 500: 0.0554}


def test_sampled_bandit_agrees_with_all_data_sets():
    """|z| < 4 for both policies: false-alarm rate 2e-4."""
    data, chances = all_bandit_data(20)
    exact = bandit_policies(data)
    drawn = bandit_policies(sample_bandit(20, 2000, torch.Generator().manual_seed(0)))
    for name in ("greedy", "plain"):
        mean = chances @ exact[name]
        error = (chances @ (exact[name] - mean).square() / 2000).sqrt()
        assert abs(drawn[name].mean() - mean) < 4 * error
