"""Answers to the exercises of lesson 04, as learners write them."""

import math

import numpy as np
import torch
from answers import right, wrong
from torch.nn.functional import logsigmoid, softplus


@right("plackett_luce_gradient")
def my_plackett_luce_gradient(scores):
    gradient = -torch.ones_like(scores)
    for j in range(len(scores)):
        gradient[j:] += scores[j:].softmax(0)
    return gradient


@right("plackett_luce_gradient")
def double_loop(scores):
    s, gradient = scores.tolist(), []
    for i in range(len(s)):
        expected = 0.0
        for j in range(i + 1):
            top = max(s[j:])
            expected += math.exp(s[i] - top) / sum(math.exp(x - top) for x in s[j:])
        gradient.append(expected - 1)
    return gradient


@right("plackett_luce_gradient")
def backward(scores):
    scores.requires_grad_()
    loss = sum(scores[j:].logsumexp(0) - scores[j] for j in range(len(scores)))
    loss.backward()
    return scores.grad


@right("plackett_luce_gradient")
def central_differences(scores):
    steps = 1e-5 * torch.eye(len(scores)).double()

    def loss(s):
        return sum(s[j:].logsumexp(0) - s[j] for j in range(len(s)))

    return [(loss(scores + step) - loss(scores - step)) / 2e-5 for step in steps]


@wrong("plackett_luce_gradient", "the sign")
def observed_minus_expected(scores):
    ascent = torch.ones_like(scores)
    for j in range(len(scores)):
        ascent[j:] -= torch.softmax(scores[j:], 0)
    return ascent


@wrong("plackett_luce_gradient", "was chosen once")
def only_expected(scores):
    gradient = torch.zeros_like(scores)
    for j in range(len(scores)):
        gradient[j:] += torch.softmax(scores[j:], 0)
    return gradient


@wrong("plackett_luce_gradient", "only the first choice")
def cross_entropy(scores):
    scores.requires_grad_()
    torch.nn.functional.cross_entropy(scores[None], torch.tensor([0])).backward()
    return scores.grad


@wrong("plackett_luce_gradient", "the answer itself is left out")
def losers_only(scores):
    gradient = -torch.ones_like(scores)
    for j in range(len(scores)):
        gradient[j + 1 :] += torch.softmax(scores[j:], 0)[1:]
    return gradient


@wrong("plackett_luce_gradient", "only the choice of the answer itself")
def own_choice(scores):
    return [torch.softmax(scores[j:], 0)[0] - 1 for j in range(len(scores))]


@wrong("plackett_luce_gradient", "one place late")
def among_those_below(scores):
    gradient = -torch.ones_like(scores)
    for j in range(len(scores)):
        gradient[j + 1 :] += torch.softmax(scores[j + 1 :], 0)
    return gradient


@wrong("plackett_luce_gradient", "among all K answers")
def full_softmax(scores):
    gradient = -torch.ones_like(scores)
    for _ in range(len(scores)):
        gradient += torch.softmax(scores, 0)
    return gradient


@wrong("plackett_luce_gradient", "one softmax")
def one_softmax(scores):
    return torch.softmax(scores, 0) - 1


@wrong("plackett_luce_gradient", "the last choice is left out")
def choices_with_a_rival(scores):
    gradient = -torch.ones_like(scores)
    for j in range(len(scores) - 1):
        gradient[j:] += torch.softmax(scores[j:], 0)
    return gradient


@wrong("plackett_luce_gradient", "are multiplied")
def multiplied(scores):
    expected = torch.ones_like(scores)
    for j in range(len(scores)):
        expected[j:] *= torch.softmax(scores[j:], 0)
    return expected - 1


@wrong("plackett_luce_gradient", "divided by K - 1")
def mean_gradient(scores):
    return my_plackett_luce_gradient(scores) / (len(scores) - 1)


@wrong("plackett_luce_gradient", "were sorted")
def sorted_first(scores):
    return my_plackett_luce_gradient(torch.sort(scores, descending=True)[0])


@wrong("plackett_luce_gradient", "ranks stand")
def of_ranks(scores):
    ranks = np.argsort(np.argsort(scores.numpy(), kind="stable"))
    return my_plackett_luce_gradient(torch.tensor(ranks).double())


@wrong("plackett_luce_gradient", "worst first")
def prefixes(scores):
    gradient = -torch.ones_like(scores)
    for j in range(len(scores)):
        gradient[: j + 1] += torch.softmax(scores[: j + 1], 0)
    return gradient


@wrong("plackett_luce_gradient", "exp overflows")
def plain_exponentials(scores):
    e = np.exp(scores.numpy())
    return [sum(e[i] / e[j:].sum() for j in range(i + 1)) - 1 for i in range(len(e))]


@wrong("plackett_luce_gradient", "subtracted once")
def shifted_once(scores):
    return plain_exponentials(scores - scores.max())


@right("all_pairs_nll")
def my_all_pairs_nll(scores):
    margins = scores[:, None] - scores  # (K, K): s_i - s_j
    i, j = torch.triu_indices(len(scores), len(scores), offset=1)
    return torch.nn.functional.softplus(-margins[i, j]).sum()


@right("all_pairs_nll")
def logaddexp(scores):
    s = scores.numpy()
    return sum(np.logaddexp(0, s[j] - s[i]) for i in range(len(s)) for j in range(i + 1, len(s)))


@right("all_pairs_nll")
def log_sigmoids(scores):
    return -sum(logsigmoid(s - scores[i + 1 :]).sum() for i, s in enumerate(scores))


@wrong("all_pairs_nll", "sign of the margin")
def turned_margin(scores):
    i, j = np.triu_indices(len(scores), 1)
    return softplus(scores[i] - scores[j]).sum()


@wrong("all_pairs_nll", "the sign: this is")
def log_likelihood_of_pairs(scores):
    i, j = np.triu_indices(len(scores), 1)
    return logsigmoid(scores[i] - scores[j]).sum()


@wrong("all_pairs_nll", "only neighbours")
def neighbouring(scores):
    return -logsigmoid(scores[:-1] - scores[1:]).sum()


@wrong("all_pairs_nll", "only the best answer")
def winner_and_the_rest(scores):
    return softplus(scores[1:] - scores[0]).sum()


@wrong("all_pairs_nll", "the mean over the pairs")
def mean_over_pairs(scores):
    i, j = np.triu_indices(len(scores), 1)
    return -logsigmoid(scores[i] - scores[j]).mean()


@wrong("all_pairs_nll", "as if the worse answer had won")
def both_orders(scores):
    total = 0.0
    for i in range(len(scores)):
        for j in range(len(scores)):
            if i != j:
                total += softplus(scores[j] - scores[i])
    return total


@wrong("all_pairs_nll", r"all K\^2 pairs")
def whole_matrix(scores):
    return -logsigmoid(scores[:, None] - scores[None, :]).sum()


@wrong("all_pairs_nll", "compared with itself, at")
def diagonal_too(scores):
    margins = scores[:, None] - scores[None, :]
    return softplus(-margins).triu().sum()


@wrong("all_pairs_nll", "margins were set to 0")
def masked_too_early(scores):
    margins = torch.triu(scores[:, None] - scores[None, :], diagonal=1)
    return -logsigmoid(margins).sum()


@wrong("all_pairs_nll", "logarithm of the probabilities is missing")
def minus_sigmoid(scores):
    return -sum((s - scores[i + 1 :]).sigmoid().sum() for i, s in enumerate(scores))


@wrong("all_pairs_nll", "base 2")
def in_bits(scores):
    s = scores.numpy()
    gaps = [s[j] - s[i] for i in range(len(s)) for j in range(i + 1, len(s))]
    return np.logaddexp2(0, np.array(gaps) / np.log(2)).sum()


@wrong("all_pairs_nll", "the hinge")
def hinge(scores):
    i, j = np.triu_indices(len(scores), 1)
    return torch.clamp(1 - (scores[i] - scores[j]), min=0).sum()


@wrong("all_pairs_nll", "choices from a list")
def k_wise(scores):
    return sum(torch.logsumexp(scores[j:], 0) - scores[j] for j in range(len(scores)))


@wrong("all_pairs_nll", "exp overflows")
def as_written(scores):
    s = scores.tolist()
    gaps = [s[j] - s[i] for i in range(len(s)) for j in range(i + 1, len(s))]
    return sum(math.log(1 + math.exp(gap)) for gap in gaps)


@wrong("all_pairs_nll", "exp overflows")
def log_of_sigmoid(scores):
    i, j = np.triu_indices(len(scores), 1)
    return -torch.log(torch.sigmoid(scores[i] - scores[j])).sum()


@right("top_m_nll")
def my_top_m_nll(scores, m):
    return sum(scores[j:].logsumexp(0) - scores[j] for j in range(m))


@right("top_m_nll")
def cumulated(scores, m):
    s = scores.numpy()
    rest = np.logaddexp.accumulate(s[::-1])[::-1]
    return (rest[:m] - s[:m]).sum()


@right("top_m_nll")
def by_log_softmax(scores, m):
    return -torch.stack([torch.log_softmax(scores[j:], 0)[0] for j in range(m)]).sum()


@wrong("top_m_nll", "the unranked answers are left out")
def cut_list(scores, m):
    best = scores[:m]
    return sum(torch.logsumexp(best[j:], 0) - best[j] for j in range(m))


@wrong("top_m_nll", "all K places")
def whole_list(scores, m):
    return sum(torch.logsumexp(scores[j:], 0) - scores[j] for j in range(len(scores)))


@wrong("top_m_nll", "sorted by its scores")
def rest_sorted(scores, m):
    rest = sorted(scores[m:].tolist(), reverse=True)
    return whole_list(torch.tensor([*scores[:m].tolist(), *rest]).double(), m)


@wrong("top_m_nll", "too few")
def one_place_less(scores, m):
    return sum(torch.logsumexp(scores[j:], 0) - scores[j] for j in range(m - 1))


@wrong("top_m_nll", "too many")
def one_place_more(scores, m):
    rest = scores.flip(0).logcumsumexp(0).flip(0)
    return (rest - scores)[: m + 1].sum()


@wrong("top_m_nll", "among all K answers")
def same_sum_everywhere(scores, m):
    return -torch.log_softmax(scores, 0)[:m].sum()


@wrong("top_m_nll", "only the first place")
def first_of_m(scores, m):
    return -torch.log_softmax(scores, 0)[0]


@wrong("top_m_nll", "only the last of the m places")
def place_m(scores, m):
    return torch.logsumexp(scores[m - 1 :], 0) - scores[m - 1]


@wrong("top_m_nll", "the mean over the m places")
def mean_of_places(scores, m):
    terms = [torch.logsumexp(scores[j:], 0) - scores[j] for j in range(m)]
    return torch.stack(terms).mean()


@wrong("top_m_nll", "one place late")
def chosen_not_in_the_sum(scores, m):
    return sum(torch.logsumexp(scores[j + 1 :], 0) - scores[j] for j in range(m))


@wrong("top_m_nll", "ranked answers not yet chosen")
def against_the_unranked(scores, m):
    total = 0.0
    for j in range(m):
        field = [float(scores[j]), *scores[m:].tolist()]
        total += np.logaddexp.reduce(field) - field[0]
    return total


@wrong("top_m_nll", "these are pairs")
def pairs_of_the_best(scores, m):
    pairs = [(i, j) for i in range(m) for j in range(i + 1, len(scores))]
    return sum(-logsigmoid(scores[i] - scores[j]) for i, j in pairs)


@wrong("top_m_nll", "the sign")
def log_likelihood_of_the_best(scores, m):
    return sum(torch.log_softmax(scores[j:], 0)[0] for j in range(m))


@wrong("top_m_nll", "the probability itself")
def probability(scores, m):
    return math.prod(torch.softmax(scores[j:], 0)[0] for j in range(m))


@wrong("top_m_nll", "exp overflows")
def log_of_sums(scores, m):
    e = torch.exp(scores)
    return -sum(torch.log(e[j] / e[j:].sum()) for j in range(m))


@right("pessimistic_value")
def my_pessimistic_value(theta, gain, metric, bonus):
    width = torch.sqrt(gain @ torch.linalg.solve(metric, gain))
    return theta @ gain - bonus * width


@right("pessimistic_value")
def inverse_root(theta, gain, metric, bonus):
    values, vectors = np.linalg.eigh(metric.numpy())
    root = vectors / np.sqrt(values) @ vectors.T  # metric^(-1/2)
    return theta.numpy() @ gain.numpy() - bonus * np.linalg.norm(root @ gain.numpy())


@right("pessimistic_value")
def cholesky(theta, gain, metric, bonus):
    factor = torch.linalg.cholesky(metric)
    whitened = torch.linalg.solve_triangular(factor, gain[:, None], upper=False)
    return torch.dot(theta, gain) - bonus * torch.linalg.norm(whitened)


@right("pessimistic_value")
def at_the_worst_parameter(theta, gain, metric, bonus):
    direction = np.linalg.solve(metric.numpy(), gain.numpy())
    step = bonus * direction / np.sqrt(direction @ metric.numpy() @ direction)
    return (theta.numpy() - step) @ gain.numpy()


@wrong("pessimistic_value", "the optimist's value")
def optimistic(theta, gain, metric, bonus):
    return theta @ gain + bonus * torch.sqrt(gain @ torch.linalg.inv(metric) @ gain)


@wrong("pessimistic_value", "nothing is taken off")
def greedy(theta, gain, metric, bonus):
    return torch.dot(theta, gain)


@wrong("pessimistic_value", "where its inverse belongs")
def not_inverted(theta, gain, metric, bonus):
    return theta @ gain - bonus * torch.sqrt(gain @ metric @ gain)


@wrong("pessimistic_value", "the square root is missing")
def squared_width(theta, gain, metric, bonus):
    return theta @ gain - bonus * (gain @ torch.linalg.solve(metric, gain))


@wrong("pessimistic_value", "metric plays no part")
def euclidean(theta, gain, metric, bonus):
    return theta @ gain - bonus * torch.linalg.vector_norm(gain)


@wrong("pessimistic_value", "bonus plays no part")
def no_bonus(theta, gain, metric, bonus):
    return theta @ gain - torch.sqrt(gain @ torch.linalg.inv(metric) @ gain)


@wrong("pessimistic_value", "under the root")
def bonus_in_the_root(theta, gain, metric, bonus):
    return theta @ gain - torch.sqrt(bonus * gain @ torch.linalg.inv(metric) @ gain)


@wrong("pessimistic_value", "bonus is squared")
def bonus_squared(theta, gain, metric, bonus):
    return theta @ gain - bonus**2 * torch.sqrt(gain @ torch.linalg.inv(metric) @ gain)


@wrong("pessimistic_value", "the length of theta")
def width_of_theta(theta, gain, metric, bonus):
    return theta @ gain - bonus * torch.sqrt(theta @ torch.linalg.inv(metric) @ theta)


@wrong("pessimistic_value", "the sign of the value is lost")
def absolute(theta, gain, metric, bonus):
    width = torch.sqrt(gain @ torch.linalg.inv(metric) @ gain)
    return abs(theta @ gain) - bonus * width


@wrong("pessimistic_value", "one by one")
def by_entries(theta, gain, metric, bonus):
    return theta @ gain - bonus * torch.sqrt(gain @ metric**-1 @ gain)


@wrong("pessimistic_value", "only the diagonal")
def by_feature(theta, gain, metric, bonus):
    return theta @ gain - bonus * torch.sqrt((gain**2 / torch.diag(metric)).sum())


@wrong("pessimistic_value", "acts twice")
def inverse_without_root(theta, gain, metric, bonus):
    return theta @ gain - bonus * torch.linalg.norm(torch.linalg.inv(metric) @ gain)
