"""K-wise maximum likelihood: the likelihood of a ranking, and of the pairs it can be broken into.

Zhu, Jordan and Jiao 2023 (arXiv 2301.11270): the Plackett-Luce likelihood of a ranking (MLE_K)
beside the likelihood of its pairs (MLE_2).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = Callable[[Tensor, Tensor], Tensor]

BREAKINGS = {  # i, j: places in the ranking, best first; last: the worst answer's place
    "full": lambda i, j, last: i < j,
    "adjacent": lambda i, j, last: j == i + 1,
    "best_vs_rest": lambda i, j, last: i == 0,
    "best_vs_second": lambda i, j, last: (i == 0) & (j == 1),
    "best_vs_worst": lambda i, j, last: (i == 0) & (j == last),
    "rest_vs_worst": lambda i, j, last: j == last,
}


def scores_and_mask(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in float32 or better, 0 where there is no answer, and the mask as bool."""
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~mask, 0), mask


def plackett_luce_nll(scores: Tensor, mask: Tensor | None = None, top: int | None = None) -> Tensor:
    """Negative log-likelihood of each list's ranking under Plackett-Luce.

        nll = Σ_j [ log Σ_{i>=j} exp(s_i) − s_j ]

    scores: (B, K), best first.  mask: (B, K), True on each row's answers, which come first; None
    when every row has K.  top: keep the first `top` terms, when only the best are ranked.
    -> (B,) in nats, float32 or better; ln K! where all scores are equal.
    Source: Plackett 1975; arXiv 2301.11270, MLE_K. Naive twin: `naive_nll` in tests/test_kwise.py.
    """
    scores, mask = scores_and_mask(scores, mask)
    absent = torch.finfo(scores.dtype).min  # -inf would put NaN into logcumsumexp's gradient
    ranked = scores.masked_fill(~mask, absent)
    log_rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)  # log_rest_j = log Σ_{i>=j} exp(s_i)
    terms = (log_rest - scores).masked_fill(~mask, 0)
    return terms[:, :top].sum(-1)


def pairwise_nll(scores: Tensor, mask: Tensor | None = None, breaking: str = "full") -> Tensor:
    """Negative log-likelihood of a ranking broken into Bradley-Terry pairs.

        nll = Σ_{(i, j) in pairs} log(1 + exp(s_j − s_i))

    scores, mask: as in `plackett_luce_nll`.  breaking: "full" (all K(K−1)/2 pairs, MLE_2),
    "adjacent", "best_vs_rest", "best_vs_second", "best_vs_worst" or "rest_vs_worst".
    -> (B,) in nats, summed over pairs.  Raises ValueError for another breaking.
    Source: arXiv 2301.11270, MLE_2; only "full" and "best_vs_rest" are consistent.
    """
    if breaking not in BREAKINGS:
        raise ValueError(f"breaking: expected one of {', '.join(BREAKINGS)}, found {breaking!r}")
    scores, mask = scores_and_mask(scores, mask)
    place = torch.arange(scores.shape[-1], device=scores.device)
    i, j = place[:, None], place[None, :]
    last = mask.sum(-1)[:, None, None] - 1
    pairs = BREAKINGS[breaking](i, j, last) & (i < j) & mask[:, :, None] & mask[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]  # (B, K, K): s_i − s_j
    return (softplus(-margins) * pairs).sum((-1, -2))


def squared_sum(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """(Σ_j s_j)² of each list: as a penalty it pins the level, which no ranking's likelihood sees.

    scores, mask: as in `plackett_luce_nll`. -> (B,).
    Source: `zero_sum_penalty` of Starling's reward-model-training (models.py), by default 0.
    """
    scores, _ = scores_and_mask(scores, mask)
    return scores.sum(-1) ** 2
