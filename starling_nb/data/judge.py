"""Judges rank answers: the protocol they all keep, and a simulated judge with dials."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class Judge(Protocol):
    """Whoever ranks answers: a simulation, an endpoint, a person. Subclasses inherit `compare`."""

    def rank(self, prompt: str, answers: Sequence[str], *, generator: random.Random) -> list[int]:
        """Indices of `answers`, best first; an index is also the place in which it was shown."""
        ...

    def compare(
        self, prompt: str, a: str, b: str, *, generator: random.Random
    ) -> Literal["a", "b", "tie"]:
        """ "a", "b", or "tie" when the two texts are the same; `a` is shown first."""
        if a == b:
            return "tie"
        return "a" if self.rank(prompt, [a, b], generator=generator)[0] == 0 else "b"


@dataclass(frozen=True)
class PlackettLuceJudge(Judge):
    """Ranks by drawing from a Plackett-Luce model of score / tau (Luce 1959, Plackett 1975).

    score = gold utility + length * min(words, 40) + bullet * [the answer starts with "* "],
    and in a list less position * (the number of answers shown before it).
    `utility(prompt, answer) -> float` is the true worth; `tau` is the noise, in units of utility.
    """

    utility: Callable[[str, str], float]
    tau: float = 0.5
    length: float = 0.02  # utility per word
    bullet: float = 0.0
    position: float = 0.0  # utility lost with each place further down the list

    def score(self, prompt: str, answer: str) -> float:
        """What the judge believes the answer is worth, in units of its own noise; shown first."""
        words = min(len(answer.split()), 40)
        liked = self.length * words + self.bullet * answer.startswith("* ")
        return (self.utility(prompt, answer) + liked) / self.tau

    def rank(self, prompt: str, answers: Sequence[str], *, generator: random.Random) -> list[int]:
        """Indices of `answers`, best first: sorting score + Gumbel noise draws Plackett-Luce."""
        tilt = self.position / self.tau
        noisy = [
            self.score(prompt, a) - tilt * place - math.log(-math.log(_open(generator)))
            for place, a in enumerate(answers)
        ]
        return sorted(range(len(answers)), key=lambda i: -noisy[i])

    def probability(self, prompt: str, a: str, b: str) -> float:
        """The chance that `a` is ranked above `b`, in any list (Luce's choice axiom).

        `position` is left out. With that dial turned the chance depends on the two places; its mean
        over random places is nearer to one half.
        """
        ahead = self.score(prompt, a) - self.score(prompt, b)
        return 0.5 * (1 + math.tanh(ahead / 2))  # 1 / (1 + exp(-ahead)), which can overflow


def _open(generator: random.Random) -> float:
    """A uniform draw from the open interval (0, 1)."""
    while not (u := generator.random()):
        pass
    return u
