"""From scores to advantages to losses: PPO, APA, AWR and P3O as pure functions of tensors.

Throughout, B responses of at most R actions are (B, R) tensors, padded on the right; `mask` is a
(B, R) bool tensor, true on actions, the end-of-turn action included. What stands on padding is
never read. Each loss is a mean over actions (P3O: over pairs of responses) and comes with its
diagnostics, detached.
"""

import torch
from torch import Tensor

Loss = tuple[Tensor, dict[str, Tensor]]


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
    last = mask.sum(1, keepdim=True) - 1
    return (-kl_coef * kl).masked_fill(~mask, 0.0).scatter_add(1, last, scores[:, None])


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, both (B, R), detached and 0 on padding.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  return_t = A_t + V_t,
    with V = 0 after the last action. lam 0 gives the one-step error, lam 1 the whole return less
    V. Source: Schulman et al. 2016, eq. 16.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * advantage
        next_value = values[:, t]
        advantages[:, t] = advantage
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale values (B, R) to mean 0 and variance 1 over the mask; 0 on padding."""
    kept = values[mask]
    scale = kept.std(correction=0) + 1e-8
    return ((values - kept.mean()) / scale).masked_fill(~mask, 0.0)


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
