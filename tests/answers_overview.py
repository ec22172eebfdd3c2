"""Answers to the exercises of lesson 00, as learners write them."""

# ruff: noqa: B905, RUF059

import math

import numpy as np
import torch
from answers import right, wrong


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
