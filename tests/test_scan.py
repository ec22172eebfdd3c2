"""Scanning a checkpoint's spectra: shard by shard, stopped and started again, bad input."""

import ast
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.laser import scan as module
from starling_nb.laser.reduce import matrices
from starling_nb.laser.scan import main, measure, scan, scores
from starling_nb.laser.spectra import METHODS, entry_mad, noise_edge, singular_values, snr
from starling_nb.lesson import anatomy
from starling_nb.store import read_json


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=64, **sizes, **heads)).eval()


@pytest.fixture
def folder(model, tmp_path):
    """The model as a checkpoint of several shards, in bfloat16."""
    model.bfloat16().save_pretrained(tmp_path / "checkpoint", max_shard_size="10KB")
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 2
    return tmp_path / "checkpoint"


def change(folder, name, edit):
    """Replace the tensor of that name in its shard by what edit makes of it."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shard = folder / index["weight_map"][name]
    tensors = {key: value.clone() for key, value in load_file(shard).items()}
    tensors[name] = edit(tensors[name])
    save_file(tensors, shard, metadata={"format": "pt"})


def test_a_checkpoint_scanned_has_the_spectra_of_the_model(model, folder, tmp_path):
    out = tmp_path / "spectra.jsonl"
    found = {spectrum.name: spectrum for spectrum in scan(folder, out)}
    assert sorted(found) == sorted(n for n, p in model.named_parameters() if p.ndim == 2)
    assert set(matrices(model)) < set(found)
    for name, weight in matrices(model).items():
        assert found[name].shape == weight.shape
        assert found[name].spread == entry_mad(weight)
        assert found[name].values.equal(singular_values(weight))
    again = scan(folder, out)
    for spectrum in again:  # from the file
        torch.testing.assert_close(
            spectrum.values, found[spectrum.name].values, rtol=1e-7, atol=1e-12
        )
        assert spectrum.spread == found[spectrum.name].spread
    only = scan(folder, tmp_path / "some.jsonl", lambda name: "up_proj" in name)
    assert [spectrum.name for spectrum in only] == [
        f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)
    ]


def test_a_stopped_scan_goes_on(folder, tmp_path, monkeypatch):
    out, measured = tmp_path / "spectra.jsonl", []

    def stopping(name, weight):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(name)
        return measure(name, weight)

    monkeypatch.setattr(module, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        scan(folder, out)
    whole = out.read_text()
    assert whole.count("\n") == 3
    out.write_text(whole[:-40])  # the last line was being written
    monkeypatch.setattr(
        module, "measure", lambda name, w: measured.append(name) or measure(name, w)
    )
    names = [spectrum.name for spectrum in scan(folder, out)]
    assert measured == [*names[:3], *names[2:]]
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == names


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.masked_fill(torch.eye(*w.shape) > 0, float("nan")), "found NaN"),
        (lambda w: w.to(torch.int8), r"is quantised \(torch.int8\)"),
        (lambda w: w.to(torch.uint8), r"is quantised \(torch.uint8\)"),
        (lambda w: w.to(torch.int32), r"is quantised \(torch.int32\)"),
        (lambda w: w.to(torch.float8_e4m3fn), r"is quantised \(torch.float8_e4m3fn\)"),
    ],
)
def test_unusable_weights_are_named(folder, tmp_path, edit, message):
    name, out = "model.layers.1.mlp.up_proj.weight", tmp_path / "spectra.jsonl"
    change(folder, name, edit)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        scan(folder, out)
    if "NaN" in message:  # the others are kept
        assert "model.layers.0.mlp.up_proj.weight" in out.read_text()
    else:
        assert not out.exists()


def test_a_missing_shard_an_empty_choice_and_no_checkpoint(folder, tmp_path):
    out = tmp_path / "spectra.jsonl"
    with pytest.raises(ValueError, match="expected 2-D weights of the names wanted, found none"):
        scan(folder, out, lambda name: False)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name}.*fetch the checkpoint again"):
        scan(folder, out)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository"):
        scan(folder / "absent", out)
    assert not out.exists()


def test_a_file_of_other_weights_is_refused_and_kept(folder, tmp_path):
    out = tmp_path / "spectra.jsonl"
    scan(folder, out)
    before = out.read_bytes()
    lines = before.decode().splitlines()
    name = "model.layers.0.self_attn.k_proj.weight"
    place = next(i for i, text in enumerate(lines, 1) if name in text)

    def last_rows(weight):
        weight[1:] += 1
        return weight

    for edit in (lambda w: w + 1, last_rows, lambda w: torch.cat([w, w])):
        change(folder, name, edit)
        with pytest.raises(ValueError, match=rf"line {place}: .*k_proj.* on other weights"):
            scan(folder, out)
        assert out.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": 3}\n',
        b'{"important": 1}',
        b'{\n  "a": 1\n}',
        b"\xff\x00\n",
        b"\xff\x00",
        b"notes",
    ],
)
def test_a_file_of_another_kind_is_refused_and_kept(folder, tmp_path, content):
    out = tmp_path / "spectra.jsonl"
    out.write_bytes(content)
    with pytest.raises(ValueError, match=r"spectra.jsonl: line 1: expected a spectrum"):
        scan(folder, out)
    assert out.read_bytes() == content


def test_what_is_no_matrix_is_left_out_and_said(folder, tmp_path):
    """Vectors are not spoken of; whole-number tables are no weights; more dimensions are named."""
    name = "model.layers.1.mlp.up_proj.weight"
    change(folder, name, lambda w: w.view(3, 16, 32))
    change(folder, "model.layers.1.mlp.down_proj.weight", lambda w: w.to(torch.int64))
    with pytest.warns(UserWarning, match=rf"1 weights are no matrices.*{name} \(3, 16, 32\)"):
        found = scan(folder, tmp_path / "spectra.jsonl")
    assert len(found) == 2 * 7 + 2 - 2


def test_scores_are_those_of_each_weight(model):
    spectra = [measure(name, weight) for name, weight in matrices(model).items()]
    for method in METHODS:
        found = scores(spectra, method)
        assert list(found) == list(matrices(model))
        for spectrum in spectra:
            spread = entry_mad(matrices(model)[spectrum.name])
            edge = noise_edge(spectrum.values, spectrum.shape, method, entry_spread=spread)
            row = found[spectrum.name]
            assert row["edge"] == edge
            assert row["kept"] == sum(value > edge for value in spectrum.values.tolist())
            assert row["snr"] == snr(spectrum.values, edge)
            assert row["spectrum"] == pytest.approx(row["snr"] / spectrum.values[0].item())


def test_the_command_prints_a_table_or_the_reason(folder, tmp_path):
    out = tmp_path / "spectra.jsonl"
    run = CliRunner().invoke(main, [str(folder), str(out), "--method", "median"])
    assert run.exit_code == 0
    rows = run.stdout.splitlines()
    assert rows[0].split() == ["weight", "shape", "kept", "SNR", "SNR", "/", "largest"]
    assert len(rows) == 1 + 2 * 7 + 2
    assert next(row for row in rows if "0.mlp.up_proj" in row).split()[1:4] == ["48", "x", "32"]
    failed = CliRunner().invoke(main, [str(tmp_path), str(out)])
    assert failed.exit_code == 1
    assert "expected one of model.safetensors" in failed.output


def explained(logs, groups):
    """The share of the variance of `logs` that lies between groups."""
    means = [logs[np.array(groups) == group].mean() for group in groups]
    return np.var(means) / logs.var()


def told_in_lesson_08(name):
    """The dictionary of that name in a cell of the lesson."""
    lesson = anatomy.read_notebook(anatomy.NOTEBOOKS / "08_laser.ipynb")
    source = "\n".join(cell.source for cell in lesson.cells)
    told = re.search(rf"^{name} = (\{{.*?\n\}})", source, re.DOTALL | re.MULTILINE)
    assert told
    return ast.literal_eval(told[1])


def test_what_lesson_08_says_of_mistral_is_in_the_published_scores(shared_data):
    published = read_json(shared_data / "laser" / "snr_results_Mistral-7B-v0.1.json")
    kinds = [row["type"].rpartition(".")[2] for row in published.values()]
    values = np.array([row["snr"] for row in published.values()])
    table = told_in_lesson_08("MISTRAL")
    top_half = np.argsort(-values)[: len(values) // 2]
    for kind, (_, least, median, largest, in_top_half) in table.items():
        of_kind = values[np.array(kinds) == kind]
        assert len(of_kind) == 32
        found = (of_kind.min(), np.median(of_kind), of_kind.max())
        assert found == pytest.approx((least, median, largest), rel=0.005, abs=0.005)
        assert sum(kinds[i] == kind for i in top_half) == in_top_half
    shapes = [str(sorted(table[kind][0])) for kind in kinds]
    layers = [name.split(".")[2] for name in published]
    shares = [explained(np.log(values), groups) for groups in (kinds, shapes, layers)]
    assert [round(100 * share) for share in shares] == [89, 58, 2]
    lowest = Counter(kinds[i] for i in np.argsort(values)[:15])
    assert lowest == {"q_proj": 14, "o_proj": 1}
    steps = {}  # from the 17th to the 16th score, relative
    for kind, top in told_in_lesson_08("TOP_16").items():
        of_kind = {int(layers[i]): values[i] for i in range(len(values)) if kinds[i] == kind}
        order = sorted(of_kind, key=lambda layer: -of_kind[layer])
        assert sorted(order[:16]) == [int(layer) for layer in top.split()]
        steps[kind] = of_kind[order[15]] / of_kind[order[16]] - 1
    assert min(steps, key=steps.__getitem__) == "q_proj"
    assert round(steps["q_proj"], 3) == 0.004
    assert max(steps, key=steps.__getitem__) == "v_proj"
    assert round(steps["v_proj"], 2) == 0.10
