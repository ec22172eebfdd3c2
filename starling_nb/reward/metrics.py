"""How well scores order ranked lists, how far to believe their differences, what they follow."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from starling_nb.data.nectar import Row
from starling_nb.reward.kwise import plackett_luce_nll, scores_and_mask


def ranking_metrics(scores: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """How well scores order ranked lists.

    scores, mask: as in `plackett_luce_nll`. -> accuracy over all pairs, adjacent_accuracy (the
    authors' metric: the hardest pairs), top1 (the best answer scored highest), kendall_tau (the
    mean over lists of ordered minus reversed pairs, of all pairs: τ-a; lists of one answer left
    out), nll = the mean of NLL/(K−1), chance_nll = the same for equal scores, ln K!/(K−1), and the
    counts lists and pairs.
    A tie counts as half an ordered pair, as 1/n of a top answer among n, and 0 in τ: equal scores
    are at chance in all of them.
    """
    scores, mask = scores_and_mask(scores, mask)
    both = mask[:, :, None] & mask[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]
    ordered = (margins > 0) + 0.5 * (margins == 0)
    highest = scores.masked_fill(~mask, -math.inf).amax(-1, keepdim=True)
    winners = (scores == highest) & mask
    size = mask.sum(-1)
    taus = (margins.sign() * both.triu(1)).sum((-1, -2)) / (size * (size - 1) / 2)  # 0/0 for one
    stages = (size - 1).clamp(min=1)
    return {
        "accuracy": ordered[both.triu(1)].mean().item(),
        "adjacent_accuracy": ordered[both.triu(1).tril(1)].mean().item(),
        "top1": (winners[:, 0] / winners.sum(-1)).mean().item(),
        "kendall_tau": taus.nanmean().item(),
        "nll": (plackett_luce_nll(scores, mask) / stages).mean().item(),
        "chance_nll": (torch.lgamma(size + 1.0) / stages).mean().item(),
        "lists": len(scores),
        "pairs": int(both.triu(1).sum()),
    }


def ordered_pairs(rows: Sequence[Row], scores: ArrayLike) -> np.ndarray:
    """Of each list, the share of pairs of different answers that scores put in the row's order.

    rows: N validated rows, best first.  scores: (N, K), K the most answers of a row. -> (N,); a tie
    counts one half, pairs of equal texts are left out, and a list of nothing else is nan.
    """
    shares = []
    for row, s in zip(rows, np.asarray(scores), strict=True):
        texts = [answer["answer"] for answer in row["answers"]]
        pairs = [(i, j) for i, j in combinations(range(len(texts)), 2) if texts[i] != texts[j]]
        right = [(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for i, j in pairs]
        shares.append(np.mean(right) if right else np.nan)
    return np.array(shares)


def concordant_pairs(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each list, the share of pairs of different values that scores put in the values' order.

    values, scores: (N, K), higher is better. -> (N,); equal scores count one half, and a list
    whose values are all equal is nan.
    """
    i, j = np.triu_indices(values.shape[1], 1)
    ahead = np.sign(values[:, i] - values[:, j]) * np.sign(scores[:, i] - scores[:, j])
    different = values[:, i] != values[:, j]  # (N, pairs)
    with np.errstate(invalid="ignore"):
        return ((ahead + 1) / 2 * different).sum(1) / different.sum(1)


def mean_gap(values: np.ndarray) -> float:
    """Mean distance of the two values of a pair, over all pairs of a list: (N, K)."""
    i, j = np.triu_indices(values.shape[1], 1)
    return np.abs(values[:, i] - values[:, j]).mean()


class Calibration(NamedTuple):
    """What scores say of pairs against what is so, in bins of the prediction from 0.5 to 1."""

    prediction: Tensor  # (bins,): mean predicted probability that the higher score ranks better
    share: Tensor  # (bins,): of pairs in which it does, a tie counting half; NaN in an empty bin
    pairs: Tensor  # (bins,): how many
    error: float  # expected calibration error: mean over pairs of |share − prediction| of their bin
    scale: float  # by which scores are to be multiplied; 1 = calibrated, below 1 = overconfident


def calibration(scores: Tensor, mask: Tensor | None = None, bins: int = 10) -> Calibration:
    """Whether the better answer scores higher as often as P(i before j) = σ(s_i − s_j) says.

    scores, mask: as in `plackett_luce_nll`; all pairs of all lists count alike, in bins of equal
    width.  The scale a maximises Σ log σ(a (s_i − s_j)) over pairs whose i is the better: a
    logistic regression without intercept, by Newton.  It is inf when no pair is reversed, −inf when
    all are, NaN without a difference; then too, or without pairs, what has no value is NaN.
    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3 and, for 1/a, temperature scaling.
    """
    scores, mask = scores_and_mask(scores, mask)
    scores = scores.double()
    both = (mask[:, :, None] & mask[:, None, :]).triu(1)
    margins = (scores[:, :, None] - scores[:, None, :])[both]  # (N,): better − worse
    predicted, right = margins.abs().sigmoid(), (margins > 0) + 0.5 * (margins == 0)
    place = ((2 * predicted - 1) * bins).long().clamp(max=bins - 1)
    pairs = torch.bincount(place, minlength=bins)
    prediction = torch.bincount(place, predicted, bins) / pairs
    share = torch.bincount(place, right, bins) / pairs
    error = ((share - prediction).abs() * pairs).nansum() / pairs.sum()
    return Calibration(prediction, share, pairs, error.item(), logistic_scale(margins))


def logistic_scale(margins: Tensor) -> float:
    """The a that maximises Σ log σ(a m) over margins m: (N,); see `calibration`."""
    if not ((margins > 0).any() and (margins < 0).any()):
        return math.inf * margins.sum().sign().item()
    scale = margins.new_zeros(())
    for _ in range(100):  # Newton never steps too far from 0: the curvature falls on the way
        wrong = (-scale * margins).sigmoid()
        step = (margins * wrong).sum() / (margins**2 * wrong * (1 - wrong)).sum()
        scale = scale + step
        if abs(step) <= 1e-12 * abs(scale):
            break
    return scale.item()


def within_list_correlation(scores: Tensor, feature: Tensor, mask: Tensor | None = None) -> float:
    """Pearson correlation of scores with a feature of the answers, each list's mean subtracted.

    scores, mask: as in `plackett_luce_nll`.  feature: (B, K), such as an answer's number of words,
    or 1 where it has bullet points: the reward-length and reward-format correlation.  What differs
    between prompts has no part in it.  NaN when the feature, or the scores, are equal within every
    list: there is nothing to correlate.
    """
    scores, mask = scores_and_mask(scores, mask)
    x, y = (_centred(values.double(), mask) for values in (scores, feature))
    return ((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt()).item()


def _centred(values: Tensor, mask: Tensor) -> Tensor:
    """Values minus their list's mean, exactly 0 where a list's are equal and where none is."""
    values = (values - values[:, :1]).masked_fill(~mask, 0)
    means = values.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return (values - means).masked_fill(~mask, 0)
