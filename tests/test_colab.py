"""Lessons on Colab: one setup cell in all of them, what it installs, and what it does when."""

import ast
import copy
import importlib
import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution, packages_distributions
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from small_notebooks import save, whole_lesson

from starling_nb.lesson import anatomy, colab, lint
from starling_nb.store import STAGE_MODULES

LESSONS = anatomy.lesson_paths(anatomy.NOTEBOOKS)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
PIP = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
PACKAGE = f"git+https://github.com/{colab.REPOSITORY}@{colab.BRANCH}"

# What Colab's image has of the things that lessons need: github.com/googlecolab/backend-info,
# pip-freeze.txt of August 2026, and of February or June for what did not move a floor of
# pyproject.toml.
# Of our dependencies it lacks jupyterlab, latex2mathml, mistral-common and papermill.
COLAB = {
    "accelerate": "1.14.0",
    "click": "8.4.1",
    "datasets": "4.0.0",
    "filelock": "3.29.0",
    "huggingface-hub": "1.4.1",
    "ipython": "7.34.0",
    "jsonschema": "4.26.0",
    "matplotlib": "3.10.0",
    "nbformat": "5.11.1",
    "numpy": "2.1.3",
    "peft": "0.20.0",
    "pillow": "11.3.0",
    "pyarrow": "18.1.0",
    "pydantic": "2.12.3",
    "requests": "2.32.4",
    "safetensors": "0.8.0",
    "scikit-learn": "1.6.1",
    "scipy": "1.16.3",
    "sentencepiece": "0.2.1",
    "tiktoken": "0.13.0",
    "tokenizers": "0.22.2",
    "torch": "2.11.0",
    "tqdm": "4.67.3",
    "transformers": "5.15.0",
    "typing-extensions": "4.15.0",
}
# Modules for batch runs and authors. A lesson may come to load them, but calls nothing in them.
TOOLS = {f"starling_nb.lesson.{name}" for name in ("anatomy", "gallery", "lint", "runner")}


# The lessons' cells and metadata


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_badge_setup_cell_and_metadata_are_those_of_the_course(path):
    nb = anatomy.read_notebook(path)
    renewed = copy.deepcopy(nb)
    colab.renew(renewed, path)
    assert renewed == nb, "run `python -m starling_nb.lesson.colab`, then `make notebooks`"


def test_the_setup_cell_is_one_folded_cell_within_the_lints_limits():
    lines = colab.SETUP.splitlines()
    assert lines[0] == "# @title Setup (does nothing outside Colab)"
    assert len(lines) <= lint.MAX_LINES
    assert max(map(len, lines)) <= lint.MAX_COLUMNS


def test_badge_and_installation_agree_on_repository_and_branch():
    target = f"{colab.REPOSITORY}/blob/{colab.BRANCH}/notebooks/04_kwise_mle.ipynb"
    assert f"/github/{target})" in colab.badge(Path("elsewhere/04_kwise_mle.ipynb"))
    assert f'"{PACKAGE}"' in colab.SETUP


def test_lessons_ask_for_no_gpu_and_name_no_origin():
    assert colab.METADATA == {"provenance": [], "toc_visible": True}
    for path in LESSONS:
        nb = anatomy.read_notebook(path)
        assert "accelerator" not in nb.metadata
        assert anatomy.read_parameters(nb, path)["profile"].default == "cpu"


def test_renewing_mends_badge_cell_and_metadata_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "00_whole.ipynb"
    nb = whole_lesson(path)
    wanted = copy.deepcopy(nb)
    wanted.cells[4].source = colab.SETUP
    wanted.cells[4].metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    wanted.metadata["colab"] = {"provenance": [], "toc_visible": True}

    nb.cells[0].source = nb.cells[0].source.replace("/blob/main/", "/blob/old/")
    nb.metadata.update(accelerator="GPU", colab={"provenance": ["a Drive file"]})
    save(nb, path)
    monkeypatch.setattr(anatomy, "NOTEBOOKS", tmp_path)
    colab.main()
    assert anatomy.read_notebook(path) == wanted
    once = path.read_bytes()
    colab.main()
    assert path.read_bytes() == once
    assert lint.lint(path) == []


# What the cell does


class World:
    """A machine on which the cell runs: what is installed, whether pip works, what was run."""

    def __init__(self, monkeypatch, *, on_colab, has=(), pip_works=True, mounts=()):
        self.has, self.pip_works, self.commands = set(has), pip_works, []
        if on_colab:
            monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
        else:
            monkeypatch.delitem(sys.modules, "google.colab", raising=False)
        monkeypatch.setattr(subprocess, "run", self.pip)
        monkeypatch.setattr(os.path, "ismount", lambda path: path in mounts)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in self.has or None)
        monkeypatch.setattr(importlib, "import_module", self.load)

    def load(self, name):
        if name not in self.has:
            raise ModuleNotFoundError(f"No module named '{name}'")

    def pip(self, command, **options):
        assert options == {"capture_output": True, "text": True}
        self.commands.append(command)
        if self.pip_works:
            named = {value: name for name, value in colab.NEEDED.items()}
            self.has |= {named[argument] for argument in command[len(PIP) :]}
        return SimpleNamespace(returncode=0, stderr="" if self.pip_works else "no network")

    def run_cell(self, store="store"):
        exec(compile(colab.SETUP, "setup cell", "exec"), {"store": store})


def test_colab_gets_the_package_and_what_it_lacks_by_one_command(monkeypatch):
    world = World(monkeypatch, on_colab=True)
    world.run_cell()
    assert world.commands == [[*PIP, *colab.NEEDED.values()]]
    world.run_cell()
    assert len(world.commands) == 1


def test_colab_gets_only_what_is_missing(monkeypatch):
    world = World(monkeypatch, on_colab=True, has={"mistral_common", "pycountry"})
    world.run_cell()
    assert world.commands == [[*PIP, PACKAGE, "pydantic-extra-types>=2.10.5"]]


@pytest.mark.parametrize("on_colab", [True, False])
def test_nothing_is_run_where_all_is_there(monkeypatch, on_colab):
    world = World(monkeypatch, on_colab=on_colab, has=colab.NEEDED)
    world.run_cell()
    assert world.commands == []


def test_outside_colab_nothing_is_installed_and_the_remedy_is_told(monkeypatch):
    world = World(monkeypatch, on_colab=False)
    with pytest.raises(ModuleNotFoundError, match=r"^starling_nb, mistral_common.*`pip inst"):
        world.run_cell()
    assert world.commands == []


def test_a_failed_installation_is_seen_and_the_command_told(monkeypatch):
    world = World(monkeypatch, on_colab=True, pip_works=False)  # pip's exit status says nothing
    with pytest.raises(ModuleNotFoundError) as caught:
        world.run_cell()
    assert str(caught.value).startswith("no network\nThe installation failed.")
    wanted = '"mistral-common>=1.5" "pydantic-extra-types>=2.10.5" "pycountry>=23"'
    command = f'!pip install --no-deps "{PACKAGE}" {wanted}'
    assert str(caught.value).splitlines()[-1] == command


@pytest.mark.parametrize("mounted", [True, False])
def test_a_store_on_drive_needs_the_drive(monkeypatch, mounted):
    """Else it would lie on the machine's own disk, be lost, and keep the Drive from mounting."""
    mounts = {"/content/drive"} if mounted else set()
    world = World(monkeypatch, on_colab=True, has=colab.NEEDED, mounts=mounts)
    world.run_cell("/content/store")
    if mounted:
        world.run_cell("/content/drive/MyDrive/starling")
    else:
        with pytest.raises(FileNotFoundError, match=r'drive\.mount\("/content/drive"\)'):
            world.run_cell("/content/drive/MyDrive/starling")


def test_the_cell_does_nothing_here():
    """The cell as it is, in a fresh interpreter, with everything installed and no Colab."""
    code = f"store = 'store'\n{colab.SETUP}\nassert lacking == [] and 'command' not in globals()"
    subprocess.run([sys.executable, "-c", code], check=True)


# What it has to install


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def imports(tree: ast.AST, *, calls: bool) -> Iterator[str]:
    """The modules that code imports, or whose files it reads; functions count if it `calls`."""
    match tree:
        case ast.FunctionDef() if not calls:
            return
        case ast.Import(names):
            yield from (alias.name for alias in names)
        case ast.ImportFrom(module, names):
            yield str(module)
            if str(module).startswith("starling_nb"):
                yield from filter(is_module, (f"{module}.{alias.name}" for alias in names))
        case ast.Call(ast.Attribute(attr="files"), [ast.Constant(package)]):
            yield package
    for child in ast.iter_child_nodes(tree):
        yield from imports(child, calls=calls)


def imported_by_lessons() -> set[str]:
    """The distributions that lessons import, by themselves and through the package."""
    waiting, found = list(STAGE_MODULES), set()
    for path in LESSONS:
        for cell in anatomy.read_notebook(path).cells:
            if cell.cell_type == "code":
                waiting += imports(ast.parse(cell.source), calls=True)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if name.startswith("starling_nb"):
                source = Path(importlib.util.find_spec(name).origin).read_text()
                waiting += imports(ast.parse(source), calls=name not in TOOLS)
    return owners({name.partition(".")[0] for name in found} - set(sys.stdlib_module_names))


def owners(modules: Iterable[str]) -> set[str]:
    """The distributions that top-level modules come from."""
    found = packages_distributions()
    return {canonicalize_name(found[name][0]) for name in modules}


def test_what_is_installed_is_what_lessons_import_and_colab_lacks():
    imported = imported_by_lessons()
    assert {"torch", "transformers", "sentencepiece"} <= imported  # the search finds what it should
    lacking, waiting = set(), [Requirement(name) for name in imported]
    while waiting:  # what is lacking may require more; we require more than lessons import
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name not in COLAB:
            lacking.add(name)
            lines = [] if name == "starling-nb" else distribution(name).requires or []
            waiting += [r for r in map(Requirement, lines) if is_asked_for(r, wanted.extras)]
    assert lacking == owners(colab.NEEDED)


def is_asked_for(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement counts here, when the package that has it is wanted with `extras`."""
    marker = requirement.marker
    return not marker or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def test_requirements_are_those_of_the_project():
    assert colab.NEEDED["mistral_common"] in PROJECT["dependencies"]


def test_colabs_versions_are_new_enough():
    """Without dependencies, pip does not compare them."""
    wanted = [Requirement(line) for line in PROJECT["dependencies"]]
    tested = [requirement for requirement in wanted if requirement.name in COLAB]
    assert len(tested) > 10
    old = [str(r) for r in tested if not r.specifier.contains(COLAB[r.name])]
    assert old == []


def test_the_wheel_holds_all_files_of_the_package():
    package = REPOSITORY / "starling_nb"
    patterns = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {p for line in patterns["package-data"]["starling_nb"] for p in package.glob(line)}
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.name for p in files - shipped if p.suffix != ".py"} == set()
    assert package / "assets" / "nectar_sample.jsonl" in shipped
