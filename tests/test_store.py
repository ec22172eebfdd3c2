"""The store: keys, verification, atomic publication, crash and race safety, reproducible bytes."""

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb import device, profiles, store
from starling_nb.device import Device
from starling_nb.profiles import Profile
from starling_nb.store import Store, find_damage, read_json, replace_atomically, sha256_file, stage


@dataclass(frozen=True)
class WordsConfig:
    count: int = 3
    scale: float = 0.5
    layers: tuple[int, ...] = (1, 2)
    path: str | None = field(default=None, metadata={"key": False})
    path_sha256: str | None = None


@dataclass(frozen=True)
class SumConfig:
    shift: float = 1.0


BUILT: list[str] = []


def save_json(obj, folder: Path) -> None:
    (folder / "parts").mkdir()
    (folder / "parts" / "value.json").write_text(json.dumps(obj))
    (folder / "note.txt").write_text("a second file")


def load_json(folder: Path):
    return json.loads((folder / "parts" / "value.json").read_text())


def register_words(version: int = 1) -> None:
    @stage("words", config=WordsConfig, version=version, save=save_json, load=load_json)
    def build_words(config, ctx):
        BUILT.append("words")
        return tuple(range(ctx.seed, ctx.seed + config.count))  # load gives a list


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A clean registry of throw-away stages: words, and total, which needs words."""
    monkeypatch.setattr(store, "STAGES", {})
    monkeypatch.setattr(store, "STAGE_MODULES", ())
    BUILT.clear()
    register_words()

    @stage("total", needs=("words",), config=SumConfig, save=save_json, load=load_json)
    def build_total(config, ctx, words):
        assert isinstance(words, list)  # a parent is what load returns, also when fresh
        BUILT.append("total")
        return sum(words) + config.shift

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


# Building and loading


def test_get_builds_parents_once_then_loads_silently(tmp_path, capsys):
    assert Store(tmp_path, seed=4).get("total") == 4 + 5 + 6 + 1.0
    assert BUILT == ["words", "total"]
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" in ")[0] for line in err.splitlines()] == [
        "building total (needs words)",
        "building words",
        "words ready",
        "total ready",
    ]
    assert Store(tmp_path, seed=4).get("total") == 16.0
    assert BUILT == ["words", "total"]
    assert capsys.readouterr() == ("", "")


def test_fresh_object_is_what_load_returns(tmp_path):
    assert Store(tmp_path).get("words") == [0, 1, 2]  # build returned a tuple


def test_present_child_needs_no_parent(tmp_path):
    first = Store(tmp_path)
    first.get("total")
    (first.folder("words") / "note.txt").write_text("changed")
    assert first.get("total") == 4.0
    assert BUILT == ["words", "total"]


def test_get_hands_out_separate_objects(tmp_path):
    it = Store(tmp_path)
    it.get("words").append(99)
    assert it.get("words") == [0, 1, 2]


def test_manifest_says_what_when_and_from_what(tmp_path):
    it = Store(tmp_path, seed=2, config={"words": {"count": 1, "path": "a.jsonl"}})
    it.get("total")
    manifests = {manifest["name"]: manifest for manifest in it.manifests()}
    assert set(manifests) == {"words", "total"}
    total, words = manifests["total"], manifests["words"]
    assert total["parents"] == {"words": it.key("words")} == {"words": words["key"]}
    assert words["config"] == {
        "count": 1,
        "scale": 0.5,
        "layers": [1, 2],
        "path": "a.jsonl",
        "path_sha256": None,
    }
    assert (words["seed"], words["version"], words["profile"]) == (2, 1, "cpu")
    assert (words["device"], words["dtype"], words["threads"]) == ("cpu", "float32", 2)
    assert set(words["versions"]) == {"python", "torch", "transformers", "starling_nb"}
    assert words["files"] == {
        "note.txt": {"sha256": hashlib.sha256(b"a second file").hexdigest(), "bytes": 13},
        "parts/value.json": {"sha256": hashlib.sha256(b"[2]").hexdigest(), "bytes": 3},
    }
    assert words["seconds"] >= 0
    assert words["created"].endswith("+00:00")
    assert 10 < words["peak_rss_mb"] < 100_000  # megabytes, in no other unit


def test_failed_build_leaves_nothing_and_can_be_repeated(tmp_path):
    fail = [True]

    def save(obj, folder):
        (folder / "half").write_text("half")
        if fail:
            raise OSError("disk full")
        (folder / "whole").write_text("whole")

    @stage("fragile", config=SumConfig, save=save, load=lambda f: (f / "whole").read_text())
    def build(config, ctx):
        return None

    it = Store(tmp_path)
    with pytest.raises(OSError, match="disk full"):
        it.get("fragile")
    assert [path.name for path in (tmp_path / "fragile").iterdir() if path.is_dir()] == []
    fail.clear()
    assert it.get("fragile") == "whole"


# Randomness


def register_draws() -> None:
    """A stage that draws from the global generators, as libraries do, built and loaded."""

    def load(folder):
        torch.rand(5), np.random.rand(5), random.random()
        return load_json(folder)

    @stage("draws", config=SumConfig, save=save_json, load=load)
    def build_draws(config, ctx):
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]


def test_same_seed_same_bytes_whatever_was_drawn_before(tmp_path):
    register_draws()
    records = []
    for run in range(2):
        torch.manual_seed(run), np.random.seed(run), random.seed(run)
        it = Store(tmp_path / str(run))
        it.get("draws")
        records.append(it.manifests()[0]["files"])
    assert records[0] == records[1]
    other = Store(tmp_path / "0", seed=1)
    assert other.get("draws") != Store(tmp_path / "0").get("draws")


def test_global_random_states_do_not_notice_a_build_or_a_load(tmp_path):
    register_draws()
    after = []
    for root in ("a", "a", None):  # built, loaded, not asked for at all
        torch.manual_seed(7), np.random.seed(7), random.seed(7)
        if root:
            Store(tmp_path / root).get("draws")
        after.append((torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()))
    assert after[0] == after[1] == after[2]


# Keys


def test_key_is_the_sha256_of_its_parts(tmp_path):
    text = (
        '{"config":{"count":3,"layers":[1,2],"path_sha256":null,"scale":0.5},"device":"cpu",'
        '"dtype":"float32","name":"words","parents":{},"seed":0,"version":1}'
    )
    assert Store(tmp_path).key("words") == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert Store(tmp_path).folder("words") == tmp_path / "words" / Store(tmp_path).key("words")


def test_key_changes_with_each_of_its_parts(tmp_path, monkeypatch):
    def keys(**kwargs):
        it = Store(tmp_path, **kwargs)
        return it.key("words"), it.key("total")

    seen = {"default": keys()}
    seen["seed"] = keys(seed=1)
    for name, value in {
        "count": 4,
        "scale": 0.25,
        "layers": (2, 1),
        "path_sha256": "ab",
    }.items():
        seen[name] = keys(config={"words": {name: value}})
    register_words(version=2)
    seen["version"] = keys()
    register_words(version=1)
    for dtype, kind in ((torch.bfloat16, "cpu"), (torch.float32, "cuda")):
        chosen = Device(torch.device(kind), dtype, "sdpa", 1, {})
        monkeypatch.setattr(device, "choose_device", lambda profile, chosen=chosen: chosen)
        seen[f"{dtype} {kind}"] = keys()
    for first, second in itertools.combinations(seen, 2):
        for stage_name in (0, 1):  # a parent's change reaches the child
            assert seen[first][stage_name] != seen[second][stage_name], (first, second)


def test_child_config_leaves_the_parent_key_alone(tmp_path):
    changed = Store(tmp_path, config={"total": {"shift": 2}})
    assert changed.key("words") == Store(tmp_path).key("words")
    assert changed.key("total") != Store(tmp_path).key("total")


@given(order=st.permutations(["count", "scale", "layers", "path"]))
def test_key_ignores_the_order_of_overrides_and_unkeyed_fields(order):
    values = {"count": 5, "scale": 1, "layers": (3,), "path": "somewhere"}
    config = {"words": {name: values[name] for name in order}}
    plain = {"words": {"count": 5, "scale": 1.0, "layers": (3,)}}
    assert Store("s", config=config).key("words") == Store("s", config=plain).key("words")


def test_key_does_not_depend_on_the_process(tmp_path):
    code = "import sys; from starling_nb.store import digest; print(digest({'b': 1, 'a': [2.5]}))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert run.stdout.decode().strip() == store.digest({"a": [2.5], "b": 1})


# Configs and stages


def test_overrides_lie_over_sizes_over_defaults(tmp_path, monkeypatch):
    sizes: dict[str, dict[str, object]] = {
        "words": {"count": 7, "scale": 2.0},
        "04_kwise_mle": {"n": 1},
    }  # a lesson's size too
    monkeypatch.setitem(profiles.PROFILES, "tiny", Profile("tiny", "cpu", "float32", 1, sizes))
    it = Store(tmp_path, "tiny", config={"words": {"count": 9}})
    assert it.config("words") == WordsConfig(count=9, scale=2.0)
    assert it.config("total") == SumConfig()


def test_unknown_stage_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(KeyError, match="unknown stage 'word': the known ones are total, words"):
        Store(tmp_path).get("word")
    with pytest.raises(KeyError, match="unknown stage 'word'"):
        Store(tmp_path, config={"word": {}})


def test_wrong_overrides_are_refused_at_once(tmp_path):
    with pytest.raises(TypeError, match=r"'words' has no config field 'counts'.*count, scale"):
        Store(tmp_path, config={"words": {"counts": 3}})
    with pytest.raises(TypeError, match="'words', config field 'count': expected int, got bool"):
        Store(tmp_path, config={"words": {"count": True}})


def test_stage_wants_a_frozen_dataclass_and_its_own_name():
    @dataclass
    class Thawed:
        steps: int = 1

    for config in (Thawed, dict):
        with pytest.raises(TypeError, match="stage 'x': config must be a frozen dataclass"):
            stage("x", config=config, save=save_json, load=load_json)
    stolen = stage("words", config=SumConfig, save=save_json, load=load_json)
    with pytest.raises(ValueError, match=f"'words' is already registered by {__name__}"):
        stolen(json.dumps)  # a function of another module


def test_stage_modules_are_imported_only_as_far_as_needed(tmp_path, monkeypatch):
    source = (
        "from dataclasses import dataclass\nfrom starling_nb.store import stage\n"
        "@dataclass(frozen=True)\nclass Config:\n    n: int = 1\n"
        "@stage('NAME', config=Config, save=print, load=print)\ndef build(config, ctx): ...\n"
    )
    for name in ("lazy_one", "lazy_two"):
        (tmp_path / f"{name}.py").write_text(source.replace("NAME", name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(store, "STAGE_MODULES", ("lazy_one", "lazy_two"))
    assert store.find_stage("lazy_one").name == "lazy_one"
    assert "lazy_two" not in sys.modules
    assert store.find_stage("lazy_two").name == "lazy_two"


def test_import_needs_no_torch():
    code = "import sys, starling_nb.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [flip, truncate, Path.unlink], ids=["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", ["parts/value.json", "note.txt", "manifest.json"])
def test_damaged_artefact_is_reported_and_built_again(tmp_path, capsys, harm, name):
    it = Store(tmp_path)
    it.get("words")
    capsys.readouterr()
    if (harm, name) == (flip, "manifest.json"):  # a flip that leaves JSON: in the seed
        text = (it.folder("words") / name).read_text()
        (it.folder("words") / name).write_text(text.replace('"seed": 0', '"seed": 1'))
    elif (harm, name) == (truncate, "manifest.json"):
        (it.folder("words") / name).write_text("{")
    else:
        harm(it.folder("words") / name)
    assert it.get("words") == [0, 1, 2]
    assert BUILT == ["words", "words"]
    report = capsys.readouterr().err.splitlines()[0]
    assert report.startswith(f"damaged artefact {it.folder('words')}, removed and built again: ")
    assert name in report
    if name != "manifest.json":
        assert "expected" in report
        assert "found" in report
        assert it.manifests()[0]["files"][name]["sha256"] in report
    assert it.get("words") == [0, 1, 2]
    assert len(BUILT) == 2


def test_every_single_bit_of_every_file_is_watched(tmp_path):
    it = Store(tmp_path)
    it.get("words")
    folder, identity = it.folder("words"), it.identity("words")
    for path in (folder / "note.txt", folder / "parts" / "value.json"):
        content = path.read_bytes()
        for bit in range(8 * len(content)):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            assert find_damage(folder, identity), (path, bit)
        path.write_bytes(content)
    assert find_damage(folder, identity) == []


def test_added_file_is_damage_but_a_hidden_one_is_not(tmp_path):
    it = Store(tmp_path)
    it.get("words")
    folder, identity = it.folder("words"), it.identity("words")
    (folder / ".DS_Store").write_text("left by a file browser")
    assert find_damage(folder, identity) == []
    (folder / "parts" / "pytorch_model.bin").write_text("which a loader might prefer")
    (fault,) = find_damage(folder, identity)
    assert fault.startswith("parts/pytorch_model.bin: expected {'sha256': None, 'bytes': 0}, found")


@settings(deadline=None, max_examples=40)
@given(start=st.floats(0, 1), length=st.floats(0, 1), garbage=st.binary(max_size=20))
def test_garbage_in_a_manifest_never_raises_nor_harms(tmp_path_factory, start, length, garbage):
    it = Store(tmp_path_factory.mktemp("garbage"))
    it.get("words")
    path = it.folder("words") / "manifest.json"
    whole = path.read_bytes()
    first = int(start * len(whole))
    last = first + int(length * (len(whole) - first))
    path.write_bytes(whole[:first] + garbage + whole[last:])
    assert it.get("words") == [0, 1, 2]  # some changes are harmless (a time, a space), most are not


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"config": [], "files": 3}', "\xff"])
def test_what_is_no_manifest_is_damage(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    damage = find_damage(tmp_path, Store(tmp_path).identity("words"))
    assert damage == ["manifest.json: not a manifest"]


def test_verified_before_load_so_load_never_sees_damage(tmp_path):
    it = Store(tmp_path)
    it.get("words")
    (it.folder("words") / "parts" / "value.json").write_text("[6, 6, 6]")
    assert it.get("words") == [0, 1, 2]


# Crashes and races, in other processes

PROGRAM = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from starling_nb import store
from starling_nb.store import Store, stage

store.STAGE_MODULES = ()
root, mode, me = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

@dataclass(frozen=True)
class Config:
    n: int = 1

def save(obj, folder):
    (folder / "first").write_text(obj)
    (root / f"saving-{me}").touch()
    if mode == "hang":
        time.sleep(600)
    (folder / "second").write_text(obj)

def load(folder):
    return (folder / "first").read_text() + (folder / "second").read_text()

@stage("slow", config=Config, save=save, load=load)
def build(config, ctx):
    with open(root / "built", "a") as file:
        file.write(me)
    time.sleep(0.5)
    return me

it = Store(root)
it.device
(root / f"ready-{me}").touch()
while mode == "race" and not (root / "go").exists():
    time.sleep(0.01)
print(it.get("slow"))
"""


def start(tmp_path: Path, mode: str, me: str) -> subprocess.Popen:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(tmp_path), mode, me]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=os.getcwd()
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_killed_build_leaves_only_a_temporary_folder_that_the_next_build_removes(tmp_path):
    process = start(tmp_path, "hang", "a")
    wait_for(tmp_path / "saving-a", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (temporary,) = (path for path in (tmp_path / "slow").iterdir() if path.is_dir())
    assert ".tmp-" in temporary.name
    assert (temporary / "first").read_text() == "a"
    assert Store(tmp_path).manifests() == []
    other = temporary.with_name(".0123456789abcdef.tmp-1")  # another key's, maybe being built
    other.mkdir()

    @dataclass(frozen=True)
    class Config:
        n: int = 1

    stage(
        "slow",
        config=Config,
        save=lambda obj, folder: (folder / "second").write_text(obj),
        load=lambda folder: (folder / "second").read_text(),
    )(lambda config, ctx: "whole")
    assert Store(tmp_path).get("slow") == "whole"
    folders = {path for path in (tmp_path / "slow").iterdir() if path.is_dir()}
    assert other in folders
    (published,) = folders - {other}
    assert published.name == temporary.name[1:17]
    assert {path.name for path in published.iterdir()} == {"second", "manifest.json"}


def test_two_processes_that_ask_at_once_build_once(tmp_path):
    processes = [start(tmp_path, "race", me) for me in "ab"]
    for me, process in zip("ab", processes, strict=True):
        wait_for(tmp_path / f"ready-{me}", process)
    (tmp_path / "go").touch()
    results = [process.communicate(timeout=120) for process in processes]
    built = (tmp_path / "built").read_text()
    assert built in ("a", "b")
    assert [out for out, _ in results] == [2 * built + "\n"] * 2
    waited = results["ab".index(built) - 1][1]
    assert waited == "waiting for another process that is building slow\n"


# Files


def test_replace_atomically_keeps_the_old_file_until_the_block_succeeds(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_half() -> None:
        with replace_atomically(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    with replace_atomically(path) as temporary:
        temporary.write_text("new")
        assert (temporary.suffix, temporary.parent) == (path.suffix, path.parent)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("new", [path])


def test_json_comes_back_and_a_broken_file_is_named(tmp_path):
    path = tmp_path / "a.json"
    obj = {"z": 1, "a": [0.1, None, "π"]}
    store.write_json(path, obj)
    assert read_json(path) == obj
    assert list(read_json(path)) == ["z", "a"]
    assert "π" in path.read_text(encoding="utf-8")
    path.write_text('{"a": 1,\n"b"}')
    with pytest.raises(ValueError, match=r"a\.json: not UTF-8 JSON .*line 2.*restore or delete"):
        read_json(path)


def test_sha256_of_the_standards_example(tmp_path):
    path = tmp_path / "abc"  # FIPS 180-2, appendix B.1
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == digest
