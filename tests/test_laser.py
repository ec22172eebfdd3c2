"""Spectra, noise edges, low-rank reduction and the search over reductions."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import train_tokenizer
from starling_nb.data.world import make_world
from starling_nb.device import Device
from starling_nb.laser.reduce import (
    LaserConfig,
    build_laser,
    low_rank,
    matrices,
    rank_of,
    reduced,
    save_laser,
    search,
)
from starling_nb.laser.spectra import mp_median, noise_edge, singular_values, snr
from starling_nb.policy.base import load_policy
from starling_nb.policy.rollout import respond
from starling_nb.store import Context, read_json

GOLDEN = torch.arange(1.0, 13.0).reshape(3, 4)


def noise(shape, seed=0, sd=0.02):
    return sd * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_golden_spectrum():
    values = singular_values(GOLDEN)
    torch.testing.assert_close(
        values, torch.tensor([25.436836, 1.722612, 0.0]).double(), rtol=0, atol=1e-6
    )
    edge = noise_edge(values, GOLDEN.shape, "laserrmt")
    assert edge == pytest.approx(17.592951, abs=1e-6)
    assert snr(values, edge) == pytest.approx(14.766431, abs=1e-5)
    assert snr(values, edge) / values[0].item() == pytest.approx(0.580514, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_singular_values_equal_the_decomposition_s(rows, columns, seed):
    weight = noise((rows, columns), seed)
    values = singular_values(weight)
    expected = torch.linalg.svdvals(weight.double())
    assert values.shape == (min(rows, columns),)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7 * expected[0].item())
    torch.testing.assert_close(singular_values(weight.T), values, rtol=1e-6, atol=1e-9)


def test_unusable_weights_are_refused():
    bad = {
        "found torch.float32 of shape": torch.zeros(3),
        "found torch.int8": torch.zeros(3, 3, dtype=torch.int8),
        "found NaN": torch.tensor([[1.0, float("nan")]]),
        "meta": torch.zeros(3, 3, device="meta"),
    }
    for message, weight in bad.items():
        with pytest.raises(ValueError, match=message):
            singular_values(weight)


def test_median_of_the_marchenko_pastur_law():
    table = {1.0: 0.8079, 0.5: 0.9113, 2 / 7: 0.9507, 0.25: 0.9571}
    for beta, median in table.items():
        assert mp_median(beta) == pytest.approx(median, abs=1e-4)
    # Gavish and Donoho's threshold over the median, as their paper prints it for square matrices.
    assert 4 / math.sqrt(3) / mp_median(1.0) == pytest.approx(2.858, abs=5e-4)
    with pytest.raises(ValueError, match=r"beta: expected a ratio in \(0, 1\], found 4"):
        mp_median(4)


@pytest.mark.parametrize(
    ("shape", "kept"), [((512, 512), 0.237), ((256, 896), 0.987), ((256, 1024), 1.0)]
)
def test_published_rule_keeps_noise_and_the_edge_keeps_none(shape, kept):
    """Pure noise: the shares of the asymptotic law, and a spread read off within 1 %."""
    values = singular_values(noise(shape))
    share = (values > noise_edge(values, shape, "laserrmt")).double().mean().item()
    assert share == pytest.approx(kept, abs=0.015)
    edge = noise_edge(values, shape, "median")
    assert edge == pytest.approx(0.02 * (math.sqrt(shape[0]) + math.sqrt(shape[1])), rel=0.01)
    assert (values > 1.02 * edge).sum() == 0  # the largest value fluctuates by min(shape)^(-2/3)


@pytest.mark.parametrize("shape", [(512, 512), (256, 1024), (896, 256)])
def test_planted_rank_is_found_by_the_edge_only(shape):
    """Twenty components of four times the strength at which they begin to be seen."""
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(n, 20, generator=generator))[0] for n in shape)
    weight = noise(shape) + 4 * 0.02 * (shape[0] * shape[1]) ** 0.25 * left @ right.T
    values = singular_values(weight)
    assert (values > noise_edge(values, shape, "median")).sum() == 20
    assert (values > noise_edge(values, shape, "laserrmt")).sum() > 100


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(1e-3, 1e3), method=st.sampled_from(["laserrmt", "median", "gavish_donoho"]))
def test_edge_scales_with_the_weight_and_snr_does_not(scale, method):
    values = singular_values(noise((24, 40)) + GOLDEN.repeat(8, 10))
    edge = noise_edge(values, (24, 40), method)
    assert noise_edge(scale * values, (24, 40), method) == pytest.approx(scale * edge)
    assert noise_edge(values, (40, 24), method) == pytest.approx(edge)
    assert snr(scale * values, scale * edge) == pytest.approx(snr(values, edge))
    with pytest.raises(ValueError, match="expected one of laserrmt, median"):
        noise_edge(values, (24, 40), "iqr")
    with pytest.raises(ValueError, match="entry_spread: expected"):
        noise_edge(values, (24, 40), "entry_mad")


def test_snr_is_infinite_without_noise():
    assert snr(torch.tensor([3.0, 2.0]), 1.0) == math.inf


@settings(deadline=None, max_examples=30)
@given(data=st.data(), rows=st.integers(1, 30), columns=st.integers(1, 30))
def test_low_rank_leaves_out_exactly_the_smallest_singular_values(data, rows, columns):
    rank = data.draw(st.integers(1, min(rows, columns)))
    weight = noise((rows, columns), seed=rows + 31 * columns).double()
    approximation = low_rank(weight, rank)
    values = np.linalg.svd(weight.numpy(), compute_uv=False)
    residual = (weight - approximation).square().sum().item()
    assert residual == pytest.approx((values[rank:] ** 2).sum(), rel=1e-9, abs=1e-18)
    assert torch.linalg.matrix_rank(approximation) == rank
    full = low_rank(weight.float(), min(rows, columns))
    torch.testing.assert_close(full, weight.float(), rtol=1e-5, atol=1e-8)
    assert full.dtype == torch.float32


def test_rank_of_a_fraction():
    assert [rank_of(rho, (67, 100)) for rho in (1.0, 0.5, 0.1, 0.01)] == [67, 33, 6, 1]
    for rho in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"rho: expected a fraction in \(0, 1\]"):
            rank_of(rho, (64, 100))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is the capital of France? It is Paris."] * 3, 300)


@pytest.fixture
def policy(tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=None,
        tie_word_embeddings=True,
    )
    return MistralForCausalLM(config).eval()


def state(policy):
    return {name: value.clone() for name, value in policy.state_dict().items()}


def same(policy, before):
    return all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_matrices_are_the_projections_of_the_blocks(policy):
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    found = matrices(policy)
    assert sorted(name.split(".")[-2] for name in found) == sorted(kinds * 2)
    assert found["model.layers.1.mlp.up_proj.weight"] is policy.model.layers[1].mlp.up_proj.weight
    policy.model.layers = policy.model.layers[:0]
    with pytest.raises(ValueError, match="found none"):
        matrices(policy)


def test_reduced_changes_the_named_and_restores_bit_for_bit(policy):
    before = state(policy)
    name, other = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"
    weight = matrices(policy)[name]
    with reduced(policy, {name: 3, other: 1}) as smaller:
        assert smaller is policy
        assert torch.linalg.matrix_rank(weight) == 3
        assert torch.linalg.matrix_rank(matrices(policy)[other]) == 1
        changed = [n for n, value in policy.state_dict().items() if not value.equal(before[n])]
        assert changed == [other, name]
    assert matrices(policy)[name] is weight  # the same parameter: an optimiser still holds it
    assert same(policy, before)
    with pytest.raises(RuntimeError, match="stopped"), reduced(policy, {name: 1}):
        raise RuntimeError("stopped")
    assert same(policy, before)
    with pytest.raises(KeyError, match="no_such"), reduced(policy, {name: 1, "no_such": 1}):
        pass
    assert same(policy, before)


def test_search_finds_the_matrix_that_carries_noise(policy):
    """A rank-one matrix plus noise, judged by its distance to the rank-one matrix."""
    clean = {name: low_rank(p, 1) for name, p in matrices(policy).items()}
    target = "model.layers.0.mlp.gate_proj.weight"
    names = [target, "model.layers.1.mlp.gate_proj.weight"]

    def criterion(policy):
        weights = matrices(policy)
        near = (weights[target] - clean[target]).norm().item()
        return -near - (weights[names[1]] - original).norm().item()

    original = matrices(policy)[names[1]].detach().clone()
    before = state(policy)
    found = search(policy, names, (0.5, 0.01), criterion)
    assert same(policy, before)
    assert found[0] == {
        "name": None,
        "rho": 1.0,
        "rank": None,
        "score": criterion(policy),
        "gain": 0.0,
    }
    assert [(entry["name"], entry["rank"]) for entry in found[1:3]] == [(target, 1), (target, 16)]
    scores = [entry["score"] for entry in found[1:]]
    assert scores == sorted(scores, reverse=True)
    assert all(e["gain"] == e["score"] - found[0]["score"] for e in found)
    assert found[1]["score"] == pytest.approx(0, abs=1e-5)
    assert found[1]["gain"] > 0 > found[3]["gain"]


@pytest.mark.parametrize("helps", [True, False])
def test_stage_applies_the_best_reduction_only_if_it_helps(policy, tokenizer, tmp_path, helps):
    """Gold is read off one weight of the policy, so that reducing it is known to help or harm."""
    world, before = make_world(0), state(policy)
    name = "model.layers.1.mlp.down_proj.weight"

    judged = []

    class Gold:
        sample = world.sample

        def gold_reward(self, conversations):
            judged.append(conversations)
            moved = (matrices(policy)[name] - before[name]).norm()
            return (moved if helps else -moved).expand(len(conversations)).detach()

    original = copy.deepcopy(policy)
    ctx = Context(0, Device(torch.device("cpu"), torch.float32, "sdpa", 1, {}))
    built = build_laser(
        LaserConfig(layers=1, rhos=(0.5, 0.1), prompts=2), ctx, (policy, tokenizer), Gold()
    )
    prompts = [conversation[:-1] for conversation in judged[0]]
    assert judged[0] == respond(original, tokenizer, prompts, temperature=0)
    save_laser(built, tmp_path)
    reloaded, _ = load_policy(tmp_path)
    found = read_json(tmp_path / "search.json")
    assert len(found) == 1 + 7 * 2
    changed = [n for n, value in reloaded.state_dict().items() if not value.equal(before[n])]
    assert changed == ([name] if helps else [])
    if helps:
        assert torch.linalg.matrix_rank(matrices(reloaded)[name]) == found[1]["rank"] == 3
