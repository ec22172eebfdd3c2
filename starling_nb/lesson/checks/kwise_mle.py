"""The exercises of lesson 04: the likelihood's gradient, all pairs, the best m, pessimism."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from starling_nb.lesson.exercises import Exercise, vector
from starling_nb.reward.kwise import pairwise_nll, plackett_luce_nll


def gradient(scores: Tensor) -> Tensor:
    """The gradient (K,) of `plackett_luce_nll` in the scores (K,), by autograd."""
    return torch.func.grad(lambda s: plackett_luce_nll(s[None])[0])(scores)


def choices(scores: Tensor) -> Tensor:
    """(K, K): in row j the probabilities of choice j, 0 for the answers taken before."""
    taken = torch.ones(len(scores), len(scores)).tril(-1).bool()
    return scores.expand(taken.shape).masked_fill(taken, -math.inf).softmax(1)


def by_exponentials(weights: Tensor) -> Tensor:
    """The gradient from e^s (K,): sums of them may be inf or 0."""
    return weights * (1 / weights.flip(0).cumsum(0).flip(0)).cumsum(0) - 1


plackett_luce_gradient = Exercise(
    name="plackett_luce_gradient",
    expects="scores (K,) of one list, best first -> the gradient (K,), in the scores, of the "
    "Plackett-Luce negative log-likelihood of that order",
    solution=lambda scores: gradient(scores),
    cases=[
        (vector(1, 0),),
        (vector(0, 0, 0),),
        (vector(0.5, 1.5, -1, 0.2),),
        (vector(800, 799, 798),),
        (vector(800, 0, -1),),  # e^0 is lost beside e^800, though not at the second choice
    ],
    mistakes={
        "the sign: this is the gradient of the log-likelihood, the loss is its negative": (
            lambda s: -gradient(s)
        ),
        "what was expected is there, what happened is not: every answer was chosen once": (
            lambda s: gradient(s) + 1
        ),
        "only the first choice: the later ones move the scores too": (
            lambda s: choices(s)[0] - torch.eye(len(s))[0]
        ),
        "the choice of the answer itself is left out: it is among those it is chosen from": (
            lambda s: choices(s).triu(1).sum(0) - 1
        ),
        "only the choice of the answer itself is counted: it was there at the earlier ones too": (
            lambda s: choices(s).diagonal() - 1
        ),
        "the choices start one place late: at the first all K answers are there": (
            lambda s: choices(s)[1:].sum(0) - 1
        ),
        "every choice is made among all K answers: those taken are no longer there": (
            lambda s: len(s) * s.softmax(0) - 1
        ),
        "one softmax of all answers, less 1: there are K choices, each from those still there": (
            lambda s: s.softmax(0) - 1
        ),
        "the last choice is left out: its answer is alone, with probability 1, which makes up for "
        "the -1": lambda s: gradient(s) - torch.eye(len(s))[-1],
        "an answer's probabilities are multiplied: its gradient is a sum over the choices": (
            lambda s: (choices(s) + torch.ones(len(s), len(s)).tril(-1)).prod(0) - 1
        ),
        "divided by K - 1: the loss is the sum over the choices, not their mean": (
            lambda s: gradient(s) / (len(s) - 1)
        ),
        "the scores were sorted: their order is the ranking, best first, whatever they are": (
            lambda s: gradient(s.sort(descending=True).values)
        ),
        "ranks stand where the scores belong: how far scores are apart matters": (
            lambda s: gradient(s.argsort().argsort().double())
        ),
        "the list is read worst first: its first answer is the best": lambda s: gradient(
            s.flip(0)
        ).flip(0),
        "exp overflows for large scores: take the softmax of those still there": (
            lambda s: by_exponentials(s.exp())
        ),
        "the largest score is subtracted once for all choices, and exp underflows when its answer "
        "is taken: subtract the largest of those still there": (
            lambda s: by_exponentials((s - s.max()).exp())
        ),
    },
)


def margins(scores: Tensor) -> Tensor:
    """(K, K): s_i - s_j."""
    return scores[:, None] - scores


def better(margins: Tensor) -> Tensor:
    """Those of the pairs i < j, in a row."""
    return margins[torch.ones_like(margins).triu(1).bool()]


all_pairs_nll = Exercise(
    name="all_pairs_nll",
    expects="scores (K,) of one list, best first -> a number, the negative log-likelihood of its "
    "K (K - 1) / 2 pairs under Bradley and Terry, summed",
    solution=lambda scores: pairwise_nll(scores[None])[0],
    cases=[
        (vector(1, 0),),
        (vector(0, 0, 0),),
        (vector(0.5, 1.5, -1, 0.2),),  # not in order: the ranking is the list's, not the scores'
        (vector(0, 1000, 1),),
    ],
    mistakes={
        "the sign of the margin: the loss must fall where the better answer scores higher": (
            lambda s: softplus(better(margins(s))).sum()
        ),
        "the sign: this is the log-likelihood, the loss is its negative": (
            lambda s: -pairwise_nll(s[None])[0]
        ),
        "only neighbours are compared: all K (K - 1) / 2 pairs count": (
            lambda s: pairwise_nll(s[None], breaking="adjacent")[0]
        ),
        "only the best answer is compared: the pairs among the rest count too": (
            lambda s: pairwise_nll(s[None], breaking="best_vs_rest")[0]
        ),
        "the mean over the pairs, where the sum belongs": (
            lambda s: softplus(-better(margins(s))).mean()
        ),
        "every pair is counted twice, once as if the worse answer had won: take i < j": (
            lambda s: softplus(-margins(s)).sum() - len(s) * math.log(2)
        ),
        "all K^2 pairs are counted, in both orders and with itself: take i < j": (
            lambda s: softplus(-margins(s)).sum()
        ),
        "every answer is compared with itself, at log 2 each: j begins at i + 1": (
            lambda s: pairwise_nll(s[None])[0] + len(s) * math.log(2)
        ),
        "margins were set to 0, and cost log 2 each: leave the other pairs out after the "
        "logarithm": lambda s: softplus(-margins(s).triu(1)).sum(),
        "the logarithm of the probabilities is missing": (
            lambda s: -better(margins(s)).sigmoid().sum()
        ),
        "the logarithm has base 2: take the natural one": (
            lambda s: pairwise_nll(s[None])[0] / math.log(2)
        ),
        "this is the hinge, 0 beyond a margin of 1: a likelihood never is": (
            lambda s: (1 - better(margins(s))).relu().sum()
        ),
        "these are choices from a list (Plackett and Luce), not pairs": (
            lambda s: plackett_luce_nll(s[None])[0]
        ),
        "exp overflows where the worse answer scores far higher: use softplus or logaddexp": (
            lambda s: (1 + (-better(margins(s))).exp()).log().sum()
        ),
    },
)


def top(scores: Tensor, m: int) -> Tensor:
    """`plackett_luce_nll` of the first m places of one list."""
    return plackett_luce_nll(scores[None], top=m)[0]


def among_the_rest(scores: Tensor, m: int) -> Tensor:
    """Each ranked answer chosen among itself and the unranked."""
    best, rest = scores[:m], scores[m:].expand(m, len(scores) - m)
    return (torch.cat([best[:, None], rest], 1).logsumexp(1) - best).sum()


top_m_nll = Exercise(
    name="top_m_nll",
    expects="scores (K,), those of the m ranked answers first and best first, the rest in any "
    "order, and m -> a number, the Plackett-Luce negative log-likelihood of the first m places",
    solution=top,
    cases=[
        (vector(1, 0), 1),
        (vector(0, 0, 0, 0), 2),
        (vector(0.5, 1.5, -1, 0.2, 0.7), 2),
        (vector(0.3, -0.2, 1), 3),
        (vector(1000, 999, 998, 1001), 2),
    ],
    mistakes={
        "the unranked answers are left out of the sums: they too could have been chosen": (
            lambda s, m: plackett_luce_nll(s[None, :m])[0]
        ),
        "all K places are counted: the rest is not ranked": lambda s, m: top(s, len(s)),
        "the rest was sorted by its scores and counted: it is not ranked": (
            lambda s, m: top(torch.cat([s[:m], s[m:].sort(descending=True).values]), len(s))
        ),
        "one place too few: the last ranked answer was chosen too": lambda s, m: top(s, m - 1),
        "one place too many: the first of the rest is not ranked": lambda s, m: top(s, m + 1),
        "every choice is made among all K answers: those taken are no longer there": (
            lambda s, m: (s.logsumexp(0) - s[:m]).sum()
        ),
        "only the first place: m of them are ranked": lambda s, m: top(s, 1),
        "only the last of the m places: those before it count too": (
            lambda s, m: top(s, m) - top(s, m - 1)
        ),
        "the mean over the m places, where the sum belongs": lambda s, m: top(s, m) / m,
        "the sum of exponentials starts one place late: the answer chosen is among those it is "
        "chosen from": lambda s, m: sum(s[j + 1 :].logsumexp(0) - s[j] for j in range(m)),
        "the ranked answers not yet chosen are left out of the sums: they too could have been": (
            among_the_rest
        ),
        "these are pairs, not choices from a list": lambda s, m: sum(
            softplus(s[j + 1 :] - s[j]).sum() for j in range(m)
        ),
        "the sign: this is the log-likelihood, the loss is its negative": lambda s, m: -top(s, m),
        "this is the probability itself: take its logarithm, and the negative": (
            lambda s, m: (-top(s, m)).exp()
        ),
        "exp overflows for large scores: use logsumexp": (
            lambda s, m: (s.exp().flip(0).cumsum(0).flip(0).log() - s)[:m].sum()
        ),
    },
)


def width(gain: Tensor, inverse: Tensor) -> Tensor:
    """The length of gain (d,) in the norm of a matrix (d, d)."""
    return (gain @ inverse @ gain).sqrt()


pessimistic_value = Exercise(
    name="pessimistic_value",
    expects="theta (d,) the estimate, gain (d,) a policy's mean features less the reference's, "
    "metric (d, d), bonus -> a number: the least value of gain under a parameter whose distance "
    "from theta, in the norm of metric, is at most bonus",
    solution=lambda theta, gain, metric, bonus: (
        theta @ gain - bonus * width(gain, metric.inverse())
    ),
    cases=[
        (vector(1), vector(2), torch.tensor([[16.0]]).double(), 3.0),
        (vector(1, -2), vector(1, 1), torch.diag(vector(4, 1)), 0.5),
        (
            vector(-1, 0.1, 0.9),
            vector(0.5, -1, 0.25),
            torch.tensor([[2, 0.5, 0.1], [0.5, 1, -0.3], [0.1, -0.3, 0.4]], dtype=torch.float64),
            1.5,
        ),
    ],
    mistakes={
        "this is the most it can be, the optimist's value: the least is asked for": (
            lambda theta, g, metric, f: theta @ g + f * width(g, metric.inverse())
        ),
        "nothing is taken off: this is the value under the estimate": (
            lambda theta, g, metric, f: theta @ g
        ),
        "metric stands where its inverse belongs: what was seen often is the more certain": (
            lambda theta, g, metric, f: theta @ g - f * width(g, metric)
        ),
        "the square root is missing": (
            lambda theta, g, metric, f: theta @ g - f * (g @ metric.inverse() @ g)
        ),
        "the plain length of gain is taken off: metric plays no part": (
            lambda theta, g, metric, f: theta @ g - f * g.norm()
        ),
        "bonus plays no part: what is taken off grows with it": (
            lambda theta, g, metric, f: theta @ g - width(g, metric.inverse())
        ),
        "bonus stands under the root: it belongs before it": (
            lambda theta, g, metric, f: theta @ g - f**0.5 * width(g, metric.inverse())
        ),
        "bonus is squared: it is the distance itself": (
            lambda theta, g, metric, f: theta @ g - f**2 * width(g, metric.inverse())
        ),
        "the length of theta is taken off: how uncertain a value is depends on gain": (
            lambda theta, g, metric, f: theta @ g - f * width(theta, metric.inverse())
        ),
        "the sign of the value is lost: a policy may be worse than the reference": (
            lambda theta, g, metric, f: (theta @ g).abs() - f * width(g, metric.inverse())
        ),
        "the entries of metric are inverted one by one: invert the matrix": (
            lambda theta, g, metric, f: theta @ g - f * width(g, 1 / metric)
        ),
        "only the diagonal of metric is used: features go together": (
            lambda theta, g, metric, f: theta @ g - f * width(g, (1 / metric.diagonal()).diag())
        ),
        "the inverse of metric acts twice, on either side of the product: once is enough": (
            lambda theta, g, metric, f: theta @ g - f * (metric.inverse() @ g).norm()
        ),
    },
)
