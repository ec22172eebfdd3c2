"""How well scores order ranked lists."""

import math

import torch
from torch import Tensor

from starling_nb.reward.kwise import plackett_luce_nll, scores_and_mask


def ranking_metrics(scores: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """How well scores order ranked lists.

    scores, mask: as in `plackett_luce_nll`. -> accuracy over all pairs, adjacent_accuracy (the
    authors' metric: the hardest pairs), top1 (the best answer scored highest), nll = the mean of
    NLL/(K−1), chance_nll = the same for equal scores, ln K!/(K−1), and the counts lists and pairs.
    A tie counts as half an ordered pair, and as 1/n of a top answer among n: equal scores are at
    chance in all of them.
    """
    scores, mask = scores_and_mask(scores, mask)
    both = mask[:, :, None] & mask[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]
    ordered = (margins > 0) + 0.5 * (margins == 0)
    highest = scores.masked_fill(~mask, -math.inf).amax(-1, keepdim=True)
    winners = (scores == highest) & mask
    size = mask.sum(-1)
    stages = (size - 1).clamp(min=1)
    return {
        "accuracy": ordered[both.triu(1)].mean().item(),
        "adjacent_accuracy": ordered[both.triu(1).tril(1)].mean().item(),
        "top1": (winners[:, 0] / winners.sum(-1)).mean().item(),
        "nll": (plackett_luce_nll(scores, mask) / stages).mean().item(),
        "chance_nll": (torch.lgamma(size + 1.0) / stages).mean().item(),
        "lists": len(scores),
        "pairs": int(both.triu(1).sum()),
    }
