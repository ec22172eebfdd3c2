"""Attention over packed lists, sequence by sequence: the same as under the mask, and used."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lists import DOUBLE, mistral
from tiny_rewards import llama_config
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from starling_nb.reward import attention
from starling_nb.reward import model as model_module
from starling_nb.reward.attention import sequence_places
from starling_nb.reward.kwise import plackett_luce_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import block_mask, collate, pack_list
from starling_nb.training import Batch

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            vocab_size=300,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    )


def qwen2() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**TINY))


def qwen3() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**TINY, head_dim=8))


def olmo() -> OlmoForCausalLM:
    torch.manual_seed(0)
    return OlmoForCausalLM(OlmoConfig(**TINY, pad_token_id=1, eos_token_id=2))


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config())


def segments_of(*sizes: list[int]) -> torch.Tensor:
    """(B, T): for each row the lengths of its prompt and of its answers."""
    rows = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in sizes]
    return pad_sequence(rows, batch_first=True)


def batch_of(model: RewardModel, *sizes: list[int]) -> tuple[Batch, Batch, torch.Tensor]:
    """Packed lists of random ids: as collated, under a mask, and which of the answers are there."""
    generator = torch.Generator().manual_seed(1)
    lists = []
    for prompt, *answers in sizes:
        total = prompt + sum(answers)
        ids = torch.randint(5, model.config.vocab_size, (total,), generator=generator)
        first, *rest = [part.tolist() for part in ids.split([prompt, *answers])]
        lists.append(pack_list(first, rest))
    batch = collate(lists)
    mask = batch.pop("mask")
    masked = {name: batch[name] for name in ("input_ids", "position_ids", "ends")}
    masked["attention_mask"] = block_mask(batch["segments"])
    return batch, masked, mask


SIZES = [6, 3, 1, 5, 2, 8, 4, 4], [1, 2, 9], [11, 1, 1, 1], [3, 7]


def test_places_by_hand(monkeypatch):
    monkeypatch.setattr(attention, "TOKENS", 6)
    groups, found = sequence_places(segments_of([2, 1, 3], [1, 2]))
    assert [places.tolist() for places in groups] == [
        [[0, 1, 2], [6, 7, 8]],
        [[0, 1, 3, 4, 5]],
    ]
    assert found.tolist() == [6, 7, 2, 8, 9, 10, 3, 4, 5, 0, 0, 0]


lists_of_sizes = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=7)),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def small_calls():
    """Several calls also for a few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "TOKENS", 24)
        yield


@given(lists_of_sizes)
def test_every_token_is_found_where_it_was_laid(small_calls, sizes):
    segments = segments_of(*([prompt, *answers] for prompt, answers in sizes))
    groups, found = sequence_places(segments)
    laid = torch.cat([places.flatten() for places in groups])
    filled = torch.cat(
        [
            torch.arange(prompt + sum(answers)) + i * segments.shape[1]
            for i, (prompt, answers) in enumerate(sizes)
        ]
    )
    assert torch.equal(laid[found[filled]], filled)
    assert all(places.numel() <= 24 or len(places) == 1 for places in groups)


@settings(deadline=None, max_examples=20)
@given(lists_of_sizes)
def test_the_scores_are_those_under_the_mask(small_calls, sizes):
    model = RewardModel.from_policy(mistral(dtype=DOUBLE)).to(DOUBLE)
    batch, masked, mask = batch_of(model, *([prompt, *answers] for prompt, answers in sizes))
    torch.testing.assert_close(model(**batch)[mask], model(**masked)[mask], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", [mistral, llama, gpt2, qwen2, qwen3])
@pytest.mark.parametrize("way", ["from a policy", "loaded", "recomputing"])
def test_gradients_are_those_under_the_mask(small_calls, policy, way, tmp_path):
    model = RewardModel.from_policy(policy()).eval()
    if way == "loaded":
        model.save_pretrained(tmp_path)
        model = RewardModel.from_pretrained(tmp_path).eval()
    assert model.transformer.config.model_type in attention.KINDS
    other = copy.deepcopy(model)
    if way == "recomputing":
        recompute = partial(checkpoint, use_reentrant=False)
        model.train()._set_gradient_checkpointing(True, gradient_checkpointing_func=recompute)
    batch, masked, mask = batch_of(model, *SIZES)
    scores, expected = model(**batch), other(**masked)
    plackett_luce_nll(scores, mask).mean().backward()
    plackett_luce_nll(expected, mask).mean().backward()
    torch.testing.assert_close(scores[mask], expected[mask], rtol=1e-5, atol=1e-5)
    largest = max(p.grad.abs().max() for p in other.parameters() if p.grad is not None)
    for (name, ours), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None:
            assert (ours.grad - theirs.grad).abs().max() < 1e-5 * largest, name


def test_the_mask_is_not_made(monkeypatch):
    """A trunk of a known kind never sees the row's T² pairs; another one has the mask."""
    made = []
    monkeypatch.setattr(model_module, "block_mask", lambda s: made.append(s) or block_mask(s))
    for policy, masks in ((mistral, 0), (olmo, 1)):
        model = RewardModel.from_policy(policy()).eval()
        batch, masked, mask = batch_of(model, *SIZES)
        scores = model(**batch)[mask]
        assert len(made) == masks
        torch.testing.assert_close(scores, model(**masked)[mask], rtol=1e-5, atol=1e-5)


def test_a_policys_own_attention_is_left_to_it():
    policy = mistral()
    policy.set_attn_implementation("eager")
    model = RewardModel.from_policy(policy)
    config = policy.config
    RewardModel(config)
    assert policy.config._attn_implementation == "eager"
    assert model.transformer.config._attn_implementation == attention.SHARED_PREFIX
    plain = mistral()
    RewardModel(plain.config)
    assert plain.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": None}, "expected with position_ids and ends"),
        ({"position_ids": None}, "expected with position_ids and ends"),
        ({"attention_mask": torch.ones(4, 33)}, "without a mask"),
        ({"segments": None}, "attention_mask: expected"),
    ],
)
def test_incomplete_packed_rows_are_refused(changes, message):
    model = RewardModel.from_policy(mistral())
    batch, _, _ = batch_of(model, *SIZES)
    with pytest.raises(ValueError, match=message):
        model(**{**batch, **changes})
