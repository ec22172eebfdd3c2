"""Lesson 00 over three training seeds: APA, its cooled start, and APA on a shuffled reward.

The shuffled reward gives every answer the learned reward of another answer of the same batch: the
same numbers, without what they say. Its run is APA's in every other respect.
"""

import random
from dataclasses import asdict
from typing import Any

from starling_nb.evaluate.gold import (
    cooling,
    paired_difference,
    sampling_entropy,
    score_answers,
)
from starling_nb.policy.objectives import APA
from starling_nb.policy.rl import tune_policy
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import reward_function, shuffled
from starling_nb.store import Store

SEEDS = (0, 1, 2)
SMALL = {  # the stages' sizes in lesson 00 on cpu
    "sft": {"rows": 4000},
    "rankings": {"lists": 1500},
    "apa": {"iterations": 10, "batch_size": 96, "minibatch_size": 48},
}


def measure(profile: str, store: str) -> dict[str, Any]:
    """Gold of each model for each seed, and paired differences with 95 % half-widths."""
    seeds = SEEDS if profile != "smoke" else SEEDS[:1]
    return {"seeds": [measure_seed(profile, store, seed) for seed in seeds]}


def measure_seed(profile: str, store: str, seed: int) -> dict[str, Any]:
    """The three models and their comparisons for one training seed."""
    course = Store(store, profile, seed, config=SMALL if profile == "cpu" else {})
    world, (sft, tokenizer), (apa, _) = (course.get(name) for name in ("world", "sft", "apa"))
    options = asdict(course.config("apa"))
    drawn = world.sample(options["iterations"] * options["batch_size"], random.Random(seed))
    control, _ = tune_policy(
        course.get("sft")[0],
        shuffled(reward_function(*course.get("reward_model")), seed),
        [prompt.conversation for prompt in drawn],
        tokenizer=tokenizer,
        objective=APA(options.pop("lam")),
        seed=seed,
        device=course.device,
        **options,
    )
    prompts = world.test if profile != "smoke" else world.test[:40]

    def gold(policy, temperature):
        asked = [prompt.conversation for prompt in prompts]
        answered = respond(policy, tokenizer, asked, temperature=temperature)
        return score_answers(world, answered).total

    few = prompts[::6]  # enough to find a temperature
    found: dict[str, Any] = {"seed": seed, "prompts": len(prompts), "gold": {}, "difference": {}}
    start = {t: gold(sft, t) for t in (1, 0)}
    temperature_with = cooling(sft, tokenizer, few)
    found["gold"]["SFT"] = {str(t): scores.mean() for t, scores in start.items()}
    for name, policy in {"APA": apa, "APA, shuffled reward": control}.items():
        entropy = sampling_entropy(policy, tokenizer, few, temperature=1.0)
        cooler = temperature_with(entropy)
        scores = {t: gold(policy, t) for t in (1, 0)}
        cooled = gold(sft, cooler)
        found["gold"][name] = {str(t): values.mean() for t, values in scores.items()}
        found["difference"][name] = {
            "sampled": paired_difference(scores[1], start[1]),
            "greedy": paired_difference(scores[0], start[0]),
            "cooled": paired_difference(scores[1], cooled),
            "temperature": cooler,
        }
    return found
