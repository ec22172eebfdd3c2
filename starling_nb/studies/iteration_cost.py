"""Lesson 06: what the parts of an iteration cost, by number and by length of its answers.

No answer may end before its time, so that all have the length asked for. Times are given as shares
of those of a whole iteration of 128 answers of 24 tokens, measured in the same run.
"""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from starling_nb.data.chat import Conversation, encode
from starling_nb.policy.objectives import ppo_loss
from starling_nb.policy.rollout import (
    action_logprobs,
    append_answers,
    response_logprobs,
    response_states,
    rollout,
    row_seeds,
)
from starling_nb.reward.model import reward_function
from starling_nb.store import Store

BATCH, LENGTH = 128, 24  # of the iteration that is the unit
BATCHES, LENGTHS = (16, 32, 64, 128, 256), (6, 12, 24, 48, 96)
MINIBATCH, EPOCHS, REPEATS = 64, 2, 5


def measure(profile: str, store: str) -> dict[str, list[dict[str, float]]]:
    """Cost of each part by batch, at 24 tokens, and by length, at 128 answers."""
    course = Store(store, profile, 0)
    batches, lengths = ((4, 8), (4, 8)) if profile == "smoke" else (BATCHES, LENGTHS)
    drawn = course.get("world").sample(max(batches), random.Random(0))
    conversations = [prompt.conversation for prompt in drawn]
    unit = sum(parts(course, conversations[:BATCH], LENGTH).values())

    def cost(batch: int, length: int) -> dict[str, float]:
        seconds = parts(course, conversations[:batch], length)
        return {name: value / unit for name, value in seconds.items()}

    return {
        "by_batch": [{"answers": batch, **cost(batch, LENGTH)} for batch in batches],
        "by_length": [{"tokens": length, **cost(BATCH, length)} for length in lengths],
    }


def parts(course: Store, conversations: list[Conversation], length: int) -> dict[str, float]:
    """Seconds of each part of an iteration on answers of `length` tokens."""
    policy, tokenizer = course.get("sft")
    reward_fn = reward_function(*course.get("reward_model"))
    sample = partial(
        rollout,
        policy,
        [encode(tokenizer, conversation) for conversation in conversations],
        seeds=row_seeds(len(conversations), torch.Generator().manual_seed(0)),
        max_new_tokens=length,
        eos_token_id=-1,  # no token: nothing ends
        pad_token_id=tokenizer.pad_token_id,
        keep_states=True,
    )
    batch = sample()
    ended = batch.response_ids == tokenizer.eos_token_id  # a text would be cut there
    word = tokenizer.encode(" the", add_special_tokens=False)[-1]
    batch = replace(batch, response_ids=batch.response_ids.masked_fill(ended, word))
    inputs = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.action_mask)
    answered = append_answers(tokenizer, conversations, batch)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)

    def update() -> None:
        for _ in range(EPOCHS):
            for rows in torch.arange(len(answered)).split(MINIBATCH):
                states = response_states(policy, *(x[rows] for x in inputs))
                mask = batch.action_mask[rows]
                logprobs = action_logprobs(policy, states, batch.response_ids[rows], mask)
                loss, _ = ppo_loss(logprobs, batch.logprobs[rows], torch.ones_like(logprobs), mask)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return {
        "rollout": seconds(sample),
        "reward": seconds(partial(reward_fn, answered)),
        "reference": seconds(partial(torch.no_grad()(response_logprobs), policy, *inputs)),
        "update": seconds(update),
    }


def seconds(part: Callable[[], Any]) -> float:
    """Median time of REPEATS calls, after one that warms up."""
    part()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        part()
        times.append(time.perf_counter() - start)
    return median(times)
