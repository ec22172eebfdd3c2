"""Rows from files, folders and the Hub, each with the place that messages name it by."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz")
KINDS = ", ".join(SUFFIXES)
REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]*\w")


def open_source(source: str | Path) -> tuple[Iterator[tuple[str, Any]], list[str]]:
    """The (place, value) pairs of `source`, read as they are asked for, and the files passed over.

    source: a file of SUFFIXES; a folder holding such files, read in the order of their names; or,
    when no such path exists, the id of a Hub dataset, whose `train` split is streamed. A place is
    "FILE, line N" in jsonl, "FILE, row N" in parquet and on the Hub, counted from 1.

    Raises FileNotFoundError when `source` is nothing of these and ValueError for a folder without
    data or a file of another kind; the iterator raises ValueError for what it cannot read, for a
    file without rows, and ConnectionError when the Hub fails.
    """
    path = Path(source)
    if path.is_dir():
        inside = sorted(p for p in path.iterdir() if p.is_file())
        files = [p for p in inside if p.name.endswith(SUFFIXES)]
        if not files:
            raise ValueError(f"{path}: expected {KINDS} files directly in this folder, found none")
        return _read_files(files), [p.name for p in inside if p not in files]
    if path.exists():
        if not path.name.endswith(SUFFIXES):
            raise ValueError(
                f"{path}: expected a {KINDS} file, found another kind; "
                "write one JSON object a line into a .jsonl file"
            )
        return _read_files([path]), []
    if not REPOSITORY.fullmatch(str(source)) or path.name.endswith(SUFFIXES):
        raise FileNotFoundError(
            f"{source}: neither a file nor a folder nor a Hub dataset id (owner/name); "
            f"give a {KINDS} file, a folder of such files, or berkeley-nest/Nectar"
        )
    return _read_hub(str(source)), []


def read_jsonl(path: str | Path) -> Iterator[tuple[str, Any]]:
    """The ("FILE, line N", value) pairs of a .jsonl or .jsonl.gz file; blank lines are no rows.

    Bytes that are no UTF-8 arrive as surrogates, so that a later check can name their field.
    Raises ValueError for a damaged gzip stream and for a line that is no JSON.
    """
    path, number = Path(path), 0
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
        while True:
            try:
                line = stream.readline()
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(
                    f"{path}, after line {number}: expected a whole gzip stream, found it damaged "
                    f"or cut short ({error}); fetch the file again"
                ) from None
            if not line:
                return
            number += 1
            where = f"{path}, line {number}"
            try:
                if line.strip():
                    yield where, json.loads(line.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{where}: expected one JSON object, found none ({error}); "
                    "write one row a line, and check that the file was not cut short"
                ) from None


def read_parquet(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The ("FILE, row N", row) pairs of a parquet file; ValueError when it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    number, name = 0, ""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for i in range(batch.num_rows):
                    number += 1
                    row = {}
                    for name, column in zip(batch.schema.names, batch.columns, strict=True):
                        row[name] = column[i].as_py()
                    yield f"{path}, row {number}", row
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, row {number}, field {name}: expected valid UTF-8, found a broken character "
            f"at byte {error.start}; save the text again as UTF-8"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(
            f"{path}, after row {number}: expected a whole parquet file, found it damaged or cut "
            f"short ({error}); fetch the file again"
        ) from None


def _read_files(files: list[Path]) -> Iterator[tuple[str, Any]]:
    for path in files:
        empty = True
        for placed in read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path):
            empty = False
            yield placed
        if empty:
            raise ValueError(f"{path}: expected rows, found an empty file; fetch the file again")


def _read_hub(repository: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from datasets import load_dataset

    number = 0
    try:
        for number, row in enumerate(load_dataset(repository, split="train", streaming=True), 1):
            yield f"{repository}, row {number}", row
    except Exception as error:  # the errors of the Hub's clients have no common base class
        raise ConnectionError(
            f"{repository}, after row {number}: no such file or folder here, and reading it as a "
            f"Hub dataset failed ({type(error).__name__}: {error}); check the name or the network"
        ) from error
