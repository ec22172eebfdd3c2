"""The gallery: pages that open from a folder, fetch nothing and run nothing."""

import json
import re
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_markdown_cell, new_output
from small_notebooks import code, lesson, save

from starling_nb.lesson import gallery

PIXEL = (  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
OTHER_PIXEL = PIXEL.replace("GNgAAAAAgAB", "GNgAAAAAgAC")
HOSTILE = r"""
# Rewards $r_\theta$ and `$code$`

[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/x)

**You will have shown that** the loss is $\log K!$ and costs \$5.

$$\mathcal{L} = \sum_{i=1}^{K} \frac{a_i < b}{c}$$

| symbol | meaning |
| --- | --- |
| $\pi_\theta$ | policy |

A bad one: $\nosuchcommand{x}$.

```python
x = "$a$ <b>"
```

<script>alert(1)</script><link rel="stylesheet" href="https://example.org/a.css">
<iframe src="https://example.org"></iframe>
<p onclick="alert(2)" style="background: url(//x/y)">text</p>
<style>@import "https://example.org/b.css";</style>
<svg><image href="https://example.org/a.png"/></svg>
<img src="https://example.org/x.png" alt="a far picture"><img src="local.png" alt="a near picture">

[there](01_there.ipynb#part) [missing](02_missing.ipynb) [file](../README.md)
[paper](https://example.org/p)
"""


def manifest(name, **changes):
    return {
        "lesson": name,
        "profile": "cpu",
        "seed": 0,
        "seconds": 12.3,
        "peak_rss_mb": 456.7,
        "peak_gpu_mb": None,
        "gpu": None,
        "explicit_parameters": {},
        "status": "ok",
        "error": None,
        "findings": [],
        "checks": [],
    } | changes


def rendered(tmp_path, nb, name="00_page", pages=("00_page", "01_there"), **changes):
    """The page of a notebook as a soup, and the count of formulas it could not convert."""
    record = manifest(name, **changes)
    save(nb, tmp_path / f"{name}.ipynb")
    (tmp_path / f"{name}.manifest.json").write_text(json.dumps(record))
    count = gallery.write_page(tmp_path, nb, record, pages)
    gallery.write_index(tmp_path)
    return BeautifulSoup((tmp_path / f"{name}.html").read_text(), "html.parser"), count


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    nb = lesson(head="# none")
    nb.cells = [new_markdown_cell(HOSTILE), code("print('<b>')  # $x$")]
    nb.cells[1].outputs = [
        new_output("stream", name="stdout", text="\x1b[31m<b>red</b>\x1b[0m\n"),
        new_output("stream", name="stderr", text="a warning\n"),
        new_output(
            "display_data",
            {"text/html": "<table><tr><td onmouseover='x()'>1</td></tr></table><script>2</script>"},
        ),
        new_output("display_data", {"text/markdown": "*loud* $x^2$"}),
        new_output("display_data", {"text/latex": "$$y^2$$", "text/plain": "Math"}),
        new_output("display_data", {"image/svg+xml": "<svg onload='x()'></svg>"}),
        new_output("stream", name="stdout", text="".join(f"line {i}\n" for i in range(1000))),
    ]
    page, count = rendered(folder, nb)
    return folder, page, count


def test_pages_fetch_and_run_nothing(hostile):
    folder, *_ = hostile
    for path in folder.glob("*.html"):
        page = BeautifulSoup(path.read_text(), "html.parser")
        assert not page(["script", "link", "iframe", "object", "embed", "base", "image", "use"])
        for element in page(True):
            for name, value in element.attrs.items():
                assert not name.startswith("on")
                assert name not in ("srcset", "poster", "data", "action")
                assert name != "src" or value.startswith("data:image/")
                assert name != "href" or element.name == "a"
        styles = " ".join(style.get_text() for style in page("style"))
        assert "url(" not in styles + path.read_text()
        assert "@import" not in styles
        policy = page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
        assert policy.startswith("default-src 'none'")


def test_formulas_become_mathml_and_code_does_not(hostile):
    _, page, count = hostile
    assert count == 1
    assert "\\nosuchcommand{x}" in [code.get_text() for code in page("code")]
    assert "Formulas shown as LaTeX source: 1" in page.get_text()
    formulas = page("math")
    assert [formula["display"] for formula in formulas].count("block") == 2
    assert len(formulas) == 6  # heading, claim, block, table, output x^2, output y^2
    block = next(formula for formula in formulas if formula("munderover"))
    assert block.mfrac.get_text() == "ai<bc"
    text = page.get_text()
    assert "$code$" in text
    assert 'x = "$a$ <b>"' in text
    assert "# $x$" in text
    assert "costs $5" in text
    assert page.h1["id"]
    assert page.h1.math.get_text() == "rθ"
    assert page.table.math.get_text() == "πθ"


def test_pictures_from_elsewhere_become_words_and_links_lead_somewhere(hostile):
    _, page, _ = hostile
    assert "a far picture" in page.get_text()
    assert "a near picture" in page.get_text()
    links = {link.get_text(): link.get("href") for link in page("a")}
    assert links == {
        "All lessons": "index.html",
        "Open In Colab": "https://colab.research.google.com/x",
        "there": "01_there.html#part",
        "missing": None,
        "file": None,
        "paper": "https://example.org/p",
    }


def test_outputs_are_shown_escaped_and_cut(hostile):
    _, page, _ = hostile
    shown = [pre.get_text() for output in page(class_="output") for pre in output("pre")]
    assert shown[0] == "<b>red</b>"
    assert shown[-1].startswith("line 0\nline 1\n")
    kept, _, rest = shown[-1].partition("\n… ")
    whole = "\n".join(f"line {i}" for i in range(1000))
    assert len(kept.split("\n")) == gallery.MAX_LINES
    assert rest == f"{len(whole) - len(kept)} more characters"
    assert "a warning" not in page.get_text()
    assert page.find("em").get_text() == "loud"


def test_card_shows_the_signature_figure_claim_and_facts(tmp_path):
    nb = lesson("1", "2", head="# Ranks *and* $x$\n\nYou will have shown that $r$ ranks.")
    nb.cells[2].outputs = [new_output("display_data", {"image/png": OTHER_PIXEL})]
    nb.cells[3].outputs = [new_output("display_data", {"image/png": PIXEL})]
    nb.cells[3].metadata["tags"] = ["signature"]
    changed = {"n": 3, "path": "<b>"}
    rendered(tmp_path, nb, explicit_parameters=changed)
    index = BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser")
    (card,) = index("li")
    assert card.img["src"] == f"data:image/png;base64,{PIXEL}"
    assert card.h2.get_text() == "Ranks and x"
    assert "You will have shown that r ranks." in card.get_text()
    assert "ok · profile cpu · seed 0 · 12 s · 457 MB" in card.get_text()
    assert "with n = 3, path = <b>" in card.get_text()
    assert {link["href"] for link in card("a")} == {"00_page.html"}
    nb.cells[3].metadata["tags"] = []
    rendered(tmp_path, nb)
    assert OTHER_PIXEL in (tmp_path / "index.html").read_text()  # else the first figure


def test_card_of_a_failed_lesson_says_so(tmp_path):
    nb = lesson("1 / 0")
    trace = ["\x1b[31mZeroDivisionError\x1b[0m: division by zero"]
    nb.cells[2].outputs = [new_output("error", ename="E", evalue="", traceback=trace)]
    page, _ = rendered(tmp_path, nb, status="failed", error="cell 3 (`a < b`): E", peak_rss_mb=None)
    assert page.find(class_="failed").get_text() == "Failed: cell 3 (`a < b`): E"
    assert page.find("pre", class_="error").get_text() == "ZeroDivisionError: division by zero"
    index = BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser")
    assert index.li.find(class_="failed").get_text() == "Failed: cell 3 (`a < b`): E"
    assert "memory not measured" in index.li.get_text()
    assert "1 lessons, 1 failed" in index.get_text()


def finding(question, value, bound):
    record = {"question": question, "value": value, "low": value - 0.1, "high": value + 0.1}
    return record | {"control": "chance < 0.1", "n": 1141, "bound": bound}


FOUND = [finding("A <b> B?", 0.5, [0.3, None]), finding("C?", 0.2, [None, 0.1])]
CHECKED = [{"status": status} for status in ("passed", "not attempted", "not attempted")]


@pytest.mark.parametrize(
    ("profile", "tally", "verdicts"),
    [
        ("cpu", "1 finding holds, 1 does not", ["yes", "no"]),
        ("smoke", "2 findings, not judged on profile smoke", ["not judged", "not judged"]),
    ],
)
def test_findings_and_exercises_are_on_page_and_card(tmp_path, profile, tally, verdicts):
    changes = {"profile": profile, "findings": FOUND, "checks": CHECKED}
    page, _ = rendered(tmp_path, lesson("1"), **changes)
    rows = [[cell.get_text() for cell in row(["th", "td"])] for row in page.table("tr")]
    assert rows == [
        ["question", "value and interval", "n", "control", "bound", "holds"],
        ["A <b> B?", "+0.50 [+0.40, +0.60]", "1141", "chance < 0.1", "at least 0.3", verdicts[0]],
        ["C?", "+0.20 [+0.10, +0.30]", "1141", "chance < 0.1", "at most 0.1", verdicts[1]],
    ]
    index = BeautifulSoup((tmp_path / "index.html").read_text(), "html.parser")
    for shown in (page.get_text(), index.li.get_text()):
        assert tally in shown
        assert "exercises: 2 not attempted, 1 passed" in shown


def test_a_lesson_without_findings_does_not_mention_them(tmp_path):
    page, _ = rendered(tmp_path, lesson("1"))
    index = (tmp_path / "index.html").read_text()
    for shown in (page.get_text(), index):
        assert "finding" not in shown.lower()
        assert "exercises" not in shown


def test_a_manifest_that_is_being_written_is_passed_over(tmp_path):
    (tmp_path / ".5a0c.tmp-01_half.manifest.json").write_text('{"lesson": "01_h')
    rendered(tmp_path, lesson("1"))
    assert [found["lesson"] for found in gallery.manifests(tmp_path)] == ["00_page"]


def test_a_run_of_an_older_version_still_has_its_card(tmp_path):
    rendered(tmp_path, lesson("1"))
    path = tmp_path / "00_page.manifest.json"
    older = json.loads(path.read_text())
    del older["findings"], older["checks"]
    path.write_text(json.dumps(older))
    gallery.write_index(tmp_path)
    assert "1 lessons, 0 failed" in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    ("latex", "text"),
    [
        (r"\log K!", "logK!"),
        (r"\mathbb{E}_{x \sim D}", "𝔼x~D"),
        (r"\pi_\theta(y \mid x)", "πθ(y∣x)"),
        (r"y_1 \succ y_2", "y1≻y2"),
        (r"\begin{aligned} a &= b \\ &\le c \end{aligned}", "a=b≤c"),
    ],
)
def test_mathml_reads_as_the_formula(latex, text):
    mathml = gallery.mathml_of(latex, "inline")
    assert mathml is not None
    assert "".join(ElementTree.fromstring(mathml).itertext()).replace("∼", "~") == text


@pytest.mark.parametrize(
    "latex",
    [
        r"\nosuch{x}",
        r"\frac{a}{",
        r"\operatorname{arg\,max}",
        r"\Big\{",
        r"\begin{gathered} a &= b \end{gathered}",
    ],
)
def test_a_formula_that_is_not_understood_is_not_half_shown(latex):
    assert gallery.mathml_of(latex, "inline") is None


@given(st.text())
def test_any_text_is_escaped(text):
    html = gallery.text_html(text)
    assert not re.search(r"<(?!/?pre[ >])", html)
