"""Studies: long measurements that a lesson plots, kept beside their scripts with a code hash.

`starling_nb/studies/NAME.py` defines `measure(profile, store) -> dict`; its result on the cpu
profile is committed as NAME.json. `python -m starling_nb.lesson.studies [NAME ...]` measures again.
"""

import ast
import hashlib
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import starling_nb
from starling_nb.lesson import runner
from starling_nb.store import STAGE_MODULES, read_json, write_json

FOLDER = Path(starling_nb.__file__).parent / "studies"
MACHINERY = {f"starling_nb.{module}" for module in ("store", "device", "profiles")}


def result(name: str, *, recompute: bool, profile: str, store: str) -> dict[str, Any]:
    """What a study measured: the committed result, or a new measurement, which is not stored.

    Raises ValueError listing the studies when there is none of that name.
    """
    script = script_of(name)
    if recompute:
        return load_script(script).measure(profile, store)
    return read_json(script.with_suffix(".json"))["result"]


def measure(name: str, store: str) -> None:
    """Measure a study on the cpu profile and write its NAME.json, with its manifest."""
    script = script_of(name)
    sha256, start = code_sha256(script), time.monotonic()
    found = load_script(script).measure("cpu", store)
    manifest = {
        "code_sha256": sha256,
        "seconds": round(time.monotonic() - start),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": runner.versions(),
    }
    write_json(script.with_suffix(".json"), {"manifest": manifest, "result": found})


def stale(script: Path) -> str | None:
    """Why the committed result is not that of the code as it is; None when it is."""
    path = script.with_suffix(".json")
    if not path.exists():
        return f"{path.name}: has not been measured: run `make studies`"
    if read_json(path)["manifest"]["code_sha256"] != code_sha256(script):
        return f"{path.name}: the code it measured has changed since: run `make studies`"
    return None


def code_sha256(script: Path) -> str:
    """The sha256 of a study's syntax tree and of every definition of the package that it reaches.

    A name leads to its definition, the name of a stage to the function that builds it. Comments,
    docstrings and layout do not count, nor do the modules that run and keep stages (`MACHINERY`).
    """
    waiting = [(script, node) for node in top_level(script)]
    reached: dict[str, None] = {}
    while waiting:
        file, node = waiting.pop()
        code = f"{file.stem}: {without_docstrings(node)}"
        if code not in reached:
            reached[code] = None
            waiting += [place for name in names(node) for place in definitions(name, file)]
    return hashlib.sha256("\n".join(sorted(reached)).encode()).hexdigest()


def definitions(name: str, file: Path) -> Iterator[tuple[Path, ast.stmt]]:
    """The definitions that a name, or a stage's name, stands for in a file; none for foreign ones.

    The name of an imported module stands for all that the module defines.
    """
    if name in stages():
        yield stages()[name]
    for node in top_level(file):
        if name in defined(node):
            yield file, node
        if isinstance(node, ast.ImportFrom) and node.module not in MACHINERY:
            for alias in node.names:
                if (alias.asname or alias.name) == name and (source := file_of(node.module)):
                    if module := file_of(f"{node.module}.{alias.name}"):
                        yield from ((module, whole) for whole in top_level(module))
                    else:
                        yield from definitions(alias.name, source)


@cache
def stages() -> dict[str, tuple[Path, ast.stmt]]:
    """The function that builds each stage, by the stage's name."""
    found: dict[str, tuple[Path, ast.stmt]] = {}
    for file in filter(None, map(file_of, STAGE_MODULES)):
        for node in top_level(file):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and ast.unparse(call.func) == "stage":
                    found[ast.literal_eval(call.args[0])] = file, node
    return found


@cache
def top_level(file: Path) -> list[ast.stmt]:
    """The statements of a file, its docstring left out."""
    return [n for n in ast.parse(file.read_text(encoding="utf-8")).body if not is_text(n)]


def file_of(module: str | None) -> Path | None:
    """The file of a module of this package; None for anything else."""
    root = Path(starling_nb.__file__).parent
    if not module or not module.startswith("starling_nb"):
        return None
    file = root.parent.joinpath(*module.split(".")).with_suffix(".py")
    return file if file.is_file() else None


def defined(node: ast.stmt) -> set[str]:
    """The names that a top-level statement gives a meaning."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {n.id for target in targets if target for n in ast.walk(target) if type(n) is ast.Name}


def names(node: ast.stmt) -> set[str]:
    """The names, and the strings, that a statement mentions."""
    inside = list(ast.walk(node))
    strings = {n.value for n in inside if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return strings | {n.id for n in inside if isinstance(n, ast.Name)}


def without_docstrings(node: ast.stmt) -> str:
    """The syntax tree of a statement as text, without strings that stand alone."""
    bare = ast.parse(ast.unparse(node))
    for inner in ast.walk(bare):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            inner.body = [line for line in inner.body if not is_text(line)]
    return ast.dump(bare)


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is a string and nothing else."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def scripts() -> list[Path]:
    """The studies' scripts, by name."""
    return sorted(FOLDER.glob("[a-z]*.py"))


def script_of(name: str) -> Path:
    """The script of a study; ValueError listing the studies when there is none of that name."""
    script = FOLDER / f"{name}.py"
    if not script.exists():
        known = ", ".join(path.stem for path in scripts()) or "none yet"
        raise ValueError(f"unknown study {name!r} (the studies in {FOLDER} are: {known})")
    return script


def load_script(script: Path) -> ModuleType:
    """A study's script as a module."""
    spec = spec_from_file_location(f"study_{script.stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@click.command()
@click.argument("names", nargs=-1)
@click.option("--store", default="store", show_default=True, help="folder of finished stages")
def main(names: tuple[str, ...], store: str) -> None:
    """Measure the studies NAMES again, or all, on the cpu profile, and write their results."""
    for name in names or [path.stem for path in scripts()]:
        try:
            measure(name, store)
        except ValueError as error:
            sys.exit(str(error))
        click.echo(f"{name}: measured, see {script_of(name).with_suffix('.json').name}")


if __name__ == "__main__":
    main()
