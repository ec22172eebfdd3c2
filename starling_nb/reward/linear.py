"""Linear rewards: how well rankings determine them, and what a policy makes of an estimate.

    r(x) = θᵀφ(x),   P(ranking) = Π_j exp(θᵀφ_j) / Σ_{i>=j} exp(θᵀφ_i)        (Plackett-Luce)

Zhu, Jordan and Jiao 2023 (arXiv 2301.11270) estimate θ by maximum likelihood, from whole rankings
(MLE_K) or from their pairs (MLE_2), and show that the policy which is best under the estimate can
fail where the data are thin, and that a pessimistic one does not. Everything is float64 and works
on many data sets at once: `...` stands for any leading dimensions, one index per data set.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from starling_nb.reward.kwise import BREAKINGS, pairwise_nll, plackett_luce_nll

NEWTON_STEPS = 100


def rewards(features: Tensor, theta: Tensor) -> Tensor:
    """θᵀφ. features: (..., K, d), theta: (..., d) -> (..., K)."""
    return torch.einsum("...kd,...d->...k", features, theta)


def sample_rankings(features: Tensor, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Rank every list's answers by Plackett-Luce and return their features best first.

    features: (..., N, K, d) in any order; theta: (..., d). -> (..., N, K, d).
    The order of r + Gumbel noise has the law of Plackett-Luce (Yellott 1977).
    """
    scores = rewards(features, theta[..., None, :])
    gumbel = -torch.empty_like(scores).exponential_(generator=generator).log()
    best_first = (scores + gumbel).argsort(dim=-1, descending=True)
    return features.take_along_dim(best_first[..., None], dim=-2)


# -------------------------------------------------------------------------------------- estimators
def plackett_luce_derivatives(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (..., K) and Hessian (..., K, K) in the scores of `plackett_luce_nll`.

    With p_j the softmax over the answers left at stage j, i >= j:
        gradient = Σ_j p_j − 1        hessian = Σ_j diag(p_j) − p_j p_jᵀ
    scores: (..., K), best first.
    """
    left = torch.ones(scores.shape[-1], scores.shape[-1], dtype=torch.bool).triu()
    p = scores[..., None, :].masked_fill(~left, -math.inf).softmax(-1)  # (..., stage j, answer i)
    chosen = p.sum(-2)
    return chosen - 1, chosen.diag_embed() - p.mT @ p


def pairwise_derivatives(scores: Tensor, breaking: str = "full") -> tuple[Tensor, Tensor]:
    """Gradient (..., K) and Hessian (..., K, K) in the scores of `pairwise_nll`.

    With q_ij = σ(s_j − s_i), the chance that the pair (i, j) had come out the other way:
        gradient = Σ_pairs q_ij (e_j − e_i)
        hessian = Σ_pairs q_ij (1 − q_ij) (e_i − e_j)(e_i − e_j)ᵀ
    scores: (..., K), best first; breaking: which pairs, as in `pairwise_nll`.
    """
    place = torch.arange(scores.shape[-1])
    i, j = place[:, None], place[None, :]
    pairs = BREAKINGS[breaking](i, j, place[-1]) & (i < j)
    q = (scores[..., None, :] - scores[..., :, None]).sigmoid() * pairs  # (..., i, j)
    weight = q * (1 - q)
    weight = weight + weight.mT
    return q.sum(-2) - q.sum(-1), weight.sum(-1).diag_embed() - weight


def mle_k(features: Tensor, radius: float = math.inf) -> Tensor:
    """MLE_K: the θ under which the rankings are most likely, among those with ‖θ‖ <= radius.

    features: (..., N, K, d), best first. -> (..., d); 0 in directions the data say nothing about.
    Raises ValueError when there is no maximum: some θ orders every list as it is ranked, and grows
    without bound. A finite radius has one; float64 finds it while scores stay below about 15.
    Source: arXiv 2301.11270, MLE_K.
    """
    return _maximum_likelihood(features, plackett_luce_nll, plackett_luce_derivatives, radius)


def mle_2(features: Tensor, breaking: str = "full", radius: float = math.inf) -> Tensor:
    """MLE_2: as `mle_k`, but each ranking is broken into pairs, taken for independent.

    breaking: "full" is the paper's; the others are those of `pairwise_nll`, ValueError for one that
    is not. Only "full" and "best_vs_rest" converge to the true θ (Azari Soufiani et al. 2013).
    """
    nll = partial(pairwise_nll, breaking=breaking)
    derivatives = partial(pairwise_derivatives, breaking=breaking)
    return _maximum_likelihood(features, nll, derivatives, radius)


def _maximum_likelihood(
    features: Tensor,
    nll: Callable[[Tensor], Tensor],
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor]],
    radius: float,
) -> Tensor:
    """Newton's method: step to the minimum, within the ball, of the quadratic that fits at θ.

    A step that raises the loss is halved until it does not.
    """

    def loss(scores: Tensor) -> Tensor:  # (..., N, K) -> (..., 1)
        lists = scores.shape[:-1]
        return nll(scores.flatten(0, -2)).reshape(lists).sum(-1, keepdim=True)

    features = features.double()
    theta = features.new_zeros(*features.shape[:-3], features.shape[-1])
    scores = features.new_zeros(features.shape[:-1])  # (..., N, K)
    now = loss(scores)
    for _ in range(NEWTON_STEPS):
        gradient, hessian = derivatives(scores)  # (..., N, K), (..., N, K, K)
        gradient = torch.einsum("...nkd,...nk->...d", features, gradient)
        hessian = torch.einsum("...nkd,...nke->...de", features, hessian @ features)
        target = (hessian @ theta[..., None])[..., 0] - gradient
        step = _minimum_in_ball(hessian, target, radius) - theta
        moves = rewards(features, step[..., None, :])
        fraction = torch.ones_like(now)  # (..., 1)
        new = loss(scores + moves)
        while (rises := new > now * (1 + 1e-9)).any():  # by more than rounding
            fraction = torch.where(rises, fraction / 2, fraction)
            new = loss(scores + fraction[..., None] * moves)
        theta, scores, now = theta + fraction * step, scores + fraction[..., None] * moves, new
        moving = step.abs().amax(-1) > 1e-8 * (1 + theta.abs().amax(-1))
        if not moving.any():
            return theta
    raise ValueError(
        f"no maximum found in {int(moving.sum())} of {moving.numel()} data sets: it seems that one "
        "θ orders all of their lists as ranked, and the longer it is the better. Give more lists, "
        "or a finite radius, say 10"
    )


def _minimum_in_ball(hessian: Tensor, target: Tensor, radius: float) -> Tensor:
    """The θ with ‖θ‖ <= radius that minimises ½ θᵀHθ − targetᵀθ.

    It is (H + μI)⁻¹ target; μ = 0, or found by bisection so that ‖θ‖ = radius.
    """
    values, vectors = torch.linalg.eigh(hessian)
    known = values > 1e-12 * values[..., -1:]
    target = (vectors.mT @ target[..., None])[..., 0]

    def solution(mu: Tensor) -> Tensor:
        return torch.where(known, target / (values + mu), 0)

    low, high = torch.zeros_like(target[..., :1]), target.norm(dim=-1, keepdim=True) / radius
    for _ in range(60):
        middle = (low + high) / 2
        outside = solution(middle).norm(dim=-1, keepdim=True) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return (vectors @ solution(high)[..., None])[..., 0]


def error_ratio_at_zero(k: int) -> float:
    """Error of MLE_2 over that of MLE_K for many lists of K answers, when θ* = 0.

    Where every order is equally likely, the gradient of MLE_2 gives an answer its place, that of
    MLE_K its Savage score 1 − Σ_{i<=j} 1/(K−i+1), and the ratio is 1/|correlation of the two|:
    1.032, 1.058 and 1.069 for K = 4, 7 and 9, at most 2/√3.
    """
    places = torch.arange(1, k + 1, dtype=torch.float64)
    savage = 1 - (1 / (k + 1 - places)).cumsum(0)
    return 1 / torch.corrcoef(torch.stack([places, savage]))[0, 1].abs().item()


# ------------------------------------------------------------------------------ norms and policies
def data_covariance(features: Tensor) -> Tensor:
    """Σ_D = 2/(K(K−1)n) Σ_lists Σ_{j<k} (φ_j − φ_k)(φ_j − φ_k)ᵀ: what the data compare.

    features: (..., n, K, d). -> (..., d, d). Source: arXiv 2301.11270, Σ_D.
    """
    n, k = features.shape[-3:-1]
    centred = features - features.mean(-2, keepdim=True)  # Σ_{j<k} over pairs = K Σ_j centred
    return 2 / ((k - 1) * n) * torch.einsum("...nkd,...nke->...de", centred, centred)


def semi_norm(vector: Tensor, sigma: Tensor) -> Tensor:
    """‖x‖_Σ = √(xᵀΣx), 0 in directions without data. vector: (..., d), sigma: (..., d, d)."""
    return torch.einsum("...d,...de,...e->...", vector, sigma, vector).sqrt()


def bonus_factor(
    n: int,
    d: int,
    *,
    delta: float = 0.05,
    gamma: float = 1.0,
    ridge: float = 0.0,
    radius: float = 0.0,
    constant: float = 1.0,
) -> float:
    """f = C √((d + log 1/δ)/(γ²n) + λB²): how far θ* may be from θ̂, with probability 1 − δ.

    n comparisons of d features, λ: ridge, B: radius. The theorem's C is not known and its γ, the
    least slope of the likelihood on the ball (`least_slope`), is cautious: 1 stands for neither.
    Source: arXiv 2301.11270, Lemma 3.1.
    """
    return constant * math.sqrt((d + math.log(1 / delta)) / (gamma**2 * n) + ridge * radius**2)


def least_slope(length: float, radius: float) -> float:
    """γ = 1/(2 + e^−LB + e^LB), for two answers. length: L >= ‖φ‖, radius: B >= ‖θ‖."""
    return 1 / (2 + math.exp(-length * radius) + math.exp(length * radius))


def pessimistic_values(
    policies: Tensor,
    theta: Tensor,
    sigma: Tensor,
    *,
    bonus: float,
    reference: Tensor,
    ridge: float,
) -> Tensor:
    """The least that policies can be worth, over all θ as near to θ̂ as the data leave open.

        min {θᵀ(φ_π − v) : ‖θ − θ̂‖_{Σ_D+λI} <= f} = θ̂ᵀ(φ_π − v) − f ‖φ_π − v‖_{(Σ_D+λI)⁻¹}

    policies: (..., M, d), the mean features of what each policy answers (of each action, in a
    bandit); theta: (..., d); sigma: (..., d, d); bonus: f; reference: v, (d,), the features of what
    a policy is compared with; ridge: λ > 0. -> (..., M); the pessimistic policy is the argmax. The
    greedy one, which maximises `rewards(policies, theta)`, is the case f = 0.
    Source: arXiv 2301.11270, Algorithm 1.
    """
    gain = policies - reference
    metric = sigma + ridge * torch.eye(sigma.shape[-1], dtype=sigma.dtype)
    norm = (gain * torch.linalg.solve(metric, gain.mT).mT).sum(-1).sqrt()
    return rewards(gain, theta) - bonus * norm


def suboptimality(values: Tensor, true_values: Tensor) -> Tensor:
    """How much worse the policy that `values` prefers is than the best. (..., M), (M,) -> (...)."""
    return true_values.max() - true_values[values.argmax(-1)]


# The bandit of arXiv 2301.11270 (Theorem 3.9 and its simulation). Many comparisons tell a1 from a2
# and, as a4 − a3 = a1 − a2, also a4 from a3; a single one tells whether a2 is better than a3. Where
# it comes out wrong, σ(−1) = 27 % of the time, the greedy policy believes it, and plays a1 or a2.
ACTIONS = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.float64)  # (4, d)
THETA = torch.tensor([-1, 0.1, 0.9], dtype=torch.float64)  # the actions' rewards: −.9, −1, 0, .1
RADIUS = 2.0  # θ is also known to sum to 0: then θᵀφ sees only φ − mean(φ), which goes into mle_k


def sample_bandit(n: int, trials: int, generator: torch.Generator) -> Tensor:
    """n − 1 comparisons of a1 with a2 and one of a2 with a3, the preferred action first.

    -> (trials, n, 2, 3).
    """
    pairs = torch.stack([*[ACTIONS[[0, 1]]] * (n - 1), ACTIONS[[1, 2]]])
    return sample_rankings(pairs.expand(trials, -1, -1, -1), THETA.expand(trials, -1), generator)
