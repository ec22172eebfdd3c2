"""Lesson 08: how many components each noise edge keeps, where it is known how many there are.

Twenty components of equal strength in noise, over aspect ratios, strengths and laws of the noise.
Strength 1 is where they begin to be seen in large matrices. The rules were made for entries of one
spread: two kinds of noise keep to that (normal, and Student's with 4 degrees of freedom, which has
outliers), one does not (each row has a spread of its own, log-normal, as weights have).
"""

from typing import Any

import torch
from torch import Tensor

from starling_nb.laser.spectra import METHODS, entry_mad, noise_edge, planted, singular_values

RANK, TRIALS = 20, 10
SHAPES = ((512, 512), (512, 1024), (256, 896), (256, 1024), (128, 1280))
STRENGTHS = (0.0, 1.25, 1.5, 2.0, 4.0)
NOISES = ("normal", "outliers", "uneven rows")


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each shape, noise and strength the number kept by each method, trial by trial."""
    trials, shapes = (1, ((40, 60),)) if profile == "smoke" else (TRIALS, SHAPES)
    found = []
    for shape in shapes:
        for noise in NOISES:
            for strength in STRENGTHS:
                kept: dict[str, list[int]] = {method: [] for method in METHODS}
                for trial in range(trials):
                    for method, count in kept_of(matrix(shape, noise, strength, trial)).items():
                        kept[method].append(count)
                found.append({"shape": shape, "noise": noise, "strength": strength, "kept": kept})
    return {"rank": RANK, "runs": found}


def matrix(shape: tuple[int, int], noise: str, strength: float, trial: int) -> Tensor:
    """Noise of spread 1, whatever its law, with the components in it."""
    generator = torch.Generator().manual_seed(trial)
    if strength == 0:
        weight = torch.randn(shape, generator=generator)
    else:
        weight = planted(shape, min(RANK, *shape), strength, generator)
    if noise == "normal":
        return weight
    generator = torch.Generator().manual_seed(trial)
    normal = torch.randn(shape, generator=generator)  # what `planted` has put in first
    if noise == "uneven rows":
        scale = torch.exp(0.5 * torch.randn(shape[0], 1, generator=generator))
        other = normal * scale / scale.square().mean().sqrt()
    else:
        chi_square = torch.randn(4, *shape, generator=generator).square().sum(0)
        other = normal / (chi_square / 4).sqrt() / 2**0.5  # of variance 1
    return weight - normal + other


def kept_of(weight: Tensor) -> dict[str, int]:
    """How many singular values of a weight lie above each noise edge."""
    values, spread = singular_values(weight), entry_mad(weight)
    rows, columns = weight.shape
    edges = {
        method: noise_edge(values, (rows, columns), method, entry_spread=spread)
        for method in METHODS
    }
    return {method: int((values > edge).sum()) for method, edge in edges.items()}
