"""Spectra, noise edges, low-rank reduction and the searches over reductions."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import encode_with_mask, train_tokenizer
from starling_nb.data.world import make_world
from starling_nb.device import Device
from starling_nb.laser import spectra
from starling_nb.laser.reduce import (
    factored,
    factors,
    low_rank,
    matrices,
    random_components,
    rank_of,
    reduced,
    sketched_low_rank,
    thin_layers,
)
from starling_nb.laser.scan import measure
from starling_nb.laser.search import (
    Candidate,
    LaserConfig,
    above_noise,
    best_first,
    build_laser,
    compose,
    last_layers_first,
    likelihood,
    lowest_snr_first,
    reward_of_answers,
    save_laser,
    search,
    winners_curse,
)
from starling_nb.laser.spectra import (
    METHODS,
    entry_mad,
    mp_density,
    mp_edge,
    mp_median,
    noise_edge,
    planted,
    singular_values,
    snr,
    spectrum_score,
)
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
    assert spectrum_score(values, edge) == pytest.approx(0.580514, abs=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    block=st.sampled_from([3, 8, 1024]),
)
def test_singular_values_equal_the_decomposition_s(rows, columns, seed, block):
    weight = noise((rows, columns), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "BLOCK", block)
        values = singular_values(weight)
    expected = torch.linalg.svdvals(weight.double())
    assert values.shape == (min(rows, columns),)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-7 * expected[0].item())
    torch.testing.assert_close(singular_values(weight.T), values, rtol=1e-6, atol=1e-9)


UNUSABLE = {
    "found torch.float32 of shape": torch.zeros(3),
    "found torch.int8": torch.zeros(3, 3, dtype=torch.int8),
    r"of shape \(0, 3\)": torch.zeros(0, 3),
    "found NaN": torch.tensor([[1.0, float("nan")]]),
    "meta": torch.zeros(3, 3, device="meta"),
}


def test_unusable_weights_are_refused():
    for message, weight in UNUSABLE.items():
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
    ("shape", "kept"),
    [((512, 512), 0.237), ((512, 1024), 0.649), ((256, 896), 0.987), ((256, 1024), 1.0)],
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
def test_planted_rank_is_found_by_every_edge_but_the_published(shape):
    """Twenty components of four times the strength at which they begin to be seen."""
    weight = planted(shape, 20, 4.0, torch.Generator().manual_seed(1), spread=0.02)
    clean = planted(shape, 20, 4.0, torch.Generator().manual_seed(1), spread=0.02) - noise(
        shape, seed=1
    )
    expected = 4 * 0.02 * math.prod(shape) ** 0.25
    torch.testing.assert_close(
        singular_values(clean)[:20], torch.full((20,), expected).double(), rtol=1e-4, atol=0
    )
    assert singular_values(clean)[20] < 1e-4 * expected
    values, spread = singular_values(weight), entry_mad(weight)
    kept = {
        method: int((values > noise_edge(values, shape, method, entry_spread=spread)).sum())
        for method in METHODS
    }
    assert kept.pop("laserrmt") > 100
    assert kept == {"median": 20, "gavish_donoho": 20, "entry_mad": 20}


def test_the_law_of_noise_is_a_density_with_the_edge_and_the_squares_it_should_have():
    for beta in (1.0, 0.5, 0.25, 0.1):
        low, high = 1 - math.sqrt(beta), mp_edge(beta)
        x = np.linspace(low, high, 200_001)[1:]
        density = np.array([mp_density(value, beta) for value in x])
        step = x[1] - x[0]
        assert density.sum() * step == pytest.approx(1, abs=1e-3)
        assert (density * x**2).sum() * step == pytest.approx(1, abs=1e-3)  # ||W||² = n m s²
        assert mp_density(high + 1e-6, beta) == mp_density(low - 1e-6, beta) == 0
    # And it is the law of a matrix: quantiles of 1000 values, in units of s sqrt(max).
    values = singular_values(noise((1000, 2000))).numpy() / (0.02 * math.sqrt(2000))
    x = np.linspace(1 - math.sqrt(0.5), mp_edge(0.5), 20_001)
    cdf = np.cumsum([mp_density(value, 0.5) for value in x]) * (x[1] - x[0])
    below = np.interp(np.sort(values), x, cdf)
    assert np.abs(below - (np.arange(1000) + 0.5) / 1000).max() < 0.01


def test_entry_mad_is_the_spread_of_entries_and_heeds_no_outliers():
    weight = noise((400, 300))
    assert entry_mad(weight) == pytest.approx(0.02, rel=0.02)
    outliers = weight.clone()
    outliers[:, 0] = 100.0
    assert entry_mad(outliers) == pytest.approx(0.02, rel=0.03)
    assert entry_mad(weight.bfloat16()) == pytest.approx(0.02, rel=0.02)
    edge = noise_edge(singular_values(weight), (400, 300), "entry_mad", entry_spread=0.02)
    assert edge == pytest.approx(0.02 * (20 + math.sqrt(300)))


def test_the_threshold_of_gavish_and_donoho():
    """Over the median singular value, as their paper prints it, and above the edge of noise."""
    for shape, ratio in (((600, 600), 2.8582), ((150, 600), 1.8371), ((30, 600), 1.5194)):
        values = singular_values(noise(shape))
        edge = noise_edge(values, shape, "gavish_donoho")
        assert edge / values.quantile(0.5).item() == pytest.approx(ratio, abs=1e-3)
        assert edge > noise_edge(values, shape, "median")


def test_spectrums_score_shrinks_with_scale_and_snr_does_not():
    values = singular_values(noise((40, 60)) + GOLDEN.repeat(14, 15)[:40, :60])
    edge = noise_edge(values, (40, 60))
    for scale in (0.1, 7.0):
        assert snr(scale * values, scale * edge) == pytest.approx(snr(values, edge))
        score = spectrum_score(scale * values, scale * edge)
        assert score == pytest.approx(spectrum_score(values, edge) / scale)


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


def test_snr_without_noise_without_signal_and_at_the_edge():
    assert snr(torch.tensor([3.0, 2.0]), 1.0) == math.inf
    assert snr(torch.tensor([3.0, 2.0]), 4.0) == 0.0
    assert snr(torch.tensor([3.0, 2.0, 1.0]), 2.0) == 1.0  # the edge itself is noise
    zeros = singular_values(torch.zeros(4, 6))
    for method in METHODS:
        edge = noise_edge(zeros, (4, 6), method, entry_spread=0.0)
        assert snr(zeros, edge) == spectrum_score(zeros, edge) == 0.0


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


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_low_rank_is_the_truncated_decomposition(shape):
    """Against LAPACK's singular value decomposition, which the package does without."""
    weight = planted(shape, 5, 3.0, torch.Generator().manual_seed(0)).double()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    for rank in (1, 5, 17):
        expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(low_rank(weight, rank), expected, rtol=0, atol=1e-9)
        left, right = factors(weight, rank)
        assert (left.shape, right.shape) == ((shape[0], rank), (rank, shape[1]))


def test_sketched_low_rank_is_nearly_the_nearest():
    """Within 1 % where the spectrum decays, within 6 % where it is flat; exact near full rank."""
    decaying = planted((200, 300), 20, 6.0, torch.Generator().manual_seed(0))
    for weight, slack in ((decaying, 1.01), (noise((200, 300)), 1.06)):
        nearest = (weight - low_rank(weight, 20)).norm()
        found = sketched_low_rank(weight, 20, seed=1)
        assert nearest * (1 - 1e-5) <= (weight - found).norm() <= slack * nearest
        assert torch.linalg.matrix_rank(found.double(), rtol=1e-4) == 20
        assert found.equal(sketched_low_rank(weight, 20, seed=1))
        assert not found.equal(sketched_low_rank(weight, 20, seed=2))
    small = noise((24, 40)).double()
    torch.testing.assert_close(
        sketched_low_rank(small, 18, seed=0), low_rank(small, 18), rtol=0, atol=1e-12
    )


def test_random_components_are_as_many_of_the_weights_own():
    weight = noise((20, 30)).double()
    _, s, _ = torch.linalg.svd(weight)
    drawn = random_components(weight, 4, torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(drawn)
    assert (found[4:] < 1e-12).all()
    for value in found[:4]:
        assert (s - value).abs().min() < 1e-9
    other = random_components(weight, 4, torch.Generator().manual_seed(1))
    assert not torch.allclose(drawn, other)
    everything = random_components(weight, 20, torch.Generator().manual_seed(0))
    torch.testing.assert_close(everything, weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "approximate",
    [
        low_rank,
        partial(sketched_low_rank, seed=0),
        partial(random_components, generator=torch.Generator()),
    ],
)
def test_what_has_no_such_approximation_is_refused(approximate):
    for rank in (0, 4, -1):
        with pytest.raises(ValueError, match=f"rank: expected 1 to 3, found {rank}"):
            approximate(GOLDEN, rank)
    for message, weight in UNUSABLE.items():
        with pytest.raises(ValueError, match=message):
            approximate(weight, 1)


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
    unknown = "no matrix 'no_such': expected a name such as 'model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(KeyError, match=unknown), reduced(policy, {name: 1, "no_such": 1}):
        pass
    for search_for in (
        lambda: search(policy, [name, "no_such"], [0.1], never),
        lambda: compose(policy, [(name, 1), ("no_such", 1)], never),
    ):
        with pytest.raises(KeyError, match=unknown):
            search_for()
    assert same(policy, before)


def never(policy):
    raise AssertionError("the criterion was asked")


def test_factored_computes_the_same_with_fewer_numbers(policy):
    before, layers = state(policy), dict(policy.named_modules())
    name, other = "model.layers.1.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight"
    ranks = {name: 3, other: 15}  # k is (16, 32): 15 (16 + 32) numbers would be more than 16 * 32
    ids = torch.arange(5, 25)[None]
    with reduced(policy, ranks):
        expected = policy(ids).logits
    whole = sum(p.numel() for p in policy.parameters())
    with factored(policy, ranks) as smaller:
        torch.testing.assert_close(smaller(ids).logits, expected, rtol=1e-4, atol=1e-5)
        saved = whole - sum(p.numel() for p in policy.parameters())
        assert saved == 48 * 32 - 3 * (48 + 32)
        assert torch.linalg.matrix_rank(matrices(policy)[other]) == 15
    assert same(policy, before)
    assert dict(policy.named_modules()) == layers
    with pytest.raises(RuntimeError, match="stopped"), factored(policy, ranks):
        raise RuntimeError("stopped")
    assert same(policy, before)
    for bad, error, message in (
        ({name: 33}, ValueError, "rank: expected 1 to 32, found 33"),
        ({name: 3, "no_such": 1}, KeyError, "no matrix 'no_such'"),
    ):
        with pytest.raises(error, match=message), factored(policy, bad):
            pass
    assert same(policy, before)


def test_a_factored_layer_keeps_its_bias():
    layer = torch.nn.Linear(6, 8)
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(thin_layers(layer, 6)(x), layer(x), rtol=1e-5, atol=1e-6)


def test_search_finds_the_matrix_that_carries_noise(policy):
    """A rank-one matrix plus noise, judged by its distance to the rank-one matrix."""
    clean = {name: low_rank(p, 1) for name, p in matrices(policy).items()}
    target = "model.layers.0.mlp.gate_proj.weight"
    names = [target, "model.layers.1.mlp.gate_proj.weight"]
    original = matrices(policy)[names[1]].detach().clone()

    def criterion(policy):
        weights = matrices(policy)
        moved = (weights[names[1]] - original).detach().norm()
        return -torch.stack([(weights[target] - clean[target]).detach().norm(), moved])

    before = state(policy)
    baseline, found = search(policy, names, (0.5, 0.01), criterion)
    assert same(policy, before)
    assert baseline.equal(criterion(policy))
    assert [(each.name, each.rank, each.rho) for each in found[:2]] == [
        (target, 1, 0.01),
        (target, 16, 0.5),
    ]
    means = [each.scores.mean().item() for each in found]
    assert means == sorted(means, reverse=True)
    assert found[0].scores.tolist() == pytest.approx([0, 0], abs=1e-5)
    assert means[0] > baseline.mean() > means[2]
    assert best_first(baseline, found) == [(target, 1)]


def test_compose_keeps_what_helps_and_undoes_the_rest(policy):
    names = [n for n in matrices(policy) if "up_proj" in n or "down_proj" in n]
    good = {names[0], names[2], names[3]}
    originals = {n: p.detach().clone() for n, p in matrices(policy).items()}

    def criterion(policy):
        moved = {
            n: float((p.detach() - originals[n]).norm() > 0) for n, p in matrices(policy).items()
        }
        return torch.tensor([sum(v if n in good else -v for n, v in moved.items())]).expand(3)

    before = state(policy)
    kept = compose(policy, [(name, 2) for name in names], criterion)
    assert [(row["name"], row["rank"], row["score"]) for row in kept] == [
        (names[0], 2, 1.0),
        (names[2], 2, 2.0),
        (names[3], 2, 3.0),
    ]
    changed = {n for n, value in policy.state_dict().items() if not value.equal(before[n])}
    assert changed == good
    policy.load_state_dict(before)
    assert [
        row["name"] for row in compose(policy, [(n, 2) for n in names], criterion, limit=1)
    ] == [names[0]]
    assert compose(policy, [], criterion) == []


def test_the_orders_of_the_published_searches(policy):
    spectra = [measure(name, weight) for name, weight in matrices(policy).items()]
    wide = next(s for s in spectra if "gate_proj" in s.name)
    for method in METHODS:
        kept = above_noise(spectra, method)
        for spectrum in spectra:
            count = sum(v > spectrum.edge(method) for v in spectrum.values.tolist())
            if count < len(spectrum.values):
                assert kept[spectrum.name] == max(1, count)
            else:
                assert spectrum.name not in kept
    assert wide.name in above_noise(spectra, "median")
    names = [name for name, _ in last_layers_first(spectra, "median")]
    kinds = ["mlp.down", "mlp.up", "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"]
    assert names == [
        f"model.layers.{layer}.{kind}_proj.weight" for layer in (1, 0) for kind in kinds
    ]
    lowest = lowest_snr_first(spectra, "laserrmt", count=5)
    ratios = {s.name: snr(s.values, s.edge("laserrmt")) for s in spectra}
    kept = above_noise(spectra, "laserrmt")
    assert lowest == sorted(kept.items(), key=lambda item: ratios[item[0]])[:5]


def test_likelihood_is_the_mean_log_probability_of_the_answers_tokens(policy, tokenizer):
    conversations = [
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": answer}]
        for answer in ("It is Paris.", "What is the capital of France?", "")
    ]
    found = likelihood(tokenizer, conversations)(policy)
    for conversation, value in zip(conversations, found.tolist(), strict=True):
        ids, weights = encode_with_mask(tokenizer, conversation)
        log_pi = policy(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
        each = log_pi.gather(-1, torch.tensor(ids)[1:, None])[:, 0]
        answer = torch.tensor(weights, dtype=torch.bool)[1:]
        assert value == pytest.approx(each[answer].mean().item(), abs=1e-5)


def test_reward_of_answers_is_that_of_the_policys_own(policy, tokenizer):
    prompts = [[{"role": "user", "content": text}] for text in ("What?", "Why is it?")]
    judged = []

    def reward_fn(conversations):
        judged.extend(conversations)
        return torch.tensor([1.0, 2.0])

    found = reward_of_answers(reward_fn, tokenizer, prompts)(policy)
    assert found.tolist() == [1.0, 2.0]
    assert judged == respond(policy, tokenizer, prompts, temperature=0)


def gains_of(gains):
    """A baseline of zeros and candidates with these scores (C, N)."""
    rows = torch.as_tensor(gains)
    return torch.zeros(rows.shape[1]), [
        Candidate(f"c{i}", 0.5, 1, row) for i, row in enumerate(rows)
    ]


def test_the_winner_of_noise_is_found_out():
    """A hundred candidates that do nothing, on 200 items: a best gain, and none where it counts.

    Of 40 such searches p < 0.05 in 2 on average; 8 or more would come by chance once in 1000.
    """
    curses = []
    for seed in range(40):
        noise = torch.randn(100, 200, generator=torch.Generator().manual_seed(seed))
        curses.append(winners_curse(*gains_of(noise), seed=seed, resamples=200))
    gain, out = (np.mean([c[key] for c in curses]) for key in ("gain", "out_of_bag"))
    assert gain == pytest.approx(2.5 / math.sqrt(200), rel=0.1)  # the largest of 100 of N(0, 1)
    assert abs(out) < 0.4 * gain
    assert sum(c["p"] < 0.05 for c in curses) < 8


def test_a_real_winner_stands():
    noise = torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
    noise[17] += 1.0
    curse = winners_curse(*gains_of(noise))
    assert curse["out_of_bag"] == pytest.approx(curse["gain"], abs=0.1)
    assert curse["p"] == pytest.approx(1 / 1001)
    # Also among candidates that do great harm, and differ much from item to item.
    noise[:60] = 20 * noise[:60] - 30
    noise[17] = torch.randn(200, generator=torch.Generator().manual_seed(1)) + 1.0
    assert winners_curse(*gains_of(noise))["p"] == pytest.approx(1 / 1001)


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
    assert found[0]["name"] is None
    assert found[0]["gain"] == 0.0
    assert len(found) == 1 + 7 * 2
    assert all(row["gain"] == row["score"] - found[0]["score"] for row in found)
    changed = [n for n, value in reloaded.state_dict().items() if not value.equal(before[n])]
    assert changed == ([name] if helps else [])
    if helps:
        assert torch.linalg.matrix_rank(matrices(reloaded)[name]) == found[1]["rank"] == 3
