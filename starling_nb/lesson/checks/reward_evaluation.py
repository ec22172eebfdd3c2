"""The exercises of lesson 05: accuracy and its ceiling, calibration, and the card's truth score."""

import math
from collections.abc import Iterable
from itertools import combinations, combinations_with_replacement, pairwise, product

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from starling_nb.lesson.exercises import Exercise

Pairs = Iterable[tuple[int, ...]]


def credits(scores: np.ndarray, pairs: Pairs | None = None, tie: float = 0.5) -> np.ndarray:
    """(pairs, N): 1 where the first of a pair scores higher, `tie` where both score the same.

    pairs: those of all answers, i < j, when None.
    """
    pairs = combinations(range(scores.shape[1]), 2) if pairs is None else pairs
    margins = np.array([scores[:, i] - scores[:, j] for i, j in pairs])
    return (margins > 0) + tie * (margins == 0)


def untied(scores: np.ndarray) -> np.ndarray:
    """The credits of the pairs that do not tie, in a row."""
    credit = credits(scores)
    return credit[credit != 0.5]


pair_accuracy = Exercise(
    name="pair_accuracy",
    expects="scores (N, K) of N lists, best answer first -> a number, the share of their "
    "N K (K - 1) / 2 pairs i < j in which answer i scores above answer j; a tie counts one half",
    solution=lambda scores: credits(scores).mean(),
    cases=[
        (np.array([[3.0, 1.0, 2.0]]),),
        (np.array([[1.0, 1.0, 0.0]]),),
        (np.array([[2.0, 2.0, 0.5, -1.0], [-1.0, 3.0, 0.0, 0.0], [4.0, 4.0, 1.0, 2.0]]),),
    ],
    mistakes={
        "a tie counts as right: it is worth one half": lambda s: credits(s, tie=1).mean(),
        "a tie counts as wrong: it is worth one half": lambda s: credits(s, tie=0).mean(),
        "ties are left out: they are pairs too, worth one half each": lambda s: untied(s).mean(),
        "only neighbours are compared: all pairs of a list count": (
            lambda s: credits(s, pairwise(range(s.shape[1]))).mean()
        ),
        "only the best answer is compared: the pairs among the rest count too": (
            lambda s: credits(s, [(0, j) for j in range(1, s.shape[1])]).mean()
        ),
        "this is how often the best answer scores highest: all pairs count": (
            lambda s: (s.argmax(axis=1) == 0).mean()
        ),
        "this is how often a whole list is in order: count its pairs": (
            lambda s: (np.diff(s, axis=1) < 0).all(axis=1).mean()
        ),
        "all K^2 pairs are compared, in both orders and with itself, which is one half: take "
        "i < j": lambda s: credits(s, product(range(s.shape[1]), repeat=2)).mean(),
        "an answer is paired with itself, which always ties: j begins at i + 1": (
            lambda s: credits(s, combinations_with_replacement(range(s.shape[1]), 2)).mean()
        ),
        "this is the share in the wrong order: the best answer comes first": (
            lambda s: 1 - credits(s).mean()
        ),
        "the pairs run down the columns: take two answers of one list": (
            lambda s: credits(s.T).mean()
        ),
        "only the first list is compared: take the share over all N lists": (
            lambda s: credits(s[:1]).mean()
        ),
        "pairs in the wrong order are subtracted: that is Kendall's tau, 2a - 1": (
            lambda s: 2 * credits(s).mean() - 1
        ),
        "this is their number: divide by N K (K - 1) / 2": lambda s: credits(s).sum(),
    },
)


def likelier(p: np.ndarray) -> np.ndarray:
    """max(p, 1 - p): how often the best guess at each pair is right."""
    return np.maximum(p, 1 - p)


def retest(p: np.ndarray) -> float:
    """How often two readings of a pair agree, on average."""
    return (p**2 + (1 - p) ** 2).mean()


bayes_accuracy = Exercise(
    name="bayes_accuracy",
    expects="p (M,), the probability with which the judge prefers the first answer of each pair "
    "-> a number, the accuracy of the best possible predictor of its labels",
    solution=lambda p: likelier(p).mean(),
    cases=[
        (np.array([0.9, 0.2]),),
        (np.array([0.5, 0.5, 0.5]),),
        (np.array([0.55, 0.05, 0.7, 0.4]),),
    ],
    mistakes={
        "this guesses the first answer always: the best guess is the likelier one": (
            lambda p: p.mean()
        ),
        "one guess is made for all pairs: take the larger probability in each, then the mean": (
            lambda p: likelier(p.mean())
        ),
        "this is how often two readings agree: the best predictor does not draw": retest,
        "this is the upper bound that agreement gives: with each p known, none is needed": (
            lambda p: (1 + math.sqrt(2 * retest(p) - 1)) / 2
        ),
        "one half is missing: this is how far above chance the predictor is": (
            lambda p: np.abs(p - 0.5).mean()
        ),
        "this is the mean margin |2p - 1|: half of it, and one half, is an accuracy": (
            lambda p: np.abs(2 * p - 1).mean()
        ),
        "this is the error of the best predictor: its accuracy is asked for": (
            lambda p: 1 - likelier(p).mean()
        ),
        "this is how often the first answer is the likelier: a share of guesses is no accuracy": (
            lambda p: (p > 0.5).mean()
        ),
        "the median, where the mean belongs": lambda p: np.median(likelier(p)),
        "this is the surest pair: take the mean over all": lambda p: likelier(p).max(),
        "this is the chance that all guesses are right: take the mean": (
            lambda p: likelier(p).prod()
        ),
    },
)


normalised = Exercise(
    name="normalised",
    expects="accuracy and ceiling, numbers -> a number: 0 at chance, which is 1/2, 1 at the "
    "ceiling, linear in the accuracy",
    solution=lambda accuracy, ceiling: (accuracy - 0.5) / (ceiling - 0.5),
    cases=[(0.75, 0.9), (0.5, 0.8), (0.7, 0.7), (0.4, 0.9)],
    mistakes={
        "this is the share of the ceiling: at chance it is not 0, take 1/2 off both": (
            lambda a, c: a / c
        ),
        "this is how far the accuracy is from the ceiling": lambda a, c: a - c,
        "the room is not all of the half above chance: it ends at the ceiling": (
            lambda a, c: (a - 0.5) / 0.5
        ),
        "divided by the ceiling: take 1/2 off it too": lambda a, c: (a - 0.5) / c,
        "1/2 is not taken off the accuracy": lambda a, c: a / (c - 0.5),
        "upside down: the room, ceiling - 1/2, is divided by": lambda a, c: (c - 0.5) / (a - 0.5),
        "brackets are missing: subtract first, then divide": lambda a, c: a - 0.5 / c - 0.5,
        "not divided: this is how far the accuracy is above chance": lambda a, c: a - 0.5,
        "this is the share that is missing: take it from 1": lambda a, c: (c - a) / (c - 0.5),
        "cut at 0: an accuracy below chance is below 0": (
            lambda a, c: max(0.0, (a - 0.5) / (c - 0.5))
        ),
        "the sign is lost: an accuracy below chance is below 0": (
            lambda a, c: abs(a - 0.5) / (c - 0.5)
        ),
        "this divides the errors: divide what is above chance": lambda a, c: (1 - a) / (1 - c),
    },
)


def slope(c: float, margins: np.ndarray) -> float:
    """The derivative of the sum of log σ(c m) in c; it falls as c grows."""
    return float(margins @ expit(-c * margins))


def newton(c: float, margins: np.ndarray) -> float:
    """c after one step of Newton's method."""
    p = expit(-c * margins)
    return c + slope(c, margins) / float(margins**2 @ (p * (1 - p)))


def scale(margins: np.ndarray) -> float:
    """Where the derivative is 0, to twelve digits."""
    return brentq(slope, 0, 1e3 / np.abs(margins).max(), args=(margins,), xtol=1e-12)


def log_odds(margins: np.ndarray) -> float:
    """log a/(1 - a) of the share a of positive margins."""
    right = (margins > 0).mean()
    return math.log(right / (1 - right))


def honest(margins: np.ndarray) -> float:
    """The c at which the mean probability of the higher score equals its share of right ones."""
    size, right = np.abs(margins), (margins > 0).mean()
    return brentq(lambda c: expit(c * size).mean() - right, 0, 1e3 / size.max())


calibration_scale = Exercise(
    name="calibration_scale",
    expects="margins (M,), the score of the better answer less that of the worse, of either sign "
    "-> the number c > 0 that maximises the sum of log sigmoid(c * margin), to 1 in 1000",
    solution=scale,
    cases=[
        (np.array([1.0, 1.0, -1.0]),),  # log 2
        (np.array([0.5, 0.5, -0.5, 0.5]),),  # 2 log 3
        (np.array([3.0, 0.4, -0.6, 1.0, -0.2, 0.1]),),
        (np.array([0.5, -0.1, 0.3, 0.8, -0.3, 0.2, 0.05, -0.02]),),
    ],
    mistakes={
        "nothing was fitted: c = 1 takes the margins as they are": lambda m: 1.0,
        "the search ended at 0: the derivative in c, the sum of margin * sigmoid(-c * margin), is "
        "positive while c is too small": lambda m: 0.0,
        "the sign: this fits the worse answer above the better": lambda m: -scale(m),
        "this is the temperature 1/c: c multiplies the margins": lambda m: 1 / scale(m),
        "the margins are brought to a standard deviation of 1: a likelihood is asked for": (
            lambda m: 1 / m.std()
        ),
        "the margins are brought to a mean of 1 without their signs: a likelihood is asked for": (
            lambda m: 1 / np.abs(m).mean()
        ),
        "these are least squares, c * margin against 1: a likelihood is asked for": (
            lambda m: m.sum() / (m**2).sum()
        ),
        "this is one step of Newton's method from 0: go on until c stays": lambda m: newton(0, m),
        "this is one step of Newton's method from 1: go on until c stays": lambda m: newton(1, m),
        "only the signs count here: log a/(1 - a) is c when all margins are 1 or -1": log_odds,
        "only the signs and the mean size count here: large margins weigh more": (
            lambda m: log_odds(m) / np.abs(m).mean()
        ),
        "this makes the mean probability equal to the accuracy: the likelihood is another aim": (
            honest
        ),
    },
    tolerance=1e-3,
)


def above(better: np.ndarray, worse: np.ndarray, tie: float = 0.0) -> float:
    """How often the first scores higher, a tie counting `tie`."""
    return float(((better > worse) + tie * (better == worse)).mean())


def level(correct: np.ndarray, best: np.ndarray, decimals: int = 2) -> float:
    """How often the best answer scores, rounded, no less than the correct one."""
    return above(best.round(decimals), correct.round(decimals), tie=1)


def mean_of(*shares: float) -> float:
    """The mean of the comparisons."""
    return sum(shares) / len(shares)


def truth(correct: np.ndarray, incorrect: np.ndarray, best: np.ndarray) -> float:
    """The card's Truth preference, as its score.py has it."""
    return mean_of(above(correct, incorrect), above(best, incorrect), level(correct, best))


def all_at_once(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> float:
    """How often all three comparisons of a row hold."""
    return float(((a > b) & (c > b) & (c.round(2) >= a.round(2))).mean())


truth_preference = Exercise(
    name="truth_preference",
    expects="correct (N,), incorrect (N,), best (N,), the scores of three answers to each question "
    "-> a number, the mean of three shares: correct above incorrect, best above incorrect, and "
    "best at least correct, these two rounded to 2 decimals first",
    solution=truth,
    cases=[
        (np.array([1.0, 2.0]), np.array([0.5, 2.5]), np.array([1.0, 1.5])),
        (
            np.array([1.004, 0.3, 2.0, -1.0]),
            np.array([0.2, 0.3, -1.0, 0.5]),
            np.array([0.996, 0.8, 1.7, 0.5]),
        ),
        (
            np.array([0.254, 1.006, -0.5, 0.7, 1.3]),
            np.array([0.1, 2.0, -0.5, -0.2, 1.301]),
            np.array([0.251, 1.004, 0.1, 0.66, 1.304]),
        ),
    ],
    mistakes={
        "best must be above correct, not at least: equal scores hold there": (
            lambda a, b, c: mean_of(above(a, b), above(c, b), above(c.round(2), a.round(2)))
        ),
        "best and correct are not rounded: to 2 decimals nearly equal ones are equal": (
            lambda a, b, c: mean_of(above(a, b), above(c, b), above(c, a, tie=1))
        ),
        "rounded to 1 decimal: 2 are asked for": (
            lambda a, b, c: mean_of(above(a, b), above(c, b), level(a, c, 1))
        ),
        "rounded to whole numbers: 2 decimals are asked for": (
            lambda a, b, c: mean_of(above(a, b), above(c, b), level(a, c, 0))
        ),
        "all scores are rounded: in the first two comparisons they stay as they are": (
            lambda a, b, c: truth(a.round(2), b.round(2), c.round(2))
        ),
        "a tie with the incorrect answer counts as right: above is asked for": (
            lambda a, b, c: mean_of(above(a, b, tie=1), above(c, b, tie=1), level(a, c))
        ),
        "ties count one half: here they count 0 in the first two comparisons and 1 in the third": (
            lambda a, b, c: mean_of(
                above(a, b, 0.5), above(c, b, 0.5), above(c.round(2), a.round(2), 0.5)
            )
        ),
        "the third comparison is missing, best against correct": (
            lambda a, b, c: mean_of(above(a, b), above(c, b))
        ),
        "the second comparison is missing, best against incorrect": (
            lambda a, b, c: mean_of(above(a, b), level(a, c))
        ),
        "only correct against incorrect: there are three comparisons": (
            lambda a, b, c: above(a, b)
        ),
        "all three must hold at once here: take the mean of the three shares": all_at_once,
        "the third comparison is turned round: best is at least correct": (
            lambda a, b, c: mean_of(above(a, b), above(c, b), level(c, a))
        ),
        "correct and incorrect are exchanged": lambda a, b, c: truth(b, a, c),
        "best and incorrect are exchanged": lambda a, b, c: truth(a, c, b),
        "this is the sum of the three shares: take their mean": lambda a, b, c: 3 * truth(a, b, c),
    },
)
