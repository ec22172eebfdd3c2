"""Small lessons, good and bad, that tests build in temporary folders."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from starling_nb.lesson.lint import REPOSITORY, badge

PARAMETERS = """\
profile: str = "cpu"  # where to run
seed: int = 0  # of every generator
store: str = "store"  # folder of trained stages"""
HEAD = "# A lesson about $x^2$\n\nYou will have shown that $1 + 1$ is **two**."
SETUP = (
    f"# does nothing outside Colab\nSOURCE = 'git+https://github.com/{REPOSITORY}'\nprint(SOURCE)"
)


def code(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def lesson(*cells, parameters=PARAMETERS, head=HEAD):
    """A notebook with a heading, a parameters cell and these cells (text stands for code)."""
    nb = new_notebook(cells=[new_markdown_cell(head), code(parameters, "parameters")])
    nb.cells += [code(cell) if isinstance(cell, str) else cell for cell in cells]
    for number, cell in enumerate(nb.cells):
        cell.id = f"cell-{number}"  # else random, and two builds of one lesson would differ
    nb.metadata.update(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"},
        language_info={"name": "python"},
    )
    return nb


def save(nb, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, path)
    return path


def whole_lesson(path: Path):
    """A lesson with every part that the lint asks for, and nothing to find fault with."""
    prose = " ".join(["A word about rewards and rankings follows another."] * 140)
    head = f"# A lesson about $x^2$\n\n{badge(path)}\n\nYou will have shown that rewards rank."
    parts = [
        new_markdown_cell("to be measured", metadata={"tags": ["measured"]}),
        new_markdown_cell("## Objectives\n\nCheck it.\n\n## Prerequisites\n\nNone."),
        code(PARAMETERS, "parameters"),
        code(SETUP, "setup"),
        new_markdown_cell(prose),
        code("scores = [3, 2, 1]\nprint(scores, seed)"),
        code("import matplotlib.pyplot as plt\n\nplt.plot(scores);", "signature"),
        new_markdown_cell(
            "## What it does and does not say about the 7B run\n\nNothing.\n\n## Pitfalls\n\nNone."
            "\n\n## Recap\n\nDone.\n\n## Questionnaire\n\n1. Why?\n\n<details>Because.</details>"
            "\n\n## References\n\nNone."
        ),
    ]
    nb = lesson(head=head)
    nb.cells = [nb.cells[0], *parts]
    for number, cell in enumerate(nb.cells):
        cell.id = f"cell-{number}"
    return nb


def exercise(
    number=1,
    name="chi_square",
    stub="def my_function(*arguments):\n    return ...",
    solution="def my_function(counts):\n    return 0",
):
    """The cells of an exercise: header, stub with its check, folded solution."""
    header = f"### Exercise {number} · A title\n\ndifficulty ●○○ · 5 minutes\n\nWrite it."
    folded = f"<details><summary>Solution</summary>\n\n```python\n{solution}\n```\n\n</details>"
    return [
        new_markdown_cell(header),
        code(f"{stub}\n\n\ncheck.{name}(my_function)", "exercise"),
        new_markdown_cell(folded, metadata={"tags": ["solution"]}),
    ]
