"""The project's own files agree with each other and install what they promise."""

import re
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def name_of(requirement: str) -> str:
    """The distribution a requirement line names, normalised as on the package index."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_environment_yml_lists_the_dependencies_of_pyproject():
    text = (REPOSITORY / "environment.yml").read_text()
    listed = re.findall(r'^ {6}- "([^"]+)"$', text, re.MULTILINE)
    assert listed == [*PROJECT["dependencies"], "-e ."]
    assert f"- python{PROJECT['requires-python']}\n" in text


def test_every_dependency_is_pinned_in_the_constraints():
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pinned = {name_of(name) for name in pins}
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    assert {name_of(requirement) for requirement in wanted} - pinned == set()
    assert pins["torch"] == "2.13.0"


@pytest.mark.parametrize("module", ["starling_nb", "starling_nb.store", "starling_nb.lesson.cli"])
def test_light_imports_do_not_load_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'papermill' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_imports_run_one_way():
    """lesson -> studies -> evaluate, laser, policy -> reward -> data -> store, device, profiles."""
    layer = {"store": 0, "device": 0, "profiles": 0, "training": 0, "data": 1, "reward": 2}
    layer |= {"policy": 3, "laser": 3, "evaluate": 3, "studies": 4, "lesson": 5}
    package = REPOSITORY / "starling_nb"
    wrong = []
    for path in package.rglob("*.py"):
        part = path.relative_to(package).parts[0].removesuffix(".py")
        for target in re.findall(r"^\s*(?:from|import) starling_nb\.(\w+)", path.read_text(), re.M):
            if layer[target] > layer.get(part, 0):
                wrong.append(f"{path.relative_to(package)} imports {target}")
    assert wrong == []


def test_the_installed_package_has_its_data_files():
    """Lessons on Colab read the base model and the studies' results from the installed package."""
    package = REPOSITORY / "starling_nb"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["starling_nb"]
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    files = {p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.name for p in files - packed if p.suffix != ".py"} == set()
    assert {"crlft.json", "model.safetensors"} <= {p.name for p in packed}


def test_no_module_outgrows_its_subject():
    sizes = {p: len(p.read_text().splitlines()) for p in (REPOSITORY / "starling_nb").rglob("*.py")}
    assert {p.name: n for p, n in sizes.items() if n > 420} == {}
