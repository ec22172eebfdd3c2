"""How often a reward prefers what people prefer: the card's table and any preference file.

    python -m starling_nb.reward.bench FOLDER

prints the accuracy table of the reward-model card (human, truth, safety, average) for every score
file in FOLDER, and each benchmark's details. A score file is named BENCHMARK.MODEL_scores.jsonl
(or .jsonl.gz) and lies beside BENCHMARK.jsonl[.gz], .parquet or .csv; line i holds the scores of
row i's answers: score_a, score_b (score_c), or score_chosen, score_rejected.

Source: Starling, reward-model-training/score.py, whose accuracies these are. Beside every figure
stands what preferring the longer answer reaches under the same rule.
"""

import argparse
import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

from starling_nb.data.chat import Conversation
from starling_nb.data.sources import SUFFIXES, read_jsonl
from starling_nb.reward.bench_data import Benchmark, Comparison, read_benchmark
from starling_nb.reward.model import RewardFn
from starling_nb.store import replace_atomically

CARD = ("human", "truth", "safety")  # the card's columns; the fourth is their mean
RESAMPLES = 2000


def characters(conversations: Sequence[Conversation]) -> list[int]:
    """Length of the last message of each conversation: the scorer behind "longer wins"."""
    return [len(conversation[-1]["content"]) for conversation in conversations]


def score_items(
    benchmark: Benchmark, reward_fn: RewardFn | Callable[[list[Conversation]], ArrayLike]
) -> np.ndarray:
    """Scores (N, K), float64, of the items' answers; NaN on rows that state no preference.

    reward_fn: N·K conversations -> as many finite numbers, of `reward_function(model, tokenizer)`
    or of any plain function. Raises ValueError for another number of scores, or one not finite.
    """
    scores = np.full((len(benchmark.items), len(benchmark.answers)), math.nan)
    rows = [i for i, item in enumerate(benchmark.items) if item.comparisons]
    conversations = [c for i in rows for c in benchmark.items[i].conversations]
    found = reward_fn(conversations)
    if isinstance(found, torch.Tensor):  # which may be bfloat16, which numpy does not know
        found = found.detach().double().cpu()
    found = np.asarray(found, dtype=np.float64)
    if found.shape != (len(conversations),):
        raise ValueError(
            f"reward_fn: expected {len(conversations)} scores, one a conversation, "
            f"found shape {found.shape}"
        )
    scores[rows] = found.reshape(len(rows), -1)
    return _finite(benchmark, scores, "reward_fn")


def read_scores(benchmark: Benchmark, path: str | Path) -> np.ndarray:
    """Scores (N, K), float64, out of a score file with one line for each row of the benchmark.

    Raises ValueError naming file, line and field for a missing or unfit score, and for another
    number of lines. Rows that state no preference need no scores.
    """
    rows = []
    names = [f"score_{answer}" for answer in benchmark.answers]
    items = iter(benchmark.items)
    for where, row in read_jsonl(path):
        item = next(items, None)
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object with {', '.join(names)}, found {row!r}")
        needed = item is not None and bool(item.comparisons)
        for name in names:
            value: Any = row.get(name)
            number = type(value) in (int, float)  # True is no score
            if needed and not (number and math.isfinite(value)):
                found = repr(value) if name in row else f"only {', '.join(row) or 'no field'}"
                raise ValueError(f"{where}, field {name}: expected a finite number, found {found}")
        rows.append([row[name] if needed else math.nan for name in names])
    if len(rows) != len(benchmark.items):
        raise ValueError(
            f"{path}: expected {len(benchmark.items)} lines, one for each row of "
            f"{benchmark.name}, in its order, found {len(rows)}"
        )
    return np.array(rows, dtype=np.float64)


def write_scores(benchmark: Benchmark, scores: np.ndarray, path: str | Path) -> None:
    """Write scores (N, K) as a score file, .jsonl or .jsonl.gz; null where there is none."""
    names = [f"score_{answer}" for answer in benchmark.answers]
    lines = [
        json.dumps(
            {n: None if math.isnan(s) else float(s) for n, s in zip(names, row, strict=True)}
        )
        for row in scores
    ]
    text = "".join(line + "\n" for line in lines).encode()
    with replace_atomically(path) as temporary:
        temporary.write_bytes(gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text)


class Figure(NamedTuple):
    """A mean and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})"


@dataclass(frozen=True)
class Result:
    """What a reward makes of a benchmark; arrays have one entry for each of M comparisons.

    Results on one benchmark are aligned: `figure(a.credit - b.credit, a.prompts)` compares two
    rewards on the same pairs.
    """

    benchmark: Benchmark
    credit: np.ndarray  # 1 right, 0 wrong, a tie as the benchmark counts it
    longer: np.ndarray  # the same for preferring the longer answer
    tied: np.ndarray  # bool: the two scores are equal
    loss: np.ndarray  # -log σ(better - worse), nats; log 2 for equal scores
    gap: np.ndarray  # characters of the better answer, less those of the worse
    prompts: np.ndarray  # number of the comparison's prompt, 0-based
    groups: np.ndarray  # the benchmark's own subset, "" where it has none

    @property
    def accuracy(self) -> Figure:
        return figure(self.credit, self.prompts)

    @property
    def longer_wins(self) -> Figure:
        return figure(self.longer, self.prompts)

    @property
    def ahead(self) -> Figure:
        """Accuracy less that of longer-wins, paired."""
        return figure(self.credit - self.longer, self.prompts)


def evaluate(
    benchmark: Benchmark,
    source: RewardFn | Callable[[list[Conversation]], ArrayLike] | str | Path | np.ndarray,
) -> Result:
    """Compare the scores of a function of conversations, a score file, or an (N, K) array.

    The function is called once, as in `score_items`. Raises ValueError as `score_items` and
    `read_scores`. Source: score.py; its accuracy is `Result.accuracy.value`, and its loss is the
    mean of `Result.loss`, except that it adds up the three terms of a truth row.
    """
    if isinstance(source, str | Path):
        scores = read_scores(benchmark, source)
    elif callable(source):
        scores = score_items(benchmark, source)
    else:
        scores = _finite(benchmark, np.asarray(source, dtype=np.float64), "scores")
    lengths = score_items(benchmark, characters)
    claims = [(i, c) for i, item in enumerate(benchmark.items) for c in item.comparisons]
    rows = np.array([i for i, _ in claims])
    better, worse = (np.array([c[side] for _, c in claims]) for side in (0, 1))
    credit, longer = (
        np.array([_credit(c, table[i]) for i, c in claims]) for table in (scores, lengths)
    )
    items = [benchmark.items[i] for i in rows]
    return Result(
        benchmark,
        credit=credit[:, 0],
        longer=longer[:, 0],
        tied=credit[:, 1].astype(bool),
        loss=np.logaddexp(0, scores[rows, worse] - scores[rows, better]),
        gap=lengths[rows, better] - lengths[rows, worse],
        prompts=np.unique([item.prompt for item in items], return_inverse=True)[1],
        groups=np.array([item.group for item in items]),
    )


def _credit(claim: Comparison, scores: np.ndarray) -> tuple[float, bool]:
    """What a row's scores (K,) earn on a comparison, and whether they tie."""
    if claim.decimals is not None:
        scores = np.round(scores, claim.decimals)
    better, worse = scores[claim.better], scores[claim.worse]
    return (claim.tie if better == worse else float(better > worse)), better == worse


def _finite(benchmark: Benchmark, scores: np.ndarray, name: str) -> np.ndarray:
    """The scores, when there is a finite one for each answer that is compared."""
    shape = (len(benchmark.items), len(benchmark.answers))
    if scores.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, rows and answers, found {scores.shape}")
    compared = np.array([bool(item.comparisons) for item in benchmark.items])
    bad = np.argwhere(~np.isfinite(scores) & compared[:, None])
    if len(bad):
        row, answer = bad[0]
        raise ValueError(
            f"{name}: expected finite numbers, found {scores[row, answer]} for answer "
            f"{benchmark.answers[answer]} of row {row + 1}, and {len(bad) - 1} more"
        )
    return scores


# --------------------------------------------------------------------------------------- intervals
def clustered_means(
    values: np.ndarray, clusters: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Means of `values` (M,) over prompts drawn with replacement -> (RESAMPLES,).

    clusters: (M,) int from 0 on, the prompt of each value; a prompt is drawn with all its values,
    since answers to one prompt are judged alike. Source: Davison & Hinkley 1997, section 3.8.
    """
    sums, sizes = np.bincount(clusters, weights=values), np.bincount(clusters)
    means = np.empty(RESAMPLES)
    block = max(1, 1_000_000 // len(sums))  # draws held at a time: some megabytes
    for part in (means[start : start + block] for start in range(0, RESAMPLES, block)):
        draws = generator.integers(len(sums), size=(len(part), len(sums)))
        part[:] = sums[draws].sum(1) / sizes[draws].sum(1)
    return means


def figure(values: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> Figure:
    """The mean of `values` (M,) and its prompt-clustered percentile bootstrap 95 % interval.

    NaN bounds below two prompts. With few prompts it is too narrow, and where all values are equal
    it has no width: read it beside the number of prompts.
    """
    prompts = np.unique(clusters, return_inverse=True)[1]
    means = clustered_means(values, prompts, np.random.default_rng(seed))
    return _figure(float(np.mean(values)), means, enough=prompts.max() > 0)


def average(results: Sequence[Result], *, seed: int = 0) -> Figure:
    """The mean of the results' accuracies, each benchmark weighing the same, and its interval."""
    streams = np.random.default_rng(seed).spawn(len(results))
    means = [
        clustered_means(result.credit, result.prompts, stream)
        for result, stream in zip(results, streams, strict=True)
    ]
    value = float(np.mean([result.credit.mean() for result in results]))
    return _figure(value, np.mean(means, axis=0), all(r.prompts.max() > 0 for r in results))


def _figure(value: float, means: np.ndarray, enough: bool) -> Figure:
    low, high = np.quantile(means, [0.025, 0.975]) if enough else (math.nan, math.nan)
    return Figure(value, float(low), float(high))


class Band(NamedTuple):
    """The comparisons whose better answer is shorter or longer by a like amount, or one subset."""

    name: str
    comparisons: int
    accuracy: Figure
    longer_wins: Figure


def by_length_gap(result: Result) -> list[Band]:
    """Accuracy where the better answer is shorter, as long, or longer, cut at the median |gap|.

    A reward without length bias has like accuracies in the bands of like gap on both sides.
    """
    middle = np.median(np.abs(result.gap))
    cut = f"{middle:,.0f} characters"
    names = {
        -2: f"shorter by more than {cut}",
        -1: f"shorter by up to {cut}",
        0: "as long as the other",
        1: f"longer by up to {cut}",
        2: f"longer by more than {cut}",
    }
    steps = np.sign(result.gap) * (1 + (np.abs(result.gap) > middle))
    return [_band(result, steps == step, name) for step, name in names.items() if step in steps]


def by_group(result: Result) -> list[Band]:
    """Accuracy in each of the benchmark's own subsets, in the order of their names."""
    return [_band(result, result.groups == name, name) for name in np.unique(result.groups)]


def _band(result: Result, inside: np.ndarray, name: str) -> Band:
    credit, longer, prompts = (a[inside] for a in (result.credit, result.longer, result.prompts))
    return Band(name, int(inside.sum()), figure(credit, prompts), figure(longer, prompts))


# -------------------------------------------------------------------------------------- the report
def find_scores(folder: str | Path) -> dict[str, dict[str, Path]]:
    """The score files of a folder: benchmark file's path -> model -> score file's path.

    Raises ValueError when there is none, or one whose benchmark is absent.
    """
    files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    ending = ("_scores.jsonl", "_scores.jsonl.gz")
    benchmarks = {
        path.name.removesuffix(suffix): str(path)
        for suffix in (*SUFFIXES, ".csv")
        for path in files
        if path.name.endswith(suffix) and not path.name.endswith(ending)
    }
    found: dict[str, dict[str, Path]] = {path: {} for path in benchmarks.values()}
    for path in (path for path in files if path.name.endswith(ending)):
        name = path.name.rpartition("_scores.jsonl")[0]
        stems = [stem for stem in benchmarks if name.startswith(stem + ".")]
        if not stems:
            raise ValueError(
                f"{path}: expected the benchmark it scores beside it; name score files "
                "BENCHMARK.MODEL_scores.jsonl after a file BENCHMARK.jsonl[.gz], .parquet or .csv"
            )
        stem = max(stems, key=len)
        found[benchmarks[stem]][name.removeprefix(stem + ".")] = path
    if not any(found.values()):
        raise ValueError(
            f"{folder}: expected score files named BENCHMARK.MODEL_scores.jsonl[.gz], found none"
        )
    return found


def card_table(results: dict[str, dict[str, Result]]) -> str:
    """The card's four columns, a line for each model: model -> benchmark's name -> result."""
    lines = [["", *CARD, "average"]]
    for model, named in results.items():
        card = [named[name] for name in CARD if name in named]
        cells = [str(named[name].accuracy) if name in named else "–" for name in CARD]
        lines.append([model, *cells, str(average(card)) if len(card) == len(CARD) else "–"])
    width = max(len(model) for model, *_ in lines)
    return "\n".join(
        (f"{model:<{width}}" + "".join(f"  {cell:<19}" for cell in cells)).rstrip()
        for model, *cells in lines
    )


def details(result: Result) -> str:
    """Counts, how ties count, accuracy beside longer-wins: over all, by length gap, by group."""
    items, ahead = result.benchmark.items, result.ahead
    judged = sum(bool(item.comparisons) for item in items)
    lines = [
        f"  {judged:,} of {len(items):,} rows compared, {result.prompts.max() + 1:,} prompts, "
        f"{len(result.credit):,} comparisons, loss {result.loss.mean():.3f} nats (chance 0.693)",
        f"  {result.tied.sum():,} ties, which count {result.benchmark.ties}",
        *(f"  {count:,} rows: {name}" for name, count in sorted(result.benchmark.noted.items())),
        f"  ahead of longer-wins by {ahead.value:+.3f} ({ahead.low:+.3f} to {ahead.high:+.3f})",
        f"  {'better answer':<38}{'number':>8}  {'accuracy':<19}  longer wins",
    ]
    bands = [_band(result, np.full(len(result.credit), True), "all"), *by_length_gap(result)]
    if any(result.groups):
        bands += by_group(result)
    lines += [
        f"  {band.name:<38}{band.comparisons:>8,}  {band.accuracy!s:<19}  {band.longer_wins}"
        for band in bands
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the card's accuracy table and the details of every score file in a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="score files beside the benchmarks they score")
    parser.add_argument("--drop-bad", action="store_true", help="leave out and count bad rows")
    options = parser.parse_args()
    results: dict[str, dict[str, Result]] = {}
    baseline: dict[str, Result] = {}
    unscored = []
    try:
        for path, models in find_scores(options.folder).items():
            if not models:
                unscored.append(Path(path).name)
                continue
            benchmark = read_benchmark(path, drop_bad=options.drop_bad)
            if benchmark.name in baseline:
                raise ValueError(f"{path}: expected one {benchmark.name} benchmark, found another")
            baseline[benchmark.name] = evaluate(benchmark, characters)
            for model, file in models.items():
                results.setdefault(model, {})[benchmark.name] = evaluate(benchmark, file)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    print(card_table(results | {"longer wins": baseline}))
    print(f"In brackets 95 %, {RESAMPLES:,} bootstrap draws of whole prompts.")
    if unscored:
        print(f"Without scores: {', '.join(unscored)}")
    for model, named in results.items():
        for name, result in named.items():
            print(f"\n{model} · {name}\n{details(result)}")


if __name__ == "__main__":
    main()
