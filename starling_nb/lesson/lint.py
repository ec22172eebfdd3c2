"""The static lint of a lesson's notebook: form, cells, names, prose, links; nothing is run."""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starling_nb.lesson import anatomy
from starling_nb.lesson.anatomy import LessonError
from starling_nb.lesson.colab import REPOSITORY, badge

NAME = re.compile(r"\d\d_[a-z0-9]+(_[a-z0-9]+)*\.ipynb")
MAX_BYTES = 600_000
MAX_LINES, MAX_COLUMNS = 40, 88  # of a code cell
WORDS = (1000, 2500)  # of prose
ONCE = ("parameters", "setup", "signature", "measured")  # tags of exactly one cell each
REQUIRED = ("profile", "seed", "store")  # parameters
# Headings that contain these words, in this order: the parts whose place can be checked.
HEADINGS = (
    "objectives",
    "prerequisites",
    "does not say",
    "pitfalls",
    "recap",
    "questionnaire",
    "references",
)
EXERCISE = "### Exercise"  # how the Markdown cell above a stub begins
HEADER = re.compile(EXERCISE + r" (\d+) · \S.*\n+difficulty (?:●○○|●●○|●●●) · \d+ minutes?\n+\S")
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\n\n```python\n(.+?)\n```\n\n</details>\s*", re.DOTALL
)
SHELL_MAGICS = ("pip", "conda", "system", "sx", "!", "bash", "sh", "script")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:tmp|root|home|Users|private|var)/\w")
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


def lint(path: Path) -> list[str]:
    """What is wrong with the lesson at `path`, a line each, beginning with its name."""
    problems = [] if NAME.fullmatch(path.name) else ["the name is not NN_snake_case.ipynb"]
    if path.stat().st_size > MAX_BYTES:
        problems.append(f"{path.stat().st_size} bytes, at most {MAX_BYTES} allowed")
    try:
        nb = anatomy.read_notebook(path)
    except LessonError as error:
        return [f"{path.name}: {error}"]
    for check in (
        form,
        parameter_cells,
        code_cells,
        names,
        outputs,
        sections,
        exercises,
        prose,
        links,
    ):
        problems += check(nb, path)
    return [f"{path.name}: {problem}" for problem in problems]


def form(nb: Any, path: Path) -> Iterator[str]:
    """Cell ids, kernel, metadata, and the tags that occur once."""
    raw = json.loads(path.read_text(encoding="utf-8"))  # nbformat gives ids to cells without
    ids = [cell.get("id") for cell in raw["cells"]]
    if None in ids or len(set(ids)) < len(ids):
        yield "cell ids are missing or repeated: save it in a recent Jupyter"
    try:
        anatomy.check_kernel(nb, path)
    except LessonError as error:
        yield str(error)
    if "widgets" in nb.metadata:
        yield "metadata.widgets is stored"
    for tag in ONCE:
        count = len(anatomy.tagged(nb, tag))
        if count != 1:
            yield f"{count} cells are tagged '{tag}', expected one"


def parameter_cells(nb: Any, path: Path) -> Iterator[str]:
    """The parameters cell comes first among the code cells, then the setup cell."""
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for index, tag in enumerate(("parameters", "setup")):
        if len(code) <= index or tag not in anatomy.tags(code[index]):
            yield f"code cell {index + 1} is not the one tagged '{tag}'"
    try:
        parameters = anatomy.read_parameters(nb, path)
    except LessonError as error:
        yield str(error)
        return
    for name in REQUIRED:
        if name not in parameters:
            yield f"the parameters cell lacks '{name}'"
    for parameter in parameters.values():
        if not parameter.help:
            yield f"parameter '{parameter.name}' has no comment to say what it is"
        if "=" in parameter.help or "=" in str(parameter.default):
            yield f"parameter '{parameter.name}': papermill cannot read a line with a second '='"


def code_cells(nb: Any, path: Path) -> Iterator[str]:
    """Each code cell: size, syntax, no shell lines outside the setup cell, no way out."""
    for where, cell in numbered(nb, "code"):
        lines = cell.source.splitlines()
        if len(lines) > MAX_LINES:
            yield f"{where}: {len(lines)} lines, at most {MAX_LINES} allowed"
        widest = max(map(len, lines), default=0)
        if widest > MAX_COLUMNS:
            yield f"{where}: {widest} columns, at most {MAX_COLUMNS} allowed"
        try:
            tree = ast.parse(python_source(cell))
        except SyntaxError as error:
            yield f"{where}: line {error.lineno}: {error.msg}"
            continue
        for node in ast.walk(tree):
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Raise) else ""
            if re.match(r"(sys\.exit|exit|quit|os\._exit)\(|raise SystemExit", text):
                yield f"{where}: `{text}` ends the run unseen"
            if is_shell(node) and "setup" not in anatomy.tags(cell):
                yield f"{where}: a shell line outside the setup cell"


def is_shell(node: ast.AST) -> bool:
    """Whether a node of the transformed source runs a shell command: `!x`, `%pip`, `%%bash`."""
    match node:
        case ast.Call(ast.Attribute(ast.Call(ast.Name("get_ipython")), method), arguments):
            first = arguments[0].value if isinstance(arguments[0], ast.Constant) else ""
            return method in ("system", "getoutput") or first in SHELL_MAGICS
    return False


def names(nb: Any, path: Path) -> Iterator[str]:
    """Names used before they are defined, unused imports and the like, over all code cells."""
    lines: list[str] = []
    origin: list[tuple[str, int]] = []  # of each line: the cell it comes from, and its line there
    for where, cell in numbered(nb, "code"):
        source = python_source(cell).rstrip("\n").split("\n")
        lines += source
        origin += [(where, number) for number in range(1, len(source) + 1)]
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "lesson.py"
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache"]
        command += ["--select=F", "--output-format=json"]
        command += ["--config", 'builtins = ["get_ipython", "display"]', str(script)]
        answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode not in (0, 1):
        raise RuntimeError(f"ruff did not run: {answer.stderr.strip()}; install the extra 'test'")
    for finding in json.loads(answer.stdout):
        if finding["code"] != "invalid-syntax":  # told per cell already
            where, line = origin[min(finding["location"]["row"], len(origin)) - 1]
            yield f"{where}: line {line}: {finding['message']} ({finding['code']})"


def outputs(nb: Any, path: Path) -> Iterator[str]:
    """Stored outputs repeat themselves: no counts, no stderr, no errors, no addresses or paths."""
    for where, cell in numbered(nb, "code"):
        if cell.execution_count is not None:
            yield f"{where}: an execution count is stored"
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"{where}: {output.get('name', 'an error')} is stored"
            data = output.get("data", {})
            texts = [
                output.get("text", ""),
                *(data.get(f"text/{kind}", "") for kind in ("plain", "html")),
            ]
            for pattern, what in (
                (ADDRESS, "a memory address"),
                (MACHINE_PATH, "a path of a machine"),
            ):
                if found := pattern.search("\n".join(texts)):
                    yield f"{where}: the output shows {what} (`{found[0].strip()}`)"


def sections(nb: Any, path: Path) -> Iterator[str]:
    """Title with badge, claim, header table, the known headings, each where a lesson has it."""
    first = nb.cells[0].source if nb.cells and nb.cells[0].cell_type == "markdown" else ""
    if not first.startswith("# "):
        yield "the first cell does not begin with the title (`# …`)"
    if badge(path) not in first:
        yield f"the first cell lacks the badge {badge(path)}"
    before, measured = "", False
    for cell in nb.cells:
        if "parameters" in anatomy.tags(cell):
            break
        if cell.cell_type == "markdown":
            before += cell.source + "\n\n"
            measured = measured or "measured" in anatomy.tags(cell)
    if "you will have shown that" not in before.lower():
        yield 'no sentence "You will have shown that …" stands before the parameters cell'
    if not measured:
        yield "no Markdown cell tagged 'measured' stands before the parameters cell"
    for name in HEADINGS[:2]:
        if not re.search(rf"^#+ .*{name}", before, re.MULTILINE | re.IGNORECASE):
            yield f"no heading with '{name}' stands before the parameters cell"
    headings = re.findall(r"^#+ .+$", markdown(nb), re.MULTILINE)
    places = []
    for name in HEADINGS:
        found = [place for place, heading in enumerate(headings) if name in heading.lower()]
        if len(found) != 1:
            yield f"{len(found)} headings contain '{name}', expected one"
        places += found[:1]
    if places != sorted(places):
        yield f"the headings are not in the order {', '.join(HEADINGS)}"
    if "<details" not in markdown(nb):
        yield "no folded answers (`<details>`)"


def exercises(nb: Any, path: Path) -> Iterator[str]:
    """Each exercise is a header, a stub with its check, a folded solution; numbered from 1."""
    headers = [i for i, cell in enumerate(nb.cells) if cell.source.startswith(EXERCISE)]
    for number, i in enumerate(headers, start=1):
        found = HEADER.match(nb.cells[i].source)
        if not found or int(found[1]) != number:
            yield (
                f"cell {i + 1}: expected `{EXERCISE} {number} · Title`, a line "
                "`difficulty ●○○ · 5 minutes`, and the task"
            )
        stub, solution = [*nb.cells[i + 1 : i + 3], None, None][:2]
        if not stub or "exercise" not in anatomy.tags(stub):
            yield f"cell {i + 2}: expected the exercise's code, tagged 'exercise'"
        elif not checked_function(stub.source):
            yield f"cell {i + 2}: expected a function, and last `check.name(function)`"
        if not solution or "solution" not in anatomy.tags(solution):
            yield f"cell {i + 3}: expected the folded solution, tagged 'solution'"
        elif not SOLUTION.fullmatch(solution.source):
            yield (
                f"cell {i + 3}: expected `<details><summary>Solution</summary>`, one fence of "
                "Python, `</details>`, blank lines between them"
            )
    for tag in ("exercise", "solution"):
        count = len(anatomy.tagged(nb, tag))
        if count != len(headers):
            yield f"{count} cells are tagged '{tag}', for {len(headers)} exercise headers"


def checked_function(source: str) -> tuple[str, str] | None:
    """(name, function) of a cell that defines a function and ends in `check.name(function)`."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # told of every code cell
        return None
    match body[-1:]:
        case [ast.Expr(ast.Call(ast.Attribute(ast.Name("check"), name), [ast.Name(function)], []))]:
            defined = [node.name for node in body if isinstance(node, ast.FunctionDef)]
            return (name, function) if function in defined else None
    return None


def prose(nb: Any, path: Path) -> Iterator[str]:
    """The number of words, without exercises, folded text, code, formulas, targets and HTML; and
    numbers that a wrapped line has made into those of a list.
    """
    cells = [cell.source for _, cell in numbered(nb, "markdown")]
    text = "\n\n".join(source for source in cells if not source.startswith(EXERCISE))
    folded = r"<details.*?</details>|```.*?```|\$\$.*?\$\$"
    text = re.sub(folded, " ", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|\$[^$\n]*\$|\]\([^)]*\)|<[^>]*>", " ", text)
    count = len(re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text))
    if not WORDS[0] <= count <= WORDS[1]:
        yield f"{count} words of prose, expected {WORDS[0]} to {WORDS[1]}"
    for place, cell in numbered(nb, "markdown"):
        numbers = [0]  # that began a line
        for found in re.finditer(r"^ *(\d+)\. .*", cell.source, flags=re.MULTILINE):
            if int(found[1]) not in (1, numbers[-1] + 1):
                yield f"{place}: `{found[0].strip()[:30]}` begins a line and is shown as a list"
            numbers.append(int(found[1]))


def links(nb: Any, path: Path) -> Iterator[str]:
    """Badges lead to this notebook, relative links to files, and both neighbours are linked.

    The setup cell installs from the same repository as the badge opens.
    """
    for cell in anatomy.tagged(nb, "setup"):
        if f"github.com/{REPOSITORY}" not in cell.source:
            yield f"the setup cell does not install from github.com/{REPOSITORY}"
    targets = re.findall(r"\]\(<?([^)\s>]+)", markdown(nb))
    for target in targets:
        if "/github/" in target and "colab." in target and f"({target})" not in badge(path):
            yield f"a badge leads to {target}"
        relative = target.partition("#")[0]
        if (
            relative
            and not re.match(r"[a-z]+:", relative)
            and not (path.parent / relative).exists()
        ):
            yield f"the link {target} leads nowhere"
    course = anatomy.lesson_paths(path.parent)
    place = course.index(path) if path in course else 0
    for neighbour in [*course[max(0, place - 1) : place], *course[place + 1 : place + 2]]:
        if neighbour.name not in targets:
            yield f"no link to {neighbour.name}"


def numbered(nb: Any, kind: str) -> Iterator[tuple[str, Any]]:
    """The cells of a kind, each with its place as "cell N", counted from 1 over all cells."""
    for number, cell in enumerate(nb.cells, start=1):
        if cell.cell_type == kind:
            yield f"cell {number}", cell


def markdown(nb: Any) -> str:
    """All Markdown of the notebook."""
    return "\n\n".join(cell.source for _, cell in numbered(nb, "markdown"))


def python_source(cell: Any) -> str:
    """A code cell as Python: magics and shell lines become calls of get_ipython()."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(cell.source)
