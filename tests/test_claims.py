"""Findings: what is refused, what is recorded and shown, and whether the committed ones hold."""

import math

import nbclient
import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_notebooks import code, lesson, save

from starling_nb.lesson import anatomy, claims, notebooks
from starling_nb.lesson.claims import CHECK, FINDING, finding, judge

QUESTION = "APA against SFT cooled to its entropy, gold"
SENTENCE = """\
APA against SFT cooled to its entropy, gold: +0.73 [+0.62, +0.84], n = 1141
    control: SFT cooled: +0.05; bound: at least 0.3
"""


def say(**changes):
    """The finding of the example, changed."""
    values = {
        "question": QUESTION,
        "value": 0.7314,
        "interval": (0.6209, 0.8441),
        "control": "SFT cooled: +0.05",
        "n": 1141,
        "bound": (0.3, None),
    }
    finding(**values | changes)


def record(value=0.0, low=-1.0, high=1.0, bound=(None, None), question="Is it?"):
    shown = {"question": question, "value": value, "low": low, "high": high}
    return shown | {"control": "chance: 0", "n": 3, "bound": list(bound)}


def test_outside_a_notebook_a_finding_is_printed(capsys):
    assert say() is None
    assert capsys.readouterr().out == SENTENCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "finding, question: expected a sentence, found ' '"),
        ({"question": None}, "finding, question: expected a sentence, found None"),
        ({"control": ""}, "finding, control: expected a sentence, found ''"),
        ({"value": math.nan}, "expected finite numbers, found .nan"),
        ({"interval": (0.6, math.inf)}, "expected finite numbers"),
        ({"interval": (-math.inf, math.inf)}, "expected finite numbers"),
        ({"interval": (math.inf, -math.inf), "n": 1}, "expected finite numbers"),
        ({"interval": (math.nan, math.nan)}, "expected finite numbers"),
        ({"bound": (-math.inf, 1)}, "expected finite numbers"),
        ({"value": 0.9}, f"{QUESTION}.: the interval 0.6209 to 0.8441 does not hold 0.9"),
        ({"value": 0.5}, "does not hold 0.5"),
        ({"interval": (0.8, 0.6)}, "the interval 0.8 to 0.6 does not hold 0.7314"),
        ({"interval": (0.1, 0.7, 0.9)}, r"expected \(low, high\), found \(0.1, 0.7, 0.9\)"),
        ({"n": 0}, "n: expected the number of items measured, found 0"),
        ({"n": 2.5}, "n: expected the number of items measured, found 2.5"),
        ({"bound": (None, None)}, "bound: expected .low, high., one end may be None"),
        ({"bound": (1, 0)}, r"found \[1.0, 0.0\]"),
        ({"bound": (1,)}, r"found \(0.6209, 0.8441\) and \(1,\)"),
    ],
)
def test_what_cannot_be_a_finding_is_refused(capsys, changes, message):
    with pytest.raises(ValueError, match=message):
        say(**changes)
    assert capsys.readouterr().out == ""


def test_of_a_single_seed_no_interval_is_shown(capsys):
    say(interval=(-math.inf, math.inf), n=1)
    assert f"{QUESTION}: +0.731 [no interval], n = 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "bound", "fault"),
    [
        (0.3, (0.3, None), None),
        (0.2999, (0.3, None), "+0.2999 is not at least 0.3"),
        (0.1, (None, 0.1), None),
        (0.11, (None, 0.1), "+0.11 is not at most 0.1"),
        (-1.0, (-1, 1), None),
        (1.0, (-1, 1), None),
        (-1.5, (-1, 1), "-1.5 is not between -1 and 1"),
        (1.5, (-1, 1), "+1.5 is not between -1 and 1"),
        (0.0, (0, None), None),
        (-0.1, (0, None), "-0.1 is not at least 0"),
        (0.1, (None, 0), "+0.1 is not at most 0"),
    ],
)
def test_a_finding_is_judged_by_its_value(value, bound, fault):
    assert judge(record(value, bound=bound)) == fault


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.7314, 0.6209, 0.8441, "+0.73 [+0.62, +0.84]"),
        (127.8, 95.4, 174.4, "+128 [+95, +174]"),
        (-0.04, -0.07, -0.01, "-0.040 [-0.070, -0.010]"),
        (0.827, 0.818, 0.835, "+0.8270 [+0.8180, +0.8350]"),
        (0.5, 0.5, 0.5, "+0.500 [+0.500, +0.500]"),
        (1e-12, 0, 1e-9, "+0.000000 [+0.000000, +0.000000]"),
    ],
)
def test_a_value_is_shown_as_exactly_as_it_is_known(value, low, high, text):
    assert claims.measured(record(value, low, high)) == text


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_shown_value_lies_in_its_shown_interval(value, below, above):
    shown = claims.measured(record(value, value - below, value + above))
    value, low, high = map(float, shown.replace("[", "").replace("]", "").replace(",", "").split())
    assert low <= value <= high


MANIFEST = {"profile": "cpu", "findings": []}


@pytest.mark.parametrize(
    ("values", "profile", "text"),
    [
        ([], "cpu", ""),
        ([1], "cpu", "1 finding holds"),
        ([1, 2], "gpu", "2 findings hold"),
        ([1, -1], "cpu", "1 finding holds, 1 does not"),
        ([-1, -2, 3, 4], "cpu", "2 findings hold, 2 do not"),
        ([-1], "cpu", "0 findings hold, 1 does not"),
        ([-1, 2], "smoke", "2 findings, not judged on profile smoke"),
        ([-1], "smoke", "1 finding, not judged on profile smoke"),
        ([], "smoke", ""),
    ],
)
def test_the_tally_counts_what_holds(values, profile, text):
    found = [record(value, bound=(0, None)) for value in values]
    assert claims.tally({"profile": profile, "findings": found}) == text


def test_two_findings_of_one_lesson_do_not_ask_the_same():
    first, other = record(question="Is it?"), record(question="Is it more?")
    assert claims.repeated([]) is None
    assert claims.repeated([first, other]) is None
    assert claims.repeated([other, first, first]) == (
        "2 findings ask 'Is it?': give each a question of its own"
    )


CALLS = f"""\
import numpy as np
import torch
from starling_nb.lesson import checks as check
from starling_nb.lesson.claims import finding

value, low = np.float32(0.5), torch.tensor(0.25)
finding({QUESTION!r}, value, (low, 1), control="none: 0", n=np.int64(3), bound=(0, 1))
finding("Is it?", 0.0, [-1.0, 1.0], control="chance: 0", n=3, bound=(0.5, None))
check.ceiling(lambda a: ...)"""
SHOWN = [
    {"question": QUESTION, "value": 0.5, "low": 0.25, "high": 1.0, "control": "none: 0", "n": 3}
    | {"bound": [0.0, 1.0]},
    record(0.0, bound=(0.5, None)),
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The file of a small lesson with two findings and a check, run and in normal form."""
    nb = lesson(CALLS, code("print('two lines')\nprint('of text')"))
    nbclient.NotebookClient(nb).execute()
    notebooks.normalise(nb)
    return save(nb, tmp_path_factory.mktemp("claims") / "00_small.ipynb")


def test_findings_and_checks_travel_in_the_outputs(executed):
    nb = anatomy.read_notebook(executed)
    assert claims.recorded(nb, FINDING) == SHOWN
    (check,) = claims.recorded(nb, CHECK)
    assert check == {
        "exercise": "ceiling",
        "status": "not attempted",
        "message": "ceiling: not attempted yet; the lesson goes on with the package's version",
    }
    texts = [output.data["text/plain"] for output in nb.cells[2].outputs]
    assert texts[0].startswith(f"{QUESTION}: +0.50 [+0.25, +1.00], n = 3\n    control: none: 0")
    assert texts[2] == check["message"]


def test_the_normal_form_keeps_them_byte_for_byte(executed):
    written, nb = executed.read_bytes(), anatomy.read_notebook(executed)
    for output in nb.cells[2].outputs:  # in whatever order the kernel sent them
        output.data = nbformat.from_dict(dict(reversed(output.data.items())))
        output.metadata = nbformat.from_dict({"isolated": True})
    notebooks.normalise(nb)
    assert save(nb, executed).read_bytes() == written


def broken_bounds(nb) -> list[str]:
    """Why findings stored in a notebook, made with seed 0 on `cpu`, do not hold."""
    found = claims.recorded(nb, FINDING)
    faults = [f"{r['question']}: {judge(r)}" for r in found if judge(r)]
    faults += [f"{r['question']}: no interval" for r in found if r["low"] is None]
    return faults + [fault for fault in [claims.repeated(found)] if fault]


def test_a_broken_bound_in_stored_outputs_is_found(executed):
    nb = anatomy.read_notebook(executed)
    assert broken_bounds(nb) == ["Is it?: +0 is not at least 0.5"]
    alone = nbformat.from_dict(record(0.7, None, None, (0.5, None), "Alone?"))
    nb.cells[2].outputs[0].data[FINDING] = alone
    assert broken_bounds(nb) == ["Is it?: +0 is not at least 0.5", "Alone?: no interval"]
    nb.cells.append(nb.cells[2])
    assert broken_bounds(nb)[-1].startswith("2 findings ask ")


@pytest.mark.parametrize("path", anatomy.lesson_paths(anatomy.NOTEBOOKS), ids=lambda p: p.stem)
def test_committed_findings_hold_their_bounds(path):
    assert broken_bounds(anatomy.read_notebook(path)) == []
