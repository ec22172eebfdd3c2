"""The glossary: its names exist, and it has every symbol and term where the lessons use them."""

import dataclasses
import importlib
import inspect
import re
from collections import Counter
from functools import cache

import pytest

from starling_nb.lesson import anatomy

GLOSSARY = (anatomy.NOTEBOOKS / "glossary.md").read_text(encoding="utf-8")
LESSONS = {path.stem[:2]: path for path in anatomy.lesson_paths(anatomy.NOTEBOOKS)}
COURSE = [f"{number:02}" for number in range(12)]

# LaTeX that is no symbol of ours: layout, brackets, relations, operations. Any other command is.
PLAIN = """
    Bigl Bigr bigl bigr left right lfloor rfloor quad qquad dots ldots cdot cdots times frac sqrt
    text mathrm mathbb sum prod log exp max min ge le in mid propto approx top hat partial tfrac pm
    sim
""".split()
NAMED = r"\\math(?:rm|bb)\{\w+\}"  # \mathrm{KL}, \mathbb{R}: one symbol
TOKEN = re.compile(rf"{NAMED}|\\[a-zA-Z]+|\\.|[a-zA-Z]")


def table(heading: str) -> list[list[str]]:
    """The rows of the table below a heading, as cells."""
    section = GLOSSARY.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def formulas(markdown: str) -> list[str]:
    """What stands between dollars, outside code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", " ", markdown, flags=re.DOTALL)
    return [a or b for a, b in re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", text, re.DOTALL)]


def symbols(formula: str) -> list[str]:
    """The letters and named symbols of a formula, in order; `\\text{…}` is a label, 𝔼 is E."""
    bare = re.sub(r"\\text\{[^}]*\}", " ", formula).replace(r"\mathbb{E}", "E")
    tokens = TOKEN.findall(bare)
    return [
        token
        for token in tokens
        if not token.startswith("\\")
        or token.startswith("\\math")
        or (token[1].isalpha() and token[1:] not in PLAIN)
    ]


@cache
def prose(number: str) -> str:
    """All Markdown of a lesson."""
    cells = anatomy.read_notebook(LESSONS[number]).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def used(number: str) -> set[str]:
    """The symbols in a lesson's formulas."""
    return {symbol for formula in formulas(prose(number)) for symbol in symbols(formula)}


def defined(cell: str) -> list[str]:
    """The symbols that a row defines: the first of each formula in its first cell."""
    return [symbols(formula)[0] for formula in formulas(cell)]


ROWS = table("Symbols")
CODE = [(row[0], name) for row in ROWS for name in re.findall(r"`([^`]+)`", row[2])]


def test_symbols_are_read_as_meant():
    assert symbols(r"\pi^*(a \mid s) \propto \pi_\text{init}(a)\, e^{A(s, a)/\lambda}") == [
        *(r"\pi", "a", "s", r"\pi", "a", "e", "A", "s", "a", r"\lambda")
    ]
    assert symbols(r"\frac12\mathbb{E}_\pi[r_c] - \mathrm{KL}(\pi \,\|\, \pi_c)") == [
        *("E", r"\pi", "r", "c", r"\mathrm{KL}", r"\pi", r"\pi", "c")
    ]
    assert symbols(r"\nabla \ell = \chi^2") == [r"\nabla", r"\ell", r"\chi"]
    assert formulas("$a$ `$b` $$c\n+ d$$\n```\n$e$\n``` $f$") == ["a", "c\n+ d", "f"]


def test_rows_are_whole():
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 4, row
        assert defined(row[0]), row
        assert all(row)
        assert re.fullmatch(r"\d\d(, \d\d)*", row[3]), row
        assert set(row[3].split(", ")) <= set(COURSE)
        assert re.search(r"`|^—$", row[2]), row


@pytest.mark.parametrize("number", LESSONS)
def test_the_table_has_every_symbol_of_the_lesson_and_says_so(number):
    """The last column is exact: who uses a letter in one more lesson has to look it up."""
    listed = {symbol for row in ROWS if number in row[3] for symbol in defined(row[0])}
    assert used(number) == listed


def test_a_symbol_with_several_meanings_has_numbered_rows():
    """Beside one row, or rows that tell themselves apart by sub- or superscripts, as $\\pi_c$."""
    rows: dict[str, list[tuple[str, str]]] = {}
    for row in ROWS:
        written, number = re.fullmatch(r"(.*?)(?: \((\d)\))?", row[0]).groups(default="")
        for symbol in dict.fromkeys(defined(written)):
            rows.setdefault(symbol, []).append((written, number))
    for symbol, found in rows.items():
        numbers = [number for _, number in found]
        if any(numbers):
            assert numbers == [str(n) for n in range(1, len(found) + 1)], symbol
            assert len(found) > 1, symbol
        else:
            assert len({written for written, _ in found}) == len(found), symbol


@pytest.mark.parametrize(("symbol", "name"), CODE, ids=[name for _, name in CODE])
def test_names_in_code_exist(symbol, name):
    path, parameter = re.fullmatch(r"([\w.]+)(?:\((\w+)\))?", name).groups()
    parts = path.split(".")
    found, rest = importlib.import_module("starling_nb"), []
    for place in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(["starling_nb", *parts[:place]]))
            rest = parts[place:]
            break
        except ModuleNotFoundError:
            continue
    for part in rest:
        fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
        assert hasattr(found, part) or part in {field.name for field in fields}, name
        found = getattr(found, part, None)
    if parameter:
        assert parameter in inspect.signature(found).parameters


# Terms

TERMS = table("Terms")


def test_terms_are_sorted_and_met_once():
    names = [term for term, *_ in TERMS]
    assert names == sorted(names, key=str.casefold)
    assert [name for name, times in Counter(names).items() if times > 1] == []


@pytest.mark.parametrize("row", TERMS, ids=[row[0] for row in TERMS])
def test_a_term_has_one_sentence_and_occurs_where_it_says(row):
    term, meaning, lessons = row
    assert re.fullmatch(r"[A-Z][^.!?]*(\d\.\d[^.!?]*)*\.", meaning), "one sentence"
    assert len(meaning.split()) <= 25
    assert set(lessons.split(", ")) <= set(COURSE)
    for number in set(lessons.split(", ")) & set(LESSONS):
        text = " ".join(prose(number).split())
        assert re.search(rf"\b{re.escape(term)}s?\b", text, re.IGNORECASE), number
