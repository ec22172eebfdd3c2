"""Run lessons in batch through papermill: strict about requests and failures, resumable.

runs/<name>/<lesson>.ipynb           the executed notebook, also of a failed lesson
runs/<name>/<lesson>.html            the same as a page
runs/<name>/<lesson>.manifest.json   what was run, with what, how long, how it ended, what it found
runs/<name>/claims.json              the findings of all lessons, and whether each holds its bound
runs/<name>/index.html               the gallery
"""

import hashlib
import importlib.metadata
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

import starling_nb
from starling_nb.lesson import anatomy, claims, gallery, outcome
from starling_nb.lesson.anatomy import NOTEBOOKS, LessonError, Value
from starling_nb.profiles import get_profile
from starling_nb.store import read_json, replace_atomically, sha256_file, write_json

RUN_MARKER = ".starling-run"  # marks a folder as ours: only such a one is written to and removed
OWN_OPTIONS = ("profile", "seed", "store")  # parameters that every lesson has
MANIFEST = ".manifest.json"
CLAIMS = "claims.json"
RESULT_SUFFIXES = (MANIFEST, ".ipynb", ".html")
START_SECONDS = 120  # a kernel that has not answered by then will not
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One lesson to run, with what decides its result (`identity`) and what papermill injects."""

    path: Path
    explicit: dict[str, Value]
    injected: dict[str, Value]
    identity: dict[str, Any]

    @property
    def lesson(self) -> str:
        return self.path.stem


@dataclass(frozen=True)
class Result:
    """How a lesson ended: status "ok", "failed", or "already done" by an earlier run."""

    lesson: str
    status: str
    seconds: float
    peak_rss_mb: float | None
    error: str | None


@dataclass
class Control:
    """What the threads of one run share: the limits, the kernels alive, and whether to stop."""

    folder: Path
    pages: frozenset[str]
    timeout: float | None
    show_bar: bool
    kernels: list[Any] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)


def run(
    lessons: Iterable[str | Path] = (),
    *,
    profile: str = "cpu",
    seed: int = 0,
    parameters: Mapping[str, object] | None = None,
    jobs: int = 1,
    store: str | Path = "store",
    output: str | Path | None = None,
    notebooks_folder: Path = NOTEBOOKS,
    timeout: float | None = None,
) -> list[Result]:
    """Run lessons (all if none is named) and write the run's folder; results in the same order.

    Values in `parameters` have the declared type or spell it. `jobs` lessons run at a time,
    `timeout` is in seconds a cell, `output` is by default runs/<profile>-seed<seed>. A lesson that
    ended well with the same source, parameters and code is not run again; a failed one does not
    stop the rest. Raises LessonError for a bad request, before anything starts.
    """
    if jobs < 1 or (timeout is not None and timeout <= 0):
        raise LessonError(f"jobs and timeout must be positive, got {jobs} and {timeout}")
    paths = anatomy.select_lessons(lessons, notebooks_folder)
    own = {"profile": profile, "seed": seed, "store": str(Path(store).resolve())}
    planned = plan(paths, own, parameters or {})
    folder = Path(output or Path("runs") / f"{profile}-seed{seed}").resolve()
    with claimed(folder):
        done = {job.lesson: manifest for job in planned if (manifest := finished(job, folder))}
        for lesson, manifest in done.items():
            print(f"{lesson} already done", flush=True)
            tell_findings(manifest)
        waiting = [job for job in planned if job.lesson not in done]
        there = {manifest["lesson"] for manifest in gallery.manifests(folder)}
        pages = frozenset(there | {job.lesson for job in planned})
        bar = jobs == 1 and sys.stderr.isatty()
        ran = run_all(waiting, Control(folder, pages, timeout, bar), jobs)
    results = []
    for job in planned:
        manifest = done.get(job.lesson) or ran[job.lesson]
        status = "already done" if job.lesson in done else manifest["status"]
        measured = {name: manifest[name] for name in ("seconds", "peak_rss_mb", "error")}
        results.append(Result(job.lesson, status, **measured))
    return results


def plan(paths: list[Path], own: dict[str, Any], asked: Mapping[str, object]) -> list[Job]:
    """The jobs, every parameter checked against every lesson; LessonError for the first fault."""
    try:
        threads = get_profile(own["profile"]).threads
    except ValueError as error:
        raise LessonError(str(error)) from error
    for name in set(asked) & set(OWN_OPTIONS):
        raise LessonError(f"parameter {name} has an option of its own: --{name}")
    notebooks = {path: anatomy.read_notebook(path) for path in paths}
    declared = {path: anatomy.read_parameters(nb, path) for path, nb in notebooks.items()}
    for name in (*OWN_OPTIONS, *asked):
        lacking = [path.stem for path in paths if name not in declared[path]]
        if lacking:
            known = {known for path in paths for known in declared[path]}
            close = get_close_matches(name, known - {name}, n=1)
            raise LessonError(
                f"unknown parameter {name!r}: not in the parameters cell of {', '.join(lacking)}"
                + (f"; did you mean {close[0]}?" if close else "")
                + f" (known here: {', '.join(sorted(known))})"
            )
    shared = {
        "code_sha256": code_sha256(),
        "profile": own["profile"],
        "seed": own["seed"],
        "threads": threads,
        "versions": versions(),
    }
    planned = []
    for path, nb in notebooks.items():
        anatomy.check_kernel(nb, path)
        given = {name: anatomy.convert(declared[path][name], asked[name]) for name in asked}
        given |= {
            name: absolute_if_there(value)
            for name, value in given.items()
            if name.endswith("_path")
        }
        injected = {name: anatomy.convert(declared[path][name], own[name]) for name in own} | given
        effective = {name: parameter.default for name, parameter in declared[path].items()}
        effective |= injected
        identity = {
            "lesson": path.stem,
            "source_sha256": anatomy.source_sha256(nb),
            "parameters": effective,
            "inputs": {
                str(value): content_sha256(Path(str(value)))
                for name, value in effective.items()
                if name.endswith("_path") and value and Path(str(value)).exists()
            },
            **shared,
        }
        planned.append(Job(path, given, injected, identity))
    return planned


def absolute_if_there(value: Value) -> Value:
    """A path that exists, made absolute, since a lesson runs elsewhere; anything else unchanged."""
    there = isinstance(value, str) and value and Path(value).exists()
    return str(Path(str(value)).resolve()) if there else value


def finished(job: Job, folder: Path) -> dict[str, Any] | None:
    """The manifest of an earlier run of this very job that ended well, if its results still lie."""
    files = [folder / f"{job.lesson}{suffix}" for suffix in RESULT_SUFFIXES]
    if not all(file.exists() for file in files):
        return None
    manifest = read_json(files[0])
    same = all(manifest.get(name) == value for name, value in job.identity.items())
    return manifest if same and manifest["status"] == "ok" else None


def run_all(waiting: list[Job], control: Control, jobs: int) -> dict[str, dict[str, Any]]:
    """Run the jobs, `jobs` at a time, and return their manifests by lesson.

    Earlier results of all of them are removed first; the gallery and the claims are written anew
    then and after each. When interrupted, kernels are killed, nothing is recorded of the lessons
    they ran, and the interruption goes on.
    """
    for job in waiting:
        for suffix in RESULT_SUFFIXES:
            (control.folder / f"{job.lesson}{suffix}").unlink(missing_ok=True)
    summarise(control.folder)
    manifests: dict[str, dict[str, Any]] = {}
    pool = ThreadPoolExecutor(max_workers=jobs)
    futures = [pool.submit(execute, job, control) for job in waiting]
    try:
        for future in as_completed(futures):
            manifest = future.result()
            manifests[manifest["lesson"]] = manifest
            summarise(control.folder)
    except BaseException:
        control.stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        while running := [future for future in futures if not future.done()]:
            for kernel in control.kernels:
                kill(kernel)
            wait(running, timeout=0.5)
        raise
    pool.shutdown()
    return manifests


def execute(job: Job, control: Control) -> dict[str, Any]:
    """Run one lesson in an empty folder of its own; returns its manifest, written with its page."""
    import nbformat
    import papermill

    print(f"{job.lesson} started", flush=True)
    started, clock = datetime.now(UTC), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="starling-") as temporary:
        executed, empty = Path(temporary) / "executed.ipynb", Path(temporary) / "empty"
        empty.mkdir()
        peak_file = Path(temporary) / "peak.json"
        logging.getLogger("papermill").setLevel(logging.CRITICAL)  # failures are told below, once
        failure: Exception | None = None
        try:
            papermill.execute_notebook(
                str(job.path).replace("{", "{{").replace("}", "}}"),  # papermill formats paths
                str(executed).replace("{", "{{").replace("}", "}}"),
                parameters=job.injected,
                progress_bar={"desc": job.lesson, "leave": False} if control.show_bar else False,
                start_timeout=START_SECONDS,
                execution_timeout=control.timeout,
                kernel_manager_class=kernel_class(job.identity["threads"], peak_file, control),
                resources={"metadata": {"path": str(empty)}},  # the kernel's folder; ours stays
            )
        except Exception as error:
            failure = error
        if control.stopping.is_set():
            raise InterruptedError(job.lesson)
        nb = anatomy.read_notebook(executed if executed.exists() else job.path)
        findings = claims.recorded(nb, claims.FINDING)
        error_text = outcome.diagnose(nb, failure, control.timeout) or claims.repeated(findings)
        nb.metadata.papermill.update(input_path=job.path.name, output_path=f"{job.lesson}.ipynb")
        peak = read_json(peak_file) if peak_file.exists() else {}
    manifest = {
        **job.identity,
        "explicit_parameters": job.explicit,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 1),
        "peak_rss_mb": peak.get("peak_rss_mb"),
        "peak_gpu_mb": peak.get("peak_gpu_mb"),
        "gpu": peak.get("gpu"),
        "slowest_cells": outcome.slowest_cells(nb),
        "status": "failed" if error_text else "ok",
        "error": error_text,
        "findings": findings,
        "checks": claims.recorded(nb, claims.CHECK),
    }
    with replace_atomically(control.folder / f"{job.lesson}.ipynb") as path:
        nbformat.write(nb, path)
    unconverted = gallery.write_page(control.folder, nb, manifest, control.pages)
    write_json(control.folder / f"{job.lesson}{MANIFEST}", manifest)  # last: all else is there
    print(f"{job.lesson} {manifest['status']} in {manifest['seconds']:.1f} s", flush=True)
    tell_findings(manifest)
    if unconverted:
        print(f"{job.lesson}: formulas left as LaTeX source in its page: {unconverted}", flush=True)
    return manifest


def tell_findings(manifest: dict[str, Any]) -> None:
    """Print how many of a lesson's findings hold, and which do not; nothing when none is judged."""
    if manifest["findings"] and claims.is_judged(manifest):
        lines = [f"{manifest['lesson']}: {claims.tally(manifest)}"]
        for record in manifest["findings"]:
            if fault := claims.judge(record):
                lines.append(f"  does not hold: {record['question']}: {fault}")
        print("\n".join(lines), flush=True)


def summarise(folder: Path) -> None:
    """Write index.html and claims.json from the manifests in a run's folder."""
    gallery.write_index(folder)
    records = []
    for manifest in gallery.manifests(folder):
        judged = claims.is_judged(manifest)
        origin = {name: manifest[name] for name in ("lesson", "profile", "seed")}
        for record in manifest["findings"]:
            holds = claims.judge(record) is None if judged else None
            records.append({**origin, **record, "judged": judged, "holds": holds})
    write_json(folder / CLAIMS, records)


def kernel_class(threads: int, peak_file: Path, control: Control) -> type:
    """A kernel manager whose kernel is this very interpreter, whatever kernels the user installed.

    The user's IPython profile stays out of it, and figures are drawn into the notebook.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    module = "starling_nb.lesson.kernel"
    argv = [sys.executable, "-m", module, str(peak_file), "-f", "{connection_file}"]
    environment = {
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "STARLING_BATCH": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # also the bars of transformers
        "IPYTHONDIR": str(peak_file.parent / "ipython"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }

    class LessonKernel(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            # the kernel's own log tells of TCP at each start and of interruption at each end
            return KernelSpec(
                argv=[*argv, "--log-level=50"],
                display_name="Python 3",
                language="python",
                env=environment,
            )

        async def _async_start_kernel(self, **kwargs: Any) -> None:
            control.kernels.append(self)
            await super()._async_start_kernel(**kwargs)

        start_kernel = _async_start_kernel

    return LessonKernel


def kill(kernel: Any) -> None:
    """Kill a kernel's process, if it has one."""
    process = getattr(kernel.provisioner, "process", None)
    if process is not None and process.poll() is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run folder, made if need be; LessonError if it is not ours or another run holds it."""
    marker = folder / RUN_MARKER
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not marker.exists())):
        raise LessonError(f"{folder} holds something else than a run: name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()
    try:
        with FileLock(folder / f"{RUN_MARKER}.lock", timeout=0):
            yield
    except Timeout:
        message = f"another run is writing to {folder}: wait, or name another --output"
        raise LessonError(message) from None


def code_sha256() -> str:
    """The sha256 of the package's files, names and contents."""
    return content_sha256(Path(starling_nb.__file__).parent)


def content_sha256(path: Path) -> str:
    """The sha256 of a file, or of a folder's files by relative name, compiled Python left out."""
    if path.is_file():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            digest.update(f"{file.relative_to(path).as_posix()} {sha256_file(file)}\n".encode())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions of Python, torch, transformers and this package."""
    installed = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    own = {"starling_nb": starling_nb.__version__}
    return {"python": platform.python_version(), **installed, **own}


def is_run(folder: Path) -> bool:
    """Whether a folder was written by `run`."""
    return not folder.is_symlink() and (folder / RUN_MARKER).is_file()
