"""The exercises of lesson 07: the best policy at a price of KL, its log Z, and APA's two rivals."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor

from starling_nb.lesson.exercises import Exercise, vector
from starling_nb.policy import bandit, objectives


def optimum(log_init: Tensor, advantages: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """`bandit.optimum` of one state: log pi* (V,) and log Z ()."""
    log_pi, log_z = bandit.optimum(log_init[None], advantages[None], lam)
    return log_pi[0], log_z[0]


def best(log_init: Tensor, advantages: Tensor, lam: float) -> Tensor:
    """log pi* (V,)."""
    return optimum(log_init, advantages, lam)[0]


def log_z(log_init: Tensor, advantages: Tensor, lam: float) -> Tensor:
    """log Z ()."""
    return optimum(log_init, advantages, lam)[1]


def by_exponentials(weights: Tensor, advantages: Tensor, lam: float) -> Tensor:
    """The logarithms (V,) of weights exp(A / lam), normalised; the exponentials may be inf or 0."""
    products = weights * (advantages / lam).exp()
    return (products / products.sum()).log()


PROBLEMS = [  # log pi_init, advantages, lam
    (vector(0.75, 0.25).log(), vector(-1, 3), 2.0),
    (vector(0.5, 0.1, 0.4).log(), vector(0.3, 0.9, -0.2), 0.5),  # their mean is not 0
    (vector(0.5, 0.3, 0.2).log(), vector(1, 0.999, 0.998), 0.001),
    (vector(0.2, 0.5, 0.3).log(), vector(1, 0, -1), 0.001),  # exp(-1000) is 0
]

best_policy = Exercise(
    name="best_policy",
    expects="log_init (V,) the log-probabilities of pi_init, advantages (V,), lam -> the "
    "log-probabilities (V,) of pi*, proportional to pi_init exp(A / lam)",
    solution=best,
    cases=PROBLEMS,
    mistakes={
        "not normalised: the probabilities must sum to 1, so subtract log Z": (
            lambda log_init, a, lam: log_init + a / lam
        ),
        "normalised by the sum of exp(A / lam) alone: pi_init is a factor of every term": (
            lambda log_init, a, lam: log_init + (a / lam).log_softmax(0)
        ),
        "divided by the mean of pi_init exp(A / lam): divide by their sum": (
            lambda log_init, a, lam: best(log_init, a, lam) + math.log(len(a))
        ),
        "normalised twice: this is the softmax of probabilities": (
            lambda log_init, a, lam: best(log_init, a, lam).exp().log_softmax(0)
        ),
        "the advantages are multiplied by lam: a smaller lam makes them count more, so divide": (
            lambda log_init, a, lam: best(log_init, a, 1 / lam)
        ),
        "lam is missing: divide the advantages by it": (
            lambda log_init, a, lam: best(log_init, a, 1)
        ),
        "log pi_init is divided by lam too: only the advantages are": (
            lambda log_init, a, lam: best(log_init / lam, a, lam)
        ),
        "pi_init is forgotten: it is what exp(A / lam) multiplies": (
            lambda log_init, a, lam: (a / lam).log_softmax(0)
        ),
        "A / lam is added to probabilities: add it to their logarithms": (
            lambda log_init, a, lam: (log_init.exp() + a / lam).log_softmax(0)
        ),
        "log pi_init is taken for pi_init: exp makes probabilities of it": by_exponentials,
        "these are probabilities: their logarithms are asked for": (
            lambda log_init, a, lam: best(log_init, a, lam).exp()
        ),
        "the sign of the advantages: a better action must become likelier": (
            lambda log_init, a, lam: best(log_init, a, -lam)
        ),
        "exp overflows where A / lam is large: stay with logarithms, and subtract logsumexp": (
            lambda log_init, a, lam: by_exponentials(log_init.exp(), a, lam)
        ),
        "a small probability becomes 0, and its logarithm -inf: stay with logarithms, as "
        "log_softmax does": lambda log_init, a, lam: (log_init + a / lam).softmax(0).log(),
    },
)


log_partition = Exercise(
    name="log_partition",
    expects="log_init (V,) the log-probabilities of pi_init, advantages (V,), lam -> a number, "
    "log Z: the logarithm of the sum over the actions of pi_init exp(A / lam)",
    solution=log_z,
    cases=PROBLEMS,
    mistakes={
        "this is Z: its logarithm is asked for": lambda log_init, a, lam: log_z(
            log_init, a, lam
        ).exp(),
        "this is the mean of A / lam: exp comes before the mean, the logarithm after it": (
            lambda log_init, a, lam: log_init.exp() @ a / lam
        ),
        "every action counts the same: pi_init weighs them": (
            lambda log_init, a, lam: (a / lam).logsumexp(0) - math.log(len(a))
        ),
        "pi_init is forgotten: it weighs every exp(A / lam)": (
            lambda log_init, a, lam: (a / lam).logsumexp(0)
        ),
        "divided by the number of actions: the weights pi_init make a mean of the sum already": (
            lambda log_init, a, lam: log_z(log_init, a, lam) - math.log(len(a))
        ),
        "only the largest term is counted: sum over all actions": (
            lambda log_init, a, lam: (log_init + a / lam).max()
        ),
        "the terms were normalised first, so that they sum to 1: sum them as they are": (
            lambda log_init, a, lam: best(log_init, a, lam).logsumexp(0)
        ),
        "the advantages are multiplied by lam: a smaller lam makes them count more, so divide": (
            lambda log_init, a, lam: log_z(log_init, a, 1 / lam)
        ),
        "lam is missing: divide the advantages by it": (
            lambda log_init, a, lam: log_z(log_init, a, 1)
        ),
        "log pi_init is divided by lam too: only the advantages are": (
            lambda log_init, a, lam: log_z(log_init / lam, a, lam)
        ),
        "this is lam log Z: log Z itself is asked for": (
            lambda log_init, a, lam: lam * log_z(log_init, a, lam)
        ),
        "the sign of the advantages: it is exp(A / lam), not exp(-A / lam)": (
            lambda log_init, a, lam: log_z(log_init, a, -lam)
        ),
        "the sign: this is -log Z": lambda log_init, a, lam: -log_z(log_init, a, lam),
        "exp overflows where A / lam is large: use logsumexp": (
            lambda log_init, a, lam: (log_init + a / lam).exp().sum().log()
        ),
    },
)


def matrix(*rows: list[float]) -> Tensor:
    """A float64 matrix."""
    return torch.tensor(rows, dtype=torch.float64)


def weighted(logprobs: Tensor, weights: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean of weight times log-probability over the mask."""
    return -(weights * logprobs)[mask].mean()


def awr(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, lam: float, max_weight: float
) -> Tensor:
    """`objectives.awr_loss` without its diagnostics."""
    return objectives.awr_loss(logprobs, advantages, mask, lam, max_weight)[0]


def raw(advantages: Tensor, lam: float) -> Tensor:
    """AWR's weights before they are clipped."""
    return (advantages / lam).exp()


def terms(logprobs: Tensor, advantages: Tensor, lam: float, most: float) -> Tensor:
    """-log pi min(exp(A / lam), most) everywhere, on padding too."""
    return -raw(advantages, lam).clamp(max=most) * logprobs


awr_loss = Exercise(
    name="awr_loss",
    expects="logprobs and advantages (B, R), mask (B, R) bool, true on actions, lam, max_weight "
    "-> a number: minus the mean over the actions of log-probability times "
    "min(exp(A / lam), max_weight)",
    solution=awr,
    cases=[
        (matrix([-1]), matrix([0.5]), matrix([1]).bool(), 0.25, 20.0),
        (
            matrix([-0.5, -1, -2], [-3, -7, -7]),
            matrix([0.4, -1, 0.8], [1.5, 9, 9]),
            matrix([1, 1, 1], [1, 0, 0]).bool(),
            2.0,
            20.0,
        ),
        (
            matrix([-3, -1.5, -0.4, -5], [-2, -0.3, -6, -6]),
            matrix([-1, 1.5, 0.3, 4], [2, -0.2, 5, -5]),  # 1.5 / lam and 2 / lam exceed 2
            matrix([1, 1, 1, 0], [1, 1, 0, 0]).bool(),
            0.5,
            2.0,
        ),
    ],
    mistakes={
        "the sign: log-probabilities are negative, the loss is positive": (
            lambda lp, a, mask, lam, most: -awr(lp, a, mask, lam, most)
        ),
        "the weights are not clipped: none may exceed max_weight": (
            lambda lp, a, mask, lam, most: weighted(lp, raw(a, lam), mask)
        ),
        "A / lam is clipped: clip the weight, exp(A / lam)": (
            lambda lp, a, mask, lam, most: weighted(lp, (a / lam).clamp(max=most).exp(), mask)
        ),
        "max_weight is the least weight here: it should be the largest": (
            lambda lp, a, mask, lam, most: weighted(lp, raw(a, lam).clamp(min=most), mask)
        ),
        "small weights are clipped too, at 1 / max_weight: the weight of a bad action may vanish": (
            lambda lp, a, mask, lam, most: weighted(lp, raw(a, lam).clamp(1 / most, most), mask)
        ),
        "exp is missing: the weight is exp(A / lam)": (
            lambda lp, a, mask, lam, most: weighted(lp, (a / lam).clamp(max=most), mask)
        ),
        "the advantages are multiplied by lam: a smaller lam makes them count more, so divide": (
            lambda lp, a, mask, lam, most: awr(lp, a, mask, 1 / lam, most)
        ),
        "lam is missing: divide the advantages by it": (
            lambda lp, a, mask, lam, most: awr(lp, a, mask, 1, most)
        ),
        "padding is counted: only what stands on the mask is an action": (
            lambda lp, a, mask, lam, most: terms(lp, a, lam, most).mean()
        ),
        "padding is counted in the denominator: divide by the number of actions": (
            lambda lp, a, mask, lam, most: (terms(lp, a, lam, most) * mask).mean()
        ),
        "the mean of the rows' means: an action counts the same in a long and a short row": (
            lambda lp, a, mask, lam, most: (
                (terms(lp, a, lam, most) * mask).sum(1) / mask.sum(1)
            ).mean()
        ),
        "the sum over the actions, where the mean belongs": (
            lambda lp, a, mask, lam, most: terms(lp, a, lam, most)[mask].sum()
        ),
        "the weights are divided by their sum: divide by the number of actions": (
            lambda lp, a, mask, lam, most: (
                terms(lp, a, lam, most)[mask].sum() / raw(a, lam).clamp(max=most)[mask].sum()
            )
        ),
        "probabilities are weighted, where log-probabilities belong": (
            lambda lp, a, mask, lam, most: awr(lp.exp(), a, mask, lam, most)
        ),
    },
)


def p3o(
    l0: Tensor,
    l1: Tensor,
    old_l0: Tensor,
    old_l1: Tensor,
    R0: Tensor,
    R1: Tensor,
    kl_coef: float,
    clip: float,
    max_weight: float,
) -> Tensor:
    """`objectives.p3o_loss` of one pair, without its diagnostics."""
    new, old = torch.stack([l0, l1])[:, None], torch.stack([old_l0, old_l1])[:, None]
    reference, mask = torch.zeros_like(new), torch.ones_like(new).bool()
    scores = torch.stack([R0, R1])
    return objectives.p3o_loss(new, old, reference, scores, mask, kl_coef, clip, max_weight)[0]


def mistaken(worst: Callable = torch.maximum, **parts: Callable) -> Callable:
    """P3O's loss with other parts than q, w, d and clipped: functions of all parts, in order."""

    def loss(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
        p = SimpleNamespace(d=l0 - l1, old_d=old_l0 - old_l1, gain=R0 - R1, clip=clip)
        p.moved, p.most = (l0 - old_l0, l1 - old_l1), max_weight
        p.kl = kl_coef * p.d
        p.q = p.gain - p.kl
        p.raw = sum(p.moved).exp()
        p.w = p.raw.clamp(1 / max_weight, max_weight)
        p.clipped = p.d.clamp(p.old_d - clip, p.old_d + clip)
        for name, part in parts.items():
            setattr(p, name, part(p))
        return worst(-p.q * p.w * p.d / 2, -p.q * p.w * p.clipped / 2)

    return loss


def pair(*values: float) -> tuple:
    """A case: l0, l1, old_l0, old_l1, R0, R1 as 0-d tensors, then kl_coef, clip, max_weight."""
    return (*vector(*values[:6]), *values[6:])


p3o_loss = Exercise(
    name="p3o_loss",
    expects="l0, l1: log pi/pi_init of two answers to one prompt, old_l0, old_l1: the same when "
    "they were sampled, R0, R1: their rewards, kl_coef, clip, max_weight -> P3O's loss, a number: "
    "max(-q w d / 2, -q w clip(d, old_d - clip, old_d + clip) / 2), where d = l0 - l1, "
    "q = R0 - R1 - kl_coef d, w = exp(l0 - old_l0 + l1 - old_l1) within [1/max_weight, max_weight]",
    solution=p3o,
    cases=[
        pair(0.5, 0.1, 0.5, 0.1, 1, 0, 0.5, 0.2, 10.0),  # as sampled
        pair(0.6, -0.2, 0.5, -0.25, 0.2, 1, 0.1, 0.2, 10.0),
        pair(1.5, 0.3, 0.7, 0.1, 2, 0.5, 0.3, 0.2, 2.0),  # q > 0, d beyond clip, w > max_weight
        pair(-0.2, -2.4, 0.1, -0.9, -1, 1, 0.2, 0.3, 3.0),  # q < 0: d stays, w < 1/max_weight
        pair(-0.9, 0.8, -0.1, 0.3, 0, 2, 0.1, 0.4, 5.0),  # q < 0, d below old_d - clip
    ],
    mistakes={
        "the half is missing: both terms are divided by 2": lambda *case: 2 * p3o(*case),
        "the sign of the KL term: kl_coef (l0 - l1) is subtracted from R0 - R1": (
            mistaken(q=lambda p: p.gain + p.kl)
        ),
        "q has no KL term: subtract kl_coef (l0 - l1) from R0 - R1": mistaken(q=lambda p: p.gain),
        "w is missing: both terms are multiplied by it": mistaken(w=lambda p: 1),
        "w counts the first answer only: the second was sampled too": (
            mistaken(w=lambda p: p.moved[0].exp().clamp(1 / p.most, p.most))
        ),
        "w takes the difference of the two answers: add them, since both were sampled": (
            mistaken(w=lambda p: (p.moved[0] - p.moved[1]).exp().clamp(1 / p.most, p.most))
        ),
        "w is not clipped: it stays within [1/max_weight, max_weight]": mistaken(w=lambda p: p.raw),
        "w is clipped from above only: it is no less than 1/max_weight": (
            mistaken(w=lambda p: p.raw.clamp(max=p.most))
        ),
        "the smaller of the two terms is taken: a loss takes the larger": mistaken(torch.minimum),
        "d is not clipped: the second term is missing": mistaken(clipped=lambda p: p.d),
        "d is clipped around 0: its range lies around old_d": (
            mistaken(clipped=lambda p: p.d.clamp(-p.clip, p.clip))
        ),
        "d is clipped around 1, as a ratio: it is a difference of logarithms, its range lies "
        "around old_d": mistaken(clipped=lambda p: p.d.clamp(1 - p.clip, 1 + p.clip)),
        "this is PPO's ratio exp(d - old_d): d itself belongs there": mistaken(
            d=lambda p: (p.d - p.old_d).exp(),
            clipped=lambda p: p.d.clamp(1 - p.clip, 1 + p.clip),
        ),
        "the sign: this is the objective, the loss is its negative": lambda *case: -p3o(*case),
    },
)
