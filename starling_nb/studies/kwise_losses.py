"""Lesson 04 on a network: one reward model for each way of reading the same seven-wise rankings.

Every loss sees the same lists in the same batches, from the same start, with the same optimiser.
Only the pairs that it compares differ.
"""

from functools import partial
from typing import Any

import numpy as np

from starling_nb.data.nectar import Row
from starling_nb.data.world import World, bayes_accuracy
from starling_nb.evaluate.gold import paired_difference
from starling_nb.reward.kwise import Loss, pairwise_nll, plackett_luce_nll
from starling_nb.reward.metrics import ordered_pairs
from starling_nb.reward.packing import encode_rows, score_lists
from starling_nb.reward.train import train_reward_model
from starling_nb.store import Store

SEEDS = (0, 1, 2)
SMALL = {"sft": {"rows": 4000}, "rankings": {"lists": 1500}}  # the stages' sizes on cpu
CONTROL = "K-wise"
LOSSES: dict[str, Loss] = {
    CONTROL: plackett_luce_nll,
    "all pairs": partial(pairwise_nll, breaking="full"),
    "best against rest": partial(pairwise_nll, breaking="best_vs_rest"),
    "neighbours": partial(pairwise_nll, breaking="adjacent"),
    "best against worst": partial(pairwise_nll, breaking="best_vs_worst"),
}


def measure(profile: str, store: str) -> dict[str, Any]:
    """Held-out accuracy, and the scale of the learned reward, of each loss for each seed."""
    seeds = SEEDS if profile != "smoke" else SEEDS[:1]
    return {"seeds": [measure_seed(profile, store, seed) for seed in seeds]}


def measure_seed(profile: str, store: str, seed: int) -> dict[str, Any]:
    """All losses for one seed of rankings and training."""
    course = Store(store, profile, seed, config=SMALL if profile == "cpu" else {})
    world, (policy, tokenizer), rankings = map(course.get, ("world", "sft", "rankings"))
    held_out = rankings.validation
    lists, _ = encode_rows(held_out, tokenizer)
    true = true_scores(world, held_out)
    ceiling = bayes_accuracy(held_out, world.judge())
    found: dict[str, Any] = {"seed": seed, "lists": len(rankings.train), "ceiling": ceiling}
    found["held out"], found["losses"], right = len(held_out), {}, {}
    for name, loss in LOSSES.items():
        model, _ = train_reward_model(
            rankings.train, policy, tokenizer, loss=loss, seed=seed, device=course.device
        )
        scores = score_lists(model, lists)[0].double().numpy()
        right[name] = ordered_pairs(held_out, scores)
        found["losses"][name] = {
            "accuracy": right[name].mean(),
            "against K-wise": paired_difference(right[name], right[CONTROL]),
            "slope": within_slope(scores, true),
        }
    return found


def true_scores(world: World, rows: list[Row]) -> np.ndarray:
    """What the judge believes of every answer, in units of its noise: (N, 7)."""
    judge = world.judge()
    return np.array([[judge.score(r["prompt"], a["answer"]) for a in r["answers"]] for r in rows])


def within_slope(scores: np.ndarray, true: np.ndarray) -> float:
    """By how much learned scores (N, 7) rise, within a list, per unit of the true ones."""
    scores, true = (x - x.mean(axis=1, keepdims=True) for x in (scores, true))
    return float((scores * true).sum() / (true**2).sum())
