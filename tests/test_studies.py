"""Studies: each runs, at smoke size, and its committed result is of the code as it is."""

import ast
import json
import shutil
from pathlib import Path

import pytest

import starling_nb
from starling_nb.lesson import anatomy, studies
from starling_nb.store import read_json

SCRIPTS = studies.scripts()
NAMES = [script.stem for script in SCRIPTS]


def shape(value):
    """The keys of a result, all the way down; of lists, their first item's."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


def small_study(folder):
    folder.mkdir()
    script = folder / "small.py"
    script.write_text(
        "from starling_nb.policy.objectives import apa_loss\n"
        "STAGE, LOSS = 'sft', apa_loss\n"
        "def measure(profile, store):\n    return {'profile': profile, 'value': 1.5}\n"
    )
    return script


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all studies, as a reader has: a stage that several need is built once."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_study_runs_at_smoke_size(script, store):
    found = studies.load_script(script).measure("smoke", store)
    as_stored = json.loads(json.dumps(found))
    assert shape(as_stored) == shape(read_json(script.with_suffix(".json"))["result"])


@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_a_committed_result_is_of_the_code_as_it_is(script):
    assert studies.stale(script) is None


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's sources, which the code hash reads instead; edit(file, old, new)."""
    root = tmp_path / "starling_nb"
    source = Path(starling_nb.__file__).parent
    shutil.copytree(source, root, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    monkeypatch.setattr(starling_nb, "__file__", str(root / "__init__.py"))

    def forget():
        studies.top_level.cache_clear()
        studies.stages.cache_clear()

    def edit(file, old, new):
        code = (root / file).read_text()
        assert code.count(old) == 1
        (root / file).write_text(code.replace(old, new))
        forget()

    forget()
    yield edit
    forget()


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("policy/objectives.py", "advantages[mask] / lam\n", "advantages[mask] * lam\n", True),
        (
            "policy/objectives.py",
            "def kl_estimate(",
            "def kl_estimate(*",
            True,
        ),  # apa_loss calls it
        ("policy/sft.py", "rows: int = 14_000", "rows: int = 14_001", True),  # the stage it names
        ("training.py", "max_grad_norm=1.0", "max_grad_norm=2.0", True),  # what the stage calls
        ("policy/base.py", "context: int", "contexts: int", True),  # the stage's parent
        ("policy/rl.py", "WARMUP = 5", "WARMUP = 6", False),  # another stage
        ("policy/objectives.py", "def gae(", "def gae(*", False),  # another function
        (
            "policy/objectives.py",
            "Return APA's squared",
            "Return the squared",
            False,
        ),  # a docstring
        ("policy/sft.py", "rows: int = 14_000", "rows: int = 14_000  # many", False),  # a comment
    ],
)
def test_a_result_goes_stale_with_what_it_reaches(file, old, new, counts, package, tmp_path):
    script = small_study(tmp_path / "studies")
    before = studies.code_sha256(script)
    package(file, old, new)
    assert (studies.code_sha256(script) != before) == counts


def test_a_study_without_a_result_or_with_an_old_one_is_stale(tmp_path, monkeypatch):
    script = small_study(tmp_path / "studies")
    monkeypatch.setattr(studies, "FOLDER", script.parent)
    assert "has not been measured" in studies.stale(script)
    studies.measure("small", str(tmp_path / "store"))
    assert studies.stale(script) is None
    assert read_json(script.with_suffix(".json"))["result"] == {"profile": "cpu", "value": 1.5}
    script.write_text(script.read_text().replace("1.5", "2.5"))
    studies.top_level.cache_clear()
    assert "has changed since" in studies.stale(script)


def test_a_lesson_reads_the_committed_result_or_measures_again(tmp_path, monkeypatch):
    script = small_study(tmp_path / "studies")
    monkeypatch.setattr(studies, "FOLDER", script.parent)
    studies.measure("small", str(tmp_path / "store"))
    options = {"profile": "smoke", "store": str(tmp_path / "store")}
    assert studies.result("small", recompute=False, **options)["profile"] == "cpu"
    assert studies.result("small", recompute=True, **options)["profile"] == "smoke"
    with pytest.raises(ValueError, match=r"unknown study 'smal' .* are: small\)"):
        studies.result("smal", recompute=False, **options)


def test_the_overview_study_has_the_sizes_of_the_lesson():
    study = studies.load_script(studies.script_of("overview_seeds"))
    nb = anatomy.read_notebook(anatomy.NOTEBOOKS / "00_overview.ipynb")
    cell = next(c.source for c in nb.cells if c.source.lstrip().startswith("import matplotlib"))
    small = next(
        ast.literal_eval(node.value)
        for node in ast.parse(cell).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "small"
    )
    assert {name: small[name] for name in study.SMALL} == study.SMALL
