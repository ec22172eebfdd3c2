"""Answers to the exercises of lesson 09, as learners write them."""

import math

import numpy as np
import torch
from answers import right, wrong
from torch.nn.functional import logsigmoid, softplus


@right("dpo_loss")
def my_dpo_loss(better, worse, ref_better, ref_worse, beta):
    margin = (better - ref_better) - (worse - ref_worse)
    return -logsigmoid(beta * margin).mean()


@right("dpo_loss")
def by_softplus(better, worse, ref_better, ref_worse, beta):
    return softplus(-beta * ((better - worse) - (ref_better - ref_worse))).mean()


@right("dpo_loss")
def dpo_in_numpy(better, worse, ref_better, ref_worse, beta):
    margin = (better - worse - ref_better + ref_worse).numpy()
    return np.logaddexp(0, -beta * margin).mean()


@wrong("dpo_loss", "the reference is missing")
def without_reference(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * (better - worse)).mean()


@wrong("dpo_loss", "the reference is added")
def reference_added(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * ((better + ref_better) - (worse + ref_worse))).mean()


@wrong("dpo_loss", "swapped")
def upside_down(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * ((worse - ref_worse) - (better - ref_better))).mean()


@wrong("dpo_loss", "beta is missing")
def without_beta(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid((better - ref_better) - (worse - ref_worse)).mean()


@wrong("dpo_loss", "divided by beta")
def over_beta(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(((better - ref_better) - (worse - ref_worse)) / beta).mean()


@wrong("dpo_loss", "beta stands outside")
def beta_outside(better, worse, ref_better, ref_worse, beta):
    return -beta * logsigmoid((better - ref_better) - (worse - ref_worse)).mean()


@wrong("dpo_loss", "beta multiplies log pi only")
def beta_of_pi(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * better - ref_better - beta * worse + ref_worse).mean()


@wrong("dpo_loss", "logarithm is missing")
def no_logarithm(better, worse, ref_better, ref_worse, beta):
    return -torch.sigmoid(beta * ((better - ref_better) - (worse - ref_worse))).mean()


@wrong("dpo_loss", "the wrong order")
def wrong_order(better, worse, ref_better, ref_worse, beta):
    margin = (better - ref_better) - (worse - ref_worse)
    return (1 - torch.sigmoid(beta * margin)).mean()


@wrong("dpo_loss", "the sign")
def likelihood(better, worse, ref_better, ref_worse, beta):
    return logsigmoid(beta * ((better - ref_better) - (worse - ref_worse))).mean()


@wrong("dpo_loss", r"log\(sigmoid\) is -inf")
def naive_logarithm(better, worse, ref_better, ref_worse, beta):
    margin = (better - ref_better) - (worse - ref_worse)
    return -torch.log(torch.sigmoid(beta * margin)).mean()


@wrong("dpo_loss", r"log\(sigmoid\) is -inf")
def with_math(better, worse, ref_better, ref_worse, beta):
    margins = ((better - ref_better) - (worse - ref_worse)).tolist()
    return sum(math.log(1 + math.exp(-beta * x)) for x in margins) / len(margins)


@wrong("dpo_loss", "the sum over pairs")
def dpo_summed(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * ((better - ref_better) - (worse - ref_worse))).sum()


@wrong("dpo_loss", "before the loss")
def mean_first(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * ((better - ref_better) - (worse - ref_worse)).mean())


@wrong("dpo_loss", "as in IPO")
def ipo(better, worse, ref_better, ref_worse, beta):
    return (((better - ref_better) - (worse - ref_worse) - 1 / (2 * beta)) ** 2).mean()


@wrong("dpo_loss", "ratio of the logarithms")
def divided_logarithms(better, worse, ref_better, ref_worse, beta):
    return -logsigmoid(beta * (better / ref_better - worse / ref_worse)).mean()


@right("kwise_dpo_loss")
def my_kwise_dpo_loss(ratios, beta):
    scores = beta * ratios
    return sum(scores[k:].logsumexp(0) - scores[k] for k in range(len(scores)))


@right("kwise_dpo_loss")
def by_cumulative_sums(ratios, beta):
    scores = beta * ratios
    return (scores.flip(0).logcumsumexp(0).flip(0) - scores).sum()


@right("kwise_dpo_loss")
def place_by_place(ratios, beta):
    scores, loss = (beta * ratios).tolist(), 0.0
    while scores:
        top = max(scores)
        loss += top + math.log(sum(math.exp(s - top) for s in scores)) - scores.pop(0)
    return loss


@wrong("kwise_dpo_loss", "all pairs are counted")
def every_pair(ratios, beta):
    s = beta * ratios
    return sum(softplus(s[j] - s[i]) for i in range(len(s)) for j in range(i + 1, len(s)))


@wrong("kwise_dpo_loss", "only the first place")
def first_place(ratios, beta):
    return (beta * ratios).logsumexp(0) - beta * ratios[0]


@wrong("kwise_dpo_loss", "only neighbours")
def neighbours(ratios, beta):
    return -logsigmoid(beta * (ratios[:-1] - ratios[1:])).sum()


@wrong("kwise_dpo_loss", "only best and worst")
def extremes(ratios, beta):
    return -logsigmoid(beta * (ratios[0] - ratios[-1]))


@wrong("kwise_dpo_loss", "one by itself")
def best_against_each(ratios, beta):
    return -logsigmoid(beta * (ratios[0] - ratios[1:])).sum()


@wrong("kwise_dpo_loss", "no answer leaves")
def nobody_leaves(ratios, beta):
    return -torch.log_softmax(beta * ratios, 0).sum()


@wrong("kwise_dpo_loss", "the wrong end")
def from_the_worst(ratios, beta):
    s = beta * ratios
    return (s.logcumsumexp(0) - s).sum()


@wrong("kwise_dpo_loss", "beta is missing")
def kwise_without_beta(ratios, beta):
    return my_kwise_dpo_loss(ratios, 1)


@wrong("kwise_dpo_loss", "divided by beta")
def kwise_over_beta(ratios, beta):
    return my_kwise_dpo_loss(ratios, 1 / beta)


@wrong("kwise_dpo_loss", "beta stands outside")
def kwise_beta_outside(ratios, beta):
    return beta * my_kwise_dpo_loss(ratios, 1)


@wrong("kwise_dpo_loss", "the number of places")
def per_place(ratios, beta):
    return my_kwise_dpo_loss(ratios, beta) / (len(ratios) - 1)


@wrong("kwise_dpo_loss", "the number of answers")
def per_answer(ratios, beta):
    s = beta * ratios
    return (s.flip(0).logcumsumexp(0).flip(0) - s).mean()


@wrong("kwise_dpo_loss", "the sign")
def log_probability(ratios, beta):
    return -my_kwise_dpo_loss(ratios, beta)


@wrong("kwise_dpo_loss", "this is the probability")
def probability(ratios, beta):
    return torch.exp(-my_kwise_dpo_loss(ratios, beta))


@wrong("kwise_dpo_loss", "overflows or vanishes")
def by_exponentials(ratios, beta):
    weights = torch.exp(beta * ratios)
    return -sum(torch.log(weights[k] / weights[k:].sum()) for k in range(len(weights)))


@right("predicting_places")
def my_predicting_places(segments):
    prompt_end = int((segments == 0).sum()) - 1
    places = []
    for t in range(prompt_end + 1, len(segments)):
        begins = segments[t] != segments[t - 1]
        places.append(prompt_end if begins else t - 1)
    return torch.tensor(places)


@right("predicting_places")
def by_where(segments):
    place = torch.arange(len(segments))
    end = (segments > 0).nonzero()[0, 0] - 1
    begins = segments != torch.cat([segments[:1], segments[:-1]])
    return torch.where(begins, end, place - 1)[segments > 0]


@right("predicting_places")
def as_a_list(segments):
    row = segments.tolist()
    end = row.count(0) - 1
    return [end if row[t] != row[t - 1] else t - 1 for t in range(end + 1, len(row))]


def behind_the_prompt(segments):
    return range(int((segments == 0).sum()), len(segments))


@wrong("predicting_places", "also where an answer begins")
def always_the_one_before(segments):
    return torch.tensor([t - 1 for t in behind_the_prompt(segments)])


@wrong("predicting_places", "these are the places of the tokens")
def own_place(segments):
    return torch.nonzero(segments)[:, 0]


@wrong("predicting_places", "by the prompt's last: only the first")
def all_from_the_prompt(segments):
    end = int((segments == 0).sum()) - 1
    return torch.full((len(segments) - end - 1,), end)


@wrong("predicting_places", "one too far")
def one_too_far(segments):
    return my_predicting_places(segments) + 1


@wrong("predicting_places", "the state behind a token")
def one_behind(segments):
    return torch.tensor([t + 1 for t in behind_the_prompt(segments)])


@wrong("predicting_places", "first token is left out")
def without_firsts(segments):
    row = segments.tolist()
    return torch.tensor([t - 1 for t in range(1, len(row)) if row[t] and row[t] == row[t - 1]])


@wrong("predicting_places", "not its first")
def from_the_start(segments):
    row = segments.tolist()
    return [0 if row[t] != row[t - 1] else t - 1 for t in behind_the_prompt(segments)]


@wrong("predicting_places", "this is the place behind it")
def off_by_one_at_starts(segments):
    row, end = segments.tolist(), int((segments == 0).sum())
    return [end if row[t] != row[t - 1] else t - 1 for t in behind_the_prompt(segments)]


@wrong("predicting_places", "prompt tokens are in it")
def prompt_too(segments):
    end = int((segments == 0).sum()) - 1
    return [*range(end), *my_predicting_places(segments).tolist()]


@wrong("predicting_places", "counted from 0")
def within_answers(segments):
    return my_predicting_places(segments) - int((segments == 0).sum())


def type_of(name):
    return name.split(".")[-2]


@right("top_of_each_type")
def my_top_of_each_type(scores, count):
    kinds = {}
    for name in scores:
        kinds.setdefault(name.removesuffix(".weight").rpartition(".")[2], []).append(name)
    chosen = set()
    for names in kinds.values():
        chosen.update(sorted(names, key=scores.get, reverse=True)[:count])
    return [name for name in scores if name in chosen]


@right("top_of_each_type")
def by_counting_better_ones(scores, count):
    def better(name):
        return [o for o in scores if type_of(o) == type_of(name) and scores[o] > scores[name]]

    return [name for name in scores if len(better(name)) < count]


def best_names(scores, names, count):
    return set(sorted(names, key=lambda name: -scores[name])[:count])


def grouped(scores, count, key):
    groups = {}
    for name in scores:
        groups.setdefault(key(name), []).append(name)
    chosen = set().union(*(best_names(scores, names, count) for names in groups.values()))
    return [name for name in scores if name in chosen]


@wrong("top_of_each_type", "so many over all types")
def over_all_types(scores, count):
    kinds = {type_of(name) for name in scores}
    chosen = best_names(scores, scores, count * len(kinds))
    return [name for name in scores if name in chosen]


@wrong("top_of_each_type", "so many in all")
def count_in_all(scores, count):
    chosen = best_names(scores, scores, count)
    return [name for name in scores if name in chosen]


@wrong("top_of_each_type", "every name ends in .weight")
def by_the_last_part(scores, count):
    return grouped(scores, count, lambda name: name.rpartition(".")[2])


@wrong("top_of_each_type", "the lowest")
def lowest(scores, count):
    return grouped({name: -score for name, score in scores.items()}, count, type_of)


@wrong("top_of_each_type", "within each layer")
def within_layers(scores, count):
    return grouped(scores, count, lambda name: name.split(".")[2])


@wrong("top_of_each_type", "attention and mlp")
def two_types(scores, count):
    return grouped(scores, count, lambda name: "mlp" in name)


@wrong("top_of_each_type", "one of each type")
def best_of_each(scores, count):
    return grouped(scores, 1, type_of)


@wrong("top_of_each_type", "one too few")
def too_few(scores, count):
    return grouped(scores, count - 1, type_of)


@wrong("top_of_each_type", "one too many")
def too_many(scores, count):
    return grouped(scores, count + 1, type_of)


@wrong("top_of_each_type", "in the order of the scores")
def by_score(scores, count):
    return sorted(grouped(scores, count, type_of), key=lambda name: -scores[name])


@wrong("top_of_each_type", "type by type")
def by_type(scores, count):
    kinds = dict.fromkeys(type_of(name) for name in scores)
    chosen = grouped(scores, count, type_of)
    return [name for kind in kinds for name in chosen if type_of(name) == kind]


@wrong("top_of_each_type", "alphabet")
def alphabetical(scores, count):
    return sorted(grouped(scores, count, type_of))
