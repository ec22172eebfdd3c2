"""Answers to the exercises of lesson 07, as learners write them."""

import math

import numpy as np
import torch
from answers import right, wrong


@right("best_policy")
def my_best_policy(log_init, advantages, lam):
    target = log_init + advantages / lam
    return target - target.logsumexp(0)


@right("best_policy")
def by_log_softmax(log_init, advantages, lam):
    return torch.log_softmax(log_init + advantages / lam, dim=-1)


@right("best_policy")
def in_numpy(log_init, advantages, lam):
    target = log_init.numpy() + advantages.numpy() / lam
    target -= target.max()
    return target - np.log(np.exp(target).sum())


@right("best_policy")
def action_by_action(log_init, advantages, lam):
    target = [float(p) + float(a) / lam for p, a in zip(log_init, advantages, strict=True)]
    top = max(target)
    log_z = top + math.log(sum(math.exp(x - top) for x in target))
    return [x - log_z for x in target]


@wrong("best_policy", "not normalised")
def target_itself(log_init, advantages, lam):
    return log_init + advantages / lam


@wrong("best_policy", r"the sum of exp\(A / lam\) alone")
def softmax_of_the_advantages(log_init, advantages, lam):
    return log_init + torch.log_softmax(advantages / lam, 0)


@wrong("best_policy", r"the sum of exp\(A / lam\) alone")
def sum_without_init(log_init, advantages, lam):
    return log_init + advantages / lam - torch.logsumexp(advantages / lam, 0)


@wrong("best_policy", "by the mean")
def divided_by_the_mean(log_init, advantages, lam):
    target = log_init + advantages / lam
    top = target.max()
    return target - top - torch.log(torch.exp(target - top).mean())


@wrong("best_policy", "normalised twice")
def two_softmaxes(log_init, advantages, lam):
    probabilities = torch.softmax(log_init + advantages / lam, 0)
    return torch.log_softmax(probabilities, 0)


@wrong("best_policy", "multiplied by lam")
def optimum_times_lam(log_init, advantages, lam):
    return torch.log_softmax(log_init + lam * advantages, 0)


@wrong("best_policy", "lam is missing")
def without_lam(log_init, advantages, lam):
    return torch.log_softmax(log_init + advantages, 0)


@wrong("best_policy", "divided by lam too")
def temperature(log_init, advantages, lam):
    return torch.log_softmax((log_init + advantages) / lam, 0)


@wrong("best_policy", "pi_init is forgotten")
def boltzmann(log_init, advantages, lam):
    return torch.log_softmax(advantages / lam, 0)


@wrong("best_policy", "added to probabilities")
def sum_of_unlike_things(log_init, advantages, lam):
    logits = torch.exp(log_init) + advantages / lam
    return logits - torch.logsumexp(logits, 0)


@wrong("best_policy", "log pi_init is taken for pi_init")
def logs_as_probabilities(log_init, advantages, lam):
    weights = log_init * torch.exp(advantages / lam)
    return torch.log(weights / weights.sum())


@wrong("best_policy", "these are probabilities")
def optimal_probabilities(log_init, advantages, lam):
    return torch.softmax(log_init + advantages / lam, 0)


@wrong("best_policy", "the sign")
def worst_policy(log_init, advantages, lam):
    return torch.log_softmax(log_init - advantages / lam, 0)


@wrong("best_policy", "exp overflows")
def as_in_the_formula(log_init, advantages, lam):
    weights = torch.exp(log_init) * torch.exp(advantages / lam)
    return torch.log(weights / weights.sum())


@wrong("best_policy", "exp overflows")
def log_z_by_exp(log_init, advantages, lam):
    target = (log_init + advantages / lam).tolist()
    log_sum = math.log(sum(math.exp(x) for x in target))
    return [x - log_sum for x in target]


@wrong("best_policy", "becomes 0")
def log_of_a_softmax(log_init, advantages, lam):
    return torch.log(torch.softmax(log_init + advantages / lam, 0))


@wrong("best_policy", "becomes 0")
def shifted_exponentials(log_init, advantages, lam):
    weights = np.exp(log_init.numpy()) * np.exp((advantages - advantages.max()).numpy() / lam)
    return np.log(weights / weights.sum())


@right("log_partition")
def my_log_partition(log_init, advantages, lam):
    return torch.logsumexp(log_init + advantages / lam, dim=0)


@right("log_partition")
def reduced(log_init, advantages, lam):
    return np.logaddexp.reduce(log_init.numpy() + advantages.numpy() / lam)


@right("log_partition")
def shifted_by_the_best(log_init, advantages, lam):
    top = advantages.max()
    return top / lam + torch.log((log_init.exp() * torch.exp((advantages - top) / lam)).sum())


@right("log_partition")
def what_best_policy_subtracts(log_init, advantages, lam):
    target = log_init + advantages / lam
    return (target - target.log_softmax(0))[0].item()


@wrong("log_partition", "this is Z")
def z_itself(log_init, advantages, lam):
    return torch.exp(torch.logsumexp(log_init + advantages / lam, 0))


@wrong("log_partition", "this is Z")
def z_by_exp(log_init, advantages, lam):
    return (log_init.exp() * torch.exp(advantages / lam)).sum()


@wrong("log_partition", "the mean of A / lam")
def jensen(log_init, advantages, lam):
    return (torch.exp(log_init) * advantages / lam).sum()


@wrong("log_partition", "every action counts the same")
def uniform_mean(log_init, advantages, lam):
    gain = advantages / lam
    return gain.max() + torch.log(torch.exp(gain - gain.max()).mean())


@wrong("log_partition", "pi_init is forgotten")
def sum_of_exponentials(log_init, advantages, lam):
    return torch.logsumexp(advantages / lam, 0)


@wrong("log_partition", "divided by the number of actions")
def mean_of_the_terms(log_init, advantages, lam):
    target = log_init + advantages / lam
    return target.max() + torch.log(torch.exp(target - target.max()).mean())


@wrong("log_partition", "only the largest term")
def largest_term(log_init, advantages, lam):
    return max(log_init + advantages / lam)


@wrong("log_partition", "normalised first")
def sum_of_probabilities(log_init, advantages, lam):
    probabilities = torch.softmax(log_init + advantages / lam, 0)
    return torch.log(probabilities.sum())


@wrong("log_partition", "multiplied by lam")
def partition_times_lam(log_init, advantages, lam):
    return torch.logsumexp(log_init + lam * advantages, 0)


@wrong("log_partition", "lam is missing")
def partition_without_lam(log_init, advantages, lam):
    return torch.logsumexp(log_init + advantages, 0)


@wrong("log_partition", "divided by lam too")
def all_over_lam(log_init, advantages, lam):
    return torch.logsumexp((log_init + advantages) / lam, 0)


@wrong("log_partition", "this is lam log Z")
def best_value(log_init, advantages, lam):
    return lam * torch.logsumexp(log_init + advantages / lam, 0)


@wrong("log_partition", "the sign of the advantages")
def cost(log_init, advantages, lam):
    return np.logaddexp.reduce((log_init - advantages / lam).numpy())


@wrong("log_partition", "this is -log Z")
def what_is_added(log_init, advantages, lam):
    return -torch.logsumexp(log_init + advantages / lam, 0)


@wrong("log_partition", "exp overflows")
def log_of_the_sum(log_init, advantages, lam):
    return torch.log((torch.exp(log_init) * torch.exp(advantages / lam)).sum())


@wrong("log_partition", "exp overflows")
def math_log_of_the_sum(log_init, advantages, lam):
    pairs = zip(log_init.tolist(), advantages.tolist(), strict=True)
    return math.log(sum(math.exp(p) * math.exp(a / lam) for p, a in pairs))


@right("awr_loss")
def my_awr_loss(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return -(weights * logprobs)[mask].mean()


@right("awr_loss")
def with_a_product(logprobs, advantages, mask, lam, max_weight):
    weights = torch.minimum((advantages / lam).exp(), torch.tensor(max_weight))
    return -(weights.detach() * logprobs * mask).sum() / mask.sum()


@right("awr_loss")
def exponent_clipped_at_its_log(logprobs, advantages, mask, lam, max_weight):
    weights = np.exp(np.minimum(advantages.numpy() / lam, np.log(max_weight)))
    return -np.average(logprobs.numpy() * weights, weights=mask.numpy())


@right("awr_loss")
def action_after_action(logprobs, advantages, mask, lam, max_weight):
    total, count = 0.0, 0
    for i in range(mask.shape[0]):
        for t in range(mask.shape[1]):
            if mask[i, t]:
                total -= logprobs[i, t] * min(math.exp(advantages[i, t] / lam), max_weight)
                count += 1
    return total / count


@wrong("awr_loss", "the sign")
def to_be_maximised(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return (weights * logprobs)[mask].mean()


@wrong("awr_loss", "the weights are not clipped")
def any_weight(logprobs, advantages, mask, lam, max_weight):
    return -(torch.exp(advantages / lam) * logprobs)[mask].mean()


@wrong("awr_loss", "A / lam is clipped")
def exponent_clipped(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(torch.clamp(advantages / lam, max=max_weight))
    return -(weights * logprobs)[mask].mean()


@wrong("awr_loss", "the least weight")
def clipped_from_below(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max_weight)  # the first parameter is min
    return -(weights * logprobs)[mask].mean()


@wrong("awr_loss", "small weights are clipped too")
def clipped_on_both_sides(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(1 / max_weight, max_weight)
    return -(weights * logprobs)[mask].mean()


@wrong("awr_loss", "exp is missing")
def linear_weights(logprobs, advantages, mask, lam, max_weight):
    weights = (advantages / lam).clamp(max=max_weight)
    return -(weights * logprobs)[mask].mean()


@wrong("awr_loss", "multiplied by lam")
def awr_times_lam(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(lam * advantages).clamp(max=max_weight)
    return -(weights * logprobs)[mask].mean()


@wrong("awr_loss", "lam is missing")
def awr_without_lam(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages).clamp(max=max_weight)
    return -(weights * logprobs)[mask].mean()


@wrong("awr_loss", "only what stands on the mask")
def no_mask(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return -(weights * logprobs).mean()


@wrong("awr_loss", "in the denominator")
def mean_of_the_masked(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return -(weights * logprobs * mask).mean()


@wrong("awr_loss", "in the denominator")
def divided_by_the_size(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return -torch.where(mask, weights * logprobs, 0.0).sum() / logprobs.numel()


@wrong("awr_loss", "the rows' means")
def mean_of_means(logprobs, advantages, mask, lam, max_weight):
    losses = []
    for new, a, kept in zip(logprobs, advantages, mask, strict=True):
        weights = torch.exp(a[kept] / lam).clamp(max=max_weight)
        losses.append(-(weights * new[kept]).mean())
    return sum(losses) / len(losses)


@wrong("awr_loss", "the sum over the actions")
def summed_over_actions(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return -(weights * logprobs)[mask].sum()


@wrong("awr_loss", "divided by their sum")
def weighted_mean(logprobs, advantages, mask, lam, max_weight):
    weights = np.minimum(np.exp(advantages.numpy() / lam), max_weight) * mask.numpy()
    return -np.average(logprobs.numpy(), weights=weights)


@wrong("awr_loss", "divided by their sum")
def normalised_weights(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages[mask] / lam).clamp(max=max_weight)
    return -(weights / weights.sum() * logprobs[mask]).sum()


@wrong("awr_loss", "probabilities are weighted")
def weighted_probabilities(logprobs, advantages, mask, lam, max_weight):
    weights = torch.exp(advantages / lam).clamp(max=max_weight)
    return -(weights * logprobs.exp())[mask].mean()


@right("p3o_loss")
def my_p3o_loss(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d, old_d = l0 - l1, old_l0 - old_l1
    q = (R0 - R1 - kl_coef * d).detach()
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight).detach()
    clipped = d.clamp(old_d - clip, old_d + clip)
    return torch.maximum(-q * w * d / 2, -q * w * clipped / 2)


@right("p3o_loss")
def plain_numbers(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d, old_d = l0 - l1, old_l0 - old_l1
    q = R0 - R1 - kl_coef * d
    w = min(max(math.exp(l0 + l1 - old_l0 - old_l1), 1 / max_weight), max_weight)
    return max(-q * w * d / 2, -q * w * min(max(d, old_d - clip), old_d + clip) / 2)


@right("p3o_loss")
def step_clipped(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d, old_d = float(l0 - l1), float(old_l0 - old_l1)
    q = float(R0 - R1) - kl_coef * d
    log_w = np.clip(float(l0 + l1) - float(old_l0 + old_l1), *np.log([1 / max_weight, max_weight]))
    clipped = old_d + np.clip(d - old_d, -clip, clip)
    return -min(q * d, q * clipped) * np.exp(log_w) / 2


def pair_of_terms(q, w, d, clipped):
    return torch.maximum(-q * w * d / 2, -q * w * clipped / 2)


def clipped_around_old(l0, l1, old_l0, old_l1, clip):
    return torch.clamp(l0 - l1, old_l0 - old_l1 - clip, old_l0 - old_l1 + clip)


@wrong("p3o_loss", "the half is missing")
def no_half(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d = l0 - l1
    q = R0 - R1 - kl_coef * d
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return max(-q * w * d, -q * w * clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "the sign of the KL term")
def paid_for_drift(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = R0 - R1 + kl_coef * (l0 - l1)
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return pair_of_terms(q, w, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "the sign of the KL term")
def kl_of_the_wrong_answer(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = (R0 - kl_coef * l1) - (R1 - kl_coef * l0)
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return pair_of_terms(q, w, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "q has no KL term")
def only_rewards(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return pair_of_terms(R0 - R1, w, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "w is missing")
def as_if_on_policy(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = R0 - R1 - kl_coef * (l0 - l1)
    return pair_of_terms(q, 1, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "the first answer only")
def weight_of_one_answer(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = R0 - R1 - kl_coef * (l0 - l1)
    w = torch.exp(l0 - old_l0).clamp(1 / max_weight, max_weight)
    return pair_of_terms(q, w, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "the difference of the two answers")
def weight_of_the_difference(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d, old_d = l0 - l1, old_l0 - old_l1
    q = R0 - R1 - kl_coef * d
    w = torch.exp(d - old_d).clamp(1 / max_weight, max_weight)
    return pair_of_terms(q, w, d, d.clamp(old_d - clip, old_d + clip))


@wrong("p3o_loss", "w is not clipped")
def any_w(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = R0 - R1 - kl_coef * (l0 - l1)
    w = torch.exp(l0 - old_l0) * torch.exp(l1 - old_l1)
    return pair_of_terms(q, w, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "from above only")
def w_at_most(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = R0 - R1 - kl_coef * (l0 - l1)
    w = min(math.exp(l0 - old_l0 + l1 - old_l1), max_weight)
    return pair_of_terms(q, w, l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip))


@wrong("p3o_loss", "the smaller of the two terms")
def optimistic_term(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d, clipped = l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip)
    q = R0 - R1 - kl_coef * d
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return min(-q * w * d / 2, -q * w * clipped / 2)


@wrong("p3o_loss", "d is not clipped")
def without_clipping(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d = l0 - l1
    q = R0 - R1 - kl_coef * d
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return -q * w * d / 2


@wrong("p3o_loss", "clipped around 0")
def clipped_around_zero(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d = l0 - l1
    q = R0 - R1 - kl_coef * d
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return pair_of_terms(q, w, d, d.clamp(-clip, clip))


@wrong("p3o_loss", "clipped around 1")
def clipped_around_one(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d = l0 - l1
    q = R0 - R1 - kl_coef * d
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return pair_of_terms(q, w, d, d.clamp(1 - clip, 1 + clip))


@wrong("p3o_loss", "this is PPO's ratio")
def ratio_of_ratios(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    q = R0 - R1 - kl_coef * (l0 - l1)
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    ratio = torch.exp(l0 - old_l0) / torch.exp(l1 - old_l1)
    return pair_of_terms(q, w, ratio, ratio.clamp(1 - clip, 1 + clip))


@wrong("p3o_loss", "this is the objective")
def objective_itself(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    d, clipped = l0 - l1, clipped_around_old(l0, l1, old_l0, old_l1, clip)
    q = R0 - R1 - kl_coef * d
    w = torch.exp(l0 - old_l0 + l1 - old_l1).clamp(1 / max_weight, max_weight)
    return torch.minimum(q * w * d / 2, q * w * clipped / 2)


@wrong("p3o_loss", "this is the objective")
def negated(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight):
    return -plain_numbers(l0, l1, old_l0, old_l1, R0, R1, kl_coef, clip, max_weight)
