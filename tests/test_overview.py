"""The overview at the size that readers see, and the first lessons on real rankings."""

import re
from pathlib import Path

import pytest

from starling_nb.lesson import anatomy, runner


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
def test_the_overview_shows_what_it_claims(tmp_path):
    """Its claim, on `cpu` and seed 0: gains over the start, greedy and against the control."""
    (result,) = runner.run(["00_overview"], store=tmp_path / "store", output=tmp_path / "run")
    assert result.error is None
    text = printed(tmp_path / "run", "00_overview")
    for comparison in ("APA − SFT, greedy", "APA − SFT cooled to its entropy"):
        difference, half = re.search(
            rf"^([+-]\d\.\d\d) ± (\d\.\d\d) .*{re.escape(comparison)}$", text, re.MULTILINE
        ).groups()
        assert float(difference) > float(half), comparison


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
