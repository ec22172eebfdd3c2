"""Answers to the exercises of lesson 06, as learners write them."""

import math

import numpy as np
import torch
from answers import right, wrong
from torch.nn import functional as F


@right("response_logprobs")
def my_response_logprobs(logits, ids, P):
    log_pi = logits[P - 1 : -1].log_softmax(dim=1)  # (L - P, V)
    return log_pi.gather(1, ids[P:, None])[:, 0]


@right("response_logprobs")
def minus_cross_entropy(logits, ids, P):
    losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    return -losses[P - 1 :]


@right("response_logprobs")
def logit_less_logsumexp(logits, ids, P):
    rows = np.arange(P - 1, len(ids) - 1)
    x = logits.numpy()
    return x[rows, ids[P:].numpy()] - np.logaddexp.reduce(x[rows], axis=1)


@right("response_logprobs")
def token_by_token(logits, ids, P):
    log_pi = torch.log_softmax(logits, dim=-1)
    return [log_pi[t - 1, ids[t]] for t in range(P, len(ids))]


@right("response_logprobs")
def by_distribution(logits, ids, P):
    return torch.distributions.Categorical(logits=logits[P - 1 : -1]).log_prob(ids[P:])


@wrong("response_logprobs", "at its own place")
def unshifted(logits, ids, P):
    log_pi = torch.log_softmax(logits, dim=-1)
    return log_pi.gather(1, ids[:, None]).squeeze(1)[P:]


@wrong("response_logprobs", "at its own place")
def last_rows(logits, ids, P):
    n = len(ids) - P
    return -F.cross_entropy(logits[-n:], ids[-n:], reduction="none")


@wrong("response_logprobs", "one place early")
def shifted_twice(logits, ids, P):
    log_pi = torch.log_softmax(logits, dim=-1)
    return [log_pi[t - 2, ids[t]] for t in range(P, len(ids))]


@wrong("response_logprobs", "first response token is missing")
def shifted_then_cut(logits, ids, P):
    log_pi = torch.log_softmax(logits[:-1], dim=-1)
    return log_pi.gather(1, ids[1:, None])[:, 0][P:]


@wrong("response_logprobs", "first response token is missing")
def cut_then_shifted(logits, ids, P):
    logits, ids = logits[P:], ids[P:]
    return -F.cross_entropy(logits[:-1], ids[1:], reduction="none")


@wrong("response_logprobs", "the prompt's tokens are scored too")
def all_tokens(logits, ids, P):
    return -F.cross_entropy(logits[:-1], ids[1:], reduction="none")


@wrong("response_logprobs", "these are probabilities")
def softmax(logits, ids, P):
    pi = torch.softmax(logits, dim=-1)
    return torch.stack([pi[t - 1, ids[t]] for t in range(P, len(ids))])


@wrong("response_logprobs", "token's logit")
def raw_logits(logits, ids, P):
    return logits[P - 1 : -1].gather(1, ids[P:, None])[:, 0]


@wrong("response_logprobs", "likeliest token")
def greedy(logits, ids, P):
    log_pi = torch.log_softmax(logits[P - 1 : -1], dim=-1)
    return log_pi.gather(1, log_pi.argmax(1, keepdim=True))[:, 0]


@wrong("response_logprobs", "looked up at every place")
def indexed(logits, ids, P):
    return torch.log_softmax(logits[P - 1 : -1], dim=-1)[:, ids[P:]]


@wrong("response_logprobs", "runs over the places")
def first_dimension(logits, ids, P):
    log_pi = torch.log_softmax(logits, dim=0)
    return [log_pi[t - 1, ids[t]] for t in range(P, len(ids))]


@wrong("response_logprobs", "the sign")
def losses(logits, ids, P):
    return F.cross_entropy(logits[P - 1 : -1], ids[P:], reduction="none")


@wrong("response_logprobs", "the sum over the response")
def of_the_answer(logits, ids, P):
    return -F.cross_entropy(logits[P - 1 : -1], ids[P:], reduction="sum")


@wrong("response_logprobs", "the mean over the response")
def default_reduction(logits, ids, P):
    return -F.cross_entropy(logits[P - 1 : -1], ids[P:])


@wrong("response_logprobs", "exp overflows")
def as_written(logits, ids, P):
    e = torch.exp(logits)
    return [torch.log(e[t - 1, ids[t]] / e[t - 1].sum()) for t in range(P, len(ids))]


@wrong("response_logprobs", "exp overflows")
def log_of_the_sum(logits, ids, P):
    x = logits.tolist()
    sums = [math.log(sum(math.exp(v) for v in row)) for row in x]
    return [x[t - 1][int(ids[t])] - sums[t - 1] for t in range(P, len(ids))]


@wrong("response_logprobs", "underflows")
def log_of_softmax(logits, ids, P):
    return torch.log(softmax(logits, ids, P))


@right("shape_rewards")
def my_shape_rewards(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    last = mask.sum(dim=1) - 1  # (B,)
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


@right("shape_rewards")
def row_by_row(scores, kl, mask, kl_coef):
    rewards = []
    for score, row, n in zip(scores.tolist(), kl.tolist(), mask.sum(1).tolist(), strict=True):
        paid = [-kl_coef * x for x in row[:n]] + [0.0] * (len(row) - n)
        paid[n - 1] += score
        rewards.append(paid)
    return rewards


@right("shape_rewards")
def where_the_next_is_padding(scores, kl, mask, kl_coef):
    mask = mask.numpy()
    following = np.pad(mask[:, 1:], ((0, 0), (0, 1)))
    return mask * -kl_coef * kl.numpy() + (mask & ~following) * scores.numpy()[:, None]


@right("shape_rewards")
def by_positions(scores, kl, mask, kl_coef):
    last = (mask * torch.arange(mask.shape[1])).argmax(1, keepdim=True)
    return torch.where(mask, -kl_coef * kl, 0.0).scatter_add(1, last, scores[:, None])


@wrong("shape_rewards", "last place of the row")
def last_column(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, -1] += scores
    return rewards


@wrong("shape_rewards", "one place late")
def at_the_length(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1)] += scores
    return rewards


@wrong("shape_rewards", "one place late")
def scattered_late(scores, kl, mask, kl_coef):
    rewards = torch.where(mask, -kl_coef * kl, 0.0)
    return rewards.scatter_add(1, mask.sum(1, keepdim=True), scores[:, None])


@wrong("shape_rewards", "one place early")
def before_the_end_of_turn(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    for i, score in enumerate(scores):
        rewards[i, mask[i].sum() - 2] += score
    return rewards


@wrong("shape_rewards", "where the first row ends")
def end_of_the_first(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, mask[0].sum() - 1] += scores
    return rewards


@wrong("shape_rewards", "a row without padding gets no score")
def where_padding_begins(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[:, :-1] += scores[:, None] * (mask[:, :-1] & ~mask[:, 1:])
    return rewards


@wrong("shape_rewards", "a row without padding gets no score")
def rolled(scores, kl, mask, kl_coef):
    last = mask & ~mask.roll(-1, dims=1)
    return -kl_coef * kl * mask + scores[:, None] * last


@wrong("shape_rewards", "every action gets the score")
def broadcast(scores, kl, mask, kl_coef):
    return (scores[:, None] - kl_coef * kl) * mask


@wrong("shape_rewards", "divided over the actions")
def spread(scores, kl, mask, kl_coef):
    share = scores / mask.sum(1)
    return torch.where(mask, share[:, None] - kl_coef * kl, 0)


@wrong("shape_rewards", "replaces the KL")
def assigned(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] = scores
    return rewards


@wrong("shape_rewards", "the sign of the KL")
def kl_rewarded(scores, kl, mask, kl_coef):
    rewards = kl_coef * kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


@wrong("shape_rewards", "paid in every row")
def whole_columns(scores, kl, mask, kl_coef):
    rewards = (-kl_coef * kl).masked_fill(~mask, 0)
    rewards[:, mask.sum(1) - 1] += scores[:, None]
    return rewards


@wrong("shape_rewards", "on padding too")
def unmasked(scores, kl, mask, kl_coef):
    rewards = -kl_coef * kl
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


@wrong("shape_rewards", "pays the KL of all")
def all_at_the_end(scores, kl, mask, kl_coef):
    rewards = torch.zeros_like(kl)
    total = scores - kl_coef * (kl * mask).sum(1)
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] = total
    return rewards


@wrong("shape_rewards", "the KL plays no part")
def only_scores(scores, kl, mask, kl_coef):
    last = mask.sum(1, keepdim=True) - 1
    return torch.zeros_like(kl).scatter(1, last, scores[:, None])


@wrong("shape_rewards", "kl_coef plays no part")
def full_price(scores, kl, mask, kl_coef):
    rewards = -kl * mask
    rewards[torch.arange(len(scores)), mask.sum(1) - 1] += scores
    return rewards


@wrong("shape_rewards", "kl_coef multiplies the score")
def all_scaled(scores, kl, mask, kl_coef):
    return kl_coef * full_price(scores, kl, mask, kl_coef)


@right("gae")
def my_gae(rewards, values, gamma, lam):
    advantages = torch.zeros_like(values)
    advantage = next_value = 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        advantage = delta + gamma * lam * advantage
        next_value = values[t]
        advantages[t] = advantage
    return advantages


@right("gae")
def as_a_sum(rewards, values, gamma, lam):
    r, v = rewards.tolist(), [*values.tolist(), 0.0]
    deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(len(r))]
    return [
        sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(r))
    ]


@right("gae")
def by_matrix(rewards, values, gamma, lam):
    v = np.append(values.numpy(), 0)
    deltas = rewards.numpy() + gamma * v[1:] - v[:-1]
    apart = np.arange(len(deltas)) - np.arange(len(deltas))[:, None]  # (R, R): k - t
    return np.triu((gamma * lam) ** np.maximum(apart, 0)) @ deltas


@right("gae")
def lambda_returns(rewards, values, gamma, lam):
    """The return mixes the next value and the next return; the advantage is it less the value."""
    target, next_value, advantages = 0.0, 0.0, []
    for r, v in zip(rewards.flip(0), values.flip(0), strict=True):
        target = r + gamma * ((1 - lam) * next_value + lam * target)
        next_value = v
        advantages.insert(0, target - v)
    return advantages


def summed(deltas, factor):
    """Each error and those behind it, weighted by powers of factor."""
    advantages = torch.zeros_like(deltas)
    running = 0.0
    for t in reversed(range(len(deltas))):
        running = deltas[t] + factor * running
        advantages[t] = running
    return advantages


def shifted(values):
    return F.pad(values[1:], (0, 1))


@wrong("gae", r"V_t stands where V_\{t\+1\}")
def next_value_set_too_soon(rewards, values, gamma, lam):
    advantages, advantage = [], 0.0
    for t in reversed(range(len(rewards))):
        next_value = values[t]
        delta = rewards[t] + gamma * next_value - values[t]
        advantage = delta + gamma * lam * advantage
        advantages.append(advantage)
    return torch.stack(advantages[::-1])


@wrong("gae", "are swapped: the state left")
def backward_difference(rewards, values, gamma, lam):
    return summed(rewards + gamma * values - shifted(values), gamma * lam)


@wrong("gae", "stands the last value")
def clamped_index(rewards, values, gamma, lam):
    last = len(rewards) - 1
    after = torch.stack([values[min(t + 1, last)] for t in range(len(rewards))])
    return summed(rewards + gamma * after - values, gamma * lam)


@wrong("gae", "stands the first value")
def wrapped(rewards, values, gamma, lam):
    return summed(rewards + gamma * torch.roll(values, -1) - values, gamma * lam)


@wrong("gae", "gamma and lam are swapped")
def arguments_swapped(rewards, values, gamma, lam):
    return my_gae(rewards, values, lam, gamma)


@wrong("gae", "lam plays no part")
def monte_carlo(rewards, values, gamma, lam):
    return summed(rewards, gamma) - values


@wrong("gae", "lam plays no part")
def only_gamma(rewards, values, gamma, lam):
    return summed(rewards + gamma * shifted(values) - values, gamma)


@wrong("gae", "gamma is missing in the sum")
def weighted_by_lam(rewards, values, gamma, lam):
    return summed(rewards + gamma * shifted(values) - values, lam)


@wrong("gae", "gamma plays no part")
def undiscounted(rewards, values, gamma, lam):
    return my_gae(rewards, values, 1.0, lam)


@wrong("gae", "one-step errors")
def deltas_only(rewards, values, gamma, lam):
    return rewards + gamma * shifted(values) - values


@wrong("gae", "the values play no part")
def discounted_returns(rewards, values, gamma, lam):
    r = rewards.tolist()
    return [sum(gamma**k * x for k, x in enumerate(r[t:])) for t in range(len(r))]


@wrong("gae", r"gamma \* lam discounts the rewards")
def discounted_by_both(rewards, values, gamma, lam):
    advantages, running = [], 0.0
    for r, v in zip(rewards.flip(0), values.flip(0), strict=True):
        running = r + gamma * lam * running
        advantages.append(running - v)
    return advantages[::-1]


@wrong("gae", "these are the returns")
def targets(rewards, values, gamma, lam):
    return my_gae(rewards, values, gamma, lam) + values


@wrong("gae", "runs forwards")
def from_the_start(rewards, values, gamma, lam):
    deltas = rewards + gamma * shifted(values) - values
    advantages, advantage = [], 0.0
    for delta in deltas:
        advantage = delta + gamma * lam * advantage
        advantages.append(advantage)
    return advantages


@wrong("gae", "last to first")
def appended(rewards, values, gamma, lam):
    advantages, advantage, next_value = [], 0.0, 0.0
    for r, v in zip(rewards.flip(0), values.flip(0), strict=True):
        advantage = r + gamma * next_value - v + gamma * lam * advantage
        next_value = v
        advantages.append(advantage)
    return advantages


@wrong("gae", "are whitened")
def normalised(rewards, values, gamma, lam):
    advantages = my_gae(rewards, values, gamma, lam)
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


@right("ppo_loss")
def my_ppo_loss(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(-advantages * ratio, -advantages * clipped)
    return loss[mask].mean()


@right("ppo_loss")
def minus_the_minimum(logprobs, old_logprobs, advantages, mask, clip):
    ratio = np.exp(logprobs.numpy() - old_logprobs.numpy())
    A, m = advantages.numpy(), mask.numpy()
    return -(np.minimum(A * ratio, A * np.clip(ratio, 1 - clip, 1 + clip)) * m).sum() / m.sum()


@right("ppo_loss")
def by_the_sign_of_the_advantage(logprobs, old_logprobs, advantages, mask, clip):
    ratio = (logprobs - old_logprobs).exp()
    capped = torch.where(advantages > 0, ratio.clamp(max=1 + clip), ratio.clamp(min=1 - clip))
    return -(capped * advantages)[mask].mean()


@right("ppo_loss")
def action_by_action(logprobs, old_logprobs, advantages, mask, clip):
    losses = []
    for new, old, a in zip(logprobs[mask], old_logprobs[mask], advantages[mask], strict=True):
        ratio = math.exp(new - old)
        losses.append(max(-a * ratio, -a * min(max(ratio, 1 - clip), 1 + clip)))
    return sum(losses) / len(losses)


@wrong("ppo_loss", "the sign")
def objective(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return torch.min(ratio * advantages, clipped * advantages)[mask].mean()


@wrong("ppo_loss", "the smaller of the two losses")
def optimist(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return torch.min(-ratio * advantages, -clipped * advantages)[mask].mean()


@wrong("ppo_loss", "the smaller of the two losses")
def minus_the_maximum(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return -torch.max(ratio * advantages, clipped * advantages)[mask].mean()


@wrong("ppo_loss", "only the clipped term")
def always_clipped(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs).clamp(1 - clip, 1 + clip)
    return -(ratio * advantages)[mask].mean()


@wrong("ppo_loss", "nothing is clipped")
def importance_sampling(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    return -(ratio * advantages)[mask].mean()


@wrong("ppo_loss", "the ratio is inverted")
def old_over_new(logprobs, old_logprobs, advantages, mask, clip):
    return my_ppo_loss(old_logprobs, logprobs, advantages, mask, clip)


@wrong("ppo_loss", "is no ratio")
def log_ratio(logprobs, old_logprobs, advantages, mask, clip):
    ratio = logprobs - old_logprobs
    clipped = ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(-advantages * ratio, -advantages * clipped)[mask].mean()


@wrong("ppo_loss", "-clip to clip")
def around_zero(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(-clip, clip)
    return torch.maximum(-advantages * ratio, -advantages * clipped)[mask].mean()


@wrong("ppo_loss", r"clipped at 1 \+ clip only")
def one_side(logprobs, old_logprobs, advantages, mask, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, max=1 + clip)
    return -torch.minimum(advantages * ratio, advantages * clipped)[mask].mean()


@wrong("ppo_loss", "ratio times the advantage is clipped")
def product_clipped(logprobs, old_logprobs, advantages, mask, clip):
    gain = torch.exp(logprobs - old_logprobs) * advantages
    return -torch.min(gain, torch.clamp(gain, 1 - clip, 1 + clip))[mask].mean()


@wrong("ppo_loss", "logarithm of the ratio is clipped")
def clipped_logarithm(logprobs, old_logprobs, advantages, mask, clip):
    log_ratio = logprobs - old_logprobs
    ratio, clipped = log_ratio.exp(), log_ratio.clamp(-clip, clip).exp()
    return torch.maximum(-advantages * ratio, -advantages * clipped)[mask].mean()


@wrong("ppo_loss", "one ratio for a whole answer")
def sequence_ratio(logprobs, old_logprobs, advantages, mask, clip):
    ratio = ((logprobs * mask).sum(1) - (old_logprobs * mask).sum(1)).exp()[:, None]
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return -torch.minimum(ratio * advantages, clipped * advantages)[mask].mean()


@wrong("ppo_loss", "are whitened once more")
def whitening(logprobs, old_logprobs, advantages, mask, clip):
    A = advantages[mask]
    A = (A - A.mean()) / (A.std() + 1e-8)
    ratio = torch.exp(logprobs - old_logprobs)[mask]
    return torch.max(-A * ratio, -A * ratio.clamp(1 - clip, 1 + clip)).mean()


def losses_of(logprobs, old_logprobs, advantages, clip):
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return torch.max(-advantages * ratio, -advantages * clipped)


@wrong("ppo_loss", "the sum over the actions")
def summed_loss(logprobs, old_logprobs, advantages, mask, clip):
    return losses_of(logprobs, old_logprobs, advantages, clip)[mask].sum()


@wrong("ppo_loss", "padding is counted")
def mean_of_masked(logprobs, old_logprobs, advantages, mask, clip):
    return (losses_of(logprobs, old_logprobs, advantages, clip) * mask).mean()


@wrong("ppo_loss", "the mask plays no part")
def mean_of_all(logprobs, old_logprobs, advantages, mask, clip):
    return losses_of(logprobs, old_logprobs, advantages, clip).mean()


@wrong("ppo_loss", "mean of the rows' means")
def answer_by_answer(logprobs, old_logprobs, advantages, mask, clip):
    losses = losses_of(logprobs, old_logprobs, advantages, clip)
    return torch.stack([row[m].mean() for row, m in zip(losses, mask, strict=True)]).mean()
