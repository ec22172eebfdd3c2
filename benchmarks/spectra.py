"""Spectra and factored products at the shapes of a 7B model, on one machine, as ratios.

First, for each shape, seconds of `singular_values` against those of float32 `svdvals` and of the
float64 decomposition with both sides of vectors that laserRMT computes, after checking that all
keep the same number of components above every noise edge; and the peak memory of ours, over that of
a float32 copy of the matrix. The weights are bfloat16, noise with 64 planted components.
Then products of 256 tokens with a weight at rank rho * min(n, m): seconds of the factored form over
those of the dense one, beside the ratio of operations.
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starling_nb.laser.reduce import rank_of
from starling_nb.laser.spectra import METHODS, entry_mad, noise_edge, planted, singular_values

SHAPES = ((1024, 4096), (4096, 4096), (4096, 14336))  # k and v; q and o; gate, up and down
RHOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.01)
TOKENS, REPEATS = 256, 5


def timed(part: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it returned."""
    start = time.perf_counter()
    found = part()
    return time.perf_counter() - start, found


def make_weight(shape: tuple[int, int]) -> Tensor:
    """A weight as a checkpoint holds it."""
    return planted(shape, 64, 3.0, torch.Generator().manual_seed(0), spread=0.02).bfloat16()


def kept(values: Tensor, weight: Tensor) -> list[int]:
    """How many values lie above each noise edge."""
    spread = entry_mad(weight)
    edges = [
        noise_edge(values.double(), tuple(weight.shape), m, entry_spread=spread) for m in METHODS
    ]
    return [int((values > edge).sum()) for edge in edges]


def peak_bytes() -> int:
    """The process's largest resident memory so far, on Linux."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def peak(shape: tuple[int, int], results: Any) -> None:
    """The most memory of `singular_values`, the weight's included, in float32 copies of it."""
    singular_values(torch.randn(64, 64))  # loads what it needs
    before = peak_bytes()
    weight = torch.full(shape, 0.02, dtype=torch.bfloat16)
    weight[:, ::3] = 0.01
    singular_values(weight)
    results.put((peak_bytes() - before) / (4 * weight.numel()))


def compare_products(shape: tuple[int, int]) -> None:
    """Print seconds and operations of factored over dense, by rho."""
    rows, columns = shape
    x = torch.randn(TOKENS, columns)
    dense = nn.Linear(columns, rows, bias=False)
    for rho in RHOS:
        rank = rank_of(rho, shape)
        thin = nn.Sequential(
            nn.Linear(columns, rank, bias=False), nn.Linear(rank, rows, bias=False)
        )
        seconds: dict[str, float] = {}
        for name, layer in (("dense", dense), ("thin", thin)) * REPEATS:
            seconds[name] = min(seconds.get(name, 9.0), timed(lambda f=layer: f(x))[0])
        operations = rank * (rows + columns) / (rows * columns)
        ratio = seconds["thin"] / seconds["dense"]
        print(f"  rho {rho:4}  rank {rank:4}   seconds {ratio:5.2f}   operations {operations:5.2f}")


@torch.no_grad()
def main() -> None:
    spawn = multiprocessing.get_context("spawn")
    for shape in SHAPES:
        weight = make_weight(shape)
        mine, values = timed(lambda w=weight: singular_values(w))
        single, of_single = timed(lambda w=weight: torch.linalg.svdvals(w.float()))
        double, whole = timed(lambda w=weight: torch.linalg.svd(w.double(), full_matrices=False))
        assert kept(values, weight) == kept(of_single, weight) == kept(whole[1], weight)
        results = spawn.Queue()
        process = spawn.Process(target=peak, args=(shape, results))
        process.start()
        copies = results.get()
        process.join()
        print(
            f"{shape[0]} x {shape[1]}: {mine:.2f} s; svdvals in float32 {single / mine:.1f} times"
            f" as long, decomposition in float64 {double / mine:.1f}; peak {copies:.2f} copies",
            flush=True,
        )
    for shape in SHAPES:
        print(f"{shape[0]} x {shape[1]}, {TOKENS} tokens: factored over dense")
        compare_products(shape)


if __name__ == "__main__":
    main()
