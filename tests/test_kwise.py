"""K-wise likelihood and rank breaking."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_lists import DOUBLE, STEPS, ragged, tensor
from torch.nn.functional import logsigmoid

from starling_nb.reward.kwise import BREAKINGS, pairwise_nll, plackett_luce_nll, squared_sum

UNEVEN = [1.5, 0.2, 0.1, -0.4, -0.4, -2, -5]
scores_lists = st.lists(st.floats(-60, 60), min_size=1, max_size=9)


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


def test_squared_sum_by_hand():
    scores, mask = ragged([[1.0, 2.0, -0.5], [3.0, -3.0], [-4.0]])
    assert squared_sum(scores, mask).tolist() == [6.25, 0, 16]
    assert squared_sum(scores[:1]).tolist() == [6.25]
