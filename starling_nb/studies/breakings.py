"""Lesson 04: how the error of a linear reward falls with the number of lists, for every breaking.

Lists of seven answers, features φ ~ N(0, I₃), a new θ* ~ N(0, I₃) in every trial, rankings drawn
from Plackett–Luce. Each estimator sees the same rankings. ‖θ‖ is held below RADIUS: best against
worst has no maximum where its few pairs can all be ordered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from starling_nb.reward.linear import mle_2, mle_k, sample_rankings

K, D, RADIUS = 7, 3, 15.0
TRIALS = {50: 200, 200: 200, 1000: 100, 5000: 100, 20_000: 40}  # number of lists -> trials
ESTIMATORS: dict[str, Callable[..., torch.Tensor]] = {
    "K-wise": mle_k,
    "all pairs": partial(mle_2, breaking="full"),
    "best against rest": partial(mle_2, breaking="best_vs_rest"),
    "neighbours": partial(mle_2, breaking="adjacent"),
    "best against second": partial(mle_2, breaking="best_vs_second"),
    "rest against worst": partial(mle_2, breaking="rest_vs_worst"),
    "best against worst": partial(mle_2, breaking="best_vs_worst"),
}


def measure(profile: str, store: str) -> dict[str, Any]:
    """Quartiles of ‖θ̂ − θ*‖, of ‖θ̂‖/‖θ*‖ and of the cosine, by estimator and number of lists."""
    trials = TRIALS if profile != "smoke" else dict.fromkeys(TRIALS, 2)
    found: dict[str, Any] = {name: {} for name in ESTIMATORS}
    for n, count in trials.items():
        generator = torch.Generator().manual_seed(n)
        theta = torch.randn(count, D, dtype=torch.float64, generator=generator)
        features = torch.randn(count, n, K, D, dtype=torch.float64, generator=generator)
        ranked = sample_rankings(features, theta, generator)
        for name, estimator in ESTIMATORS.items():
            estimate = estimator(ranked, radius=RADIUS)
            found[name][str(n)] = {
                "error": quartiles((estimate - theta).norm(dim=-1)),
                "length": quartiles(estimate.norm(dim=-1) / theta.norm(dim=-1)),
                "cosine": quartiles(torch.cosine_similarity(estimate, theta, dim=-1)),
            }
    return {"trials": {str(n): count for n, count in trials.items()}, "estimators": found}


def quartiles(values: torch.Tensor) -> list[float]:
    """The 25 %, 50 % and 75 % quantile of (trials,)."""
    return values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
