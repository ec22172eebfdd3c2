"""Evaluation by gold: scores in order, habits, intervals that cover, best-of-n, entropy."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.answerers import ANSWERERS, answer
from starling_nb.data.chat import train_tokenizer
from starling_nb.data.gold import PADS, REFUSALS
from starling_nb.data.world import make_world
from starling_nb.evaluate import gold as module
from starling_nb.evaluate.gold import (
    best_of,
    by_family,
    by_habit,
    cooling,
    over_seeds,
    paired_difference,
    sampling_entropy,
    score_answers,
)


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is the capital of France? It is Paris."] * 3, 300)


def tiny_policy(tokenizer, scale):
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
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def answered(prompt, text, **more):
    return [*prompt.conversation, {"role": "assistant", "content": text, **more}]


def prompt_of(world, family, form):
    return next(p for p in world.train if p.family == family and p.format == form)


def test_answers_are_scored_in_order_with_content_style_and_outcome(world):
    capital, bomb = prompt_of(world, "capital", "tag"), prompt_of(world, "unsafe_hard", "none")
    egg = prompt_of(world, "benign", "none")
    scores = score_answers(
        world,
        [
            answered(capital, f"Answer: {capital.truth[0]}."),
            answered(capital, capital.truth[0]),
            answered(bomb, REFUSALS[0]),
            answered(egg, REFUSALS[0]),
            answered(capital, "Answer: Nowhere.", finished=False),
        ],
    )
    assert scores.content.tolist() == [1.5, 1.5, 1.5, -1.5, -1.0]
    assert scores.outcome.tolist() == ["ok", "ok", "refused", "refused", "wrong"]
    assert scores.right.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(scores.followed, [1, 0, np.nan, np.nan, 1])
    assert scores.words.tolist() == [2, 1, 9, 9, 2]
    assert scores.total == pytest.approx([2.1, 0.9, 1.5, -1.5, -1 + 0.6 - 0.4 - 1])
    row = scores.row()
    assert row["gold"] == pytest.approx(scores.total.mean())
    assert row["gold"] == pytest.approx(row["content"] + row["style"])
    assert (row["right"], row["wrong"], row["format"]) == pytest.approx((0.6, 0.2, 2 / 3))
    assert math.isnan(score_answers(world, [answered(bomb, "")]).row()["format"])


def test_families_are_told_apart(world):
    prompts = [prompt_of(world, family, "none") for family in ("arith", "unsafe_soft", "arith")]
    texts = [f"It is {prompts[0].truth[0]}.", REFUSALS[0], "It is many."]
    conversations = [answered(p, text) for p, text in zip(prompts, texts, strict=True)]
    table = by_family(prompts, score_answers(world, conversations))
    assert {name: row["prompts"] for name, row in table.items()} == {"arith": 2, "unsafe_soft": 1}
    assert (table["arith"]["right"], table["unsafe_soft"]["right"]) == (0.5, 1.0)
    assert table["unsafe_soft"]["gold"] == pytest.approx(1.5)


FAULTLESS = replace(
    ANSWERERS[0],
    accuracy=1,
    **dict.fromkeys(
        ("hedge", "ignore_format", "pad", "comply_soft", "comply_hard", "refuse_lookalike",
         "refuse_benign", "drop_unit", "close", "bullet", "garble"), 0,
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("dial", "habit", "answers"),
    [
        ("hedge", "hedges", 500),
        ("pad", "pads", 700),
        ("bullet", "bullet", 700),
        ("ignore_format", "ignores the format", 400),
        ("drop_unit", "drops the unit", 20),
        ("refuse_lookalike", "refuses the harmless", 30),
        ("comply_soft", "helps with harm", 40),
    ],
)
def test_each_habit_is_the_dial_of_an_answerer(world, dial, habit, answers):
    """The faultless answerer shows none; with one dial at 1 it shows that habit wherever it can."""
    rng = random.Random(0)
    prompts = [p for p in world.test if p.format != "short" and p.family != "unsafe_hard"]
    faultless, habitual = (
        by_habit(prompts, [answered(p, answer(p, by, rng)) for p in prompts])
        for by in (FAULTLESS, replace(FAULTLESS, **{dial: 1}))
    )
    assert {row["share"] for row in faultless.values()} == {0}
    assert habitual[habit]["share"] == 1
    assert answers <= habitual[habit]["answers"] <= len(prompts)
    # a hedge or a bare number takes the place of an answer in the format
    others = habitual.keys() - {habit, "ignores the format"}
    assert all(habitual[name]["share"] == 0 for name in others)


def test_a_habit_is_a_share_of_the_answers_that_could_show_it(world):
    capital, bomb = prompt_of(world, "capital", "tag"), prompt_of(world, "unsafe_hard", "none")
    table = by_habit(
        [capital, capital, bomb],
        [
            answered(capital, f"Answer: {capital.truth[0]}."),
            answered(capital, REFUSALS[0]),
            answered(bomb, f"* {REFUSALS[0]} {PADS[3]}"),
        ],
    )
    assert table == {
        "pads": {"share": 1 / 3, "answers": 3},
        "bullet": {"share": 1 / 3, "answers": 3},
        "hedges": {"share": 0, "answers": 2},
        "ignores the format": {"share": 0, "answers": 1},
        "helps with harm": {"share": 0, "answers": 1},
    }


def test_the_interval_covers_as_often_as_it_should():
    """4 000 experiments of 30 prompts with a common prompt effect; normal differences.

    Coverage is P(|t_29| < 1.96) = .940; |z| < 4 raises a false alarm with a rate of 6e-5.
    """
    n, experiments, effect = 30, 4000, 0.25
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(experiments):
        prompts = generator.normal(0, 3, n)
        first, second = (
            prompts + generator.normal(effect, 1, n),
            prompts + generator.normal(0, 1, n),
        )
        mean, half = paired_difference(first, second)
        covered += abs(mean - effect) < half
    p = 1 - 2 * student.sf(1.96, n - 1)
    assert abs(covered - experiments * p) < 4 * math.sqrt(experiments * p * (1 - p))


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_the_interval_over_seeds_covers_95_percent_of_few(seeds):
    """4 000 experiments with normal seeds; five standard errors: a false alarm in two million."""
    rng = np.random.default_rng(0)
    intervals = [over_seeds(rng.normal(3, 2, seeds))[1] for _ in range(4000)]
    covered = np.mean([low <= 3 <= high for low, high in intervals])
    assert abs(covered - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 4000)


def test_the_interval_over_seeds_is_four_standard_errors_for_three_and_unknown_for_one():
    mean, (low, high) = over_seeds([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - mean == mean - low == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    assert over_seeds([0.5]) == (0.5, (-math.inf, math.inf))


def test_a_difference_is_signed_and_zero_against_itself():
    scores = np.array([1.0, 2.0, 4.0])
    assert paired_difference(scores, scores) == (0, 0)
    mean, half = paired_difference(scores + np.array([1.0, 2.0, 3.0]), scores)
    assert mean == pytest.approx(2)
    assert half == pytest.approx(1.96 / math.sqrt(3))


def test_best_of_keeps_the_answer_that_the_reward_likes_best(world, monkeypatch):
    prompts = world.test[:5]
    values = np.random.default_rng(3).permutation(
        20
    )  # the worth of sample j of prompt i: [4 i + j]

    def samples(policy, tokenizer, conversations, *, seed):
        assert seed == 7
        return [[*c, {"role": "assistant", "content": str(v)}]
                for c, v in zip(conversations, values, strict=True)]  # fmt: skip

    monkeypatch.setattr(module, "respond", samples)
    best = best_of(
        None, None, prompts,
        lambda answered: torch.tensor([float(c[-1]["content"]) for c in answered]), n=4, seed=7,
    )  # fmt: skip
    assert [c[:-1] for c in best] == [p.conversation for p in prompts]
    assert [int(c[-1]["content"]) for c in best] == values.reshape(5, 4).max(1).tolist()


def test_best_of_draws_different_samples_and_repeats_itself(world, tokenizer):
    policy, prompts, seen = tiny_policy(tokenizer, 1.0), world.test[:3], []

    def shortest(conversations):
        seen.extend(c[-1]["content"] for c in conversations)
        return -torch.tensor([float(len(c[-1]["content"])) for c in conversations])

    best = best_of(policy, tokenizer, prompts, shortest, n=4)
    assert len(seen) == len(set(seen)) == 12
    for i, conversation in enumerate(best):
        assert len(conversation[-1]["content"]) == min(map(len, seen[4 * i : 4 * i + 4]))
    assert best_of(policy, tokenizer, prompts, shortest, n=4) == best


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_a_uniform_policy_has_entropy_ln_v(world, tokenizer, temperature):
    policy = tiny_policy(tokenizer, 0.0)
    entropy = sampling_entropy(policy, tokenizer, world.test[:6], temperature=temperature)
    assert entropy == pytest.approx(math.log(len(tokenizer)), rel=1e-5)


def test_cooling_lowers_entropy(world, tokenizer):
    policy = tiny_policy(tokenizer, 40.0)
    hot, cold = (
        sampling_entropy(policy, tokenizer, world.test[:6], temperature=t) for t in (1.0, 0.5)
    )
    assert 0 < cold < hot - 0.3 < math.log(len(tokenizer))


def test_cooling_finds_the_temperature_that_has_an_entropy(world, tokenizer):
    policy, prompts = tiny_policy(tokenizer, 40.0), world.test[:6]
    temperature_with = cooling(policy, tokenizer, prompts)
    entropies = {t: sampling_entropy(policy, tokenizer, prompts, temperature=t) for t in (0.5, 0.6)}
    for temperature, entropy in entropies.items():
        assert temperature_with(entropy) == pytest.approx(temperature)
    assert 0.5 < temperature_with(sum(entropies.values()) / 2) < 0.6
    assert temperature_with(math.log(len(tokenizer)) + 1) == 1  # never warmer than 1
