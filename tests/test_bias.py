"""Label statistics: hand cases, naive twins, and the published position-bias table."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from starling_nb.data import bias
from starling_nb.data.nectar import SAMPLE, load_rows


def lists_of(lengths):
    return [{"answers": [{"answer": "x" * n} for n in row]} for row in lengths]


def test_length_bias_by_hand():
    # (5, 3, 3): 5>3, 5>3, tie.  (1, 2): longer loses.  (4, 4, 9, 1): tie, -, +, -, +, +
    found = bias.length_bias(lists_of([(5, 3, 3), (1, 2), (4, 4, 9, 1)]))
    assert found.pairs == 2 + 1 + 5
    assert found.longer_above == pytest.approx(5 / 8)
    assert found.longest_first == pytest.approx(1 / 3)
    assert found.lists == 3
    assert found.mean_chars == pytest.approx([10 / 3, 3, 6, 1])
    assert math.isnan(bias.length_bias(lists_of([(2, 2)])).longer_above)
    with pytest.raises(ValueError, match="at least one list"):
        bias.length_bias([])


def test_length_bias_does_not_depend_on_labels_when_they_are_random():
    # 3 000 independent lists: the two shares are 1/2 and 1/5; 4.5 standard errors, so a false
    # alarm has odds below 1 in 100 000. Pairs of one list are dependent: se bounded by lists.
    generator = np.random.default_rng(0)
    lengths = [generator.permutation(range(1, 6)) for _ in range(3000)]
    found = bias.length_bias(lists_of(lengths))
    assert abs(found.longer_above - 0.5) < 4.5 * 0.5 / math.sqrt(3000)
    assert abs(found.longest_first - 0.2) < 4.5 * math.sqrt(0.16 / 3000)


def test_first_places_by_hand():
    orders = [[0, 1, 2]] * 6 + [[1, 0, 2]] * 3 + [[2, 1, 0]] * 3
    found = bias.first_place_by_position(orders)
    assert found.counts.tolist() == [6, 3, 3]
    assert found.shares.tolist() == [0.5, 0.25, 0.25]
    assert found.chi2 == pytest.approx((4 + 1 + 1) / 4)
    assert found.p_value == pytest.approx(math.exp(-1.5 / 2))  # 2 degrees of freedom


def test_win_rate_by_hand():
    assert bias.mean_win_rate_by_position([[2, 0, 1]]).tolist() == [0.5, 0, 1]
    assert bias.mean_win_rate_by_position([[0, 1, 2], [2, 1, 0]]).tolist() == [0.5, 0.5, 0.5]


permutation_pairs = st.integers(2, 7).flatmap(
    lambda k: st.lists(
        st.tuples(st.permutations(range(1, k + 1)), st.permutations(range(1, k + 1))),
        min_size=1,
        max_size=6,
    )
)


@settings(deadline=None)
@given(permutation_pairs)
def test_agreement_equals_counting_pairs_and_kendall(pairs):
    first, second = zip(*pairs, strict=True)
    k = len(first[0])
    same, total = [0] * k, [0] * k
    for a, b in pairs:
        for i in range(k):
            for j in range(i):
                total[abs(a[i] - a[j])] += 1
                same[abs(a[i] - a[j])] += (a[i] < a[j]) == (b[i] < b[j])
    found = bias.agreement(first, second)
    assert found.pairs == sum(total)
    assert found.overall == pytest.approx(sum(same) / sum(total))
    assert found.by_gap == pytest.approx(np.array(same[1:]) / np.array(total[1:]))
    tau = np.mean([kendalltau(a, b).statistic for a, b in pairs])
    assert found.overall == pytest.approx((1 + tau) / 2)


@settings(deadline=None)
@given(permutation_pairs)
def test_win_rate_equals_counting_wins(pairs):
    orders = [[rank - 1 for rank in first] for first, _ in pairs]
    k = len(orders[0])
    wins = [sum(k - 1 - order.index(position) for order in orders) for position in range(k)]
    found = bias.mean_win_rate_by_position(orders)
    assert found == pytest.approx(np.array(wins) / (k - 1) / len(orders))
    assert found.mean() == pytest.approx(0.5)


def test_agreement_extremes():
    ranks = [[1, 2, 3, 4], [4, 2, 1, 3]]
    backwards = [[5 - r for r in row] for row in ranks]
    assert bias.agreement(ranks, ranks).overall == 1
    assert bias.agreement(ranks, backwards).by_gap.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([[1, 2, 2]], r"first_ranks\[0\]: expected a permutation of 1..3, found \[1, 2, 2\]"),
        ([[1, 2], [0, 1]], r"first_ranks\[1\]"),
        ([[1, 2], [1, 2, 3]], "lists of one length"),
        ([], "table with K >= 2"),
        ([[1], [1]], "table with K >= 2"),
        ([[1.0, math.nan]], r"first_ranks\[0\]"),
    ],
)
def test_rankings_that_are_none(bad, words):
    with pytest.raises(ValueError, match=words):
        bias.agreement(bad, bad)


def test_order_of_ranks_is_refused_and_shapes_must_match():
    with pytest.raises(ValueError, match=r"orders\[0\]: expected a permutation of 0..2"):
        bias.first_place_by_position([[1, 2, 3]])
    with pytest.raises(ValueError, match=r"expected shape \(1, 2\), found \(2, 2\)"):
        bias.agreement([[1, 2]], [[1, 2], [2, 1]])


@settings(deadline=None)
@given(st.lists(st.floats(0.5, 1), min_size=1, max_size=20))
def test_the_best_accuracy_lies_within_the_ceiling_bounds(q):
    q = np.array(q)
    low, high = bias.ceiling_bounds(min(1.0, float((q**2 + (1 - q) ** 2).mean())))
    # sqrt doubles the rounding error's exponent near a = 1/2, hence 1e-7 above
    assert low - 1e-12 <= q.mean() <= high + 1e-7


def test_ceiling_bounds_are_reached_and_checked():
    assert bias.ceiling_bounds(0.75) == (0.75, pytest.approx(0.8535533906))
    assert bias.ceiling_bounds(0.5) == (0.5, 0.5)
    assert bias.ceiling_bounds(1) == (1, 1)
    q = 0.8  # every pair alike reaches the upper bound, coins and certainties the lower one
    assert bias.ceiling_bounds(q**2 + (1 - q) ** 2)[1] == pytest.approx(q)
    for a in (0.49, 1.01, math.nan):
        with pytest.raises(ValueError, match=r"between 0\.5 and 1"):
            bias.ceiling_bounds(a)


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    # Against mean ± z s/sqrt(n); the percentiles of 4 000 resamples carry 3 % Monte-Carlo error.
    items = np.random.default_rng(1).normal(3, 2, size=400)
    half = NormalDist().inv_cdf(0.95) * items.std() / 20
    low, high = bias.bootstrap_interval(items, np.mean, seed=2, resamples=4000, level=0.9)
    assert low == pytest.approx(items.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(items.mean() + half, abs=0.15 * half)
    assert bias.bootstrap_interval(items, np.mean, seed=2, resamples=4000, level=0.9) == (low, high)
    assert bias.bootstrap_interval(items, np.mean, seed=3, resamples=4000, level=0.9) != (low, high)
    with pytest.raises(ValueError, match="at least one prompt"):
        bias.bootstrap_interval([], np.mean)


def test_bootstrap_resamples_whole_items():
    items = np.repeat(np.arange(5), 3).reshape(5, 3)  # each item three equal numbers

    def spread_inside_items(sample):
        return float(np.ptp(sample, axis=1).max())

    assert bias.bootstrap_interval(items, spread_inside_items, resamples=50) == (0, 0)


def test_readers_name_what_is_missing(tmp_path):
    path = tmp_path / "orders.jsonl"
    path.write_text('{"protocol": "a", "ranking_order": [1, 0]}\n{"protocol": "a"}\n')
    with pytest.raises(ValueError, match=r"orders.jsonl, line 2, field ranking_order: missing"):
        bias.read_orders(path)
    with pytest.raises(ValueError, match=r"orders.jsonl, line 1, field earlier_rank: missing"):
        bias.read_retest(path)
    path.write_text('{"protocol": "a", "ranking_order": [1, 2]}\n')
    with pytest.raises(ValueError, match=r"protocol a, ranking_order\[0\]: expected a permutation"):
        bias.read_orders(path)


def test_sample_length_bias():
    found = bias.length_bias(load_rows(SAMPLE)[0])
    assert found.lists == 21
    assert 0.6 < found.longer_above < 0.8  # written so that longer often wins, as in real labels


# The published figures, recomputed (Starling repository, nectar/ratings/results).

CHI2 = {
    "no_pairwise": (195, 127.8),
    "pairwise_no_given_order": (187, 49.2),
    "pairwise_not_random": (199, 31.7),
    "baseline_no_tiebreak": (194, 36.6),
    "tiebreak_order_given": (187, 11.0),
    "tiebreak_order_given_static": (187, 22.9),
    "tiebreak_order_given_static_2": (181, 25.4),
}


def rounds_to(*digits):
    return pytest.approx(digits, abs=0.0005 + 1e-9)


def test_position_bias_table(shared_data):
    orders = bias.read_orders(shared_data / "nectar_real" / "position_bias.jsonl.gz")
    first = {name: bias.first_place_by_position(array) for name, array in orders.items()}
    found = {name: (len(orders[name]), round(first[name].chi2, 1)) for name in orders}
    assert found == CHI2
    assert first["no_pairwise"].shares == rounds_to(0.313, 0.308, 0.174, 0.097, 0.046, 0.031, 0.031)
    assert bias.mean_win_rate_by_position(orders["no_pairwise"]) == rounds_to(
        0.633, 0.633, 0.558, 0.487, 0.428, 0.398, 0.362
    )
    assert bias.mean_win_rate_by_position(orders["baseline_no_tiebreak"]) == rounds_to(
        0.554, 0.595, 0.466, 0.542, 0.519, 0.464, 0.360
    )
    # 12.59 is the 5 % point of chi-square with 6 degrees of freedom
    assert {name for name in first if first[name].p_value > 0.05} == {"tiebreak_order_given"}


def test_retest_agreement(shared_data):
    retest = bias.read_retest(shared_data / "nectar_real" / "retest.jsonl.gz")
    overall = {name: bias.agreement(*ranks).overall for name, ranks in retest.items()}
    assert (len(overall), round(min(overall.values()), 2), round(max(overall.values()), 2)) == (
        7,
        0.73,
        0.76,
    )
    earlier, later = (np.concatenate(ranks) for ranks in zip(*retest.values(), strict=True))
    whole = bias.agreement(earlier, later)
    assert (len(earlier), whole.pairs) == (1330, 27930)
    assert whole.by_gap[[0, -1]].round(2).tolist() == [0.62, 0.92]
    assert sorted(whole.by_gap) == whole.by_gap.tolist()
    low, high = bias.ceiling_bounds(whole.overall)
    assert (round(low, 2), round(high, 2)) == (0.75, 0.85)


def test_alpacaeval_labels_favour_length(shared_data):
    folder = shared_data / "nectar_like"
    found = bias.length_bias(load_rows(folder / "nectar_like_alpacaeval.train.parquet")[0])
    assert (round(found.longer_above, 3), round(found.longest_first, 3)) == (0.742, 0.660)
    assert np.round(found.mean_chars).tolist() == [1944, 1206, 1102, 1031, 861, 792, 610]
    extra = bias.length_bias(load_rows(folder / "nectar_like_alpacaeval_extra.train.jsonl.gz")[0])
    assert (round(extra.longer_above, 3), round(extra.longest_first, 3)) == (0.739, 0.646)
