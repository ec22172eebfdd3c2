"""The lessons on disk, and the tools that keep them: lint, normal form, committed outputs."""

import base64
import copy
import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image
from nbformat.v4 import new_markdown_cell, new_output
from small_notebooks import code, exercise, lesson, save, whole_lesson

from starling_nb.lesson import anatomy, lint, notebooks
from starling_nb.lesson.claims import CHECK, FINDING

LESSONS = anatomy.lesson_paths(anatomy.NOTEBOOKS)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_lessons_are_in_order(path):
    assert lint.lint(path) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_outputs_are_those_of_the_source(path):
    assert notebooks.stale(path) == []


def test_no_notebook_escapes_the_tests():
    found = sorted(anatomy.NOTEBOOKS.rglob("*.ipynb"))
    assert [path for path in found if ".ipynb_checkpoints" not in path.parts] == LESSONS


def test_a_whole_lesson_passes_the_lint(tmp_path):
    path = tmp_path / "00_whole.ipynb"
    save(whole_lesson(path), path)
    assert lint.lint(path) == []


def cell_of(nb, tag):
    return anatomy.tagged(nb, tag)[0]


def put_code(source):
    def change(nb):
        nb.cells[6].source = source

    return change


def put_output(**output):
    def change(nb):
        nb.cells[6].outputs = [new_output(**output)]

    return change


def replace(old, new):
    def change(nb):
        assert sum(old in cell.source for cell in nb.cells) == 1
        for cell in nb.cells:
            cell.source = cell.source.replace(old, new)

    return change


def swap(nb, first, second):
    nb.cells[first], nb.cells[second] = nb.cells[second], nb.cells[first]


# One fault each, put into a lesson without any, and what the lint must say.
FAULTS = {
    "no kernel": (lambda nb: nb.metadata.pop("kernelspec"), "kernelspec.name is None"),
    "other language": (
        lambda nb: nb.metadata["language_info"].update(name="R"),
        "language_info.name is 'R'",
    ),
    "widgets": (lambda nb: nb.metadata.update(widgets={}), "metadata.widgets is stored"),
    "two signatures": (
        lambda nb: nb.cells[6].metadata.update(tags=["signature"]),
        "2 cells are tagged 'signature'",
    ),
    "no signature": (lambda nb: nb.cells[7].metadata.clear(), "0 cells are tagged 'signature'"),
    "parameters late": (
        lambda nb: swap(nb, 3, 6),
        "code cell 1 is not the one tagged 'parameters'",
    ),
    "setup late": (lambda nb: swap(nb, 4, 6), "code cell 2 is not the one tagged 'setup'"),
    "no seed": (replace("seed: int = 0  # of every generator", ""), "lacks 'seed'"),
    "not a literal": (replace('"store"  #', 'str("store")  #'), "is not a literal of type str"),
    "no help": (replace("  # where to run", ""), "parameter 'profile' has no comment"),
    "second =": (replace("# where to run", "# where = here"), "line with a second '='"),
    "long cell": (put_code("x = 1\n" * 41), "cell 7: 41 lines, at most 40"),
    "wide cell": (put_code(f"x = '{'a' * 90}'"), "cell 7: 96 columns, at most 88"),
    "syntax": (put_code("x = = 1"), "cell 7: line 1: invalid syntax"),
    "shell": (put_code("!ls"), "cell 7: a shell line outside the setup cell"),
    "shell output": (put_code("x = !ls\nprint(x)"), "cell 7: a shell line outside"),
    "pip": (put_code("%pip install a"), "cell 7: a shell line outside the setup cell"),
    "bash": (put_code("%%bash\nls"), "cell 7: a shell line outside the setup cell"),
    "sys.exit": (put_code("import sys\n\nsys.exit()"), "cell 7: `sys.exit()` ends the run"),
    "exit": (put_code("exit()"), "cell 7: `exit()` ends the run unseen"),
    "SystemExit": (put_code("raise SystemExit"), "cell 7: `raise SystemExit` ends the run"),
    "undefined": (put_code("print(scores_)"), "cell 7: line 1: Undefined name `scores_` (F821)"),
    "unused import": (put_code("import json"), "`json` imported but unused (F401)"),
    "count": (lambda nb: nb.cells[6].update(execution_count=1), "an execution count is stored"),
    "number": (
        lambda nb: nb.cells[0].update(source=nb.cells[0].source + "\n\nBy 5 with\n500. Then 6."),
        "cell 1: `500. Then 6.` begins a line and is shown as a list",
    ),
    "stderr": (
        put_output(output_type="stream", name="stderr", text="careful"),
        "cell 7: stderr is stored",
    ),
    "error": (put_output(output_type="error", ename="E"), "cell 7: an error is stored"),
    "address": (
        put_output(output_type="stream", text="<object at 0x7f0012345678>"),
        "cell 7: the output shows a memory address",
    ),
    "path": (
        put_output(output_type="display_data", data={"text/plain": "store: /home/me/store"}),
        "cell 7: the output shows a path of a machine (`/home/m`)",
    ),
    "no title": (replace("# A lesson", "A lesson"), "does not begin with the title"),
    "badge": (replace("00_whole.ipynb", "01_other.ipynb"), "lacks the badge"),
    "badge elsewhere": (replace("00_whole.ipynb", "01_other.ipynb"), "a badge leads to https://"),
    "no claim": (
        replace("You will have shown", "We show"),
        'no sentence "You will have shown that',
    ),
    "claim late": (lambda nb: swap(nb, 0, 5), 'no sentence "You will have shown that'),
    "measured late": (
        lambda nb: swap(nb, 1, 5),
        "no Markdown cell tagged 'measured' stands before",
    ),
    "no objectives": (replace("## Objectives", "## Aims"), "no heading with 'objectives' stands"),
    "no recap": (replace("## Recap", "## End"), "0 headings contain 'recap'"),
    "order": (
        replace("## Pitfalls\n\nNone.\n\n## Recap", "## Recap\n\nNone.\n\n## Pitfalls"),
        "the headings are not in the order",
    ),
    "no answers": (replace("<details>Because.</details>", "Because."), "no folded answers"),
    "short": (lambda nb: nb.cells[5].update(source="word " * 500), "expected 1000 to 2500"),
    "long": (lambda nb: nb.cells[5].update(source="word " * 3000), "expected 1000 to 2500"),
    "code is no prose": (
        lambda nb: nb.cells[5].update(source="```\n" + "word " * 1500 + "\n```"),
        "expected 1000 to 2500",
    ),
    "dead link": (replace("Why?", "[Why](why.md#there)?"), "the link why.md#there leads nowhere"),
    "large": (
        put_output(output_type="stream", text="a" * lint.MAX_BYTES),
        f"at most {lint.MAX_BYTES} allowed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_lint_names_the_fault(tmp_path, fault):
    path = tmp_path / "00_whole.ipynb"
    nb = whole_lesson(path)
    change, message = FAULTS[fault]
    change(nb)
    save(nb, path)
    problems = lint.lint(path)
    assert any(message in problem for problem in problems), problems
    assert len(problems) <= 4  # a cell out of place breaks more than one rule
    assert all(problem.startswith("00_whole.ipynb: ") for problem in problems)


def test_findings_and_checks_may_be_stored(tmp_path):
    path = tmp_path / "00_whole.ipynb"
    nb = whole_lesson(path)
    nb.cells[6].outputs = [
        new_output("display_data", {"text/plain": "Is it?: +1", kind: {"value": 1.0}})
        for kind in (FINDING, CHECK)
    ]
    assert lint.lint(save(nb, path)) == []
    assert len(anatomy.read_notebook(path).cells[6].outputs) == 2


def lesson_with_exercises(path):
    """A whole lesson with two exercises, in cells 9 to 14 as the lint counts them."""
    nb = whole_lesson(path)
    nb.cells[6].source = "from starling_nb.lesson import checks as check\n\nscores = [3, 2]"
    nb.cells[8:8] = [*exercise(1), *exercise(2, name="ceiling")]
    return nb


def in_cell(number, old, new):
    def change(nb):
        assert old in nb.cells[number - 1].source
        nb.cells[number - 1].source = nb.cells[number - 1].source.replace(old, new)

    return change


EXPECTED_HEADER = "expected `### Exercise 1 · Title`, a line `difficulty ●○○ · 5 minutes`, and the"
# What is done to the exercises, and what the lint says of each fault, in order.
EXERCISE_FAULTS = {
    "numbers": (in_cell(9, "Exercise 1", "Exercise 3"), [EXPECTED_HEADER]),
    "no title": (in_cell(9, " · A title", ""), [EXPECTED_HEADER]),
    "no difficulty": (in_cell(9, "difficulty ●○○ · ", ""), [EXPECTED_HEADER]),
    "odd difficulty": (in_cell(9, "●○○", "○●○"), [EXPECTED_HEADER]),
    "no minutes": (in_cell(9, " · 5 minutes", ""), [EXPECTED_HEADER]),
    "no task": (in_cell(9, "Write it.", ""), [EXPECTED_HEADER]),
    "no check": (
        in_cell(13, "check.ceiling(my_function)", ""),
        ["cell 13: expected a function, and last `check.name(function)`"],
    ),
    "check of another": (
        in_cell(13, "(my_function)", "(print)"),
        ["cell 13: expected a function, and last `check.name(function)`"],
    ),
    "code below the check": (
        in_cell(10, "(my_function)", "(my_function)\nprint(1)"),
        ["cell 10: expected a function, and last `check.name(function)`"],
    ),
    "stub not tagged": (
        lambda nb: nb.cells[9].metadata.clear(),
        ["cell 10: expected the exercise's code, tagged", "1 cells are tagged 'exercise', for 2"],
    ),
    "no solution": (
        lambda nb: nb.cells.pop(10),
        ["cell 11: expected the folded solution, tagged", "1 cells are tagged 'solution', for 2"],
    ),
    "solution first": (
        lambda nb: swap(nb, 9, 10),
        ["cell 10: expected the exercise's code, tagged", "cell 11: expected the folded solution"],
    ),
    "solution in sight": (
        in_cell(11, "<details>", ""),
        ["cell 11: expected `<details><summary>Solution</summary>`, one fence"],
    ),
    "solution without a fence": (
        in_cell(11, "```python", "```"),
        ["cell 11: expected `<details><summary>Solution</summary>`, one fence"],
    ),
    "no header": (
        in_cell(9, "### Exercise", "### A task"),
        [EXPECTED_HEADER, "2 cells are tagged 'exercise', for 1", "2 cells are tagged 'solution'"],
    ),
    "nothing behind the header": (
        lambda nb: nb.cells.append(exercise(3)[0]),
        [
            "cell 17: expected the exercise's code, tagged",
            "cell 18: expected the folded solution, tagged",
            "2 cells are tagged 'exercise', for 3 exercise headers",
            "2 cells are tagged 'solution', for 3 exercise headers",
        ],
    ),
}


@pytest.mark.parametrize("fault", EXERCISE_FAULTS)
def test_the_lint_names_the_fault_of_an_exercise(tmp_path, fault):
    path = tmp_path / "00_whole.ipynb"
    nb = lesson_with_exercises(path)
    assert lint.lint(save(nb, path)) == []
    change, messages = EXERCISE_FAULTS[fault]
    change(nb)
    problems = lint.lint(save(nb, path))
    assert len(problems) == len(messages), problems
    for message, problem in zip(messages, problems, strict=True):
        assert message in problem


def test_exercises_and_folded_text_are_no_prose(tmp_path):
    path = tmp_path / "00_whole.ipynb"
    nb = lesson_with_exercises(path)
    many = "word " * 3000
    for number, old, new in (
        (9, "Write it.", many),
        (11, "def my", f"# {many}\ndef my"),
        (15, "Because.", f"Because\n\n{many}"),
    ):
        in_cell(number, old, new)(nb)
    assert lint.lint(save(nb, path)) == []
    in_cell(15, "</details>", "")(nb)
    (problem,) = lint.lint(save(nb, path))
    assert "words of prose, expected 1000 to 2500" in problem


def test_the_setup_cell_installs_from_the_badges_repository(tmp_path):
    path = tmp_path / "00_whole.ipynb"
    nb = whole_lesson(path)
    cell_of(nb, "setup").source = "print('git+https://github.com/someone/else')"
    save(nb, path)
    assert lint.lint(path) == [
        f"00_whole.ipynb: the setup cell does not install from github.com/{lint.REPOSITORY}"
    ]


@pytest.mark.parametrize("stem", ["0_a", "00_A", "00-a", "00_a b", "00_", "00_a(1)"])
def test_the_lint_checks_the_name(tmp_path, stem):
    path = tmp_path / f"{stem}.ipynb"
    save(whole_lesson(path), path)
    assert f"{path.name}: the name is not NN_snake_case.ipynb" in lint.lint(path)


def test_the_lint_checks_the_cell_ids(tmp_path):
    path = tmp_path / "00_whole.ipynb"
    save(whole_lesson(path), path)
    raw = json.loads(path.read_text())
    raw["cells"][3]["id"] = raw["cells"][2]["id"]
    path.write_text(json.dumps(raw))
    assert any("ids" in problem or "unique" in problem for problem in lint.lint(path))


def test_the_lint_wants_links_to_both_neighbours(tmp_path):
    paths = [tmp_path / f"{number:02}_whole.ipynb" for number in range(4)]
    for path in paths:
        save(whole_lesson(path), path)
    assert [problem for path in paths for problem in lint.lint(path)] == [
        "00_whole.ipynb: no link to 01_whole.ipynb",
        "01_whole.ipynb: no link to 00_whole.ipynb",
        "01_whole.ipynb: no link to 02_whole.ipynb",
        "02_whole.ipynb: no link to 01_whole.ipynb",
        "02_whole.ipynb: no link to 03_whole.ipynb",
        "03_whole.ipynb: no link to 02_whole.ipynb",
    ]
    nb = whole_lesson(paths[1])
    nb.cells[-1].source += "\n\n[before](00_whole.ipynb) [after](02_whole.ipynb)"
    save(nb, paths[1])
    assert lint.lint(paths[1]) == []


def test_the_source_hash_sees_the_source_and_nothing_else(tmp_path):
    nb = whole_lesson(tmp_path / "00_whole.ipynb")
    first = anatomy.source_sha256(nb)

    same = copy.deepcopy(nb)
    cell_of(same, "measured").source = "| cpu | 12 s |"
    same.cells.insert(4, code("seed = 3", anatomy.INJECTED))
    same.cells.insert(0, new_markdown_cell("failed", metadata={"tags": [anatomy.ERROR_MARKER]}))
    same.cells[-3].outputs = [new_output("stream", text="3")]
    same.cells[-3].execution_count = 3
    same.metadata["papermill"] = {"duration": 3}
    assert anatomy.source_sha256(same) == first

    for change in (
        lambda nb: nb.cells[6].update(source="scores = []"),
        lambda nb: nb.cells[5].update(source="other words"),
        lambda nb: nb.cells[6].metadata.update(tags=["signature"]),
        lambda nb: nb.cells[6].update(cell_type="raw"),
        lambda nb: nb.cells.pop(6),
        lambda nb: swap(nb, 6, 7),
    ):
        other = copy.deepcopy(nb)
        change(other)
        assert anatomy.source_sha256(other) != first


def png(*chunks):
    """A PNG of 2 x 2 grey pixels with the given (type, content) chunks before its pixels."""
    rows = b"".join(b"\0" + bytes(row) for row in ([0, 50], [100, 255]))
    header = (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in parts:
        checksum = zlib.crc32(kind + content)
        data += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return base64.b64encode(data).decode()


def test_images_lose_their_text_and_keep_their_pixels():
    resolution = (b"pHYs", struct.pack(">IIB", 3937, 3937, 1))
    written = [png((b"tEXt", f"Software\0version {v}".encode()), resolution) for v in (1, 2)]
    stripped = [notebooks.strip_png(text) for text in written]
    assert written[0] != written[1]
    assert stripped[0] == stripped[1] == png(resolution)
    pixels = image.imread(io.BytesIO(base64.b64decode(stripped[0])))
    np.testing.assert_allclose(pixels, np.array([[0, 50], [100, 255]]) / 255)


def test_the_normal_form_keeps_what_a_rerun_repeats():
    nb = lesson("print(1)", "2 + 2")
    nb.cells.insert(2, code("seed = 3", anatomy.INJECTED))
    nb.cells[3].metadata = {"tags": [], "papermill": {"duration": 1}, "collapsed": False}
    nb.cells[3].execution_count = 7
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "bar"}
    nb.cells[3].outputs = [
        new_output("stream", name="stdout", text="one\n"),
        new_output("stream", name="stderr", text="a warning\n"),
        new_output("stream", name="stdout", text="two\n"),
        new_output("display_data", widget),
        new_output("display_data", {"image/png": png((b"tIME", b"now"))}, metadata={"needs": 1}),
    ]
    nb.cells[4].outputs = [new_output("execute_result", {"text/plain": "4"}, execution_count=9)]
    nb.metadata.update(widgets={"state": 1}, papermill={"duration": 2}, colab={"provenance": []})
    nb.metadata["language_info"]["version"] = "3.11.7"
    notebooks.normalise(nb)
    once = copy.deepcopy(nb)
    notebooks.normalise(nb)
    assert nb == once
    assert len(nb.cells) == 4
    assert nb.cells[1].metadata == {"tags": ["parameters"]}
    assert nb.cells[2].metadata == {}
    assert [cell.execution_count for cell in nb.cells[1:]] == [None, None, None]
    assert nb.cells[2].outputs == [
        new_output("stream", name="stdout", text="one\ntwo\n"),
        new_output("display_data", {"image/png": png()}),
    ]
    assert nb.cells[3].outputs == [new_output("execute_result", {"text/plain": "4"})]
    assert set(nb.metadata) == {"kernelspec", "language_info", "colab"}
    assert nb.metadata["language_info"] == {"name": "python"}


def test_the_header_table_shows_what_was_measured():
    run = {"seconds": 61.7, "peak_rss_mb": 812.0, "peak_gpu_mb": None, "gpu": None, "threads": 2}
    measured = {"cpu": {"00_a": run}}
    assert notebooks.measured_table("00_a", measured).splitlines()[2:] == [
        "| `cpu`, 2 threads | 62 s | 0.8 GB |",
        "| `gpu` | not measured | not measured |",
    ]
    measured["gpu"] = {"00_a": run | {"gpu": "H200", "peak_gpu_mb": 3210.0, "seconds": 9.6}}
    table = notebooks.measured_table("00_a", measured)
    assert "| `gpu`, H200 | 10 s | 0.8 GB, and 3.2 GB on the GPU |" in table
    assert notebooks.measured_table("01_b", measured).count("not measured") == 4


def test_written_outputs_are_sound_repeatable_and_guarded(tmp_path, monkeypatch):
    monkeypatch.setenv("STARLING_DATA", "/somewhere")
    path, bad = tmp_path / "00_whole.ipynb", tmp_path / "01_bad.ipynb"
    nb = whole_lesson(path)
    nb.cells[6].source = (
        "import os\nimport sys\n\nscores = [3, 2, 1]\nprint('slow', file=sys.stderr)\n"
        "print(scores, seed, profile, os.environ.get('STARLING_DATA'))\n"
        "print(os.listdir(os.path.dirname(store)))"
    )
    save(nb, path)
    save(lesson("1 / 0"), bad)
    before = bad.read_bytes()
    assert "has no outputs yet" in notebooks.stale(path)[0]

    ended = notebooks.write_outputs(tmp_path)

    assert [result.status for result in ended] == ["ok", "failed"]
    assert "STARLING_DATA" not in os.environ
    assert notebooks.stale(path) == []
    assert bad.read_bytes() == before
    written = anatomy.read_notebook(path)
    assert written.cells[6].outputs[0].text == "[3, 2, 1] 0 cpu None\n['run']\n"
    assert [output.output_type for output in written.cells[7].outputs] == ["display_data"]
    assert [cell.source for cell in written.cells if "measured" not in anatomy.tags(cell)] == [
        cell.source for cell in nb.cells if "measured" not in anatomy.tags(cell)
    ]
    assert "| `cpu`, 2 threads | " in cell_of(written, "measured").source
    problems = [problem for problem in lint.lint(path) if "no link to" not in problem]
    assert problems == []

    table = cell_of(written, "measured").source
    bad.unlink()
    notebooks.write_outputs(tmp_path)
    again = anatomy.read_notebook(path)
    cell_of(again, "measured").source = table
    assert again == written

    again.cells[5].source += " One more."
    save(again, path)
    assert "was changed after its outputs were made" in notebooks.stale(path)[0]


def test_the_lint_command_tells_and_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(anatomy, "NOTEBOOKS", tmp_path)
    assert CliRunner().invoke(notebooks.main, ["lint"]).exit_code == 0
    save(whole_lesson(tmp_path / "00_whole.ipynb"), tmp_path / "00_whole.ipynb")
    result = CliRunner().invoke(notebooks.main, ["lint"])
    assert result.exit_code == 1
    assert result.output == "00_whole.ipynb: has no outputs yet: run `make notebooks`\n"
