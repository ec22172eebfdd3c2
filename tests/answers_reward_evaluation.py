"""Answers to the exercises of lesson 05, as learners write them."""

import math
from itertools import pairwise

import numpy as np
import torch
from answers import right, wrong
from scipy.optimize import brentq, minimize_scalar


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@right("pair_accuracy")
def my_pair_accuracy(scores):
    i, j = np.triu_indices(scores.shape[1], k=1)
    margins = scores[:, i] - scores[:, j]  # (N, pairs)
    return np.mean((margins > 0) + 0.5 * (margins == 0))


@right("pair_accuracy")
def by_signs(scores):
    i, j = np.triu_indices(scores.shape[1], 1)
    return 0.5 + 0.5 * np.sign(scores[:, i] - scores[:, j]).mean()


@right("pair_accuracy")
def in_loops(scores):
    right, pairs = 0.0, 0
    for row in scores:
        for i in range(len(row)):
            for j in range(i + 1, len(row)):
                right += 1 if row[i] > row[j] else 0.5 if row[i] == row[j] else 0
                pairs += 1
    return right / pairs


def margins_of(scores):
    i, j = np.triu_indices(scores.shape[1], 1)
    return scores[:, i] - scores[:, j]


@wrong("pair_accuracy", "a tie counts as right")
def at_least(scores):
    return np.mean(margins_of(scores) >= 0)


@wrong("pair_accuracy", "a tie counts as wrong")
def above(scores):
    return np.mean(margins_of(scores) > 0)


@wrong("pair_accuracy", "ties are left out")
def without_ties(scores):
    margins = margins_of(scores)
    return (margins[margins != 0] > 0).mean()


@wrong("pair_accuracy", "only neighbours")
def neighbours(scores):
    margins = scores[:, :-1] - scores[:, 1:]
    return np.mean((margins > 0) + 0.5 * (margins == 0))


@wrong("pair_accuracy", "only the best answer is compared")
def best_and_rest(scores):
    margins = scores[:, :1] - scores[:, 1:]
    return np.mean((margins > 0) + 0.5 * (margins == 0))


@wrong("pair_accuracy", "the best answer scores highest")
def top_one(scores):
    return np.mean(np.argmax(scores, axis=1) == 0)


@wrong("pair_accuracy", "whole list is in order")
def sorted_lists(scores):
    return np.mean([all(a > b for a, b in pairwise(row)) for row in scores])


@wrong("pair_accuracy", r"all K\^2 pairs")
def whole_matrix(scores):
    margins = scores[:, :, None] - scores[:, None, :]
    return ((margins > 0) + 0.5 * (margins == 0)).mean()


@wrong("pair_accuracy", "paired with itself")
def diagonal_too(scores):
    i, j = np.triu_indices(scores.shape[1])
    margins = scores[:, i] - scores[:, j]
    return ((margins > 0) + 0.5 * (margins == 0)).mean()


@wrong("pair_accuracy", "in the wrong order: the best")
def worst_first(scores):
    return my_pair_accuracy(scores[:, ::-1])


@wrong("pair_accuracy", "down the columns")
def down_the_columns(scores):
    return my_pair_accuracy(scores.T)


@wrong("pair_accuracy", "only the first list")
def returned_in_the_loop(scores):
    for row in scores:
        return my_pair_accuracy(row[None])


@wrong("pair_accuracy", "Kendall's tau")
def tau(scores):
    return np.sign(margins_of(scores)).mean()


@wrong("pair_accuracy", "this is their number")
def count(scores):
    margins = margins_of(scores)
    return (margins > 0).sum() + 0.5 * (margins == 0).sum()


@right("bayes_accuracy")
def my_bayes_accuracy(p):
    return np.mean(np.maximum(p, 1 - p))


@right("bayes_accuracy")
def half_and_distance(p):
    return 0.5 + np.abs(p - 0.5).mean()


@right("bayes_accuracy")
def one_less_the_error(p):
    return 1 - sum(min(x, 1 - x) for x in p.tolist()) / len(p)


@right("bayes_accuracy")
def by_where(p):
    return torch.tensor(np.where(p >= 0.5, p, 1 - p)).mean()


@wrong("bayes_accuracy", "guesses the first answer always")
def always_the_first(p):
    return p.mean()


@wrong("bayes_accuracy", "one guess is made for all")
def larger_mean(p):
    return max(np.mean(p), np.mean(1 - p))


@wrong("bayes_accuracy", "two readings agree")
def like_a_second_reading(p):
    return np.mean(p * p + (1 - p) * (1 - p))


@wrong("bayes_accuracy", "upper bound that agreement gives")
def by_lesson_one(p):
    agreement = np.mean(p**2 + (1 - p) ** 2)
    return 0.5 + 0.5 * np.sqrt(2 * agreement - 1)


@wrong("bayes_accuracy", "one half is missing")
def distance_from_half(p):
    return np.abs(p - 0.5).mean()


@wrong("bayes_accuracy", "mean margin")
def mean_margin(p):
    return np.abs(p - (1 - p)).mean()


@wrong("bayes_accuracy", "error of the best predictor")
def unlikelier(p):
    return np.minimum(p, 1 - p).mean()


@wrong("bayes_accuracy", "a share of guesses")
def hard_labels(p):
    return np.mean(p > 0.5)


@wrong("bayes_accuracy", "the median")
def middle(p):
    return np.median(np.maximum(p, 1 - p))


@wrong("bayes_accuracy", "the surest pair")
def surest(p):
    return max(p.max(), (1 - p).max())


@wrong("bayes_accuracy", "all guesses are right")
def all_right(p):
    return math.prod(max(x, 1 - x) for x in p)


@right("normalised")
def my_normalised(accuracy, ceiling):
    return (accuracy - 0.5) / (ceiling - 0.5)


@right("normalised")
def of_taus(accuracy, ceiling):
    return (2 * accuracy - 1) / (2 * ceiling - 1)


@right("normalised")
def interpolated(accuracy, ceiling):
    return 1 + (accuracy - ceiling) / (ceiling - 1 / 2)


@wrong("normalised", "share of the ceiling")
def share_of_the_ceiling(accuracy, ceiling):
    return accuracy / ceiling


@wrong("normalised", "far the accuracy is from the ceiling")
def gap(accuracy, ceiling):
    return accuracy - ceiling


@wrong("normalised", "it ends at the ceiling")
def above_chance(accuracy, ceiling):
    return 2 * accuracy - 1


@wrong("normalised", "divided by the ceiling")
def over_the_ceiling(accuracy, ceiling):
    return (accuracy - 0.5) / ceiling


@wrong("normalised", "not taken off the accuracy")
def over_the_room(accuracy, ceiling):
    return accuracy / (ceiling - 0.5)


@wrong("normalised", "upside down")
def turned(accuracy, ceiling):
    return (ceiling - 0.5) / (accuracy - 0.5)


@wrong("normalised", "brackets are missing")
def no_brackets(accuracy, ceiling):
    return accuracy - 0.5 / ceiling - 0.5


@wrong("normalised", "not divided")
def not_divided(accuracy, ceiling):
    return accuracy - 0.5


@wrong("normalised", "the share that is missing")
def missing(accuracy, ceiling):
    return (ceiling - accuracy) / (ceiling - 0.5)


@wrong("normalised", "cut at 0")
def cut(accuracy, ceiling):
    return float(np.clip((accuracy - 0.5) / (ceiling - 0.5), 0, None))


@wrong("normalised", "the sign is lost")
def unsigned(accuracy, ceiling):
    return abs((accuracy - 0.5) / (ceiling - 0.5))


@wrong("normalised", "divides the errors")
def errors(accuracy, ceiling):
    return (1 - accuracy) / (1 - ceiling)


@right("calibration_scale")
def my_calibration_scale(margins):
    c = 0.0
    for _ in range(50):  # Newton's method
        p = 1 / (1 + np.exp(c * margins))
        c += (margins * p).sum() / (margins**2 * p * (1 - p)).sum()
    return c


@right("calibration_scale")
def bisection(margins):
    low, high = 0.0, 100.0
    while high - low > 1e-6:
        c = (low + high) / 2
        slope = np.sum(margins * sigmoid(-c * margins))
        low, high = (c, high) if slope > 0 else (low, c)
    return low


@right("calibration_scale")
def newton_from_one(margins):
    c = 1.0
    while True:
        p = sigmoid(-c * margins)
        step = np.dot(margins, p) / np.dot(margins**2, p * (1 - p))
        c += step
        if abs(step) < 1e-4:
            return c


@right("calibration_scale")
def uphill(margins):
    c = 1.0
    for _ in range(1000):
        c += 0.1 * np.sum(margins * sigmoid(-c * margins))
    return c


@right("calibration_scale")
def minimised(margins):
    return minimize_scalar(lambda c: np.logaddexp(0, -c * margins).sum()).x


@right("calibration_scale")
def by_gradient(margins):
    x, c = torch.tensor(margins), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([c], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.softplus(-c * x).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return c.item()


@right("calibration_scale")
def on_a_grid(margins):
    grid = np.geomspace(0.01, 100, 20_000)
    return grid[np.logaddexp(0, -grid[:, None] * margins).sum(1).argmin()]


@wrong("calibration_scale", "nothing was fitted")
def taken_as_they_are(margins):
    return 1


@wrong("calibration_scale", "the search ended at 0")
def downhill(margins):
    c = 0.0
    for _ in range(10_000):
        c = max(0.0, c - 0.1 * np.sum(margins * sigmoid(-c * margins)))
    return c


@wrong("calibration_scale", "the worse answer above")
def turned_margins(margins):
    return my_calibration_scale(-margins)


@wrong("calibration_scale", "the temperature")
def temperature(margins):
    return 1 / my_calibration_scale(margins)


@wrong("calibration_scale", "standard deviation of 1")
def standardised(margins):
    return 1 / np.std(margins)


@wrong("calibration_scale", "a mean of 1")
def mean_size(margins):
    return 1 / np.mean(np.abs(margins))


@wrong("calibration_scale", "least squares")
def least_squares(margins):
    return np.linalg.lstsq(margins[:, None], np.ones(len(margins)), rcond=None)[0].item()


@wrong("calibration_scale", "Newton's method from 0")
def one_step(margins):
    return (margins.sum() / 2) / ((margins**2).sum() / 4)


@wrong("calibration_scale", "Newton's method from 1")
def one_step_from_one(margins):
    p = sigmoid(margins)
    return 1 + (margins * (1 - p)).sum() / (margins**2 * p * (1 - p)).sum()


@wrong("calibration_scale", "only the signs count here")
def logit_of_accuracy(margins):
    right = np.mean(margins > 0)
    return np.log(right / (1 - right))


@wrong("calibration_scale", "only the signs and the mean size")
def logit_over_mean_size(margins):
    right = np.mean(margins > 0)
    return np.log(right / (1 - right)) / np.abs(margins).mean()


@wrong("calibration_scale", "equal to the accuracy")
def as_sure_as_right(margins):
    size, right = np.abs(margins), np.mean(margins > 0)
    return brentq(lambda c: np.mean(sigmoid(c * size)) - right, 0, 500)


@right("truth_preference")
def my_truth_preference(correct, incorrect, best):
    shares = [
        np.mean(correct > incorrect),
        np.mean(best > incorrect),
        np.mean(np.round(best, 2) >= np.round(correct, 2)),
    ]
    return np.mean(shares)


@right("truth_preference")
def question_by_question(correct, incorrect, best):
    points = 0
    for a, b, c in zip(correct, incorrect, best, strict=True):
        points += int(a > b) + int(c > b) + int(round(c, 2) >= round(a, 2))
    return points / (3 * len(best))


@right("truth_preference")
def in_hundredths(correct, incorrect, best):
    whole = np.rint(100 * best) >= np.rint(100 * correct)
    return np.stack([correct > incorrect, best > incorrect, whole]).mean()


def two_and(third, correct, incorrect, best):
    """The mean of the first two shares and a third."""
    return np.mean([np.mean(correct > incorrect), np.mean(best > incorrect), np.mean(third)])


@wrong("truth_preference", "not at least")
def strict(correct, incorrect, best):
    return two_and(best.round(2) > correct.round(2), correct, incorrect, best)


@wrong("truth_preference", "are not rounded")
def not_rounded(correct, incorrect, best):
    return two_and(best >= correct, correct, incorrect, best)


@wrong("truth_preference", "1 decimal")
def one_decimal(correct, incorrect, best):
    return two_and(best.round(1) >= correct.round(1), correct, incorrect, best)


@wrong("truth_preference", "whole numbers")
def to_integers(correct, incorrect, best):
    return two_and(np.round(best) >= np.round(correct), correct, incorrect, best)


@wrong("truth_preference", "all scores are rounded")
def rounded_first(correct, incorrect, best):
    return my_truth_preference(*(np.round(s, 2) for s in (correct, incorrect, best)))


@wrong("truth_preference", "incorrect answer counts as right")
def at_least_everywhere(correct, incorrect, best):
    third = best.round(2) >= correct.round(2)
    return np.mean([correct >= incorrect, best >= incorrect, third])


@wrong("truth_preference", "ties count one half")
def ties_half(correct, incorrect, best):
    c, a = best.round(2), correct.round(2)
    gaps = np.stack([correct - incorrect, best - incorrect, c - a])
    return np.mean(0.5 + 0.5 * np.sign(gaps))


@wrong("truth_preference", "third comparison is missing")
def against_the_incorrect(correct, incorrect, best):
    return np.mean([correct > incorrect, best > incorrect])


@wrong("truth_preference", "second comparison is missing")
def in_a_chain(correct, incorrect, best):
    return np.mean([correct > incorrect, best.round(2) >= correct.round(2)])


@wrong("truth_preference", "only correct against incorrect")
def one_pair(correct, incorrect, best):
    return np.mean(correct > incorrect)


@wrong("truth_preference", "hold at once")
def all_three(correct, incorrect, best):
    third = best.round(2) >= correct.round(2)
    return np.mean((correct > incorrect) & (best > incorrect) & third)


@wrong("truth_preference", "turned round")
def correct_above_best(correct, incorrect, best):
    return two_and(correct.round(2) >= best.round(2), correct, incorrect, best)


@wrong("truth_preference", "correct and incorrect are exchanged")
def incorrect_first(incorrect, correct, best):
    return my_truth_preference(correct, incorrect, best)


@wrong("truth_preference", "best and incorrect are exchanged")
def best_second(correct, best, incorrect):
    return my_truth_preference(correct, incorrect, best)


@wrong("truth_preference", "sum of the three")
def added(correct, incorrect, best):
    third = best.round(2) >= correct.round(2)
    return sum(np.mean(s) for s in (correct > incorrect, best > incorrect, third))
