"""The exercises of lesson 08: noise edge, SNR, the rank that saves numbers, and luck taken out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from starling_nb.laser import spectra
from starling_nb.lesson.exercises import Exercise, vector

Shape = tuple[int, int]


def root_sum(shape: Shape) -> float:
    """sqrt n + sqrt m."""
    return math.sqrt(shape[0]) + math.sqrt(shape[1])


def edge(values: Tensor, shape: Shape, law_median: float) -> Tensor:
    """The edge of the law whose median singular value is that of the values."""
    return values.median() / (law_median * math.sqrt(max(shape))) * root_sum(shape)


def iqr(values: Tensor) -> Tensor:
    """The distance between the quartiles over that of N(0, 1)."""
    return (values.quantile(0.75) - values.quantile(0.25)) / 1.349


noise_edge = Exercise(
    name="noise_edge",
    expects="values (min(n, m),) singular values, shape (n, m), law_median the median of the law "
    "for that shape in units of s sqrt(max(n, m)) -> a number: s (sqrt n + sqrt m), where s is "
    "such that the law's median is that of the values",
    solution=edge,
    cases=[
        (vector(3, 2, 1), (3, 3), 0.8),
        (vector(9, 4, 3.5), (3, 12), 0.95),
        (vector(7, 5, 4.5, 2, 0.5), (16, 5), 0.9),
        (vector(40, 6, 5.5, 5, 4), (5, 9), 0.93),
    ],
    mistakes={
        "the spread is taken to be the median: divide it by law_median sqrt(max(n, m))": (
            lambda v, shape, law: v.median() * root_sum(shape)
        ),
        "law_median is missing: s sqrt(max(n, m)) is the median over law_median": (
            lambda v, shape, law: edge(v, shape, 1)
        ),
        "multiplied by law_median: divide by it": lambda v, shape, law: edge(v, shape, 1 / law),
        "s is read off with sqrt(min(n, m)): the law's unit is s sqrt(max(n, m))": (
            lambda v, shape, law: v.median() / (law * math.sqrt(min(shape))) * root_sum(shape)
        ),
        "the unit is s max(n, m) here: it is s sqrt(max(n, m))": (
            lambda v, shape, law: v.median() / (law * max(shape)) * root_sum(shape)
        ),
        "this is s: the edge is s (sqrt n + sqrt m)": (
            lambda v, shape, law: v.median() / (law * math.sqrt(max(shape)))
        ),
        "this is s sqrt(max(n, m)): the edge adds both roots": lambda v, shape, law: (
            v.median() / law
        ),
        "this is the lower edge: add the roots": lambda v, shape, law: (
            v.median() / (law * math.sqrt(max(shape))) * abs(shape[0] ** 0.5 - shape[1] ** 0.5)
        ),
        "n and m are added under one root: it is sqrt n + sqrt m": lambda v, shape, law: (
            v.median() / (law * math.sqrt(max(shape))) * math.sqrt(sum(shape))
        ),
        "the roots are missing: it is sqrt n + sqrt m": lambda v, shape, law: (
            v.median() / (law * math.sqrt(max(shape))) * sum(shape)
        ),
        "both roots are those of the larger side": lambda v, shape, law: 2 * v.median() / law,
        "the mean of the singular values, where their median belongs": lambda v, shape, law: (
            v.mean() / (law * math.sqrt(max(shape))) * root_sum(shape)
        ),
        "this is laserRMT's rule, from the quartiles: start from the median": (
            lambda v, shape, law: iqr(v) * (1 + math.sqrt(min(shape) / max(shape)))
        ),
    },
)


def pairs_of_sums(part: Callable[[Tensor], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """The ratio above the edge to up to it, of something else than the sum."""
    return lambda values, edge: part(values[values > edge]) / part(values[values <= edge])


snr = Exercise(
    name="snr",
    expects="values (r,) singular values, edge a number -> a number: the sum of the values above "
    "the edge over the sum of those up to it",
    solution=spectra.snr,
    cases=[
        (vector(3, 1), 2.0),
        (vector(8, 4, 3, 1), 3.5),
        (vector(9, 6, 5, 2, 0.5), 5.0),  # one lies on the edge
        (vector(2, 1.5, 1), 2.5),  # nothing above
    ],
    mistakes={
        "upside down: the signal is divided by the noise": lambda v, edge: (
            v[v <= edge].sum() / v[v > edge].sum()
        ),
        "a value on the edge counts as noise: signal lies above it": lambda v, edge: (
            v[v >= edge].sum() / v[v < edge].sum()
        ),
        "values are counted, where they should be summed": pairs_of_sums(
            lambda v: vector(len(v))[0]
        ),
        "means are divided: divide the sums": pairs_of_sums(torch.mean),
        "the values are squared: sum them as they are": pairs_of_sums(lambda v: v.square().sum()),
        "the roots of the sums of squares: sum the values as they are": pairs_of_sums(Tensor.norm),
        "divided by the sum of all values: divide by those up to the edge": lambda v, edge: (
            v[v > edge].sum() / v.sum()
        ),
        "all values are in the numerator: only those above the edge are signal": lambda v, edge: (
            v.sum() / v[v <= edge].sum()
        ),
        "divided by the largest value too: that is Spectrum's score": spectra.spectrum_score,
        "divided by the edge: divide by the sum of the values up to it": lambda v, edge: (
            v[v > edge].sum() / edge
        ),
        "the edge is subtracted from the signal: sum the values as they are": lambda v, edge: (
            (v - edge).clamp(min=0).sum() / v[v <= edge].sum()
        ),
        "the logarithm of the ratio: the ratio itself is asked for": lambda v, edge: (
            v[v > edge].sum() / v[v <= edge].sum()
        ).log(),
        "in decibels: the ratio itself is asked for": lambda v, edge: (
            10 * (v[v > edge].sum() / v[v <= edge].sum()).log10()
        ),
    },
)


largest_rank = Exercise(
    name="largest_rank",
    expects="n, m -> the largest rank r, 0 if there is none, at which matrices (n, r) and (r, m) "
    "together hold fewer numbers than one (n, m)",
    solution=lambda n, m: (n * m - 1) // (n + m),
    cases=[(4, 12), (3, 3), (2, 2), (5, 9), (10, 15), (4096, 1024), (4096, 14336)],
    mistakes={
        "at this rank both hold as many where n m is a multiple of n + m: fewer is asked for": (
            lambda n, m: n * m // (n + m)
        ),
        "rounded to the nearest: at the rank above n m / (n + m) nothing is saved": (
            lambda n, m: round(n * m / (n + m))
        ),
        "rounded up: at that rank nothing is saved": lambda n, m: -(-n * m // (n + m)),
        "not a whole number: round down, and below n m / (n + m)": lambda n, m: n * m / (n + m),
        "this is the rank at which numbers are equal or fewer, less one, everywhere": (
            lambda n, m: n * m // (n + m) - 1
        ),
        "half the smaller side is right for square matrices only": lambda n, m: min(n, m) // 2,
        "this is the full rank: there the two hold more numbers": lambda n, m: min(n, m),
        "the full rank less one: there the two hold more numbers": lambda n, m: min(n, m) - 1,
        "the singular values are counted too: they go into one of the two matrices": (
            lambda n, m: (n * m - 1) // (n + m + 1)
        ),
        "the larger side is counted for both matrices": lambda n, m: (n * m - 1) // (2 * max(n, m)),
        "the smaller side is counted for both matrices": (
            lambda n, m: (n * m - 1) // (2 * min(n, m))
        ),
        "n + m in place of n m: the one matrix holds n m numbers": (
            lambda n, m: (n + m) // min(n, m)
        ),
    },
)


def split(gains: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates' mean gains (C,) on the items drawn, and gains (C, M) on those left out."""
    out = torch.ones(gains.shape[1], dtype=torch.bool)
    out[drawn] = False
    return gains[:, drawn].mean(1), gains[:, out]


def chosen_on_drawn(gains: Tensor, drawn: Tensor) -> Tensor:
    """What the best on the items drawn gains on those left out."""
    inside, outside = split(gains, drawn)
    return outside[inside.argmax()].mean()


out_of_bag = Exercise(
    name="out_of_bag",
    expects="gains (C, N) of C candidates on N items, drawn (N,) item numbers, some several times, "
    "others never -> a number: the mean gain, on the items never drawn, of the candidate with the "
    "largest mean gain over the draws, an item drawn twice counting twice",
    solution=chosen_on_drawn,
    cases=[
        (vector(1, 0, 2, 3, -1, 1, 1, 0).view(2, 4), torch.tensor([0, 0, 1, 3])),
        (vector(2, 0, -1, 4, 1, 1, -3, 0, 0, 1.5, 1.4, 1).view(3, 4), torch.tensor([1, 2, 1, 2])),
        # the second is best as drawn, the first if every item counts once
        (
            vector(5, 4, 0, -2, 1, 1, 1, 3, 2, -1, 2, 1, 1, 1, 2.5).view(3, 5),
            torch.tensor([2, 2, 2, 1, 0]),
        ),
        (
            vector(-1, -2, -3, -0.5, 0, -2.5, -3, 0.4, -6, -4, 1, 0).view(2, 6),
            torch.tensor([0, 1, 2, 2, 5, 5]),
        ),
    ],
    mistakes={
        "this is the best one's gain on the items that chose it: take those never drawn": (
            lambda gains, drawn: split(gains, drawn)[0].max()
        ),
        "judged on all items: those that chose it must be left out": lambda gains, drawn: gains[
            split(gains, drawn)[0].argmax()
        ].mean(),
        "chosen on the items that judge it: choose on those drawn": lambda gains, drawn: (
            split(gains, drawn)[1].mean(1).max()
        ),
        "chosen on all items: choose on those drawn": lambda gains, drawn: split(gains, drawn)[1][
            gains.mean(1).argmax()
        ].mean(),
        "chosen on all items, and judged on them": lambda gains, drawn: gains.mean(1).max(),
        "an item drawn twice counts twice in the choice": lambda gains, drawn: chosen_on_drawn(
            gains, drawn.unique()
        ),
        "the two halves are swapped: choose on the items drawn, judge on those left out": (
            lambda gains, drawn: split(gains, drawn)[0][split(gains, drawn)[1].mean(1).argmax()]
        ),
        "the worst candidate is chosen: take the largest mean": lambda gains, drawn: split(
            gains, drawn
        )[1][split(gains, drawn)[0].argmin()].mean(),
        "chosen by its best single item: choose by the mean": lambda gains, drawn: split(
            gains, drawn
        )[1][gains[:, drawn].max(1).values.argmax()].mean(),
        "the sum of the gains left out: their mean is asked for": lambda gains, drawn: split(
            gains, drawn
        )[1][split(gains, drawn)[0].argmax()].sum(),
        "divided by the number of all items: divide by those left out": lambda gains, drawn: (
            split(gains, drawn)[1][split(gains, drawn)[0].argmax()].sum() / gains.shape[1]
        ),
        "the mean over all candidates: only the chosen one counts": lambda gains, drawn: split(
            gains, drawn
        )[1].mean(),
        "this is how much of the gain is luck: the gain left out itself is asked for": (
            lambda gains, drawn: split(gains, drawn)[0].max() - chosen_on_drawn(gains, drawn)
        ),
    },
)
