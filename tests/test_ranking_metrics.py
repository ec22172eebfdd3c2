"""How scores order ranked lists: accuracy, τ, calibration, what the scores follow."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, norm, pearsonr
from sklearn.linear_model import LogisticRegression
from tiny_lists import DOUBLE, STEPS, ragged, tensor

from starling_nb.reward.metrics import (
    calibration,
    concordant_pairs,
    logistic_scale,
    ordered_pairs,
    ranking_metrics,
    within_list_correlation,
)


def test_metrics_by_hand():
    scores, mask = ragged([[1.0, 2.0, 0.0], [5.0, 5.0]])
    found = ranking_metrics(scores, mask)
    assert found["pairs"] == 4
    assert found["lists"] == 2
    assert found["accuracy"] == pytest.approx((0 + 1 + 1 + 0.5) / 4)
    assert found["adjacent_accuracy"] == pytest.approx((0 + 1 + 0.5) / 3)
    assert found["top1"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["kendall_tau"] == pytest.approx(((2 - 1) / 3 + 0) / 2)
    e = math.e
    of_three = math.log((e + e**2 + 1) / e) + math.log((e**2 + 1) / e**2)
    assert found["nll"] == pytest.approx((of_three / 2 + math.log(2)) / 2)
    assert found["chance_nll"] == pytest.approx((math.log(6) / 2 + math.log(2)) / 2)


def test_metrics_of_equal_and_of_perfect_scores():
    equal, mask = ragged([[3.0] * 7, [3.0] * 4], fill=3.0)
    found = ranking_metrics(equal, mask)
    assert found["accuracy"] == found["adjacent_accuracy"] == 0.5
    assert found["top1"] == pytest.approx((1 / 7 + 1 / 4) / 2)
    assert found["kendall_tau"] == 0
    assert found["nll"] == pytest.approx(found["chance_nll"])
    assert ranking_metrics(tensor([0.0] * 7))["chance_nll"] == pytest.approx(1.420860, abs=5e-7)
    perfect = ranking_metrics(*ragged([STEPS, [9.0, -70.0]]))
    assert perfect["accuracy"] == perfect["adjacent_accuracy"] == perfect["top1"] == 1
    assert perfect["kendall_tau"] == 1


def random_lists(sizes: list[int], seed: int = 0) -> list[list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return [(2 * torch.randn(size, generator=generator)).tolist() for size in sizes]


def test_kendall_tau_equals_scipys():
    rows = random_lists([7, 4, 2, 1, 7, 3])
    taus = [kendalltau(row, range(len(row), 0, -1)).statistic for row in rows if len(row) > 1]
    found = ranking_metrics(*ragged(rows))["kendall_tau"]
    assert found == pytest.approx(sum(taus) / len(taus), abs=1e-6)
    assert math.isnan(ranking_metrics(tensor([2.0]))["kendall_tau"])  # no list to order


# ------------------------------------------------------------------------------------- calibration
def test_calibration_by_hand():
    """Margins 0, ln 3, −ln 3 and ln 24: predictions 0.5, 0.75 twice and 0.96."""
    lists = [[1.0, 1.0], [math.log(3), 0.0], [0.0, math.log(3)], [math.log(24), 0.0]]
    found = calibration(*ragged(lists), bins=5)
    assert found.pairs.tolist() == [1, 0, 2, 0, 1]
    nan = math.nan
    expected = tensor([0.5, nan, 0.75, nan, 0.96], [0.5, nan, 0.5, nan, 1.0])
    torch.testing.assert_close(
        torch.stack([found.prediction, found.share]), expected, equal_nan=True
    )
    assert found.error == pytest.approx((0 + 2 * 0.25 + 0.04) / 4)


def test_calibration_counts_every_pair_of_present_answers():
    rows = random_lists([7, 3, 1, 5])
    pairs = [(a, b) for row in rows for i, a in enumerate(row) for b in row[i + 1 :]]
    together, alone = calibration(*ragged(rows)), calibration(tensor(*map(list, pairs)))
    assert together.pairs.sum() == len(pairs) == 21 + 3 + 10
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("spread", [0.01, 1.0, 40.0])
def test_the_scale_equals_a_logistic_regression(spread):
    """Oracle: each margin once as a success and once, turned round, as a failure."""
    margins = spread * (torch.randn(300, generator=torch.Generator().manual_seed(0)).double() + 0.5)
    x = torch.cat([margins, -margins])[:, None].numpy() / spread
    y = [1] * 300 + [0] * 300
    oracle = LogisticRegression(C=math.inf, fit_intercept=False, tol=1e-10).fit(x, y)
    assert logistic_scale(margins) * spread == pytest.approx(oracle.coef_.item(), rel=1e-6)


def test_calibrated_scores_are_found_calibrated():
    """20 000 pairs drawn from the scores; each of 11 judgements has a false alarm rate of 1e-5."""
    generator = torch.Generator().manual_seed(0)
    true = 1.5 * torch.randn(20_000, 2, generator=generator, dtype=DOUBLE)
    gumbel = -torch.empty_like(true).exponential_(generator=generator).log()
    ranked = true.gather(1, (true + gumbel).argsort(descending=True))
    limit = norm.isf(1e-5 / 2)

    found = calibration(ranked)
    margins = ranked[:, 0] - ranked[:, 1]
    chance = margins.sigmoid()
    error = (margins**2 * chance * (1 - chance)).sum() ** -0.5  # of the scale, from its information
    assert abs(found.scale - 1) < limit * error
    spread = (found.prediction * (1 - found.prediction) / found.pairs).sqrt()
    assert ((found.share - found.prediction).abs() < limit * spread).all()
    assert found.error < 0.02

    proud = calibration(2 * ranked)
    assert proud.scale == pytest.approx(found.scale / 2, rel=1e-9)
    assert proud.error > 0.05
    assert ((proud.share - proud.prediction) < 0)[2:].all()


def test_scales_without_a_maximum():
    assert calibration(tensor([3.0, 2.0, 2.0])).scale == math.inf
    assert calibration(tensor([2.0, 2.0, 3.0])).scale == -math.inf
    assert math.isnan(calibration(tensor([2.0, 2.0])).scale)
    nothing = calibration(tensor([2.0]))
    assert math.isnan(nothing.error)
    assert nothing.pairs.sum() == 0


# -------------------------------------------------------------------- correlation with a feature
def test_correlation_within_lists_equals_scipys_on_centred_values():
    scores, words = random_lists([7, 2, 5, 1], seed=1), random_lists([7, 2, 5, 1], seed=2)

    def centred(rows):
        return [value - sum(row) / len(row) for row in rows for value in row]

    (s, mask), (w, _) = ragged(scores), ragged(words)
    expected = pearsonr(centred(scores), centred(words)).statistic
    assert within_list_correlation(s, w, mask) == pytest.approx(expected, rel=1e-9)


def test_correlation_ignores_what_differs_between_prompts():
    words = torch.tensor([[12, 40, 7], [100, 160, 130]])
    level = torch.tensor([[500.0], [-500.0]])
    assert within_list_correlation(0.1 * words + level, words) == pytest.approx(1, abs=1e-6)
    bullets = torch.tensor([[True, False, False], [True, True, False]])
    assert within_list_correlation(level - 1.0 * bullets, bullets) == pytest.approx(-1)


def test_no_correlation_with_what_does_not_vary():
    """0.1 summed three times is not 0.3: a mean's rounding must not pass for a difference."""
    scores = tensor([1.0, 0.4, 3.0], [0.0, 1.0, 0.2])
    constant = tensor([0.1] * 3, [0.7] * 3)
    assert math.isnan(within_list_correlation(scores, constant))
    assert math.isnan(within_list_correlation(constant, scores))


def rows_of(*texts: str) -> list[dict]:
    """One row a string: its letters are the answers' texts, best first."""
    return [{"answers": [{"answer": letter} for letter in row]} for row in texts]


def test_ordered_pairs_by_hand():
    """abc: 3 > 2 and 3 > 1 right, 1 against 2 wrong; ab tied; aab: the equal texts do not count."""
    scores = [[3.0, 1, 2], [5, 5, -9], [1, 7, 0]]
    found = ordered_pairs(rows_of("abc", "ab", "aab"), scores)
    np.testing.assert_allclose(found, [2 / 3, 1 / 2, 1])


def test_a_list_of_equal_texts_has_no_share():
    assert np.isnan(ordered_pairs(rows_of("aa"), [[1.0, 2]])).all()


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_ordered_and_concordant_pairs_agree_with_kendall(seed):
    """Where nothing is tied, the share is (τ + 1) / 2, and equal values are left out (τ-b's n)."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(3, 6))
    taus = [kendalltau(row, -np.arange(6)).statistic for row in scores]
    np.testing.assert_allclose(
        ordered_pairs(rows_of(*["abcdef"] * 3), scores), (np.array(taus) + 1) / 2, atol=1e-12
    )
    values = rng.integers(0, 3, size=(3, 6)).astype(float)
    for found, v, s in zip(concordant_pairs(values, scores), values, scores, strict=True):
        pairs = [(i, j) for i in range(6) for j in range(6) if v[i] > v[j]]
        expected = np.mean([s[i] > s[j] for i, j in pairs]) if pairs else np.nan
        np.testing.assert_allclose(found, expected)


def test_equal_scores_are_half_concordant():
    assert concordant_pairs(np.array([[3.0, 2, 2]]), np.zeros((1, 3))) == 0.5
