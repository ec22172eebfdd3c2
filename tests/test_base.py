"""The nano base: what ships, and a rebuild at smoke size."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from starling_nb.data.chat import EOT, conversation_to_prompt
from starling_nb.data.world import make_world
from starling_nb.policy import base
from starling_nb.policy import rollout as rollout_module
from starling_nb.store import MANIFEST, read_json, sha256_file

TINY = base.BaseConfig(
    shipped=False,
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    vocab_size=1500,
    steps=30,
    rows=4,
    warmup=5,
)


@pytest.fixture(scope="module")
def shipped():
    return base.load_policy(base.ASSET)


@pytest.fixture(scope="module")
def tokenizer():
    world = make_world(0)
    return base.train_tokenizer(list(world.documents(2000, seed=0)), TINY.vocab_size)


def test_the_shipped_model_has_the_promised_shape(shipped):
    policy, tokenizer = shipped
    config = policy.config
    assert config.model_type == "mistral"
    assert config.num_hidden_layers >= 6
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.max_position_embeddings == 1024
    assert len(tokenizer) == config.vocab_size == 4096
    assert policy.dtype == torch.float32


def test_the_shipped_files_are_small_and_as_recorded():
    manifest = read_json(base.ASSET / MANIFEST)
    files = [path for path in base.ASSET.iterdir() if path.name != MANIFEST]
    assert {path.name: sha256_file(path) for path in files} == manifest["files"]
    assert sum(path.stat().st_size for path in base.ASSET.iterdir()) <= 8e6


def test_the_shipped_model_knows_most_facts_in_its_own_format(shipped):
    """200 prompts, greedy: a model that knew 70 % would pass with probability below 1e-3."""
    world = make_world(0)
    factual = [p for p in world.test if p.family in ("capital", "opposite", "order", "transform")]
    prompts = factual[:: len(factual) // 200][:200]
    answered = base.complete(*shipped, [prompt.conversation for prompt in prompts], temperature=0.0)
    right = sum(world.gold(conversation).outcome == "ok" for conversation in answered)
    assert right >= 0.8 * len(prompts)


def test_a_rebuild_learns_and_repeats_itself(tokenizer):
    world = make_world(0)
    first, second = (base.pretrain(tokenizer, world, TINY, seed=0) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    ids = next(base._windows(tokenizer, world, replace(TINY, prose=0.0), seed=7))
    with torch.no_grad():
        assert first(input_ids=ids, labels=ids).loss < 0.9 * math.log(TINY.vocab_size)


def test_windows_have_the_sizes_that_the_config_says(tokenizer):
    sizes = [tuple(w.shape) for w in base._windows(tokenizer, make_world(0), TINY, seed=0)]
    assert len(sizes) == TINY.steps
    assert set(sizes) == {(4, 128), (1, 512)}


def test_shipping_writes_half_precision_that_reads_back_in_float32(tokenizer, tmp_path):
    policy = base.pretrain(tokenizer, make_world(0), replace(TINY, steps=2))
    weights = [p.detach().clone() for p in policy.parameters()]
    base.ship(policy, tokenizer, TINY, tmp_path)
    loaded, same_tokenizer = base.load_policy(tmp_path)
    assert same_tokenizer.get_vocab() == tokenizer.get_vocab()
    for before, after in zip(weights, loaded.parameters(), strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(before.half().float(), after)


@pytest.mark.parametrize(
    ("document", "answer", "finished"),
    [
        (" Paris.\n\nHuman: And of Italy?", "Paris.", True),
        (" Paris.</s>", "Paris.", True),
        (" Paris is", "Paris is", False),
    ],
)
def test_answers_are_cut_out_of_the_document(shipped, monkeypatch, document, answer, finished):
    """`complete` reads a rollout; here the rollout is given, so that the cut alone is tested."""
    policy, tokenizer = shipped
    ids = tokenizer(document, add_special_tokens=False).input_ids
    question = [{"role": "user", "content": "What is the capital of France?"}]
    seen = {}

    def given(policy, prompts, **options):
        seen.update(options, prompts=prompts)
        ended = torch.tensor([document.endswith("</s>")])
        return SimpleNamespace(response_ids=torch.tensor([ids]), truncated=~ended)

    monkeypatch.setattr(rollout_module, "rollout", given)
    [conversation] = base.complete(policy, tokenizer, [question])
    assert conversation == [
        *question,
        {"role": "assistant", "content": answer, "finished": finished},
    ]
    text = tokenizer.decode(seen["prompts"][0], skip_special_tokens=True)
    assert text == conversation_to_prompt(question).strip()
    assert EOT not in text
    assert tokenizer.convert_ids_to_tokens(seen["eos_token_id"]) == "</s>"
