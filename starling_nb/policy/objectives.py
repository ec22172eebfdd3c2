"""From scores to advantages to losses: PPO, APA, AWR and P3O as pure functions of tensors.

Throughout, B responses of at most R actions are (B, R) tensors, padded on the right; `mask` is a
(B, R) bool tensor, true on actions, the end-of-turn action included. What stands on padding is
never read. Each loss is a mean over actions (P3O: over pairs of responses) and comes with its
diagnostics, detached.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True)
class Sampled:
    """B sampled answers as an objective sees them; nothing here carries a gradient."""

    old_logprobs: Tensor  # (B, R) nats, of the policy that sampled
    reference_logprobs: Tensor  # (B, R) nats, of the initial policy
    advantages: Tensor  # (B, R)
    scores: Tensor  # (B,) of whole answers, shifted and scaled
    mask: Tensor  # (B, R) bool, true on actions

    def __getitem__(self, rows: Tensor) -> "Sampled":
        """The same of some of the rows."""
        return Sampled(*(getattr(self, field.name)[rows] for field in fields(self)))


# A policy's log-probabilities (B, R), with gradient, and what was sampled -> loss, diagnostics.
Objective = Callable[[Tensor, Sampled], Loss]


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) at each sampled action: (B, R), in nats.

    With r = log pi/pi_ref: k1 = r is unbiased; k2 = r²/2 is biased, small in variance;
    k3 = exp(-r) - 1 + r is unbiased and never negative. Raises ValueError for another kind.
    Source: Schulman 2020, "Approximating KL divergence".
    """
    log_ratio = logprobs - reference_logprobs
    match kind:
        case "k1":
            return log_ratio
        case "k2":
            return log_ratio**2 / 2
        case "k3":
            return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kind: expected k1, k2 or k3, found {kind!r}")


def shape_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return rewards (B, R): minus kl_coef * kl at each action, plus scores (B,) at the last one.

    The last action is the end of turn, or where the answer was cut. Source: Ziegler et al. 2019,
    eq. 2.
    """
    last, scores = mask.sum(1, keepdim=True) - 1, scores[:, None].to(kl.dtype)
    return (-kl_coef * kl).masked_fill(~mask, 0.0).scatter_add(1, last, scores)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both (B, R), detached and 0 on padding.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  return_t = A_t + V_t,
    with V = 0 after the last action, or `bootstrap` (B,): for answers that were cut, the value of
    the state they were cut in. lam 0 gives the one-step error, lam 1 the whole return less V.
    Source: Schulman et al. 2016, eq. 16.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    if bootstrap is not None:  # V of the state after the last action enters with its reward
        last = mask.sum(1, keepdim=True) - 1
        rewards = rewards.scatter_add(1, last, gamma * bootstrap[:, None])
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor, total: Callable[[Tensor], Tensor] = torch.clone) -> Tensor:
    """Shift and scale values (B, R) to mean 0 and variance 1 over the mask; 0 on padding.

    total: sums a tensor over the processes that share a batch, where there are several.
    """
    kept = values[mask].double()
    count, mean = total(torch.stack([torch.ones_like(kept).sum(), kept.sum()]))
    mean = mean / count
    variance = total(((kept - mean) ** 2).sum()) / count
    return ((values - mean) / (variance.sqrt() + 1e-8)).masked_fill(~mask, 0.0).to(values.dtype)


def ppo_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2
) -> Loss:
    """Return PPO's clipped objective, negated: mean of max(-A ratio, -A clip(ratio, 1 ± clip)).

    Diagnostics: ratio pi/pi_old, approxkl (k3 to the policy that sampled), clipfrac (share of
    actions with the ratio outside the clip range). Source: Schulman et al. 2017, eq. 7.
    """
    logprobs, old_logprobs, advantages = logprobs[mask], old_logprobs[mask], advantages[mask]
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped).mean()
    return loss, {
        "ratio": ratio.detach().mean(),
        "approxkl": kl_estimate(old_logprobs, logprobs.detach(), "k3").mean(),
        "clipfrac": (ratio != clipped).float().mean(),
    }


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2
) -> Loss:
    """Return the critic's clipped half squared error against the returns.

    Half the mean of max((V - ret)², (V_old + clip(V - V_old, ± clip) - ret)²). Diagnostics:
    explained_variance of the returns by V (not finite where they do not vary), vf_clipfrac (share
    where the clipped term is the larger). Source: OpenAI baselines' ppo2; not in the PPO paper.
    """
    values, old_values, returns = values[mask], old_values[mask], returns[mask]
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    loss = torch.maximum(error, clipped_error).mean() / 2
    unexplained = (returns - values.detach()).var(correction=0) / returns.var(correction=0)
    return loss, {
        "explained_variance": 1 - unexplained,
        "vf_clipfrac": (clipped_error > error).float().mean(),
    }


def apa_loss(
    logprobs: Tensor, anchor_logprobs: Tensor, advantages: Tensor, mask: Tensor, lam: float
) -> Loss:
    """Return APA's squared distance to pi* = anchor * exp(A / lam), whose Z is taken as 1.

    Mean of (log pi - log anchor - A / lam)². The anchor is the initial policy in the paper, the
    policy that sampled in Starling's code. At pi = anchor the gradient is 2 / lam times PPO's.
    Diagnostics: anchor_kl (k1, to the anchor), unattainable (share of actions whose target
    probability exceeds 1). Source: Zhu et al. 2023 (arXiv 2306.02231), L^APA.
    """
    logprobs, anchor_logprobs = logprobs[mask], anchor_logprobs[mask].detach()
    target = anchor_logprobs + advantages[mask] / lam
    loss = ((logprobs - target) ** 2).mean()
    return loss, {
        "anchor_kl": kl_estimate(logprobs.detach(), anchor_logprobs).mean(),
        "unattainable": (target > 0).float().mean(),
    }


def awr_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, lam: float, max_weight: float = 20.0
) -> Loss:
    """Return the advantage-weighted log-likelihood, negated: mean of -log pi min(exp(A/lam), max).

    Diagnostics: weight (mean), weight_clipfrac. Source: Peng et al. 2019 (arXiv 1910.00177),
    whose largest weight is 20 too.
    """
    raw = torch.exp(advantages[mask] / lam).detach()
    weight = raw.clamp(max=max_weight)
    loss = -(weight * logprobs[mask]).mean()
    clipfrac = (raw > max_weight).float().mean()
    return loss, {"weight": weight.mean(), "weight_clipfrac": clipfrac}


def p3o_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor,
    scores: Tensor,
    mask: Tensor,
    kl_coef: float,
    clip: float = 0.2,
    max_weight: float = 10.0,
) -> Loss:
    """Return P3O's loss on pairs: rows 2i and 2i + 1 answer the same prompt, scores is (B,).

    With l = log pi/pi_ref of a whole response, d = l_0 - l_1 and
    q = R_0 - R_1 - kl_coef d:  mean of max(-q w d / 2, -q w clip(d, d_old ± clip) / 2), where
    w = exp(log pi/pi_old of both), within [1/max_weight, max_weight]; q and w carry no gradient.
    A reward added to both rows of a prompt changes nothing. Diagnostics: margin (mean |q|),
    clipfrac. Source: Wu et al. 2023 (arXiv 2310.00212), in the form of Starling's code.
    """

    def per_response(log_ratio: Tensor) -> Tensor:  # (B, R) -> (B,)
        return log_ratio.masked_fill(~mask, 0.0).sum(1)

    first, second = slice(0, None, 2), slice(1, None, 2)
    new = per_response(logprobs - reference_logprobs)  # l = log pi/pi_ref: (B,)
    old = per_response(old_logprobs - reference_logprobs)
    d, old_d = new[first] - new[second], old[first] - old[second]
    q = (scores[first] - scores[second] - kl_coef * d).detach()
    moved = (new - old).detach()
    w = torch.exp(moved[first] + moved[second]).clamp(1 / max_weight, max_weight)
    clipped = d.clamp(old_d - clip, old_d + clip)
    loss = torch.maximum(-q * w * d / 2, -q * w * clipped / 2).mean()
    return loss, {"margin": q.abs().mean(), "clipfrac": (d != clipped).float().mean()}


@dataclass(frozen=True)
class PPO:
    """`ppo_loss` as an objective of `tune_policy`; it expects whitened advantages."""

    clip: float = 0.2

    def __call__(self, logprobs: Tensor, s: Sampled) -> Loss:
        return ppo_loss(logprobs, s.old_logprobs, s.advantages, s.mask, self.clip)


@dataclass(frozen=True)
class APA:
    """`apa_loss` as an objective: anchor "init" as in the paper, "old" as in Starling's code.

    Raises ValueError for another anchor.
    """

    lam: float
    anchor: str = "init"

    def __post_init__(self):
        if self.anchor not in ("init", "old"):
            raise ValueError(f"anchor: expected init or old, found {self.anchor!r}")

    def __call__(self, logprobs: Tensor, s: Sampled) -> Loss:
        anchor_logprobs = s.reference_logprobs if self.anchor == "init" else s.old_logprobs
        return apa_loss(logprobs, anchor_logprobs, s.advantages, s.mask, self.lam)


@dataclass(frozen=True)
class AWR:
    """`awr_loss` as an objective."""

    lam: float
    max_weight: float = 20.0

    def __call__(self, logprobs: Tensor, s: Sampled) -> Loss:
        return awr_loss(logprobs, s.advantages, s.mask, self.lam, self.max_weight)


@dataclass(frozen=True)
class P3O:
    """`p3o_loss` as an objective; it needs two samples of each prompt and reads no advantages."""

    kl_coef: float
    clip: float = 0.2
    max_weight: float = 10.0
    samples: ClassVar[int] = 2

    def __call__(self, logprobs: Tensor, s: Sampled) -> Loss:
        return p3o_loss(
            logprobs,
            s.old_logprobs,
            s.reference_logprobs,
            s.scores,
            s.mask,
            self.kl_coef,
            self.clip,
            self.max_weight,
        )
