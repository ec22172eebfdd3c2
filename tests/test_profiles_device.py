"""Profiles, configs made from their sizes, the choice of device, and progress in every setting."""

import io
from dataclasses import FrozenInstanceError, dataclass

import nbclient
import nbformat
import pytest
import torch
from tqdm import notebook
from tqdm.std import tqdm

from starling_nb import device
from starling_nb.device import Device, PlainLines, choose_device, progress
from starling_nb.profiles import PROFILES, Profile, get_profile, make_config


@pytest.fixture(autouse=True)
def threads_restored():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Profiles and configs


def test_default_profiles_need_no_gpu_and_fix_their_threads():
    for name, threads in (("cpu", 2), ("smoke", 1)):
        profile = get_profile(name)
        assert (profile.device, profile.precision, profile.threads) == ("cpu", "float32", threads)
    assert get_profile("cpu").sizes == {}  # the stages' own defaults are the cpu sizes
    gpu = get_profile("gpu")
    assert (gpu.device, gpu.precision, gpu.threads) == ("cuda", "bfloat16", 8)
    assert all(name == profile.name for name, profile in PROFILES.items())


def test_unknown_profile_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"unknown profile 'CPU'.*cpu, smoke, gpu"):
        get_profile("CPU")


def test_profile_is_frozen():
    with pytest.raises(FrozenInstanceError):
        get_profile("cpu").threads = 4  # type: ignore[misc]


@dataclass(frozen=True)
class Config:
    steps: int = 10
    rate: float = 1  # type: ignore[assignment]  # an int default, on purpose
    name: str = "sft"
    packed: bool = True
    layers: tuple[int, ...] = (1, 2)
    betas: tuple[float, float] = (0.9, 0.99)
    path: str | None = None


def test_config_takes_defaults_then_changes():
    assert make_config("sft", Config, {}) == Config()
    assert make_config("sft", Config, {"steps": 3, "path": "x"}) == Config(steps=3, path="x")


@pytest.mark.parametrize(
    ("field", "value", "stored"),
    [("rate", 2, 2.0), ("betas", (0, 1), (0.0, 1.0)), ("path", None, None), ("layers", (), ())],
)
def test_an_int_is_a_float_where_one_is_expected(field, value, stored):
    got = getattr(make_config("sft", Config, {field: value}), field)
    assert repr(got) == repr(stored)  # repr tells 2 from 2.0


def test_int_default_of_a_float_field_becomes_a_float():
    assert repr(make_config("sft", Config, {}).rate) == "1.0"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", True, "expected int, got bool True"),
        ("steps", 3.0, "expected int, got float 3.0"),
        ("steps", "3", "expected int, got str '3'"),
        ("steps", None, "expected int, got NoneType None"),
        ("rate", False, "expected float, got bool False"),
        ("rate", "1e-3", "expected float, got str '1e-3'"),
        ("name", 3, "expected str, got int 3"),
        ("packed", 1, "expected bool, got int 1"),
        ("layers", [1, 2], r"expected tuple\[int, ...\], got list \[1, 2\]"),
        ("layers", (1, "2"), r"expected tuple\[int, ...\], got tuple \(1, '2'\)"),
        ("betas", (0.9,), r"expected tuple\[float, float\], got tuple \(0.9,\)"),
        ("path", 3, r"expected str \| None, got int 3"),
    ],
)
def test_wrong_type_is_refused_by_stage_and_field(field, value, message):
    with pytest.raises(TypeError, match=f"'sft', config field '{field}': {message}"):
        make_config("sft", Config, {field: value})


def test_unknown_field_is_refused_with_the_valid_ones():
    fields = "steps, rate, name, packed, layers, betas, path"
    with pytest.raises(TypeError, match=f"'sft' has no config field 'step'.*{fields}"):
        make_config("sft", Config, {"steps": 2, "step": 3})


# Device


def test_cpu_device_sets_threads_and_reports_each_choice():
    torch.set_num_threads(1)
    chosen = choose_device(get_profile("cpu"))
    assert torch.get_num_threads() == 2
    assert (chosen.device, chosen.dtype) == (torch.device("cpu"), torch.float32)
    lines = chosen.report().splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        "device: cpu",
        "dtype: float32",
        "attention: sdpa",
        "threads: 2",
    ]
    assert all(line.endswith(")") and "()" not in line for line in lines)


@pytest.mark.parametrize(("built_for", "remedy"), [(None, "CUDA build"), ("13.0", "nvidia-smi")])
def test_missing_cuda_names_the_remedy(monkeypatch, built_for, remedy):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(RuntimeError, match=rf"'gpu' needs a CUDA device.*{remedy}.*'cpu'"):
        choose_device(get_profile("gpu"))


@pytest.mark.parametrize(
    ("capability", "precision", "dtype"),
    [
        ((7, 5), "bfloat16", torch.float32),
        ((7, 5), "float16", torch.float16),
        ((8, 0), "bfloat16", torch.bfloat16),
        ((9, 0), "bfloat16", torch.bfloat16),
    ],
)
def test_bfloat16_is_decided_by_compute_capability(monkeypatch, capability, precision, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # it says so anyway
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    chosen = choose_device(Profile("x", "cuda", precision, 1, {}))
    assert (chosen.device, chosen.dtype) == (torch.device("cuda", 0), dtype)
    assert ("this GPU has 7.5" in chosen.report()) == (dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_dtype_and_leaves_weights_alone(dtype):
    layer = torch.nn.Linear(4, 4)
    chosen = Device(torch.device("cpu"), dtype, "sdpa", 1, {})
    with chosen.autocast():
        assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(1, 4)).dtype == torch.float32


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch):
    monkeypatch.delenv("STARLING_BATCH", raising=False)
    monkeypatch.setattr("sys.stderr", Terminal())


@pytest.mark.parametrize("total", [1, 3, 7, 10, 11, 1000])
def test_batch_prints_each_tenth_once_on_stderr(monkeypatch, capsys, total):
    monkeypatch.setenv("STARLING_BATCH", "1")
    bar = progress(total=total, desc="sft")
    for _ in range(total):
        bar.update()
        bar.refresh()  # as often as can be, as set_postfix does
    bar.close()
    bar.close()
    out, err = capsys.readouterr()
    lines = err.splitlines()
    done = [int(line.split()[1]) for line in lines]
    assert out == ""
    assert len(lines) == min(10, total)
    assert done == sorted({100 * i // total // 10 * 10 for i in range(1, total + 1)} - {0})
    assert lines[-1] == f"sft: 100 % ({total}/{total}) in 0 s"


def test_batch_yields_every_item_and_ends_on_the_truth(monkeypatch, capsys):
    monkeypatch.setenv("STARLING_BATCH", "1")
    assert list(progress(range(25), desc="all")) == list(range(25))
    assert list(progress(iter("abc"), desc="unknown")) == ["a", "b", "c"]
    for item in progress(range(25), desc="broken off"):
        if item == 12:
            break
    assert list(progress([], desc="empty")) == []
    lines = capsys.readouterr().err.splitlines()
    assert "all: 100 % (25/25) in 0 s" in lines
    assert "unknown: 3 done in 0 s" in lines
    assert not any(line.startswith("broken off: 100") for line in lines)
    assert not any(line.startswith("empty: 1") for line in lines)


def test_terminal_gets_a_bar_unless_the_run_is_a_batch(monkeypatch):
    use_terminal(monkeypatch)
    assert type(progress(range(3), desc="x")) is tqdm
    monkeypatch.setenv("STARLING_BATCH", "1")
    assert type(progress(range(3), desc="x")) is PlainLines


def test_no_terminal_no_kernel_gets_plain_lines(monkeypatch):
    monkeypatch.delenv("STARLING_BATCH", raising=False)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert type(progress(range(3), desc="x")) is PlainLines


def test_kernel_without_ipywidgets_gets_a_text_bar(monkeypatch):
    use_terminal(monkeypatch)
    monkeypatch.setattr(device, "running_in_kernel", lambda: True)
    monkeypatch.setattr(notebook, "IProgress", None)  # what tqdm sets when the import fails
    bar = progress(range(3), desc="x")
    assert type(bar) is tqdm
    assert list(bar) == [0, 1, 2]


def test_real_kernel_shows_a_widget_or_in_a_batch_only_stderr(monkeypatch):
    monkeypatch.delenv("STARLING_BATCH", raising=False)
    loop = "from starling_nb.device import progress\nfor _ in progress(range(3), desc='x'): 0"
    batch = "import os\nos.environ['STARLING_BATCH'] = '1'\n"
    cells = [nbformat.v4.new_code_cell(code) for code in (loop, batch + loop)]
    executed = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(executed, timeout=120, kernel_name="python3").execute()
    shown, (stream,) = (cell.outputs for cell in executed.cells)
    assert any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in shown)
    assert stream["name"] == "stderr"
    assert "x: 100 % (3/3)" in stream["text"]
