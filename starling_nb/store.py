"""Artefacts on disk: stages, their keys and manifests, verified loading, atomic publication.

A stage is a function that builds an object from its config and its parents; what it saved is kept
under a key made of everything that decides the bytes.

    root/<stage>/<key>/             the stage's files and manifest.json
    root/<stage>/.<key>.tmp-<pid>/  a build in progress, or what a killed one left
    root/<stage>/.<key>.lock        held while the key is built
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from filelock import FileLock, Timeout

from starling_nb import __version__
from starling_nb.profiles import get_profile, make_config

if TYPE_CHECKING:
    from starling_nb.device import Device

STAGE_MODULES = (
    "starling_nb.data.world",
    "starling_nb.policy.base",
    "starling_nb.policy.sft",
    "starling_nb.reward.train",
    "starling_nb.policy.rl",
    "starling_nb.laser.search",
)
MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers")
NO_FILE = {"sha256": None, "bytes": 0}


@dataclass(frozen=True)
class Context:
    """What a build knows beside its config and parents: the run's seed and device."""

    seed: int
    device: "Device"


@dataclass(frozen=True)
class Stage:
    """One registered stage; see `stage` for the fields."""

    name: str
    needs: tuple[str, ...]
    config: type
    version: int
    build: Callable[..., Any]
    save: Callable[[Any, Path], object]
    load: Callable[[Path], Any]


STAGES: dict[str, Stage] = {}


def stage(
    name: str,
    *,
    needs: tuple[str, ...] = (),
    config: type,
    version: int = 1,
    save: Callable[[Any, Path], object],
    load: Callable[[Path], Any],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register `build(config, ctx, **parents)` as the stage `name`; the function stays as it is.

    `needs` names the parents, passed as loaded objects; `config` is a frozen dataclass whose fields
    (int, float, str, bool, tuple, any of them or None) all have defaults, and enter the key unless
    their metadata says {"key": False}; `version` is raised when the code changes what it builds.
    `save(obj, folder)` writes files, `load(folder)` reads them back. Raises TypeError for a config
    that is no frozen dataclass, ValueError for a name taken by another module.
    """
    parameters = getattr(config, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise TypeError(f"stage '{name}': config must be a frozen dataclass, got {config!r}")

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        other = STAGES.get(name)  # the same code again: a reload, or a module run as __main__
        if other and not (
            other.build.__module__ == build.__module__
            or other.build.__code__.co_filename == build.__code__.co_filename
        ):
            raise ValueError(f"stage '{name}' is already registered by {other.build.__module__}")
        STAGES[name] = Stage(name, tuple(needs), config, version, build, save, load)
        return build

    return register


def find_stage(name: str) -> Stage:
    """The stage of that name, importing STAGE_MODULES until it is there; KeyError if it is not."""
    for module in STAGE_MODULES:
        if name in STAGES:
            break
        importlib.import_module(module)
    if name not in STAGES:
        raise KeyError(f"unknown stage '{name}': the known ones are {', '.join(sorted(STAGES))}")
    return STAGES[name]


class Store:
    """Artefacts under `root`, for one profile and seed.

    `config` maps a stage's name to config fields, laid over the profile's sizes. Raises ValueError
    for an unknown profile, KeyError for an unknown stage, TypeError for a wrong config field.
    """

    def __init__(
        self,
        root: str | Path,
        profile: str = "cpu",
        seed: int = 0,
        config: Mapping[str, Mapping[str, object]] = {},
    ) -> None:
        self.root = Path(root)
        self.profile = get_profile(profile)
        self.seed = seed
        self.overrides = config
        for name in config:  # refuse a misspelt stage or field here, not an hour later
            self.config(name)

    @cached_property
    def device(self) -> "Device":
        """Chosen at first use, since choosing imports torch and sets its thread count."""
        from starling_nb.device import choose_device

        return choose_device(self.profile)

    def config(self, name: str) -> Any:
        """The stage's config: its defaults, the profile's sizes and the overrides, type-checked."""
        changed = {**self.profile.sizes.get(name, {}), **self.overrides.get(name, {})}
        return make_config(name, find_stage(name).config, changed)

    def key(self, name: str) -> str:
        """16 hex digits that stand for everything that decides the stage's bytes."""
        return digest(self.identity(name))

    def identity(self, name: str) -> dict[str, Any]:
        """What the key is made of; parents and config as they decide the bytes."""
        from starling_nb.device import dtype_name

        spec, config = find_stage(name), self.config(name)
        keyed = [f.name for f in dataclasses.fields(config) if f.metadata.get("key", True)]
        identity = {
            "name": name,
            "version": spec.version,
            "config": {field: getattr(config, field) for field in keyed},
            "seed": self.seed,
            "device": self.device.device.type,
            "dtype": dtype_name(self.device.dtype),
            "parents": {parent: self.key(parent) for parent in spec.needs},
        }
        return json.loads(json.dumps(identity))  # as a manifest gives it back: tuples are lists

    def folder(self, name: str) -> Path:
        """Where the stage's artefact lies, or will."""
        return self.root / name / self.key(name)

    def get(self, name: str) -> Any:
        """The stage's object, loaded; built first, with its parents, where no sound one lies.

        It always comes from the stage's `load`, so a fresh object equals a reloaded one. A damaged
        artefact is reported on stderr, removed and built again. Of processes that ask for one key
        at once, one builds and the others wait.

        The global generators (torch, NumPy, Python) are seeded from the key, for libraries that
        draw from them, and get their states back after: what follows does not depend on whether
        anything was built. A stage's own draws should come from explicit generators.
        """
        spec, identity, folder = find_stage(name), self.identity(name), self.folder(name)
        with seeded_generators(int(folder.name, 16), self.device):
            if find_damage(folder, identity):
                folder.parent.mkdir(parents=True, exist_ok=True)
                with locked(folder.parent / f".{folder.name}.lock", name):
                    self.ensure(spec, identity, folder)
            return spec.load(folder)

    def ensure(self, spec: Stage, identity: dict[str, Any], folder: Path) -> None:
        """Under the key's lock: remove what a killed build left and what is damaged, then build."""
        for leftover in folder.parent.glob(f".{folder.name}.tmp-*"):
            shutil.rmtree(leftover)
        temporary = folder.with_name(f".{folder.name}.tmp-{os.getpid()}")
        if folder.exists():
            damage = find_damage(folder, identity)
            if not damage:  # another process built it while this one waited
                return
            announce(f"damaged artefact {folder}, removed and built again: " + "; ".join(damage))
            folder.rename(temporary)
            shutil.rmtree(temporary)
        needs = f" (needs {', '.join(spec.needs)})" if spec.needs else ""
        announce(f"building {spec.name}{needs}")
        try:
            seconds = self.build(spec, identity, temporary)
            publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        announce(f"{spec.name} ready in {seconds:.0f} s")

    def build(self, spec: Stage, identity: dict[str, Any], folder: Path) -> float:
        """Build the stage into `folder` with its manifest; returns the seconds without parents."""
        config, parents = self.config(spec.name), {need: self.get(need) for need in spec.needs}
        started = time.perf_counter()
        made = spec.build(config, Context(self.seed, self.device), **parents)
        folder.mkdir()
        spec.save(made, folder)
        seconds = time.perf_counter() - started
        if (folder / MANIFEST).exists():
            raise ValueError(f"stage '{spec.name}': save wrote {MANIFEST}, a name the store needs")
        manifest = {
            **identity,
            "key": digest(identity),
            "config": dataclasses.asdict(config),
            "profile": self.profile.name,
            "threads": self.device.threads,
            "versions": {"python": platform.python_version(), "starling_nb": __version__}
            | {library: importlib.metadata.version(library) for library in LIBRARIES},
            "files": {name: file_record(path) for name, path in files_under(folder).items()},
            "seconds": round(seconds, 3),
            "peak_rss_mb": peak_rss_mb(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(folder / MANIFEST, manifest)
        return seconds

    def manifests(self) -> list[dict[str, Any]]:
        """The manifests of what lies in the store, of all profiles and seeds, by stage and key."""
        paths = sorted(self.root.glob(f"*/*/{MANIFEST}"))
        return [read_json(path) for path in paths if not path.parent.name.startswith(".")]


def find_damage(folder: Path, identity: dict[str, Any]) -> list[str]:
    """What is wrong with the artefact: every file's sha256, and the manifest against `identity`."""
    try:
        manifest = read_json(folder / MANIFEST)
        config = {name: manifest["config"][name] for name in identity["config"]}
        recorded = {name: manifest[name] for name in identity} | {"config": config}
        expected = dict(manifest["files"])
        found = {
            name: file_record(path)
            for name, path in files_under(folder).items()
            if name in expected or not path.name.startswith(".")  # a file browser's droppings
        }
    except OSError as error:
        return [f"{error.filename}: cannot be read ({error.strerror})"]
    except (ValueError, KeyError, TypeError):
        return [f"{MANIFEST}: not a manifest"]
    damage = [
        f"{MANIFEST}: {name}: expected {identity[name]}, found {recorded[name]}"
        for name in identity
        if recorded[name] != identity[name]
    ]
    for name in sorted(expected.keys() | found.keys()):
        wanted, have = expected.get(name, NO_FILE), found.get(name, NO_FILE)
        if wanted != have:
            damage.append(f"{name}: expected {wanted}, found {have}")
    return damage


def file_record(path: Path) -> dict[str, Any]:
    """A file's sha256 and size in bytes, as a manifest lists them."""
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def files_under(folder: Path) -> dict[str, Path]:
    """Every file below `folder` but its manifest, by relative name with forward slashes, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name != MANIFEST}


def publish(temporary: Path, folder: Path) -> None:
    """Write a finished folder through to the disk, then give it its name in one step."""
    for path in temporary.rglob("*"):
        flush_to_disk(path)
    flush_to_disk(temporary)
    temporary.rename(folder)
    flush_to_disk(folder.parent)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder; not a folder on Windows, which cannot open one."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path, name: str) -> Iterator[None]:
    """Hold the file lock; the system frees it when a process dies. Says so when it has to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        announce(f"waiting for another process that is building {name}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def seeded_generators(seed: int, device: "Device") -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python; give them back their states after."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device.device] if device.device.type == "cuda" else []):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def announce(line: str) -> None:
    """Print a line on stderr: it may hold timings, which must not enter committed outputs."""
    print(line, file=sys.stderr, flush=True)


def peak_rss_mb() -> float | None:
    """The process's largest resident memory so far, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes, on macOS bytes
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def digest(obj: Any) -> str:
    """The first 16 hex digits of the sha256 of the object's JSON with sorted keys."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replace_atomically(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, same suffix, that takes its place when the block succeeds.

    A reader sees the old file or the new one, never half of one; after an error the old one stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex[:8]}.tmp-{path.name}")
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as UTF-8 JSON, atomically, keys in the order given."""
    with replace_atomically(path) as temporary:
        text = json.dumps(obj, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; ValueError naming the file and line when it is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not UTF-8 JSON ({error}); restore or delete the file") from error
