"""Exercises: a learner's function held against a solution, and its likely mistake told by name."""

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from starling_nb.lesson.claims import CHECK, show

PASSED, WRONG, NOT_ATTEMPTED = "passed", "wrong", "not attempted"
MAX_CHARACTERS = 400  # of an argument or an answer in a message


@dataclass(frozen=True)
class Exercise:
    """A function to write. Calling the exercise with a learner's function tells how it went.

    The answers to all cases are compared with the solution's: texts must be equal, numbers agree
    to `tolerance` relative to the largest expected one, or to 1 when that is smaller. Tensors,
    arrays, lists and plain numbers are all taken for numbers, but floats do not do for a tensor of
    integers or truth values. Where the answers are those of a known mistake, the message names it.
    """

    name: str
    expects: str  # what goes in and comes out, with shapes
    solution: Callable[..., Any]
    cases: Sequence[tuple]  # the arguments of one call each, the smallest first
    mistakes: Mapping[str, Callable[..., Any]]  # a sentence on the cause -> what it computes
    tolerance: float = 1e-6

    def __call__(self, function: Any) -> None:
        """Try a learner's function; show and record how it went. Never raises what it raises."""
        status, message = self.judge(function)
        show(CHECK, {"exercise": self.name, "status": status, "message": message}, message)

    def judge(self, function: Any) -> tuple[str, str]:
        """Status ("passed", "wrong" or "not attempted") and message for a learner's function."""
        if function is not ... and not callable(function):
            return WRONG, f"{self.name}: expected a function, found {describe(function)}"
        found = [] if function is ... else [attempt(function, case) for case in self.cases]
        if not found or found[0] is ... or isinstance(found[0], NotImplementedError):
            later = "the lesson goes on with the package's version"
            return NOT_ATTEMPTED, f"{self.name}: not attempted yet; {later}"
        if found[0] is None:
            return NOT_ATTEMPTED, f"{self.name}: not attempted yet, or a `return` is missing"
        expected = [attempt(self.solution, case) for case in self.cases]
        apart = [difference(a, b) for a, b in zip(found, expected, strict=True)]
        floats = [floats_for_a_type(a, b) for a, b in zip(found, expected, strict=True)]
        wrong = [i for i, gap in enumerate(apart) if gap > self.tolerance or floats[i]]
        if wrong:
            return WRONG, self.explain(found, expected, wrong)
        margin = f"largest difference {max(apart):.1g} (allowed {self.tolerance:.1g})"
        exact = numbers(expected[0]) is None
        return PASSED, f"{self.name}: passed, {len(found)} cases, {'equal' if exact else margin}"

    def explain(self, found: list, expected: list, wrong: list[int]) -> str:
        """What is wrong with the answers: the smallest failing case, and the cause if known."""
        first = wrong[0]
        got, wanted = found[first], expected[first]
        lines = [f"{self.name}: wrong on {len(wrong)} of {len(found)} cases; the smallest:"]
        names = inspect.signature(self.solution).parameters  # the last may have defaults
        for name, value in zip(names, self.cases[first], strict=False):
            lines.append(f"    {name} = {text(value)}")
        if isinstance(got, Exception):
            lines += [f"  expected  {text(wanted)}", f"  raised    {type(got).__name__}: {got}"]
        elif describe(got) != describe(wanted):
            lines.append(f"  expected  {describe(wanted)}: {text(wanted)}")
            lines.append(f"  found     {describe(got)}: {text(got)}")
        else:
            lines += [f"  expected  {text(wanted)}", f"  found     {text(got)}"]
        cause = self.cause(found)
        if not cause and max(map(difference, found, expected)) <= self.tolerance:
            cause = f"the numbers are right, but floats: {wanted.dtype} is asked for"
        lines.append(f"Likely cause: {cause}." if cause else f"The task: {self.expects}.")
        return "\n".join(lines)

    def cause(self, found: list) -> str | None:
        """The known mistake that gives these answers to all cases, or None."""
        for cause, mistake in self.mistakes.items():
            made = (attempt(mistake, case) for case in self.cases)
            if all(difference(a, b) <= self.tolerance for a, b in zip(found, made, strict=True)):
                return cause
        return None


def vector(*values: float) -> Tensor:
    """A float64 vector, for the cases of exercises."""
    return torch.tensor(values, dtype=torch.float64)


def attempt(function: Callable[..., Any], case: tuple) -> Any:
    """The answer to a copy of a case, or the exception raised instead; warnings are kept quiet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*copy.deepcopy(case))
    except Exception as error:
        return error


def difference(found: Any, expected: Any) -> float:
    """How far two answers are apart, relative to max(1, largest expected); inf if not of a kind.

    Two answers that are both broken (raised, or not finite) count as the same: where math.exp
    raises, torch.exp gives inf, and what becomes of that is inf or nan.
    """
    if broken(found) or broken(expected):
        return 0.0 if broken(found) and broken(expected) else math.inf
    a, b = numbers(found), numbers(expected)
    if a is None or b is None:
        same = a is None and b is None and plain(found) == plain(expected)
        return 0.0 if same else math.inf
    if a.shape != b.shape:
        return math.inf
    return float(np.abs(a - b).max(initial=0) / np.abs(b).max(initial=1))


def floats_for_a_type(found: Any, expected: Any) -> bool:
    """Whether floats stand where a tensor of integers or truth values is expected."""
    tensor = hasattr(expected, "detach") and not expected.is_floating_point()
    return tensor and "float" in str(getattr(found, "dtype", ""))


def broken(answer: Any) -> bool:
    """Whether an answer is an exception, or numbers of which one is not finite."""
    found = numbers(answer)
    return isinstance(answer, Exception) or (found is not None and not np.isfinite(found).all())


def numbers(answer: Any) -> np.ndarray | None:
    """An answer as a float64 array; None for what are no numbers: text, pairs of text, a dict."""
    try:
        if isinstance(answer, Tensor):
            answer = answer.detach().cpu()
            answer = answer if answer.is_complex() else answer.double()
        array = np.asarray(answer)
        return array.astype(float) if array.dtype.kind in "biufO" else None
    except (TypeError, ValueError, RuntimeError):
        return None


def plain(answer: Any) -> Any:
    """An answer with every list and array in it as a tuple, so that pairs may be lists too."""
    if isinstance(answer, np.ndarray):
        answer = answer.tolist()
    return tuple(map(plain, answer)) if isinstance(answer, list | tuple) else answer


def describe(answer: Any) -> str:
    """What kind of thing an answer is: "a number", "numbers of shape (3,)", "a str"."""
    found = numbers(answer)
    if found is None:
        return "a list" if isinstance(answer, list | tuple) else f"a {type(answer).__name__}"
    return f"numbers of shape {found.shape}" if found.shape else "a number"


def text(value: Any) -> str:
    """A value as a message shows it: numbers in seven digits, text quoted, long ones cut."""
    found = numbers(value)
    if found is None:
        shown = repr(value)
    elif not found.shape:
        shown = f"{found:.7g}"
    else:
        rows = np.array2string(found, separator=", ", formatter={"float": lambda x: f"{x:.7g}"})
        shown = " ".join(rows.split())
    return shown if len(shown) <= MAX_CHARACTERS else shown[: MAX_CHARACTERS - 1] + "…"
