"""Problems small enough to enumerate: what KL-regularised improvement and APA lead to, exactly.

N problems of one state and V actions each: distributions, advantages and rewards are (N, V) float64
tensors, log-probabilities in nats. The reward of an action is known, so nothing is sampled.
"""

from collections.abc import Iterator

import torch
from scipy.special import lambertw
from torch import Tensor


def random_problems(count: int, actions: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw log pi_init, of logits 1.5 N(0, 1), and rewards, both (N, V).

    Rewards are N(0, 1), then brought to mean 0 and variance 1 under pi_init, so that lam is in
    standard deviations of the reward, as it is for `tune_policy`.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(2, count, actions, dtype=torch.float64, generator=generator)
    log_init = (1.5 * draws[0]).log_softmax(-1)
    centred = draws[1] - expected(log_init, draws[1])[:, None]
    return log_init, centred / expected(log_init, centred**2).sqrt()[:, None]


def advantages(log_pi: Tensor, rewards: Tensor, whiten: bool) -> Tensor:
    """Return r - E r under pi: (N, V); whitened, it has variance 1 over all problems together."""
    centred = rewards - expected(log_pi, rewards)[:, None]
    return centred / (expected(log_pi, centred**2).mean().sqrt() + 1e-8) if whiten else centred


def expected(log_pi: Tensor, values: Tensor) -> Tensor:
    """Return E values under pi: (N,)."""
    return (log_pi.exp() * values).sum(-1)


def divergence(log_pi: Tensor, log_other: Tensor) -> Tensor:
    """Return KL(pi || other) in nats: (N,)."""
    return expected(log_pi, log_pi - log_other)


def optimum(log_init: Tensor, advantages: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Return log pi* (N, V) and log Z (N,) of pi* = pi_init exp(A / lam) / Z.

    It is where E_pi A - lam KL(pi || pi_init) is largest. Source: Zhu et al. 2023
    (arXiv 2306.02231), whose loss takes Z as 1.
    """
    target = log_init + advantages / lam
    log_z = target.logsumexp(-1)
    return target - log_z[:, None], log_z


def apa_minimiser(log_old: Tensor, target: Tensor) -> Tensor:
    """Return the log pi (N, V) with the least sum_a pi_old(a) (log pi(a) - target(a))².

    This is APA's loss with its expectation taken, target = log anchor + A / lam. At the minimum
    pi_old (log pi - target) = -k pi with one k for each problem, so that
    log pi = target - W(k exp(target) / pi_old), W being Lambert's function; k, found by bisection,
    makes the probabilities sum to 1.
    Raises ValueError where they sum to less than 1 at k = 0: pi would have to lie above its target.
    """
    if (target.logsumexp(-1) < -1e-9).any():
        raise ValueError("target: expected exp(target) to sum to 1 or more in every problem")
    log_ratio = target - log_old

    def log_pi(log_k: Tensor) -> Tensor:
        return target - lambert(log_k[:, None] + log_ratio)

    low = torch.full_like(target[:, 0], -1e9)
    high = torch.full_like(low, 1e9)
    for _ in range(120):
        middle = (low + high) / 2
        above = log_pi(middle).logsumexp(-1) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return log_pi(high).log_softmax(-1)


def lambert(log_z: Tensor) -> Tensor:
    """Return W(exp(log_z)), the w with w exp(w) = z, also where exp(log_z) overflows."""
    small = torch.from_numpy(lambertw(log_z.clamp(max=500).exp().numpy()).real)
    w = torch.where(log_z < 500, small, log_z - log_z.clamp(min=1).log())
    for _ in range(4):  # Newton on w + log w = log z, which is exact where z is large
        step = (w + w.clamp(min=1e-300).log() - log_z) * w / (1 + w)
        w = torch.where(log_z > 1, w - step, w)
    return w


def apa_iterations(
    log_init: Tensor,
    rewards: Tensor,
    *,
    lam: float,
    anchor: str = "init",
    whiten: bool = True,
    kl_coef: float = 0.0,
) -> Iterator[Tensor]:
    """Yield log pi (N, V) after each round in which APA's loss is brought to its minimum.

    A round starts at pi_old, the last round's policy; its advantages are those of
    r - kl_coef (log pi_old - log pi_init), the anchor is pi_init ("init", the paper's) or pi_old
    ("old", that of Starling's code). A target that sums to less than 1 is shifted up to 1.
    """
    log_old = log_init
    while True:
        shaped = rewards - kl_coef * (log_old - log_init)
        gain = advantages(log_old, shaped, whiten) / lam
        target = (log_init if anchor == "init" else log_old) + gain
        target = target - target.logsumexp(-1, keepdim=True).clamp(max=0)
        log_old = apa_minimiser(log_old, target)
        yield log_old
