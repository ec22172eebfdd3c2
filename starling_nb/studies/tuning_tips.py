"""Lesson 06: three tips of Starling's authors, each as a prediction that can fail.

Shift: without a critic, every token of every answer gains by a reward that is shifted up; with a
critic, little is left of the shift once it has learned it. Advantages are not whitened here.
Pre-training: a critic that learned alone for five iterations saves the policy false steps.
Last layers: tuning few blocks costs less time, and moves the policy less.
"""

import random
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from starling_nb.evaluate.gold import score_answers
from starling_nb.policy.objectives import PPO, Loss, Sampled, ppo_loss
from starling_nb.policy.rl import tune_policy
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import reward_function
from starling_nb.store import Store

SEEDS = (0, 1)
ITERATIONS, BATCH, PRETRAINING = 20, 128, 5
SMOKE: dict[str, Any] = {"batch_size": 16, "minibatch_size": 8, "max_new_tokens": 16}
KEPT = ("reward", "kl", "length", "finished", "value_loss", "explained_variance")


def without_critic(logprobs: Tensor, s: Sampled) -> Loss:
    """PPO whose advantage is the whole answer's score, for each of its tokens."""
    scores = s.scores[:, None].expand_as(s.old_logprobs)
    return ppo_loss(logprobs, s.old_logprobs, scores, s.mask)


def runs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(tip, variant, options of `tune_policy`)."""
    for shift in (-1.0, 0.0, 1.0):
        for name, objective in (("no critic", without_critic), ("critic", PPO())):
            yield "shift", f"{name}, {shift:+.0f}", {"objective": objective, "reward_shift": shift}
    whitened = {"objective": PPO(), "whitening": True, "kl_coef": 0.2}
    yield "critic", "untrained", whitened
    yield "critic", "pre-trained", {**whitened, "critic_iterations": PRETRAINING}
    for layers in (1, 2, 4):
        yield "layers", f"last {layers}", {**whitened, "last_layers": layers}


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each variant and seed: history, processor seconds, what the tuned policy is worth."""
    found: dict[str, dict[str, Any]] = {}
    for tip, variant, options in runs():
        measured = [measure_run(Store(store, profile, seed), options) for seed in SEEDS]
        found.setdefault(tip, {})[variant] = measured
    return found


def measure_run(course: Store, options: dict[str, Any]) -> dict[str, Any]:
    """One run; a pre-trained critic gets as many updates of the policy as the others."""
    world, (policy, tokenizer) = course.get("world"), course.get("sft")
    smoke = course.profile.name == "smoke"
    iterations = (1 if smoke else ITERATIONS) + options.get("critic_iterations", 0)
    drawn = world.sample(iterations * BATCH, random.Random(course.seed))
    start = time.process_time()
    _, history = tune_policy(
        policy,
        reward_function(*course.get("reward_model")),
        [prompt.conversation for prompt in drawn],
        tokenizer=tokenizer,
        iterations=iterations,
        lr=2e-4,
        seed=course.seed,
        device=course.device,
        **options,
        **(SMOKE if smoke else {}),
    )
    seconds = time.process_time() - start
    prompts = [prompt.conversation for prompt in (world.test[:40] if smoke else world.test)]
    judged = {}
    for temperature in (1, 0):
        answered = respond(policy, tokenizer, prompts, temperature=temperature)
        row = score_answers(world, answered).row()
        judged[str(temperature)] = {name: float(value) for name, value in row.items()}
    trace = [{name: record[name] for name in KEPT} for record in history]
    return {"trace": trace, "seconds": seconds, "test": judged}
