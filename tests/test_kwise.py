"""K-wise likelihood, rank breaking, packed lists and the training of a reward model."""

import copy
import math
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import encode, mistral_tokenizer, train_tokenizer
from starling_nb.device import Device
from starling_nb.reward.kwise import BREAKINGS, pairwise_nll, plackett_luce_nll
from starling_nb.reward.metrics import ranking_metrics
from starling_nb.reward.model import RewardModel, score
from starling_nb.reward.packing import (
    PackedList,
    block_mask,
    collate,
    encode_list,
    encode_rows,
    pack_list,
    score_lists,
)
from starling_nb.reward.train import (
    RewardConfig,
    build_reward_model,
    load_model,
    save_model,
    train_reward_model,
)
from starling_nb.store import STAGES
from starling_nb.training import length_grouped_batches

DOUBLE = torch.float64
STEPS = [3.0, 2, 1, 0, -1, -2, -3]
UNEVEN = [1.5, 0.2, 0.1, -0.4, -0.4, -2, -5]
scores_lists = st.lists(st.floats(-60, 60), min_size=1, max_size=9)


def tensor(*rows: list[float], dtype=DOUBLE) -> torch.Tensor:
    return torch.tensor(rows, dtype=dtype)


def ragged(rows: list[list[float]], fill: float = math.nan) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) scores, `fill` where a row has no more answers, and the mask."""
    rows = [torch.tensor(row, dtype=DOUBLE) for row in rows]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=fill), mask


def log_sum_exp(values: list[float]) -> float:
    return max(values) + math.log(math.fsum(math.exp(v - max(values)) for v in values))


def naive_nll(scores: list[float], top: int | None = None) -> float:
    """Plackett-Luce as it is read: choose the best of all, then of the rest, and so on."""
    chosen = range(len(scores))[:top]
    return math.fsum(log_sum_exp(scores[j:]) - scores[j] for j in chosen)


def naive_pairs(size: int, breaking: str) -> list[tuple[int, int]]:
    last = size - 1
    return {
        "full": [(i, j) for i in range(size) for j in range(i + 1, size)],
        "adjacent": [(i, i + 1) for i in range(last)],
        "best_vs_rest": [(0, j) for j in range(1, size)],
        "best_vs_second": [(0, 1)] if size > 1 else [],
        "best_vs_worst": [(0, last)] if size > 1 else [],
        "rest_vs_worst": [(i, last) for i in range(last)],
    }[breaking]


# ------------------------------------------------------------------------------------- likelihoods
@settings(deadline=None)
@given(st.lists(scores_lists, min_size=1, max_size=4), st.none() | st.integers(1, 9))
def test_plackett_luce_equals_the_naive_loop(rows, top):
    expected = tensor([naive_nll(row, top) for row in rows])[0]
    found = plackett_luce_nll(*ragged(rows), top=top)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@settings(deadline=None)
@given(st.lists(scores_lists, min_size=1, max_size=4), st.sampled_from(sorted(BREAKINGS)))
def test_pairs_equal_the_naive_loop(rows, breaking):
    expected = [
        math.fsum(log_sum_exp([0.0, row[j] - row[i]]) for i, j in naive_pairs(len(row), breaking))
        for row in rows
    ]
    found = pairwise_nll(*ragged(rows), breaking=breaking)
    torch.testing.assert_close(found, tensor(expected)[0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("scores", "golden"),
    [
        (STEPS, 2.526928),
        ([0.0] * 7, 8.525161),
        (STEPS[::-1], 23.526928),
        (UNEVEN, 3.638141),
    ],
)
def test_plackett_luce_golden_numbers(scores, golden):
    assert plackett_luce_nll(tensor(scores)).item() == pytest.approx(golden, abs=5e-7)


@pytest.mark.parametrize(
    ("scores", "breaking", "golden", "pairs"),
    [
        (STEPS, "full", 2.778916, 1),
        (STEPS, "full", 0.132329, 21),
        (STEPS, "adjacent", 0.313262, 6),
        (STEPS, "best_vs_worst", 0.002476, 1),
        ([0.0] * 7, "full", 14.556091, 1),
        ([0.0] * 7, "adjacent", 0.693147, 6),
        (UNEVEN, "full", 4.600700, 1),
        (UNEVEN, "adjacent", 0.380853, 6),
    ],
)
def test_pairwise_golden_numbers(scores, breaking, golden, pairs):
    found = pairwise_nll(tensor(scores), breaking=breaking).item() / pairs
    assert found == pytest.approx(golden, abs=5e-7)


@pytest.mark.parametrize(
    ("scores", "golden"),
    [
        (STEPS, [-0.367302, -0.133552, -0.044843, -0.004703, 0.031390, 0.110486, 0.408525]),
        ([0.0] * 7, [-0.857143, -0.690476, -0.490476, -0.240476, 0.092857, 0.592857, 1.592857]),
    ],
)
def test_gradient_golden_numbers(scores, golden):
    scores = tensor(scores).requires_grad_()
    plackett_luce_nll(scores).sum().backward()
    torch.testing.assert_close(scores.grad, tensor(golden), rtol=0, atol=5e-7)


def analytic_gradient(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """d nll / d s_i = Σ_{j<=i} exp(s_i − logsumexp(s_j..)) − 1, in O(K)."""
    ranked = scores.masked_fill(~mask, -math.inf)
    log_rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)
    weight = (-log_rest).masked_fill(~mask, -math.inf).logcumsumexp(-1)
    return torch.where(mask, torch.exp(ranked + weight) - 1, 0)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("fill", [0.0, 7.0, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize("top", [None, 1, 2])
@pytest.mark.parametrize("loss", [plackett_luce_nll, pairwise_nll])
def test_absent_answers_have_no_say_and_no_gradient(fill, top, loss):
    rows = [[1.0, 0.5, -2.0, 30.0], [0.3], [-1.0, 4.0], STEPS]
    options = {"top": top} if loss is plackett_luce_nll else {}
    scores, mask = ragged(rows, fill)
    scores.requires_grad_()
    with torch.autograd.detect_anomaly():  # no NaN on the way either
        together = loss(scores, mask, **options)
        together.sum().backward()
    for i, row in enumerate(rows):
        alone = tensor(row).requires_grad_()
        nll = loss(alone, **options)
        nll.sum().backward()
        torch.testing.assert_close(together[i], nll[0])
        torch.testing.assert_close(scores.grad[i, : len(row)], alone.grad[0])
    assert (scores.grad[~mask] == 0).all()
    torch.testing.assert_close(scores.grad.sum(-1), torch.zeros(4, dtype=DOUBLE))


@settings(deadline=None)
@given(st.lists(scores_lists, min_size=1, max_size=4))
def test_gradient_equals_the_analytic_one(rows):
    scores, mask = ragged(rows, fill=-math.inf)
    scores.requires_grad_()
    plackett_luce_nll(scores, mask).sum().backward()
    expected = analytic_gradient(scores.detach(), mask)
    torch.testing.assert_close(scores.grad, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("gap", [50.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_gaps_stay_exact(gap, dtype, sign):
    ladder = [sign * gap * place for place in range(5, -1, -1)]
    scores = tensor(ladder, dtype=dtype).requires_grad_()
    nll = plackett_luce_nll(scores)
    nll.sum().backward()
    assert nll.item() == pytest.approx(naive_nll(ladder), rel=1e-6)
    expected = analytic_gradient(tensor(ladder), torch.ones(1, 6, dtype=torch.bool)).to(dtype)
    torch.testing.assert_close(scores.grad, expected, rtol=1e-5, atol=1e-5)


def test_two_answers_are_bradley_terry():
    scores = torch.randn(20, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    expected = -logsigmoid(scores[:, 0] - scores[:, 1])
    torch.testing.assert_close(plackett_luce_nll(scores), expected)
    for breaking in BREAKINGS:
        torch.testing.assert_close(pairwise_nll(scores, breaking=breaking), expected)


@pytest.mark.parametrize("size", range(1, 10))
def test_equal_scores_give_the_logarithm_of_all_orders(size):
    found = plackett_luce_nll(torch.full((1, size), -8.3, dtype=DOUBLE)).item()
    assert found == pytest.approx(math.log(math.factorial(size)), rel=1e-9)


@settings(deadline=None)
@given(scores_lists, st.floats(-1000, 1000))
def test_a_shift_of_all_scores_changes_nothing(row, shift):
    scores = tensor(row)
    for loss in (plackett_luce_nll, pairwise_nll):
        torch.testing.assert_close(loss(scores + shift), loss(scores), rtol=1e-6, atol=1e-9)


def test_probabilities_of_all_rankings_sum_to_one():
    """Of all 5! full rankings; of a top-2 ranking each is met (5−2)! times."""
    orders = torch.tensor(list(permutations(UNEVEN[:5])), dtype=DOUBLE)
    assert plackett_luce_nll(orders).neg().exp().sum().item() == pytest.approx(1)
    assert plackett_luce_nll(orders, top=2).neg().exp().sum().item() == pytest.approx(6)


def test_order_of_lists_and_of_the_unranked_does_not_matter():
    scores, mask = ragged([STEPS, UNEVEN, [2.0, 1.0]])
    order = [2, 0, 1]
    nll = plackett_luce_nll(scores, mask)
    torch.testing.assert_close(plackett_luce_nll(scores[order], mask[order]), nll[order])
    below = [0, 1, 6, 4, 2, 5, 3]  # the best two stay, the rest is not ranked
    shuffled = tensor([UNEVEN[i] for i in below])
    torch.testing.assert_close(plackett_luce_nll(shuffled, top=2)[0], plackett_luce_nll(
        tensor(UNEVEN), top=2
    )[0])  # fmt: skip


@pytest.mark.parametrize("breaking", [None, *BREAKINGS])
def test_only_full_and_best_vs_rest_are_consistent(breaking):
    """At the true scores, a consistent estimator's gradient is zero in expectation.

    The expectation is exact: over all 4! rankings, each with its Plackett-Luce probability.
    """
    truth = torch.tensor([0.9, 0.3, -0.2, -1.0], dtype=DOUBLE, requires_grad=True)
    ranked = truth[torch.tensor(list(permutations(range(4))))]
    probability = plackett_luce_nll(ranked).neg().exp().detach()
    nll = pairwise_nll(ranked, breaking=breaking) if breaking else plackett_luce_nll(ranked)
    (probability * nll).sum().backward()
    consistent = breaking in (None, "full", "best_vs_rest")
    assert (truth.grad.abs().max().item() < 1e-12) is consistent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_upcast(dtype):
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    for loss in (plackett_luce_nll, pairwise_nll):
        assert loss(scores).dtype == torch.float32
        assert torch.equal(loss(scores), loss(scores.float()))


def test_unknown_breaking_is_refused():
    with pytest.raises(ValueError, match=r"best_vs_worst.*found 'pairs'"):
        pairwise_nll(tensor(STEPS), breaking="pairs")


# ----------------------------------------------------------------------------------------- metrics
def test_metrics_by_hand():
    scores, mask = ragged([[1.0, 2.0, 0.0], [5.0, 5.0]])
    found = ranking_metrics(scores, mask)
    assert found["pairs"] == 4
    assert found["lists"] == 2
    assert found["accuracy"] == pytest.approx((0 + 1 + 1 + 0.5) / 4)
    assert found["adjacent_accuracy"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert found["top1"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["nll"] == pytest.approx((naive_nll([1, 2, 0]) / 2 + math.log(2)) / 2)
    assert found["chance_nll"] == pytest.approx((math.log(6) / 2 + math.log(2)) / 2)


def test_metrics_of_equal_and_of_perfect_scores():
    equal, mask = ragged([[3.0] * 7, [3.0] * 4], fill=3.0)
    found = ranking_metrics(equal, mask)
    assert found["accuracy"] == found["adjacent_accuracy"] == 0.5
    assert found["top1"] == pytest.approx((1 / 7 + 1 / 4) / 2)
    assert found["nll"] == pytest.approx(found["chance_nll"])
    assert ranking_metrics(tensor([0.0] * 7))["chance_nll"] == pytest.approx(1.420860, abs=5e-7)
    perfect = ranking_metrics(*ragged([STEPS, [9.0, -70.0]]))
    assert perfect["accuracy"] == perfect["adjacent_accuracy"] == perfect["top1"] == 1


# ----------------------------------------------------------------------------------------- packing
def mistral(vocabulary: int = 300, dtype=torch.float32) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=4,
    )
    return MistralForCausalLM(config).to(dtype)


def random_lists(sizes: list[tuple[int, list[int]]]) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts and answers of the given lengths, in random ids."""
    generator = torch.Generator().manual_seed(1)

    def draw(length):
        return torch.randint(5, 300, (length,), generator=generator).tolist()

    return [(draw(prompt), [draw(size) for size in answers]) for prompt, answers in sizes]


SHAPES = [(6, [3, 1, 5, 2, 8, 4, 4]), (1, [2, 9]), (11, [1, 1, 1]), (3, [7])]


def test_a_packed_list_by_hand():
    packed = pack_list([10, 11], [[20], [30, 31, 32]])
    assert packed.input_ids.tolist() == [10, 11, 20, 30, 31, 32]
    assert packed.position_ids.tolist() == [0, 1, 2, 2, 3, 4]
    assert packed.segments.tolist() == [0, 0, 1, 2, 2, 2]
    assert packed.ends.tolist() == [2, 5]
    sees = block_mask(packed.segments[None])[0, 0].int().tolist()
    assert sees == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [1, 1, 0, 1, 1, 1],
    ]


def test_padding_is_seen_by_nobody_and_sees_something():
    batch = collate([pack_list(*parts) for parts in random_lists(SHAPES)])
    length = batch["input_ids"].shape[1]
    for row, (prompt, answers) in enumerate(SHAPES):
        tokens = prompt + sum(answers)
        mask = batch["attention_mask"][row, 0]
        assert not mask[:tokens, tokens:].any()
        assert mask.any(-1).all()
        assert mask.shape == (length, length)


@pytest.mark.parametrize("parts", [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_lists_without_tokens_are_refused(parts):
    with pytest.raises(ValueError, match="expected a prompt and answers with tokens"):
        pack_list(*parts)


def test_tokens_of_a_packed_list_are_counted_exactly():
    """P + ΣA, against K·P + ΣA in separate rows and 42 rows in 21 pairs."""
    prompt, answers = SHAPES[0]
    (parts,) = random_lists([SHAPES[0]])
    assert len(pack_list(*parts).input_ids) == prompt + sum(answers)
    assert collate([pack_list(*parts)])["input_ids"].numel() == 6 + 27


@pytest.mark.parametrize(("dtype", "tolerance"), [(DOUBLE, 1e-6), (torch.float32, 1e-5)])
def test_packed_lists_equal_separate_sequences(dtype, tolerance):
    """Loss and every gradient, several ragged lists at once, grouped-query attention."""
    lists = random_lists(SHAPES)
    packed = RewardModel.from_policy(mistral(dtype=dtype)).to(dtype)
    separate = copy.deepcopy(packed)

    batch = collate([pack_list(*parts) for parts in lists])
    mask = batch.pop("mask")
    together = packed(**batch)
    plackett_luce_nll(together, mask).mean().backward()

    alone = [
        torch.cat(
            [
                separate(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
                for ids in (prompt + answer for answer in answers)
            ]
        )
        for prompt, answers in lists
    ]
    torch.stack([plackett_luce_nll(row[None])[0] for row in alone]).mean().backward()

    assert mask.sum(-1).tolist() == [len(answers) for _, answers in SHAPES]
    torch.testing.assert_close(
        together[mask], torch.cat(alone), rtol=tolerance, atol=tolerance, check_dtype=False
    )
    largest = max(p.grad.abs().max() for p in separate.parameters())
    for (name, ours), theirs in zip(packed.named_parameters(), separate.parameters(), strict=True):
        assert ours.grad.isfinite().all(), name
        difference = (ours.grad - theirs.grad).abs().max() / largest
        assert difference < tolerance, name


def test_score_lists_keeps_the_order():
    model = RewardModel.from_policy(mistral()).eval()
    lists = [pack_list(*parts) for parts in random_lists(SHAPES)]
    scores, mask = score_lists(model, lists, batch_size=3)
    for row, packed in enumerate(lists):
        batch = collate([packed])
        batch.pop("mask")
        torch.testing.assert_close(scores[row][mask[row]], model(**batch)[0].detach())
    assert (scores[~mask] == 0).all()


# ---------------------------------------------------------------------------------------- encoding
@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"It is {word}, I think." for word in "red blue green".split()], 300)


def row(prompt: str, answers: list[str]) -> dict:
    ranked = [
        {"answer": text, "model": "m", "rank": float(rank)}
        for rank, text in enumerate(answers, start=1)
    ]
    return {"prompt": f"\n\nHuman: {prompt}\n\nAssistant: ", "answers": ranked}


AWKWARD = [
    "Paris.",
    "",
    " \n two",
    ") 3",
    "<|end_of_turn|> no </s>",
    "GPT4 Correct Assistant:",
    "▁é",
]


@pytest.mark.parametrize("kind", ["own", "mistral"])
@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_a_list_is_encoded_like_its_conversations(tokenizer, kind, texts):
    tokenizer = tokenizer if kind == "own" else mistral_tokenizer()
    asked = [
        {"role": "user", "content": "Which <|end_of_turn|>?"},
        {"role": "assistant", "content": "So."},
        {"role": "user", "content": "And?"},
    ]
    text = "\n\nHuman: Which <|end_of_turn|>?\n\nAssistant: So.\n\nHuman: And?\n\nAssistant: "
    answers = AWKWARD + texts
    prompt_ids, answers_ids = encode_list(tokenizer, text, answers)
    assert prompt_ids == encode(tokenizer, asked, add_generation_prompt=True)
    for answer, ids in zip(answers, answers_ids, strict=True):
        whole = encode(tokenizer, [*asked, {"role": "assistant", "content": answer}], False)
        assert prompt_ids + ids == whole


def parts(packed: PackedList) -> tuple[list[int], list[list[int]]]:
    """Prompt and answers out of a packed list."""
    segments = [
        packed.input_ids[packed.segments == k].tolist() for k in range(len(packed.ends) + 1)
    ]
    return segments[0], segments[1:]


def test_truncation_keeps_the_prompts_end_and_the_answers_start(tokenizer):
    rows = [
        row("a b", ["c d", "e f"]),
        row("p " * 150, ["c d", "e f"]),
        row("a b", ["x " * 150, "e f"]),
        row("p " * 150, ["x " * 150, "y " * 150, "e f"]),
    ]
    whole = [parts(packed) for packed in encode_rows(rows, tokenizer, 1000)[0]]
    limit = 200
    lists, truncation = encode_rows(rows, tokenizer, limit)
    assert truncation._asdict() == {
        "prompts": 2,
        "answers": 3,
        "of_prompts": 4,
        "of_answers": 9,
    }
    for packed, (prompt, answers) in zip(lists, whole, strict=True):
        kept, kept_answers = parts(packed)
        assert kept == prompt[-len(kept) :]
        assert all(
            kept_answer == answer[: len(kept_answer)]
            for kept_answer, answer in zip(kept_answers, answers, strict=True)
        )
        assert len(kept) == len(prompt) or len(kept) >= limit // 2
        longest = max(map(len, kept_answers))
        assert len(kept) + longest <= limit
        cut = (kept, kept_answers) != (prompt, answers)
        assert not cut or len(kept) + longest == limit  # nothing is cut without need
    assert [parts(packed) == before for packed, before in zip(lists, whole, strict=True)] == [
        True,
        False,
        False,
        False,
    ]


def test_batches_are_a_partition_of_similar_lengths():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(20, 200, (1000,), generator=generator).tolist()
    batches = length_grouped_batches(lengths, 12, torch.Generator().manual_seed(3))
    again = length_grouped_batches(lengths, 12, torch.Generator().manual_seed(3))
    assert batches == again
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


# ---------------------------------------------------------------------------------------- training
COLOURS = ["red", "blue", "green"]


def colour_rows(count: int, seed: int = 0) -> list[dict]:
    """Rankings a model can learn: red before blue before green, two or three of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        asked, size = torch.randint(2, 4, (2,), generator=generator).tolist()
        places = torch.randperm(3, generator=generator)[:size].sort().values.tolist()
        answers = [f"It is {COLOURS[place]}." for place in places]
        rows.append(row(f"Is it {COLOURS[asked - 1]}?", answers))
    return rows


@pytest.fixture
def policy(tokenizer):
    return mistral(len(tokenizer)).eval()


def same_weights(a: torch.nn.Module, b: torch.nn.Module, **tolerance) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.allclose(x, y, **tolerance) for x, y in pairs)


def test_training_learns_and_repeats_itself(policy, tokenizer, capfd):
    before = copy.deepcopy(policy)
    rows, held_out = colour_rows(240), colour_rows(40, seed=1)
    model, history = train_reward_model(rows, policy, tokenizer, lr=4e-3, validation_rows=held_out)
    assert not model.training
    assert history[0]["of_answers"] == sum(len(r["answers"]) for r in rows)
    assert history[-1]["step"] == 20
    assert history[-1]["validation_accuracy"] > 0.95
    assert history[-1]["validation_nll"] < 0.3 < history[-1]["validation_chance_nll"]
    assert len(capfd.readouterr().err.strip().splitlines()) <= 10

    again, _ = train_reward_model(rows, policy, tokenizer, lr=4e-3)
    other, _ = train_reward_model(rows, policy, tokenizer, lr=4e-3, seed=1)
    assert same_weights(model, again, rtol=0, atol=0)
    assert not same_weights(model, other)
    assert same_weights(policy, before, rtol=0, atol=0)

    talks = [
        [{"role": "user", "content": "Is it blue?"}, {"role": "assistant", "content": text}]
        for text in ("It is blue.", "It is red.", "It is green.")
    ]
    assert score(model, tokenizer, talks).argsort().tolist() == [2, 0, 1]


def test_training_equals_the_plain_loop(policy, tokenizer):
    """Oracle: the loop a lesson shows, with a loss of the learner's own."""
    rows, lr, batch_size = colour_rows(50), 3e-3, 12

    def top_two(scores, mask):
        return plackett_luce_nll(scores, mask, top=2) + 0.01 * scores.sum(-1) ** 2

    trained, history = train_reward_model(
        rows, policy, tokenizer, loss=top_two, epochs=2, lr=lr, batch_size=batch_size, seed=5
    )

    lists, _ = encode_rows(rows, tokenizer)
    generator = torch.Generator().manual_seed(5)
    lengths = [len(packed.input_ids) for packed in lists]
    batches = [
        batch for _ in range(2) for batch in length_grouped_batches(lengths, batch_size, generator)
    ]
    model = RewardModel.from_policy(policy, seed=5).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0)
    warm_up = math.ceil(0.05 * len(batches))
    losses = []
    for step, batch in enumerate(batches):
        done = (step - warm_up) / (len(batches) - warm_up)
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))
        optimizer.param_groups[0]["lr"] = lr * (step / warm_up if step < warm_up else cosine)
        inputs = collate([lists[i] for i in batch])
        mask = inputs.pop("mask")
        nll = top_two(model(**inputs), mask).mean()
        nll.backward()
        losses.append(nll.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert not same_weights(trained, RewardModel.from_policy(policy, seed=5), atol=1e-3)
    assert same_weights(trained, model, rtol=1e-4, atol=1e-5)
    assert [entry["loss"] for entry in history[1:]] == pytest.approx(losses, rel=1e-4)


def test_training_in_bfloat16_keeps_float32_weights(policy, tokenizer):
    device = Device(torch.device("cpu"), torch.bfloat16, "sdpa", 1, {})
    model, history = train_reward_model(
        colour_rows(120), policy, tokenizer, lr=4e-3, epochs=2, device=device,
        validation_rows=colour_rows(20, seed=1),
    )  # fmt: skip
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history[-1]["validation_accuracy"] > 0.9


def test_stage_saves_and_loads_the_model(policy, tokenizer, tmp_path):
    assert STAGES["reward_model"].needs == ("sft", "rankings")
    rankings = SimpleNamespace(train=colour_rows(30), validation=colour_rows(5, seed=1))
    context = SimpleNamespace(
        seed=0, device=Device(torch.device("cpu"), torch.float32, "sdpa", 1, {})
    )
    built = build_reward_model(RewardConfig(lists=20), context, (policy, tokenizer), rankings)
    model, _, history = built
    assert history[0]["of_prompts"] == 20
    save_model(built, tmp_path)
    assert (tmp_path / "history.json").is_file()
    loaded, its_tokenizer = load_model(tmp_path)
    assert same_weights(loaded, model, rtol=0, atol=0)
    talk = [{"role": "user", "content": "Is it 42?"}, {"role": "assistant", "content": AWKWARD[4]}]
    assert encode(its_tokenizer, talk) == encode(tokenizer, talk)
    assert its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert not list(tmp_path.glob("*.bin"))


def test_mistrals_tokenizer_survives_the_files(policy, tmp_path):
    save_model((RewardModel.from_policy(policy), mistral_tokenizer(), []), tmp_path)
    _, its_tokenizer = load_model(tmp_path)
    for text in AWKWARD:
        talk = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        assert encode(its_tokenizer, talk) == encode(mistral_tokenizer(), talk)
