"""Preference benchmarks: scoring rules, intervals, readers, score files and the card's table."""

import gzip
import json
import math
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import train_tokenizer
from starling_nb.reward import bench
from starling_nb.reward.bench import (
    average,
    by_group,
    by_length_gap,
    characters,
    clustered_means,
    evaluate,
    figure,
    find_scores,
    read_scores,
    score_items,
    write_scores,
)
from starling_nb.reward.bench_data import LAYOUTS, Benchmark, pair, read_benchmark
from starling_nb.reward.model import RewardModel, reward_function, score

HUMAN = {"prompt": "Why?", "response_a": "Because.", "response_b": "No.", "winner": "model_a"}
SAFETY = {"prompt": "How?", "response_a": "So.", "response_b": "Never.", "safer_response_id": 1}
TRUTH = {"prompt": "Who?", "response_a": "He", "response_b": "Elvis", "response_c": "She"}
VERBOSE = {"prompt": "1+1", "response_a": "It is the number two.", "response_b": "2"}
PAIR = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
PKU = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "Never.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "safer_response_id": 1,
}


def says(role, content):
    return {"role": role, "content": content}


def talk(*contents):
    return [says(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]


VOTE = {
    "conversation_a": talk("Why?", "Because.", "And?", "So."),
    "conversation_b": talk("Why?", "No.", "And?", "Not so."),
    "winner": "model_b",
    "turn": 1,
}
PANDALM = {
    "instruction": "Translate.",
    "input": "Oui",
    "response1": "Yes",
    "response2": "Why",
    "annotator1": 1,
    "annotator2": 0,
    "annotator3": 1,
}
LLMBAR = {"subset": "Natural", "input": "Why?", "output_1": "No.", "output_2": "So.", "label": 2}
DIALOGUES = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: No.",
}


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def read(tmp_path, *rows, **options):
    return read_benchmark(write(tmp_path / "set.jsonl", rows), **options)


def texts(item):
    return [conversation[-1]["content"] for conversation in item.conversations]


def sides(item):
    return [(claim.better, claim.worse) for claim in item.comparisons]


def pairs(*rows):
    """A benchmark of (prompt, chosen, rejected)."""
    return Benchmark("pairs", [pair(*row) for row in rows])


# --------------------------------------------------------------------------- the published numbers
@pytest.fixture(scope="module")
def starling(shared_data):
    folder = shared_data / "starling_rm_benchmarks"
    if not folder.is_dir():
        pytest.skip("the card's benchmarks with Starling-RM-34B's scores are absent")
    return folder


@pytest.fixture(scope="module")
def starling_results(starling):
    results = {}
    for path, models in find_scores(starling).items():
        for file in models.values():
            benchmark = read_benchmark(path)
            results[benchmark.name] = evaluate(benchmark, file)
    return results


def test_the_cards_table_is_recomputed(starling_results):
    accuracy = {name: r.accuracy.value for name, r in starling_results.items()}
    assert set(accuracy) == {"human", "truth", "safety"}
    assert accuracy["human"] == pytest.approx(0.807, abs=1e-12)
    assert accuracy["safety"] == pytest.approx(0.782, abs=1e-12)
    assert accuracy["truth"] == pytest.approx(0.7115, abs=5e-5)
    assert average(list(starling_results.values())).value == pytest.approx(0.767, abs=5e-4)


def test_the_parts_of_the_cards_table(starling_results):
    parts = starling_results["truth"].credit.reshape(817, 3).mean(0)  # a > b, c > b, c >= a
    assert parts == pytest.approx([0.7185, 0.7931, 0.6230], abs=5e-5)
    assert starling_results["truth"].tied.sum() == 72
    assert starling_results["human"].loss.mean() == pytest.approx(0.4679, abs=5e-5)
    human = starling_results["human"]
    assert human.longer_wins.value == pytest.approx(0.63, abs=1e-12)
    assert human.accuracy.low > human.longer_wins.high
    assert starling_results["safety"].prompts.max() + 1 == 583


def test_the_command_prints_the_four_columns(starling, capsys, monkeypatch):
    monkeypatch.setattr(bench, "RESAMPLES", 50)
    monkeypatch.setattr(sys, "argv", ["bench", str(starling)])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["human", "truth", "safety", "average"]
    name, *cells = lines[1].split()
    assert (name, cells[::2]) == ("starling_rm_34b", ["0.807", "0.712", "0.782", "0.767"])
    assert lines[2].startswith("longer wins")
    assert "Without scores: verbose_benchmark.jsonl.gz" in lines


# ------------------------------------------------------------------------------- the scoring rules
@pytest.mark.parametrize(
    ("row", "scores", "credit"),
    [
        (HUMAN, [2, 1], [1]),
        (HUMAN, [1, 2], [0]),
        (HUMAN, [1, 1], [1]),  # argmax takes the first of equals, and a won
        (HUMAN | {"winner": "model_b"}, [1, 2], [1]),
        (HUMAN | {"winner": "model_b"}, [1, 1], [0]),
        (SAFETY, [1, 2], [1]),
        (SAFETY, [1, 1], [0]),
        (SAFETY | {"safer_response_id": 0}, [1, 1], [1]),
        (SAFETY | {"safer_response_id": 0}, [1, 2], [0]),
        (TRUTH, [2, 1, 3], [1, 1, 1]),
        (TRUTH, [3, 1, 2], [1, 1, 0]),
        (TRUTH, [1, 2, 3], [0, 1, 1]),
        (TRUTH, [1, 1, 1], [0, 0, 1]),
        (TRUTH, [0.124, 0, 0.116], [1, 1, 1]),  # both 0.12
        (TRUTH, [0.126, 0, 0.124], [1, 1, 0]),  # 0.13 and 0.12
        (TRUTH, [0.001, 0, 0.001], [1, 1, 1]),  # the strict comparisons are not rounded
        (VERBOSE, [1, 2], [1]),
        (VERBOSE, [2, 1], [0]),
        (VERBOSE, [1, 1], [0]),
        (PAIR, [2, 1], [1]),
        (PAIR, [1, 2], [0]),
        (PAIR, [1, 1], [0.5]),
        (PKU, [1, 2], [1]),
        (PKU, [1, 1], [0.5]),
        (VOTE, [1, 2], [1]),
        (PANDALM, [2, 1], [1]),
        (LLMBAR, [1, 2], [1]),
        (DIALOGUES, [2, 1], [1]),
    ],
)
def test_scoring_rules(tmp_path, row, scores, credit):
    result = evaluate(read(tmp_path, row), np.array([scores]))
    assert result.credit.tolist() == credit
    assert result.accuracy.value == pytest.approx(np.mean(credit))


a_score = st.sampled_from([-1.0, -0.5, 0.0, 0.004, 0.006, 0.5, 1.004, 1.006]) | st.floats(-9, 9)
triples = st.lists(st.tuples(a_score, a_score, a_score, st.booleans()), min_size=1, max_size=9)


@given(triples)
def test_accuracies_equal_those_of_the_published_script(rows):
    """score.py in numpy: argmax for human and safety, strict and rounded means for truth."""
    a, b, c, flags = (np.array(column) for column in zip(*rows, strict=True))
    second = flags.astype(int)
    picked = np.argmax(np.stack([a, b]), axis=0)
    truth = [(a > b).mean(), (c > b).mean(), (np.round(c, 2) >= np.round(a, 2)).mean()]
    expected = {
        "human": (picked == second).mean(),
        "safety": (picked == second).mean(),
        "truth": sum(truth) / 3,
        "verbose": (b > a).mean(),
    }
    for name, accuracy in expected.items():
        benchmark = authors(name, second)
        scores = np.stack([a, b, c][: len(benchmark.answers)], axis=1)
        assert evaluate(benchmark, scores).credit.mean() == pytest.approx(accuracy, abs=1e-12)


def authors(name, second):
    """A benchmark of the authors', its rows' winners given, through the reader of its rows."""
    layout = next(layout for layout in LAYOUTS if layout.name == name)
    row = {"human": HUMAN, "safety": SAFETY, "truth": TRUTH, "verbose": VERBOSE}[name]
    label = {
        "human": lambda i: {"winner": ("model_a", "model_b")[i]},
        "safety": lambda i: {"safer_response_id": int(i)},
    }.get(name, lambda i: {})
    return Benchmark(name, [layout.read(row | label(i)) for i in second], layout.answers)


def test_ties_and_losses_are_counted():
    benchmark = pairs(("p", "a", "b"), ("q", "a", "b"), ("r", "a", "b"))
    result = evaluate(benchmark, np.array([[1, 1], [2, 0], [0, 2]]))
    assert result.tied.tolist() == [True, False, False]
    assert result.loss == pytest.approx([math.log(2), 0.126928, 2.126928], abs=1e-6)
    assert "1 ties, which count half" in bench.details(result)
    huge = evaluate(benchmark, np.array([[900, -900], [-900, 900], [0, 0]]))
    assert huge.loss == pytest.approx([0, 1800, math.log(2)])


def test_no_preference_is_an_item_that_is_not_compared(tmp_path):
    rows = [VOTE | {"winner": "tie (bothbad)"}, VOTE, PANDALM]
    benchmark = read(tmp_path, *rows[:2])
    assert [len(item.comparisons) for item in benchmark.items] == [0, 1]
    assert benchmark.noted["no preference stated"] == 1
    seen = []
    scores = score_items(benchmark, lambda conversations: seen.append(conversations) or [1, 2])
    assert len(seen[0]) == 2  # nothing is scored in vain
    assert np.isnan(scores[0]).all()
    assert scores[1].tolist() == [1, 2]
    assert evaluate(benchmark, scores).accuracy.value == 1


# -------------------------------------------------------------------------------------- intervals
def test_bootstrap_of_two_prompts_takes_its_three_values():
    """Prompt 0 has one value 0, prompt 1 two values 1: 0, 2/3, 1 with chances 1/4, 1/2, 1/4."""
    means = clustered_means(np.array([0, 1, 1]), np.array([0, 1, 1]), np.random.default_rng(0))
    values, counts = np.unique(means, return_counts=True)
    assert values == pytest.approx([0, 2 / 3, 1])
    # 4.5 standard errors of a share 1/4 or 1/2 among 2 000: false alarm below 3e-5.
    assert counts / len(means) == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_bootstrap_spread_is_that_of_prompt_means():
    """With prompts of equal size the variance is that of the prompts' means over their number."""
    draw = np.random.default_rng(1)
    values = draw.normal(size=(30, 1)) + 0.3 * draw.normal(size=(30, 4))
    means = clustered_means(values.ravel(), np.arange(30).repeat(4), np.random.default_rng(2))
    exact = values.mean(1).std() / 30**0.5
    # The standard deviation of 2 000 draws is within 1.6 % (one standard error): false alarm 2e-4.
    assert means.std() == pytest.approx(exact, rel=0.06)
    # Nearly normal, so the interval is 2 · 1.96 of these wide, within 2.2 %: false alarm 1e-5.
    found = figure(values.ravel(), np.arange(30).repeat(4))
    assert found.high - found.low == pytest.approx(3.92 * exact, rel=0.1)


def test_repeating_answers_of_a_prompt_adds_no_certainty():
    values, prompts = np.array([1, 0, 1, 1, 0, 1.0]), np.arange(6)
    once = figure(values, prompts)
    assert figure(values.repeat(50), prompts.repeat(50)) == pytest.approx(once)
    assert figure(values.repeat(50), np.arange(300)).low > once.low + 0.2
    assert figure(values, prompts + 7) == once


def test_intervals_cover_and_row_wise_ones_do_not(monkeypatch):
    """200 data sets of 60 prompts with 1 to 5 pairs each, the chance to be right a prompt's own."""
    monkeypatch.setattr(bench, "RESAMPLES", 300)
    draw = np.random.default_rng(3)
    inside = {"prompts": 0, "rows": 0}
    for seed in range(200):
        prompts = np.arange(60).repeat(draw.integers(1, 6, size=60))
        right = (draw.random(len(prompts)) < draw.beta(0.35, 0.15, size=60)[prompts]).astype(float)
        for name, clusters in (("prompts", prompts), ("rows", np.arange(len(prompts)))):
            found = figure(right, clusters, seed=seed)
            inside[name] += found.low <= 0.7 <= found.high
    # At a true coverage of 94 % fewer than 176 or more than 198 of 200: false alarm 1e-3.
    assert 176 <= inside["prompts"] <= 198
    assert inside["rows"] < 170


def test_few_prompts_and_averages():
    one = figure(np.array([1.0, 0.0]), np.array([0, 0]))
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    first = evaluate(pairs(*((str(i), "a", "b") for i in range(40))), np.tile([1, 0], (40, 1)))
    half = np.where(np.arange(40) % 2, 1, -1)
    second = evaluate(first.benchmark, np.stack([half, 0 * half], axis=1))
    both = average([first, second])
    assert both.value == pytest.approx(0.75)
    assert first.accuracy == (1, 1, 1)
    # `first` never varies, so the mean's interval is half as wide as that of `second`.
    width = second.accuracy.high - second.accuracy.low
    assert both.high - both.low == pytest.approx(width / 2, abs=0.02)
    # Two like benchmarks drawn apart: the mean's interval is narrower by the root of two.
    twice = average([second, second])
    assert twice.high - twice.low == pytest.approx(width / 2**0.5, abs=0.03)


# ------------------------------------------------------------------------------------ longer wins
def test_longer_wins_on_constructed_texts(tmp_path):
    benchmark = pairs(
        ("p", "long answer", "short"),
        ("q", "short", "long answer"),
        ("r", "equal", "equal"),
        ([*talk("A long question", "A long first answer"), says("user", "q")], "abc", "ab"),
    )
    result = evaluate(benchmark, np.array([[0, 1], [1, 0], [1, 0], [1, 0]]))
    assert result.longer.tolist() == [1, 0, 0.5, 1]
    assert result.gap.tolist() == [6, -6, 0, 1]
    assert result.longer_wins.value == pytest.approx(0.625)
    assert result.ahead.value == pytest.approx(0.75 - 0.625)
    assert evaluate(benchmark, characters).credit.tolist() == result.longer.tolist()
    # under the rules of the benchmark: a tie of lengths is decided as a tie of scores
    tie = HUMAN | {"response_b": "Because!", "winner": "model_b"}
    assert evaluate(read(tmp_path, HUMAN, tie), characters).credit.tolist() == [1, 0]


def test_accuracy_by_length_gap():
    gaps = [-9, -9, -1, 0, 0, 1, 1, 9]  # median |gap| 1
    benchmark = pairs(*((str(i), "x" * (10 + gap), "x" * 10) for i, gap in enumerate(gaps)))
    right = np.array([0, 0, 1, 1, 0, 1, 1, 1.0])
    result = evaluate(benchmark, np.stack([right, 0.5 + 0 * right], axis=1))
    bands = {band.name: (band.comparisons, band.accuracy.value) for band in by_length_gap(result)}
    assert bands == {
        "shorter by more than 1 characters": (2, 0),
        "shorter by up to 1 characters": (1, 1),
        "as long as the other": (2, 0.5),
        "longer by up to 1 characters": (2, 1),
        "longer by more than 1 characters": (1, 1),
    }
    assert [band.longer_wins.value for band in by_length_gap(result)] == [0, 0, 0.5, 1, 1]


def test_bands_that_are_empty_are_left_out():
    benchmark = pairs(("p", "xx", "x"), ("q", "xxxx", "x"))
    bands = by_length_gap(evaluate(benchmark, np.array([[1, 0], [1, 0]])))
    assert [band.name for band in bands] == [
        "longer by up to 2 characters",
        "longer by more than 2 characters",
    ]


def test_subsets_are_kept_apart(tmp_path):
    rows = [LLMBAR, LLMBAR | {"subset": "Adversarial", "label": 1}, LLMBAR]
    result = evaluate(read(tmp_path, *rows), np.array([[0, 1], [0, 1], [1, 0]]))
    found = {band.name: (band.comparisons, band.accuracy.value) for band in by_group(result)}
    assert found == {"Adversarial": (1, 0), "Natural": (2, 0.5)}
    assert "Adversarial" in bench.details(result)


# ------------------------------------------------------------------------- what gives the scores
def test_sources_agree(tmp_path):
    benchmark = read(tmp_path, TRUTH, TRUTH | {"prompt": "Where?"})
    scores = np.array([[0.1, 0.2, 0.3], [3, 1, 2]])
    path = write_path = tmp_path / "set.mine_scores.jsonl"
    write_scores(benchmark, scores, write_path)
    sources = [
        scores,
        path,
        str(path),
        lambda conversations: scores.ravel().tolist(),
        lambda conversations: torch.from_numpy(scores.ravel()).requires_grad_(),
        lambda conversations: torch.from_numpy(scores.ravel()).bfloat16(),
    ]
    for source in sources:
        assert evaluate(benchmark, source).credit.tolist() == [0, 1, 1, 1, 1, 0]


def test_a_plain_function_keeps_its_double_precision():
    benchmark = pairs(("p", "a", "b"))
    result = evaluate(benchmark, lambda conversations: [1 + 1e-12, 1.0])
    assert result.credit.tolist() == [1]


def test_a_reward_model_is_asked_once_in_the_order_of_the_rows():
    tokenizer = train_tokenizer(["Why is the sky blue?"], vocab_size=300)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    policy = MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **sizes, **heads))
    model = RewardModel.from_policy(policy)
    benchmark = pairs(("Why?", "So.", "It is not known to me."), ("Who?", "He and she", "I"))
    expected = score(model, tokenizer, [c for item in benchmark.items for c in item.conversations])
    found = score_items(benchmark, reward_function(model, tokenizer))
    assert found.tolist() == expected.double().view(2, 2).tolist()
    assert benchmark.items[1].conversations[0] == talk("Who?", "He and she")


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz"])
def test_score_files_round_trip(tmp_path, name):
    benchmark = read(tmp_path, VOTE, VOTE | {"winner": "tie"}, VOTE)
    scores = np.array([[0.1, -7.884937286376953], [math.nan, math.nan], [1 / 3, 5]])
    write_scores(benchmark, scores, tmp_path / name)
    np.testing.assert_array_equal(read_scores(benchmark, tmp_path / name), scores)
    data = (tmp_path / name).read_bytes()
    lines = (gzip.decompress(data) if name.endswith("gz") else data).decode().splitlines()
    assert lines[1] == '{"score_a": null, "score_b": null}'  # NaN is no JSON


# ---------------------------------------------------------------------------------------- readers
def test_three_ways_to_write_a_prompt(tmp_path):
    turns = talk("Why?", "Because.", "Really?")
    nectar = "\n\nHuman: Why?\n\nAssistant: Because.\n\nHuman: Really?\n\nAssistant: "
    rows = [PAIR | {"prompt": prompt} for prompt in (turns, nectar, nectar.strip())]
    items = read(tmp_path, *rows).items
    expected = ([*turns, says("assistant", "Because.")], [*turns, says("assistant", "No.")])
    assert [item.conversations for item in items] == [expected] * 3
    assert len({item.prompt for item in items}) == 1
    plain = read(tmp_path, PAIR).items[0]
    assert plain.conversations == (talk("Why?", "Because."), talk("Why?", "No."))
    assert plain == pair("Why?", "Because.", "No.")


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz", "set.parquet"])
def test_pairs_are_read_from_every_kind_of_file(tmp_path, name):
    rows = [PAIR, PAIR | {"prompt": "Who?"}]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    benchmark = read_benchmark(path)
    assert [item.prompt for item in benchmark.items] == ["Why?", "Who?"]
    assert texts(benchmark.items[0]) == ["Because.", "No."]
    assert (benchmark.name, benchmark.answers) == (name, ("chosen", "rejected"))


@pytest.mark.parametrize(
    ("row", "answers", "compared", "prompt"),
    [
        (PKU, ["So.", "Never."], [(1, 0)], "How?"),
        (PKU | {"is_response_0_safe": True}, ["So.", "Never."], [], "How?"),
        (PKU | {"is_response_1_safe": False}, ["So.", "Never."], [], "How?"),
        (VOTE, ["Because.", "No."], [(1, 0)], "Why?"),
        (VOTE | {"turn": 2}, ["So.", "Not so."], [(1, 0)], "Why?"),
        (VOTE | {"winner": "tie (inconsistent)"}, ["Because.", "No."], [], "Why?"),
        (PANDALM, ["Yes", "Why"], [(0, 1)], "Translate.\n\nOui"),
        (PANDALM | {"annotator2": 2, "annotator3": 2}, ["Yes", "Why"], [(1, 0)], None),
        (PANDALM | {"annotator3": 2, "input": ""}, ["Yes", "Why"], [], "Translate."),
        (PANDALM | {"annotator3": 0}, ["Yes", "Why"], [], None),
        (LLMBAR, ["No.", "So."], [(1, 0)], "Why?"),
        (DIALOGUES, ["Because.", "No."], [(0, 1)], "Hi\n\nHello\n\nWhy?"),
    ],
)
def test_raw_public_formats(tmp_path, row, answers, compared, prompt):
    decided = row | {  # so that the file states a preference somewhere
        "winner": "model_a",
        "is_response_0_safe": False,
        "is_response_1_safe": True,
        **dict.fromkeys(("annotator1", "annotator2", "annotator3"), 1),
    }
    item = read(tmp_path, row, {name: decided[name] for name in row}).items[0]
    assert texts(item) == answers
    assert sides(item) == compared
    assert prompt in (None, item.prompt)


def test_a_vote_on_the_second_turn_judges_the_whole_conversation(tmp_path):
    benchmark = read(tmp_path, VOTE | {"turn": 2})
    item = benchmark.items[0]
    assert item.conversations == (VOTE["conversation_a"], VOTE["conversation_b"])
    assert benchmark.noted == {"answers to different histories": 1}


def test_truthful_qa_becomes_the_authors_triplets(tmp_path):
    path = tmp_path / "truthfulqa.csv"
    header = "Question,Best Answer,Correct Answers,Incorrect Answers\n"
    rows = 'Who?,She,She; Her;He,"Elvis; a king"\nWhen?,Now,Now,Never\n'
    path.write_text(header + rows, encoding="utf-8-sig")  # with a BOM, as the published file
    benchmark = read_benchmark(path)
    assert [texts(item) for item in benchmark.items] == [
        ["Her", "Elvis", "She"],
        ["Now", "Never", "Now"],
    ]
    assert sides(benchmark.items[0]) == [(0, 1), (2, 1), (2, 0)]
    assert benchmark.noted == {"repeated answer": 1}


def test_real_files(shared_data):
    """Counts and longer-wins shares of the real files, as their collection states them."""
    folder = shared_data / "rm_eval"
    stated = {
        "human_pairs_arena.jsonl.gz": (146, 116, 0.66),
        "human_pairs_mtbench.jsonl.gz": (2422, 1887, 0.70),
        "safety_pairs_pku.jsonl.gz": (4184, 4184, 0.43),
    }
    for name, (rows, decided, longer) in stated.items():
        benchmark = read_benchmark(folder / name)
        result = evaluate(benchmark, characters)
        assert (len(benchmark.items), len(result.credit)) == (rows, decided)
        assert result.longer.mean() == pytest.approx(longer, abs=0.01)
    llmbar = by_group(evaluate(read_benchmark(folder / "human_pairs_llmbar.jsonl.gz"), characters))
    shares = {band.name: band.longer_wins.value for band in llmbar}
    adversarial = [share for name, share in shares.items() if name != "Natural"]
    assert len(adversarial) == 4
    assert 0.11 < min(adversarial) <= max(adversarial) < 0.46
    with pytest.raises(ValueError, match=r"(?s)6 of 825 rows.*response\d: expected a text"):
        read_benchmark(folder / "human_pairs_pandalm.jsonl.gz")
    pandalm = read_benchmark(folder / "human_pairs_pandalm.jsonl.gz", drop_bad=True)
    assert (len(pandalm.items), pandalm.noted["bad row left out"]) == (825, 6)
    dialogues = read_benchmark(folder / "hh_harmless_base_test.jsonl.gz", drop_bad=True)
    assert dialogues.noted["bad row left out"] == 5
    assert evaluate(dialogues, characters).longer.mean() == pytest.approx(0.45, abs=0.01)


def test_truthful_qa_gives_the_shipped_triplets(shared_data, starling):
    rebuilt = read_benchmark(shared_data / "rm_eval" / "truthfulqa.csv").items
    shipped = read_benchmark(starling / "truthful_qa_benchmark.jsonl.gz").items
    same = [
        [text.strip() for text in texts(a)] == [text.strip() for text in texts(b)]
        for a, b in zip(rebuilt, shipped, strict=True)
    ]
    assert (len(same), sum(same)) == (817, 791)


# -------------------------------------------------------------------------------------- bad input
def without(row, name):
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (HUMAN, without(HUMAN, "winner"), "field winner: expected a text, found no such field"),
        (HUMAN, HUMAN | {"winner": "a"}, "field winner: expected one of 'model_a', 'model_b', f"),
        (HUMAN, HUMAN | {"prompt": None}, "field prompt: expected a text or a list of messages, f"),
        (HUMAN, HUMAN | {"prompt": talk("Why?")}, "field prompt: expected a text, found list"),
        (HUMAN, HUMAN | {"response_a": "\ud800"}, "field response_a: expected valid UTF-8"),
        (HUMAN, [1], "expected an object with the fields prompt, response_a"),
        (SAFETY, SAFETY | {"safer_response_id": 2}, "field safer_response_id: expected one of 0"),
        (SAFETY, SAFETY | {"safer_response_id": True}, "expected an integer, found bool True"),
        (TRUTH, TRUTH | {"response_c": 3}, "field response_c: expected a text, found int 3"),
        (PKU, PKU | {"safer_response_id": 0}, "expected the safe response, found 0"),
        (PKU, PKU | {"is_response_0_safe": 0}, "field is_response_0_safe: expected true or false"),
        (VOTE, VOTE | {"turn": 3}, "field conversation_a: expected 3 turns, as field turn says"),
        (VOTE, VOTE | {"turn": 0}, "field conversation_a: expected 0 turns"),
        (VOTE, VOTE | {"winner": "gpt-4"}, "field winner: expected one of"),
        (VOTE, VOTE | {"conversation_b": ["Hi"]}, "field conversation_b[0]: expected a role"),
        (VOTE, VOTE | {"conversation_b": [says("bot", "x")]}, "field conversation_b[0]: expected"),
        (PANDALM, PANDALM | {"annotator2": 3}, "field annotator2: expected one of 0, 1, 2, found"),
        (PANDALM, PANDALM | {"response1": True}, "field response1: expected a text, found bool"),
        (LLMBAR, LLMBAR | {"label": 0}, "field label: expected one of 1, 2, found int 0"),
        (PAIR, PAIR | {"chosen": ["x"]}, "field chosen: expected a text, found list"),
        (PAIR, PAIR | {"prompt": "\n\nHuman: Why?"}, "field prompt: expected '\\n\\nAssistant: '"),
        (PAIR, PAIR | {"prompt": talk("Why?", "So.")}, "expected a user's message at the end"),
        (PAIR, PAIR | {"prompt": []}, "field prompt: expected a user's message at the end"),
        (PAIR, PAIR | {"prompt": [says("user", None)]}, "field prompt[0]: expected a role"),
        (PAIR, PAIR | {"prompt": [says("user", "\ud800")]}, "field prompt[0].content: expected va"),
        (DIALOGUES, DIALOGUES | {"rejected": "No."}, "field rejected: expected a whole dialogue"),
    ],
)
def test_bad_rows_are_named(tmp_path, good, bad, message):
    path = write(tmp_path / "set.jsonl", [good, bad])
    with pytest.raises(ValueError, match="1 of 2 rows cannot be scored") as caught:
        read_benchmark(path)
    assert f"{path}, line 2, {message}" in str(caught.value) or (
        f"{path}, line 2" in str(caught.value) and message in str(caught.value)
    )
    benchmark = read_benchmark(path, drop_bad=True)
    assert [bool(item.comparisons) for item in benchmark.items] == [True, False]
    assert benchmark.noted["bad row left out"] == 1
    assert evaluate(benchmark, np.zeros((2, len(benchmark.answers)))).prompts.tolist()[0] == 0


def test_many_bad_rows_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"7 of 8 rows(.|\n)*and 2 more\nCorrect them"):
        read(tmp_path, PAIR, *[PAIR | {"chosen": 1}] * 7)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "Why?"}], "line 1: expected the fields of one of these formats"),
        ([{"question": "Why?"}], "found question"),
        ([3], "found int 3"),
        ([without(HUMAN, "winner") | {"question_id": 1}], "field question_id: expected prompt, re"),
        ([VOTE | {"winner": "tie"}], "expected rows that state a preference, found none"),
    ],
)
def test_unfit_files_are_refused(tmp_path, rows, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read(tmp_path, *rows)
    assert message in str(caught.value)


def test_unfit_tables_are_refused(tmp_path):
    path = tmp_path / "qa.csv"
    header = "Question,Best Answer,Correct Answers,Incorrect Answers\n"
    path.write_text(header + "Who?,She,She,\n")
    with pytest.raises(ValueError, match=r"row 1, field Incorrect Answers: expected texts separ"):
        read_benchmark(path)
    path.write_text(header + "Who?,She\n")
    with pytest.raises(ValueError, match=r"row 1, field Correct Answers: expected a text, found N"):
        read_benchmark(path)
    path.write_bytes(header.encode() + b"Wh\xe9,She,She,He\n")
    with pytest.raises(ValueError, match=r"qa.csv: expected comma-separated UTF-8 text"):
        read_benchmark(path)
    path.write_text(header)
    with pytest.raises(ValueError, match=r"expected rows that state a preference, found none"):
        read_benchmark(path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"score_a": 1, "score_b": 2}], "expected 2 lines, one for each row of human"),
        ([{"score_a": 1, "score_b": 2}] * 3, "expected 2 lines, one for each row of human"),
        ([{"score_a": 1}] * 2, "line 1, field score_b: expected a finite number, found only score"),
        ([{}] * 2, "line 1, field score_a: expected a finite number, found only no field"),
        ([{"score_a": 1, "score_b": 2}, {"score_a": 1, "score_b": "2"}], "line 2, field score_b"),
        ([{"score_a": None, "score_b": 2}], "line 1, field score_a: expected a finite number, fo"),
        ([{"score_a": True, "score_b": 2}], "line 1, field score_a: expected a finite number, fo"),
        ([{"score_a": 1, "score_b": math.nan}], "line 1, field score_b: expected a finite number"),
        ([{"score_a": 1, "score_b": math.inf}], "line 1, field score_b: expected a finite number"),
        ([[1, 2]], "line 1: expected an object with score_a, score_b"),
    ],
)
def test_unfit_score_files_are_refused(tmp_path, lines, message):
    benchmark = read(tmp_path, HUMAN, HUMAN)
    path = write(tmp_path / "set.m_scores.jsonl", lines)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        evaluate(benchmark, path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda conversations: [1.0], r"reward_fn: expected 4 scores.*found shape \(1,\)"),
        (lambda conversations: torch.zeros(2, 2), r"reward_fn: expected 4 scores"),
        (lambda conversations: [1, 2, 3, math.nan], "found nan for answer rejected of row 2"),
        (np.zeros((2, 3)), r"scores: expected shape \(2, 2\), rows and answers, found \(2, 3\)"),
        (np.array([[1, math.inf], [math.nan, 1]]), "inf for answer rejected of row 1, and 1 more"),
    ],
)
def test_unfit_scores_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        evaluate(pairs(("p", "a", "b"), ("q", "a", "b")), source)


# ---------------------------------------------------------------------------------- the command
def run(folder, capsys, monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["bench", str(folder), *options])
    monkeypatch.setattr(bench, "RESAMPLES", 20)
    bench.main()
    return capsys.readouterr().out


def test_the_command_takes_every_score_file(tmp_path, capsys, monkeypatch):
    write(tmp_path / "set.jsonl", [HUMAN, HUMAN | {"prompt": "Who?"}])
    write(tmp_path / "set.hard.jsonl.gz", [PAIR, PAIR | {"prompt": "Who?"}])
    write(tmp_path / "set.rm-1.0_scores.jsonl", [{"score_a": 1, "score_b": 0}] * 2)
    write(tmp_path / "set.other_scores.jsonl", [{"score_a": 0, "score_b": 1}] * 2)
    scores = [{"score_chosen": 1, "score_rejected": 1}] * 2
    write(tmp_path / "set.hard.rm-1.0_scores.jsonl.gz", scores)
    write(tmp_path / "truth.jsonl", [PAIR])  # a name alone makes no benchmark of the card's
    write(tmp_path / "truth.other_scores.jsonl", scores[:1])
    (tmp_path / "notes.txt").write_text("not read")
    out = run(tmp_path, capsys, monkeypatch)
    table = {line.split("  ")[0]: line.split() for line in out.splitlines()[:4]}
    assert table["rm-1.0"][1:] == ["1.000", "(1.000–1.000)", "–", "–", "–"]
    assert table["other"][1] == "0.000"
    assert table["longer wins"][2] == "1.000"
    assert "rm-1.0 · set.hard.jsonl.gz\n" in out
    assert "other · truth.jsonl\n" in out
    assert "ahead of longer-wins by -1.000 (-1.000 to -1.000)" in out
    assert "rm-1.0 · human\n  2 of 2 rows compared, 2 prompts, 2 comparisons" in out
    assert "  2 ties, which count half\n" in out


def test_the_command_says_what_is_wrong(tmp_path, capsys, monkeypatch):
    def refused(message, *options):
        with pytest.raises(SystemExit) as exit:
            run(tmp_path, capsys, monkeypatch, *options)
        assert exit.value.code == 2
        assert message in capsys.readouterr().err

    refused("expected score files named BENCHMARK.MODEL_scores.jsonl[.gz], found none")
    scores = write(tmp_path / "set.m_scores.jsonl", [{"score_chosen": 1, "score_rejected": 0}] * 2)
    refused(f"{scores}: expected the benchmark it scores beside it")
    write(tmp_path / "set.jsonl", [PAIR, PAIR | {"chosen": None}])
    refused("set.jsonl, line 2, field chosen: expected a text, found NoneType None")
    assert "1 rows: bad row left out" in run(tmp_path, capsys, monkeypatch, "--drop-bad")
    write(tmp_path / "b.jsonl", [HUMAN])
    write(tmp_path / "c.jsonl", [HUMAN])
    for name in "bc":
        write(tmp_path / f"{name}.m_scores.jsonl", [{"score_a": 1, "score_b": 0}])
    refused("c.jsonl: expected one human benchmark, found another")
