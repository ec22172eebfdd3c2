"""Lesson 08: LASER on the tuned policy, chosen by three criteria, and what each is worth on test.

Every matrix is reduced alone to each fraction of its rank. The criteria, on a few held-out prompts:
the likelihood of the judge's first answer; the learned reward of greedy answers; their gold. Of
each the best reduction, the same number of random components of that matrix, and the greedy
composition of up to five are measured on the other held-out prompts, by all criteria. So is a
temperature that makes the policy as unsure as the best reduction does, one of highest likelihood,
and laserRMT's two searches, by likelihood.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starling_nb.data.chat import Conversation, prompt_to_conversation
from starling_nb.data.nectar import Row
from starling_nb.evaluate.gold import paired_difference, sampling_entropy, score_answers
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
    Criterion,
    best_first,
    compose,
    kind_of,
    last_layers_first,
    layer_of,
    likelihood,
    lowest_snr_first,
    reward_of_answers,
    winners_curse,
)
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import reward_function
from starling_nb.store import Store

SEEDS = (0, 1, 2)
RHOS = (0.5, 0.1, 0.01)
ASKED, LIKELY = 128, 256  # prompts to answer, and answers to be likely, to choose on
SIZES = {"sft": {"rows": 4000}, "rankings": {"lists": 4000}}  # of the lessons' tuned policy
TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
LIMIT = 5  # matrices in a composition, as in rmt_laser.py, and here in the others, too


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each seed what each criterion chose, its gain, and the change of everything on test."""
    seeds = SEEDS[:2] if profile == "smoke" else SEEDS
    sizes = {} if profile == "smoke" else SIZES
    courses = [Store(store, profile, seed, config=sizes) for seed in seeds]
    return {"seeds": [measure_seed(course) for course in courses]}


def measure_seed(course: Store) -> dict[str, Any]:
    """One tuned policy."""
    small = course.profile.name == "smoke"
    world, (policy, tokenizer) = course.get("world"), course.get("apa")
    likes = reward_function(*course.get("reward_model"))
    few, some, end = (8, 16, 56) if small else (ASKED, LIKELY, None)
    held_out = course.get("rankings").validation  # a list on each held-out prompt
    held_out = random.Random(course.seed).sample(held_out, len(held_out))[:end]
    choosing, test = held_out[:some], held_out[some:]
    asked, prompts = (
        [prompt_to_conversation(row["prompt"]) for row in rows] for rows in (choosing[:few], test)
    )
    likely, likely_on_test = (
        likelihood(tokenizer, first_answers(rows)) for rows in (choosing, test)
    )

    criteria: dict[str, Criterion] = {
        "likelihood": likely,
        "learned reward": reward_of_answers(likes, tokenizer, asked),
        "gold": reward_of_answers(world.gold_reward, tokenizer, asked),
    }

    def score(policy) -> dict[str, Tensor]:
        greedy = respond(policy, tokenizer, asked, temperature=0)
        return {
            "likelihood": likely(policy),
            "learned reward": likes(greedy),
            "gold": world.gold_reward(greedy),
        }

    def judge() -> dict[str, np.ndarray]:
        found = {"likelihood": likely_on_test(policy).numpy()}
        for temperature in (0, 1):
            answered = respond(policy, tokenizer, prompts, temperature=temperature)
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
        kept = compose(policy, order, criteria[criterion], limit=LIMIT)
        found = {"kept": len(kept), "names": ", ".join(row["name"] for row in kept), **change()}
        assign(weights, originals)
        return found

    def entropy(temperature: float) -> float:
        quarter = [world.prompt(row["prompt"]) for row in test[::4]]
        return sampling_entropy(policy, tokenizer, quarter, temperature=temperature)

    temperatures = TEMPERATURES[-2:] if small else TEMPERATURES
    entropies = [entropy(temperature) for temperature in temperatures]
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
                if way == "best":
                    as_unsure = float(np.interp(entropy(1), entropies, temperatures))
        with tempered(policy, as_unsure):
            row["tempered"] = {"temperature": as_unsure, **change()}
        row["composed"] = composed(best_first(baseline[name], ranked), name)
        found["criteria"].append(row)
    warm = {}
    for temperature in temperatures:
        with tempered(policy, temperature):
            warm[temperature] = likely(policy).mean().item()
    best_temperature = max(warm, key=warm.__getitem__)
    with tempered(policy, best_temperature):
        found["temperature"] = {"temperature": best_temperature, **change()}
    spectra = [spectrum(name, weight) for name, weight in weights.items()]
    for order in (last_layers_first, lowest_snr_first):
        row = composed(order(spectra), "likelihood")
        found["laserRMT"].append({"order": order.__name__, **row})
    return found


@contextmanager
def tempered(policy, temperature: float) -> Iterator[None]:
    """Divide the policy's logits: the weight of its last norm is a factor of them."""
    weight = policy.get_decoder().norm.weight
    before = weight.detach().clone()
    weight.data = before / temperature
    try:
        yield
    finally:
        weight.data = before


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
