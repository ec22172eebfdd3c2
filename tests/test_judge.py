"""The labeller: Plackett-Luce draws, ties, dials, and a probability that agrees with the draws."""

import math
import random
from collections import Counter
from itertools import permutations

import pytest
from scipy.stats import chi2

from starling_nb.data.judge import Judge, PlackettLuceJudge

WORTH = {"good": 1.0, "fair": 0.4, "poor": -0.3}


def utility(prompt, answer):
    return WORTH.get(answer.removeprefix("* ").partition(" ")[0], 0.0)


@pytest.mark.parametrize("position", [0.0, 0.6])
def test_rank_draws_plackett_luce(position):
    """Chi-squared test of 6 orders, false-alarm rate 1e-4.

    P(a > b > c) = w_a / (w_a + w_b + w_c) * w_b / (w_b + w_c), w = exp(score), of which `position`
    takes its due for each answer shown before.
    """
    judge = PlackettLuceJudge(utility, tau=0.5, length=0.0, position=position)
    answers, draws = list(WORTH), 12_000
    generator = random.Random(1)
    seen = Counter(tuple(judge.rank("?", answers, generator=generator)) for _ in range(draws))
    weight = [math.exp((w - position * place) / 0.5) for place, w in enumerate(WORTH.values())]
    statistic = 0.0
    for order in permutations(range(3)):
        left, p = list(order), 1.0
        for i in order:
            p *= weight[i] / sum(weight[j] for j in left)
            left.remove(i)
        statistic += (seen[order] - draws * p) ** 2 / (draws * p)
    assert seen.total() == draws
    assert statistic < chi2.isf(1e-4, 5)


def test_probability_is_the_frequency_of_the_order_in_any_list():
    """Luce's choice axiom: who else is in the list does not matter. |z| < 4: 1e-4 false alarms."""
    judge = PlackettLuceJudge(utility)
    draws = 6000
    p = judge.probability("?", "good", "poor")
    generator = random.Random(2)
    for answers in (["good", "poor"], ["poor", "fair", "good", "fair", "other"]):
        good, poor = answers.index("good"), answers.index("poor")
        orders = [judge.rank("?", answers, generator=generator) for _ in range(draws)]
        first = sum(order.index(good) < order.index(poor) for order in orders)
        assert abs(first - draws * p) < 4 * math.sqrt(draws * p * (1 - p))


def test_probability_is_bounded_and_symmetric_for_any_scores():
    sure = PlackettLuceJudge(utility, tau=1e-6)
    assert sure.probability("?", "good", "poor") == 1.0
    assert sure.probability("?", "poor", "good") == 0.0
    judge = PlackettLuceJudge(utility)
    forth, back = judge.probability("?", "good", "fair"), judge.probability("?", "fair", "good")
    assert forth + back == pytest.approx(1)
    assert math.log(forth / back) == pytest.approx((1.0 - 0.4) / 0.5)


def test_rank_is_a_permutation_drawn_from_its_generator_alone():
    judge = PlackettLuceJudge(utility)
    answers = ["good", "good", "", "poor"]
    orders = [judge.rank("?", answers, generator=random.Random(5)) for _ in range(3)]
    random.seed(0)
    assert orders == [judge.rank("?", answers, generator=random.Random(5))] * 3
    assert sorted(orders[0]) == [0, 1, 2, 3]
    assert judge.rank("?", [], generator=random.Random(5)) == []
    assert judge.rank("?", ["one"], generator=random.Random(5)) == [0]


def test_compare_ties_only_the_same_text():
    judge = PlackettLuceJudge(utility, tau=1e-6)
    generator = random.Random(0)
    assert judge.compare("?", "good", "poor", generator=generator) == "a"
    assert judge.compare("?", "poor", "good", generator=generator) == "b"
    assert judge.compare("?", "good", "good", generator=generator) == "tie"
    assert judge.compare("?", "", "", generator=generator) == "tie"
    noisy = PlackettLuceJudge(utility)
    # the same worth, other texts: a fair coin; 200 draws all alike have chance 1e-60
    drawn = {noisy.compare("?", "this", "that", generator=generator) for _ in range(200)}
    assert drawn == {"a", "b"}


def test_length_counts_words_up_to_forty():
    judge = PlackettLuceJudge(utility, tau=0.5, length=0.1)
    assert judge.score("?", "good") == pytest.approx((1.0 + 0.1) / 0.5)
    assert judge.score("?", "good" + " and" * 9) == pytest.approx((1.0 + 1.0) / 0.5)
    assert judge.score("?", "good" + " and" * 99) == judge.score("?", "good" + " and" * 39)
    assert judge.score("?", "good" + " and" * 39) == pytest.approx((1.0 + 4.0) / 0.5)


def test_bullet_likes_a_leading_star_and_nothing_else():
    judge = PlackettLuceJudge(utility, tau=2.0, length=0.0, bullet=0.8)
    assert judge.score("?", "* good") == pytest.approx((1.0 + 0.8) / 2.0)
    assert judge.score("?", "good * good") == pytest.approx(1.0 / 2.0)
    assert judge.score("?", "*good") == pytest.approx(0.0 + 0.0)


def test_a_colder_judge_orders_by_worth_more_often():
    chances = [
        PlackettLuceJudge(utility, tau=t).probability("?", "good", "poor") for t in (2, 1, 0.2)
    ]
    assert chances == sorted(chances)
    assert chances[-1] > 0.99


def test_an_untilted_judge_draws_the_same_numbers_as_before_it_could_be_tilted():
    """Recorded before `position` came in: every list of rankings in a store depends on it."""
    judge, generator = PlackettLuceJudge(utility, 0.9, 0.02, 0.3), random.Random(11)
    answers = ["good", "fair and long", "* poor", "poor", "* fair", "good good", ""]
    assert [judge.rank("?", answers, generator=generator) for _ in range(4)] == [
        [2, 5, 0, 4, 1, 3, 6],
        [6, 0, 2, 1, 4, 5, 3],
        [2, 3, 0, 5, 4, 6, 1],
        [1, 4, 6, 5, 0, 3, 2],
    ]
    verdicts = [judge.compare("?", "good", "fair", generator=generator) for _ in range(8)]
    assert "".join(verdicts) == "baaaaaaa"
    assert generator.random() == 0.766287886410407


def test_position_favours_the_answer_named_first_and_is_no_part_of_a_score():
    """|z| < 4: false-alarm rate 1e-4."""
    judge = PlackettLuceJudge(utility, tau=0.5, length=0.0, position=0.6)
    plain = PlackettLuceJudge(utility, tau=0.5, length=0.0)
    assert judge.score("?", "fair") == plain.score("?", "fair")
    assert judge.probability("?", "fair", "poor") == plain.probability("?", "fair", "poor")
    draws, generator = 4000, random.Random(6)
    for first, second in (("good", "poor"), ("poor", "good"), ("this", "that")):
        ahead = utility("?", first) - utility("?", second) + 0.6
        p = 1 / (1 + math.exp(-ahead / 0.5))
        found = [judge.compare("?", first, second, generator=generator) for _ in range(draws)]
        assert abs(found.count("a") - draws * p) < 4 * math.sqrt(draws * p * (1 - p))


def test_a_judge_of_ones_own_needs_only_rank():
    class Shortest(Judge):
        def rank(self, prompt, answers, *, generator):
            return sorted(range(len(answers)), key=lambda i: len(answers[i]))

    verdicts = [
        Shortest().compare("?", a, b, generator=random.Random(0))
        for a, b in (("long", "no"), ("no", "long"), ("no", "no"))
    ]
    assert verdicts == ["b", "a", "tie"]
