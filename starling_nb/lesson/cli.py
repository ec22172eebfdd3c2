"""The command `starling-nb`: run and list lessons, examine the machine, score, and clean up."""

import re
import shutil
import sys
from pathlib import Path

import click

from starling_nb.profiles import PROFILES

EXIT_FAILED, EXIT_BAD_REQUEST, EXIT_INTERRUPTED = 1, 2, 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="starling-nb")
def main() -> None:
    """The Starling workbook: run its lessons in batch."""


@main.command()
@click.argument("lessons", nargs=-1, metavar="[LESSON]...")
@click.option("--profile", default="cpu", show_default=True, help=f"One of {', '.join(PROFILES)}.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option(
    "-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a parameter."
)
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="At a time.")
@click.option("--store", default="store", show_default=True, help="Folder of trained stages.")
@click.option("--output", help="Folder of results.  [default: runs/PROFILE-seedSEED]")
@click.option("--timeout", type=float, help="Seconds that one cell may take.  [default: no limit]")
def run(
    lessons: tuple[str, ...],
    profile: str,
    seed: int,
    parameters: tuple[tuple[str, str], ...],
    jobs: int,
    store: str,
    output: str | None,
    timeout: float | None,
) -> None:
    """Run lessons ("00", "00_overview" or a path; all if none is named) and write their gallery.

    A lesson that ended well with the same source, parameters and code is not run again.
    Exit status: 0 all ended well, 1 a lesson failed, 2 the request was refused.
    """
    from starling_nb.lesson import runner  # heavy imports wait until they are needed
    from starling_nb.lesson.anatomy import NOTEBOOKS, LessonError

    names = [name for name, _ in parameters]
    try:
        if len(set(names)) < len(names):
            raise LessonError(f"a parameter is given twice: {' '.join(names)}")
        results = runner.run(
            lessons,
            profile=profile,
            seed=seed,
            parameters=dict(parameters),
            jobs=jobs,
            store=store,
            output=output,
            notebooks_folder=NOTEBOOKS,
            timeout=timeout,
        )
    except LessonError as error:
        click.echo(f"starling-nb: {error}", err=True)
        sys.exit(EXIT_BAD_REQUEST)
    except KeyboardInterrupt:
        click.echo("\nstarling-nb: interrupted; the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)
    width = max(len(result.lesson) for result in results)
    click.echo()
    for result in results:
        memory = "" if result.peak_rss_mb is None else f"{result.peak_rss_mb:7.0f} MB"
        click.echo(f"{result.lesson:{width}}  {result.status:12}{result.seconds:8.1f} s{memory}")
    for result in results:
        if result.error:
            click.echo(f"\n{result.lesson} failed: {result.error}")
    folder = Path(output or Path("runs") / f"{profile}-seed{seed}")
    click.echo(f"\nGallery: {folder / 'index.html'}")
    sys.exit(EXIT_FAILED if any(result.status == "failed" for result in results) else 0)


@main.command("list")
def list_lessons() -> None:
    """Print each lesson's title, what it shows, and its parameters."""
    from starling_nb.lesson import anatomy

    try:
        paths = anatomy.select_lessons([], anatomy.NOTEBOOKS)
        lessons = [(path, anatomy.read_notebook(path)) for path in paths]
        declared = [anatomy.read_parameters(nb, path) for path, nb in lessons]
    except anatomy.LessonError as error:
        click.echo(f"starling-nb: {error}", err=True)
        sys.exit(EXIT_BAD_REQUEST)
    for (path, nb), parameters in zip(lessons, declared, strict=True):
        click.echo(f"{path.stem}  {anatomy.title(nb)}")
        click.echo(click.wrap_text(anatomy.claim(nb), 88, "    ", "    "))
        for parameter in parameters.values():
            kind = parameter.type.__name__
            click.echo(f"    -p {parameter.name} ({kind}, {parameter.default!r})  {parameter.help}")
        click.echo()


@main.command()
@click.option("--profile", default="cpu", show_default=True, help=f"One of {', '.join(PROFILES)}.")
@click.option("--store", default="store", show_default=True, help="Folder of trained stages.")
def doctor(profile: str, store: str) -> None:
    """Say what this machine offers, and which lessons run on it; nothing is loaded or built.

    Exit status: 0 the profile runs here, 1 it does not (the remedy is told), 2 there is no such.
    """
    from starling_nb.lesson.anatomy import NOTEBOOKS
    from starling_nb.lesson.doctor import examine

    try:
        report, problems = examine(profile, Path(store), NOTEBOOKS)
    except ValueError as error:
        click.echo(f"starling-nb: {error}", err=True)
        sys.exit(EXIT_BAD_REQUEST)
    click.echo(report)
    sys.exit(EXIT_FAILED if problems else 0)


@main.command()
@click.option("--model", required=True, metavar="DIR", help="A checkpoint, or a Hub repository.")
@click.option("--input", "source", required=True, metavar="FILE", help="What is scored.")
@click.option("--output", required=True, metavar="FILE", help="The same rows, with their scores.")
@click.option("--tokenizer", metavar="DIR", help="Its tokenizer.  [default: the checkpoint's]")
@click.option("--template", help="Its chat template.  [default: the checkpoint's]")
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--profile", default="cpu", show_default=True, help="Sets device and threads.")
def score(
    model: str,
    source: str,
    output: str,
    tokenizer: str | None,
    template: str | None,
    batch_size: int,
    profile: str,
) -> None:
    """Score the conversations of a .parquet, .jsonl or .jsonl.gz FILE with a reward model.

    A row holds "conversation" (or "messages"), or "prompt" and "answer", or "prompt" and a list
    "answers" as in Nectar. The model keeps the precision of its checkpoint. A run that was stopped
    goes on when the same command is given again.

    Exit status: 0 scored, 1 a score was not finite, 2 refused: nothing was computed.
    """
    from transformers import AutoTokenizer

    from starling_nb.device import choose_device
    from starling_nb.profiles import get_profile
    from starling_nb.reward.checkpoints import checkpoint_folder
    from starling_nb.reward.model import RewardModel
    from starling_nb.reward.score_file import check_paths, score_file

    try:
        device = choose_device(get_profile(profile)).device
    except (ValueError, RuntimeError) as error:
        click.echo(f"starling-nb: {error}", err=True)
        sys.exit(EXIT_BAD_REQUEST)
    try:
        check_paths(Path(source), Path(output))
        words = AutoTokenizer.from_pretrained(
            checkpoint_folder(tokenizer or model), trust_remote_code=False
        )
        scorer = RewardModel.from_pretrained(model, template=template)
        scorer.to(device)  # type: ignore[arg-type]
        scored = score_file(scorer, words, source, output, batch_size)  # type: ignore[arg-type]
    except (OSError, ValueError, FloatingPointError) as error:
        click.echo(f"starling-nb: {error}", err=True)
        failed = isinstance(error, FloatingPointError)
        sys.exit(EXIT_FAILED if failed else EXIT_BAD_REQUEST)
    except KeyboardInterrupt:
        click.echo("\nstarling-nb: interrupted; the same command goes on from here", err=True)
        sys.exit(EXIT_INTERRUPTED)
    resumed = f" ({scored.resumed:,} of them before)" if scored.resumed else ""
    click.echo(f"{scored.rows:,} rows{resumed}, {scored.conversations:,} conversations scored")
    if scored.truncated:
        limit = scorer.config.reward_max_length
        click.echo(f"{scored.truncated:,} were cut at the left to {limit:,} tokens")
    click.echo(f"Scores: {output}")


@main.command()
@click.option("--store", default="store", show_default=True, help="Folder of trained stages.")
@click.option("--runs", default="runs", show_default=True, help="Folder that holds run folders.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def clean(store: str, runs: str, yes: bool) -> None:
    """Remove the store and the run folders; refuses a folder that holds anything else."""
    from starling_nb.lesson.runner import is_run

    store_folder, runs_folder = Path(store), Path(runs)
    if store_folder.is_dir() and not is_store(store_folder):
        refuse(f"{store_folder} holds something else than trained stages")
    if runs_folder.is_dir():
        for folder in sorted(runs_folder.iterdir()):
            if not is_run(folder):
                refuse(f"{folder} was not written by starling-nb run")
    found = [folder for folder in (store_folder, runs_folder) if folder.is_dir()]
    if not found:
        click.echo("nothing to remove")
        return
    if not yes:
        click.confirm(f"Remove {' and '.join(map(str, found))}?", abort=True)
    for folder in found:
        shutil.rmtree(folder)
        click.echo(f"removed {folder}")


def refuse(reason: str) -> None:
    """Say why nothing was removed, and leave."""
    click.echo(f"starling-nb: nothing removed: {reason}", err=True)
    sys.exit(EXIT_BAD_REQUEST)


def is_store(folder: Path) -> bool:
    """Whether the folder holds nothing but a store's <stage>/<key> folders and their locks."""
    stages = list(folder.iterdir())
    return not folder.is_symlink() and all(
        stage.is_dir()
        and not stage.is_symlink()
        and all(re.fullmatch(r"\.?[0-9a-f]{16}(\..+)?", entry.name) for entry in stage.iterdir())
        for stage in stages
    )


if __name__ == "__main__":
    main()
