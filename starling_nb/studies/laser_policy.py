"""Lesson 08: LASER on the tuned policy, chosen by three criteria, and what each is worth on test.

Every matrix is reduced alone to each fraction of its rank. The criteria, on a few held-out prompts:
the likelihood of the judge's first answer; the learned reward of greedy answers; their gold. Of
each the best reduction and the greedy composition of up to five are measured on the other held-out
prompts, by all criteria; so are laserRMT's two searches, by likelihood. The controls: the same
number of random components of the same matrices; a temperature that makes the policy as unsure as
the best reduction does; and one of highest likelihood.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import Conversation, prompt_to_conversation
from starling_nb.data.nectar import Row
from starling_nb.data.world import World
from starling_nb.evaluate.gold import paired_difference, sampling_entropy, score_answers
from starling_nb.laser.reduce import assign, matrices, random_components, reduced
from starling_nb.laser.scan import measure as spectrum
from starling_nb.laser.search import (
    Criterion,
    best_first,
    compose,
    kind_of,
    last_layers_first,
    layer_of,
    likelihood,
    lowest_snr_first,
    reward_of_answers,
    search,
    winners_curse,
)
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import RewardFn, reward_function
from starling_nb.store import Store

SEEDS = (0, 1, 2)
RHOS = (0.5, 0.1, 0.01)
ASKED, LIKELY = 128, 256  # prompts to answer, and answers to be likely, to choose on
SIZES = {"sft": {"rows": 4000}, "rankings": {"lists": 4000}}  # of the lessons' tuned policy
TEMPERATURES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
LIMIT = 5  # matrices in a composition, as in rmt_laser.py, and here in the others, too
DRAWS = 3  # of random components in place of a best reduction; one in place of a composition

Scores = dict[str, np.ndarray]  # of each measure: one for each test prompt
Change = dict[
    str, list[float]
]  # of each measure: the mean, and half its 95 % interval over prompts


class Tuned(NamedTuple):
    """A tuned policy, who judges it, and the prompts it is judged on."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    world: World
    likes: RewardFn  # the learned reward
    test: list[Row]


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each seed what each criterion chose, its gain, and the change of everything on test."""
    seeds = SEEDS[:2] if profile == "smoke" else SEEDS
    sizes = {} if profile == "smoke" else SIZES
    courses = [Store(store, profile, seed, config=sizes) for seed in seeds]
    return {"seeds": [measure_seed(course) for course in courses]}


def measure_seed(course: Store) -> dict[str, Any]:
    """One tuned policy."""
    small = course.profile.name == "smoke"
    few, some, end = (8, 16, 56) if small else (ASKED, LIKELY, None)
    rhos, temperatures = (RHOS[1:2], TEMPERATURES[-2:]) if small else (RHOS, TEMPERATURES)
    held_out = course.get("rankings").validation  # a list on each held-out prompt
    held_out = random.Random(course.seed).sample(held_out, len(held_out))[:end]
    choosing, test = held_out[:some], held_out[some:]
    policy, tokenizer = course.get("apa")
    likes = reward_function(*course.get("reward_model"))
    tuned = Tuned(policy, tokenizer, course.get("world"), likes, test)

    start = judge(tuned)
    generator = torch.Generator().manual_seed(course.seed)
    entropies = [entropy(tuned, temperature) for temperature in temperatures]
    criteria = criteria_on(tuned, choosing, asked=few)
    names = [*matrices(policy)][-2:] if small else [*matrices(policy)]
    rows = []
    for name, criterion in criteria.items():
        baseline, candidates = search(policy, names, rhos, criterion)
        best, order = candidates[0], best_first(baseline, candidates)
        alone = {best.name: best.rank}
        with reduced(policy, alone):
            change = change_of(start, judge(tuned))
            as_unsure = float(np.interp(entropy(tuned, 1), entropies, temperatures))
        rows.append(
            {
                "criterion": name,
                "type": kind_of(best.name),
                "layer": layer_of(best.name),
                "rho": best.rho,
                **winners_curse(baseline, candidates, course.seed),
                "best": change,
                "random": at_random(tuned, start, alone, generator, DRAWS),
                "tempered": tempered(tuned, start, as_unsure),
                "composed": composed(tuned, start, order, criterion, generator),
            }
        )
    likely = criteria["likelihood"]
    spectra = [spectrum(name, weight) for name, weight in matrices(policy).items()]
    orders = {order.__name__: order(spectra) for order in (last_layers_first, lowest_snr_first)}
    return {
        "start": {name: float(values.mean()) for name, values in start.items()},
        "criteria": rows,
        "temperature": tempered(tuned, start, likeliest(policy, likely, temperatures)),
        "laserRMT": [
            {"order": name, **composed(tuned, start, order, likely, generator)}
            for name, order in orders.items()
        ],
    }


def criteria_on(tuned: Tuned, rows: list[Row], asked: int) -> dict[str, Criterion]:
    """What to choose by: the first answers of all rows, and answers to the first `asked`."""
    prompts = [prompt_to_conversation(row["prompt"]) for row in rows[:asked]]
    return {
        "likelihood": likelihood(tuned.tokenizer, first_answers(rows)),
        "learned reward": reward_of_answers(tuned.likes, tuned.tokenizer, prompts),
        "gold": reward_of_answers(tuned.world.gold_reward, tuned.tokenizer, prompts),
    }


def first_answers(rows: list[Row]) -> list[Conversation]:
    """Each prompt with the answer that the judge put first."""
    return [
        [
            *prompt_to_conversation(row["prompt"]),
            {"role": "assistant", "content": row["answers"][0]["answer"]},
        ]
        for row in rows
    ]


def judge(tuned: Tuned) -> Scores:
    """Every measure of the policy on each test prompt."""
    policy, tokenizer, world, likes, test = tuned
    prompts = [prompt_to_conversation(row["prompt"]) for row in test]
    found = {"likelihood": likelihood(tokenizer, first_answers(test))(policy).numpy()}
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


def change_of(start: Scores, now: Scores) -> Change:
    """What has been gained since the start."""
    return {
        name: [round(float(x), 4) for x in paired_difference(now[name], start[name])]
        for name in start
    }


def entropy(tuned: Tuned, temperature: float) -> float:
    """How unsure the policy is at a temperature, nats a token, on a quarter of the test prompts."""
    quarter = [tuned.world.prompt(row["prompt"]) for row in tuned.test[::4]]
    return sampling_entropy(tuned.policy, tuned.tokenizer, quarter, temperature=temperature)


def at_random(
    tuned: Tuned, start: Scores, ranks: Mapping[str, int], generator: torch.Generator, draws: int
) -> Change:
    """The change by random components, as many of each matrix as the ranks say; mean of draws.

    Its interval holds the draws fixed.
    """
    approximate, found = partial(random_components, generator=generator), []
    for _ in range(draws):
        with reduced(tuned.policy, ranks, approximate=approximate):
            found.append(judge(tuned))
    return change_of(start, {name: np.mean([one[name] for one in found], axis=0) for name in start})


def composed(
    tuned: Tuned,
    start: Scores,
    order: Iterable[tuple[str, int]],
    criterion: Criterion,
    generator: torch.Generator,
) -> dict[str, Any]:
    """The change by a greedy composition, and by random components of the same matrices."""
    weights = matrices(tuned.policy)
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
    kept = compose(tuned.policy, order, criterion, limit=LIMIT)
    change = change_of(start, judge(tuned))
    assign(weights, originals)
    ranks = {row["name"]: row["rank"] for row in kept}
    return {
        "kept": len(ranks),
        "names": ", ".join(ranks),
        **change,
        "random": at_random(tuned, start, ranks, generator, 1),
    }


def tempered(tuned: Tuned, start: Scores, temperature: float) -> dict[str, Any]:
    """The change by a temperature alone."""
    with divided(tuned.policy, temperature):
        return {"temperature": temperature, **change_of(start, judge(tuned))}


def likeliest(policy, criterion: Criterion, temperatures: Iterable[float]) -> float:
    """The temperature of highest mean criterion."""

    def mean(temperature: float) -> float:
        with divided(policy, temperature):
            return criterion(policy).mean().item()

    return max(temperatures, key=mean)


@contextmanager
def divided(policy, temperature: float) -> Iterator[None]:
    """Divide the policy's logits: the weight of its last norm is a factor of them."""
    weight = policy.get_decoder().norm.weight
    before = weight.detach().clone()
    weight.data = before / temperature
    try:
        yield
    finally:
        weight.data = before
