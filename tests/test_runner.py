"""The runner: what it refuses, what it calls a failure, what it does not run again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import papermill
import psutil
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from small_notebooks import PARAMETERS, code, lesson, save

from starling_nb.lesson import anatomy, cli, runner
from starling_nb.lesson.anatomy import LessonError, Parameter

MORE_PARAMETERS = (
    PARAMETERS
    + """
n: int = 3  # how many
beta: float = 0.5  # weight
recompute: bool = False  # run the study again
nectar_path: str = ""  # rankings, or the world's own
"""
)
REPORT = """\
import json, os, sys
from starling_nb.lesson import kernel
print(json.dumps({
    "profile": profile, "seed": seed, "store": store, "n": n, "beta": beta,
    "recompute": recompute, "nectar_path": nectar_path, "python": sys.executable,
    "files": os.listdir(), "threads": os.environ["OMP_NUM_THREADS"],
    "batch": os.environ["STARLING_BATCH"], "backend": os.environ["MPLBACKEND"],
}))"""

TIMEOUT = 12  # seconds: only 05_slow is to reach it, also on a busy machine
# What each bad lesson does, and what the runner must say: the cell and the cause.
BAD = {
    "01_error": (["x = 1", "1 / 0", "print('after')"], r"cell 4 \(`1 / 0`\): ZeroDivisionError"),
    "02_expected_error": (
        [code("1 / 0", "raises-exception"), "print('after')"],
        r"cell 3 \(`1 / 0`\): ZeroDivisionError",
    ),
    "03_os_exit": (["import os\nos._exit(0)", "print('after')"], r"cell 3 .*kernel died"),
    "04_killed_at_the_end": (
        ["import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"],
        r"cell 3 .*kernel died \(out of memory\?\)",
    ),
    "05_slow": (
        ["import time", "time.sleep(300)", "print('after')"],
        r"cell 4 \(`time.sleep\(300\)`\) timed out: it took more than 12 s",
    ),
    "06_sys_exit": (["import sys\nsys.exit(0)", "print('after')"], r"cell 3 .*SystemExit: 0"),
    "07_sys_exit_at_the_end": (["import sys\nsys.exit()"], r"cell 3 .*SystemExit"),
    "08_exit": (["exit()", "print('after')"], r"cell 3 \(`exit\(\)`\) .*SystemExit"),
    "09_shell": (["!exit 3\n!true", "print('after')"], r"cell 3 \(`!exit 3`\).* status 3"),
    "10_shell_output": (["lines = !echo hi; exit 4"], r"cell 3 .* status 4"),
    "11_pip": (["%pip --no-such-option", "print('after')"], r"cell 3 .*no-such-option.* status"),
    "12_bash": (["%%bash\nexit 5"], r"cell 3 \(`%%bash`\).* status 5"),
}
GOOD_SHELL = (
    "word = 'a b'\n!echo {word}\nlines = !echo {word}; echo c\nassert lines == ['a b', 'c']"
)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The results by lesson of one run over all bad lessons and a good one, two at a time."""
    folder = tmp_path_factory.mktemp("lessons")
    for name, (cells, _) in BAD.items():
        save(lesson(*cells), folder / f"{name}.ipynb")
    save(lesson(GOOD_SHELL), folder / "00_good.ipynb")
    output = folder / "run"
    results = runner.run(
        jobs=2, timeout=TIMEOUT, store=folder / "store", output=output, notebooks_folder=folder
    )
    return output, {result.lesson: result for result in results}


@pytest.mark.parametrize("name", BAD)
def test_failures_are_named(outcomes, name):
    output, results = outcomes
    result = results[name]
    assert result.status == "failed"
    assert re.search(BAD[name][1], result.error), result.error
    manifest = json.loads((output / f"{name}.manifest.json").read_text())
    assert (manifest["status"], manifest["error"]) == ("failed", result.error)
    if name != "02_expected_error":  # papermill goes on after a cell that may raise
        last = anatomy.read_notebook(output / f"{name}.ipynb").cells[-1]
        assert "after" not in str(last.outputs)
    assert "Failed: cell" in (output / f"{name}.html").read_text()


def test_a_failure_does_not_stop_the_others(outcomes):
    output, results = outcomes
    assert list(results) == ["00_good", *BAD]  # in order, though two ran at a time
    assert results["00_good"].status == "ok"
    assert results["00_good"].error is None
    index = (output / "index.html").read_text()
    assert f"{len(BAD) + 1} lessons, {len(BAD)} failed" in index
    for name in results:
        assert f'href="{name}.html"' in index


def test_manifest_of_a_good_lesson(outcomes):
    output, _ = outcomes
    manifest = json.loads((output / "00_good.manifest.json").read_text())
    nb = anatomy.read_notebook(output / "00_good.ipynb")
    assert manifest["source_sha256"] == anatomy.source_sha256(nb)
    assert set(manifest["versions"]) == {"python", "torch", "transformers", "starling_nb"}
    assert manifest["parameters"]["seed"] == manifest["seed"] == 0
    assert manifest["explicit_parameters"] == {}
    assert 20 < manifest["peak_rss_mb"] < 10_000
    assert manifest["gpu"] is None
    assert manifest["slowest_cells"][0]["seconds"] > 0
    assert {cell["cell"] for cell in manifest["slowest_cells"]} == {2, 3}
    assert str(output.parent) not in json.dumps(nb.metadata["papermill"]["input_path"])


def test_the_peak_memory_is_known_of_a_kernel_that_died(outcomes):
    output, _ = outcomes
    for name in ("03_os_exit", "04_killed_at_the_end"):
        manifest = json.loads((output / f"{name}.manifest.json").read_text())
        assert 20 < manifest["peak_rss_mb"] < 10_000


def test_parameters_arrive_and_nothing_of_the_caller_does(tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    broken = {"argv": ["false"], "display_name": "broken", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(broken))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.chdir(tmp_path)
    Path("rankings.jsonl").write_text("{}\n")
    path = save(lesson(REPORT, parameters=MORE_PARAMETERS), tmp_path / "a {b}" / "00_report.ipynb")
    asked = {"n": "7", "beta": "1", "recompute": "yes", "nectar_path": "rankings.jsonl"}
    (result,) = runner.run([str(path)], profile="smoke", seed=3, parameters=asked, output="out")
    assert result.status == "ok", result.error
    nb = anatomy.read_notebook(tmp_path / "out" / "00_report.ipynb")
    assert json.loads(nb.cells[-1].outputs[0].text) == {
        "profile": "smoke",
        "seed": 3,
        "store": str(tmp_path / "store"),
        "n": 7,
        "beta": 1.0,
        "recompute": True,
        "nectar_path": str(tmp_path / "rankings.jsonl"),
        "python": sys.executable,
        "files": [],
        "threads": "1",
        "batch": "1",
        "backend": "module://matplotlib_inline.backend_inline",
    }
    manifest = json.loads((tmp_path / "out" / "00_report.manifest.json").read_text())
    assert manifest["explicit_parameters"]["n"] == 7
    assert manifest["parameters"]["recompute"] is True
    assert list(manifest["inputs"]) == [str(tmp_path / "rankings.jsonl")]


def test_our_reading_of_the_parameters_cell_is_papermills(tmp_path):
    path = save(lesson(parameters=MORE_PARAMETERS), tmp_path / "00_good.ipynb")
    ours = anatomy.read_parameters(anatomy.read_notebook(path), path)
    theirs = papermill.inspect_notebook(path)
    assert {name: parameter.help for name, parameter in ours.items()} == {
        name: found["help"] for name, found in theirs.items()
    }
    assert {name: parameter.type.__name__ for name, parameter in ours.items()} == {
        name: found["inferred_type_name"] for name, found in theirs.items()
    }


@pytest.fixture
def two_lessons(tmp_path, monkeypatch):
    """A folder with two lessons, of which only the first has the parameter n."""
    save(lesson("print(n)", parameters=MORE_PARAMETERS), tmp_path / "notebooks" / "00_one.ipynb")
    save(lesson("print(1)"), tmp_path / "notebooks" / "01_two.ipynb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(anatomy, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path / "notebooks"


def command(*arguments: str):
    return CliRunner().invoke(cli.main, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run 00 -p nn 3", r"unknown parameter 'nn'.* 00_one; did you mean n\?"),
        ("run 00 01 -p n 3", r"unknown parameter 'n': not in the parameters cell of 01_two"),
        ("run 00 -p n 3.5", r"parameter n: expected int, got '3.5'"),
        ("run 00 -p n true", r"parameter n: expected int, got 'true'"),
        ("run 00 -p beta high", r"parameter beta: expected float, got 'high'"),
        ("run 00 -p beta nan", r"parameter beta: expected float, got 'nan'"),
        ("run 00 -p recompute 1", r"expected bool \(true, false, yes or no\), got '1'"),
        ("run 00 -p n 3 -p n 4", r"given twice"),
        ("run 00 -p seed 3", r"parameter seed has an option of its own: --seed"),
        ("run 02", r"unknown lesson '02' \(the lessons are 00_one, 01_two\)"),
        ("run 00_on", r"did you mean 00_one\?"),
        ("run 00 --profile tpu", r"unknown profile 'tpu': choose one of cpu"),
        ("run 00 --seed -1", r"seed"),
        ("run 00 --jobs 0", r"jobs"),
        ("run 00 --timeout 0", r"timeout"),
        ("run 00 --output notebooks", r"holds something else than a run"),
    ],
)
def test_bad_requests_are_refused_before_anything_starts(two_lessons, arguments, message):
    before = sorted(two_lessons.parent.rglob("*"))
    result = command(*arguments.split())
    assert result.exit_code == 2, result.output
    assert re.search(message, result.output), result.output
    assert sorted(two_lessons.parent.rglob("*")) == before


def without_kernelspec(nb):
    del nb.metadata["kernelspec"]


def without_language(nb):
    del nb.metadata["language_info"]


def with_parameters(source):
    def change(nb):
        nb.cells[1].source = PARAMETERS + "\n" + source

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_kernelspec, r"00_bad.ipynb: kernelspec.name is None"),
        (without_language, r"00_bad.ipynb: .*language_info.name is None"),
        (lambda nb: nb.cells.append(code("n: int = 1", "parameters")), r"2 cells are tagged"),
        (lambda nb: nb.cells.pop(1), r"0 cells are tagged 'parameters'"),
        (with_parameters("n = 3"), r"line 4: expected `name: type = literal"),
        (with_parameters("n: int | None = 3"), r"line 4: expected"),
        (with_parameters("n: int = (\n3)"), r"line 4: expected"),
        (with_parameters("n: int = 2 * 3"), r"line 4: `2 \* 3` is not a literal of type int"),
        (with_parameters("n: int = True"), r"not a literal of type int"),
        (with_parameters("n: float = 1"), r"not a literal of type float"),
        (with_parameters("seed: int = 1"), r"line 4: seed is defined twice"),
        (with_parameters("seed: int = "), r"line 4: invalid syntax"),
    ],
)
def test_bad_notebooks_are_refused_before_anything_starts(tmp_path, change, message):
    nb = lesson("print(1)")
    change(nb)
    path = save(nb, tmp_path / "00_bad.ipynb")
    with pytest.raises(LessonError, match=message):
        runner.run([path], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_notebook_is_refused(tmp_path):
    path = tmp_path / "00_bad.ipynb"
    path.write_text('{"cells": [')
    with pytest.raises(LessonError, match=r"00_bad.ipynb: not a valid notebook"):
        runner.run([path], output=tmp_path / "out")


@given(
    st.one_of(
        st.integers(), st.booleans(), st.text(), st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_what_a_command_line_spells_is_what_the_lesson_gets(value):
    parameter = Parameter("x", type(value), value, "")
    assert anatomy.convert(parameter, value) == value
    converted = anatomy.convert(parameter, str(value))
    assert (type(converted), converted) == (type(value), value)


@given(st.sampled_from([int, float, str, bool]), st.one_of(st.none(), st.lists(st.integers())))
def test_other_types_are_refused(kind, value):
    with pytest.raises(LessonError, match="parameter x: expected"):
        anatomy.convert(Parameter("x", kind, kind(), ""), value)


@pytest.fixture
def started(monkeypatch):
    """The lessons that runs start, which then end well at once, without a kernel."""
    lessons = []

    def pretend(waiting, control, jobs):
        lessons.append([job.lesson for job in waiting])
        manifests = {}
        for job in waiting:
            ended = {"seconds": 1.0, "peak_rss_mb": None, "status": "ok", "error": None}
            manifests[job.lesson] = {**job.identity, **ended, "findings": []}
            for suffix in runner.RESULT_SUFFIXES:
                (control.folder / f"{job.lesson}{suffix}").touch()
            runner.write_json(
                control.folder / f"{job.lesson}{runner.MANIFEST}", manifests[job.lesson]
            )
        return manifests

    monkeypatch.setattr(runner, "run_all", pretend)
    monkeypatch.setattr(runner, "code_sha256", lambda: "code")
    return lessons


def test_only_what_changed_runs_again(two_lessons, started, monkeypatch):
    data = two_lessons.parent / "rankings.jsonl"
    data.write_text("{}\n")
    output = two_lessons.parent / "out"

    def run(*lessons, **options):
        results = runner.run(lessons, notebooks_folder=two_lessons, output=output, **options)
        assert {result.status for result in results if result.lesson not in started[-1]} <= {
            "already done"
        }
        return started[-1]

    assert run() == ["00_one", "01_two"]
    assert run() == []
    assert run("00", parameters={"nectar_path": str(data)}) == ["00_one"]
    assert run("00", parameters={"nectar_path": str(data)}) == []
    data.write_text("{}\n{}\n")
    assert run("00", parameters={"nectar_path": str(data)}) == ["00_one"]
    assert run() == ["00_one"]  # back at the defaults
    assert run(seed=1) == ["00_one", "01_two"]
    assert run(seed=1, store="elsewhere") == ["00_one", "01_two"]
    assert run() == ["00_one", "01_two"]
    nb = anatomy.read_notebook(two_lessons / "01_two.ipynb")
    nb.cells[-1].source = "print(2)"
    save(nb, two_lessons / "01_two.ipynb")
    assert run() == ["01_two"]
    (output / "00_one.html").unlink()
    assert run() == ["00_one"]
    manifest = json.loads((output / "00_one.manifest.json").read_text())
    runner.write_json(output / "00_one.manifest.json", manifest | {"status": "failed"})
    assert run() == ["00_one"]
    assert run() == []
    monkeypatch.setattr(runner, "code_sha256", lambda: "other code")
    assert run() == ["00_one", "01_two"]
    monkeypatch.setattr(runner, "versions", lambda: {"python": "3.99"})
    assert run() == ["00_one", "01_two"]
    assert run() == []


def test_a_finished_lesson_is_not_run_again(two_lessons, monkeypatch):
    monkeypatch.setattr(runner, "code_sha256", lambda: "code")
    first = command("run", "01")
    assert first.exit_code == 0, first.output
    assert re.search(r"01_two +ok .* MB", first.output)
    assert "Gallery: runs/cpu-seed0/index.html" in first.output
    folder = Path("runs/cpu-seed0")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("01_two.*")}
    assert len(before) == 3
    second = command("run", "01")
    assert second.exit_code == 0
    assert "01_two already done" in second.output
    assert {path: path.stat().st_mtime_ns for path in folder.glob("01_two.*")} == before
    save(lesson("print(1)", "1 / 0"), two_lessons / "01_two.ipynb")
    third = command("run", "01_two")
    assert third.exit_code == 1
    assert "01_two failed: cell 4 (`1 / 0`): ZeroDivisionError" in third.output


def test_the_gallery_never_shows_a_lesson_that_is_being_replaced(two_lessons, monkeypatch):
    """Lessons run again in their folder; files are slow to go, a list of manifests to be used."""
    monkeypatch.setattr(runner, "code_sha256", lambda: "code")
    manifests, unlink = runner.gallery.manifests, Path.unlink

    def slow_manifests(folder):
        found = manifests(folder)
        time.sleep(0.5)
        return found

    def slow_unlink(path, **options):
        time.sleep(0.1)
        unlink(path, **options)

    monkeypatch.setattr(runner.gallery, "manifests", slow_manifests)
    monkeypatch.setattr(Path, "unlink", slow_unlink)
    for seed in (0, 1):
        results = runner.run(notebooks_folder=two_lessons, output="out", seed=seed)
        assert [result.status for result in results] == ["ok", "ok"]


def test_the_code_hash_sees_every_file_of_the_package(tmp_path):
    (tmp_path / "sub" / "__pycache__").mkdir(parents=True)
    (tmp_path / "sub" / "a.py").write_text("a = 1\n")
    hashes = [runner.content_sha256(tmp_path)]
    (tmp_path / "sub" / "__pycache__" / "a.pyc").write_text("compiled")
    assert runner.content_sha256(tmp_path) == hashes[0]
    (tmp_path / "sub" / "a.py").write_text("a = 2\n")
    hashes.append(runner.content_sha256(tmp_path))
    (tmp_path / "sub" / "a.py").rename(tmp_path / "sub" / "b.py")
    hashes.append(runner.content_sha256(tmp_path))
    assert len(set(hashes)) == 3


FINDING = """\
from starling_nb.lesson.claims import finding
finding({question!r}, 0.5, (0.4, 0.6), control="chance: 0", n=3, bound=({low}, None))"""
CHECKED = "from starling_nb.lesson import checks as check\ncheck.ceiling(...)"


def test_findings_and_checks_are_read_from_the_lessons(two_lessons, monkeypatch):
    monkeypatch.setattr(runner, "code_sha256", lambda: "code")
    holds, does_not = (FINDING.format(question=q, low=low) for q, low in (("A?", 0.3), ("B?", 0.7)))
    save(lesson(holds, does_not, CHECKED), two_lessons / "00_one.ipynb")
    save(lesson(holds, holds), two_lessons / "01_two.ipynb")  # asks the same twice
    said = "00_one: 1 finding holds, 1 does not\n  does not hold: B?: +0.5 is not at least 0.7\n"

    ended = command("run")
    assert ended.exit_code == 1  # of the second lesson: that a finding does not hold fails nothing
    assert said in ended.output
    assert "01_two failed: 2 findings ask 'A?': give each a question of its own" in ended.output

    folder = Path("runs/cpu-seed0")
    manifest = json.loads((folder / "00_one.manifest.json").read_text())
    assert [record["question"] for record in manifest["findings"]] == ["A?", "B?"]
    assert [check["status"] for check in manifest["checks"]] == ["not attempted"]
    first, second, *same = json.loads((folder / "claims.json").read_text())
    origin = {"lesson": "00_one", "profile": "cpu", "seed": 0}
    assert first == {**origin, **manifest["findings"][0], "judged": True, "holds": True}
    assert second == {**origin, **manifest["findings"][1], "judged": True, "holds": False}
    assert [record["lesson"] for record in same] == ["01_two", "01_two"]

    again = command("run", "00")
    assert again.exit_code == 0
    assert "00_one already done\n" + said in again.output


def test_findings_of_the_smoke_profile_are_not_judged(two_lessons):
    save(lesson(FINDING.format(question="A?", low=0.7)), two_lessons / "00_one.ipynb")
    ended = command("run", "00", "--profile", "smoke")
    assert ended.exit_code == 0, ended.output
    assert "hold" not in ended.output
    (record,) = json.loads(Path("runs/smoke-seed0/claims.json").read_text())
    assert (record["judged"], record["holds"]) == (False, None)


def kernels_of(process: psutil.Process) -> list[psutil.Process]:
    """The kernels that a run has started."""
    found = process.children(recursive=True)
    return [child for child in found if "starling_nb.lesson.kernel" in child.cmdline()]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value


def test_an_interrupted_run_leaves_no_kernel_and_goes_on_later(tmp_path):
    slow = "import pathlib, time\npathlib.Path(r'{}').touch()\ntime.sleep(300)"
    fast = save(lesson("print(1)"), tmp_path / "00_fast.ipynb")
    begun = tmp_path / "begun"
    halted = save(lesson(slow.format(begun)), tmp_path / "01_slow.ipynb")
    arguments = [sys.executable, "-m", "starling_nb.lesson.cli", "run", str(fast), str(halted)]
    process = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    )
    wait_until(begun.exists)
    kernels = kernels_of(psutil.Process(process.pid))
    assert kernels
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert "TCP" not in err
    assert not any(kernel.is_running() for kernel in kernels)
    folder = tmp_path / "runs" / "cpu-seed0"
    assert json.loads((folder / "00_fast.manifest.json").read_text())["status"] == "ok"
    assert not list(folder.glob("01_slow*"))
    assert "00_fast" in (folder / "index.html").read_text()


def test_two_runs_do_not_share_a_folder(two_lessons):
    output = two_lessons.parent / "out"
    with runner.claimed(output), pytest.raises(LessonError, match="another run is writing to"):
        runner.run(["00"], output=output, notebooks_folder=two_lessons)


def test_list_shows_title_claim_and_parameters(two_lessons):
    result = command("list")
    assert result.exit_code == 0
    assert "00_one  A lesson about $x^2$" in result.output
    assert "You will have shown that $1 + 1$ is **two**." in result.output
    assert "-p beta (float, 0.5)  weight" in result.output


def test_list_says_that_there_are_no_lessons(monkeypatch, tmp_path):
    monkeypatch.setattr(anatomy, "NOTEBOOKS", tmp_path)
    result = command("list")
    assert result.exit_code == 2
    assert f"no lesson lies in {tmp_path}: work in a copy" in result.output


def test_clean_removes_only_what_is_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "nothing to remove" in command("clean").output

    key = tmp_path / "store" / "reward_model" / "0123456789abcdef"
    key.mkdir(parents=True)
    (key.parent / ".0123456789abcdef.lock").touch()
    run_folder = tmp_path / "runs" / "cpu-seed0"
    run_folder.mkdir(parents=True)
    (run_folder / "thesis.doc").touch()
    refused = command("clean", "--yes")
    assert refused.exit_code == 2
    assert "runs/cpu-seed0 was not written by starling-nb run" in refused.output
    assert key.exists()

    (run_folder / runner.RUN_MARKER).touch()
    (tmp_path / "store" / "thesis.doc").touch()
    refused = command("clean", "--yes")
    assert refused.exit_code == 2
    assert "store holds something else" in refused.output
    assert run_folder.exists()

    (tmp_path / "store" / "thesis.doc").unlink()
    assert CliRunner().invoke(cli.main, ["clean"], input="n\n").exit_code == 1
    assert key.exists()
    assert run_folder.exists()
    assert command("clean", "--yes").exit_code == 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_starts_without_heavy_imports():
    heavy = "{'torch', 'transformers', 'papermill', 'nbformat', 'nbconvert', 'ipykernel'}"
    program = f"import sys, starling_nb.lesson.cli; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
