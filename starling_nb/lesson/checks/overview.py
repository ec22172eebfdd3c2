"""The exercises of lesson 00: a ranking's likelihood, two losses, a matrix of low rank."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from starling_nb.laser import reduce
from starling_nb.lesson.exercises import Exercise, vector
from starling_nb.policy import objectives
from starling_nb.reward.kwise import pairwise_nll, plackett_luce_nll

plackett_luce = Exercise(
    name="plackett_luce",
    expects="scores (K,) of one list, best first -> the negative log-likelihood of its order, a "
    "number: the sum over j of log(sum over i >= j of exp(s_i)) - s_j",
    solution=lambda scores: plackett_luce_nll(scores[None])[0],
    cases=[
        (vector(1, 0),),
        (vector(2, 1, 0),),
        (vector(0.5, 1.5, -1, 0.2),),  # not in order: the ranking is the list's, not the scores'
        (torch.zeros(7, dtype=torch.float64),),  # log 7!
        (vector(1000, 999, 998),),
    ],
    mistakes={
        "the sum of exponentials starts one place late: the answer chosen is among those it is "
        "chosen from (i >= j, not i > j)": lambda s: sum(
            s[j + 1 :].logsumexp(0) - s[j] for j in range(len(s) - 1)
        ),
        "the sum of exponentials runs over the places up to j: that reads the list worst "
        "first": lambda s: (s.logcumsumexp(0) - s).sum(),
        "every choice is made among all K answers: those taken are no longer there": (
            lambda s: (s.logsumexp(0) - s).sum()
        ),
        "the mean over the places, where the sum belongs": (
            lambda s: plackett_luce_nll(s[None])[0] / len(s)
        ),
        "the mean over the K - 1 choices, where the sum belongs": (
            lambda s: plackett_luce_nll(s[None])[0] / (len(s) - 1)
        ),
        "the sign: this is the log-likelihood, the loss is its negative": (
            lambda s: -plackett_luce_nll(s[None])[0]
        ),
        "the scores were sorted: their order is the ranking, best first, whatever they are": (
            lambda s: plackett_luce_nll(s.sort(descending=True).values[None])[0]
        ),
        "only the first place is counted: the order of the rest is part of the ranking": (
            lambda s: s.logsumexp(0) - s[0]
        ),
        "these are the pairs of Bradley and Terry, not choices from a list": (
            lambda s: pairwise_nll(s[None])[0]
        ),
        "only neighbours are compared: each choice is made among all answers still there": (
            lambda s: softplus(s[1:] - s[:-1]).sum()
        ),
        "exp overflows for large scores: subtract the largest first, or use logsumexp": (
            lambda s: (s.exp().flip(0).cumsum(0).flip(0).log() - s).sum()
        ),
    },
)


weighted_nll = Exercise(
    name="weighted_nll",
    expects="logprobs (T,) of the tokens written, weights (T,) -> the loss, a number: the sum of "
    "weight times -logprob over the sum of the weights",
    solution=lambda logprobs, weights: -(weights * logprobs).sum() / weights.sum(),
    cases=[
        (vector(-1), vector(1)),
        (vector(-1, -2), vector(0, 1)),
        (vector(-0.5, -1, -2, -3), vector(0, 1, 0.1, 0.1)),
        (vector(-0.5, -1, -4), vector(0.1, 0.1, 0.1)),
    ],
    mistakes={
        "the weights are forgotten in the denominator: divide by their sum, not by T": (
            lambda logprobs, weights: -(weights * logprobs).mean()
        ),
        "divided by how many tokens count, not by the sum of their weights": (
            lambda logprobs, weights: -(weights * logprobs).sum() / (weights > 0).sum()
        ),
        "the sum, where the weighted mean belongs: divide by the sum of the weights": (
            lambda logprobs, weights: -(weights * logprobs).sum()
        ),
        "the sign: log-probabilities are negative, the loss is positive": (
            lambda logprobs, weights: (weights * logprobs).sum() / weights.sum()
        ),
        "the weights only choose the tokens: a token of weight 0.1 must count a tenth": (
            lambda logprobs, weights: -logprobs[weights > 0].mean()
        ),
        "the weights play no part: this is the plain mean": lambda logprobs, weights: (
            -logprobs.mean()
        ),
    },
)


def apa(logprobs: Tensor, initial_logprobs: Tensor, advantages: Tensor, lam: float) -> Tensor:
    """`objectives.apa_loss` of one response without padding."""
    everywhere = torch.ones_like(logprobs, dtype=torch.bool)
    return objectives.apa_loss(logprobs, initial_logprobs, advantages, everywhere, lam)[0]


apa_loss = Exercise(
    name="apa_loss",
    expects="logprobs (T,) of the policy, initial_logprobs (T,) of the one it started from, "
    "advantages (T,), lam -> the mean of (logprobs - initial_logprobs - advantages / lam)^2, "
    "a number",
    solution=apa,
    cases=[
        (vector(-1.2), vector(-1), vector(0.3), 0.6),
        (vector(-1, -2), vector(-1, -2), vector(0.5, -0.25), 0.5),
        (vector(-0.5, -1, -3), vector(-1, -1.5, -2), vector(0.4, 0, -1), 2.0),
    ],
    mistakes={
        "the advantage is multiplied by lam: a smaller lam must pull further, so divide": (
            lambda new, initial, a, lam: ((new - initial - lam * a) ** 2).mean()
        ),
        "lam is missing: divide the advantages by it": (
            lambda new, initial, a, lam: ((new - initial - a) ** 2).mean()
        ),
        "right minimiser, other scale (lam^2 times the loss): the course's loss is the mean of "
        "(logprobs - initial_logprobs - advantages / lam)^2": (
            lambda new, initial, a, lam: ((lam * (new - initial) - a) ** 2).mean()
        ),
        "the sign of the advantage, or the two policies swapped: the target is "
        "initial + advantage / lam": lambda new, initial, a, lam: (
            (new - initial + a / lam) ** 2
        ).mean(),
        "the target is built on the policy itself: anchor it at the initial policy": (
            lambda new, initial, a, lam: ((a / lam) ** 2).mean()
        ),
        "the initial policy is missing from the target": (
            lambda new, initial, a, lam: ((new - a / lam) ** 2).mean()
        ),
        "the sum over tokens, where the mean belongs": (
            lambda new, initial, a, lam: ((new - initial - a / lam) ** 2).sum()
        ),
        "the difference is not squared": (
            lambda new, initial, a, lam: (new - initial - a / lam).mean()
        ),
        "the absolute difference, where the square belongs": (
            lambda new, initial, a, lam: (new - initial - a / lam).abs().mean()
        ),
        "half of the square: there is no 1/2 in this loss": (
            lambda new, initial, a, lam: ((new - initial - a / lam) ** 2).mean() / 2
        ),
        "probabilities are compared, where log-probabilities belong": (
            lambda new, initial, a, lam: ((new.exp() - (initial + a / lam).exp()) ** 2).mean()
        ),
    },
)


def terms(matrix: Tensor, chosen: slice) -> Tensor:
    """The sum of the chosen terms of the singular value decomposition, largest first."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, chosen] * s[chosen]) @ vh[chosen]


def without_values(matrix: Tensor, rank: int) -> Tensor:
    """The chosen singular vectors, without their singular values."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ vh[:rank]


def untransposed(matrix: Tensor, rank: int) -> Tensor:
    """V where its transpose belongs."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh.mT[:rank]


def without_v(matrix: Tensor, rank: int) -> Tensor:
    """The columns of U, scaled: (n, rank)."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank]


def transposed_back(matrix: Tensor, rank: int) -> Tensor:
    """(n, rank) times (m, rank): raises RuntimeError below full rank."""
    vh = torch.linalg.svd(matrix, full_matrices=False)[2]
    return without_v(matrix, rank) @ vh[:rank].mT


def columns_of_vh(matrix: Tensor, rank: int) -> Tensor:
    """(n, rank) times (m, rank): raises RuntimeError below full rank, where it is right."""
    vh = torch.linalg.svd(matrix, full_matrices=False)[2]
    return without_v(matrix, rank) @ vh[:, :rank]


def matrix(rows: int, columns: int, seed: int) -> Tensor:
    """A float64 matrix without structure."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64)


low_rank = Exercise(
    name="low_rank",
    expects="matrix (n, m), rank -> the matrix (n, m) of that rank nearest to it: the first "
    "`rank` terms of its singular value decomposition",
    solution=lambda matrix, rank: reduce.low_rank(matrix, rank),
    cases=[
        (torch.tensor([[3.0, 0], [0, 1]], dtype=torch.float64), 1),
        (matrix(3, 3, seed=1), 2),
        (matrix(5, 4, seed=2), 1),
        (matrix(6, 4, seed=3), 3),
        (matrix(4, 3, seed=4), 3),  # full rank: here factors cut wrongly fit each other
    ],
    mistakes={
        "the smallest singular values are kept, the largest removed": lambda matrix, rank: terms(
            matrix, slice(min(matrix.shape) - rank, None)
        ),
        "the `rank` smallest terms are removed: that many are to be kept": lambda matrix, rank: (
            terms(matrix, slice(min(matrix.shape) - rank))
        ),
        "the largest `rank` terms are removed: they are what is to be kept": (
            lambda matrix, rank: terms(matrix, slice(rank, None))
        ),
        "one term too many: `[:rank]` has `rank` terms": (
            lambda matrix, rank: terms(matrix, slice(rank + 1))
        ),
        "one term too few: `[:rank]` has `rank` terms": (
            lambda matrix, rank: terms(matrix, slice(rank - 1))
        ),
        "only the last term: sum all up to `rank`": (
            lambda matrix, rank: terms(matrix, slice(rank - 1, rank))
        ),
        "the singular values are missing: scale the columns of U by them": without_values,
        "V is missing: multiply by the first `rank` rows of linalg.svd's third factor": without_v,
        "V stands where its transpose belongs: linalg.svd returns it transposed already": (
            untransposed
        ),
        "the third factor is transposed once more, so the shapes do not fit: linalg.svd returns V "
        "transposed already": transposed_back,
        "the factors' shapes do not fit: take `rank` columns of the first, `rank` values, `rank` "
        "rows of the third": columns_of_vh,
        "nothing is cut off: the matrix is returned as it is": lambda matrix, rank: matrix,
    },
)
