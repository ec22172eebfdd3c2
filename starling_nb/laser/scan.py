"""The spectra of a model's matrices, or of a checkpoint's without loading it, and their scores.

`python -m starling_nb.laser.scan CHECKPOINT OUT` writes a line of JSON for each matrix into OUT.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from starling_nb.device import progress
from starling_nb.laser.spectra import (
    METHODS,
    entry_mad,
    noise_edge,
    singular_values,
    snr,
    spectrum_score,
)
from starling_nb.reward.checkpoints import checkpoint_folder, read_weights

START = b'{"name": "'  # of a line of the file
QUANTISED = (torch.int8, torch.uint8, torch.int32)  # and every float of one byte


@dataclass(frozen=True)
class Spectrum:
    """What is kept of an (n, m) weight."""

    name: str
    shape: tuple[int, int]
    values: Tensor  # (min(n, m),) float64, singular values, largest first
    spread: float  # `entry_mad` of its entries

    def edge(self, method: str) -> float:
        """`noise_edge` of this weight."""
        return noise_edge(self.values, self.shape, method, entry_spread=self.spread)


def measure(name: str, weight: Tensor) -> Spectrum:
    """The spectrum of a matrix; ValueError, naming it, for what `singular_values` refuses."""
    try:
        values = singular_values(weight)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    rows, columns = weight.shape
    return Spectrum(name, (rows, columns), values, entry_mad(weight))


def scores(spectra: Iterable[Spectrum], method: str = "laserrmt") -> dict[str, dict[str, float]]:
    """For each weight: its edge, how many values are kept above it, SNR and Spectrum's score."""
    found = {}
    for spectrum in spectra:
        edge = spectrum.edge(method)
        found[spectrum.name] = {
            "edge": edge,
            "kept": int((spectrum.values > edge).sum()),
            "snr": snr(spectrum.values, edge),
            "spectrum": spectrum_score(spectrum.values, edge),
        }
    return found


def scan(
    source: str | Path, out: Path, wanted: Callable[[str], bool] = lambda name: True, **hub: Any
) -> list[Spectrum]:
    """Measure the matrices of a checkpoint, one in memory at a time, and keep each in a file.

    source: a folder, or a repository of the Hub, fetched as in `checkpoint_folder`.  wanted: which
    weights, by name.  out: JSON lines; a scan that was stopped goes on behind the last whole line.
    Raises FileNotFoundError for a missing shard, and ValueError for a checkpoint without matrices,
    for a quantised or not finite one (by name; what was measured before it stays in `out`), and for
    an `out` that holds anything else, which is left as it is. Warns of weights of more dimensions.
    """
    folder = checkpoint_folder(source, **hub)
    weights = {name: w for name, w in read_weights(folder).items() if w.ndim >= 2 and wanted(name)}
    stacked = [name for name, weight in weights.items() if weight.ndim > 2]
    if stacked:
        warnings.warn(
            f"{folder}: {len(stacked)} weights are no matrices, and are left out: {stacked[0]} "
            f"{tuple(weights[stacked[0]].shape)} ...",
            stacklevel=2,
        )
    weights = {name: weight for name, weight in weights.items() if weight.ndim == 2}
    for name, weight in weights.items():
        if weight.dtype in QUANTISED or (weight.is_floating_point() and weight.itemsize == 1):
            raise ValueError(
                f"{folder}: {name} is quantised ({weight.dtype}): its numbers mean nothing without "
                "their scales; scan the checkpoint it was made from"
            )
    weights = {name: weight for name, weight in weights.items() if weight.is_floating_point()}
    if not weights:
        raise ValueError(f"{folder}: expected 2-D weights of the names wanted, found none")

    found = read_spectra(out, weights)
    with open(out, "a", encoding="utf-8") as file:
        for name in progress([n for n in weights if n not in found], desc="spectra"):
            found[name] = measure(name, weights[name])
            file.write(json.dumps(as_line(found[name], weights[name])) + "\n")
            file.flush()
    return [found[name] for name in weights]


def as_line(spectrum: Spectrum, weight: Tensor) -> dict[str, Any]:
    """A spectrum as it is written, with a digest of its weight."""
    return {
        "name": spectrum.name,
        "shape": spectrum.shape,
        "weight": some_rows(weight),
        "spread": spectrum.spread,
        "singular_values": [float(f"{value:.8g}") for value in spectrum.values.tolist()],
    }


def some_rows(weight: Tensor) -> str:
    """A digest of sixteen rows of a weight, or a few more, by which it is known again."""
    rows = weight[:: max(1, len(weight) // 16)]
    return sha256(rows.float().numpy().tobytes()).hexdigest()[:16]


def read_spectra(out: Path, weights: Mapping[str, Tensor]) -> dict[str, Spectrum]:
    """The spectra in a file that a scan of these weights wrote; a line cut short is removed."""
    if not out.exists():
        return {}
    written = out.read_bytes()
    whole, _, cut = written.rpartition(b"\n")
    lines, found = whole.splitlines(), {}
    if cut and not cut.startswith(START[: len(cut)]):
        lines.append(cut)  # none of ours: refused below
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            name, (rows, columns), digest = line["name"], line["shape"], line["weight"]
            values = torch.tensor(line["singular_values"], dtype=torch.float64)
            spectrum = Spectrum(name, (rows, columns), values, line["spread"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{out}: line {number}: expected a spectrum as `scan` writes it ({error}); give "
                "another file"
            ) from error
        if name in weights and (
            spectrum.shape != weights[name].shape or some_rows(weights[name]) != digest
        ):
            raise ValueError(
                f"{out}: line {number}: {name} was measured on other weights than these; delete "
                "the file, or give another"
            )
        found[name] = spectrum
    os.truncate(out, len(written) - len(cut))
    return found


@click.command()
@click.argument("checkpoint")
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--method", type=click.Choice(METHODS), default="laserrmt", show_default=True)
def main(checkpoint: str, out: Path, method: str) -> None:
    """Scan CHECKPOINT, a folder or a repository, into OUT, and print what lies above the noise."""
    try:
        spectra = scan(checkpoint, out)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    width = max(len(spectrum.name) for spectrum in spectra)
    click.echo(f"{'weight':{width}}  {'shape':>13}   kept     SNR   SNR / largest")
    for spectrum, row in zip(spectra, scores(spectra, method).values(), strict=True):
        shape = " x ".join(map(str, spectrum.shape))
        cells = f"{shape:>13}  {row['kept']:5}  {row['snr']:6.2f}  {row['spectrum']:6.3g}"
        click.echo(f"{spectrum.name:{width}}  {cells}")


if __name__ == "__main__":
    main()
