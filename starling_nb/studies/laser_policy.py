"""Lesson 08: LASER on the tuned policy, chosen by three criteria, and what each is worth on test.

Every matrix is reduced alone to each fraction of its rank. The criteria, on training prompts: the
likelihood of the judge's first answer; the learned reward of greedy answers; their gold. Of each
the best reduction, the same number of random components of that matrix, and the greedy composition
of up to five are measured on held-out prompts, by all criteria. So are laserRMT's two searches.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starling_nb.data.chat import Conversation, prompt_to_conversation
from starling_nb.data.nectar import Row
from starling_nb.evaluate.gold import paired_difference, score_answers
from starling_nb.laser.reduce import (
    Approximate,
    assign,
    low_rank,
    matrices,
    random_components,
    rank_of,
    reduced,
)
from starling_nb.laser.scan import measure as spectrum
from starling_nb.laser.search import (
    Candidate,
    best_first,
    compose,
    kind_of,
    last_layers_first,
    layer_of,
    likelihood,
    lowest_snr_first,
    winners_curse,
)
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import reward_function
from starling_nb.store import Store

SEEDS = (0, 1, 2)
RHOS = (0.5, 0.1, 0.01)
ASKED, LIKELY = 128, 256  # prompts to answer, and answers to be likely, to choose on
SIZES = {"sft": {"rows": 4000}, "rankings": {"lists": 4000}}  # of the lessons' tuned policy
LIMIT = 5  # matrices in a composition, as in rmt_laser.py


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each seed what each criterion chose, its gain, and the change of everything on test."""
    seeds = SEEDS[:1] if profile == "smoke" else SEEDS
    sizes = {} if profile == "smoke" else SIZES
    courses = [Store(store, profile, seed, config=sizes) for seed in seeds]
    return {"seeds": [measure_seed(course) for course in courses]}


def measure_seed(course: Store) -> dict[str, Any]:
    """One tuned policy."""
    small = course.profile.name == "smoke"
    world, (policy, tokenizer) = course.get("world"), course.get("apa")
    likes = reward_function(*course.get("reward_model"))
    rankings = course.get("rankings")
    test = world.test[: 40 if small else None]
    likely = likelihood(tokenizer, first_answers(rankings.train[: 16 if small else LIKELY]))
    chosen_on = rankings.train[: 8 if small else ASKED]
    asked = [prompt_to_conversation(row["prompt"]) for row in chosen_on]

    def score(policy) -> dict[str, Tensor]:
        greedy = respond(policy, tokenizer, asked, temperature=0)
        return {
            "likelihood": likely(policy),
            "learned reward": likes(greedy),
            "gold": world.gold_reward(greedy),
        }

    likely_on_test = likelihood(tokenizer, first_answers(rankings.validation[: len(test)]))

    def judge() -> dict[str, np.ndarray]:
        found = {"likelihood": likely_on_test(policy).numpy()}
        for temperature in (0, 1):
            answered = respond(
                policy, tokenizer, [p.conversation for p in test], temperature=temperature
            )
            gold, at = score_answers(world, answered), f"T = {temperature}"
            found |= {
                f"learned reward, {at}": likes(answered).numpy(),
                f"gold, {at}": gold.total,
                f"content, {at}": gold.content,
                f"style, {at}": gold.style,
            }
        return found

    start = judge()

    def change() -> dict[str, list[float]]:
        return {
            name: [round(float(x), 4) for x in paired_difference(after, start[name])]
            for name, after in judge().items()
        }

    weights = matrices(policy)
    originals = {name: weight.detach().clone() for name, weight in weights.items()}

    def composed(order: Iterable[tuple[str, int]], criterion: str) -> dict[str, Any]:
        kept = compose(policy, order, lambda p: score(p)[criterion], limit=LIMIT)
        found = {"kept": len(kept), "names": ", ".join(row["name"] for row in kept), **change()}
        assign(weights, originals)
        return found

    names = [*weights][-2:] if small else [*weights]
    baseline, candidates = search_all(policy, names, RHOS[1:2] if small else RHOS, score)
    found: dict[str, Any] = {
        "start": {name: float(values.mean()) for name, values in start.items()},
        "criteria": [],
        "laserRMT": [],
    }
    for name in baseline:
        ranked, best = candidates[name], candidates[name][0]
        generator = torch.Generator().manual_seed(course.seed)
        ways: dict[str, Approximate] = {
            "best": low_rank,
            "random": partial(random_components, generator=generator),
        }
        row: dict[str, Any] = {
            "criterion": name,
            "type": kind_of(best.name),
            "layer": layer_of(best.name),
            "rho": best.rho,
            **winners_curse(baseline[name], ranked, course.seed),
        }
        for way, approximate in ways.items():
            with reduced(policy, {best.name: best.rank}, approximate=approximate):
                row[way] = change()
        row["composed"] = composed(best_first(baseline[name], ranked), name)
        found["criteria"].append(row)
    spectra = [spectrum(name, weight) for name, weight in weights.items()]
    for order in (last_layers_first, lowest_snr_first):
        row = composed(order(spectra), "likelihood")
        found["laserRMT"].append({"order": order.__name__, **row})
    return found


def first_answers(rows: list[Row]) -> list[Conversation]:
    """Each prompt with the answer that the judge put first."""
    return [
        [
            *prompt_to_conversation(row["prompt"]),
            {"role": "assistant", "content": row["answers"][0]["answer"]},
        ]
        for row in rows
    ]


def search_all(
    policy, names: list[str], rhos: tuple[float, ...], score: Callable[..., dict[str, Tensor]]
) -> tuple[dict[str, Tensor], dict[str, list[Candidate]]]:
    """`laser.search.search` by several criteria at once."""
    weights = matrices(policy)
    baseline = score(policy)
    candidates: dict[str, list[Candidate]] = {name: [] for name in baseline}
    for name in names:
        for rho in rhos:
            rank = rank_of(rho, weights[name].shape)
            with reduced(policy, {name: rank}):
                for criterion, found in score(policy).items():
                    candidates[criterion].append(Candidate(name, rho, rank, found))
    for ranked in candidates.values():
        ranked.sort(key=lambda candidate: -candidate.scores.mean().item())
    return baseline, candidates


# The lesson's section that shows it:
#
#   # ## 6 · The tuned policy, by three criteria
#   #
#   # The laser models were not models of facts. They were chat models, and what was searched for was
#   # perplexity. A study searches the tuned policy of lesson 07, all 42 matrices at three fractions, by
#   # the likelihood of good answers, by the learned reward of its own greedy answers and by their gold.
#   # *Composed*: up to five cuts, kept one after another while the criterion rises. laserRMT composes
#   # too, from the last layer or from the lowest SNR on, at the ranks of its threshold.
#   
#   # %%
#   study = studies.result(
#       "laser_policy", recompute=recompute, profile=profile, store=store
#   )
#   columns = ("likelihood", "learned reward, T = 0", "gold, T = 0", "gold, T = 1")
#   heads = ("likelihood", "learned", "gold, greedy", "gold, T = 1")
#   print(" " * 46 + "change on test prompts")
#   print(f"{'seed':4} {'chosen by':16} {'':24}" + "".join(f"{h:>16}" for h in heads))
#   
#   
#   def print_row(number, name, what, change):
#       """One row: what was done, and the change of each column with its half-width."""
#       cells = "".join(f"{change[c][0]:+9.3f} ±{change[c][1]:.3f}" for c in columns)
#       print(f"{number:<4} {name:16} {what:24}{cells}")
#   
#   
#   for number, run in enumerate(study["seeds"]):
#       for row in run["criteria"]:
#           what = f"{row['type']} {row['layer']}, rho {row['rho']}"
#           print_row(number, row["criterion"], what, row["best"])
#           print_row("", "", "  random components", row["random"])
#           print_row("", "", f"  composed, {row['composed']['kept']} matrices", row["composed"])
#       for row in run["laserRMT"]:
#           print_row("", "laserRMT", f"{row['order'][:17]}, {row['kept']} kept", row)
#   
#   # %% [markdown]
#   # TOLD_POLICY
#   #
