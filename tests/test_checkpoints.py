"""Checkpoints of every layout against the classes that wrote them, and what is refused."""

import copy
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import huggingface_hub
import pytest
import tiny_rewards
import torch
from safetensors.torch import load_file, save_file
from tiny_rewards import card_7b, card_34b, llama_config
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)
from transformers import LlamaForSequenceClassification as Classifier

from starling_nb.reward.checkpoints import checkpoint_folder
from starling_nb.reward.model import RewardModel, score

LENGTHS = (9, 4, 14, 1)


def rows(seed: int = 0) -> list[list[int]]:
    """Random ids behind a BOS, none of them 0, 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    return [[1, *torch.randint(3, 280, (n,), generator=generator).tolist()] for n in LENGTHS]


def batch(ids: list[list[int]], side: str = "right", extra: int = 0):
    width = max(map(len, ids)) + extra
    input_ids = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(ids):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        input_ids[i, place], mask[i, place] = torch.tensor(row), 1
    return input_ids, mask


@torch.no_grad()
def alone(model) -> torch.Tensor:
    """Scores of the rows one at a time, without padding."""
    return torch.cat([model(torch.tensor([r]), torch.ones(1, len(r)).long()) for r in rows()])


def assert_scores(model: RewardModel, expected: torch.Tensor) -> None:
    """A model's scores equal `expected`, whichever side is padded, and in a batch of one."""
    assert expected.std() > 0.1
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(alone(model), expected, **close)
    for side in ("right", "left"):
        for extra in (0, 3):
            with torch.no_grad():
                scores = model(*batch(rows(), side, extra))
            torch.testing.assert_close(scores, expected, **close)


def write_alpha(folder: Path, weights: dict[str, torch.Tensor], name: str) -> None:
    """A checkpoint in the layout of Starling-RM-7B-alpha: config.json and one weights file."""
    llama_config().save_pretrained(folder)
    if name.endswith(".bin"):
        torch.save(weights, folder / name)
    else:
        save_file({k: v.clone() for k, v in weights.items()}, folder / name)


def flat(card) -> dict[str, torch.Tensor]:
    """The language model's weights under its own names, and the head's."""
    return card.model.state_dict() | {"v_head.weight": card.v_head.weight.data}


# --- layouts that are read ---


@pytest.mark.parametrize("shards", ["50GB", "20KB"])
def test_starling_rm_34b_as_its_cards_class_saved_it(tmp_path, shards):
    card = card_34b()
    card.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    model = RewardModel.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = card(*batch(rows()))
    assert_scores(model, expected)
    assert (model.config.reward_template, model.config.reward_max_length) == ("chatml_yi", 2048)
    assert not model.training


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize("names", ["of the language model", "of the card's class"])
def test_starling_rm_7b_alpha(tmp_path, names, name):
    card = card_7b()
    weights = flat(card) if names == "of the language model" else card.state_dict()
    inner = "model." if names == "of the language model" else "model.model."
    weights[f"{inner}layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # of old Llamas
    write_alpha(tmp_path, weights, name)
    model = RewardModel.from_pretrained(tmp_path)
    assert_scores(model, alone(card))
    assert (model.config.reward_template, model.config.reward_max_length) == (
        "llama2_starling",
        2048,
    )


def test_sharded_and_old_bin_files(tmp_path):
    card = card_7b()
    weights = flat(card)
    llama_config().save_pretrained(tmp_path)
    files = {key: f"pytorch_model-{i % 2}.bin" for i, key in enumerate(weights)}
    for file in set(files.values()):
        part = {key: weights[key] for key in weights if files[key] == file}
        torch.save(part, tmp_path / file, _use_new_zipfile_serialization=file.endswith("0.bin"))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    assert_scores(RewardModel.from_pretrained(tmp_path), alone(card))


def llama_classifier():
    return Classifier(llama_config(num_labels=1, pad_token_id=0))


def gpt2_classifier():
    sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2ForSequenceClassification(
        GPT2Config(num_labels=1, initializer_range=0.2, **sizes, **ids)
    )


@pytest.mark.parametrize("build", [llama_classifier, gpt2_classifier])
def test_one_label_classifiers_of_transformers(tmp_path, build):
    torch.manual_seed(0)
    classifier = build().eval()
    classifier.save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    with torch.no_grad():
        input_ids, mask = batch(rows())
        expected = classifier(input_ids, attention_mask=mask).logits[:, 0]
    assert_scores(model, expected)


def test_a_foreign_classifier_scores_conversations_once_its_template_is_named(tmp_path):
    torch.manual_seed(0)
    Classifier(llama_config(vocab_size=32010, num_labels=1, pad_token_id=0)).save_pretrained(
        tmp_path
    )
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    with pytest.raises(ValueError, match=r"config\.reward_template: .* load it with template="):
        score(RewardModel.from_pretrained(tmp_path), tiny_rewards.llama_tokenizer(), [talk])
    model = RewardModel.from_pretrained(tmp_path, template="llama2_starling")
    assert score(model, tiny_rewards.llama_tokenizer(), [talk]).isfinite().all()
    model.save_pretrained(tmp_path / "own")
    again = RewardModel.from_pretrained(tmp_path / "own")
    assert again.config.reward_template == "llama2_starling"


def test_a_config_can_be_given(tmp_path):
    write_alpha(tmp_path, flat(card_7b()), "pytorch_model.bin")
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected config\.json; give config=AutoConfig"):
        RewardModel.from_pretrained(tmp_path)
    config = llama_config()
    model = RewardModel.from_pretrained(tmp_path, config=config)
    assert_scores(model, alone(card_7b()))
    assert not hasattr(config, "reward_template")  # the caller's stays as it was


def test_half_precision_trunks_give_scores_in_float32(tmp_path):
    card = card_34b().to(torch.bfloat16)
    card.save_pretrained(tmp_path)
    model = RewardModel.from_pretrained(tmp_path)
    assert model.transformer.dtype == torch.bfloat16
    assert model.v_head.weight.dtype == torch.float32
    scores = alone(model)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())  # not rounded on the way
    torch.testing.assert_close(scores, alone(card).float(), rtol=2e-2, atol=2e-2)
    whole = RewardModel.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}


# --- formats that are written ---


def own_model(kind=LlamaForCausalLM, config=None) -> RewardModel:
    torch.manual_seed(0)
    config = config or llama_config(pad_token_id=0)
    return RewardModel.from_policy(kind(config)).eval()


@pytest.mark.parametrize("shards", ["50GB", "20KB"])
def test_the_cards_class_reads_the_starling_format(tmp_path, shards):
    model = own_model()
    model.save_pretrained(tmp_path, max_shard_size=shards)
    card = tiny_rewards.LlamaForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        scores = card(*batch(rows()))
    torch.testing.assert_close(scores, alone(model), rtol=1e-5, atol=1e-5)
    assert_scores(RewardModel.from_pretrained(tmp_path), alone(model))


def test_transformers_reads_the_classifier_format(tmp_path):
    model = own_model()
    before = copy.deepcopy(model.config.to_dict())
    model.save_pretrained(tmp_path, format="sequence_classification")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(classifier) is Classifier
    with torch.no_grad():
        logits = classifier(*batch(rows())).logits
    torch.testing.assert_close(logits[:, 0], alone(model), rtol=1e-5, atol=1e-5)
    again = RewardModel.from_pretrained(tmp_path)
    assert_scores(again, alone(model))
    assert again.config.reward_template == "openchat"
    assert model.config.to_dict() == before
    assert {name.split(".")[0] for name in model.state_dict()} == {"transformer", "v_head"}


def test_a_classifier_of_another_family(tmp_path):
    sizes = llama_config().to_dict() | {"model_type": "mistral", "pad_token_id": 0}
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "pad_token_id", "initializer_range")
    model = own_model(MistralForCausalLM, MistralConfig(**{n: sizes[n] for n in names}))
    model.save_pretrained(tmp_path, format="sequence_classification")
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = classifier(*batch(rows())).logits
    torch.testing.assert_close(logits[:, 0], alone(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("pad_id", "ends"), [(None, 2), (2, 2), (2, [7, 2])])
def test_a_classifier_that_could_not_find_the_end_is_not_written(tmp_path, pad_id, ends):
    model = own_model(config=llama_config(pad_token_id=pad_id, eos_token_id=ends))
    with pytest.raises(
        ValueError, match=rf"pad_token_id: .* does not end an answer, found {pad_id}"
    ):
        model.save_pretrained(tmp_path / "x", format="sequence_classification")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="expected 'starling' or 'sequence_classification', found"):
        model.save_pretrained(tmp_path / "x", format="pickle")


def test_what_a_checkpoint_carries(tmp_path):
    """Template and length are written; earlier checkpoints of ours, without them, are openchat."""
    model = own_model(config=llama_config(pad_token_id=0, max_position_embeddings=512))
    assert (model.config.reward_template, model.config.reward_max_length) == ("openchat", 512)
    model.config.reward_max_length = 77
    model.save_pretrained(tmp_path)
    assert RewardModel.from_pretrained(tmp_path).config.reward_max_length == 77
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    del fields["reward_template"]
    file.write_text(json.dumps(fields))
    assert RewardModel.from_pretrained(tmp_path).config.reward_template == "openchat"
    named = RewardModel.from_pretrained(tmp_path, template="chatml_yi")
    assert named.config.reward_template == "chatml_yi"


# --- what is refused ---


@pytest.fixture
def own(tmp_path):
    own_model().save_pretrained(tmp_path)
    return tmp_path


def change(folder: Path, **changes) -> None:
    """Weights of a checkpoint added, replaced, or (None) taken away."""
    file = folder / "model.safetensors"
    weights = load_file(file) | changes
    save_file({k: v for k, v in weights.items() if v is not None}, file, metadata={"format": "pt"})


def test_every_defect_is_named_at_once(own):
    change(
        own,
        **{
            "v_head.weight": None,
            "transformer.layers.1.mlp.up_proj.weight": None,
            "transformer.norm.weight": torch.ones(7),
            "transformer.layers.7.mlp.up_proj.weight": torch.ones(3),
            "optimizer.step": torch.ones(1),
        },
    )
    with pytest.raises(ValueError, match=str(own)) as error:
        RewardModel.from_pretrained(own)
    text = str(error.value)
    assert "missing: transformer.layers.1.mlp.up_proj.weight, v_head.weight\n" in text
    assert "unknown: optimizer.step, transformer.layers.7.mlp.up_proj.weight" in text
    assert "mis-shaped: transformer.norm.weight (7,), expected (32,)\n" in text
    assert "LlamaModel" in text


def test_many_defects_are_counted(own):
    change(own, **{f"x.{i}": torch.ones(1) for i in range(12)})
    with pytest.raises(ValueError, match=r"unknown: x\.0, x\.1, x\.10, x\.11, x\.2 and 7 more"):
        RewardModel.from_pretrained(own)


def test_defects_are_named_as_the_checkpoint_names_its_weights(tmp_path):
    weights = flat(card_7b())
    weights["model.norm.weight"] = torch.ones(7)
    del weights["model.layers.0.mlp.up_proj.weight"]
    write_alpha(tmp_path, weights, "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight"
    ) as error:
        RewardModel.from_pretrained(tmp_path)
    assert r"model.norm.weight (7,), expected (32,)" in str(error.value)


def test_a_language_model_is_no_reward_model(tmp_path):
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing: v_head\.weight$"):
        RewardModel.from_pretrained(tmp_path)


def test_a_classifier_with_two_labels_is_refused(tmp_path):
    Classifier(llama_config(num_labels=2, pad_token_id=0)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"score\.weight \(2, 32\), expected \(1, 32\)"):
        RewardModel.from_pretrained(tmp_path)


def test_two_trunks_that_differ_are_refused(tmp_path):
    weights = {name: tensor.clone() for name, tensor in card_7b().state_dict().items()}
    weights["transformer.norm.weight"][3] += 1e-3
    write_alpha(tmp_path, weights, "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"unlike its copy: transformer\.norm\.weight$"):
        RewardModel.from_pretrained(tmp_path)


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_bin_file_with_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    write_alpha(tmp_path, flat(card_7b()) | {"x": Touch(trap)}, "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin: expected tensors alone; found what would"
    ):
        RewardModel.from_pretrained(tmp_path)
    assert not trap.exists()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Touch(trap), protocol=2))
    with pytest.raises(ValueError, match="expected tensors alone"):
        RewardModel.from_pretrained(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize("content", [[1.0], {"weights": {"x": 1}}])
def test_a_bin_file_with_other_values_is_refused(tmp_path, content):
    write_alpha(tmp_path, content, "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected tensors by name, found other values"):
        RewardModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_cut_files_are_named(tmp_path, name):
    write_alpha(tmp_path, flat(card_7b()), name)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=rf"{name}: expected .*(damage|cut short)"):
        RewardModel.from_pretrained(tmp_path)


def test_shards_that_are_absent_or_elsewhere_are_named(tmp_path):
    card_34b().save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    first = min(tmp_path.glob("model-*.safetensors"))
    first.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FileNotFoundError, match=rf"{first.name}: model\.safetensors\.index\.json"):
        RewardModel.from_pretrained(tmp_path)
    name = next(iter(fields["weight_map"]))
    outside = {"weight_map": fields["weight_map"] | {name: "../elsewhere.safetensors"}}
    number = {"weight_map": fields["weight_map"] | {name: 3}}
    for wrong in (outside, number, {"weight_map": {}}, {"weight_map": 1}, []):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"index\.json: expected a weight_map of weights to"):
            RewardModel.from_pretrained(tmp_path)


def test_folders_without_weights_and_names_of_nothing(tmp_path):
    llama_config().save_pretrained(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"expected one of model\.safetensors.*found config"
    ):
        RewardModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository"):
        RewardModel.from_pretrained(tmp_path / "nothing")


# --- the Hub ---


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty Hub cache, and the Hub out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(hub: Path, repository: str, source: Path, revision: str = "main") -> None:
    """A folder's files as a cached snapshot of a repository."""
    commit = struct.pack(">20s", repository.encode()).hex()
    place = hub / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / revision).write_text(commit)


def test_a_repository_in_the_cache_is_read_without_network(hub, tmp_path):
    card = card_34b()
    card.save_pretrained(tmp_path / "34b", max_shard_size="20KB")
    put(hub, "Nexusflow/Starling-RM-34B", tmp_path / "34b")
    model = RewardModel.from_pretrained("Nexusflow/Starling-RM-34B")
    torch.testing.assert_close(alone(model), alone(card), rtol=1e-5, atol=1e-5)

    (tmp_path / "7b").mkdir()
    write_alpha(tmp_path / "7b", flat(card_7b()), "pytorch_model.bin")
    put(hub, "berkeley-nest/Starling-RM-7B-alpha", tmp_path / "7b", revision="v1")
    model = RewardModel.from_pretrained("berkeley-nest/Starling-RM-7B-alpha", revision="v1")
    torch.testing.assert_close(alone(model), alone(card_7b()), rtol=1e-5, atol=1e-5)


def test_a_repository_out_of_reach_is_said(hub):
    with pytest.raises(ConnectionError, match=r"owner/absent: no such folder here, and fetching"):
        RewardModel.from_pretrained("owner/absent")


def test_only_what_is_needed_is_fetched(monkeypatch, tmp_path):
    """safetensors first; .bin files only of a repository without them."""
    asked = []

    def snapshot_download(name, allow_patterns, revision):
        asked.append((name, tuple(allow_patterns), revision))
        return tmp_path

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    (tmp_path / "model.safetensors").touch()
    assert checkpoint_folder("owner/name", revision="v2") == tmp_path
    (tmp_path / "model.safetensors").unlink()
    checkpoint_folder("owner/name", revision="v2")
    kinds = [patterns[-1] for _, patterns, _ in asked]
    assert kinds == ["*.safetensors", "*.safetensors", "*.bin"]
    assert {(name, revision) for name, _, revision in asked} == {("owner/name", "v2")}


def test_configs_keep_the_two_fields(tmp_path):
    own_model().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.reward_template, config.reward_max_length) == ("openchat", 2048)
