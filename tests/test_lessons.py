"""Every lesson runs: alone, in any order, from anywhere, through papermill and the runner."""

import os
import re
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


def test_another_seed_gives_other_numbers(tmp_path, alone):
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        LESSONS[0],
        out,
        {"profile": "smoke", "seed": 1, "store": str(tmp_path / "store")},
        progress_bar=False,
    )
    assert what_it_shows(out) != what_it_shows(alone[NAMES[0]])


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """The whole course once on `cpu`, seed 0; the run's folder."""
    folder = tmp_path_factory.mktemp("course")
    results = runner.run(store=folder / "store", output=folder / "run")
    assert [result.error for result in results] == [None] * len(NAMES)
    return folder / "run"


def printed(folder: Path, name: str) -> str:
    """All that the executed lesson printed."""
    nb = anatomy.read_notebook(folder / f"{name}.ipynb")
    return "".join(
        output.text
        for cell in nb.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stdout"
    )


@pytest.mark.slow
def test_the_overview_shows_what_it_claims(course):
    """Its claim, on seed 0: gains over the start, greedy and against the cooled control."""
    text = printed(course, "00_overview")
    for comparison in ("APA − SFT, greedy", "APA − SFT cooled to its entropy"):
        difference, half = re.search(
            rf"^([+-]\d\.\d\d) ± (\d\.\d\d) .*{re.escape(comparison)}$", text, re.MULTILINE
        ).groups()
        assert float(difference) > float(half), comparison


@pytest.mark.slow
def test_the_gallery_shows_every_lesson(course):
    index = (course / "index.html").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"{name}.html" not in index] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "nectar_real/nectar_rankings.train.jsonl.gz",
        "nectar_like/nectar_like_alpacaeval.train.parquet",
        "nectar_like/nectar_like_mtbench_varK.train.jsonl.gz",
        "nectar_like/nectar_like_hh_harmless_k2.train.jsonl.gz",
    ],
)
def test_real_rankings_go_through_the_same_parameter(source, shared_data, tmp_path):
    results = runner.run(
        ["00_overview", "01_nectar"],
        profile="smoke",
        parameters={"nectar_path": str(shared_data / source)},
        store=tmp_path / "store",
        output=tmp_path / "run",
    )
    assert [result.error for result in results] == [None, None]
    assert re.search(r"[\d.]+% of the answers truncated", printed(tmp_path / "run", "00_overview"))
