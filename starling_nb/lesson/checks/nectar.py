"""The exercises of lesson 01: prompts, the chance of a ranking, and how far labels are to trust."""

import math
import re
from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement, pairwise, permutations, product

import numpy as np
from scipy.stats import chisquare

from starling_nb.data import bias
from starling_nb.data.chat import ASSISTANT_TAG, HUMAN_TAG, parse_prompt
from starling_nb.lesson.exercises import Exercise

Turns = list[tuple[str, str]]
ROLES = {HUMAN_TAG: "user", ASSISTANT_TAG: "assistant"}


def turns(prompt: str) -> Turns:
    """`parse_prompt` as (role, text) pairs."""
    return [(message["role"], message["content"]) for message in parse_prompt(prompt)[0]]


def by_place(texts: Sequence[str]) -> Turns:
    """Roles handed out in turn, whatever the tags say."""
    return [(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def tagged(prompt: str) -> list[tuple[str, str]]:
    """(tag, text) pairs of a prompt, its last space mended, without the open tag at the end."""
    prompt = prompt.rstrip() + " "
    parts = re.split(f"({HUMAN_TAG}|{ASSISTANT_TAG})", prompt)[1:-2]
    return list(zip(parts[::2], parts[1::2], strict=True))


def without_the_tag(prompt: str) -> Turns:
    """A repeated tag joins two texts and is lost."""
    found: Turns = []
    for tag, text in tagged(prompt):
        if found and found[-1][0] == ROLES[tag]:
            found[-1] = (ROLES[tag], found[-1][1] + text)
        else:
            found.append((ROLES[tag], text))
    return found


split_prompt = Exercise(
    name="split_prompt",
    expects='a Nectar prompt -> a list of (role, text), the roles "user" and "assistant", without '
    "the open tag at its end; a tag that repeats its speaker is that speaker's text, and a last "
    "tag without its space is a tag",
    solution=turns,
    cases=[
        ("\n\nHuman: Hi!\n\nAssistant: ",),
        ("\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: A joke?\n\nAssistant: ",),
        ("\n\nHuman: What means\n\nHuman: in this log?\n\nAssistant: ",),
        ("\n\nHuman: Hi!\n\nAssistant: Hi.\n\nHuman: A joke?\n\nAssistant:",),
        ("\n\nHuman: Who says Human: here?\n\nAssistant: You. \n\nHuman: 1\n2\n\n\nAssistant: ",),
    ],
    mistakes={
        "this is the authors' rule: a quoted tag changes the speaker, and a final "
        "tag without its space is not seen": lambda prompt: by_place(
            re.split(f"{HUMAN_TAG}|{ASSISTANT_TAG}", prompt)[1:-1]
        ),
        "roles follow the count of the texts: let each tag say who speaks": (
            lambda prompt: by_place([text for _, text in tagged(prompt)])
        ),
        "a tag that repeats its speaker begins no new turn: it is part of the text": (
            lambda prompt: [(ROLES[tag], text) for tag, text in tagged(prompt)]
        ),
        "a tag that repeats its speaker is lost: it is part of the text": without_the_tag,
        "a final tag without its space is not seen: it is left in the last text": (
            lambda prompt: turns(prompt if prompt.endswith(" ") else prompt + "\n\nAssistant: ")
        ),
        "a final tag without its space is not seen, and the last question is lost": (
            lambda prompt: turns(prompt)[: None if prompt.endswith(" ") else -1]
        ),
        "the open tag at the end is no turn: the answer is still to come": (
            lambda prompt: [*turns(prompt), ("assistant", "")]
        ),
        "blanks around the texts belong to them: do not strip": (
            lambda prompt: [(role, text.strip()) for role, text in turns(prompt)]
        ),
        "a tag begins with two line ends: a mere `Human: ` in a text is no tag": (
            lambda prompt: [
                (role, part)
                for role, text in turns(prompt)
                for part in re.split("(?:Human|Assistant): ", text)
            ]
        ),
        "the turns are dicts: make each a pair (role, text)": (
            lambda prompt: parse_prompt(prompt)[0]
        ),
        'the roles are to be called "user" and "assistant"': (
            lambda prompt: [
                ({"user": "Human"}.get(role, "Assistant"), text) for role, text in turns(prompt)
            ]
        ),
    },
)


def choices(weights: Sequence[float], order: Sequence[int]) -> list[float]:
    """The probability of each choice: the weight taken over the weights still there."""
    left = [weights[item] for item in order]
    return [left[k] / sum(left[k:]) for k in range(len(left))]


def places(order: Sequence[int]) -> list[int]:
    """The inverse of a permutation."""
    return [int(place) for place in np.argsort(order)]


ranking_probability = Exercise(
    name="ranking_probability",
    expects="weights (K,) of the answers, order (K,) of their indices, best first -> the "
    "Plackett-Luce probability of that order, a number: the product of weight taken over the sum "
    "of the weights still there",
    solution=lambda weights, order: math.prod(choices(weights, order)),
    cases=[
        (np.array([4, 2, 1]), np.array([0, 1, 2])),
        (np.array([4, 2, 1]), np.array([1, 2, 0])),
        (np.array([3, 1, 6, 4]), np.array([3, 0, 2, 1])),
    ],
    mistakes={
        "the sum never shrinks: an answer that was taken cannot be taken again": (
            lambda weights, order: math.prod(weights) / sum(weights) ** len(weights)
        ),
        "the order is read worst first": lambda weights, order: math.prod(
            choices(weights, order[::-1])
        ),
        "the order is read as each answer's rank: it holds the answers' indices, best first": (
            lambda weights, order: math.prod(choices(weights, places(order)))
        ),
        "the order plays no part: take the weights in its order": (
            lambda weights, order: math.prod(choices(weights, range(len(weights))))
        ),
        "the weights are not scores: they are e^s already": lambda weights, order: math.prod(
            choices([math.exp(w) for w in weights], order)
        ),
        "the choices' probabilities are added: all of them must happen, so multiply": (
            lambda weights, order: sum(choices(weights, order))
        ),
        "only the first choice: the order of the rest has a probability too": (
            lambda weights, order: choices(weights, order)[0]
        ),
        "a product over pairs: each choice is made among all answers left, not between two": (
            lambda weights, order: math.prod(
                weights[i] / (weights[i] + weights[j]) for i, j in combinations(order, 2)
            )
        ),
        "the weight is taken out of the sum too early: an answer is among those it is chosen from, "
        "so divide first": lambda weights, order: math.prod(
            weights[item] / sum(weights[rest] for rest in order[k + 1 :])
            for k, item in enumerate(order[:-1])
        ),
        "this is the logarithm: the probability itself is asked for": (
            lambda weights, order: sum(map(math.log, choices(weights, order)))
        ),
    },
)


def squares(counts: np.ndarray) -> np.ndarray:
    """The squared deviations of counts from equal ones."""
    return (counts - counts.mean()) ** 2


chi_square = Exercise(
    name="chi_square",
    expects="counts (K,) of first places by position -> Pearson's statistic against equal counts, "
    "a number: the sum of (n_j - N/K)^2 over N/K",
    solution=lambda counts: chisquare(counts).statistic,
    cases=[
        (np.array([3, 1]),),
        (np.array([8, 1, 1, 1, 1, 1, 1]),),
        (np.array([5, 0, 1]),),
    ],
    mistakes={
        "the squared deviations are not divided by N/K": lambda counts: squares(counts).sum(),
        "divided by the counts found: divide by those expected, N/K": (
            lambda counts: (squares(counts) / counts).sum()
        ),
        "divided by N: divide by N/K, what is expected at one position": (
            lambda counts: squares(counts).sum() / sum(counts)
        ),
        "N is taken for the expected count: at each of the K positions it is N/K": (
            lambda counts: ((counts - sum(counts)) ** 2).sum() / sum(counts)
        ),
        "shares, where counts belong: that loses the number of lists": (
            lambda counts: chisquare(counts).statistic / sum(counts)
        ),
        "the deviations are not squared": (
            lambda counts: np.sqrt(squares(counts)).sum() / counts.mean()
        ),
        "divided by the degrees of freedom: the statistic is the sum": (
            lambda counts: chisquare(counts).statistic / (len(counts) - 1)
        ),
        "seven positions are taken for granted: K is the number of counts": (
            lambda counts: ((counts - sum(counts) / 7) ** 2).sum() / (sum(counts) / 7)
        ),
    },
)


def above(ranks: np.ndarray, pairs: Sequence[tuple[int, ...]]) -> np.ndarray:
    """(N, pairs): whether the first answer of a pair has the smaller rank."""
    return np.array([[row[i] < row[j] for i, j in pairs] for row in ranks])


def share(first: np.ndarray, second: np.ndarray, pairs: Sequence[tuple[int, ...]]) -> float:
    """The share of these pairs, of all lists, in the same order in both labellings."""
    return float((above(first, pairs) == above(second, pairs)).mean())


agreement = Exercise(
    name="agreement",
    expects="first_ranks (N, K), second_ranks (N, K), ranks 1..K of the same answers -> the share "
    "of the N K (K - 1) / 2 pairs in a list that both labellings put in the same order, a number",
    solution=lambda first, second: bias.agreement(first, second).overall,
    cases=[
        (np.array([[1, 2, 3]]), np.array([[2, 1, 3]])),
        (np.array([[1, 2, 3, 4], [4, 3, 2, 1]]), np.array([[1, 2, 3, 4], [1, 3, 4, 2]])),
        (
            np.array([[2, 1, 4, 3], [1, 3, 2, 4], [4, 1, 2, 3]]),
            np.array([[4, 1, 3, 2], [3, 2, 1, 4], [4, 2, 1, 3]]),
        ),
    ],
    mistakes={
        "all K^2 pairs are compared, also an answer with itself, which always agrees: take i < j": (
            lambda a, b: share(a, b, list(product(range(a.shape[1]), repeat=2)))
        ),
        "an answer is paired with itself, which always agrees: j begins at i + 1": lambda a, b: (
            share(a, b, list(combinations_with_replacement(range(a.shape[1]), 2)))
        ),
        "an answer is paired with itself, which always agrees, and these pairs are not among the "
        "K (K - 1) / 2: j begins at i + 1": lambda a, b: (
            bias.agreement(a, b).overall + 2 / (a.shape[1] - 1)
        ),
        "equal ranks are counted, where the order of pairs belongs": lambda a, b: (a == b).mean(),
        "whole lists are compared, where the order of pairs belongs": (
            lambda a, b: (a == b).all(axis=1).mean()
        ),
        "only neighbours are compared: all pairs of a list count": (
            lambda a, b: share(a, b, list(pairwise(range(a.shape[1]))))
        ),
        "only the best answers are compared: all pairs of a list count": (
            lambda a, b: (a.argmin(axis=1) == b.argmin(axis=1)).mean()
        ),
        "the pairs run down the columns: take two answers of one list": lambda a, b: share(
            a.T, b.T, list(combinations(range(len(a)), 2))
        ),
        "only the first list is compared: take the share over all N lists": (
            lambda a, b: share(a[:1], b[:1], list(combinations(range(a.shape[1]), 2)))
        ),
        "pairs in opposite order are subtracted: that is Kendall's tau, 2a - 1": (
            lambda a, b: 2 * bias.agreement(a, b).overall - 1
        ),
        "this is the share that disagrees": lambda a, b: 1 - bias.agreement(a, b).overall,
        "the agreeing pairs are divided by K^2: there are K (K - 1) / 2 pairs": (
            lambda a, b: bias.agreement(a, b).overall * (a.shape[1] - 1) / (2 * a.shape[1])
        ),
        "every pair is counted twice, (i, j) and (j, i): there are K (K - 1) / 2": (
            lambda a, b: (
                len(list(permutations(range(a.shape[1]), 2)))
                / math.comb(a.shape[1], 2)
                * bias.agreement(a, b).overall
            )
        ),
    },
)


ceiling = Exercise(
    name="ceiling",
    expects="the agreement a of two labellings, at least 1/2 -> the q of at least 1/2 that "
    "solves a = q^2 + (1 - q)^2, a number",
    solution=lambda a: bias.ceiling_bounds(a)[1],
    cases=[(0.5,), (0.68,), (0.75,), (1.0,)],
    mistakes={
        "this is the agreement itself, or the root is missing: q is larger": lambda a: a,
        "two labels that agree may both be wrong: a = q^2 + (1 - q)^2, not q^2": math.sqrt,
        "the other root of 2q^2 - 2q + 1 = a: q is at least 1/2": (
            lambda a: (1 - math.sqrt(2 * a - 1)) / 2
        ),
        "this is 2q: divide by 2": lambda a: 1 + math.sqrt(2 * a - 1),
        "this is q - 1/2: a summand is missing": lambda a: math.sqrt(2 * a - 1) / 2,
        "this is 2q - 1: solve for q": lambda a: math.sqrt(2 * a - 1),
        "the root is taken of a, not of what 2q^2 - 2q + 1 - a = 0 has under the root": (
            lambda a: (1 + math.sqrt(a)) / 2
        ),
        "the agreement is computed from q: here q is sought": lambda a: a**2 + (1 - a) ** 2,
    },
)
