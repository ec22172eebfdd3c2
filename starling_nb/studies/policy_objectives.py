"""Lesson 07: PPO, APA, AWR and P3O at an equal number of samples, each tuned by the same search.

The search: six settings each, three learning rates times two strengths of the objective's own
dial, at a third of the iterations, seed 0. Kept is the one whose answers to 400 training prompts,
sampled and greedy, have the highest reward under the reward model; nobody looks at gold before
that. It runs over three seeds; so do the two forms of Starling's released APA code, and PPO on a
shuffled and on a constant reward, as controls.
"""

import random
from typing import Any

import torch

from starling_nb.evaluate.gold import (
    GoldScores,
    best_of,
    by_family,
    cooling,
    paired_difference,
    sampling_entropy,
    score_answers,
)
from starling_nb.policy.objectives import APA, AWR, P3O, PPO
from starling_nb.policy.rl import tune_policy
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import RewardFn, reward_function, shuffled
from starling_nb.store import Store

SEEDS = (0, 1, 2)
BATCH, ITERATIONS, SEARCHED = 128, 30, 10  # SEARCHED: iterations of a setting in the search
RATES = (1e-4, 2e-4, 4e-4)
DIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "PPO": tuple({"objective": PPO(), "whitening": True, "kl_coef": b} for b in (0.1, 0.2)),
    "APA": tuple({"objective": APA(lam)} for lam in (0.3, 0.6)),
    "AWR": tuple({"objective": AWR(lam)} for lam in (0.5, 1.0)),
    "P3O": tuple({"objective": P3O(b), "samples": 2} for b in (0.1, 0.2)),
}
CODE = {"objective": APA(1.0, anchor="old"), "kl_coef": 0.01}  # Starling's released code
SMOKE: dict[str, Any] = {"batch_size": 16, "minibatch_size": 8, "max_new_tokens": 16}


def measure(profile: str, store: str) -> dict[str, Any]:
    """The search, the settings kept, and each policy judged over three seeds."""
    course = Store(store, profile, 0)
    rates, seeds = (RATES, SEEDS) if profile != "smoke" else (RATES[:1], SEEDS[:1])
    search: dict[str, list[dict[str, Any]]] = {}
    kept: dict[str, dict[str, Any]] = {}
    for name, dials in DIALS.items():
        settings = [{**dial, "lr": lr} for dial in dials for lr in rates]
        rewards = [searched(course, options) for options in settings]
        search[name] = [{**as_text(s), "reward": r} for s, r in zip(settings, rewards, strict=True)]
        kept[name] = settings[rewards.index(max(rewards))]
    kept["APA, anchor old"] = {**kept["APA"], "objective": APA(kept["APA"]["objective"].lam, "old")}
    kept["APA, the code's"] = {**CODE, "lr": kept["APA"]["lr"]}
    return {
        "search": search,
        "kept": {name: as_text(options) for name, options in kept.items()},
        "seeds": [measure_seed(Store(store, profile, seed), kept) for seed in seeds],
    }


def as_text(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return {**options, "objective": str(options["objective"])}


def tuned(course: Store, options: dict[str, Any], iterations: int, reward_fn: RewardFn):
    """Return the policy after a run, and its history; smaller at smoke size."""
    world, (policy, tokenizer) = course.get("world"), course.get("sft")
    if course.profile.name == "smoke":
        iterations, options = 1, {**options, **SMOKE}
    drawn = world.sample(iterations * BATCH, random.Random(course.seed))
    return tune_policy(
        policy,
        reward_fn,
        [prompt.conversation for prompt in drawn],
        tokenizer=tokenizer,
        iterations=iterations,
        seed=course.seed,
        device=course.device,
        **options,
    )


def searched(course: Store, options: dict[str, Any]) -> float:
    """The reward of a setting's answers, sampled and greedy, to training prompts."""
    likes = reward_function(*course.get("reward_model"))
    policy, _ = tuned(course, options, SEARCHED, likes)
    count = 400 if course.profile.name != "smoke" else 8
    asked = [p.conversation for p in course.get("world").sample(count, random.Random("search"))]
    tokenizer = course.get("sft")[1]
    rewards = [likes(respond(policy, tokenizer, asked, temperature=t)).mean() for t in (1, 0)]
    return torch.stack(rewards).mean().item()


def measure_seed(course: Store, kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All policies of one seed beside SFT, SFT cooled to their entropy, and best-of-8."""
    world, (sft, tokenizer) = course.get("world"), course.get("sft")
    likes = reward_function(*course.get("reward_model"))
    prompts = world.test if course.profile.name != "smoke" else world.test[:40]
    few = prompts[::4]

    def judged(policy, temperature: float) -> GoldScores:
        asked = [prompt.conversation for prompt in prompts]
        return score_answers(world, respond(policy, tokenizer, asked, temperature=temperature))

    start = {t: judged(sft, t) for t in (1, 0)}
    temperature_with = cooling(sft, tokenizer, few)
    best = score_answers(world, best_of(sft, tokenizer, few, likes))
    found: dict[str, Any] = {
        "SFT": {str(t): summary(prompts, scores) for t, scores in start.items()},
        "best of 8": {"gold": float(best.total.mean()), "prompts": len(few)},
    }
    runs = {name: (options, likes) for name, options in kept.items()}
    runs["PPO, shuffled reward"] = kept["PPO"], shuffled(likes, course.seed)
    runs["PPO, constant reward"] = kept["PPO"], lambda talks: torch.zeros(len(talks))
    for name, (options, reward_fn) in runs.items():
        policy, history = tuned(course, options, ITERATIONS, reward_fn)
        scores = {t: judged(policy, t) for t in (1, 0)}
        entropy = sampling_entropy(policy, tokenizer, few, temperature=1.0)
        cooler = temperature_with(entropy)
        found[name] = {
            **{str(t): summary(prompts, s) for t, s in scores.items()},
            "sampled": difference(scores[1], start[1]),
            "greedy": difference(scores[0], start[0]),
            "cooled": difference(scores[1], judged(sft, cooler)),
            "best of 8": paired_difference(scores[1].total[::4], best.total),
            "entropy": entropy,
            "temperature": cooler,
            "trace": [{k: h[k] for k in ("reward", "kl", "entropy", "length")} for h in history],
        }
    return found


def summary(prompts, scores: GoldScores) -> dict[str, Any]:
    """Means for a table, and gold and the share of right answers by family."""
    row = {name: float(value) for name, value in scores.row().items()}
    families = [{"family": name, **of} for name, of in by_family(prompts, scores).items()]
    return {**row, "families": families}


def difference(first: GoldScores, second: GoldScores) -> dict[str, Any]:
    """Paired differences with 95 % half-widths, content and style apart."""
    return {
        part: paired_difference(getattr(first, part), getattr(second, part))
        for part in ("total", "content", "style")
    }
