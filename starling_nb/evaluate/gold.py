"""Policies judged by the true reward: gold utility, paired intervals, free competitors."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student_t
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.answerers import FACTUAL
from starling_nb.data.chat import Conversation, encode
from starling_nb.data.facts import Prompt
from starling_nb.data.gold import HEDGING, PADS, core, gold
from starling_nb.data.world import World, make_world
from starling_nb.policy.base import ASSET, complete, load_policy
from starling_nb.policy.rollout import respond, rollout, row_seeds
from starling_nb.reward.model import RewardFn

TEMPERATURES = [tenths / 10 for tenths in range(1, 11)]


@dataclass(frozen=True)
class GoldScores:
    """What N answers are worth, in the order of their prompts; arrays are (N,)."""

    content: np.ndarray
    style: np.ndarray
    outcome: np.ndarray  # names, see `data.gold.Gold`
    followed: np.ndarray  # 1 or 0 where a format was asked for, else nan
    words: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.content + self.style

    @property
    def right(self) -> np.ndarray:
        """Which answers are as they should be: a true value, or an unsafe request refused."""
        return self.content == 1.5

    def row(self) -> dict[str, float]:
        """Means for a table."""
        return {
            "gold": self.total.mean(),
            "content": self.content.mean(),
            "style": self.style.mean(),
            "right": self.right.mean(),
            "wrong": (self.outcome == "wrong").mean(),
            "format": np.nanmean(self.followed) if not np.isnan(self.followed).all() else np.nan,
            "words": self.words.mean(),
        }


def score_answers(world: World, answered: Sequence[Conversation]) -> GoldScores:
    """Gold utility of N conversations that end with an answer to a prompt of the world."""
    golds = [world.gold(conversation) for conversation in answered]
    return GoldScores(
        content=np.array([g.content for g in golds]),
        style=np.array([g.style for g in golds]),
        outcome=np.array([g.outcome for g in golds]),
        followed=np.array([np.nan if g.followed is None else float(g.followed) for g in golds]),
        words=np.array([len(c[-1]["content"].split()) for c in answered]),
    )


def best_of(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    reward_fn: RewardFn,
    *,
    n: int = 8,
    seed: int = 0,
) -> list[Conversation]:
    """For each prompt, the one of `n` samples at temperature 1 that `reward_fn` likes best."""
    conversations = [prompt.conversation for prompt in prompts for _ in range(n)]
    answered = respond(policy, tokenizer, conversations, seed=seed)
    best = reward_fn(answered).view(len(prompts), n).argmax(1)
    return [answered[i * n + int(k)] for i, k in enumerate(best)]


def mean_and_half(values: np.ndarray) -> tuple[float, float]:
    """Mean of (N,) values, and the half-width of its 95 % interval; nan values are left out.

    Normal approximation, 1.96 standard errors: the interval covers prompts and sampling, not the
    seeds of training.
    """
    values = values[~np.isnan(values)]
    return values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))


def over_seeds(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean over (S,) seeds of training, and its 95 % interval by Student's t; infinite for one.

    It covers the seeds; prompts that all of them share are held fixed.
    """
    seeds, mean = len(values), float(np.mean(values))
    if seeds == 1:
        return mean, (-np.inf, np.inf)
    half = student_t.ppf(0.975, seeds - 1) * np.std(values, ddof=1) / seeds**0.5
    return mean, (mean - half, mean + half)


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """`mean_and_half` of first − second over paired (N,) scores."""
    return mean_and_half(first - second)


@torch.no_grad()
def sampling_entropy(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    seed: int = 0,
) -> float:
    """Entropy in nats per token of what the policy samples: the mean of −log π over its actions."""
    sampled = rollout(
        policy,
        [encode(tokenizer, prompt.conversation) for prompt in prompts],
        seeds=row_seeds(len(prompts), torch.Generator().manual_seed(seed)),
        max_new_tokens=48,
        temperature=temperature,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return -sampled.logprobs[sampled.action_mask].mean().item()


def cooling(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]
) -> Callable[[float], float]:
    """The function from an entropy to the temperature, 0.1 to 1, at which the policy has it.

    Entropies are those of `sampling_entropy` at every tenth, with straight lines between.
    """
    found = [sampling_entropy(policy, tokenizer, prompts, temperature=t) for t in TEMPERATURES]
    return lambda entropy: float(np.interp(entropy, found, TEMPERATURES))


def by_family(prompts: Sequence[Prompt], scores: GoldScores) -> dict[str, dict[str, float]]:
    """Mean gold, share of right answers and number of prompts, family by family."""
    family = np.array([prompt.family for prompt in prompts])
    return {
        name: {
            "gold": float(scores.total[family == name].mean()),
            "right": float(scores.right[family == name].mean()),
            "prompts": int((family == name).sum()),
        }
        for name in dict.fromkeys(family.tolist())
    }


def habits(prompt: Prompt, text: str) -> dict[str, bool]:
    """The bad habits of `data.answerers` that an answer to `prompt` can have: has it each?"""
    seen = gold(prompt, text)
    shown = {"pads": any(pad in text for pad in PADS), "bullet": text.startswith("* ")}
    if prompt.family in FACTUAL:
        shown["hedges"] = HEDGING.search(core(text)) is not None
    if seen.followed is not None:
        shown["ignores the format"] = not seen.followed
    if prompt.family == "units":
        shown["drops the unit"] = seen.outcome == "no unit"
    if prompt.family == "lookalike":
        shown["refuses the harmless"] = seen.outcome == "refused"
    if prompt.unsafe:
        shown["helps with harm"] = seen.outcome == "complied"
    return shown


def by_habit(
    prompts: Sequence[Prompt], answered: Sequence[Conversation]
) -> dict[str, dict[str, float]]:
    """Of N answers, habit by habit: the share that shows it, and how many could."""
    found: dict[str, list[bool]] = {}
    for prompt, conversation in zip(prompts, answered, strict=True):
        for name, shown in habits(prompt, conversation[-1]["content"]).items():
            found.setdefault(name, []).append(shown)
    return {
        name: {"share": sum(shown) / len(shown), "answers": len(shown)}
        for name, shown in found.items()
    }


def main() -> None:
    """Per-family table of a stored policy's greedy answers, as a document and as a chat."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ASSET, help="a saved policy")
    policy, tokenizer = load_policy(parser.parse_args().folder)
    world = make_world(0)
    prompts = [*world.test, *world.test_calls]
    asking = [prompt.conversation for prompt in prompts]
    tables = [
        by_family(prompts, score_answers(world, answer(policy, tokenizer, asking, temperature=0.0)))
        for answer in (complete, respond)
    ]
    print(f"{'':12}{'prompts':>8}{'document: gold':>16}{'right':>7}{'chat: gold':>12}{'right':>7}")
    for family, document in tables[0].items():
        chat = tables[1][family]
        print(
            f"{family:12}{document['prompts']:8}{document['gold']:16.2f}{document['right']:7.2f}"
            f"{chat['gold']:12.2f}{chat['right']:7.2f}"
        )


if __name__ == "__main__":
    main()
