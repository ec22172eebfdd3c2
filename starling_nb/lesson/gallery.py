"""The gallery of a run: plain pages that open from a folder, without script, font or network.

Formulas become MathML when the page is made. Whatever a page would fetch is taken out, and a
content security policy forbids the rest.
"""

import base64
import re
from collections import Counter
from collections.abc import Collection
from html import escape
from pathlib import Path
from typing import Any

from starling_nb.lesson import anatomy, claims
from starling_nb.store import read_json, replace_atomically

MAX_LINES = 80  # of one text output; what is cut is counted
MAX_CHARACTERS = 10_000
IMAGES = ("image/png", "image/jpeg", "image/svg+xml")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222 }
pre, code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .86rem }
pre { overflow-x: auto; padding: .6rem .8rem; margin: .6rem 0 }
.highlight, .input pre { background: #f6f7f9; border-radius: 4px }
.output pre { border-left: 3px solid #cfd8e3 }
.output .error, .failed { border-left: 3px solid #c0392b; color: #8e1b10 }
p.failed { padding: .4rem .8rem; background: #fdf1ef; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; background: #fff }
table { border-collapse: collapse; margin: .8rem 0; display: block; overflow-x: auto }
th, td { border: 1px solid #d5dae1; padding: .2rem .6rem; text-align: left }
mi[mathvariant^=bold] { font-weight: bold }
p:has(> math[display=block]) { overflow-x: auto; padding: .4rem 0 }
blockquote { border-left: 3px solid #cfd8e3; margin-left: 0; padding-left: 1rem }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem;
  padding: 0; list-style: none }
.cards li { border: 1px solid #d5dae1; border-radius: 6px; padding: 1rem }
.cards h2 { font-size: 1.05rem; margin: .4rem 0 }
.cards .facts, .note { color: #5a6573; font-size: .86rem }
"""


def write_page(folder: Path, nb: Any, manifest: dict[str, Any], pages: Collection[str]) -> int:
    """Write <lesson>.html, the executed notebook as a page; returns how many formulas stayed LaTeX.

    `pages` are the lessons that the folder has or is going to have: links lead to no others.
    """
    from pygments.formatters import HtmlFormatter

    renderer = make_renderer()
    cells = "\n".join(cell_html(cell, renderer, pages) for cell in anatomy.own_cells(nb))
    failure = (
        f'<p class="failed">Failed: {escape(manifest["error"])}</p>' if manifest["error"] else ""
    )
    count = len(renderer.unconverted)
    note = f'<p class="note">Formulas shown as LaTeX source: {count}</p>' if count else ""
    body = f'<p><a href="index.html">All lessons</a></p>{failure}{note}\n{cells}'
    body += f'{findings_html(manifest)}<p class="note">{facts(manifest)}</p>'
    style = STYLE + HtmlFormatter().get_style_defs(".highlight")
    heading = anatomy.title(nb) or manifest["lesson"]
    write_html(folder / f"{manifest['lesson']}.html", plain_heading(heading), style, body)
    return count


def write_index(folder: Path) -> None:
    """Write index.html: a card for each lesson of which `folder` holds a manifest."""
    found = manifests(folder)
    failed = sum(manifest["status"] != "ok" for manifest in found)
    seconds = sum(manifest["seconds"] for manifest in found)
    summary = f"{len(found)} lessons, {failed} failed, {seconds:.0f} s in all"
    cards = "\n".join(card(folder, manifest) for manifest in found)
    body = f"<h1>The Starling workbook</h1><p>{summary}</p>\n<ul class='cards'>{cards}</ul>"
    write_html(folder / "index.html", "The Starling workbook", STYLE, body)


def manifests(folder: Path) -> list[dict[str, Any]]:
    """The manifests in a run's folder, by lesson; one of an older version has no findings.

    Names with a dot in front are manifests that are being written, or were when a run was killed.
    """
    nothing: dict[str, Any] = {"findings": [], "checks": []}
    return [nothing | read_json(path) for path in sorted(folder.glob("[!.]*.manifest.json"))]


def card(folder: Path, manifest: dict[str, Any]) -> str:
    """One lesson's card: figure, title, claim, facts, changed parameters, and how it ended."""
    lesson = manifest["lesson"]
    nb = anatomy.read_notebook(folder / f"{lesson}.ipynb")
    heading = markdown_html(anatomy.title(nb) or lesson, make_renderer()).strip()
    heading = heading.removeprefix("<p>").removesuffix("</p>")
    image = next(iter(signature_images(nb)), "")
    failure = (
        f'<p class="failed">Failed: {escape(manifest["error"])}</p>' if manifest["error"] else ""
    )
    changed = ", ".join(
        f"{name} = {value}" for name, value in manifest["explicit_parameters"].items()
    )
    more = (
        f"with {escape(changed)}" if changed else "",
        claims.tally(manifest),
        exercises(manifest),
    )
    return (
        f'<li><a href="{lesson}.html">{image}</a><h2><a href="{lesson}.html">{heading}</a></h2>'
        f"{markdown_html(anatomy.claim(nb), make_renderer())}{failure}"
        f'<p class="facts">{"<br>".join([facts(manifest), *filter(None, more)])}</p></li>'
    )


def exercises(manifest: dict[str, Any]) -> str:
    """How the exercises went: "exercises: 1 passed, 3 not attempted"; "" without any."""
    counts = Counter(record["status"] for record in manifest["checks"])
    told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    return f"exercises: {told}" if told else ""


def findings_html(manifest: dict[str, Any]) -> str:
    """The lesson's findings as a table, and how its exercises went."""
    note = f'<p class="note">{escape(exercises(manifest))}</p>' if manifest["checks"] else ""
    if not manifest["findings"]:
        return note
    names = ("question", "value and interval", "n", "control", "bound", "holds")
    rows = ["".join(f"<th>{name}</th>" for name in names)]
    for record in manifest["findings"]:
        fault = claims.judge(record)
        verdict = "not judged" if not claims.is_judged(manifest) else "no" if fault else "yes"
        value, bound = claims.measured(record), claims.limits(record["bound"])
        cells = (record["question"], value, str(record["n"]), record["control"], bound, verdict)
        rows.append("".join(f"<td>{escape(cell)}</td>" for cell in cells))
    table = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<h2>Findings</h2><p>{escape(claims.tally(manifest))}</p><table>{table}</table>{note}"


def facts(manifest: dict[str, Any]) -> str:
    """One line: status, profile, seed, seconds, peak memory."""
    memory = manifest["peak_rss_mb"]
    parts = [
        manifest["status"],
        f"profile {manifest['profile']}",
        f"seed {manifest['seed']}",
        f"{manifest['seconds']:.0f} s",
        "memory not measured" if memory is None else f"{memory:.0f} MB",
    ]
    if manifest["gpu"]:
        parts.append(f"{manifest['peak_gpu_mb']:.0f} MB on {manifest['gpu']}")
    return escape(" · ".join(parts))


def signature_images(nb: Any) -> list[str]:
    """The notebook's images as HTML, those of the cell tagged `signature` first."""
    first = anatomy.tagged(nb, "signature")
    cells = first + [cell for cell in nb.cells if cell not in first]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return [image for output in outputs if (image := image_html(output.get("data", {})))]


def cell_html(cell: Any, renderer: Any, pages: Collection[str]) -> str:
    """A cell as HTML: prose, or highlighted code followed by its outputs; stderr is left out."""
    if cell.cell_type == "markdown":
        return localise(markdown_html(cell.source, renderer), pages)
    if cell.cell_type == "raw":
        return f"<pre>{escape(cell.source)}</pre>"
    outputs = [output_html(output, renderer) for output in cell.outputs]
    shown = "".join(f'<div class="output">{html}</div>' for html in outputs if html)
    return f'<div class="input">{code_html(cell.source)}</div>{localise(shown, pages)}'


def code_html(source: str) -> str:
    """Python source, highlighted."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(source, PythonLexer(), HtmlFormatter())


def output_html(output: Any, renderer: Any) -> str:
    """An output as HTML, the richest form a page without script can show; "" for stderr."""
    if output.output_type == "stream":
        return text_html(output.text) if output.name == "stdout" else ""
    if output.output_type == "error":
        return text_html("\n".join(output.traceback), "error")
    data = output.data
    if image := image_html(data):
        return image
    if "text/html" in data:
        return data["text/html"]
    for kind in ("text/markdown", "text/latex"):
        if kind in data:
            return markdown_html(data[kind], renderer)
    return text_html(data.get("text/plain", ""))


def image_html(data: Any) -> str:
    """The image in a rich output as an embedded picture, or ""."""
    for kind in IMAGES:
        if kind in data:
            content = data[kind]
            if kind == "image/svg+xml":
                content = base64.b64encode(content.encode()).decode()
            alternative = escape(data.get("text/plain", "figure"), quote=True)
            content = "".join(content.split())
            return f'<img alt="{alternative}" src="data:{kind};base64,{content}">'
    return ""


def text_html(text: str, style: str = "") -> str:
    """Preformatted text without terminal colours, cut after MAX_LINES lines or MAX_CHARACTERS."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()
    lines = text[:MAX_CHARACTERS].split("\n")[:MAX_LINES]
    shown = "\n".join(lines)
    if not shown:
        return ""
    cut = len(text) - len(shown)
    more = f"\n… {cut} more characters" if cut else ""
    return f'<pre class="{style}">{escape(shown + more)}</pre>'


def markdown_html(source: str, renderer: Any) -> str:
    """Markdown as HTML, formulas as MathML."""
    from nbconvert.filters.markdown_mistune import MarkdownWithMath

    return MarkdownWithMath(renderer=renderer).render(source)


def make_renderer() -> Any:
    """A Markdown renderer that turns formulas into MathML and lists those it could not convert."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class MathMLRenderer(IPythonRenderer):
        def __init__(self) -> None:
            super().__init__(escape=False, exclude_anchor_links=True)
            self.unconverted: list[str] = []

        def heading(self, text: str, level: int, **attrs: Any) -> str:
            anchor = re.sub(r"<[^>]*>", "", text).replace(" ", "-")  # as Jupyter makes it
            return f'<h{level} id="{escape(anchor)}">{text}</h{level}>\n'

        def inline_math(self, body: str) -> str:
            return self.formula(body, "inline")

        def block_math(self, body: str) -> str:
            return self.formula(body, "block")

        def latex_environment(self, name: str, body: str) -> str:
            return self.formula(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

        def formula(self, latex: str, display: str) -> str:
            mathml = mathml_of(latex, display)
            if mathml is None:
                self.unconverted.append(latex)
                return f"<code>{escape(latex)}</code>"
            return mathml

    return MathMLRenderer()


def mathml_of(latex: str, display: str) -> str | None:
    """A LaTeX formula as MathML; None when latex2mathml fails or lets a part through unread."""
    from latex2mathml.converter import convert

    try:
        # it does not know `aligned`, which differs from `split` in nothing it shows
        mathml = convert(latex.replace("{aligned}", "{split}"), display=display)
    except Exception:  # it raises whatever its parser stumbles over
        return None
    if re.search(r">\\|>&<|<mo />", mathml):  # an unknown command, environment or operator
        return None
    return mathml.replace(' xmlns="http://www.w3.org/1998/Math/MathML"', "")  # not needed in HTML


def localise(html: str, pages: Collection[str]) -> str:
    """HTML without anything active or fetched; links to lessons lead to their pages.

    Scripts and embedded documents go, a picture from elsewhere becomes its description, and of the
    relative links those to a lesson in `pages` stay.
    """
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "link", "iframe", "object", "embed", "base", "meta", "form"]):
        element.decompose()
    for style in soup("style"):
        if re.search(r"url\(|@import", style.get_text()):
            style.decompose()
    for element in soup(True):
        for name in list(element.attrs):
            if name.startswith("on") or (name == "style" and "url(" in element[name]):
                del element[name]
    for element in soup(src=True) + soup(srcset=True) + soup(poster=True) + soup(["image", "use"]):
        if not str(element.get("src", "")).startswith("data:"):
            element.replace_with(str(element.get("alt", "")))
    for link in soup("a", href=True):
        target, _, anchor = str(link["href"]).partition("#")
        lesson = target.removeprefix("./").removesuffix(".ipynb")
        if lesson in pages:
            link["href"] = f"{lesson}.html" + (f"#{anchor}" if anchor else "")
        elif target and not target.startswith(("https://", "http://")):
            del link["href"]
    return str(soup)


def plain_heading(heading: str) -> str:
    """A heading without Markdown marks, for a window's title."""
    return re.sub(r"[*`_$]", "", heading)


def write_html(path: Path, heading: str, style: str, body: str) -> None:
    """Write a whole page, atomically."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)}</title><style>{style}</style></head>\n<body>{body}</body></html>\n"
    )
    with replace_atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
