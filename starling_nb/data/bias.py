"""How far labels can be trusted: length bias, position bias and test-retest agreement.

`order` is one ranking as the judge gave it: the positions (0-based, in the order the answers were
shown) from best to worst. `ranks` is its inverse plus one: the rank 1..K of each shown answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import chisquare

from starling_nb.data.nectar import Row
from starling_nb.data.sources import read_jsonl


@dataclass(frozen=True)
class LengthBias:
    """How labels go with the answers' length in characters; shares are between 0 and 1."""

    longer_above: float  # pairs of unequal length in which the longer answer is ranked above
    longest_first: float  # lists in which no answer is longer than the one at rank 1
    pairs: int  # pairs of unequal length
    lists: int
    mean_chars: list[float]  # by rank, from 1


def length_bias(rows: Sequence[Row]) -> LengthBias:
    """Measure how often the longer answer wins, over validated rows (answers best first, any K).

    longer_above is nan when no pair has unequal lengths. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one list of answers, found none")
    above = pairs = first = 0
    chars_by_rank: list[list[int]] = [[] for _ in range(max(len(r["answers"]) for r in rows))]
    for row in rows:
        lengths = [len(a["answer"]) for a in row["answers"]]
        for rank, length in enumerate(lengths):
            chars_by_rank[rank].append(length)
            above += sum(length > other for other in lengths[rank + 1 :])
            pairs += sum(length != other for other in lengths[rank + 1 :])
        first += lengths[0] == max(lengths)
    return LengthBias(
        longer_above=above / pairs if pairs else math.nan,
        longest_first=first / len(rows),
        pairs=pairs,
        lists=len(rows),
        mean_chars=[float(np.mean(chars)) for chars in chars_by_rank],
    )


@dataclass(frozen=True)
class FirstPlaces:
    """Who comes first, by position; chi2 tests that every position is as likely (K - 1 dof)."""

    counts: np.ndarray  # (K,)
    shares: np.ndarray  # (K,)
    chi2: float
    p_value: float


def first_place_by_position(orders: ArrayLike) -> FirstPlaces:
    """Count how often each position is ranked first. orders: (N, K), each row a permutation of
    0..K-1, best first; ValueError otherwise. Pearson's chi-square, as in the Starling blog.
    """
    orders = _permutations(orders, "orders", first=0)
    counts = np.bincount(orders[:, 0], minlength=orders.shape[1])
    chi2, p_value = chisquare(counts)
    return FirstPlaces(counts, counts / len(orders), float(chi2), float(p_value))


def mean_win_rate_by_position(orders: ArrayLike) -> np.ndarray:
    """The (K,) share of the other K - 1 answers that the answer at each position beats, on average.

    orders: (N, K), each row a permutation of 0..K-1, best first; ValueError otherwise.
    """
    orders = _permutations(orders, "orders", first=0)
    k = orders.shape[1]
    place = np.argsort(orders, axis=1)  # (N, K) place in the ranking, by position
    return ((k - 1 - place) / (k - 1)).mean(axis=0)


@dataclass(frozen=True)
class Agreement:
    """How often two labellings order a pair of answers the same way."""

    overall: float
    by_gap: np.ndarray  # (K - 1,) the pairs whose ranks in the first labelling differ by 1, 2, ...
    pairs: int


def agreement(first_ranks: ArrayLike, second_ranks: ArrayLike) -> Agreement:
    """Compare two labellings of the same lists, over all K (K - 1) / 2 pairs of each.

    first_ranks, second_ranks: (N, K) ranks 1..K of the same answers in the same order. by_gap sorts
    the pairs by the first labelling's ranks. Raises ValueError for other shapes or values.
    """
    first = _permutations(first_ranks, "first_ranks", first=1)
    second = _permutations(second_ranks, "second_ranks", first=1)
    if first.shape != second.shape:
        raise ValueError(f"second_ranks: expected shape {first.shape}, found {second.shape}")
    i, j = np.triu_indices(first.shape[1], 1)
    gap = first[:, i] - first[:, j]  # (N, pairs)
    same = (gap > 0) == (second[:, i] > second[:, j])
    by_gap = [same[np.abs(gap) == size].mean() for size in range(1, first.shape[1])]
    return Agreement(float(same.mean()), np.array(by_gap), same.size)


def ceiling_bounds(a: float) -> tuple[float, float]:
    """Bounds (a, (1 + sqrt(2a - 1)) / 2) on the best pair accuracy under labels that agree by a.

    If a pair gets its more likely label with probability q >= 1/2, two independent labellings agree
    with probability q^2 + (1 - q)^2 and the best predictor is right with probability q. Averaged
    over pairs: a = E[q^2 + (1 - q)^2] <= E[q], with equality when every q is 1/2 or 1; and
    (2 E[q] - 1)^2 <= E[(2q - 1)^2] = 2a - 1, with equality when all q are equal. Raises ValueError
    unless 1/2 <= a <= 1: independent labellings cannot agree less often in expectation.
    """
    if not 0.5 <= a <= 1:
        raise ValueError(f"a: expected an agreement between 0.5 and 1, found {a}")
    return a, (1 + math.sqrt(2 * a - 1)) / 2


def bootstrap_interval(
    items: ArrayLike,
    statistic: Callable[[np.ndarray], float],
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> tuple[float, float]:
    """A percentile bootstrap interval, resampling the first axis of `items`: one item a prompt.

    items: (N, ...); statistic: maps such an array to a number. The interval is for the statistic
    expected on N new prompts. Of a chi-square it lies to the right, since a resample's is about
    K - 1 above the sample's own; its coverage is right all the same (simulated at N = 190, K = 7,
    chi-squares of 6 to 130: 94 to 96 % at level 0.95). Raises ValueError without items.
    Source: Efron & Tibshirani 1993, chapter 13.
    """
    items = np.asarray(items)
    if len(items) == 0:
        raise ValueError("items: expected at least one prompt to resample, found none")
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(items), size=(resamples, len(items)))
    values = np.array([statistic(items[draw]) for draw in draws])
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def read_orders(path: str | Path) -> dict[str, np.ndarray]:
    """The `ranking_order` of a position-bias file, (N, K) per protocol: best first, 0-based.

    Each line is {"protocol": str, "ranking_order": [int], ...}. Raises ValueError.
    """
    return {
        protocol: _permutations(orders, f"{path}, protocol {protocol}, ranking_order", first=0)
        for protocol, orders in _by_protocol(path, ("ranking_order",))["ranking_order"].items()
    }


def read_retest(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The `earlier_rank` and `rank` of a retest file, (N, K) each, per protocol.

    Each line is {"protocol": str, "earlier_rank": [int], "rank": [int], ...}, both aligned to the
    order shown. Raises ValueError.
    """
    ranks = _by_protocol(path, ("earlier_rank", "rank"))
    return {
        protocol: (
            _permutations(earlier, f"{path}, protocol {protocol}, earlier_rank", first=1),
            _permutations(ranks["rank"][protocol], f"{path}, protocol {protocol}, rank", first=1),
        )
        for protocol, earlier in ranks["earlier_rank"].items()
    }


def _by_protocol(path: str | Path, fields: tuple[str, ...]) -> dict[str, dict[str, list]]:
    """For each of the fields, its values by protocol, in the order of the lines."""
    values: dict[str, dict[str, list]] = {name: {} for name in fields}
    for where, line in read_jsonl(path):
        for name in ("protocol", *fields):
            if not isinstance(line, dict) or name not in line:
                raise ValueError(f"{where}, field {name}: missing; read the file it belongs to")
        for name in fields:
            values[name].setdefault(line["protocol"], []).append(line[name])
    return values


def _permutations(lists: ArrayLike, name: str, *, first: int) -> np.ndarray:
    """`lists` as an (N, K) int array whose rows are permutations of first..first+K-1."""
    try:
        array = np.asarray(lists)
    except ValueError:
        raise ValueError(f"{name}: expected lists of one length, found several") from None
    if array.ndim != 2 or not len(array) or array.shape[1] < 2:
        raise ValueError(f"{name}: expected an (N, K) table with K >= 2, found {array.shape}")
    wanted = np.arange(first, first + array.shape[1])
    bad = np.flatnonzero((np.sort(array, axis=1) != wanted).any(axis=1))
    if len(bad):
        raise ValueError(
            f"{name}[{bad[0]}]: expected a permutation of {first}..{wanted[-1]}, "
            f"found {array[bad[0]].tolist()}"
        )
    return array.astype(int)
