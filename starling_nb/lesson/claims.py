"""Findings and checks: lessons put them into their cells' outputs, runs and tests read them there.

An output holds the text for the reader and, under a type of its own, the record as JSON. So plain
papermill, JupyterLab and the runner keep the same things, in the notebook itself.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

FINDING = "application/vnd.starling.finding+json"
CHECK = "application/vnd.starling.check+json"
Bound = tuple[float | None, float | None]


def finding(
    question: str,
    value: float,
    interval: Sequence[float],
    *,
    control: str,
    n: int,
    bound: Bound,
) -> None:
    """Record and show a measured answer to a question that was fixed before it was measured.

    interval: (low, high), 95 % unless the question says otherwise; infinite at both ends for a
    single seed.  control: what else could have given the value, and what that gave.  n: the
    sample's size.  bound: (low, high) in which the value is to lie, None for an open end; `judge`
    compares.  Raises ValueError for an empty question or control, a number that is not finite, an
    interval without the value, a sample without members, and a bound that is open at both ends or
    empty.
    """
    for name, text in (("question", question), ("control", control)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"finding, {name}: expected a sentence, found {text!r}")
    where = f"finding {question!r}"
    if len(interval) != 2 or len(bound) != 2:
        raise ValueError(f"{where}: expected (low, high), found {interval!r} and {bound!r}")
    value, low, high = (float(x) for x in (value, *interval))
    ends = [None if end is None else float(end) for end in bound]
    unknown = n == 1 and (low, high) == (-math.inf, math.inf)
    numbers = [value, *(() if unknown else (low, high)), *(end for end in ends if end is not None)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"{where}: expected finite numbers, found {numbers}")
    if not low <= value <= high:
        raise ValueError(f"{where}: the interval {low:g} to {high:g} does not hold {value:g}")
    if int(n) != n or n < 1:
        raise ValueError(f"{where}, n: expected the number of items measured, found {n!r}")
    if ends == [None, None] or (None not in ends and ends[0] > ends[1]):  # type: ignore[operator]
        raise ValueError(f"{where}, bound: expected (low, high), one end may be None, found {ends}")
    record = {"question": question, "value": value}
    record |= {"low": None, "high": None} if unknown else {"low": low, "high": high}
    record |= {"control": control, "n": int(n), "bound": ends}
    show(FINDING, record, sentence(record))


def sentence(record: dict[str, Any]) -> str:
    """A finding in two lines, in as many decimals as make its half interval two digits."""
    return (
        f"{record['question']}: {measured(record)}, n = {record['n']}\n"
        f"    control: {record['control']}; bound: {limits(record['bound'])}"
    )


def measured(record: dict[str, Any]) -> str:
    """A finding's value and interval: "+0.73 [+0.62, +0.84]"."""
    if record["low"] is None:
        return f"{record['value']:+.3f} [no interval]"
    half = (record["high"] - record["low"]) / 2
    decimals = 1 - math.floor(math.log10(half)) if half else 3
    decimals = min(max(decimals, 0), 6)
    value, low, high = (f"{record[name]:+.{decimals}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def limits(bound: Sequence[float | None]) -> str:
    """A finding's bound in words: "at least 0.3"."""
    low, high = bound
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"


def judge(record: dict[str, Any]) -> str | None:
    """Why a finding's value does not hold its bound; None when it does. The ends belong to it."""
    low, high = record["bound"]
    inside = (low is None or low <= record["value"]) and (high is None or record["value"] <= high)
    return None if inside else f"{record['value']:+.4g} is not {limits(record['bound'])}"


def is_judged(manifest: dict[str, Any]) -> bool:
    """Whether a run's findings mean anything: those of the profile `smoke` do not."""
    return manifest["profile"] != "smoke"


def tally(manifest: dict[str, Any]) -> str:
    """How many of a lesson's findings hold: "4 findings hold, 1 does not"; "" without any."""
    faults = [judge(record) for record in manifest["findings"]]
    if not faults:
        return ""
    if not is_judged(manifest):
        return f"{counted(len(faults), 'finding')}, not judged on profile {manifest['profile']}"
    held, lost = faults.count(None), len(faults) - faults.count(None)
    told = f"{counted(held, 'finding')} hold{'s' * (held == 1)}"
    return f"{told}, {lost} do{'es' * (lost == 1)} not" if lost else told


def counted(number: int, noun: str) -> str:
    """ "1 finding", "2 findings"."""
    return f"{number} {noun}{'s' * (number != 1)}"


def repeated(records: Sequence[dict[str, Any]]) -> str | None:
    """Why these findings of one lesson cannot be told apart; None when each asks something else."""
    ((question, times),) = Counter(r["question"] for r in records).most_common(1) or [("", 0)]
    if times < 2:
        return None
    return f"{times} findings ask {question!r}: give each a question of its own"


def recorded(nb: Any, kind: str) -> list[dict[str, Any]]:
    """The records of a kind, FINDING or CHECK, in a notebook's outputs, in order."""
    outputs = (output for cell in nb.cells for output in cell.get("outputs", ()))
    return [dict(output.data[kind]) for output in outputs if kind in output.get("data", {})]


def show(kind: str, record: dict[str, Any], text: str) -> None:
    """Put a record into the cell's outputs, with the text a reader sees; print that elsewhere."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(text)
    else:
        display({"text/plain": text, kind: record}, raw=True)
