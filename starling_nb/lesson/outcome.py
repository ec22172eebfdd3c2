"""How the run of a notebook ended, read from its executed copy."""

import re
from typing import Any

from starling_nb.lesson import anatomy


def diagnose(nb: Any, failure: Exception | None, timeout: float | None) -> str | None:
    """Why the lesson failed, naming the cell; None when every code cell ran to its end.

    papermill calls a notebook that left through `sys.exit(0)` a success, and marks the cells after
    a dead kernel or a time-out as completed: so what it raised and what it wrote are both read.
    """
    cells = [(number, cell) for number, cell in enumerate(anatomy.own_cells(nb), start=1)]
    code = [(number, cell) for number, cell in cells if cell.cell_type == "code"]
    errors = [(number, cell) for number, cell in code if error_output(cell)]
    states = [(number, cell, cell.metadata.get("papermill", {})) for number, cell in code]
    unfinished = [(n, cell) for n, cell, state in states if state.get("status") != "completed"]
    marked = anatomy.tagged(nb, anatomy.ERROR_MARKER)
    if failure is None and not errors and not unfinished and not marked:
        return None
    begun = [(number, cell) for number, cell, state in states if state.get("start_time")]
    if not begun:
        return f"the notebook did not start: {type(failure).__name__}: {plain(str(failure))}"
    number, cell = (errors or unfinished or begun[-1:])[0]
    where = f"cell {number} (`{anatomy.first_line(cell.source)}`)"
    kind = type(failure).__name__
    if kind == "CellTimeoutError":
        return f"{where} timed out: it took more than {timeout:g} s"
    if kind == "DeadKernelError":
        return f"{where}: the kernel died (out of memory?)"
    output = error_output(cell)
    if output is None:
        return f"{where} did not complete: {kind}: {plain(str(failure))}"
    if output.ename == "SystemExit":
        return f"{where} left the notebook with SystemExit: {plain(output.evalue)}"
    return f"{where}: {output.ename}: {plain(output.evalue)}"


def error_output(cell: Any) -> Any:
    """The cell's first error output, or None."""
    outputs = (output for output in cell.get("outputs", ()) if output.output_type == "error")
    return next(outputs, None)


def plain(text: str) -> str:
    """A message without terminal colours, cut to 500 characters."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()[:500]


def slowest_cells(nb: Any) -> list[dict[str, Any]]:
    """The five slowest code cells: number in the source, first line, seconds."""
    timed: list[dict[str, Any]] = [
        {
            "cell": number,
            "first_line": anatomy.first_line(cell.source),
            "seconds": round(cell.metadata.get("papermill", {}).get("duration") or 0.0, 3),
        }
        for number, cell in enumerate(anatomy.own_cells(nb), start=1)
        if cell.cell_type == "code"
    ]
    return sorted(timed, key=lambda cell: -cell["seconds"])[:5]
