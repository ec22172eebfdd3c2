"""Answers to the exercises of lesson 03, as learners write them."""

from itertools import combinations

import numpy as np
import torch
from answers import right, wrong


@right("read_reward")
def my_read_reward(hidden, attention_mask, w):
    T = attention_mask.shape[1]
    last = (attention_mask * torch.arange(T)).argmax(dim=1)  # (B,)
    return hidden[torch.arange(len(hidden)), last] @ w


@right("read_reward")
def row_by_row(hidden, attention_mask, w):
    return torch.stack(
        [h[m.nonzero()[-1, 0]] @ w for h, m in zip(hidden, attention_mask, strict=True)]
    )


@right("read_reward")
def gathered(hidden, attention_mask, w):
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
    rewards = torch.einsum("bth,h->bt", hidden, w)
    return rewards.gather(1, last[:, None]).squeeze(1)


@right("read_reward")
def by_cumulated_counts(hidden, attention_mask, w):
    last = np.cumsum(attention_mask.numpy(), axis=1).argmax(axis=1)
    return hidden.numpy()[np.arange(len(last)), last] @ w.numpy()


@wrong("read_reward", "read at the last place")
def last_place(hidden, attention_mask, w):
    return hidden[:, -1, :] @ w


@wrong("read_reward", "sum of the mask counts tokens")
def by_length(hidden, attention_mask, w):
    lengths = attention_mask.sum(dim=1)
    return torch.stack([h[n - 1] @ w for h, n in zip(hidden, lengths, strict=True)])


@wrong("read_reward", "before the first padding")
def first_zero(hidden, attention_mask, w):
    rewards = []
    for h, mask in zip(hidden, attention_mask, strict=True):
        zeros = (mask == 0).nonzero()
        end = int(zeros[0]) if len(zeros) else len(mask)
        rewards.append(h[end - 1] @ w)
    return rewards


@wrong("read_reward", "first attended token")
def first_one(hidden, attention_mask, w):
    return hidden[torch.arange(len(hidden)), attention_mask.argmax(dim=-1)] @ w


@wrong("read_reward", "mean over the attended")
def mean_pooled(hidden, attention_mask, w):
    mask = attention_mask[..., None]
    return ((hidden * mask).sum(1) / mask.sum(1)) @ w


@wrong("read_reward", "sum over the attended")
def sum_pooled(hidden, attention_mask, w):
    return torch.einsum("bth,bt,h->b", hidden, attention_mask.double(), w)


@wrong("read_reward", "mean over all places")
def mean_with_padding(hidden, attention_mask, w):
    return (hidden @ w).mean(dim=1)


@wrong("read_reward", "for every token")
def every_token(hidden, attention_mask, w):
    return (hidden * w).sum(dim=-1)


@wrong("read_reward", r"shape is \(B, 1\)")
def column(hidden, attention_mask, w):
    return my_read_reward(hidden, attention_mask, w.unsqueeze(-1))


@wrong("read_reward", "a sigmoid was added")
def squashed(hidden, attention_mask, w):
    return torch.sigmoid(my_read_reward(hidden, attention_mask, w))


@wrong("read_reward", "where the first row ends")
def one_end_for_all(hidden, attention_mask, w):
    last = attention_mask[0].nonzero().max()
    return hidden[:, last] @ w


@wrong("read_reward", "counted from the row's end")
def from_the_end(hidden, attention_mask, w):
    behind = torch.flip(attention_mask, dims=[1]).argmax(dim=1)
    return hidden[torch.arange(len(hidden)), behind] @ w


@wrong("read_reward", "one place early")
def as_a_prediction(hidden, attention_mask, w):
    return torch.stack([h[m.bool()][-2] @ w for h, m in zip(hidden, attention_mask, strict=True)])


@wrong("read_reward", "one place late")
def counted_from_one(hidden, attention_mask, w):
    ends = [int(mask.nonzero().max()) + 1 for mask in attention_mask]
    return torch.stack([hidden[i, end] @ w for i, end in enumerate(ends)])


@right("position_ids")
def my_position_ids(attention_mask):
    return (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)


@right("position_ids")
def shifted(attention_mask):
    T = attention_mask.shape[1]
    pad = (attention_mask == 0).sum(1, keepdim=True)
    return torch.relu(torch.arange(T) - pad)


@right("position_ids")
def times_the_mask(attention_mask):
    return (np.cumsum(attention_mask.numpy(), axis=1) - 1) * attention_mask.numpy()


@right("position_ids")
def counter(attention_mask):
    rows = []
    for mask in attention_mask.tolist():
        n = sum(mask)
        rows.append([0] * (len(mask) - n) + list(range(n)))
    return rows


@wrong("position_ids", "row's first place, padding or not")
def as_without_a_mask(attention_mask):
    B, T = attention_mask.shape
    return torch.arange(T).repeat(B, 1)


@wrong("position_ids", "the padding is 0, but")
def masked_places(attention_mask):
    return torch.arange(attention_mask.shape[1]) * attention_mask


@wrong("position_ids", "one row of positions")
def plain_range(attention_mask):
    return torch.arange(attention_mask.shape[-1])


@wrong("position_ids", "one too many")
def only_cumulated(attention_mask):
    return torch.cumsum(attention_mask, dim=1)


@wrong("position_ids", "the padding is at -1")
def not_clamped(attention_mask):
    return torch.cumsum(attention_mask, dim=1) - 1


@wrong("position_ids", "counts down below 0")
def only_shifted(attention_mask):
    T = attention_mask.shape[1]
    return torch.arange(T) - (T - attention_mask.sum(dim=1))[:, None]


@wrong("position_ids", "counts down to the first token")
def distance(attention_mask):
    first = attention_mask.argmax(dim=1)
    return (torch.arange(attention_mask.shape[1]) - first[:, None]).abs()


@wrong("position_ids", "the padding is at 1")
def as_in_generate(attention_mask):
    positions = attention_mask.long().cumsum(-1) - 1
    return positions.masked_fill(attention_mask == 0, 1)


@wrong("position_ids", "counted from the right")
def backwards(attention_mask):
    T = attention_mask.shape[1]
    return torch.arange(T - 1, -1, -1) * attention_mask


@wrong("position_ids", "down the columns")
def along_the_batch(attention_mask):
    return (attention_mask.cumsum(dim=0) - 1).clamp(min=0)


@wrong("position_ids", "from row to row")
def running_count(attention_mask):
    count, rows = 0, []
    for mask in attention_mask.tolist():
        rows.append([])
        for attended in mask:
            count += attended
            rows[-1].append(max(count - 1, 0))
    return rows


@wrong("position_ids", "first row's positions")
def of_the_first_row(attention_mask):
    positions = (attention_mask[0].cumsum(0) - 1).clamp(min=0)
    return positions.repeat(len(attention_mask), 1)


@right("sees")
def my_sees(segments):
    query, key = segments[:, None], segments[None, :]
    return ((key == 0) | (key == query)).tril()


@right("sees")
def in_loops(segments):
    s = segments.tolist()
    return [[k <= q and s[k] in (0, s[q]) for k in range(len(s))] for q in range(len(s))]


@right("sees")
def from_places(segments):
    places = np.arange(len(segments))
    s = segments.numpy()
    own = np.equal.outer(s, s) | (s == 0)
    return own & (places[:, None] >= places)


@wrong("sees", "plain causal mask")
def causal(segments):
    T = len(segments)
    return torch.ones(T, T, dtype=torch.bool).tril()


@wrong("sees", "plain causal mask")
def no_later_segment(segments):
    return (segments[None, :] <= segments[:, None]).tril()


@wrong("sees", "what comes after it: no key")
def not_causal(segments):
    query, key = segments[:, None], segments[None, :]
    return (key == 0) | (key == query)


@wrong("sees", "the prompt sees the answers")
def either_is_the_prompt(segments):
    query, key = segments[:, None], segments[None, :]
    return (key == query) | (key == 0) | (query == 0)


@wrong("sees", "blind to the prompt")
def own_segment_alone(segments):
    return (segments[:, None] == segments[None, :]).tril()


@wrong("sees", "sees the prompt alone")
def prompt_alone(segments):
    T = len(segments)
    return torch.tril(segments.eq(0).repeat(T, 1))


@wrong("sees", "turned round")
def key_by_query(segments):
    key, query = segments[:, None], segments[None, :]
    return ((key == 0) | (key == query)).triu()


@wrong("sees", "does not see itself")
def strictly_before(segments):
    query, key = segments[:, None], segments[None, :]
    return ((key == 0) | (key == query)).tril(diagonal=-1)


@wrong("sees", "may not look")
def hidden_places(segments):
    query, key = segments[:, None], segments[None, :]
    future = torch.ones(len(segments), len(segments), dtype=torch.bool).triu(1)
    return future | ((key != 0) & (key != query))


@wrong("sees", "in both directions")
def causal_in_answers(segments):
    query, key = segments[:, None], segments[None, :]
    return torch.where(query == 0, key == 0, ((key == 0) | (key == query)).tril())


@wrong("sees", "the order of segments is taken")
def by_segment_order(segments):
    return segments[None, :] <= segments[:, None]


@wrong("sees", "that stands last sees all")
def last_sees_all(segments):
    seen = torch.zeros(len(segments), len(segments), dtype=torch.bool)
    for q in range(len(segments)):
        for k in range(q + 1):
            last = segments[q] == segments[-1]
            seen[q, k] = last or segments[k] == 0 or segments[k] == segments[q]
    return seen


@right("packed_positions")
def my_packed_positions(prompt, answers):
    parts = [torch.arange(prompt)]
    parts += [torch.arange(prompt, prompt + n) for n in answers]
    return torch.cat(parts)


@right("packed_positions")
def ranges(prompt, answers):
    return [*range(prompt), *(prompt + i for n in answers for i in range(n))]


@right("packed_positions")
def running_less_those_before(prompt, answers):
    before = np.repeat(np.cumsum([0, *answers[:-1]]), answers)
    return np.arange(prompt + sum(answers)) - np.concatenate([np.zeros(prompt, int), before])


@wrong("packed_positions", "the positions run on")
def run_on(prompt, answers):
    return list(range(prompt + sum(answers)))


@wrong("packed_positions", "the answers begin at 0")
def from_zero(prompt, answers):
    return torch.cat([torch.arange(n) for n in [prompt, *answers]])


@wrong("packed_positions", "begin at P - 1")
def from_the_prompts_last(prompt, answers):
    return [*range(prompt), *(prompt - 1 + i for n in answers for i in range(n))]


@wrong("packed_positions", r"begin at P \+ 1")
def with_a_gap(prompt, answers):
    return [*range(prompt), *(i for n in answers for i in range(prompt + 1, prompt + 1 + n))]


@wrong("packed_positions", "counted from 1")
def from_one(prompt, answers):
    positions = list(range(1, prompt + 1))
    for n in answers:
        positions += range(prompt + 1, prompt + n + 1)
    return positions


@wrong("packed_positions", "one later than the one before")
def staggered(prompt, answers):
    positions = list(range(prompt))
    for k, n in enumerate(answers):
        positions += range(prompt + k, prompt + k + n)
    return positions


@wrong("packed_positions", "the prompt is missing")
def answers_alone(prompt, answers):
    return torch.cat([torch.arange(prompt, prompt + n) for n in answers])


@wrong("packed_positions", "before each answer")
def not_packed(prompt, answers):
    return torch.cat([torch.arange(prompt + n) for n in answers])


@wrong("packed_positions", "padded to the longest")
def with_padding(prompt, answers):
    answer = torch.arange(prompt, prompt + max(answers))
    return torch.cat([torch.arange(prompt), answer.repeat(len(answers))])


@wrong("packed_positions", "these are the segments")
def segment_numbers(prompt, answers):
    return np.repeat(np.arange(len(answers) + 1), [prompt, *answers])


@wrong("packed_positions", "after the first answer")
def first_answer_alone_follows(prompt, answers):
    first, *rest = answers
    return [*range(prompt + first), *(i for n in rest for i in range(n))]


@right("tokens_computed")
def my_tokens_computed(prompt, answers):
    K, total = len(answers), sum(answers)
    return prompt + total, K * (prompt + max(answers)), (K - 1) * (K * prompt + total)


@right("tokens_computed")
def pair_by_pair(prompt, answers):
    rows = [prompt + n for n in answers]
    pairs = torch.combinations(torch.tensor(rows))
    return prompt + sum(answers), len(rows) * max(rows), pairs.sum()


def others(prompt, answers):
    """The first two numbers."""
    return prompt + sum(answers), len(answers) * (prompt + max(answers))


@wrong("tokens_computed", "first number has the prompt K times")
def prompt_repeated(prompt, answers):
    rows = [prompt + n for n in answers]
    return sum(rows), len(rows) * max(rows), (len(rows) - 1) * sum(rows)


@wrong("tokens_computed", "first number lacks the prompt")
def only_answers(prompt, answers):
    return sum(answers), *my_tokens_computed(prompt, answers)[1:]


@wrong("tokens_computed", "second number is without padding")
def padded_to_the_mean(prompt, answers):
    one, _, three = my_tokens_computed(prompt, answers)
    return one, len(answers) * (prompt + np.mean(answers)), three


@wrong("tokens_computed", "second number lacks the prompt")
def answers_padded(prompt, answers):
    one, _, three = my_tokens_computed(prompt, answers)
    return one, len(answers) * max(answers), three


@wrong("tokens_computed", "second number has the prompt once")
def packed_and_padded(prompt, answers):
    one, _, three = my_tokens_computed(prompt, answers)
    return one, prompt + len(answers) * max(answers), three


@wrong("tokens_computed", "second number is of one sequence")
def without_the_batch(prompt, answers):
    one, _, three = my_tokens_computed(prompt, answers)
    return one, prompt + max(answers), three


@wrong("tokens_computed", "one sequence a pair")
def as_many_as_pairs(prompt, answers):
    K = len(answers)
    return *others(prompt, answers), K * (K - 1) / 2 * (prompt + np.mean(answers))


@wrong("tokens_computed", "every pair twice")
def ordered_pairs(prompt, answers):
    K = len(answers)
    total = sum(2 * prompt + answers[i] + answers[j] for i in range(K) for j in range(K) if i != j)
    return *others(prompt, answers), total


@wrong("tokens_computed", "every sequence once")
def each_once(prompt, answers):
    return *others(prompt, answers), sum(prompt + n for n in answers)


@wrong("tokens_computed", "every sequence K times")
def with_itself_too(prompt, answers):
    K = len(answers)
    return *others(prompt, answers), K * (K * prompt + sum(answers))


@wrong("tokens_computed", "prompt once a pair")
def pairs_packed(prompt, answers):
    return *others(prompt, answers), sum(prompt + a + b for a, b in combinations(answers, 2))


@wrong("tokens_computed", "third number lacks the prompt")
def pairs_of_answers(prompt, answers):
    return *others(prompt, answers), sum(a + b for a, b in combinations(answers, 2))


@wrong("tokens_computed", "third number is padded to the longest")
def pairs_padded(prompt, answers):
    K = len(answers)
    return *others(prompt, answers), K * (K - 1) * (prompt + max(answers))


@wrong("tokens_computed", "longer of each pair")
def each_pair_padded(prompt, answers):
    pairs = combinations(answers, 2)
    return *others(prompt, answers), sum(2 * (prompt + max(a, b)) for a, b in pairs)


@wrong("tokens_computed", "pairs of the best answer")
def best_against_the_rest(prompt, answers):
    best, *rest = answers
    return *others(prompt, answers), sum(2 * prompt + best + n for n in rest)


@wrong("tokens_computed", "the order is turned")
def largest_first(prompt, answers):
    one, two, three = my_tokens_computed(prompt, answers)
    return three, two, one
