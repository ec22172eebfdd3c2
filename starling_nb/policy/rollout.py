"""Sampling answers from a policy, and the log-probabilities of answers it has sampled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import Conversation, decode_answer, encode

DROP_EVERY = 4  # decoding steps between two removals of finished rows
ROWS = 16  # rows of similar length that are computed together


@dataclass(frozen=True)
class Rollout:
    """B sampled responses: state t of a response is what has been read when action t is chosen."""

    prompt_ids: Tensor  # (B, P) long, left-padded
    prompt_mask: Tensor  # (B, P) bool
    response_ids: Tensor  # (B, R) long, right-padded
    action_mask: Tensor  # (B, R) bool, true on every sampled token, the end-of-turn included
    logprobs: Tensor  # (B, R) nats, of the distribution sampled from; 0 on padding
    truncated: Tensor  # (B,) bool, true where max_new_tokens came before the end of turn
    states: Tensor | None = None  # (B, R, H) from which the actions were chosen, when asked for


@torch.no_grad()
def rollout(
    policy: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    seeds: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    eos_token_id: int,
    pad_token_id: int,
    keep_states: bool = False,
) -> Rollout:
    """Sample responses to prompts (lists of ids), stopping each at eos_token_id.

    seeds: (B,) long for one response to each of B prompts, or (prompts, n) for n responses to
    each, which share the reading of their prompt and come out next to each other, B = prompts * n.
    A row is sampled with uniform numbers drawn on the CPU from its seed alone, so its batch mates
    do not matter, but for rounding: a row computed in another batch has probabilities that differ
    by about 1e-7, and a token changes when its uniform number falls into such a gap, of the order
    of once in 1e6 tokens. temperature 0 takes the likeliest token (the output of `generate`) and
    records log-probabilities at temperature 1. Logits are what the LM head gives: a policy that
    scales or caps them afterwards (`dpo.SCALINGS`) is not sampled rightly.

    Raises ValueError for an empty prompt or one that leaves no room in the policy's context.
    """
    check_prompts(prompt_ids, policy.config.max_position_embeddings - max_new_tokens)
    prompts, prompt_mask = left_pad(prompt_ids, pad_token_id, policy.device)
    samples = seeds.numel() // len(prompts)
    uniforms = torch.stack([uniform_row(int(s), max_new_tokens) for s in seeds.flatten()])
    uniforms = uniforms.to(policy.device)  # (B, max_new_tokens)
    response_ids = torch.full_like(uniforms, pad_token_id, dtype=torch.long)
    logprobs = torch.zeros_like(uniforms, dtype=at_least_float32(policy.dtype))
    shape = (*uniforms.shape, policy.config.hidden_size)
    states = torch.zeros(shape, dtype=logprobs.dtype, device=policy.device) if keep_states else None

    rows = torch.arange(len(uniforms), device=policy.device)  # the rows still in the batch
    finished = torch.zeros_like(rows, dtype=torch.bool)  # (B,)
    cache = DynamicCache(config=policy.config)
    tokens, mask, positions = prompts, prompt_mask, position_ids(prompt_mask)
    for t in range(max_new_tokens):
        last = policy.get_decoder()(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]  # (rows, H); at t = 0 there is one row for each prompt
        if t == 0 and samples > 1:
            cache.batch_repeat_interleave(samples)
            last, mask, positions, prompts, prompt_mask = (
                x.repeat_interleave(samples, 0)
                for x in (last, mask, positions, prompts, prompt_mask)
            )
        log_pi = log_softmax(policy.get_output_embeddings()(last), temperature or 1.0)  # (rows, V)
        actions = inverse_cdf(log_pi, uniforms[rows, t]) if temperature else log_pi.argmax(-1)
        response_ids[rows, t] = actions
        logprobs[rows, t] = log_pi.gather(-1, actions[:, None])[:, 0]
        if states is not None:
            states[rows, t] = last.to(states.dtype)
        finished[rows] |= actions == eos_token_id
        if finished.all():
            break
        tokens, positions = actions[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        if t % DROP_EVERY == DROP_EVERY - 1 and finished[rows].any():
            keep = ~finished[rows]
            rows, tokens, positions, mask = rows[keep], tokens[keep], positions[keep], mask[keep]
            cache.batch_select_indices(keep)

    # A finished row went on sampling until it left the batch: what follows its first eos is cut.
    is_eos = response_ids == eos_token_id
    action_mask = (is_eos.cumsum(1) - is_eos.long() == 0)[:, : t + 1]
    return Rollout(
        prompt_ids=prompts,
        prompt_mask=prompt_mask,
        response_ids=response_ids[:, : t + 1].masked_fill(~action_mask, pad_token_id),
        action_mask=action_mask,
        logprobs=logprobs[:, : t + 1] * action_mask,
        truncated=~finished,
        states=None if states is None else states[:, : t + 1] * action_mask[..., None],
    )


def response_states(
    policy: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    action_mask: Tensor,
    features: Tensor | None = None,
) -> Tensor:
    """Return the last hidden states (B, R, H) from which the R actions of each row are chosen.

    Prompts (B, P) are left-padded, responses (B, R) right-padded, so the state of action t stands
    at column P - 1 + t: the last prompt token chooses the first action. `features` (B, P + R, H)
    are what the policy reads in place of the tokens' embeddings, when it is the top of a
    `split_policy`.
    """
    mask = torch.cat([prompt_mask, action_mask], dim=1)
    ids = torch.cat([prompt_ids, response_ids], dim=1)
    states = decode(policy.get_decoder(), ids, mask, features)
    return states[:, prompt_ids.shape[1] - 1 : -1]


def decode(decoder: nn.Module, ids: Tensor, mask: Tensor, features: Tensor | None = None) -> Tensor:
    """Return the decoder's states (B, L, H) of ids (B, L), 0 on padding.

    The padding of a row may be on both sides; ROWS rows of similar length are computed at a time,
    without it, so that a short row does not pay for a long one. `features` (B, L, H) are read in
    place of the ids' embeddings. The naive twin is one call of the decoder on all rows.
    """
    lengths, first = mask.sum(1), mask.int().argmax(1)
    rows_a_time = ROWS if ids.device.type == "cpu" else 8 * ROWS  # a GPU waits for small batches
    found, places = [], []
    for rows in lengths.argsort().split(rows_a_time):
        steps = torch.arange(int(lengths[rows[-1]]), device=ids.device)  # (n,)
        kept = steps < lengths[rows, None]  # (rows, n)
        cut = rows[:, None].expand_as(kept), (first[rows, None] + steps).clamp(max=len(ids[0]) - 1)
        read = {"input_ids": ids[cut]} if features is None else {"inputs_embeds": features[cut]}
        states = decoder(
            **read, attention_mask=kept, position_ids=steps.expand(kept.shape), use_cache=False
        ).last_hidden_state
        found.append(states[kept])
        places.append(torch.stack([index[kept] for index in cut]))
    flat = torch.cat(found)  # (tokens, H)
    all_states = flat.new_zeros(*ids.shape, flat.shape[-1])
    return all_states.index_put(tuple(torch.cat(places, dim=1)), flat)


def action_logprobs(
    policy: PreTrainedModel,
    states: Tensor,
    response_ids: Tensor,
    action_mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probability (B, R) of each action given its state (B, R, H); 0 on padding.

    The LM head, the widest product of a small model, is applied to actions only.
    """
    log_pi = log_softmax(policy.get_output_embeddings()(states[action_mask]), temperature)  # (N, V)
    chosen = log_pi.gather(-1, response_ids[action_mask][:, None])[:, 0]
    return torch.zeros_like(states[..., 0], dtype=chosen.dtype).masked_scatter(action_mask, chosen)


def response_logprobs(
    policy: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    action_mask: Tensor,
    features: Tensor | None = None,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return the log-probabilities (B, R), in nats, of given responses; 0 on padding.

    They are those a rollout at this temperature records, up to rounding. Who needs the states too
    calls `response_states` and `action_logprobs`, which this joins.
    """
    states = response_states(policy, prompt_ids, prompt_mask, response_ids, action_mask, features)
    return action_logprobs(policy, states, response_ids, action_mask, temperature)


def respond(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    *,
    seed: int = 0,
    max_new_tokens: int = 48,
    temperature: float = 1.0,
    batch_size: int = 128,
    mode: str = "GPT4 Correct",
) -> list[Conversation]:
    """Return the conversations, each with the policy's answer appended.

    The answer of conversation i depends on (seed, i) and not on batch_size. Its message carries
    "finished": whether it ended with an end of turn or was cut at max_new_tokens.
    """
    prompts = [encode(tokenizer, conversation, mode=mode) for conversation in conversations]
    answered: dict[int, Conversation] = {}
    for rows, sampled in rollouts_by_length(
        policy,
        prompts,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ):
        batch = append_answers(tokenizer, [conversations[i] for i in rows], sampled)
        answered.update(zip(rows, batch, strict=True))
    return [answered[i] for i in range(len(prompts))]


def rollouts_by_length(
    policy: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    seed: int,
    batch_size: int,
    **options,
) -> Iterator[tuple[list[int], Rollout]]:
    """Yield (rows, rollout of prompts[rows]) in batches of similar length, each row once.

    Row i is sampled from (seed, i), whatever the batch size. options: those of `rollout`.
    """
    seeds = row_seeds(len(prompts), torch.Generator().manual_seed(seed))
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(prompts), batch_size):
        rows = by_length[start : start + batch_size]
        yield rows, rollout(policy, [prompts[i] for i in rows], seeds=seeds[rows], **options)


def append_answers(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation], sampled: Rollout
) -> list[Conversation]:
    """Return the B conversations with the responses of a rollout as their assistant messages."""
    answered = []
    for i, conversation in enumerate(conversations):
        ids = sampled.response_ids[i, sampled.action_mask[i]].tolist()
        answer = decode_answer(tokenizer, ids)
        finished = not sampled.truncated[i].item()
        answered.append(
            [*conversation, {"role": "assistant", "content": answer, "finished": finished}]
        )
    return answered


def log_softmax(logits: Tensor, temperature: float) -> Tensor:
    """Return the log-probabilities (..., V) of logits, half precisions taken to float32 first."""
    return (logits.to(at_least_float32(logits.dtype)) / temperature).log_softmax(-1)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Return float64 for float64 and float32 for anything narrower."""
    return torch.promote_types(dtype, torch.float32)


def inverse_cdf(log_pi: Tensor, uniforms: Tensor) -> Tensor:
    """Return the B tokens at which the CDFs of log_pi (B, V) pass uniforms (B,).

    The CDF is a float64 sum in token order; a token of probability 0 is never returned.
    """
    cdf = log_pi.exp().cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(cdf, uniforms[:, None] * cdf[:, -1:], right=True)[:, 0]


def left_pad(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, P), of prompts padded on the left to the longest."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_token_id] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    return ids.to(device), mask.to(device)


def position_ids(mask: Tensor) -> Tensor:
    """Return positions (B, L) that count from 0 at the first token that is not padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def row_seeds(count: int, generator: torch.Generator) -> Tensor:
    """Draw one seed per row: (count,) long."""
    return torch.randint(2**32, (count,), generator=generator)


def uniform_row(seed: int, length: int) -> Tensor:
    """Draw (length,) float64 numbers in [0, 1) on the CPU from a seed."""
    return torch.rand(length, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check_prompts(prompts: Sequence[Sequence[int]], room: int) -> None:
    """Raise ValueError unless there are prompts and each has 1 to room tokens."""
    if not prompts:
        raise ValueError("prompts: expected at least one, found none")
    for i, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= room:
            raise ValueError(
                f"prompt {i}: expected 1 to {room} tokens (the policy's context less "
                f"max_new_tokens), found {len(prompt)}; shorten it or lower max_new_tokens"
            )
