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
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from starling_nb.reward import attention
from starling_nb.reward.attention import sequence_places
from starling_nb.reward.kwise import plackett_luce_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import block_mask, collate, pack_list
from starling_nb.training import Batch


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, vocab_size=300)
    )


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config())


def segments_of(*sizes: list[int]) -> torch.Tensor:
    """(B, T): for each row the lengths of its prompt and of its answers."""
    rows = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in sizes]
    return pad_sequence(rows, batch_first=True)


def batch_of(model: RewardModel, *sizes: list[int]) -> tuple[Batch, Batch, torch.Tensor]:
    """Packed lists of random ids: with their places, under a mask, and which answers are there."""
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
    masked["attention_mask"] = block_mask(segments_of(*sizes))
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
@given(lists_of_sizes, st.booleans())
def test_the_scores_are_those_under_the_mask(small_calls, sizes, checkpointing):
    model = RewardModel.from_policy(mistral(dtype=DOUBLE)).to(DOUBLE)
    batch, masked, mask = batch_of(model, *([prompt, *answers] for prompt, answers in sizes))
    if checkpointing:
        recompute = partial(checkpoint, use_reentrant=False)
        model.train()._set_gradient_checkpointing(True, gradient_checkpointing_func=recompute)
    torch.testing.assert_close(model(**batch)[mask], model(**masked)[mask], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", [mistral, llama, gpt2])
@pytest.mark.parametrize("loaded", [False, True])
def test_gradients_are_those_under_the_mask(small_calls, policy, loaded, tmp_path):
    model = RewardModel.from_policy(policy()).eval()
    if loaded:
        model.save_pretrained(tmp_path)
        model = RewardModel.from_pretrained(tmp_path).eval()
    other = copy.deepcopy(model)
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


def test_the_attention_is_not_saved(tmp_path):
    """A reader without this package finds nothing that it does not know."""
    RewardModel.from_policy(mistral()).save_pretrained(tmp_path)
    assert attention.SHARED_PREFIX not in (tmp_path / "config.json").read_text()
