"""The lessons' files: the static lint, and their committed outputs.

python -m starling_nb.lesson.notebooks lint             print what is wrong, exit status 1
python -m starling_nb.lesson.notebooks write            run all lessons and store their outputs
python -m starling_nb.lesson.notebooks measured RUN     renew the header tables from a run
"""

import base64
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from starling_nb.lesson import anatomy, gallery, lint, runner
from starling_nb.profiles import PROFILES
from starling_nb.store import read_json, replace_atomically, write_json

MEASURED = "measured.json"  # beside the lessons: profile -> lesson -> what a run's manifest says
README_LESSON, README_PICTURE = "00_overview", "overview.png"
MEASURED_FIELDS = ("seconds", "peak_rss_mb", "peak_gpu_mb", "gpu", "threads", "versions")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"tIME")  # chunks with versions and times


def normalise(nb: Any) -> None:
    """Leave in a notebook only what a rerun repeats, in place.

    Removed are execution counts, stderr, widgets, papermill's cells and metadata, and the text
    chunks of PNG images; consecutive pieces of stdout are joined.
    """
    nb.cells = anatomy.own_cells(nb)
    kept = {
        name: nb.metadata[name]
        for name in ("accelerator", "colab", "starling")
        if name in nb.metadata
    }
    nb.metadata.clear()
    nb.metadata.update(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **kept,
    )
    for cell in nb.cells:
        for name in set(cell.metadata) - {"tags", "colab_type", "id", "cellView", "jupyter"}:
            del cell.metadata[name]
        if not anatomy.tags(cell):
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = normalise_outputs(cell.outputs)


def normalise_outputs(outputs: list[Any]) -> list[Any]:
    """The outputs that a reader of the committed notebook gets."""
    kept: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name != "stdout":
                continue
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        elif output.output_type in ("display_data", "execute_result"):
            if "application/vnd.jupyter.widget-view+json" in output.data:
                continue
            output.metadata = {}
            if "execution_count" in output:
                output.execution_count = None
            if "image/png" in output.data:
                output.data["image/png"] = strip_png(output.data["image/png"])
        kept.append(output)
    return kept


def strip_png(text: str) -> str:
    """A base64 PNG without its text and time chunks (PNG specification, section 11.3)."""
    data = base64.b64decode(text)
    kept, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        end = position + 12 + length  # length, type, content, checksum
        if data[position + 4 : position + 8] not in PNG_TEXT:
            kept.append(data[position:end])
        position = end
    return base64.b64encode(b"".join(kept)).decode()


def measured_table(lesson: str, measured: dict[str, Any]) -> str:
    """The header table of a lesson in Markdown: time and peak memory for each profile."""
    lines = ["| profile | time | peak memory |", "| --- | --- | --- |"]
    for profile in (name for name in PROFILES if name != "smoke"):
        run = measured.get(profile, {}).get(lesson)
        if run is None:
            lines.append(f"| `{profile}` | not measured | not measured |")
            continue
        memory = "not measured"
        if run["peak_rss_mb"] is not None:
            memory = f"{run['peak_rss_mb'] / 1000:.1f} GB"
        where = f", {run['threads']} threads"
        if run["gpu"]:
            memory += f", and {run['peak_gpu_mb'] / 1000:.1f} GB on the GPU"
            where = f", {run['gpu']}"
        lines.append(f"| `{profile}`{where} | {run['seconds']:.0f} s | {memory} |")
    return "\n".join(lines)


def record_measured(run_folder: Path, folder: Path) -> None:
    """Store the times and memory of a run's lessons that ended well, and renew the header tables.

    They are kept in `folder`/measured.json, since each profile is measured on a machine of its own.
    """
    path = folder / MEASURED
    measured = read_json(path) if path.exists() else {}
    for manifest in gallery.manifests(run_folder):
        if manifest["status"] == "ok":
            of_profile = measured.setdefault(manifest["profile"], {})
            of_profile[manifest["lesson"]] = {name: manifest[name] for name in MEASURED_FIELDS}
    write_json(path, measured)
    for lesson in anatomy.lesson_paths(folder):
        nb = anatomy.read_notebook(lesson)
        for cell in anatomy.tagged(nb, "measured"):
            cell.source = measured_table(lesson.stem, measured)
            save(nb, lesson)


def write_outputs(folder: Path) -> list[runner.Result]:
    """Run all lessons on `cpu` with seed 0, an empty store and no data folder; store their outputs.

    Of a lesson that fails nothing is stored.
    """
    os.environ.pop("STARLING_DATA", None)
    with tempfile.TemporaryDirectory(prefix="starling-") as temporary:
        run_folder = Path(temporary) / "run"
        results = runner.run(
            store=Path(temporary) / "store", output=run_folder, notebooks_folder=folder
        )
        for lesson in [result.lesson for result in results if result.status == "ok"]:
            path = folder / f"{lesson}.ipynb"
            nb = anatomy.read_notebook(path)
            executed = anatomy.read_notebook(run_folder / path.name)
            for cell, ran in zip(nb.cells, anatomy.own_cells(executed), strict=True):
                if cell.cell_type == "code":
                    cell.outputs = ran.outputs
            nb.metadata["starling"] = {"source_sha256": anatomy.source_sha256(nb)}
            normalise(nb)
            save(nb, path)
            if lesson == README_LESSON:
                write_picture(nb, folder / README_PICTURE)
        record_measured(run_folder, folder)
    return results


def write_picture(nb: Any, path: Path) -> None:
    """Save the signature figure of a notebook as a PNG file, for the README."""
    images = [
        output.data["image/png"]
        for cell in anatomy.tagged(nb, "signature")
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if images:
        path.write_bytes(base64.b64decode(images[0]))


def save(nb: Any, path: Path) -> None:
    """Write a notebook, atomically."""
    import nbformat

    with replace_atomically(path) as temporary:
        nbformat.write(nb, temporary)


def stale(path: Path) -> list[str]:
    """Why the outputs in the notebook are not those of its source; empty when they are."""
    nb = anatomy.read_notebook(path)
    stored = nb.metadata.get("starling", {}).get("source_sha256")
    if stored is None:
        return [f"{path.name}: has no outputs yet: run `make notebooks`"]
    if stored != anatomy.source_sha256(nb):
        return [f"{path.name}: was changed after its outputs were made: run `make notebooks`"]
    return []


@click.group()
def main() -> None:
    """Keep the lessons' files in order."""


@main.command("lint")
def lint_command() -> None:
    """Print what is wrong with the lessons; exit status 1 if anything is."""
    paths = anatomy.lesson_paths(anatomy.NOTEBOOKS)
    problems = [line for path in paths for line in (*lint.lint(path), *stale(path))]
    for line in problems:
        click.echo(line)
    sys.exit(1 if problems else 0)


@main.command("write")
def write_command() -> None:
    """Run all lessons on `cpu`, seed 0, and store their outputs; exit status 1 if one fails."""
    failed = [result for result in write_outputs(anatomy.NOTEBOOKS) if result.error]
    for result in failed:
        click.echo(f"{result.lesson} failed, its file is unchanged: {result.error}")
    sys.exit(1 if failed else 0)


@main.command("measured")
@click.argument("run_folder", type=click.Path(exists=True, path_type=Path))
def measured_command(run_folder: Path) -> None:
    """Renew the header tables with the times and memory of the lessons in RUN_FOLDER."""
    record_measured(run_folder, anatomy.NOTEBOOKS)


if __name__ == "__main__":
    main()
