"""What a lesson's notebook holds, read without running it: parameters, title, claim, tags, hash."""

import ast
import hashlib
import json
import math
import re
import tokenize
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Any

Value = int | float | str | bool
NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
INJECTED = "injected-parameters"  # papermill's tag for the cell that overrides the defaults
ERROR_MARKER = "papermill-error-cell-tag"  # papermill's tag for the banners of a failed run
TYPES: dict[str, type[Value]] = {"int": int, "float": float, "str": str, "bool": bool}
TRUTH = {"true": True, "yes": True, "false": False, "no": False}


class LessonError(ValueError):
    """A lesson or a request that cannot be run; the message says what to change."""


@dataclass(frozen=True)
class Parameter:
    """One line `name: type = literal  # help` of a parameters cell."""

    name: str
    type: type
    default: Value
    help: str


def lesson_paths(folder: Path) -> list[Path]:
    """The lessons in `folder`, in course order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def select_lessons(names: Iterable[str | Path], folder: Path) -> list[Path]:
    """The notebooks meant by `names` ("00", "00_overview" or a path), each once; all if empty.

    Raises LessonError listing the lessons when a name fits none or two notebooks share a name.
    """
    known = {path.stem: path for path in lesson_paths(folder)}
    none = f"no lesson lies in {folder}: work in a copy of the repository"
    listing = "the lessons are " + ", ".join(known) if known else none
    chosen: dict[str, Path] = {}
    for name in map(str, names) if names else known:
        stem = name.removesuffix(".ipynb")
        numbered = [path for lesson, path in known.items() if lesson[:2] == name]
        if stem in known:
            path = known[stem]
        elif len(numbered) == 1:
            path = numbered[0]
        elif name.endswith(".ipynb") and Path(name).is_file():
            path = Path(name).resolve()
        else:
            close = get_close_matches(stem, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise LessonError(f"unknown lesson {name!r}{hint} ({listing})")
        if chosen.setdefault(path.stem, path) != path:
            raise LessonError(
                f"two notebooks are called {path.stem}: {chosen[path.stem]} and {path}; "
                "their results would overwrite each other"
            )
    if not chosen:
        raise LessonError(listing)
    return list(chosen.values())


def read_notebook(path: Path) -> Any:
    """The notebook as nbformat's node, in format 4; LessonError when the file is none."""
    import nbformat  # takes more than a second to import

    try:
        nb = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(nb)
    except OSError as error:
        raise LessonError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:
        first_line = str(error).strip().split("\n")[0]
        raise LessonError(f"{path}: not a valid notebook ({first_line})") from error
    return nb


def tags(cell: Any) -> list[str]:
    """The tags of a cell."""
    return cell.metadata.get("tags", [])


def tagged(nb: Any, tag: str) -> list[Any]:
    """The cells that carry `tag`."""
    return [cell for cell in nb.cells if tag in tags(cell)]


def own_cells(nb: Any) -> list[Any]:
    """The cells of the source: without those that papermill adds when it runs a notebook."""
    return [cell for cell in nb.cells if not {INJECTED, ERROR_MARKER} & set(tags(cell))]


def first_line(source: str) -> str:
    """The first line of a cell with anything on it, cut to 60 characters."""
    lines = [line.strip() for line in source.splitlines() if line.strip()]
    line = lines[0] if lines else ""
    return line if len(line) <= 60 else line[:57] + "..."


def title(nb: Any) -> str:
    """The text of the first top-level heading, or "" when there is none."""
    for cell in nb.cells:
        found = re.search(r"^# +(.+)$", cell.source, re.MULTILINE)
        if cell.cell_type == "markdown" and found and ERROR_MARKER not in tags(cell):
            return found[1].strip()
    return ""


def claim(nb: Any) -> str:
    """The paragraph "You will have shown that …" without a quotation mark or emphasis around it."""
    for cell in nb.cells:
        for paragraph in cell.source.split("\n\n") if cell.cell_type == "markdown" else ():
            if "you will have shown that" in paragraph.lower():
                text = " ".join(paragraph.replace("\n>", "\n").split()).removeprefix("> ")
                return re.sub(r"^([*_]{1,2})(?![*_])([^*_]*)\1$", r"\2", text)
    return ""


def source_sha256(nb: Any) -> str:
    """The sha256 of all cells' types, tags and sources, 64 hex digits.

    The header table (tag `measured`) is left out, since it is written after a run, and so are the
    cells that papermill adds: a notebook and its executed copy have the same hash.
    """
    content = [
        [cell.cell_type, sorted(tags(cell)), cell.source]
        for cell in own_cells(nb)
        if "measured" not in tags(cell)
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def check_kernel(nb: Any, path: Path) -> None:
    """Raise LessonError unless the notebook names the kernel `python3` and the language Python."""
    kernel = nb.metadata.get("kernelspec", {}).get("name")
    language = nb.metadata.get("language_info", {}).get("name")
    if (kernel, language) != ("python3", "python"):
        raise LessonError(
            f"{path}: kernelspec.name is {kernel!r} and language_info.name is {language!r}, "
            "expected 'python3' and 'python'; open it in Jupyter, choose Python 3 and save it"
        )


def read_parameters(nb: Any, path: Path) -> dict[str, Parameter]:
    """The parameters by name, in the order of the one cell tagged `parameters`.

    Each line is `name: type = literal  # help` with type int, float, str or bool. Raises
    LessonError naming file, line and what was expected.
    """
    cells = tagged(nb, "parameters")
    if len(cells) != 1:
        raise LessonError(f"{path}: {len(cells)} cells are tagged 'parameters', expected one")
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise LessonError(f"{path}, parameters cell, line {error.lineno}: {error.msg}") from error
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(StringIO(cells[0].source).readline)
        if token.type == tokenize.COMMENT
    }
    parameters: dict[str, Parameter] = {}
    for statement in statements:
        where = f"{path}, parameters cell, line {statement.lineno}"
        match statement:
            case ast.AnnAssign(ast.Name(name), ast.Name(kind), ast.expr() as value) if (
                kind in TYPES and statement.lineno == statement.end_lineno
            ):
                pass
            case _:
                raise LessonError(
                    f"{where}: expected `name: type = literal  # help` on one line, "
                    f"with type one of {', '.join(TYPES)}; found `{ast.unparse(statement)}`"
                )
        default: Any = None
        with suppress(ValueError):
            default = ast.literal_eval(value)
        if type(default) is not TYPES[kind]:
            raise LessonError(f"{where}: `{ast.unparse(value)}` is not a literal of type {kind}")
        if name in parameters:
            raise LessonError(f"{where}: {name} is defined twice")
        help_text = comments.get(statement.lineno, "")
        parameters[name] = Parameter(name, TYPES[kind], default, help_text)
    return parameters


def convert(parameter: Parameter, value: object) -> Value:
    """`value`, or the value that a command line's text spells, in the parameter's type.

    A bool is spelt true, false, yes or no; an int is accepted for a float. Raises LessonError.
    """
    kind: Any = parameter.type
    converted: Any = value
    if isinstance(value, str) and kind is bool:
        converted = TRUTH.get(value.lower(), value)
    elif isinstance(value, str) or (kind is float and type(value) is int):
        with suppress(ValueError):
            converted = kind(value)
    finite = not isinstance(converted, float) or math.isfinite(converted)
    if type(converted) is not kind or not finite:
        expected = "bool (true, false, yes or no)" if kind is bool else kind.__name__
        raise LessonError(f"parameter {parameter.name}: expected {expected}, got {value!r}")
    return converted
