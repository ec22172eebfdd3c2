"""Lesson 05 at full size, over three seeds: the reward model, its rivals, and policies' samples.

The model of each seed is trained on 7,000 lists. Three more are trained on 1,500 lists with their
answers shuffled. Every policy answers the held-out prompts eight times at temperature 1, and the
reward model has to order the answers as the gold utility does.
"""

import random
from typing import Any

import numpy as np
import torch

from starling_nb.data.world import bayes_accuracy
from starling_nb.evaluate.gold import mean_and_half, paired_difference, score_answers
from starling_nb.evaluate.rivals import gold_of, rivals
from starling_nb.policy.rollout import respond
from starling_nb.reward.metrics import (
    calibration,
    concordant_pairs,
    mean_gap,
    ordered_pairs,
)
from starling_nb.reward.model import RewardModel, score
from starling_nb.reward.packing import encode_rows, score_lists
from starling_nb.reward.train import train_reward_model
from starling_nb.store import Store

SEEDS = (0, 1, 2)
SAMPLES = 8
SHUFFLED, SHUFFLED_LISTS = 3, 1500


def measure(profile: str, store: str) -> dict[str, Any]:
    """Accuracies with 95 % half-widths over lists, ceilings and best-of-8, for each seed."""
    seeds = SEEDS if profile != "smoke" else SEEDS[:1]
    return {"seeds": [measure_seed(profile, store, seed) for seed in seeds]}


def measure_seed(profile: str, store: str, seed: int) -> dict[str, Any]:
    """All figures of one seed of the stages' own sizes."""
    course = Store(store, profile, seed)
    world, (sft, tokenizer), rankings = map(course.get, ("world", "sft", "rankings"))
    model, _ = course.get("reward_model")
    rows = rankings.validation
    lists, _ = encode_rows(rows, tokenizer)
    scores = {"reward model": score_lists(model, lists)[0].double().numpy()}
    scores |= rivals(world, rankings.train, rows)
    scores["untrained"] = score_lists(RewardModel.from_policy(sft, seed), lists)[0].numpy()
    for draw in range(SHUFFLED):
        rng = random.Random(f"{seed} {draw}")
        part = [
            {**row, "answers": rng.sample(row["answers"], len(row["answers"]))}
            for row in rankings.train[:SHUFFLED_LISTS]
        ]
        control, _ = train_reward_model(part, sft, tokenizer, seed=draw, device=course.device)
        scores[f"shuffled {draw}"] = score_lists(control, lists)[0].numpy()
    right = {name: ordered_pairs(rows, values) for name, values in scores.items()}
    gold = gold_of(world, rows)
    families = np.array([world.prompt(row["prompt"]).family for row in rows])
    found: dict[str, Any] = {
        "seed": seed,
        "held out": len(rows),
        "ceiling": bayes_accuracy(rows, world.judge()),
        "accuracy": {name: mean_and_half(shares) for name, shares in right.items()},
        "ahead": {
            name: paired_difference(right["reward model"], right[name])
            for name in ("style", "author", "longer", "shorter")
        },
        "gold order": mean_and_half(concordant_pairs(gold, scores["reward model"])),
        "gap": mean_gap(gold),
        "calibrating factor": calibration(torch.from_numpy(scores["reward model"])).scale,
        "families": [],
        "samples": {},
    }
    for family in dict.fromkeys(families.tolist()):
        inside = np.flatnonzero(families == family)
        record = {
            "family": family,
            "lists": len(inside),
            "accuracy": right["reward model"][inside].mean(),
            "ceiling": bayes_accuracy([rows[i] for i in inside], world.judge()),
        }
        found["families"].append(record)
    prompts = world.test if profile != "smoke" else world.test[:20]
    asked = [prompt.conversation for prompt in prompts for _ in range(SAMPLES)]
    for name, policy in {"SFT": sft, "APA": course.get("apa")[0]}.items():
        answered = respond(policy, tokenizer, asked, seed=seed)
        learned = score(model, tokenizer, answered).view(-1, SAMPLES).double().numpy()
        golds = score_answers(world, answered)
        true, style = golds.total.reshape(-1, SAMPLES), golds.style.reshape(-1, SAMPLES)
        each = np.arange(len(true))
        chosen = each, learned.argmax(1)
        found["samples"][name] = {
            "gold order": mean_and_half(concordant_pairs(true, learned)),
            "random": true.mean(),
            "best of 8": true[chosen].mean(),
            "best by style": true[each, style.argmax(1)].mean(),
            "best by gold": true.max(1).mean(),
            "gap": mean_gap(true),
            "against random": paired_difference(true[chosen], true.mean(1)),
        }
    return found
