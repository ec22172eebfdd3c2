"""Answers to the exercises of lesson 01, as learners write them."""

# ruff: noqa: B905, RUF059

import math
import re

import numpy as np
from answers import right, wrong


@right("split_prompt")
def by_hand(prompt):
    if prompt.endswith("\n\nAssistant:"):
        prompt += " "
    turns = []
    while prompt != "\n\nAssistant: ":
        for tag, role in (("\n\nHuman: ", "user"), ("\n\nAssistant: ", "assistant")):
            if prompt.startswith(tag):
                prompt = prompt.removeprefix(tag)
                if turns and turns[-1][0] == role:
                    turns[-1][1] += tag
                else:
                    turns.append([role, ""])
                break
        else:
            turns[-1][1] += prompt[0]
            prompt = prompt[1:]
    return turns


@wrong("split_prompt", "the authors' rule")
def authors(prompt):
    texts = re.split(r"\n\nHuman: |\n\nAssistant: ", prompt)[1:-1]
    return [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


@wrong("split_prompt", "follow the count")
def counting(prompt):
    texts = re.split(r"\n\nHuman: |\n\nAssistant: ?", prompt)[1:-1]
    roles = ["user", "assistant"] * len(texts)
    return list(zip(roles, texts))


def pieces(prompt):
    found = re.findall(
        r"\n\n(Human|Assistant): ?(.*?)(?=\n\nHuman: |\n\nAssistant:|\Z)", prompt, re.S
    )
    return [("user" if who == "Human" else "assistant", text) for who, text in found]


@wrong("split_prompt", "begins no new turn")
def every_tag_a_turn(prompt):
    return pieces(prompt)[:-1]


@wrong("split_prompt", "is lost")
def joined(prompt):
    turns = []
    for role, text in pieces(prompt)[:-1]:
        if turns and turns[-1][0] == role:
            text = turns.pop()[1] + text
        turns.append((role, text))
    return turns


@wrong("split_prompt", "left in the last text")
def tag_left_in_the_text(prompt):
    prompt = prompt.removesuffix("\n\nAssistant: ")
    return by_hand(prompt + "\n\nAssistant: ")


@wrong("split_prompt", "last question is lost")
def last_question_lost(prompt):
    if not prompt.endswith(" "):
        return by_hand(prompt + " ")[:-1]
    return by_hand(prompt)


@wrong("split_prompt", "the open tag at the end is no turn")
def open_turn_kept(prompt):
    return [*by_hand(prompt), ["assistant", ""]]


@wrong("split_prompt", "do not strip")
def stripping(prompt):
    return [(role, text.strip()) for role, text in by_hand(prompt)]


@wrong("split_prompt", "two line ends")
def tags_anywhere(prompt):
    return [
        [role, piece]
        for role, text in by_hand(prompt)
        for piece in re.split("Human: |Assistant: ", text)
    ]


@wrong("split_prompt", "are dicts")
def as_messages(prompt):
    return [{"role": role, "content": text} for role, text in by_hand(prompt)]


@wrong("split_prompt", 'called "user"')
def other_names(prompt):
    return [("Human" if role == "user" else "Assistant", text) for role, text in by_hand(prompt)]


@right("ranking_probability")
def running_rest(weights, order):
    p, rest = 1.0, sum(weights)
    for item in order:
        p *= weights[item] / rest
        rest -= weights[item]
    return p


@right("ranking_probability")
def exact_fractions(weights, order):
    from fractions import Fraction

    p = Fraction(1)
    for k in range(len(order)):
        p *= Fraction(weights[order[k]]) / Fraction(sum(weights[i] for i in order[k:]))
    return p


@right("ranking_probability")
def indexed(weights, order):
    left = weights[order]
    return np.prod(left / left[::-1].cumsum()[::-1])


@right("ranking_probability")
def as_in_the_lesson(weights, order):
    from fractions import Fraction

    p, rest = Fraction(1), sum(weights)
    for item in order:
        p, rest = p * Fraction(weights[item], rest), rest - weights[item]
    return p


@wrong("ranking_probability", "never shrinks")
def with_replacement(weights, order):
    return np.prod([weights[item] / sum(weights) for item in order])


@wrong("ranking_probability", "worst first")
def reversed_order(weights, order):
    return running_rest(weights, list(reversed(order)))


@wrong("ranking_probability", "each answer's rank")
def order_as_ranks(weights, order):
    return running_rest(weights, [list(order).index(place) for place in range(len(order))])


@wrong("ranking_probability", "the order plays no part")
def order_ignored(weights, order):
    p, rest = 1.0, sum(weights)
    for weight in weights:
        p, rest = p * weight / rest, rest - weight
    return p


@wrong("ranking_probability", "not scores")
def softmax_of_weights(weights, order):
    return running_rest(np.exp(np.array(weights)), order)


@wrong("ranking_probability", "are added")
def added(weights, order):
    p, rest = 0.0, sum(weights)
    for item in order:
        p, rest = p + weights[item] / rest, rest - weights[item]
    return p


@wrong("ranking_probability", "only the first choice")
def first_choice(weights, order):
    return weights[order[0]] / sum(weights)


@wrong("ranking_probability", "a product over pairs")
def product_of_pairs(weights, order):
    p = 1.0
    for i, better in enumerate(order):
        for worse in order[i + 1 :]:
            p *= weights[better] / (weights[better] + weights[worse])
    return p


@wrong("ranking_probability", "out of the sum too early")
def subtracts_too_early(weights, order):
    p, rest = 1.0, sum(weights)
    for item in order[:-1]:
        rest -= weights[item]
        p *= weights[item] / rest
    return p


@wrong("ranking_probability", "logarithm")
def in_logs(weights, order):
    return math.log(running_rest(weights, order))


@right("chi_square")
def pearson(counts):
    expected = sum(counts) / len(counts)
    return sum((n - expected) ** 2 / expected for n in counts)


@right("chi_square")
def of_an_array(counts):
    return ((counts - counts.mean()) ** 2 / counts.mean()).sum()


@wrong("chi_square", "not divided by N/K")
def undivided(counts):
    expected = sum(counts) / len(counts)
    return sum((n - expected) ** 2 for n in counts)


@wrong("chi_square", "by the counts found")
def neyman(counts):
    expected = sum(counts) / len(counts)
    return sum((n - expected) ** 2 / n for n in counts)


@wrong("chi_square", "divided by N:")
def over_n(counts):
    return sum((n - sum(counts) / len(counts)) ** 2 for n in counts) / sum(counts)


@wrong("chi_square", "N is taken for")
def n_expected(counts):
    return sum((n - sum(counts)) ** 2 / sum(counts) for n in counts)


@wrong("chi_square", "shares, where")
def of_shares(counts):
    shares = np.array(counts) / sum(counts)
    return np.sum((shares - 1 / len(counts)) ** 2 * len(counts))


@wrong("chi_square", "are not squared")
def absolute_deviations(counts):
    expected = sum(counts) / len(counts)
    return sum(abs(n - expected) for n in counts) / expected


@wrong("chi_square", "degrees of freedom")
def reduced(counts):
    return pearson(counts) / (len(counts) - 1)


@wrong("chi_square", "seven positions")
def always_seven(counts):
    expected = sum(counts) / 7
    return sum((n - expected) ** 2 / expected for n in counts)


@right("agreement")
def broadcasting(first, second):
    i, j = np.triu_indices(first.shape[1], 1)
    return ((first[:, i] < first[:, j]) == (second[:, i] < second[:, j])).mean()


@wrong("agreement", r"all K\^2 pairs")
def with_itself(first, second):
    a = first[:, :, None] < first[:, None, :]
    b = second[:, :, None] < second[:, None, :]
    return (a == b).mean()


@wrong("agreement", r"always agrees: j begins at i \+ 1")
def from_i(first, second):
    n, k = first.shape
    same = []
    for a, b in zip(first, second):
        for i in range(k):
            for j in range(i, k):
                same.append((a[i] < a[j]) == (b[i] < b[j]))
    return np.mean(same)


@wrong("agreement", "not among the K")
def from_i_over_pairs(first, second):
    n, k = first.shape
    same = 0
    for a, b in zip(first, second):
        same += sum((a[i] < a[j]) == (b[i] < b[j]) for i in range(k) for j in range(i, k))
    return same / (n * k * (k - 1) / 2)


@wrong("agreement", "equal ranks")
def same_ranks(first, second):
    return np.mean(first == second)


@wrong("agreement", "whole lists")
def same_lists(first, second):
    return np.mean([np.array_equal(a, b) for a, b in zip(first, second)])


@wrong("agreement", "only neighbours")
def neighbours(first, second):
    return np.mean(np.sign(np.diff(first)) == np.sign(np.diff(second)))


@wrong("agreement", "only the best answers")
def same_winner(first, second):
    return np.mean(np.argmin(first, 1) == np.argmin(second, 1))


@wrong("agreement", "down the columns")
def wrong_axis(first, second):
    i, j = np.triu_indices(len(first), 1)
    return ((first[i] < first[j]) == (second[i] < second[j])).mean()


@wrong("agreement", "only the first list")
def first_list(first, second):
    return broadcasting(first[:1], second[:1])


@wrong("agreement", "Kendall's tau")
def tau(first, second):
    i, j = np.triu_indices(first.shape[1], 1)
    signs = np.sign(first[:, i] - first[:, j]) * np.sign(second[:, i] - second[:, j])
    return signs.mean()


@wrong("agreement", "that disagrees")
def disagreement(first, second):
    i, j = np.triu_indices(first.shape[1], 1)
    return ((first[:, i] < first[:, j]) != (second[:, i] < second[:, j])).mean()


@wrong("agreement", r"divided by K\^2")
def over_all_squares(first, second):
    n, k = first.shape
    same = 0
    for a, b in zip(first, second):
        same += sum((a[i] < a[j]) == (b[i] < b[j]) for i in range(k) for j in range(i))
    return same / (n * k * k)


@wrong("agreement", "counted twice")
def twice(first, second):
    n, k = first.shape
    same = 0
    for a, b in zip(first, second):
        for i in range(k):
            for j in range(k):
                same += i != j and (a[i] < a[j]) == (b[i] < b[j])
    return same / (n * k * (k - 1) / 2)


@right("ceiling")
def solved(a):
    return max(np.roots([2, -2, 1 - a]).real)


@wrong("ceiling", "the agreement itself")
def lower_bound(a):
    return a


@wrong("ceiling", "the root is missing")
def no_root(a):
    return (1 + (2 * a - 1)) / 2


@wrong("ceiling", "both be wrong")
def root_of_agreement(a):
    return a**0.5


@wrong("ceiling", "the other root")
def smaller_root(a):
    return 0.5 - 0.5 * (2 * a - 1) ** 0.5


@wrong("ceiling", "this is 2q: ")
def not_halved(a):
    return 1 + np.sqrt(2 * a - 1)


@wrong("ceiling", "this is q - 1/2")
def no_one(a):
    return np.sqrt(2 * a - 1) / 2


@wrong("ceiling", "this is 2q - 1")
def just_the_root(a):
    return np.sqrt(2 * a - 1)


@wrong("ceiling", "the root is taken of a")
def root_of_a(a):
    return (1 + a**0.5) / 2


@wrong("ceiling", "here q is sought")
def forwards(q):
    return q * q + (1 - q) * (1 - q)
