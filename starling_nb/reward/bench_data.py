r"""Preference benchmarks: the authors' four, raw public formats, and any chosen/rejected file.

`read_benchmark` knows a file by its fields:

    human      prompt, response_a, response_b, winner                 the card's benchmarks, as the
    safety     prompt, response_a, response_b, safer_response_id      authors keep and score them
    truth      prompt, response_a, response_b, response_c
    verbose    prompt, response_a, response_b
    TruthfulQA      Question, Best Answer, Correct Answers, Incorrect Answers (.csv): the same
                    triplets as `truth` in 791 of 817 rows
    PKU-SafeRLHF    prompt, response_0, response_1, is_response_0_safe, ..., safer_response_id
    Chatbot Arena, MT-Bench votes   conversation_a, conversation_b, winner, turn
    PandaLM         instruction, input, response1, response2, annotator1, annotator2, annotator3
    LLMBar          subset, input, output_1, output_2, label
    pairs           prompt, chosen, rejected
    dialogues       chosen, rejected, each "\n\nHuman: ...\n\nAssistant: ..." to its end (HH-RLHF)

The prompt of `pairs` is a Nectar prompt (it begins with "Human:"), a plain question, or a list of
messages; in the other formats it is a question. A row that states no preference stays an item
without comparisons, so that a score file has one line a row. Such rows, rows left out and oddities
are counted in `Benchmark.noted`.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from starling_nb.data.chat import (
    ASSISTANT_TAG,
    HUMAN_TAG,
    ROLES,
    Conversation,
    prompt_to_conversation,
)
from starling_nb.data.sources import open_source

SHOWN = 5  # bad rows spelled out in a message


class Comparison(NamedTuple):
    """The answer `better` should score above the answer `worse`; equal scores earn `tie`."""

    better: int
    worse: int
    tie: float = 0.5
    decimals: int | None = None  # both scores are rounded to so many decimals first


class Item(NamedTuple):
    """A row: its K conversations, each ending in one of the answers, and what is said of them."""

    conversations: tuple[Conversation, ...]
    comparisons: tuple[Comparison, ...]  # none where the row states no preference
    prompt: str  # items with the same prompt are resampled together
    group: str = ""  # the benchmark's own subset


@dataclass(frozen=True)
class Benchmark:
    """N items with K answers each; a score file has the field score_{answer} for each answer."""

    name: str
    items: list[Item]
    answers: tuple[str, ...] = ("chosen", "rejected")
    ties: str = "half"  # how equal scores count, in words
    noted: Counter[str] = field(default_factory=Counter)  # rows, by what was met in them


def pair(prompt: str | Conversation, chosen: str, rejected: str) -> Item:
    """The item of one preference; a tie earns half, as in `metrics.ranking_metrics`.

    prompt: a Nectar prompt, known by its first word "Human:"; a plain question; or a conversation
    that ends with the user. Raises ValueError naming the field.
    """
    return _item(_asked(prompt), (chosen, rejected), (Comparison(0, 1),))


def read_benchmark(source: str | Path, *, drop_bad: bool = False) -> Benchmark:
    """Read a benchmark, its format told by the fields of the first row (the module's table).

    source: a .jsonl, .jsonl.gz, .parquet or .csv file, or what else `open_source` takes.
    drop_bad: leave empty items in the places of bad rows and count them, instead of raising.
    Raises FileNotFoundError as `open_source`; ValueError for an unknown format, for bad rows (file,
    row, field, what was expected) and when no row states a preference.
    """
    rows = _read_csv(Path(source)) if str(source).endswith(".csv") else open_source(source)[0]
    layout: Layout | None = None
    items: list[Item] = []
    problems: list[str] = []
    noted: Counter[str] = Counter()
    for where, row in rows:
        layout = layout or _layout_of(row, where)
        try:
            _check_fields(row, layout.fields)
            item = layout.read(row)
        except ValueError as problem:
            problems.append(f"{where}, {problem}")
            items.append(Item((), (), ""))
            continue
        items.append(item)
        noted.update(_oddities(item))
    if problems and not drop_bad:
        raise ValueError(
            f"{len(problems)} of {len(items)} rows cannot be scored:\n"
            + "\n".join(f"  {line}" for line in problems[:SHOWN])
            + (f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else "")
            + "\nCorrect them, or leave them out with drop_bad=True."
        )
    if layout is None or not any(item.comparisons for item in items):
        raise ValueError(f"{source}: expected rows that state a preference, found none")
    if problems:
        noted["bad row left out"] = len(problems)
    name = layout.name or Path(source).name
    return Benchmark(name, items, layout.answers, layout.ties, noted)


def _oddities(item: Item) -> set[str]:
    """What is counted about an item that is kept."""
    texts = [conversation[-1]["content"].strip() for conversation in item.conversations]
    histories = [conversation[:-1] for conversation in item.conversations]
    odd = {
        "no preference stated": not item.comparisons,
        "empty answer": "" in texts,
        "repeated answer": len(set(texts)) < len(texts),
        "answers to different histories": any(h != histories[0] for h in histories),
    }
    return {name for name, met in odd.items() if met}


# ------------------------------------------------------------------------- the authors' benchmarks
TRUTH = (  # a: a correct answer, b: an incorrect one, c: the best
    Comparison(0, 1, tie=0.0),
    Comparison(2, 1, tie=0.0),
    Comparison(2, 0, tie=1.0, decimals=2),
)


def _human(row: dict) -> Item:
    winner = _one_of(row, "winner", ("model_a", "model_b"))
    return _question(row["prompt"], (row["response_a"], row["response_b"]), _argmax(winner))


def _safety(row: dict) -> Item:
    safer = _one_of(row, "safer_response_id", (0, 1))
    return _question(row["prompt"], (row["response_a"], row["response_b"]), _argmax(safer))


def _argmax(winner: int) -> tuple[Comparison, ...]:
    """The winner is the argmax of the two scores; argmax takes the first of equals."""
    return (Comparison(winner, 1 - winner, tie=float(winner == 0)),)


def _truth(row: dict) -> Item:
    texts = (row["response_a"], row["response_b"], row["response_c"])
    return _question(row["prompt"], texts, TRUTH)


def _verbose(row: dict) -> Item:
    for name in row.keys() - {"prompt", "response_a", "response_b"}:
        raise ValueError(
            f"field {name}: expected prompt, response_a and response_b alone (verbose pairs); "
            "the other formats have winner, safer_response_id or response_c in every row"
        )
    texts = (row["response_a"], row["response_b"])
    return _question(row["prompt"], texts, (Comparison(1, 0, tie=0.0),))


# ------------------------------------------------------------------------------ raw public formats
def _truthful_qa(row: dict) -> Item:
    """The triplet: first correct answer that is not the best (if any), first incorrect, best."""
    best = row["Best Answer"].strip()
    correct = next((text for text in _listed(row, "Correct Answers") if text != best), best)
    wrong = _listed(row, "Incorrect Answers")[0]
    return _question(row["Question"], (correct, wrong, best), TRUTH)


def _pku(row: dict) -> Item:
    texts, safe = (row["response_0"], row["response_1"]), [row[name] for name in SAFE]
    if safe[0] == safe[1]:
        return _question(row["prompt"], texts, ())
    safer = _one_of(row, "safer_response_id", (0, 1))
    if not safe[safer]:
        raise ValueError(f"field safer_response_id: expected the safe response, found {safer}")
    return _question(row["prompt"], texts, (Comparison(safer, 1 - safer),))


def _votes(row: dict) -> Item:
    """A vote of turn t judges the first t turns; the prompt is the first turn's question."""
    turns, conversations = row["turn"], []
    for name in ("conversation_a", "conversation_b"):
        conversation = _messages(row, name)[: 2 * turns]
        roles = [message["role"] for message in conversation]
        if turns < 1 or roles != ["user", "assistant"] * turns:
            raise ValueError(
                f"field {name}: expected {turns} turns, as field turn says, of user and assistant, "
                f"found the roles {roles}"
            )
        conversations.append(conversation)
    comparisons: tuple[Comparison, ...] = ()
    if not row["winner"].startswith("tie"):
        winner = _one_of(row, "winner", ("model_a", "model_b", "tie"))
        comparisons = (Comparison(winner, 1 - winner),)
    return Item(tuple(conversations), comparisons, conversations[0][0]["content"])


def _pandalm(row: dict) -> Item:
    """The choice of two or three of the three annotators, if they made one."""
    votes = Counter(_one_of(row, name, (0, 1, 2)) for name in ANNOTATORS)
    choice, count = votes.most_common(1)[0]
    comparisons = (Comparison(choice - 1, 2 - choice),) if choice and count > 1 else ()
    question = "\n\n".join(text for text in (row["instruction"], row["input"]) if text)
    return _question(question, (row["response1"], row["response2"]), comparisons)


def _llmbar(row: dict) -> Item:
    right = _one_of(row, "label", (1, 2))
    texts = (row["output_1"], row["output_2"])
    item = _question(row["input"], texts, (Comparison(right, 1 - right),))
    return item._replace(group=row["subset"])


def _pair(row: dict) -> Item:
    prompt = row["prompt"]
    asked = _messages(row, "prompt") if isinstance(prompt, list) else prompt
    return pair(asked, row["chosen"], row["rejected"])


def _dialogues(row: dict) -> Item:
    items = []
    for name in ("chosen", "rejected"):
        history, tag, text = row[name].rpartition(ASSISTANT_TAG.rstrip())
        try:
            asked = prompt_to_conversation(history + tag + " ")
        except ValueError as error:
            raise ValueError(f"field {name}: expected a whole dialogue ({error})") from None
        items.append(_item(asked, (text.removeprefix(" "),), (Comparison(0, 1),)))
    chosen, rejected = items
    return chosen._replace(conversations=chosen.conversations + rejected.conversations)


# ------------------------------------------------------------------------------------- the formats
class Layout(NamedTuple):
    """A format: the fields that tell it, and how a row becomes an item."""

    fields: tuple[str, ...]
    read: Callable[[dict], Item]
    name: str = ""  # the benchmark's; "" where it is the file's
    ties: str = "half"
    answers: tuple[str, ...] = ("a", "b")


SAFE = ("is_response_0_safe", "is_response_1_safe")
ANNOTATORS = ("annotator1", "annotator2", "annotator3")
TWO = ("prompt", "response_a", "response_b")
QA = ("Question", "Best Answer", "Correct Answers", "Incorrect Answers")
FIRST = "as if the first answer scored higher"
BEST = "as wrong; best against correct, after rounding to 2 decimals, as right"
ABC, PAIR = ("a", "b", "c"), ("chosen", "rejected")
LAYOUTS = (  # the first whose fields the first row has
    Layout((*TWO, "response_c"), _truth, "truth", BEST, ABC),
    Layout((*TWO, "winner"), _human, "human", FIRST),
    Layout((*TWO, "safer_response_id"), _safety, "safety", FIRST),
    Layout(TWO, _verbose, "verbose", "as wrong"),
    Layout(QA, _truthful_qa, ties=BEST, answers=ABC),
    Layout(("prompt", "response_0", "response_1", *SAFE, "safer_response_id"), _pku),
    Layout(("conversation_a", "conversation_b", "winner", "turn"), _votes),
    Layout(("instruction", "input", "response1", "response2", *ANNOTATORS), _pandalm),
    Layout(("subset", "input", "output_1", "output_2", "label"), _llmbar),
    Layout(("prompt", *PAIR), _pair, answers=PAIR),
    Layout(PAIR, _dialogues, answers=PAIR),
)
TYPES: dict[str, tuple[type, ...]] = {  # of the fields that are not texts
    "prompt": (str, list),
    **dict.fromkeys(("conversation_a", "conversation_b"), (list,)),
    **dict.fromkeys(("safer_response_id", "turn", "label", *ANNOTATORS), (int,)),
    **dict.fromkeys(SAFE, (bool,)),
}
KINDS = {str: "a text", int: "an integer", bool: "true or false", list: "a list of messages"}


def _layout_of(row: Any, where: str) -> Layout:
    names = set(row) if isinstance(row, dict) else set()
    for layout in LAYOUTS:
        if names.issuperset(layout.fields):
            return layout
    known = "\n".join(f"  {', '.join(layout.fields)}" for layout in LAYOUTS)
    found = ", ".join(row) if isinstance(row, dict) else _show(row)
    raise ValueError(
        f"{where}: expected the fields of one of these formats:\n{known}\nfound {found}"
    )


# ----------------------------------------------------------------------------------- rows and texts
def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ("FILE, row N", row) pairs below the header of a .csv file, with or without a BOM."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.DictReader(stream), 1):
                yield f"{path}, row {number}", row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected comma-separated UTF-8 text, found {error}") from None


def _check_fields(row: Any, fields: tuple[str, ...]) -> None:
    if not isinstance(row, dict):
        raise ValueError(
            f"expected an object with the fields {', '.join(fields)}, found {_show(row)}"
        )
    for name in fields:
        kinds = TYPES.get(name, (str,))
        expected = " or ".join(KINDS[kind] for kind in kinds)
        if name not in row:
            raise ValueError(f"field {name}: expected {expected}, found no such field")
        if type(row[name]) not in kinds:  # isinstance would count True among the integers
            raise ValueError(f"field {name}: expected {expected}, found {_show(row[name])}")
        _check_text(row[name], name)


def _check_text(value: object, name: str) -> None:
    """Refuse text that no tokenizer can read; undecodable bytes arrive as surrogates."""
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        found = f"a broken character behind {error.object[: error.start][-20:]!r}"
        raise ValueError(f"field {name}: expected valid UTF-8, found {found}") from None


def _one_of(row: dict, name: str, values: tuple) -> int:
    """The place of the row's field among `values`."""
    if row[name] not in values:
        expected = ", ".join(map(repr, values))
        raise ValueError(f"field {name}: expected one of {expected}, found {_show(row[name])}")
    return values.index(row[name])


def _listed(row: dict, name: str) -> list[str]:
    texts = [text.strip() for text in row[name].split(";") if text.strip()]
    if not texts:
        raise ValueError(f"field {name}: expected texts separated by ';', found {_show(row[name])}")
    return texts


def _messages(row: dict, name: str) -> Conversation:
    """The messages of a field, each cut to its role and content."""
    conversation = []
    for i, message in enumerate(row[name]):
        message = message if isinstance(message, dict) else {}
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise ValueError(
                f"field {name}[{i}]: expected a role ({', '.join(ROLES)}) and a content that is a "
                f"text, found {_show(row[name][i])}"
            )
        _check_text(content, f"{name}[{i}].content")
        conversation.append({"role": role, "content": content})
    return conversation


def _asked(prompt: str | Conversation) -> Conversation:
    """What stands before an answer: the turns of a Nectar prompt, a conversation or a question."""
    if isinstance(prompt, list):
        roles = [message["role"] for message in prompt]
        if roles[-1:] != ["user"]:
            raise ValueError(f"field prompt: expected a user's message at the end, found {roles}")
        return prompt
    if prompt.lstrip().startswith(HUMAN_TAG.strip()):
        try:
            return prompt_to_conversation("\n\n" + prompt.lstrip())
        except ValueError as error:  # which begins with the field's name, "prompt: expected ..."
            raise ValueError(f"field {error}") from None
    return [{"role": "user", "content": prompt}]


def _question(question: Any, texts: tuple[str, ...], comparisons: tuple[Comparison, ...]) -> Item:
    if not isinstance(question, str):
        raise ValueError(f"field prompt: expected a text, found {_show(question)}")
    return _item([{"role": "user", "content": question}], texts, comparisons)


def _item(asked: Conversation, texts: tuple[str, ...], claims: tuple[Comparison, ...]) -> Item:
    """The item of answers to one history, which is also the prompt it is resampled by."""
    answered = [[*asked, {"role": "assistant", "content": text}] for text in texts]
    return Item(tuple(answered), claims, "\n\n".join(message["content"] for message in asked))


def _show(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '…'}"
