"""Partial freezing: selections of equal size, and what training then leaves alone."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from starling_nb import training
from starling_nb.laser.freeze import freeze_by_score, matching, train_only, unfreeze_last
from starling_nb.laser.reduce import matrices
from starling_nb.laser.scan import scan, scores
from starling_nb.training import train

LAYERS = 4
KINDS = [(MistralConfig, MistralForCausalLM, 2), (LlamaConfig, LlamaForCausalLM, 4)]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0].model_type)
def model(request):
    config, kind, key_value_heads = request.param
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": key_value_heads}
    torch.manual_seed(0)
    return kind(config(vocab_size=40, **sizes, **heads, tie_word_embeddings=True)).eval()


def first_kinds(model):
    """The types of the first layer."""
    return by_type(name for name in matrices(model) if ".0." in name)


def random_scores(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand((), generator=generator).item() for name in matrices(model)}


def by_type(names):
    """{type: the layers chosen}."""
    found = {}
    for name in names:
        _, _, layer, *kind = name.split(".")
        found.setdefault(".".join(kind), []).append(int(layer))
    return found


def trainable(model):
    return tuple(name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("top", [1, 2, LAYERS])
def test_all_selections_train_equally_many_numbers(model, top):
    scores = random_scores(model)
    picks = {pick: freeze_by_score(model, scores, top, pick=pick) for pick in ("top", "bottom")}
    picks["random"] = freeze_by_score(model, scores, top, pick="random", seed=3)
    assert trainable(model) == picks["random"].names
    picks["last"] = unfreeze_last(model, top)
    assert trainable(model) == picks["last"].names
    whole = sum(p.numel() for p in matrices(model).values())
    for trained in picks.values():
        assert trained.count == whole * top // LAYERS
        assert trained.total == sum(p.numel() for p in model.parameters())
        assert {len(layers) for layers in by_type(trained.names).values()} == {top}
    for kind, layers in by_type(picks["top"].names).items():
        ordered = sorted(range(LAYERS), key=lambda i: scores[f"model.layers.{i}.{kind}"])
        assert sorted(layers) == sorted(ordered[-top:])
        assert sorted(by_type(picks["bottom"].names)[kind]) == sorted(ordered[:top])
        assert by_type(picks["last"].names)[kind] == list(range(LAYERS - top, LAYERS))
    assert len(set(picks["random"].names)) == len(picks["random"].names)


def test_random_halves_depend_on_their_seed_alone(model):
    ones = dict.fromkeys(matrices(model), 1.0)
    first, again, other = (
        freeze_by_score(model, scores, 2, pick="random", seed=seed).names
        for scores, seed in ((ones, 1), (random_scores(model), 1), (ones, 2))
    )
    assert first == again != other
    # Over many seeds each layer of each type is drawn, and types are drawn apart.
    draws = [
        by_type(freeze_by_score(model, ones, 2, pick="random", seed=s).names) for s in range(20)
    ]
    for kind in first_kinds(model):
        assert {layer for draw in draws for layer in draw[kind]} == set(range(LAYERS))
    assert any(len({tuple(layers) for layers in draw.values()}) > 1 for draw in draws)
    # Equal scores: the earlier layers, and the two halves share nothing.
    top, bottom = (freeze_by_score(model, ones, 2, pick=pick).names for pick in ("top", "bottom"))
    assert {tuple(layers) for layers in by_type(top).values()} == {(0, 1)}
    assert not set(top) & set(bottom)


def test_training_leaves_frozen_parameters_alone_and_out_of_the_optimiser(model, monkeypatch):
    optimisers = []
    create = training.LossTrainer.create_optimizer
    monkeypatch.setattr(
        training.LossTrainer,
        "create_optimizer",
        lambda trainer, *args: optimisers.append(create(trainer, *args)) or optimisers[-1],
    )
    trained = freeze_by_score(model, random_scores(model), 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.randint(40, (4, 9), generator=torch.Generator().manual_seed(0))
    train(
        model,
        [list(ids)] * 3,
        collate=lambda rows: {"input_ids": torch.stack(list(rows))},
        loss=lambda model, batch: model(**batch, labels=batch["input_ids"]).loss,
        lr=1e-2,
        seed=0,
        device=None,
        desc="test",
    )
    after = dict(model.named_parameters())
    changed = tuple(name for name in before if not after[name].equal(before[name]))
    assert changed == trained.names
    (optimiser,) = optimisers
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert held == {id(after[name]) for name in trained.names}


def test_peft_adapts_exactly_the_selected(model):
    trained = freeze_by_score(model, random_scores(model), 2)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=trained.peft_targets()))
    found = {
        name.removeprefix("base_model.model.").partition(".lora_A")[0] + ".weight"
        for name, p in adapted.named_parameters()
        if ".lora_A" in name
    }
    assert found == set(trained.names)


def test_patterns_find_names_or_are_refused(model):
    ups = matching(model, [r"model\.layers\.\d+\.mlp\.up_proj", r"^model.embed_tokens.weight$"])
    expected = ["model.embed_tokens.weight"]
    assert ups == expected + [f"model.layers.{i}.mlp.up_proj.weight" for i in range(LAYERS)]
    assert train_only(model, ups).names == tuple(ups) == trainable(model)
    for pattern in ("lm.head", "up_proj"):  # the head is tied; names begin with `model`
        with pytest.raises(ValueError, match=f"pattern '{pattern}': expected to match a param"):
            matching(model, ["model", pattern])


def test_the_scores_of_a_scan_choose_what_is_trained(model, tmp_path):
    """From a checkpoint on disk to a selection, as laser-QLoRA does it."""
    model.save_pretrained(tmp_path)
    found = scores(scan(tmp_path, tmp_path / "spectra.jsonl"), "median")
    ratios = {name: found[name]["snr"] for name in matrices(model)}
    trained = freeze_by_score(model, ratios, 1)
    for kind, (layer,) in by_type(trained.names).items():
        of_kind = [ratios[f"model.layers.{i}.{kind}"] for i in range(LAYERS)]
        assert of_kind[layer] == max(of_kind)


def test_models_that_have_no_such_matrices_are_refused():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    mixture = MixtralForCausalLM(MixtralConfig(vocab_size=40, **sizes, **heads))
    with pytest.raises(ValueError, match=r"expected 2-D weights, found .*experts.* \(8, "):
        unfreeze_last(mixture, 1)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="layers of its decoder, found none in GPT2LMHeadModel"):
        freeze_by_score(gpt2, {}, 1)


def test_what_cannot_be_is_refused_with_nothing_changed(model):
    scores, before = random_scores(model), trainable(model)
    name = next(iter(scores))
    other = {"model.layers.9.mlp.up_proj.weight": 1.0}
    refused = [
        ("pick: expected top, bottom or random, found 'best'", (scores, 2, "best")),
        ("on one side only: model.layers.9.mlp", (scores | other, 2, "top")),
        (f"on one side only: {name}", ({n: s for n, s in scores.items() if n != name}, 2, "top")),
        (f"found NaN for {name}", (scores | {name: math.nan}, 2, "top")),
        ("expected 1 to 4, the layers of .*, found 0", (scores, 0, "top")),
        ("expected 1 to 4, the layers of .*, found 5", (scores, 5, "random")),
    ]
    for message, (given, top, pick) in refused:
        with pytest.raises(ValueError, match=message):
            freeze_by_score(model, given, top, pick=pick)
    wider = torch.nn.Linear(16, 30, bias=False)
    up, model.model.layers[1].mlp.up_proj = model.model.layers[1].mlp.up_proj, wider
    with pytest.raises(ValueError, match=r"one shape for all .*up_proj.*\(24, 16\), \(30, 16\)"):
        freeze_by_score(model, scores, 2)
    up.weight = torch.nn.Parameter(up.weight.to(torch.int8), requires_grad=False)
    model.model.layers[1].mlp.up_proj = up
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight is torch.int8"):
        unfreeze_last(model, 4)
    up.weight = torch.nn.Parameter(up.weight.float())
    with pytest.raises(ValueError, match=r"pattern '\*': no regular expression"):
        matching(model, ["*"])
    for layers in (0, 5):
        with pytest.raises(ValueError, match=f"expected 1 to 4, the blocks, found {layers}"):
            unfreeze_last(model, layers)
    for names in ([], ["model.layers.0.mlp.up_proj"]):  # a module, not its weight
        with pytest.raises(ValueError, match="names: expected parameters of the model"):
            train_only(model, names)
    assert trainable(model) == before
