r"""Scores for a file of conversations: checked before anything is computed, continued after a kill.

A row of the input, a .parquet, .jsonl or .jsonl.gz file, is one of

    {"conversation": [{"role", "content"}, ...]}   or "messages"; the last is the assistant's
    {"prompt": str, "answer": str}
    {"prompt": str, "answers": [str or {"answer": str}, ...]}   a list, as in Nectar

where a prompt that begins with Nectar's "\n\nHuman: " is split into its turns, and any other is one
user's text. The output has the same kind, rows and order, and two fields more: "score", or
"scores", in the order of "answers"; and "truncated", how many of the row's conversations lost their
beginning. Other fields pass through.

Until all is scored, the scores lie in OUTPUT.partial: a header, which says what they belong to, and
a line for the rows of about CHUNK conversations. A run stopped at any moment and started again goes
on from there, and ends with the same bytes.
"""

import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerFast

from starling_nb.data.chat import HUMAN_TAG, Conversation, prompt_to_conversation
from starling_nb.data.sources import SUFFIXES, open_source
from starling_nb.device import dtype_name, progress
from starling_nb.reward.model import RewardModel, own_template, score_with_truncation
from starling_nb.reward.templates import template_text
from starling_nb.store import replace_atomically, sha256_file

CHUNK = 64  # conversations, or a few more, that are computed and saved at a time
SHOWN = 5  # refused rows spelled out
CONVERSATION = ("conversation", "messages")  # names of the field that holds a whole one
ADDED = ("score", "scores", "truncated")

Placed = tuple[str, list[Conversation]]  # a row's place in its file, and its conversations
Result = tuple[list[float], int]  # a row's scores, and how many of its conversations were cut


class Scored(NamedTuple):
    """What `score_file` did, in numbers; `resumed` rows had been scored before."""

    rows: int
    conversations: int
    truncated: int
    resumed: int


def score_file(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    source: str | Path,
    output: str | Path,
    batch_size: int = 64,
) -> Scored:
    """Score every row of the file `source` into the file `output`, as the module's text says.

    Raises FileNotFoundError, FileExistsError or ValueError before anything is computed: for a file
    that is absent or of another kind, for bad rows, the first five of which are named, and for an
    OUTPUT.partial that belongs to another model or input. FloatingPointError for a score that is
    not finite.
    """
    source, output = Path(source), Path(output)
    check_paths(source, output)
    count = check_rows(source, own_template(model))
    partial = output.with_name(output.name + ".partial")
    done = open_partial(partial, identity(model, tokenizer, source, batch_size))
    if len(done) > count:
        raise ValueError(f"{partial}: expected {count} rows at most; delete it and start again")
    resumed = len(done)
    bar = progress(total=count, desc="score")
    bar.update(resumed)
    rows = islice(open_source(source)[0], resumed, None)
    with partial.open("ab") as stream:
        for chunk in chunks(rows):
            results = score_rows(model, tokenizer, chunk, batch_size)
            stream.write(json.dumps(results).encode() + b"\n")
            stream.flush()
            done += results
            bar.update(len(chunk))
    bar.close()
    with replace_atomically(output) as temporary:
        write = write_parquet if output.suffix == ".parquet" else write_jsonl
        write(source, done, temporary)
    partial.unlink()
    conversations = sum(len(scores) for scores, _ in done)
    return Scored(count, conversations, sum(cut for _, cut in done), resumed)


def check_paths(source: Path, output: Path) -> None:
    """Refuse what cannot be read, or written, or would be overwritten."""
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; give a {', '.join(SUFFIXES)} file")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: no such folder; make it first")
    if output.exists():
        raise FileExistsError(f"{output}: is there already; move it away or name another output")
    if (source.suffix == ".parquet") != (output.suffix == ".parquet") or not output.name.endswith(
        SUFFIXES
    ):
        raise ValueError(
            f"{output}: expected a name of the input's kind, {source.name}; "
            "jsonl, compressed or not, stays jsonl, and parquet stays parquet"
        )


def check_rows(source: Path, template: str) -> int:
    """The number of rows; ValueError naming the first of those that cannot be scored."""
    count = bad = 0
    problems = []
    for where, row in open_source(source)[0]:
        count += 1
        try:
            for conversation in read_row(row, where):
                template_text(conversation, template)
        except ValueError as error:
            bad += 1
            if bad <= SHOWN:
                problems.append(str(error) if str(error).startswith(where) else f"{where}: {error}")
    if bad:
        problems += [f"and {bad - SHOWN} more"] if bad > SHOWN else []
        raise ValueError(f"{bad} of {count} rows cannot be scored:\n  " + "\n  ".join(problems))
    return count


def read_row(row: Any, where: str) -> list[Conversation]:
    """The conversations of a row: K for a list of answers, else one; ValueError for a bad row."""

    def bad(field: str, expected: str, found: object) -> ValueError:
        shown = repr(found) if len(repr(found)) <= 60 else repr(found)[:60] + "..."
        return ValueError(f"{where}, field {field}: expected {expected}, found {shown}")

    def text(value: object, field: str) -> str:
        if not isinstance(value, str):
            raise bad(field, "a text", value)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise bad(field, "valid UTF-8", value[max(0, error.start - 20) : error.start]) from None
        return value

    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object with named fields, found {row!r:.60}")
    for field in ADDED:
        if field in row:
            raise bad(field, "no such field, since this one is added; rename it", row[field])
    for field in CONVERSATION:
        if field in row:
            messages = row[field]
            if not isinstance(messages, list) or not messages:
                raise bad(field, "a list of messages", messages)
            for i, message in enumerate(messages):
                if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                    raise bad(f"{field}[{i}]", "an object with role and content", message)
                text(message["role"], f"{field}[{i}].role")
                text(message["content"], f"{field}[{i}].content")
            return [messages]
    if "prompt" not in row or ("answer" not in row and "answers" not in row):
        expected = "conversation, messages, prompt and answer, or prompt and answers"
        raise ValueError(f"{where}: expected the fields {expected}, found {', '.join(row)}")
    prompt = text(row["prompt"], "prompt")
    asked: Conversation = [{"role": "user", "content": prompt}]
    if prompt.startswith(HUMAN_TAG):
        asked = prompt_to_conversation(prompt)
    if "answers" in row:
        answers = row["answers"]
        if not isinstance(answers, list) or not answers:
            raise bad("answers", "a list of answers", answers)
        answers = [a.get("answer") if isinstance(a, dict) else a for a in answers]
        answers = [text(answer, f"answers[{i}]") for i, answer in enumerate(answers)]
    else:
        answers = [text(row["answer"], "answer")]
    return [[*asked, {"role": "assistant", "content": answer}] for answer in answers]


def chunks(rows: Iterable[tuple[str, Any]]) -> Iterator[list[Placed]]:
    """The rows in parts of CHUNK conversations; the last row of a part may have more."""
    chunk: list[Placed] = []
    for where, row in rows:
        chunk.append((where, read_row(row, where)))
        if sum(len(conversations) for _, conversations in chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def score_rows(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    placed: list[Placed],
    batch_size: int,
) -> list[Result]:
    """The results of rows; FloatingPointError naming one whose scores are not finite."""
    flat = [conversation for _, conversations in placed for conversation in conversations]
    scores, truncated = score_with_truncation(model, tokenizer, flat, batch_size=batch_size)
    results: list[Result] = []
    sizes = [len(conversations) for _, conversations in placed]
    parts = zip(placed, scores.split(sizes), truncated.split(sizes), strict=True)
    for (where, _), values, cut in parts:
        if not values.isfinite().all():
            raise FloatingPointError(
                f"{where}: expected finite scores, found {values.tolist()}; "
                "the model's weights or its precision are to blame"
            )
        # nine digits give a float32 back exactly
        results.append(([float(f"{v:.9g}") for v in values.tolist()], int(cut.sum())))
    return results


def identity(
    model: RewardModel, tokenizer: PreTrainedTokenizerFast, source: Path, batch_size: int
) -> dict[str, Any]:
    """Everything that decides the scores; those of two runs that differ in it are not mixed."""
    weights = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.reshape(-1).view(torch.uint8).cpu().numpy())
    words = tokenizer.backend_tokenizer.to_str().encode()
    return {
        "input": sha256_file(source),
        "weights": weights.hexdigest(),
        "tokenizer": hashlib.sha256(words).hexdigest(),
        "template": model.config.reward_template,
        "max_length": model.config.reward_max_length,
        "dtype": dtype_name(model.dtype),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "chunk": CHUNK,
    }


def open_partial(path: Path, header: dict[str, Any]) -> list[Result]:
    """The results in OUTPUT.partial, a torn last line cut off; begins the file where there is none.

    Raises ValueError naming what differs when the file has another header, or is no such file.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith(b"\n")]
    if len(lines) < 2:  # nothing was scored yet
        path.write_bytes(json.dumps(header).encode() + b"\n")
        return []
    try:
        found, *chunks = (json.loads(line) for line in lines)
        results = [(scores, cut) for chunk in chunks for scores, cut in chunk]
        differ = [name for name in header if found.get(name) != header[name]]
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{path}: not the work of an earlier run; delete or move it") from None
    if differ:
        raise ValueError(
            f"{path}: holds scores of an earlier run with another {', '.join(differ)}; "
            "delete it to start again, or name another output"
        )
    with path.open("r+b") as stream:
        stream.truncate(sum(map(len, lines)))
    return results


def has_list(fields: Iterable[str]) -> bool:
    """Whether a row with these fields holds a list of answers, and so gets a list of scores."""
    return "answers" in fields and not set(CONVERSATION) & set(fields)


def write_jsonl(source: Path, results: list[Result], path: Path) -> None:
    """The rows with their scores, one JSON object a line; gzip without name and time."""
    with path.open("wb") as file:
        packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else file
        with io.TextIOWrapper(packed, "utf-8", "surrogateescape", newline="\n") as stream:
            for (_, row), result in zip(open_source(source)[0], results, strict=True):
                scores = {"scores": result[0]} if has_list(row) else {"score": result[0][0]}
                row |= scores | {"truncated": result[1]}
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(source: Path, results: list[Result], path: Path) -> None:
    """The columns as they are, and those of the scores."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    remaining = iter(results)
    with pq.ParquetFile(source) as file:
        several = has_list(file.schema_arrow.names)
        kind = pa.list_(pa.float32()) if several else pa.float32()
        schema = file.schema_arrow.append(pa.field("scores" if several else "score", kind))
        schema = schema.append(pa.field("truncated", pa.int64()))
        with pq.ParquetWriter(path, schema) as writer:
            for batch in file.iter_batches():
                part = list(islice(remaining, batch.num_rows))
                scores = pa.array([s if several else s[0] for s, _ in part], kind)
                cuts = pa.array([cut for _, cut in part], pa.int64())
                writer.write_batch(pa.record_batch([*batch.columns, scores, cuts], schema=schema))
