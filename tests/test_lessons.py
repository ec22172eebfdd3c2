"""Every lesson runs: alone, in any order, from anywhere, through papermill and the runner."""

import os
import subprocess
import sys
from pathlib import Path

import papermill
import pytest

from starling_nb.lesson import anatomy, notebooks, runner

LESSONS = anatomy.lesson_paths(anatomy.NOTEBOOKS)
NAMES = [path.stem for path in LESSONS]
BATCH = {**os.environ, "STARLING_BATCH": "1"}


def what_it_shows(path: Path) -> list:
    """The outputs of an executed notebook in normal form: what a reader would see."""
    nb = anatomy.read_notebook(path)
    notebooks.normalise(nb)
    return [cell.outputs for cell in nb.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    """Each lesson through plain papermill, in an empty folder of its own; name -> executed."""
    executed = {}
    for path in LESSONS:
        folder = tmp_path_factory.mktemp(path.stem)
        command = [sys.executable, "-m", "papermill", str(path), "out.ipynb", "-p", "profile"]
        subprocess.run([*command, "smoke"], cwd=folder, env=BATCH, check=True, capture_output=True)
        executed[path.stem] = folder / "out.ipynb"
    return executed


@pytest.fixture(scope="module")
def backwards(tmp_path_factory) -> Path:
    """All lessons through the runner, last first, sharing one store; the run's folder."""
    folder = tmp_path_factory.mktemp("backwards")
    for name in reversed(NAMES):
        results = runner.run(
            [name], profile="smoke", store=folder / "store", output=folder / "run", timeout=300
        )
        assert [result.error for result in results] == [None]
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_outputs_in_whatever_order(name, alone, backwards):
    assert what_it_shows(alone[name]) == what_it_shows(backwards / "run" / f"{name}.ipynb")


def test_a_finished_lesson_and_its_stages_are_not_run_again(backwards):
    built = {path: path.stat().st_mtime_ns for path in (backwards / "store").rglob("*")}
    results = runner.run(
        NAMES, profile="smoke", store=backwards / "store", output=backwards / "run"
    )
    assert {result.status for result in results} == {"already done"}
    assert {path: path.stat().st_mtime_ns for path in built} == built


def test_the_gallery_shows_every_lesson(backwards):
    index = (backwards / "run" / "index.html").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"{name}.html" not in index] == []


def test_another_seed_gives_other_numbers(tmp_path, alone):
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        LESSONS[0],
        out,
        {"profile": "smoke", "seed": 1, "store": str(tmp_path / "store")},
        progress_bar=False,
    )
    assert what_it_shows(out) != what_it_shows(alone[NAMES[0]])
