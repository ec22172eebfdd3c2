"""Answers to the exercises as learners write them, each wrong one with the cause it must be told.

`python tests/wrong_answers.py` prints what every wrong answer is told.
"""

# ruff: noqa: B905, RUF059

import math
import re

import numpy as np
import torch

WRONG: list[tuple] = []  # exercise, pattern of the cause, function
RIGHT: list[tuple] = []  # exercise, function


def wrong(exercise, cause):
    def register(function):
        WRONG.append((exercise, cause, function))
        return function

    return register


def right(exercise):
    def register(function):
        RIGHT.append((exercise, function))
        return function

    return register


# Lesson 00


@right("plackett_luce")
def loop_over_places(scores):
    loss = 0.0
    for j in range(len(scores)):
        loss = loss + torch.logsumexp(scores[j:], dim=0) - scores[j]
    return loss


@right("plackett_luce")
def in_numpy(scores):
    s = scores.numpy()
    return sum(np.logaddexp.reduce(s[j:]) - s[j] for j in range(len(s)))


@right("plackett_luce")
def with_math(scores):
    s, total = scores.tolist(), 0.0
    for j in range(len(s)):
        top = max(s[j:])
        total += top + math.log(sum(math.exp(x - top) for x in s[j:])) - s[j]
    return total


@wrong("plackett_luce", "one place late")
def suffix_without_the_chosen(scores):
    terms = [torch.logsumexp(scores[j + 1 :], 0) - scores[j] for j in range(len(scores) - 1)]
    return torch.stack(terms).sum()


@wrong("plackett_luce", "worst first")
def no_flip(scores):
    return torch.sum(torch.logcumsumexp(scores, dim=0) - scores)


@wrong("plackett_luce", "worst first")
def worst_first(scores):
    return loop_over_places(scores.flip(0))


@wrong("plackett_luce", "among all K answers")
def log_softmax_of_all(scores):
    return -torch.log_softmax(scores, dim=0).sum()


@wrong("plackett_luce", "the mean over the places")
def mean_of_terms(scores):
    return (scores.flip(0).logcumsumexp(0).flip(0) - scores).mean()


@wrong("plackett_luce", "the mean over the places")
def over_k(scores):
    return loop_over_places(scores) / len(scores)


@wrong("plackett_luce", "the mean over the K - 1 choices")
def mean_of_choices(scores):
    choices = [-torch.log_softmax(scores[j:], 0)[0] for j in range(len(scores) - 1)]
    return torch.stack(choices).mean()


@wrong("plackett_luce", "only neighbours")
def adjacent_pairs(scores):
    s = scores
    return sum(torch.nn.functional.softplus(s[i + 1] - s[i]) for i in range(len(s) - 1))


@wrong("plackett_luce", "the sign")
def log_likelihood(scores):
    return sum(torch.log_softmax(scores[j:], 0)[0] for j in range(len(scores)))


@wrong("plackett_luce", "were sorted")
def sorting(scores):
    return in_numpy(torch.sort(scores, descending=True)[0])


@wrong("plackett_luce", "only the first place")
def top_one(scores):
    return -torch.log_softmax(scores, 0)[0]


@wrong("plackett_luce", "Bradley and Terry")
def all_pairs(scores):
    s = scores.tolist()
    pairs = [(i, j) for i in range(len(s)) for j in range(i + 1, len(s))]
    return sum(math.log1p(math.exp(s[j] - s[i])) for i, j in pairs)


@wrong("plackett_luce", "exp overflows")
def product_of_softmaxes(scores):
    p = 1.0
    for j in range(len(scores)):
        p = p * torch.exp(scores[j]) / torch.exp(scores[j:]).sum()
    return -torch.log(p)


@wrong("plackett_luce", "exp overflows")
def overflow_in_math(scores):
    s = scores.tolist()
    return sum(math.log(sum(map(math.exp, s[j:]))) - s[j] for j in range(len(s)))


@right("weighted_nll")
def weighted_average(logprobs, weights):
    return np.average(-logprobs.numpy(), weights=weights.numpy())


@wrong("weighted_nll", "forgotten in the denominator")
def mean_of_weighted(logprobs, weights):
    return torch.mean(-logprobs * weights)


@wrong("weighted_nll", "how many tokens count")
def over_the_count(logprobs, weights):
    counted = weights != 0
    return -(logprobs * weights)[counted].sum() / counted.sum()


@wrong("weighted_nll", "the sum, where")
def only_the_sum(logprobs, weights):
    return -torch.dot(logprobs, weights)


@wrong("weighted_nll", "the sign")
def no_minus(logprobs, weights):
    return torch.dot(logprobs, weights) / weights.sum()


@wrong("weighted_nll", "only choose the tokens")
def as_a_mask(logprobs, weights):
    return -logprobs[weights.bool()].sum() / weights.bool().sum()


@wrong("weighted_nll", "play no part")
def unweighted(logprobs, weights):
    return -logprobs.sum() / len(logprobs)


@right("apa_loss")
def regression(logprobs, initial, advantages, lam):
    target = initial + advantages / lam
    return torch.nn.functional.mse_loss(logprobs, target)


@wrong("apa_loss", "multiplied by lam")
def times_lam(logprobs, initial, advantages, lam):
    return torch.nn.functional.mse_loss(logprobs, initial + lam * advantages)


@wrong("apa_loss", "lam is missing")
def no_lam(logprobs, initial, advantages, lam):
    return (logprobs - initial - advantages).square().mean()


@wrong("apa_loss", "right minimiser, other scale")
def times_lam_squared(logprobs, initial, advantages, lam):
    return ((lam * (logprobs - initial) - advantages) ** 2).mean()


@wrong("apa_loss", "the two policies swapped")
def swapped(logprobs, initial, advantages, lam):
    return (initial - logprobs - advantages / lam).square().mean()


@wrong("apa_loss", "built on the policy itself")
def anchored_at_itself(logprobs, initial, advantages, lam):
    target = logprobs.detach() + advantages / lam
    return ((logprobs - target) ** 2).mean()


@wrong("apa_loss", "initial policy is missing")
def no_anchor(logprobs, initial, advantages, lam):
    return ((logprobs - advantages / lam) ** 2).mean()


@wrong("apa_loss", "the sum over tokens")
def summed(logprobs, initial, advantages, lam):
    return sum((new - old - a / lam) ** 2 for new, old, a in zip(logprobs, initial, advantages))


@wrong("apa_loss", "not squared")
def unsquared(logprobs, initial, advantages, lam):
    return torch.mean(logprobs - (initial + advantages / lam))


@wrong("apa_loss", "absolute difference")
def l1(logprobs, initial, advantages, lam):
    return torch.nn.functional.l1_loss(logprobs, initial + advantages / lam)


@wrong("apa_loss", "half of the square")
def halved(logprobs, initial, advantages, lam):
    return 0.5 * regression(logprobs, initial, advantages, lam)


@wrong("apa_loss", "probabilities are compared")
def of_probabilities(logprobs, initial, advantages, lam):
    target = torch.exp(initial) * torch.exp(advantages / lam)
    return ((torch.exp(logprobs) - target) ** 2).mean()


@right("low_rank")
def by_diagonal(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s[rank:] = 0
    return u @ torch.diag(s) @ vh


@right("low_rank")
def term_by_term(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.numpy())
    return sum(s[k] * np.outer(u[:, k], vh[k]) for k in range(rank))


@wrong("low_rank", "the smallest singular values are kept")
def keeps_the_tail(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, -rank:] @ torch.diag(s[-rank:]) @ vh[-rank:]


@wrong("low_rank", "that many are to be kept")
def drops_the_last(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s[len(s) - rank :] = 0
    return u @ torch.diag(s) @ vh


@wrong("low_rank", "the largest `rank` terms are removed")
def drops_the_first(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s[:rank] = 0
    return u @ torch.diag(s) @ vh


@wrong("low_rank", "too many")
def one_more(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s[rank + 1 :] = 0
    return (u * s) @ vh


@wrong("low_rank", "too few")
def one_less(matrix, rank):
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s[rank - 1 :] = 0
    return (u * s) @ vh


@wrong("low_rank", "only the last term")
def one_term(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix)
    return s[rank - 1] * torch.outer(u[:, rank - 1], vh[rank - 1])


@wrong("low_rank", "singular values are missing")
def no_values(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix)
    return u[:, :rank] @ vh[:rank, :]


@wrong("low_rank", "V stands where")
def v_not_transposed(matrix, rank):
    u, s, v = torch.linalg.svd(matrix)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:, :rank].T


@wrong("low_rank", "V stands where")
def v_transposed_again(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s[rank:] = 0
    return u @ torch.diag(s) @ v.T


@wrong("low_rank", "V is missing")
def no_v(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank]


@wrong("low_rank", "the third factor is transposed")
def rows_transposed(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank].T


@wrong("low_rank", "shapes do not fit: take")
def columns_not_transposed(matrix, rank):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:, :rank]


@wrong("low_rank", "shapes do not fit: take")
def values_not_cut(matrix, rank):
    u, s, v = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return u[:, :rank] @ np.diag(s) @ v[:rank]


@wrong("low_rank", "returned as it is")
def unchanged(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ torch.diag(s) @ vh


# Lesson 01


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


# Lesson 02

TURN = "<|end_of_turn|>"


def template(conversation, mode="GPT4 Correct ", end=TURN, gap=" ", last="Assistant:"):
    names = {"user": "User:", "assistant": "Assistant:"}
    text = ""
    for message in conversation:
        text += mode + names[message["role"]] + gap + message["content"] + end
    return text + (mode if last else "") + last


@right("openchat")
def joined_strings(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}" for m in conversation]
    return TURN.join([*parts, "GPT4 Correct Assistant:"])


@wrong("openchat", "a space stands behind the last colon")
def trailing_space(conversation):
    return template(conversation, last="Assistant: ")


@wrong("openchat", "missing behind the messages")
def no_end_of_turn(conversation):
    return template(conversation, end="")


@wrong("openchat", "missing behind the last message")
def no_last_end(conversation):
    *before, asked = [f"GPT4 Correct {m['role'].title()}: {m['content']}" for m in conversation]
    return "".join(text + TURN for text in before) + asked + "GPT4 Correct Assistant:"


@wrong("openchat", "missing behind the user's")
def end_after_answers_only(conversation):
    text = ""
    for m in conversation:
        text += f"GPT4 Correct {m['role'].title()}: {m['content']}"
        text += TURN if m["role"] == "assistant" else ""
    return text + "GPT4 Correct Assistant:"


@wrong("openchat", "behind the generation prompt")
def end_of_nothing(conversation):
    return template(conversation) + TURN


@wrong("openchat", "the generation prompt is missing")
def no_generation_prompt(conversation):
    return template(conversation, last="")


@wrong("openchat", "the class is missing from the generation prompt")
def bare_generation_prompt(conversation):
    return template(conversation, last="") + "Assistant:"


@wrong("openchat", "every message begins with")
def no_class(conversation):
    return template(conversation, mode="")


@wrong("openchat", "class of the weaker")
def other_class(conversation):
    return template(conversation, mode="GPT3 Correct ")


@wrong("openchat", "messages' roles lack")
def role_as_it_is(conversation):
    text = ""
    for message in conversation:
        text += "GPT4 Correct " + message["role"] + ": " + message["content"] + TURN
    return text + "GPT4 Correct Assistant:"


@wrong("openchat", "all roles lack")
def lower_case(conversation):
    parts = [f"GPT4 Correct {m['role']}: {m['content']}{TURN}" for m in conversation]
    return "".join(parts) + "GPT4 Correct assistant:"


@wrong("openchat", "a line end follows each")
def lines(conversation):
    return template(conversation, end=TURN + "\n")


@wrong("openchat", "a line end follows each")
def joined_lines_with_the_prompt(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}{TURN}" for m in conversation]
    return "\n".join([*parts, "GPT4 Correct Assistant:"])


@wrong("openchat", "joined by line ends")
def joined_lines(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}{TURN}" for m in conversation]
    return "\n".join(parts) + "GPT4 Correct Assistant:"


@wrong("openchat", "a space follows each")
def joined_by_spaces(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}{TURN}" for m in conversation]
    return " ".join([*parts, "GPT4 Correct Assistant:"])


@wrong("openchat", "behind a message's colon is missing")
def no_gap(conversation):
    return template(conversation, gap="")


@wrong("openchat", "^Likely cause: BOS is in the text")
def with_bos(conversation):
    return "<s>" + template(conversation)


@wrong("openchat", "are stripped")
def tidied(conversation):
    return template([{**m, "content": m["content"].strip()} for m in conversation])


@right("answer_mask")
def switch(segments):
    mask, answering = [], False
    for kind, length in segments:
        mask += [1 if kind == "assistant" or (kind == "end" and answering) else 0] * length
        answering = kind == "assistant"
    return torch.tensor(mask)


@wrong("answer_mask", "does not stop")
def no_end(segments):
    return [1 if kind == "assistant" else 0 for kind, length in segments for _ in range(length)]


@wrong("answer_mask", "the user's end of turn has weight")
def every_end(segments):
    mask = []
    for kind, length in segments:
        mask.extend([int(kind in ("assistant", "end"))] * length)
    return mask


@wrong("answer_mask", "the last end of turn always")
def last_end_always(segments):
    mask = switch(segments).tolist()
    mask[-1] = 1
    return mask


@wrong("answer_mask", "only the last has weight, whoever spoke")
def last_end_only(segments):
    mask = []
    for i, (kind, length) in enumerate(segments):
        final = kind == "end" and i == len(segments) - 1
        mask += [int(kind == "assistant" or final)] * length
    return mask


@wrong("answer_mask", "only the last answer's end")
def last_answers_end_only(segments):
    mask = [int(kind == "assistant") for kind, length in segments for _ in range(length)]
    if segments[-2][0] == "assistant":
        mask[-1] = 1
    return mask


@wrong("answer_mask", "the header before an answer")
def with_header(segments):
    mask, kinds = [], [kind for kind, _ in segments]
    for i, (kind, length) in enumerate(segments):
        near = kinds[i + 1 : i + 2] == ["assistant"] or kinds[i - 1] == "assistant"
        mask += [int(kind == "assistant" or near)] * length
    return mask


@wrong("answer_mask", "turned around")
def inverted(segments):
    return 1 - switch(segments)


@wrong("answer_mask", "every token has weight")
def everything(segments):
    return [1 for _, length in segments for _ in range(length)]


@wrong("answer_mask", "only the last answer has")
def last_answer(segments):
    mask = [0] * sum(length for _, length in segments)
    if segments[-2][0] == "assistant":
        for i in range(segments[-2][1] + 1):
            mask[-1 - i] = 1
    return mask


@wrong("answer_mask", "the answer does not")
def ends_of_answers(segments):
    mask = switch(segments).tolist()
    position = 0
    for kind, length in segments:
        if kind == "assistant":
            mask[position : position + length] = [0] * length
        position += length
    return mask


@wrong("answer_mask", "one weight a segment")
def by_segment(segments):
    return [
        int(kind == "assistant" or (kind == "end" and segments[i - 1][0] == "assistant"))
        for i, (kind, _) in enumerate(segments)
    ]


@wrong("answer_mask", "shifted by one")
def shifted(segments):
    return torch.cat([switch(segments)[1:], torch.tensor([0])])


def tokens(values, lengths):
    return np.repeat(np.array(values, dtype=float), lengths)


@right("class_weights")
def over_their_sum(experts, lengths):
    weights = tokens([1 if expert else 0.1 for expert in experts], lengths)
    return (weights / weights.sum()).tolist()


@right("class_weights")
def in_float32(experts, lengths):
    weights = []
    for expert, length in zip(experts, lengths):
        weights += [1.0 if expert else 0.1] * length
    return torch.tensor(weights) / sum(weights)


@wrong("class_weights", "do not sum to 1")
def raw_weights(experts, lengths):
    return tokens([1 if expert else 0.1 for expert in experts], lengths)


@wrong("class_weights", "the number of tokens")
def over_tokens(experts, lengths):
    weights = tokens([1 if expert else 0.1 for expert in experts], lengths)
    return weights / len(weights)


@wrong("class_weights", "the number of answers")
def over_answers(experts, lengths):
    return tokens([1 if expert else 0.1 for expert in experts], lengths) / len(experts)


@wrong("class_weights", "the sum over answers")
def over_the_answers_sum(experts, lengths):
    each = np.array([1 if expert else 0.1 for expert in experts])
    return np.repeat(each / each.sum(), lengths)


@wrong("class_weights", "averaged over its length")
def mean_of_means(experts, lengths):
    weights = []
    for expert, length in zip(experts, lengths):
        weights += [(1 if expert else 0.1) / length / len(experts)] * length
    return weights


@wrong("class_weights", "whatever its length")
def by_answer(experts, lengths):
    each = np.array([1 if expert else 0.1 for expert in experts])
    return np.repeat(each / each.sum() / lengths, lengths)


@wrong("class_weights", "classes are swapped")
def swapped_classes(experts, lengths):
    weights = tokens([0.1 if expert else 1 for expert in experts], lengths)
    return weights / weights.sum()


@wrong("class_weights", "the rest is dropped")
def filtered(experts, lengths):
    weights = tokens([float(expert) for expert in experts], lengths)
    return weights / weights.sum()


@wrong("class_weights", "weigh the same")
def equal(experts, lengths):
    return [1 / sum(lengths)] * sum(lengths)


@wrong("class_weights", "one weight an answer")
def one_each(experts, lengths):
    each = np.array([1 if expert else 0.1 for expert in experts])
    return each / each.sum()


@right("cool")
def guarded(logits, temperature):
    if temperature == 0:
        p = torch.zeros(len(logits))
        p[torch.argmax(logits)] = 1
        return p
    return torch.softmax(logits / temperature, dim=-1)


@right("cool")
def numpy_softmax(logits, temperature):
    z = logits.numpy()
    if not temperature:
        return (z == z.max()).astype(int)
    e = np.exp((z - z.max()) / temperature)
    return e / e.sum()


@wrong("cool", "multiplied by the temperature")
def heated(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    return torch.softmax(logits * temperature, -1)


@wrong("cool", "the temperature plays no part")
def only_greedy(logits, temperature):
    return torch.softmax(logits, -1) if temperature else guarded(logits, 0)


@wrong("cool", "the probabilities are divided")
def divided_after(logits, temperature):
    return torch.softmax(logits, -1) / temperature if temperature else guarded(logits, 0)


@wrong("cool", "softmax is taken of probabilities")
def twice_softmax(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    p = torch.softmax(logits, -1)
    return torch.softmax(p / temperature, -1)


@wrong("cool", "divides by zero")
def no_greedy(logits, temperature):
    return torch.softmax(logits / temperature, -1)


@wrong("cool", "divides by zero")
def no_greedy_in_python(logits, temperature):
    z = [x / temperature for x in logits.tolist()]
    e = [math.exp(x - max(z)) for x in z]
    return [x / sum(e) for x in e]


@wrong("cool", "not temperature 1")
def zero_as_one(logits, temperature):
    return torch.softmax(logits / (temperature or 1.0), -1)


@wrong("cool", "an index is returned")
def index(logits, temperature):
    if temperature == 0:
        return int(logits.argmax())
    return torch.softmax(logits / temperature, -1)


@wrong("cool", "all are equal")
def uniform(logits, temperature):
    if temperature == 0:
        return torch.full_like(logits, 1 / len(logits))
    return torch.softmax(logits / temperature, -1)


@wrong("cool", "largest of the divided")
def largest_undivided(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    weights = torch.exp(logits / temperature - logits.max())
    return weights / weights.sum()


@wrong("cool", "and temperature 0 divides")
def as_in_the_formula(logits, temperature):
    weights = torch.exp(logits / temperature)
    return weights / weights.sum()


@wrong("cool", "exp overflows for large logits: ")
def naive(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    e = np.exp(logits.numpy() / temperature)
    return e / e.sum()


@wrong("cool", "log-probabilities")
def logs(logits, temperature):
    if temperature == 0:
        return torch.log(guarded(logits, 0))
    return torch.log_softmax(logits / temperature, -1)


@wrong("cool", "not divided by their sum")
def unnormalised(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    return torch.exp((logits - logits.max()) / temperature)


def main():
    from starling_nb.lesson import checks

    for exercise, _, function in WRONG:
        _, message = getattr(checks, exercise).judge(function)
        print(f"{exercise:20} {function.__name__:28} {message.splitlines()[-1]}")
    print(f"\n{len(WRONG)} wrong answers to {len({name for name, *_ in WRONG})} exercises")


if __name__ == "__main__":
    main()
