"""The exercises of lesson 06: log-probabilities of an answer, its rewards, advantages, PPO."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from starling_nb.lesson.exercises import Exercise, vector
from starling_nb.policy import objectives


def rows(*values: list[float]) -> Tensor:
    """A float64 matrix."""
    return torch.tensor(values, dtype=torch.float64)


def prefixes(width: int, *lengths: int) -> Tensor:
    """A mask (B, width): true on the first places of each row."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def pick(table: Tensor, ids: Tensor) -> Tensor:
    """Of each row of a table (n, V) the entry of its id (n,)."""
    return table.gather(1, ids[:, None])[:, 0]


def scored(logits: Tensor, ids: Tensor, P: int) -> Tensor:
    """The log-probabilities of the tokens from place P on."""
    return pick(logits[P - 1 : -1].log_softmax(1), ids[P:])


def by_exponentials(logits: Tensor) -> Tensor:
    """Log-probabilities (n, V) from exponentials, which may be inf."""
    weights = logits.exp()
    return (weights / weights.sum(1, keepdim=True)).log()


response_logprobs = Exercise(
    name="response_logprobs",
    expects="logits (L, V) of one sequence, its ids (L,), P the number of prompt tokens -> the "
    "log-probabilities (L - P,) of the response tokens",
    solution=scored,
    cases=[
        (rows([0, 1], [2, 0], [1, 3]), torch.tensor([0, 1, 1]), 2),
        (
            rows([1, 0, 2], [0, -1, 1], [2, 1, 0], [0.5, 0, -1], [-1, 2, 0], [3, 0, 1]),
            torch.tensor([0, 2, 1, 1, 0, 2]),
            3,
        ),
        (rows([1000, 999], [998, 1000], [999, 1001], [1000, 1001]), torch.tensor([1, 0, 0, 1]), 2),
        (rows([0, 1], [0, 800], [-800, 0], [1, 0]), torch.tensor([1, 0, 0, 1]), 2),
    ],
    mistakes={
        "a token is scored at its own place, where it has been read already: the logits at t "
        "predict token t + 1": lambda x, ids, P: pick(x[P:].log_softmax(1), ids[P:]),
        "one place early: the token at t is predicted by the logits at t - 1, not t - 2": (
            lambda x, ids, P: pick(x[P - 2 : -2].log_softmax(1), ids[P:])
        ),
        "the first response token is missing: the last prompt token predicts it": (
            lambda x, ids, P: scored(x, ids, P)[1:]
        ),
        "the prompt's tokens are scored too: the policy did not choose them": (
            lambda x, ids, P: scored(x, ids, 1)
        ),
        "these are probabilities: take the logarithm": lambda x, ids, P: scored(x, ids, P).exp(),
        "this is the token's logit: subtract the logsumexp over the V tokens": (
            lambda x, ids, P: pick(x[P - 1 : -1], ids[P:])
        ),
        "the likeliest token is scored, not the one that was sampled: take the entries of ids": (
            lambda x, ids, P: x[P - 1 : -1].log_softmax(1).max(1).values
        ),
        "every response token is looked up at every place: take one from each row": (
            lambda x, ids, P: x[P - 1 : -1].log_softmax(1)[:, ids[P:]]
        ),
        "the softmax runs over the places: it belongs over the V tokens of each": (
            lambda x, ids, P: pick(x.log_softmax(0)[P - 1 : -1], ids[P:])
        ),
        "the sign: these are the losses, log-probabilities are never above 0": (
            lambda x, ids, P: -scored(x, ids, P)
        ),
        "the sum over the response: one number a token is asked for": (
            lambda x, ids, P: scored(x, ids, P).sum()
        ),
        "the mean over the response: one number a token is asked for": (
            lambda x, ids, P: scored(x, ids, P).mean()
        ),
        "exp overflows for large logits: use log_softmax or logsumexp": (
            lambda x, ids, P: pick(by_exponentials(x[P - 1 : -1]), ids[P:])
        ),
        "a probability underflows to 0 before its logarithm is taken: use log_softmax": (
            lambda x, ids, P: pick(x[P - 1 : -1].softmax(1), ids[P:]).log()
        ),
    },
)


def at(places: Tensor, mask: Tensor) -> Tensor:
    """(B, R): 1 at one place (B,) of each row; raises where a row has no such place."""
    return one_hot(places, mask.shape[1])


def ends(mask: Tensor) -> Tensor:
    """(B, R): 1 at the last action of each row."""
    return at(mask.sum(1) - 1, mask)


def priced(kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """(B, R): what the actions pay for their KL."""
    return -kl_coef * kl * mask


def paid(where: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Rewards with the KL as it should be, and scores times where(mask) (B, R)."""
    return lambda scores, kl, mask, kl_coef: (
        priced(kl, mask, kl_coef) + scores[:, None] * where(mask)
    )


def everywhere(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The rewards when `rewards[:, last] += scores[:, None]` is written: whole columns."""
    rewards = priced(kl, mask, kl_coef)
    rewards[:, mask.sum(1) - 1] += scores[:, None]
    return rewards


shape_rewards = Exercise(
    name="shape_rewards",
    expects="scores (B,), kl (B, R), mask (B, R) bool, true on actions, kl_coef -> rewards (B, R): "
    "-kl_coef * kl at every action, plus the score at the last action of its row, 0 on padding",
    solution=objectives.shape_rewards,
    cases=[
        (vector(1), rows([0.5, 0.2, 0.7]), prefixes(3, 2), 0.1),
        (vector(2, -1), rows([0.3, -0.1, 0.2, 0.4], [0.1, 0.5, 0.9, -0.6]), prefixes(4, 4, 2), 0.5),
        (
            vector(-0.5, 0, 3),
            rows([1, 0.5, 0.2, 2, 1], [-0.4, 0.1, 0, 0.3, -1], [0.6, 0.9, 1.5, 0.1, 0.2]),
            prefixes(5, 3, 5, 2),
            0.05,
        ),
    ],
    mistakes={
        "the score stands at the last place of the row: of a short answer that is padding": (
            paid(lambda mask: ends(torch.ones_like(mask)))
        ),
        "the score stands one place late: of n actions the last is at n - 1": (
            paid(lambda mask: at(mask.sum(1), mask))
        ),
        "the score stands one place early: the end of turn is an action too, and the last": (
            paid(lambda mask: at(mask.sum(1) - 2, mask))
        ),
        "all scores stand where the first row ends: each row ends at a place of its own": (
            paid(lambda mask: ends(mask)[0])
        ),
        "each score is paid in every row: index rows and places together, "
        "rewards[torch.arange(B), last]": everywhere,
        "a row without padding gets no score: its last action is at its last place": (
            paid(lambda mask: ends(mask) * ~mask[:, -1:])
        ),
        "every action gets the score: it is paid once, at the last": paid(lambda mask: mask),
        "the score is divided over the actions: it is paid whole, at the last": (
            paid(lambda mask: mask / mask.sum(1, keepdim=True))
        ),
        "the score replaces the KL of the last action: add it": lambda s, kl, mask, c: torch.where(
            ends(mask) > 0, s[:, None], priced(kl, mask, c)
        ),
        "the sign of the KL: moving away from the reference must cost": (
            lambda s, kl, mask, c: s[:, None] * ends(mask) - priced(kl, mask, c)
        ),
        "the KL is paid on padding too: rewards are 0 there": (
            lambda s, kl, mask, c: s[:, None] * ends(mask) - c * kl
        ),
        "the last action pays the KL of all: every action pays its own": (
            lambda s, kl, mask, c: (s + priced(kl, mask, c).sum(1))[:, None] * ends(mask)
        ),
        "the KL plays no part: every action pays kl_coef times its own": (
            lambda s, kl, mask, c: s[:, None] * ends(mask)
        ),
        "kl_coef plays no part: it multiplies the KL": (
            lambda s, kl, mask, c: s[:, None] * ends(mask) + priced(kl, mask, 1)
        ),
        "kl_coef multiplies the score too: it is the price of the KL": (
            lambda s, kl, mask, c: c * s[:, None] * ends(mask) + priced(kl, mask, c)
        ),
    },
)


def advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """The package's `gae` of one answer (R,)."""
    mask = torch.ones(1, len(rewards), dtype=torch.bool)
    return objectives.gae(rewards[None], values[None], mask, gamma, lam)[0][0]


def from_the_end(terms: Tensor, factor: float) -> Tensor:
    """(R,): each term plus factor times what stands behind it."""
    total, found = torch.zeros_like(terms[0]), []
    for term in terms.flip(0):
        total = term + factor * total
        found.append(total)
    return torch.stack(found[::-1])


def after(values: Tensor, end: Tensor | None = None) -> Tensor:
    """The next value (R,) of each: behind the last one `end` (1,), or 0."""
    return torch.cat([values[1:], vector(0) if end is None else end])


def errors(rewards: Tensor, values: Tensor, gamma: float) -> Tensor:
    """The one-step errors (R,)."""
    return rewards + gamma * after(values) - values


def whitened(values: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1, as `Tensor.std` takes it."""
    return (values - values.mean()) / values.std()


gae = Exercise(
    name="gae",
    expects="rewards (R,), values (R,) of one answer, gamma, lam -> advantages (R,): from the last "
    "to the first, A_t = delta_t + gamma lam A_{t+1}, where delta_t = r_t + gamma V_{t+1} - V_t "
    "and what comes after the end is 0",
    solution=advantages,
    cases=[
        (vector(0, 1), vector(0.5, 0.75), 1.0, 0.5),
        (vector(1, -1, 0.5), vector(0.3, -0.2, 0.6), 0.9, 0.5),
        (vector(-0.01, 0.02, 0, 1), vector(0.1, 0.2, 0.3, 0.4), 1.0, 0.95),
        (vector(0, 0, 0.5, 0, -2), vector(0.5, 1, -1, 0.3, -0.8), 0.5, 0.8),
    ],
    mistakes={
        "V_t stands where V_{t+1} belongs: the next value is of the state after the action": (
            lambda r, v, g, lam: from_the_end(r + g * v - v, g * lam)
        ),
        "V_t and V_{t+1} are swapped: the state left is subtracted, the one reached is added": (
            lambda r, v, g, lam: from_the_end(r + g * v - after(v), g * lam)
        ),
        "after the end stands the last value: nothing is left to earn there, so it is 0": (
            lambda r, v, g, lam: from_the_end(r + g * after(v, v[-1:]) - v, g * lam)
        ),
        "after the end stands the first value: `roll` wraps around, it is 0 there": (
            lambda r, v, g, lam: from_the_end(r + g * v.roll(-1) - v, g * lam)
        ),
        "gamma and lam are swapped: in delta_t, gamma discounts the next value": (
            lambda r, v, g, lam: from_the_end(errors(r, v, lam), g * lam)
        ),
        "lam plays no part: this is lam = 1, the discounted return less the value": (
            lambda r, v, g, lam: from_the_end(errors(r, v, g), g)
        ),
        "gamma is missing in the sum: what follows is weighted by gamma * lam": (
            lambda r, v, g, lam: from_the_end(errors(r, v, g), lam)
        ),
        "gamma plays no part: it discounts the next value, and with lam what follows": (
            lambda r, v, g, lam: from_the_end(errors(r, v, 1), lam)
        ),
        "these are the one-step errors, lam = 0: add what follows, weighted by gamma * lam": (
            lambda r, v, g, lam: errors(r, v, g)
        ),
        "the values play no part: these are discounted returns": (
            lambda r, v, g, lam: from_the_end(r, g)
        ),
        "gamma * lam discounts the rewards: it weights the errors delta_t": (
            lambda r, v, g, lam: from_the_end(r, g * lam) - v
        ),
        "these are the returns, the critic's target: an advantage is the return less the value": (
            lambda r, v, g, lam: advantages(r, v, g, lam) + v
        ),
        "the sum runs forwards: an action is credited with what follows it, so begin at the end": (
            lambda r, v, g, lam: from_the_end(errors(r, v, g).flip(0), g * lam).flip(0)
        ),
        "the advantages stand last to first, as they were found: turn them round": (
            lambda r, v, g, lam: advantages(r, v, g, lam).flip(0)
        ),
        "the advantages are whitened: that is done later, over the whole batch": (
            lambda r, v, g, lam: whitened(advantages(r, v, g, lam))
        ),
    },
)


Term = Callable[[Tensor, Tensor, float], Tensor]  # ratio, advantage, clip of n actions -> (n,)


def mean_over_actions(term: Term) -> Callable[..., Tensor]:
    """What a term gives as a loss."""
    return lambda logprobs, old_logprobs, advantages, mask, clip: term(
        (logprobs - old_logprobs).exp()[mask], advantages[mask], clip
    ).mean()


def clipped(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """The loss with the ratio clipped."""
    return -advantage * ratio.clamp(1 - clip, 1 + clip)


def pessimistic(ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's loss of each action."""
    return torch.maximum(-advantage * ratio, clipped(ratio, advantage, clip))


def each(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's loss of each place, padding or not."""
    return pessimistic((logprobs - old_logprobs).exp(), advantages, clip)


def by_answers(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """PPO's loss with the ratio of the whole answer, the product of its actions' ratios."""
    ratio = ((logprobs - old_logprobs) * mask).sum(1, keepdim=True).exp()
    return pessimistic(ratio, advantages, clip)[mask].mean()


ppo_loss = Exercise(
    name="ppo_loss",
    expects="logprobs, old_logprobs, advantages (B, R), mask (B, R) bool, true on actions, clip -> "
    "a number, the mean over the actions of the larger of -A ratio and -A clip(ratio, 1 ± clip)",
    solution=lambda logprobs, old_logprobs, advantages, mask, clip: objectives.ppo_loss(
        logprobs, old_logprobs, advantages, mask, clip
    )[0],
    cases=[
        (rows([-1, -1.5]), rows([-1.5, -1]), rows([1, -1]), prefixes(2, 2), 0.2),
        (
            rows([-1, -1, -2, -2, -1]),
            rows([-1.6, -1.5, -1.2, -1, -1.1]),
            rows([0.5, -1.5, 2, -0.4, 1]),
            prefixes(5, 5),
            0.2,
        ),
        (
            rows([-0.5, -1, -2, -0.2], [-1.3, -0.4, -0.7, -1.9]),
            rows([-0.6, -1.6, -1.1, -0.9], [-0.9, -0.8, -2, -0.1]),
            rows([0.3, -0.8, -1.2, 1.5], [2, -0.6, 5, -3]),
            prefixes(4, 4, 2),
            0.1,
        ),
    ],
    mistakes={
        "the sign: this is to be maximised, a loss is its negative": (
            mean_over_actions(lambda *action: -pessimistic(*action))
        ),
        "the smaller of the two losses: the larger one holds the policy back": mean_over_actions(
            lambda ratio, a, clip: torch.minimum(-a * ratio, clipped(ratio, a, clip))
        ),
        "only the clipped term: where it is the smaller loss, -A ratio counts": (
            mean_over_actions(clipped)
        ),
        "nothing is clipped: compare with the loss at the clipped ratio": (
            mean_over_actions(lambda ratio, a, clip: -a * ratio)
        ),
        "the ratio is inverted: it is new over old": (
            mean_over_actions(lambda ratio, a, clip: pessimistic(1 / ratio, a, clip))
        ),
        "the difference of log-probabilities is no ratio: take its exponential": (
            mean_over_actions(lambda ratio, a, clip: pessimistic(ratio.log(), a, clip))
        ),
        "the clip range is -clip to clip: it lies around 1": mean_over_actions(
            lambda ratio, a, clip: torch.maximum(-a * ratio, -a * ratio.clamp(-clip, clip))
        ),
        "clipped at 1 + clip only: where the advantage is negative, 1 - clip counts": (
            mean_over_actions(
                lambda ratio, a, clip: torch.maximum(-a * ratio, -a * ratio.clamp(max=1 + clip))
            )
        ),
        "the ratio times the advantage is clipped: clip the ratio, then multiply": (
            mean_over_actions(
                lambda ratio, a, clip: (
                    -torch.minimum(a * ratio, (a * ratio).clamp(1 - clip, 1 + clip))
                )
            )
        ),
        "the logarithm of the ratio is clipped: clip the ratio itself, to 1 ± clip": (
            mean_over_actions(
                lambda ratio, a, clip: torch.maximum(
                    -a * ratio, -a * ratio.log().clamp(-clip, clip).exp()
                )
            )
        ),
        "one ratio for a whole answer: every action has a ratio of its own": by_answers,
        "the advantages are whitened once more: that is done before, over the whole batch": (
            mean_over_actions(lambda ratio, a, clip: pessimistic(ratio, whitened(a), clip))
        ),
        "the sum over the actions, where the mean belongs": (
            lambda new, old, a, mask, clip: (each(new, old, a, clip) * mask).sum()
        ),
        "padding is counted: divide by the number of actions": (
            lambda new, old, a, mask, clip: (each(new, old, a, clip) * mask).mean()
        ),
        "the mask plays no part: padding has no loss": (
            lambda new, old, a, mask, clip: each(new, old, a, clip).mean()
        ),
        "the mean of the rows' means: all actions of the batch count alike": (
            lambda new, old, a, mask, clip: (
                (each(new, old, a, clip) * mask).sum(1) / mask.sum(1)
            ).mean()
        ),
    },
)
