"""Singular values of weight matrices, and where among them noise begins."""

import math
from functools import cache

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor


def singular_values(weight: Tensor) -> Tensor:
    """Return the min(n, m) singular values of an (n, m) weight, float64, largest first.

    They are the square roots of the eigenvalues of the Gram matrix of the smaller side: no U and V,
    and only min(n, m)² numbers kept. The square loses half the digits of the smallest: the error
    is below 1e-7 of the largest value. Naive twin: torch.linalg.svdvals. Raises ValueError unless
    weight is a matrix of finite floating-point numbers.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ValueError(
            "weight: expected a matrix of floating-point numbers, found "
            f"{weight.dtype} of shape {tuple(weight.shape)}"
        )
    if weight.is_meta or not weight.isfinite().all():
        raise ValueError("weight: expected finite numbers, found NaN, infinity or no data (meta)")
    wide = weight.detach().double()
    if wide.shape[0] > wide.shape[1]:
        wide = wide.T
    return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().flip(0)


def noise_edge(values: Tensor, shape: tuple[int, int], method: str = "laserrmt") -> float:
    """Return the singular value up to which an (n, m) weight is taken for noise, in its units.

    values: singular values of the weight, (min(n, m),). With b = min/max of n and m:
    "laserrmt" is the published rule IQR(values) / 1.349 * (1 + sqrt b), which takes the spread of
    the singular values for the spread of the entries times sqrt(max) and so keeps a quarter of a
    square noise matrix and nearly all of an oblong one. "median" is the edge of the
    Marchenko-Pastur law, s (sqrt n + sqrt m), with the entries' spread s read off the median
    singular value. Raises ValueError for another method.
    Source: laserRMT, rmt_laser.py; Gavish and Donoho 2014 (arXiv 1305.5870).
    """
    beta = min(shape) / max(shape)
    if method == "laserrmt":
        quarter, three_quarters = values.quantile(values.new_tensor([0.25, 0.75])).tolist()
        return (three_quarters - quarter) / 1.349 * (1 + math.sqrt(beta))
    if method == "median":
        spread = values.quantile(0.5).item() / (math.sqrt(max(shape)) * mp_median(beta))
        return spread * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    raise ValueError(f"method: expected laserrmt or median, found {method!r}")


def snr(values: Tensor, edge: float) -> float:
    """Return the sum of singular values above the edge over the sum of those up to it.

    It is infinite where nothing lies below the edge. Source: laserRMT, rmt_laser_snr.py.
    """
    signal = values > edge
    return (values[signal].sum() / values[~signal].sum()).item()


@cache
def mp_median(beta: float) -> float:
    """Return the median singular value of noise with aspect ratio beta = min/max in (0, 1].

    In units of s sqrt(max), s the standard deviation of the entries. Raises ValueError for another
    beta. Source: Marchenko and Pastur 1967; .8079 at 1, .9571 at .25.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta: expected a ratio in (0, 1], found {beta}")
    low, high = 1 - math.sqrt(beta), 1 + math.sqrt(beta)

    def density(x: float) -> float:
        return math.sqrt(max(0.0, (high**2 - x**2) * (x**2 - low**2))) / (math.pi * beta * x)

    return brentq(lambda x: quad(density, low, x)[0] - 0.5, low, high)
