"""What this machine offers, and which lessons run on it: the report of `starling-nb doctor`."""

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants
from packaging.requirements import Requirement

import starling_nb
from starling_nb.device import BF16_CAPABILITY, Device, choose_device
from starling_nb.lesson import anatomy
from starling_nb.lesson.notebooks import MEASURED
from starling_nb.profiles import PROFILES, Profile, get_profile
from starling_nb.store import read_json

LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "papermill")
BATCH_ONLY = "papermill"  # lessons opened by hand run without it

Run = dict[str, Any]  # what measured.json says of a lesson on a profile


def examine(profile: str, store: Path, notebooks_folder: Path) -> tuple[str, list[str]]:
    """The report, and what keeps `profile` from running here, each with its remedy.

    A lesson's needs are the peak memory of its last measured run. Nothing is downloaded, built or
    trained; torch's thread count is set. Raises ValueError for an unknown profile.
    """
    asked = get_profile(profile)
    shown = [p for p in PROFILES.values() if p.name != "smoke" or p == asked]
    devices = {p.name: device_or_reason(p) for p in shown}
    lessons = [path.stem for path in anatomy.lesson_paths(notebooks_folder)]
    path = notebooks_folder / MEASURED
    measured = read_json(path) if path.exists() else {}
    runs = {name: measured.get(name, {}) for name in devices}

    chosen, folder = devices[profile], nearest(store)
    problems = version_problems()
    if isinstance(chosen, str):
        problems.append(chosen)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        problems.append(f"nothing can be stored in {folder}: name another folder with --store")
    for lesson in lessons:
        if not isinstance(chosen, str) and (lack := lacking(runs[profile].get(lesson), chosen)):
            problems.append(f"{lesson} {lack}")

    report = [f"Profile {profile}", *device_lines(chosen)]
    report += ["", "Machine", *machine_lines(asked), f"disk: {room(*disk(folder))} for {store}"]
    report += [f"Hub token: {token_source()}", "", "Versions", *version_lines()]
    report += ["", "Lessons, with time and memory as last measured"]
    report += [f"{'':14}" + "".join(f"{name:28}" for name in devices)]
    for lesson in lessons:
        cells = [verdict(runs[name].get(lesson), devices[name]) for name in devices]
        report.append(f"{lesson:14}" + "".join(f"{cell:28}" for cell in cells))
    if not lessons:
        report.append(f"none in {notebooks_folder}: they come with the repository")
    unknown = [lesson for lesson in lessons if lesson not in runs[profile]]
    if problems:
        report += ["", f"Profile {profile} does not run here:"]
        report += [f"- {problem}" for problem in problems]
    elif unknown:
        report += ["", f"Nothing is known against profile {profile}; not measured: {len(unknown)}"]
    else:
        report += ["", f"Profile {profile} runs here."]
    return "\n".join(line.rstrip() for line in report), problems


def device_or_reason(profile: Profile) -> Device | str:
    """The device that the profile gets, or why it gets none."""
    try:
        return choose_device(profile)
    except RuntimeError as error:
        return str(error)


def lacking(run: Run | None, device: Device) -> str | None:
    """What a lesson lacks here, with the remedy; None if it has all, or was never measured."""
    if run is None:
        return None
    for peak_mb, (total, free), what in (
        (run["peak_rss_mb"], memory(), "memory"),
        (run["peak_gpu_mb"], gpu_memory(device), "GPU memory"),
    ):
        peak = 1e6 * (peak_mb or 0)
        if peak > free:
            remedy = "close other programs" if peak <= total else "take a larger machine"
            return f"needs {gb(peak)} of {what}, {gb(free)} of {gb(total)} are free: {remedy}"
    return None


def verdict(run: Run | None, device: Device | str) -> str:
    """Whether a lesson runs, in a few words, with its measured time and memory."""
    if isinstance(device, str):
        return "no CUDA device"
    if run is None:
        return "not measured"
    needs = f"{run['seconds']:.0f} s, {gb(1e6 * (run['peak_rss_mb'] or 0))}"
    if run["peak_gpu_mb"]:
        needs += f" + {gb(1e6 * run['peak_gpu_mb'])} GPU"
    return f"{'too large' if lacking(run, device) else 'runs'}: {needs}"


def device_lines(chosen: Device | str) -> list[str]:
    """The choices of device.py with their reasons, and whether CUDA and bfloat16 can be used."""
    lines = chosen.report().splitlines() if isinstance(chosen, Device) else ["device: none"]
    if not torch.cuda.is_available():
        why = "torch was built without it" if torch.version.cuda is None else "no device found"
        return [*lines, f"CUDA: not usable ({why})", "bfloat16: not usable (no CUDA)"]
    capability = torch.cuda.get_device_capability()
    version, least = (".".join(map(str, pair)) for pair in (capability, BF16_CAPABILITY))
    usable = "usable" if capability >= BF16_CAPABILITY else "not usable"
    return [
        *lines,
        f"CUDA: usable ({torch.cuda.get_device_name()}, {room(*gpu_memory())})",
        f"bfloat16: {usable} (compute capability {version}, {least} or more is needed)",
    ]


def machine_lines(profile: Profile) -> list[str]:
    """Processors and memory."""
    processors = os.cpu_count() or 1
    few = f" (slower: times were measured with {profile.threads} threads)"
    few = few if processors < profile.threads else ""
    return [f"processors: {processors}{few}", f"memory: {room(*memory())}"]


def version_lines() -> list[str]:
    """Python, this package and the libraries that decide numbers or formats."""
    lines = [f"python: {platform.python_version()}", f"starling_nb: {starling_nb.__version__}"]
    return lines + [f"{name}: {version(name) or 'not installed'}" for name in LIBRARIES]


def version_problems() -> list[str]:
    """Which of the libraries are missing or too old; pip does not tell under --no-deps."""
    problems = []
    for requirement in map(Requirement, metadata.requires("starling-nb") or ()):
        found = version(requirement.name)
        if requirement.name not in LIBRARIES or (found is None and requirement.name == BATCH_ONLY):
            continue
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            problems.append(
                f"{requirement.name} is {found or 'missing'}, expected {requirement.specifier}: "
                f'run `pip install "{requirement}"`'
            )
    return problems


def version(distribution: str) -> str | None:
    """The version of an installed distribution, None if it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def token_source() -> str:
    """Where huggingface_hub would find a token; the token itself is neither read nor shown."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return f"in the variable {name}"
    path = Path(constants.HF_TOKEN_PATH)
    if path.is_file() and path.stat().st_size:
        return f"in the file {path}"
    return "none; public models and data need none"


def nearest(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())


def memory() -> tuple[int, int]:
    """Bytes of main memory, and how many of them are free for a new program."""
    found = psutil.virtual_memory()
    return found.total, found.available


def gpu_memory(device: Device | None = None) -> tuple[int, int]:
    """Bytes of the GPU's memory, and how many are free; zeros for a device that is none."""
    if device and device.device.type != "cuda":
        return 0, 0
    free, total = torch.cuda.mem_get_info()
    return total, free


def disk(folder: Path) -> tuple[int, int]:
    """Bytes of the disk that the folder lies on, and how many are free."""
    found = shutil.disk_usage(folder)
    return found.total, found.free


def room(total: float, free: float) -> str:
    """ "24.1 GB, 21.9 GB free"."""
    return f"{gb(total)}, {gb(free)} free"


def gb(count: float) -> str:
    """Bytes as "1.4 GB"."""
    return f"{count / 1e9:.1f} GB"
