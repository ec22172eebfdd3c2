"""Lesson 02 over three seeds: five ways to fine-tune on answers of mixed quality, at equal steps.

Every arm reads 4,000 demonstrations in batches of 32 from the same base; only the class they are
given as, the weight of the weaker class, and which of them are read, differ. All are asked as
experts (`GPT4 Correct`). Beside them, the package's own policy, from 14,000 demonstrations.
"""

from itertools import cycle, islice
from typing import Any

from starling_nb.data.facts import Prompt
from starling_nb.data.world import World
from starling_nb.evaluate.gold import by_habit, paired_difference, score_answers
from starling_nb.policy.rollout import respond
from starling_nb.policy.sft import fine_tune
from starling_nb.store import Store

SEEDS = (0, 1, 2)
ROWS = 4000
CONTROL = "plain"


def arms(rows: list[dict[str, Any]]) -> dict[str, tuple[list[dict[str, Any]], float]]:
    """The demonstrations as each arm reads them, and the weight of the weaker class."""
    experts = [row for row in rows if row["expert"]]
    return {
        "C-RLFT": (rows, 0.1),
        CONTROL: ([{**row, "expert": True} for row in rows], 1.0),
        "prefixes alone": (rows, 1.0),
        "experts only": (list(islice(cycle(experts), len(rows))), 1.0),
        "classes swapped": ([{**row, "expert": not row["expert"]} for row in rows], 0.1),
    }


def measure(profile: str, store: str) -> dict[str, Any]:
    """Gold of each arm for each seed, its paired difference from the plain arm; the full policy."""
    smoke = profile == "smoke"
    seeds, rows = (SEEDS[:1], 64) if smoke else (SEEDS, ROWS)
    course = Store(store, profile, seed=0)
    prompts = held_out(course.get("world"), profile)
    scores = {}
    policy, tokenizer = course.get("sft")
    for t in (1, 0):
        asked = [prompt.conversation for prompt in prompts]
        answered = respond(policy, tokenizer, asked, temperature=t)
        habits = by_habit(prompts, answered)
        means = score_answers(course.get("world"), answered).row()
        scores[str(t)] = {**{name: float(value) for name, value in means.items()}, "habits": habits}
    return {
        "rows": rows,
        "seeds": [measure_seed(profile, store, seed, rows) for seed in seeds],
        "full": {"rows": course.config("sft").rows, **scores},
    }


def held_out(world: World, profile: str) -> list[Prompt]:
    """The prompts on which policies are compared."""
    return world.test if profile != "smoke" else world.test[::30]


def measure_seed(profile: str, store: str, seed: int, rows: int) -> dict[str, Any]:
    """All arms for one seed of demonstrations and training."""
    course = Store(store, profile, seed)
    world = course.get("world")
    prompts = held_out(world, profile)
    asked = [prompt.conversation for prompt in prompts]
    scores = {}
    for name, (read, weight) in arms(world.demonstrations(rows, seed=seed)).items():
        policy, tokenizer = course.get("base")
        fine_tune(policy, tokenizer, read, other_weight=weight, seed=seed, device=course.device)
        scores[name] = {
            t: score_answers(world, respond(policy, tokenizer, asked, temperature=t))
            for t in (1, 0)
        }
    found: dict[str, Any] = {"seed": seed, "prompts": len(prompts), "arms": {}}
    for name, by_temperature in scores.items():
        found["arms"][name] = {
            str(t): {
                **{column: float(value) for column, value in here.row().items()},
                "against plain": paired_difference(here.total, scores[CONTROL][t].total),
            }
            for t, here in by_temperature.items()
        }
    return found
