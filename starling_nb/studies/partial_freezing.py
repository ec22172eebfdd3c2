"""Lesson 09: function calling by DPO on whole lists, and what is forgotten, by what is trained.

From the tuned policy, on lists of answers to requests for a tool, the best answer's likelihood with
weight 1. All matrices are trained, or half of them: by the published SNR the three layers of each
type at the top or at the bottom, three at random (drawn twice), the last three. Each at three
learning rates, so that a gain can be held against the same gain of another. Controls: the
likelihood term alone; and at the middle rate the K-wise term alone, and pairs (best against worst;
one at random) for lists.
"""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from starling_nb.data.chat import Conversation
from starling_nb.data.nectar import Row
from starling_nb.evaluate.gold import by_family, paired_difference, score_answers
from starling_nb.laser.freeze import Trained, freeze_by_score, train_only, unfreeze_last
from starling_nb.laser.reduce import matrices
from starling_nb.laser.scan import measure as spectrum
from starling_nb.laser.scan import scores
from starling_nb.policy.dpo import dpo_loss, kwise_dpo_loss, train_dpo
from starling_nb.policy.rollout import respond
from starling_nb.store import Store

SEEDS = (0, 1, 2)
LRS = (1e-4, 4e-4, 1.6e-3)
LISTS, HELD_OUT, EPOCHS, BATCH = 900, 200, 3, 32
SELECTIONS = ("all", "top SNR", "bottom SNR", "random", "random again", "last")


def nothing(ratios: Tensor, mask: Tensor) -> Tensor:
    """No preference loss: what remains is the likelihood of the best answer."""
    return 0 * ratios.sum(1)


LIKELIHOOD: dict[str, Any] = {"nll_weight": 1.0}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "lists and likelihood": {"loss": kwise_dpo_loss, **LIKELIHOOD},
    "likelihood": {"loss": nothing, **LIKELIHOOD},
    "lists": {"loss": kwise_dpo_loss},
    "best against worst, and likelihood": {
        "loss": partial(dpo_loss, breaking="best_vs_worst"),
        **LIKELIHOOD,
    },
    "one pair, and likelihood": {"loss": kwise_dpo_loss, **LIKELIHOOD},
}


def runs() -> Iterator[tuple[str, str, float]]:
    """(objective, what is trained, learning rate)."""
    for selection in SELECTIONS:
        for lr in LRS:
            yield "lists and likelihood", selection, lr
    for lr in LRS:
        yield "likelihood", "all", lr
    for objective in [*OBJECTIVES][2:]:
        yield objective, "all", LRS[1]


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each seed what the policy can do before, and for each run after."""
    seeds = SEEDS[:1] if profile == "smoke" else SEEDS
    found: dict[str, Any] = {"start": [], "runs": []}
    for seed in seeds:
        course = Store(store, profile, seed)
        start = judge(course, course.get("apa")[0])
        found["start"].append({"seed": seed, **told(start)})
        planned = list(runs())
        for objective, selection, lr in planned[:1] if profile == "smoke" else planned:
            found["runs"].append(measure_run(course, start, objective, selection, lr))
    return found


def measure_run(
    course: Store, start: dict[str, Any], objective: str, selection: str, lr: float
) -> dict[str, Any]:
    """One run, from the policy of the course's seed."""
    policy, tokenizer = course.get("apa")
    trained = select(policy, selection, course.seed)
    small = course.profile.name == "smoke"
    one_pair = objective == "one pair, and likelihood"
    history = train_dpo(
        policy,
        call_lists(course, 16 if small else LISTS, 2 * course.seed + 1, one_pair),
        tokenizer=tokenizer,
        epochs=1 if small else EPOCHS,
        batch_size=BATCH,
        lr=lr,
        seed=course.seed,
        device=course.device,
        validation_rows=call_lists(course, 8 if small else HELD_OUT, 2 * course.seed + 2),
        **OBJECTIVES[objective],
    )
    after = judge(course, policy)
    change = {
        temperature: paired_difference(
            after[temperature]["others"].total, start[temperature]["others"].total
        )
        for temperature in after
    }
    return {
        "seed": course.seed,
        "objective": objective,
        "trained": selection,
        "lr": lr,
        "count": trained.count,
        "total": trained.total,
        "lists": {key: history[-1][key] for key in ("best", "worst", "accuracy")},
        "change": {t: [float(mean), float(half)] for t, (mean, half) in change.items()},
        **told(after),
    }


def select(policy, selection: str, seed: int) -> Trained:
    """Leave trainable what the name says: all matrices, or those of half of the layers."""
    weights = matrices(policy)
    half = len(policy.get_decoder().layers) // 2
    if selection == "all":
        return train_only(policy, [*weights])
    if selection == "last":
        return unfreeze_last(policy, half)
    found = scores(spectrum(name, weight) for name, weight in weights.items())
    ratios = {name: row["snr"] for name, row in found.items()}
    draw = seed + 100 * (selection == "random again")
    return freeze_by_score(policy, ratios, half, pick=selection.split()[0], seed=draw)


def call_lists(course: Store, count: int, seed: int, one_pair: bool = False) -> list[Row]:
    """Ranked answers to requests for a tool, each text once; or a pair of them, drawn at random."""
    world, rng = course.get("world"), random.Random(seed)
    prompts = [world.train_calls[i % len(world.train_calls)] for i in range(count)]
    rows = []
    for row in world.rankings(count, seed=seed, prompts=prompts):
        first: dict[str, Any] = {}  # the best place of a text that is there twice
        for answer in row["answers"]:
            first.setdefault(answer["answer"], answer)
        answers = [*first.values()]
        if one_pair and len(answers) > 2:
            answers = [answers[i] for i in sorted(rng.sample(range(len(answers)), 2))]
        if len(answers) > 1:
            rows.append({**row, "answers": answers})
    return rows


def judge(course: Store, policy) -> dict[str, Any]:
    """Gold of answers to the test's requests for a tool, and to its other prompts."""
    world, tokenizer = course.get("world"), course.get("apa")[1]
    few = slice(40 if course.profile.name == "smoke" else None)
    asked = {"calls": world.test_calls[few], "others": world.test[few]}
    found: dict[str, Any] = {}
    for temperature in (1, 0):
        found[str(temperature)] = {"prompts": asked}
        for name, prompts in asked.items():
            conversations: list[Conversation] = [prompt.conversation for prompt in prompts]
            answered = respond(policy, tokenizer, conversations, temperature=temperature)
            found[str(temperature)][name] = score_answers(world, answered)
    return found


def told(judged: dict[str, Any]) -> dict[str, Any]:
    """What is kept of `judge`: exact calls, gold of the others as a whole and by family."""
    found = {}
    for temperature, by_kind in judged.items():
        calls, others = by_kind["calls"], by_kind["others"]
        families = by_family(by_kind["prompts"]["others"], others)
        found[temperature] = {
            "calls": float(np.mean(calls.outcome == "ok")),
            **{key: float(value) for key, value in others.row().items()},
            "families": [{"family": name, **row} for name, row in families.items()],
        }
    return found
