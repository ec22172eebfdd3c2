"""Singular values of weight matrices, and where among them noise begins."""

import math
from functools import cache

import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

BLOCK = 1024  # columns, and rows, of a weight that are multiplied at a time
METHODS = ("laserrmt", "median", "gavish_donoho", "entry_mad")  # of `noise_edge`


def singular_values(weight: Tensor) -> Tensor:
    """Return the min(n, m) singular values of an (n, m) weight, float64, largest first.

    They are the square roots of the eigenvalues of the Gram matrix of the smaller side: no U and V,
    and only min(n, m)² numbers kept. The square loses half the digits of the smallest: the error
    is below 1e-7 of the largest value. Naive twin: torch.linalg.svdvals. Raises ValueError unless
    weight is a matrix of finite floating-point numbers.
    """
    check_matrix(weight)
    return torch.linalg.eigvalsh(gram(weight.detach())).clamp(min=0).sqrt().flip(0)


def check_matrix(weight: Tensor) -> None:
    """Raise ValueError unless weight is a matrix of finite floating-point numbers, not empty."""
    if weight.ndim != 2 or not weight.numel() or not weight.is_floating_point():
        raise ValueError(
            "weight: expected a matrix of floating-point numbers, found "
            f"{weight.dtype} of shape {tuple(weight.shape)}"
        )
    if weight.is_meta or not weight.isfinite().all():
        raise ValueError("weight: expected finite numbers, found NaN, infinity or no data (meta)")


def gram(weight: Tensor) -> Tensor:
    """The Gram matrix (d, d) of the smaller side, d = min(n, m), in float64, and of it what lies
    below the diagonal and in the blocks on it, which is what `eigvalsh` reads.

    So many columns at a time are taken to float64: a copy of all would be twice a float32 weight.
    """
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T  # (d, m)
    size = len(wide)
    products = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
    for columns in wide.split(BLOCK, dim=1):
        part = columns.double()
        for end in range(BLOCK, size + BLOCK, BLOCK):
            rows = slice(end - BLOCK, end)
            products[rows, :end].addmm_(part[rows], part[:end].T)
    return products


def noise_edge(
    values: Tensor,
    shape: tuple[int, int],
    method: str = "laserrmt",
    *,
    entry_spread: float | None = None,
) -> float:
    """Return the singular value up to which an (n, m) weight is taken for noise, in its units.

    values: singular values of the weight, (min(n, m),). With b = min/max of n and m:
    "laserrmt" is the published rule IQR(values) / 1.349 * (1 + sqrt b), which takes the spread of
    the singular values for the spread of the entries times sqrt(max) and so keeps a quarter of a
    square noise matrix and nearly all of an oblong one.
    "median" is the edge of the Marchenko-Pastur law, s (sqrt n + sqrt m), where the entries' spread
    s is read off the median singular value.
    "entry_mad" is the same edge for s = entry_spread, which `entry_mad` reads off the entries.
    "gavish_donoho" is the threshold above which keeping a component lowers the squared error of
    the whole, for the s of "median": w(b) times the median.
    Raises ValueError for another method, and for "entry_mad" without entry_spread.
    Source: laserRMT, rmt_laser.py; Gavish and Donoho 2014 (arXiv 1305.5870).
    """
    beta = min(shape) / max(shape)
    if method == "laserrmt":
        quarter, three_quarters = values.quantile(values.new_tensor([0.25, 0.75])).tolist()
        return (three_quarters - quarter) / 1.349 * (1 + math.sqrt(beta))
    if method == "entry_mad":
        if entry_spread is None:
            raise ValueError("entry_spread: expected entry_mad(weight), found None")
        return entry_spread * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    unit = values.quantile(0.5).item() / mp_median(beta)  # s sqrt(max)
    if method == "median":
        return unit * mp_edge(beta)
    if method == "gavish_donoho":
        return unit * math.sqrt(
            2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
        )
    raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {method!r}")


def entry_mad(weight: Tensor) -> float:
    """Return the spread of a weight's entries: their median absolute value over that of N(0, 1).

    Few large entries do not move it; a component spread over all entries does.
    """
    return weight.detach().abs().flatten().float().median().item() / 0.674490


def snr(values: Tensor, edge: float) -> float:
    """Return the sum of singular values above the edge over the sum of those up to it.

    It is infinite where nothing lies below the edge, and 0 where nothing lies above.
    Source: laserRMT, rmt_laser_snr.py.
    """
    signal = values > edge
    return (values[signal].sum() / values[~signal].sum()).item() if signal.any() else 0.0


def spectrum_score(values: Tensor, edge: float) -> float:
    """Return `snr` over the largest singular value, by which Spectrum ranks layers.

    A weight multiplied by c has the score divided by c, and the same SNR. Where nothing lies below
    the edge it is infinite, as in the scores published for models; newer code sets the noise to 1.
    Source: Spectrum, spectrum.py (arXiv 2406.06623).
    """
    return snr(values, edge) / values[0].item() if values[0] > 0 else 0.0


def planted(
    shape: tuple[int, int],
    rank: int,
    strength: float,
    generator: torch.Generator,
    spread: float = 1.0,
) -> Tensor:
    """Return an (n, m) matrix, float32: noise of the given spread and `rank` components in it.

    Their singular values are strength * spread * (n m)^(1/4); in the limit of large matrices those
    of strength up to 1 cannot be told from noise. Source: Benaych-Georges and Nadakuditi 2012
    (arXiv 1103.2221), section 3.1.
    """
    noise = torch.randn(shape, generator=generator)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=generator))[0] for n in shape)
    return spread * (noise + strength * math.prod(shape) ** 0.25 * left @ right.T)


def mp_edge(beta: float) -> float:
    """Return the largest singular value 1 + sqrt(beta) of noise, in units of s sqrt(max)."""
    return 1 + math.sqrt(beta)


def mp_density(x: float, beta: float) -> float:
    """Return the density at x of the singular values of noise, beta = min/max in (0, 1].

    x is in units of s sqrt(max), s the standard deviation of the entries; all of it lies on
    1 ± sqrt(beta). Source: Marchenko and Pastur 1967, for the root of their variable.
    """
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    inside = (high - x**2) * (x**2 - low)
    return math.sqrt(inside) / (math.pi * beta * x) if x > 0 and inside > 0 else 0.0


@cache
def mp_median(beta: float) -> float:
    """Return the median singular value of noise with aspect ratio beta = min/max in (0, 1].

    In units of s sqrt(max), s the standard deviation of the entries. Raises ValueError for another
    beta. Source: Marchenko and Pastur 1967; .8079 at 1, .9571 at .25.
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta: expected a ratio in (0, 1], found {beta}")
    low, high = 1 - math.sqrt(beta), mp_edge(beta)
    return brentq(lambda x: quad(mp_density, low, x, args=(beta,))[0] - 0.5, low, high)
