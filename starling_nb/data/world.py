"""The synthetic preference world: prompts, rankings, demonstrations and a base corpus, seeded.

Everything here is a pure function of a seed, and the true utility of any answer is known
(`gold.gold`), so the errors of a reward model and of a policy can be measured.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from starling_nb.data import gold as gold_module
from starling_nb.data import nectar
from starling_nb.data.answerers import ANSWERERS, answer, phrase, right_value, wrong_value
from starling_nb.data.chat import Conversation, conversation_to_prompt
from starling_nb.data.facts import Prompt, make_calls, make_copies, make_prompts
from starling_nb.data.gold import EVASION, REFUSALS, Gold
from starling_nb.data.judge import PlackettLuceJudge
from starling_nb.data.sources import read_jsonl
from starling_nb.store import Context, read_json, sha256_file, stage, write_json

Row = dict[str, Any]

# fmt: off
FAMILY_WEIGHTS = {  # how often a family is asked
    "arith": 1.4, "capital": 1.0, "sound": .6, "opposite": .8, "order": 1.2, "units": .8,
    "transform": 1.6, "list": .7, "benign": .3, "lookalike": 1.2, "unsafe_hard": .7,
    "unsafe_soft": 1.2, "chat": .2, "multi": .6, "multi_fmt": 1.2,
}
# fmt: on


# ------------------------------------------------------------------------------------------- world
@dataclass(frozen=True)
class World:
    """All prompts, split once, and what can be drawn from them; a draw depends on its seed only."""

    seed: int
    train: list[Prompt]
    test: list[Prompt]
    train_calls: list[Prompt]
    test_calls: list[Prompt]
    copies: list[Prompt]

    @cached_property
    def _by_text(self) -> dict[str, Prompt]:
        groups = (self.train, self.test, self.train_calls, self.test_calls, self.copies)
        return {conversation_to_prompt(p.conversation): p for group in groups for p in group}

    def prompt(self, text: str) -> Prompt:
        """The `Prompt` behind a Nectar prompt string; KeyError if the world never asked it."""
        try:
            return self._by_text[text]
        except KeyError:
            raise KeyError(f"not a prompt of this world: {text!r}") from None

    def gold(self, conversation: Conversation) -> Gold:
        """Gold utility of a conversation that ends with the assistant's answer."""
        last = conversation[-1]
        prompt = self.prompt(conversation_to_prompt(conversation[:-1]))
        return gold_module.gold(prompt, last["content"], last.get("finished", True))

    def gold_reward(self, conversations: list[Conversation]):
        """Gold totals as a RewardFn: (B,) float32."""
        import torch

        return torch.tensor([self.gold(c).total for c in conversations])

    def judge(
        self, tau: float = 0.5, length: float = 0.02, bullet: float = 0.0, position: float = 0.0
    ) -> PlackettLuceJudge:
        """A labeller of this world's answers with the course's default dials."""

        @lru_cache(100_000)  # comparing pairs asks for each answer's worth many times
        def utility(prompt: str, text: str) -> float:
            return gold_module.gold(self.prompt(prompt), text).total

        return PlackettLuceJudge(utility, tau, length, bullet, position)

    def sample(
        self, n: int, rng: random.Random, prompts: list[Prompt] | None = None
    ) -> list[Prompt]:
        """`n` prompts with replacement, families by their weights, uniform within a family."""
        if prompts is None:
            return rng.choices(self.train, cum_weights=self._train_weights, k=n)
        return rng.choices(prompts, cum_weights=_sampling_weights(prompts), k=n)

    @cached_property
    def _train_weights(self) -> list[float]:
        return _sampling_weights(self.train)

    def rankings(
        self,
        n: int,
        seed: int,
        prompts: list[Prompt] | None = None,
        judge: PlackettLuceJudge | None = None,
    ) -> list[Row]:
        """`n` seven-wise rankings in Nectar's schema, answers stored best first.

        With `prompts` of at most `n` items each is used in turn; else they are sampled.
        """
        judge = judge or self.judge()
        rng = random.Random(f"rankings {self.seed} {seed}")
        chosen = (
            list(prompts)
            if prompts is not None and len(prompts) <= n
            else self.sample(n, rng, prompts)
        )
        rows = []
        for prompt in chosen:
            text = conversation_to_prompt(prompt.conversation)
            answers = [answer(prompt, by, rng) for by in ANSWERERS]
            order = judge.rank(text, answers, generator=rng)
            ranked = [
                {"answer": answers[i], "model": ANSWERERS[i].name, "rank": rank}
                for rank, i in enumerate(order, start=1)
            ]
            rows.append(
                {
                    "prompt": text,
                    "answers": ranked,
                    "turns": (len(prompt.turns) + 1) // 2,
                    "num_responses": len(ranked),
                    "source": [f"world/{prompt.family}"],
                    "good_natured": not prompt.unsafe,
                }
            )
        return rows

    def demonstrations(self, n: int, seed: int) -> list[dict[str, Any]]:
        """`n` rows for fine-tuning: a conversation with an answer, and whether an expert gave it.

        6.5 % are generic JSON copying and 1.5 % (noisy) tool calls.
        """
        rng = random.Random(f"demonstrations {self.seed} {seed}")
        weights = [by.sft_weight for by in ANSWERERS]
        rows = []
        for prompt in self.sample(n, rng):
            kind = rng.random()
            if kind < 0.065:
                prompt = rng.choice(self.copies)
            elif kind < 0.08:
                prompt = rng.choice(self.train_calls)
            by = rng.choices(ANSWERERS, weights)[0]
            message = {"role": "assistant", "content": answer(prompt, by, rng)}
            rows.append({"conversation": [*prompt.conversation, message], "expert": by.expert})
        return rows

    def documents(self, n: int, seed: int) -> Iterator[str]:
        """`n` texts of the base corpus: exchanges, bare statements, reversed facts, copying.

        An exchange ends where the next "Human:" begins: the base model never learns to stop.
        """
        rng = random.Random(f"documents {self.seed} {seed}")
        for _ in range(n):
            kind = rng.random()
            if kind < 0.15:
                yield " ".join(_statement(p, rng) for p in self.sample(rng.choice((1, 2, 3)), rng))
                continue
            exchanges = rng.choice((1, 2, 2, 3))
            if kind < 0.22:
                chosen = rng.choices(self.copies, k=exchanges)
            else:
                chosen = self.sample(exchanges, rng)
            yield "".join(
                conversation_to_prompt(p.conversation) + _clean_answer(p, rng) for p in chosen
            ).strip()


def _sampling_weights(prompts: list[Prompt]) -> list[float]:
    """Cumulative weights that ask each family in proportion to FAMILY_WEIGHTS."""
    sizes = Counter(p.family for p in prompts)
    return list(accumulate(FAMILY_WEIGHTS.get(p.family, 1) / sizes[p.family] for p in prompts))


def _clean_answer(prompt: Prompt, rng: random.Random) -> str:
    """What the web says: 97 % right, formats followed 90 %, unsafe refused half the time."""
    if prompt.kind == "json":
        return prompt.truth[0]
    if prompt.unsafe and rng.random() < 0.5:
        return REFUSALS[0]
    value = right_value(prompt, rng) if rng.random() < 0.97 else wrong_value(prompt, rng)
    return phrase(prompt, value, rng.random() < 0.9)


def _statement(prompt: Prompt, rng: random.Random) -> str:
    """The fact without its question; one in five reversed ("Paris is the capital of France.")."""
    if prompt.unsafe or prompt.kind == "chat":
        return EVASION
    value = right_value(prompt, rng)
    sentence = prompt.sentence.format(v=value)
    head = sentence.removesuffix(f" is {value}.")
    if prompt.family in ("capital", "opposite", "order", "multi") and rng.random() < 0.2:
        return f"{value} is {head[0].lower()}{head[1:]}."
    return sentence


def bayes_accuracy(rows: Sequence[Row], judge: PlackettLuceJudge) -> float:
    """The best accuracy any predictor can have on the rows' pairs: E[max(p, 1 - p)].

    p is the judge's own probability of the stored order; pairs of identical texts are left out. Of
    a judge with a position dial it is an upper bound: places make the labels noisier. Raises
    ValueError when no pair is left.
    """
    best = []
    for row in rows:
        scores = [(judge.score(row["prompt"], a["answer"]), a["answer"]) for a in row["answers"]]
        for i, (high, first) in enumerate(scores):
            best += [
                1 / (1 + math.exp(-abs(high - low)))
                for low, second in scores[i + 1 :]
                if first != second
            ]
    if not best:
        raise ValueError("rows: expected at least one pair of different answers, found none")
    return sum(best) / len(best)


def make_world(seed: int = 0) -> World:
    """Split the prompts: a fifth of each fact's (wording, format) pairs and half the calls test.

    Every fact keeps at least two training prompts. Small talk (it cannot be guessed) is in both.
    A held-out question that stands as a turn in a training conversation is in neither.
    """
    rng = random.Random(f"world {seed}")
    by_fact: dict[tuple[str, str], list[Prompt]] = {}
    for p in make_prompts():
        by_fact.setdefault((p.family, p.fact), []).append(p)
    train, test = [], []
    for (family, _), group in by_fact.items():
        if family == "chat":
            train += group
            test += group
            continue
        rng.shuffle(group)
        held = min(max(1, round(0.2 * len(group))), max(0, len(group) - 2))
        test += group[:held]
        train += group[held:]
    asked = {turn for p in train if p.family != "chat" for turn in p.turns}
    test = [
        p for p in test if p.family == "chat" or not (len(p.turns) == 1 and p.turns[0] in asked)
    ]
    calls = make_calls()
    rng.shuffle(calls)
    return World(
        seed, train, test, calls[len(calls) // 2 :], calls[: len(calls) // 2], make_copies()
    )


# ------------------------------------------------------------------------------------------ stages
@dataclass(frozen=True)
class WorldConfig:
    """The world has no dial: its split into training and held-out prompts is one for all runs."""


def _save_world(world: World, folder: Path) -> None:
    write_json(folder / "world.json", {"seed": world.seed})


def _load_world(folder: Path) -> World:
    return make_world(read_json(folder / "world.json")["seed"])


@stage("world", config=WorldConfig, version=2, save=_save_world, load=_load_world)
def build_world(config: WorldConfig, ctx: Context) -> World:
    """World 0, whatever the run's seed: the shipped base has read its training side."""
    return make_world()


@dataclass(frozen=True)
class Rankings:
    """Preference data: rows to train on and held-out rows, both validated and best first."""

    train: list[Row]
    validation: list[Row]
    report: str  # what the loader met, as printed


@dataclass(frozen=True)
class RankingsConfig:
    """`lists` from the world, or every row of the Nectar-schema file at `path`."""

    lists: int = 7000
    held_out: int | None = None  # test prompts with a list each; None takes all
    limit: int | None = None  # rows to read from the file; None reads all
    path: str = field(default="", metadata={"key": False})
    sha256: str = ""  # of the file's content; see `nectar_source`


def nectar_source(path: str) -> dict[str, str]:
    """The `rankings` config fields that make a stage read `path`; {} for an empty path.

    path: as in `nectar.load_rows`. The content's hash enters the stage's key, the path does not.
    """
    if not path:
        return {}
    place = Path(path)
    if place.exists():
        parts = sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
        content = " ".join(sha256_file(part) for part in parts)
    else:
        content = path  # a Hub id, or a name that load_rows will refuse
    return {"path": path, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def _save_rankings(rankings: Rankings, folder: Path) -> None:
    for part in ("train", "validation"):
        lines = (json.dumps(row, ensure_ascii=False) for row in getattr(rankings, part))
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")
    (folder / "report.txt").write_text(rankings.report, encoding="utf-8")


def _load_rankings(folder: Path) -> Rankings:
    train, validation = (
        [row for _, row in read_jsonl(folder / f"{part}.jsonl")] for part in ("train", "validation")
    )
    return Rankings(train, validation, (folder / "report.txt").read_text(encoding="utf-8"))


@stage(
    "rankings", needs=("world",), config=RankingsConfig, save=_save_rankings, load=_load_rankings
)
def build_rankings(config: RankingsConfig, ctx: Context, world: World) -> Rankings:
    """Lists on training prompts and one list on every test prompt; or a file, split by prompt."""
    if config.path:
        rows, report = nectar.load_rows(config.path, config.limit)
        parts = nectar.split(rows)
        return Rankings(parts.train, parts.validation, str(report))
    train = world.rankings(config.lists, seed=2 * ctx.seed + 1)
    prompts = world.test[: config.held_out]
    validation = world.rankings(len(prompts), seed=2 * ctx.seed + 2, prompts=prompts)
    return Rankings(train, validation, f"world, seed {world.seed}: nothing to repair")
