"""`starling-nb doctor`: what it says of a machine, with every machine but this one made up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from small_notebooks import lesson, save

from starling_nb.lesson import anatomy, cli, doctor

GB = 10**9
RUN = {"seconds": 150.3, "peak_rss_mb": 1422.7, "peak_gpu_mb": None, "gpu": None, "threads": 2}
GPU_RUN = {**RUN, "seconds": 9.6, "peak_gpu_mb": 3210.0, "gpu": "Some GPU"}


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine of 8 GB, half of them free, without GPU or token; torch's threads are restored."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(doctor, "memory", lambda: (8 * GB, 4 * GB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def course(tmp_path):
    """Two lessons, of which the first was measured on cpu."""
    folder = tmp_path / "notebooks"
    for name in ("00_a", "01_b"):
        save(lesson("print(seed)"), folder / f"{name}.ipynb")
    measure(folder, {"cpu": {"00_a": RUN}})
    return folder


def measure(folder, measured):
    (folder / "measured.json").write_text(json.dumps(measured))


def use_gpu(monkeypatch, capability=(9, 0), free=140 * GB):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)  # it says so anyway
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *a: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *a: "Some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *a: (free, 150 * GB))


def fields(report):
    """The report's lines "name: value" as a dict."""
    return dict(line.split(": ", 1) for line in report.splitlines() if ": " in line)


def rows(report):
    """The cells of each lesson's row, by lesson."""
    lines = report.split("as last measured\n")[1].splitlines()
    names = ["cpu", *(["smoke"] if "smoke" in lines[0] else []), "gpu"]
    assert lines[0].split() == names
    starts = [lines[0].index(name) for name in names]
    cut = [slice(a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    found = [line for line in lines[1:] if line[:2].isdigit()]
    return {line.split()[0]: [line[part].strip() for part in cut] for line in found}


def test_a_laptop_runs_what_was_measured_on_cpu(course, tmp_path):
    report, problems = doctor.examine("cpu", tmp_path / "store", course)
    assert problems == []
    assert rows(report) == {
        "00_a": ["runs: 150 s, 1.4 GB", "no CUDA device"],
        "01_b": ["not measured", "no CUDA device"],
    }
    said = fields(report)
    assert said["device"] == "cpu (profile 'cpu' runs on the processor)"
    assert said["dtype"].startswith("float32 (")
    assert said["attention"].startswith("sdpa (")
    assert said["threads"].startswith("2 (")
    assert said["CUDA"] == "not usable (torch was built without it)"
    assert said["bfloat16"] == "not usable (no CUDA)"
    assert said["memory"] == "8.0 GB, 4.0 GB free"
    assert said["Hub token"].startswith("none")
    assert said["torch"] == torch.__version__
    assert {"python", "transformers", "datasets", "tokenizers", "safetensors"} <= set(said)
    assert {"papermill", "starling_nb", "disk", "processors"} <= set(said)
    assert report.endswith("Nothing is known against profile cpu; not measured: 1")

    measure(course, {"cpu": {"00_a": RUN, "01_b": RUN}})
    assert doctor.examine("cpu", tmp_path, course)[0].endswith("Profile cpu runs here.")
    assert rows(doctor.examine("smoke", tmp_path, course)[0])["00_a"][1] == "not measured"


def test_the_gpu_profile_without_cuda_is_refused_with_the_remedy(course, tmp_path):
    report, problems = doctor.examine("gpu", tmp_path, course)
    assert len(problems) == 1
    assert "install a CUDA build of torch" in problems[0]
    assert report.endswith(f"Profile gpu does not run here:\n- {problems[0]}")
    assert fields(report)["device"] == "none"


@pytest.mark.parametrize(
    ("capability", "dtype", "usable"),
    [((7, 5), "float32", False), ((8, 0), "bfloat16", True), ((9, 0), "bfloat16", True)],
)
def test_bfloat16_is_told_by_compute_capability(
    monkeypatch, course, tmp_path, capability, dtype, usable
):
    use_gpu(monkeypatch, capability)
    measure(course, {"cpu": {"00_a": RUN}, "gpu": {"00_a": GPU_RUN}})
    report, problems = doctor.examine("gpu", tmp_path, course)
    said = fields(report)
    version = ".".join(map(str, capability))
    assert problems == []
    assert said["device"] == f"cuda:0 (Some GPU, compute capability {version})"
    assert said["dtype"].startswith(dtype)
    assert said["CUDA"] == "usable (Some GPU, 150.0 GB, 140.0 GB free)"
    word = "usable" if usable else "not usable"
    assert said["bfloat16"] == f"{word} (compute capability {version}, 8.0 or more is needed)"
    assert rows(report) == {
        "00_a": ["runs: 150 s, 1.4 GB", "runs: 10 s, 1.4 GB + 3.2 GB GPU"],
        "01_b": ["not measured", "not measured"],
    }


@pytest.mark.parametrize(
    ("total", "free", "remedy"),
    [(8 * GB, 1 * GB, "close other programs"), (1 * GB, 1 * GB, "take a larger machine")],
)
def test_too_little_memory_is_told_with_the_remedy(
    monkeypatch, course, tmp_path, total, free, remedy
):
    monkeypatch.setattr(doctor, "memory", lambda: (total, free))
    report, problems = doctor.examine("cpu", tmp_path, course)
    needs = f"needs 1.4 GB of memory, 1.0 GB of {total // GB}.0 GB are free"
    assert problems == [f"00_a {needs}: {remedy}"]
    assert rows(report)["00_a"][0] == "too large: 150 s, 1.4 GB"


def test_too_little_gpu_memory_keeps_only_the_gpu_profile_from_running(
    monkeypatch, course, tmp_path
):
    use_gpu(monkeypatch, free=3 * GB)
    measure(course, {"cpu": {"00_a": RUN}, "gpu": {"00_a": GPU_RUN}})
    _, problems = doctor.examine("gpu", tmp_path, course)
    remedy = "3.0 GB of 150.0 GB are free: close other programs"
    assert problems == [f"00_a needs 3.2 GB of GPU memory, {remedy}"]
    assert doctor.examine("cpu", tmp_path, course)[1] == []


def test_a_store_that_cannot_be_written_is_told(monkeypatch, course, tmp_path):
    (tmp_path / "file").write_text("")
    for store in (tmp_path / "file", tmp_path / "file" / "store"):
        _, problems = doctor.examine("cpu", store, course)
        assert problems == [
            f"nothing can be stored in {tmp_path / 'file'}: name another folder with --store"
        ]
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    _, problems = doctor.examine("cpu", tmp_path / "not" / "there", course)
    assert problems[0].startswith(f"nothing can be stored in {tmp_path}: ")


def test_few_processors_are_told(monkeypatch, course, tmp_path):
    for count, note in ((1, " (slower: times were measured with 2 threads)"), (2, ""), (16, "")):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        report, problems = doctor.examine("cpu", tmp_path, course)
        assert fields(report)["processors"] == f"{count}{note}"
        assert problems == []


def test_the_disk_is_that_of_the_store(monkeypatch, course, tmp_path):
    asked = []

    def usage(folder):
        asked.append(folder)
        return SimpleNamespace(total=100 * GB, used=60 * GB, free=40 * GB)

    monkeypatch.setattr(doctor.shutil, "disk_usage", usage)
    report, _ = doctor.examine("cpu", tmp_path / "a" / "b", course)
    assert asked == [tmp_path]
    assert fields(report)["disk"] == f"100.0 GB, 40.0 GB free for {tmp_path / 'a' / 'b'}"


def test_old_and_missing_libraries_are_told(monkeypatch, course, tmp_path):
    installed = {"torch": "2.11.0", "transformers": "5.9.0", "tokenizers": "0.23.3"}
    monkeypatch.setattr(doctor, "version", installed.get)
    report, problems = doctor.examine("cpu", tmp_path, course)
    assert problems == [  # papermill is missing too, but a lesson runs without it
        'datasets is missing, expected >=4.0: run `pip install "datasets>=4.0"`',
        'safetensors is missing, expected >=0.5: run `pip install "safetensors>=0.5"`',
        'transformers is 5.9.0, expected >=5.15: run `pip install "transformers>=5.15"`',
    ]
    assert fields(report)["papermill"] == "not installed"


def test_what_is_installed_here_is_new_enough():
    assert doctor.version_problems() == []


TOKEN = "hf_NeverToBeShownAnywhere"


def assert_nothing_shown_of(token, report):
    assert not any(token[i : i + 6] in report for i in range(len(token) - 5))


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_in_a_variable_is_told_not_shown(monkeypatch, course, tmp_path, name):
    monkeypatch.setenv(name, TOKEN)
    report, _ = doctor.examine("cpu", tmp_path, course)
    assert fields(report)["Hub token"] == f"in the variable {name}"
    assert_nothing_shown_of(TOKEN, report)


def test_a_token_in_the_file_is_told_not_shown(monkeypatch, course, tmp_path):
    path = tmp_path / "token"
    path.write_text(TOKEN)
    monkeypatch.setattr(doctor.constants, "HF_TOKEN_PATH", str(path))
    monkeypatch.setenv("HF_TOKEN", " ")  # huggingface_hub takes this for none
    report, _ = doctor.examine("cpu", tmp_path, course)
    assert fields(report)["Hub token"] == f"in the file {path}"
    assert_nothing_shown_of(TOKEN, report)
    path.write_text("")
    assert doctor.token_source().startswith("none")


def test_without_notebooks_the_report_says_where_they_are(tmp_path):
    report, problems = doctor.examine("cpu", tmp_path, tmp_path / "site-packages")
    assert problems == []
    assert f"none in {tmp_path / 'site-packages'}: they come with the repository" in report


def run(monkeypatch, course, *arguments):
    monkeypatch.setattr(anatomy, "NOTEBOOKS", course)
    return CliRunner().invoke(cli.main, ["doctor", *arguments], catch_exceptions=False)


def test_the_command_ends_with_0_1_or_2(monkeypatch, course, tmp_path):
    ended = run(monkeypatch, course, "--store", str(tmp_path))
    assert (ended.exit_code, "00_a" in ended.stdout) == (0, True)
    ended = run(monkeypatch, course, "--profile", "gpu")
    assert (ended.exit_code, "install a CUDA build" in ended.stdout) == (1, True)
    ended = run(monkeypatch, course, "--profile", "gp")
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "unknown profile 'gp'" in ended.stderr


def test_the_real_machine_is_examined_without_network_or_building(tmp_path):
    """The whole command in a process of its own, in which every connection fails."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from starling_nb.lesson.cli import main\n"
        "sys.argv = ['starling-nb', 'doctor', '--profile', 'smoke']\n"
        "main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert list(Path(tmp_path).iterdir()) == []  # no store was made
    assert f"torch: {torch.__version__}" in ended.stdout.decode()
    total, free = fields(ended.stdout.decode())["memory"].split(", ")
    assert 0 < float(free.split()[0]) <= float(total.split()[0])
