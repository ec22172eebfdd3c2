r"""Nectar's seven-wise rankings, and any file of the same schema: reading, checking, splitting.

A row (`berkeley-nest/Nectar`, K = 7 there; any K >= 2 here):

    prompt         str, "\n\nHuman: ...\n\nAssistant: ", ending in that tag and its space
    answers        list of K {answer: str, model: str, rank: number}, rank 1 = best
    turns          int, number of human turns
    num_responses  int, K
    source         list of str
    good_natured   bool

The card calls rank an int, the served file holds float64: both are read, and a validated row holds
ints. Its answers are sorted best first, because every K-wise loss here is positional; the authors'
training code never sorts. What becomes of an odd row:

    ERROR: the row is refused. `load_rows` raises with the first five and the number of all; with
    `drop_bad=True` it leaves them out and counts them under these names.
      not an object        the JSON value or the row is no object with named fields
      missing field        one of the six fields, or of an answer's three, is absent
      wrong type           a field has another type (also: rank null or true, a text that is null)
      broken text          invalid UTF-8, or half of a surrogate pair, inside a text
      too few answers      fewer than two
      bad ranks            NaN, a fraction, below 1, above K, or two answers with the same rank
      bad prompt           the prompt cannot be split into turns, or ends in an assistant's text
    REPAIR: the row is kept, the repair is counted.
      answers re-sorted    they were not listed best first
      ranks from strings   "2" or "2.0" became 2
      prompt mended        it ended in a human turn, or its last tag lacked the space (the tag is
                           added), or blanks stood before its first tag (they are cut)
      num_responses set    the field was not the number of answers
      other fields cut     the row or an answer had fields beyond the schema's
    NOTICED: the row is kept as it is, and counted.
      repeated answer      two answers of the list are the same text
      empty answer         an answer is blank
      fixed refusal        an answer is Nectar's canned refusal (`FIXED_REFUSAL`)
      repeated tag         a speaker's tag follows text of the same speaker, as when a user's text
                           itself holds "\n\nHuman: "; `parse_prompt` reads it as text
      turns differ         `turns` is not the number of human turns found in the prompt
      repeated prompt      an earlier row has this prompt, with other answers or ranks
      duplicated row       an earlier row has this prompt and this ranking

Counts are numbers of rows. What cannot be read at all (a cut gzip stream, a line that is no JSON,
a file without rows) always raises. Blank lines of a jsonl file are no rows.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from starling_nb.data.chat import ASSISTANT_TAG, HUMAN_TAG, Conversation, prompt_to_conversation
from starling_nb.data.sources import open_source

Row = dict[str, Any]

FIXED_REFUSAL = "I apologize, but I can't assist with that request."
SAMPLE = Path(__file__).parent.parent / "assets" / "nectar_sample.jsonl"  # 21 rows of our own

FIELDS = {
    "prompt": str,
    "answers": list,
    "turns": int,
    "num_responses": int,
    "source": list,
    "good_natured": bool,
}
NUMBER = (int, float, str)  # a rank may arrive as "2"
ANSWER_FIELDS = {"answer": str, "model": str, "rank": NUMBER}
KINDS = {
    str: "a text",
    int: "an integer",
    bool: "true or false",
    list: "a list",
    NUMBER: "a number",
}
REPAIRS = (
    "answers re-sorted",
    "ranks from strings",
    "prompt mended",
    "num_responses set",
    "other fields cut",
)
NOTICED = (
    "repeated answer",
    "empty answer",
    "fixed refusal",
    "repeated tag",
    "turns differ",
    "repeated prompt",
    "duplicated row",
)
SHOWN = 5  # problems spelled out in a message or a report


def load_rows(
    source: str | Path, limit: int | None = None, drop_bad: bool = False
) -> tuple[list[Row], "Report"]:
    """Read Nectar-schema rows from `source`, each validated, and a report of what was met.

    source: a .parquet, .jsonl or .jsonl.gz file, a folder of such files, or a Hub dataset id such
    as "berkeley-nest/Nectar" (`open_source`). limit: read only the first `limit` rows. drop_bad:
    leave refused rows out and count them, instead of raising; if no row is left it raises.

    Raises FileNotFoundError when `source` is nothing of these, ConnectionError when the Hub fails,
    ValueError for what cannot be read and, unless `drop_bad`, for refused rows: the message names
    file, row and field, and the module's table lists all outcomes.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1 row or None for all, found {limit}")
    placed, ignored = open_source(source)
    report = Report(Path(source).name if Path(source).exists() else str(source), ignored=ignored)
    rows: list[Row] = []
    seen: set[bytes] = set()
    for where, raw in islice(placed, limit):
        report.read += 1
        outcomes: set[str] = set()
        try:
            row = validate(raw, where, outcomes)
        except BadRow as problem:
            report.dropped[problem.reason] += 1
            if len(report.problems) < SHOWN:
                report.problems.append(str(problem))
            continue
        whole, prompt = _digest(row), _digest(row["prompt"])
        if whole in seen:
            outcomes.add("duplicated row")
        elif prompt in seen:
            outcomes.add("repeated prompt")
        seen |= {whole, prompt}
        report.outcomes.update(outcomes)
        rows.append(row)
    bad = report.dropped.total()
    if bad and (not rows or not drop_bad):
        raise ValueError(
            f"{bad} of {report.read} rows are not in Nectar's schema:\n"
            + "\n".join(f"  {line}" for line in report.problems)
            + (f"\n  and {bad - SHOWN} more" if bad > SHOWN else "")
            + ("" if drop_bad else "\nCorrect them, or leave them out with drop_bad=True.")
        )
    return rows, report


def validate(row: Any, where: str, outcomes: set[str] | None = None) -> Row:
    """A checked copy of `row`: the six fields, ranks ints 1..K, answers sorted best first.

    where: the file and row that messages name. outcomes: gathers the names of the repairs made and
    the oddities noticed (the module's table). Raises BadRow, a ValueError.
    """
    outcomes = set() if outcomes is None else outcomes
    copy = _checked(row, FIELDS, where, "")
    for i, name in enumerate(copy["source"]):
        if not isinstance(name, str):
            raise _bad("wrong type", where, f"source[{i}]", "a text", _show(name), "convert it")
        _check_text(name, where, f"source[{i}]")
    answers = [
        _checked(a, ANSWER_FIELDS, where, f"answers[{i}]") for i, a in enumerate(copy["answers"])
    ]
    _set_ranks(answers, where, outcomes)
    prompt = _mended_prompt(copy["prompt"], copy["turns"], where, outcomes)
    if copy["num_responses"] != len(answers):
        outcomes.add("num_responses set")
    if row.keys() != FIELDS.keys() or any(a.keys() != ANSWER_FIELDS.keys() for a in row["answers"]):
        outcomes.add("other fields cut")

    texts = [a["answer"].strip() for a in answers]
    if len(set(texts)) < len(texts):
        outcomes.add("repeated answer")
    if "" in texts:
        outcomes.add("empty answer")
    if any(text.replace("’", "'") == FIXED_REFUSAL for text in texts):
        outcomes.add("fixed refusal")
    return copy | {"prompt": prompt, "answers": answers, "num_responses": len(answers)}


def conversations(row: Row) -> list[Conversation]:
    """The K conversations of a validated row, best first, each ending in one of the answers."""
    prompt = prompt_to_conversation(row["prompt"])
    return [[*prompt, {"role": "assistant", "content": a["answer"]}] for a in row["answers"]]


class Split(NamedTuple):
    """Rows to train on, rows kept for the head-only start, rows to validate on."""

    train: list[Row]
    held_back: list[Row]
    validation: list[Row]


def split(rows: list[Row]) -> Split:
    """The authors' split: the last 1 000 rows validate, the 1 000 before are held back.

    They hold those back to pretrain the reward head alone. Below 4 000 rows an eighth of the
    prompts, at least one, goes to each of the two parts, chosen by the SHA-256 of the prompt: all
    rows of one prompt stay together, and neither the rows' order nor a seed matters. From 4 000
    rows on the split is by position, as the authors', and a repeated prompt may be in two parts.
    Raises ValueError below three different prompts.
    """
    if len(rows) >= 4000:
        return Split(rows[:-2000], rows[-2000:-1000], rows[-1000:])
    order = sorted({row["prompt"] for row in rows}, key=_digest)
    if len(order) < 3:
        raise ValueError(
            f"rows: expected at least 3 different prompts to split, found {len(order)}; "
            "read more rows"
        )
    part = max(1, len(order) // 8)
    place = {prompt: min(i // part, 2) for i, prompt in enumerate(order)}
    validation, held_back, train = (
        [row for row in rows if place[row["prompt"]] == part] for part in range(3)
    )
    return Split(train, held_back, validation)


@dataclass
class Report:
    """What `load_rows` met: rows read, dropped (by reason), repaired and noticed (by outcome)."""

    source: str  # the file's or folder's name, or the Hub's id
    read: int = 0
    ignored: list[str] = field(default_factory=list)  # other files of the folder
    dropped: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)  # the first few dropped rows, in words

    def __str__(self) -> str:
        lines = [("rows read", self.read), ("rows kept", self.read - self.dropped.total())]
        lines += [(f"dropped: {reason}", n) for reason, n in sorted(self.dropped.items())]
        for kind, names in (("repaired", REPAIRS), ("noticed", NOTICED)):
            lines += [(f"{kind}: {name}", self.outcomes[name]) for name in names]
        lines = [line for i, line in enumerate(lines) if i < 2 or line[1]]
        width, digits = max(len(name) for name, _ in lines), len(f"{self.read:,}")
        table = [self.source, *(f"  {name:<{width}}  {n:>{digits},}" for name, n in lines)]
        table += [f"  ignored: {', '.join(self.ignored)}"] if self.ignored else []
        return "\n".join(table + [f"  {problem}" for problem in self.problems])


class BadRow(ValueError):
    """A row outside the schema; `reason` is its name in the module's table."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def _bad(reason: str, where: str, name: str, expected: str, found: str, remedy: str) -> BadRow:
    place = f"{where}, field {name}" if name else where
    return BadRow(reason, f"{place}: expected {expected}, found {found}; {remedy}")


def _checked(value: object, fields: dict, where: str, place: str) -> dict[str, Any]:
    """A copy of the object `value` with exactly these fields, each of its type."""
    if not isinstance(value, dict):
        expected = f"an object with the fields {', '.join(fields)}"
        raise _bad("not an object", where, place, expected, _show(value), "write one per row")
    for name, kind in fields.items():
        path = f"{place}.{name}" if place else name
        if name not in value:
            found = f"only the fields {', '.join(map(str, value))}" if value else "no field at all"
            raise _bad(
                "missing field", where, path, KINDS[kind], found, "add it or read another file"
            )
        boolean = isinstance(value[name], bool)  # which Python counts among the ints
        if not isinstance(value[name], kind) or boolean != (kind is bool):
            raise _bad("wrong type", where, path, KINDS[kind], _show(value[name]), "convert it")
        if isinstance(value[name], str):
            _check_text(value[name], where, path)
    return {name: value[name] for name in fields}


def _check_text(text: str, where: str, path: str) -> None:
    """Refuse text that no tokenizer can read; undecodable bytes arrive here as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"a broken character behind {text[: error.start][-20:]!r}"
        remedy = "save the text again as UTF-8"
        raise _bad("broken text", where, path, "valid UTF-8", found, remedy) from None


def _set_ranks(answers: list[dict[str, Any]], where: str, outcomes: set[str]) -> None:
    """Make the ranks ints, check that they are a permutation of 1..K, sort by them; in place."""
    k = len(answers)
    if k < 2:
        raise _bad("too few answers", where, "answers", "two or more", str(k), "leave the row out")
    place_of: dict[int, int] = {}
    for i, answer in enumerate(answers):
        rank, path = answer["rank"], f"answers[{i}].rank"
        if isinstance(rank, str) and re.fullmatch(r"\s*[0-9]{1,9}(\.0*)?\s*", rank):
            outcomes.add("ranks from strings")
            rank = float(rank)
        whole = isinstance(rank, int) or (isinstance(rank, float) and rank.is_integer())
        if not whole or not 1 <= rank <= k:
            expected, found = f"a whole number from 1 (best) to {k}", _show(answer["rank"])
            raise _bad("bad ranks", where, path, expected, found, "rank the answers 1, 2, ...")
        if rank in place_of:
            found = f"{_show(answer['rank'])} as in answers[{place_of[rank]}]"
            raise _bad("bad ranks", where, path, "each rank once", found, "break the tie")
        place_of[rank] = i
        answer["rank"] = int(rank)
    if list(place_of) != sorted(place_of):
        outcomes.add("answers re-sorted")
        answers.sort(key=lambda a: a["rank"])


def _mended_prompt(prompt: str, turns: int, where: str, outcomes: set[str]) -> str:
    """The prompt with its first tag at the start and its final tag whole; it can be split."""
    mended = re.sub(r"\A\s+(?=\n\nHuman: )", "", prompt)
    mended = re.sub(r"\n\nAssistant:\s*\Z", ASSISTANT_TAG, mended)
    if mended.rfind(HUMAN_TAG) > mended.rfind(ASSISTANT_TAG):
        mended += ASSISTANT_TAG
    if mended != prompt:
        outcomes.add("prompt mended")
    try:
        conversation = prompt_to_conversation(mended)
    except ValueError as error:  # which begins with the field's name, "prompt: expected ..."
        raise BadRow("bad prompt", f"{where}, field {error}") from None
    if mended.count(HUMAN_TAG) + mended.count(ASSISTANT_TAG) > len(conversation) + 1:
        outcomes.add("repeated tag")
    if sum(turn["role"] == "user" for turn in conversation) != turns:
        outcomes.add("turns differ")
    return mended


def _show(value: object) -> str:
    """A value as messages show it: its type and at most 40 characters."""
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
