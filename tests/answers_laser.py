"""Answers to the exercises of lesson 08, as learners write them."""

import math

import numpy as np
import torch
from answers import right, wrong


@right("noise_edge")
def my_noise_edge(values, shape, law_median):
    n, m = shape
    s = values.median() / (law_median * math.sqrt(max(n, m)))
    return s * (math.sqrt(n) + math.sqrt(m))


@right("noise_edge")
def by_aspect_ratio(values, shape, law_median):
    beta = min(shape) / max(shape)
    return values.quantile(0.5) / law_median * (1 + beta**0.5)


@right("noise_edge")
def edge_in_numpy(values, shape, law_median):
    return np.median(values.numpy()) * np.sqrt(shape).sum() / law_median / np.sqrt(max(shape))


@wrong("noise_edge", "taken to be the median")
def median_times_roots(values, shape, law_median):
    return values.median() * (shape[0] ** 0.5 + shape[1] ** 0.5)


@wrong("noise_edge", "law_median is missing")
def without_the_law(values, shape, law_median):
    return values.median() * (1 + math.sqrt(min(shape) / max(shape)))


@wrong("noise_edge", "multiplied by law_median")
def times_the_law(values, shape, law_median):
    s = values.median() * law_median / max(shape) ** 0.5
    return s * (shape[0] ** 0.5 + shape[1] ** 0.5)


@wrong("noise_edge", r"with sqrt\(min")
def smaller_side(values, shape, law_median):
    s = values.median() / (law_median * math.sqrt(min(shape)))
    return s * (shape[0] ** 0.5 + shape[1] ** 0.5)


@wrong("noise_edge", "the unit is s max")
def without_a_root(values, shape, law_median):
    return values.median() / (law_median * max(shape)) * (shape[0] ** 0.5 + shape[1] ** 0.5)


@wrong("noise_edge", "this is s: ")
def spread_itself(values, shape, law_median):
    return values.median() / law_median / max(shape) ** 0.5


@wrong("noise_edge", "adds both roots")
def one_root(values, shape, law_median):
    return values.median() / law_median


@wrong("noise_edge", "lower edge")
def lower_edge(values, shape, law_median):
    n, m = sorted(shape)
    return values.median() / (law_median * m**0.5) * (m**0.5 - n**0.5)


@wrong("noise_edge", "under one root")
def root_of_the_sum(values, shape, law_median):
    return values.median() / (law_median * max(shape) ** 0.5) * (shape[0] + shape[1]) ** 0.5


@wrong("noise_edge", "roots are missing")
def plain_sum(values, shape, law_median):
    return values.median() / (law_median * max(shape) ** 0.5) * (shape[0] + shape[1])


@wrong("noise_edge", "those of the larger side")
def as_if_square(values, shape, law_median):
    return 2 * values.median() / law_median


@wrong("noise_edge", "their median belongs")
def from_the_mean(values, shape, law_median):
    s = values.mean() / (law_median * max(shape) ** 0.5)
    return s * (shape[0] ** 0.5 + shape[1] ** 0.5)


@wrong("noise_edge", "laserRMT's rule")
def published(values, shape, law_median):
    q25, q75 = np.percentile(values.numpy(), [25, 75])
    return (q75 - q25) / 1.349 * (1 + math.sqrt(min(shape) / max(shape)))


@right("snr")
def my_snr(values, edge):
    signal = values > edge
    return values[signal].sum() / values[~signal].sum()


@right("snr")
def in_plain_python(values, edge):
    kept = [float(v) for v in values if v > edge]
    rest = [float(v) for v in values if v <= edge]
    return sum(kept) / sum(rest)


@right("snr")
def by_masks(values, edge):
    return (values * (values > edge)).sum() / (values * (values <= edge)).sum()


@wrong("snr", "upside down")
def noise_to_signal(values, edge):
    return values[values <= edge].sum() / values[values > edge].sum()


@wrong("snr", "on the edge")
def edge_is_signal(values, edge):
    signal = values >= edge
    return values[signal].sum() / values[~signal].sum()


@wrong("snr", "counted")
def how_many(values, edge):
    return (values > edge).sum() / (values <= edge).sum()


@wrong("snr", "means are divided")
def ratio_of_means(values, edge):
    return values[values > edge].mean() / values[values <= edge].mean()


@wrong("snr", "squared")
def of_energies(values, edge):
    return (values[values > edge] ** 2).sum() / (values[values <= edge] ** 2).sum()


@wrong("snr", "roots of the sums")
def of_norms(values, edge):
    return values[values > edge].norm() / values[values <= edge].norm()


@wrong("snr", "the sum of all values")
def share(values, edge):
    return values[values > edge].sum() / values.sum()


@wrong("snr", "all values are in the numerator")
def all_over_noise(values, edge):
    return values.sum() / values[values <= edge].sum()


@wrong("snr", "Spectrum's score")
def spectrum(values, edge):
    return values[values > edge].sum() / values[values <= edge].sum() / values[0]


@wrong("snr", "divided by the edge")
def over_the_edge(values, edge):
    return values[values > edge].sum() / edge


@wrong("snr", "subtracted from the signal")
def excess(values, edge):
    return torch.relu(values - edge).sum() / values[values <= edge].sum()


@wrong("snr", "the logarithm")
def logarithm(values, edge):
    return torch.log(values[values > edge].sum() / values[values <= edge].sum())


@wrong("snr", "decibels")
def decibels(values, edge):
    return 10 * torch.log10(values[values > edge].sum() / values[values <= edge].sum())


@right("largest_rank")
def my_largest_rank(n, m):
    return (n * m - 1) // (n + m)


@right("largest_rank")
def by_trial(n, m):
    rank = 0
    while (rank + 1) * (n + m) < n * m:
        rank += 1
    return rank


@right("largest_rank")
def by_ceiling(n, m):
    return math.ceil(n * m / (n + m)) - 1


@wrong("largest_rank", "fewer is asked for")
def floor(n, m):
    return n * m // (n + m)


@wrong("largest_rank", "to the nearest")
def nearest(n, m):
    return round(n * m / (n + m))


@wrong("largest_rank", "rounded up")
def ceiling(n, m):
    return math.ceil(n * m / (n + m))


@wrong("largest_rank", "whole number")
def not_rounded(n, m):
    return n * m / (n + m)


@wrong("largest_rank", "less one, everywhere")
def floor_less_one(n, m):
    return n * m // (n + m) - 1


@wrong("largest_rank", "square matrices only")
def half(n, m):
    return min(n, m) // 2


@wrong("largest_rank", "this is the full rank")
def full(n, m):
    return min(n, m)


@wrong("largest_rank", "full rank less one")
def nearly_full(n, m):
    return min(n, m) - 1


@wrong("largest_rank", "the singular values are counted")
def three_parts(n, m):
    rank = 0
    while (rank + 1) * (n + m + 1) < n * m:
        rank += 1
    return rank


@wrong("largest_rank", "the larger side is counted")
def twice_the_larger(n, m):
    rank = 0
    while (rank + 1) * 2 * max(n, m) < n * m:
        rank += 1
    return rank


@wrong("largest_rank", "the smaller side is counted")
def twice_the_smaller(n, m):
    rank = 0
    while (rank + 1) * 2 * min(n, m) < n * m:
        rank += 1
    return rank


@wrong("largest_rank", "in place of n m")
def sides(n, m):
    return (n + m) // min(n, m)


@right("out_of_bag")
def my_out_of_bag(gains, drawn):
    best = gains[:, drawn].mean(1).argmax()
    out = torch.ones(gains.shape[1], dtype=torch.bool)
    out[drawn] = False
    return gains[best, out].mean()


@right("out_of_bag")
def by_sets(gains, drawn):
    left = sorted(set(range(gains.shape[1])) - set(drawn.tolist()))
    return gains[gains[:, drawn].sum(1).argmax()][left].mean()


@right("out_of_bag")
def bag_in_numpy(gains, drawn):
    table, items = gains.numpy(), drawn.numpy()
    best = table[:, items].mean(axis=1).argmax()
    return np.delete(table[best], np.unique(items)).mean()


@wrong("out_of_bag", "on the items that chose it")
def winner(gains, drawn):
    return gains[:, drawn].mean(1).max()


@wrong("out_of_bag", "judged on all items")
def on_everything(gains, drawn):
    return gains[gains[:, drawn].mean(1).argmax()].mean()


def left_out(gains, drawn):
    return [i for i in range(gains.shape[1]) if i not in drawn.tolist()]


@wrong("out_of_bag", "chosen on the items that judge it")
def peeking(gains, drawn):
    return gains[:, left_out(gains, drawn)].mean(1).max()


@wrong("out_of_bag", "chosen on all items: choose")
def chosen_on_all(gains, drawn):
    return gains[gains.mean(1).argmax()][left_out(gains, drawn)].mean()


@wrong("out_of_bag", "and judged on them")
def no_split(gains, drawn):
    return gains.mean(1).max()


@wrong("out_of_bag", "counts twice in the choice")
def each_once(gains, drawn):
    best = gains[:, drawn.unique()].mean(1).argmax()
    return gains[best][left_out(gains, drawn)].mean()


@wrong("out_of_bag", "swapped")
def swapped(gains, drawn):
    best = gains[:, left_out(gains, drawn)].mean(1).argmax()
    return gains[best, drawn].mean()


@wrong("out_of_bag", "the worst candidate")
def worst(gains, drawn):
    return gains[gains[:, drawn].mean(1).argmin()][left_out(gains, drawn)].mean()


@wrong("out_of_bag", "best single item")
def luckiest(gains, drawn):
    best = gains[:, drawn].max(1).values.argmax()
    return gains[best][left_out(gains, drawn)].mean()


@wrong("out_of_bag", "the sum of the gains")
def summed(gains, drawn):
    return gains[gains[:, drawn].mean(1).argmax()][left_out(gains, drawn)].sum()


@wrong("out_of_bag", "the number of all items")
def masked_mean(gains, drawn):
    mask = torch.ones(gains.shape[1])
    mask[drawn] = 0
    return (gains[gains[:, drawn].mean(1).argmax()] * mask).mean()


@wrong("out_of_bag", "over all candidates")
def averaged(gains, drawn):
    return gains[:, left_out(gains, drawn)].mean()


@wrong("out_of_bag", "how much of the gain is luck")
def luck(gains, drawn):
    best = gains[:, drawn].mean(1).argmax()
    return gains[best, drawn].mean() - gains[best][left_out(gains, drawn)].mean()
