"""The exercises: right answers pass, stubs are no answers, wrong ones are told their cause."""

import ast
import math
import re
import warnings
from itertools import chain, combinations, product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nbformat.v4 import new_output
from small_notebooks import exercise, lesson
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM
from wrong_answers import RIGHT, WRONG

from starling_nb.data.chat import encode_with_mask, train_tokenizer
from starling_nb.lesson import anatomy, checks, claims, exercises, lint
from starling_nb.lesson.exercises import NOT_ATTEMPTED, PASSED, Exercise, attempt, difference
from starling_nb.policy.rollout import response_logprobs
from starling_nb.policy.sft import encode_demonstration, weighted_nll
from starling_nb.reward.bench import evaluate
from starling_nb.reward.bench_data import TRUTH, Benchmark, Item
from starling_nb.reward.kwise import plackett_luce_nll
from starling_nb.reward.metrics import ranking_metrics
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import pack_list

ALL = [getattr(checks, name) for name in checks.NAMES]
each = pytest.mark.parametrize("exercise", ALL, ids=lambda exercise: exercise.name)


def ids(rows):
    return [f"{row[0]}-{row[-1].__name__}" for row in rows]


@each
def test_the_solution_passes_and_says_by_how_much(exercise):
    status, message = exercise.judge(exercise.solution)
    assert status == PASSED
    assert re.fullmatch(
        rf"{exercise.name}: passed, {len(exercise.cases)} cases, "
        rf"(equal|largest difference 0 \(allowed {exercise.tolerance:.1g}\))",
        message,
    )


@pytest.mark.parametrize(("name", "function"), RIGHT, ids=ids(RIGHT))
def test_right_answers_of_any_make_pass(name, function):
    status, message = getattr(checks, name).judge(function)
    assert status == PASSED, message


@pytest.mark.parametrize(("name", "cause", "function"), WRONG, ids=ids(WRONG))
def test_wrong_answers_are_told_their_cause(name, cause, function):
    status, message = getattr(checks, name).judge(function)
    assert status == exercises.WRONG
    assert re.search(cause, message.splitlines()[-1]), message


@each
def test_every_known_mistake_is_made_by_some_wrong_answer(exercise):
    told = [exercise.judge(f)[1].splitlines()[-1] for name, _, f in WRONG if name == exercise.name]
    assert set(told) == {f"Likely cause: {cause}." for cause in exercise.mistakes}
    assert len(exercise.mistakes) >= 3


@each
def test_cases_tell_the_mistakes_apart(exercise):
    """No two mistakes, nor a mistake and the solution, agree on all cases; by a wide margin."""
    wide = min(1000 * exercise.tolerance, 0.1)
    functions = {"the solution": exercise.solution, **exercise.mistakes}
    answers = {
        cause: [attempt(function, case) for case in exercise.cases]
        for cause, function in functions.items()
    }
    for one, other in combinations(answers, 2):
        gap = max(map(difference, answers[one], answers[other]))
        assert gap > wide, f"{one!r} and {other!r} look the same"


def raises(*arguments):
    raise NotImplementedError


@each
@pytest.mark.parametrize("stub", [..., lambda *a: ..., lambda *a: None, raises])
def test_stubs_are_not_attempted(exercise, stub):
    status, message = exercise.judge(stub)
    assert status == NOT_ATTEMPTED
    assert message.startswith(f"{exercise.name}: not attempted yet")


def square(**changes):
    """A small exercise: the squares of a vector."""
    values = {
        "name": "square",
        "expects": "x (T,) -> its squares (T,)",
        "solution": lambda x: x**2,
        "cases": [(torch.tensor([0.5]),), (torch.tensor([1.0, 3.0]),), (torch.tensor([2.0]),)],
        "mistakes": {"doubled, not squared": lambda x: 2 * x, "the root": lambda x: x**0.5},
    }
    return Exercise(**values | changes)


@pytest.mark.parametrize(
    ("function", "lines"),
    [
        (
            lambda x: 2 * x,  # right on the last case
            ["x = [0.5]", "expected  [0.25]", "found     [1]", "cause: doubled, not squared."],
        ),
        (
            lambda x: x**2 + (len(x) > 1),
            ["1 of 3 cases", "x = [1, 3]", "expected  [1, 9]", "found     [2, 10]", "The task: x "],
        ),
        (
            lambda x: x.sum(),
            ["expected  numbers of shape (1,): [0.25]", "found     a number: 0.5"],
        ),
        (lambda x: "9", ["expected  numbers of shape (1,): [0.25]", "found     a str: '9'"]),
        (lambda x: {}, ["found     a dict: {}", "The task: x (T,) -> its squares (T,)."]),
        (lambda x: x / 0, ["3 of 3 cases", "found     [inf]"]),
        (
            lambda x: x[1:] ** 2 / len(x[1:]) if len(x) == 1 else x**2,
            ["2 of 3", "found     numbers of shape (0,): []"],
        ),
        (lambda x: 1 / (len(x) - 2), ["3 of 3 cases", "found     a number: -1"]),
        (
            lambda x: x**2 if len(x) == 1 else 1 / 0,
            ["1 of 3 cases", "x = [1, 3]", "expected  [1, 9]", "raised    ZeroDivisionError: div"],
        ),
        (lambda: 0, ["x = [0.5]", "raised    TypeError: ", "takes 0 positional arguments but 1"]),
        (lambda x: x**2 * 1.00001, ["found     [0.2500025]"]),
        (lambda x: None if len(x) == 2 else x**2, ["x = [1, 3]", "found     a number: nan"]),
        (3, ["square: expected a function, found a number"]),
    ],
)
def test_what_is_wrong_is_said(function, lines):
    status, message = square().judge(function)
    assert status == exercises.WRONG
    for line in lines:
        assert line in message


@pytest.mark.parametrize(
    ("name", "make"), [("sees", "bool"), ("position_ids", "int64"), ("packed_positions", "int64")]
)
def test_floats_do_not_do_for_a_tensor_of_another_type(name, make):
    exercise = getattr(checks, name)
    for floats in (lambda x: x.float(), lambda x: x.double().numpy()):
        status, message = exercise.judge(lambda *case, of=floats: of(exercise.solution(*case)))
        assert status == exercises.WRONG
        assert message.endswith(f"the numbers are right, but floats: torch.{make} is asked for.")
    for others in (lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.int()):
        answer = lambda *case, of=others: of(exercise.solution(*case))  # noqa: E731
        assert exercise.judge(answer)[0] == PASSED


def test_a_mistake_in_floats_is_told_as_the_mistake():
    message = checks.sees.judge(lambda segments: torch.ones(len(segments), len(segments)).tril())[1]
    assert "Likely cause: this is the plain causal mask" in message


def test_a_cause_is_named_only_when_all_answers_fit_it():
    message = square().judge(lambda x: 2 * x if len(x) == 1 else x)[1]
    assert "Likely cause" not in message


def test_overflow_is_the_same_mistake_in_math_as_in_torch():
    softplus = square(
        solution=lambda x: torch.nn.functional.softplus(x),
        cases=[(torch.tensor(1.0, dtype=torch.float64),), (torch.tensor(1e3).double(),)],
        mistakes={"exp overflows": lambda x: torch.log(1 + torch.exp(x))},
    )
    message = softplus.judge(lambda x: math.log(1 + math.exp(x)))[1]
    assert "raised    OverflowError: math range error" in message
    assert message.endswith("Likely cause: exp overflows.")
    assert "Likely cause" not in softplus.judge(lambda x: math.log(1 + x))[1]


@each
def test_learners_cannot_change_the_cases(exercise):
    def vandal(*arguments):
        for argument in arguments:
            if isinstance(argument, torch.Tensor | np.ndarray):
                argument[...] = 0
            elif isinstance(argument, list):
                argument.clear()

    exercise.judge(lambda *arguments: vandal(*arguments) or 0)
    assert exercise.judge(exercise.solution)[0] == PASSED


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
def test_numbers_of_any_make_are_the_same_answer(values, scalar):
    values = values[0] if scalar else values
    makes = [values, np.array(values), torch.tensor(values, dtype=torch.float64)]
    makes += [torch.tensor(values, dtype=torch.float64, requires_grad=True)]
    if not scalar:
        makes += [tuple(values), [torch.tensor(x, dtype=torch.float64) for x in values]]
    for found in makes:
        for expected in makes:
            assert difference(found, expected) == 0
    assert difference(torch.tensor(values, dtype=torch.bfloat16), values) < 1e-2
    assert difference(makes[1] + 1, makes[1]) > 0


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ([("a", "b")], [["a", "b"]], True),
        ([("a", "b")], [["a", "c"]], False),
        (np.array(["a", "b"]), ("a", "b"), True),
        ("a", ["a"], False),
        ("3", 3, False),
        (3, "3", False),
        ([1, 2], [[1, 2]], False),
        ([[1], [1, 2]], [1, 2], False),
        (1 + 0j, 1, False),
        (torch.tensor(1 + 0j), 1, False),
        (True, 1, True),
        (float("nan"), float("inf"), True),
        (ValueError(), float("nan"), True),
        (float("nan"), 1.0, False),
        (1.0, ValueError(), False),
        ([], [], True),
    ],
)
def test_when_two_answers_are_the_same(found, expected, same):
    assert (difference(found, expected) == 0) is same


def test_the_tolerance_is_relative_to_large_numbers_and_absolute_for_small_ones():
    assert difference([1e-9, 1e3], [0, 1e3 + 1]) == pytest.approx(1 / 1001)
    assert difference(1e-9, 0) == pytest.approx(1e-9)


def test_warnings_of_an_attempt_are_not_shown():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert square().judge(lambda x: np.log(-x.numpy()))[0] == exercises.WRONG
    assert shown == []


def test_calling_an_exercise_prints_outside_a_notebook(capsys):
    assert checks.ceiling(lambda a: a) is None
    assert "Likely cause: this is the agreement itself" in capsys.readouterr().out


def test_a_misspelt_exercise_is_answered_with_the_nearest():
    with pytest.raises(AttributeError, match=r"'placket_luce'; did you mean plackett_luce\?"):
        checks.placket_luce  # noqa: B018
    with pytest.raises(
        AttributeError, match=r"'xyz'; there are plackett_luce, .*, top_of_each_type$"
    ):
        checks.xyz  # noqa: B018


def test_exercises_are_called_as_they_are_listed():
    assert [exercise.name for exercise in ALL] == list(checks.NAMES)


# Solutions that are not a function of the package agree with what the package does.


def test_weighted_nll_is_the_packages():
    logits = torch.randn(1, 6, 5, generator=torch.Generator().manual_seed(0))  # (B, T, V)
    batch = {
        "input_ids": torch.tensor([[0, 3, 1, 4, 2, 2]]),
        "attention_mask": torch.ones(1, 6),
        "weights": torch.tensor([[0, 0, 1, 1, 0.1, 0.1]]),
    }
    policy = SimpleNamespace(
        get_decoder=lambda: lambda **_: SimpleNamespace(last_hidden_state=logits),
        get_output_embeddings=lambda: lambda states: states,
    )
    log_pi = logits[0, :-1].log_softmax(-1)  # (T - 1, V)
    logprobs = log_pi.gather(1, batch["input_ids"][0, 1:, None])[:, 0]
    ours = checks.weighted_nll.solution(logprobs, batch["weights"][0, 1:])
    torch.testing.assert_close(ours, weighted_nll(policy, batch))


def test_ranking_probability_is_that_of_the_likelihood():
    for weights, order in checks.ranking_probability.cases:
        scores = torch.tensor(weights).double().log()[order]
        expected = float((-plackett_luce_nll(scores[None])).exp())
        assert checks.ranking_probability.solution(weights, order) == pytest.approx(expected)


CONVERSATION = [
    {"role": "user", "content": "Is it far?"},
    {"role": "assistant", "content": "No, it is near."},
    {"role": "user", "content": "Good."},
    {"role": "assistant", "content": "Yes."},
]


def test_answer_mask_is_the_packages():
    tokenizer = train_tokenizer(["Is it far? No, it is near. GPT4 Correct User: Assistant:"], 300)
    ids, mask = encode_with_mask(tokenizer, CONVERSATION)
    colon, end = tokenizer.convert_tokens_to_ids([":", "<|end_of_turn|>"])
    segments = [("bos", 1)]
    start = 1
    for message in CONVERSATION:
        header, stop = ids.index(colon, start) + 1, ids.index(end, start)
        segments += [("header", header - start), (message["role"], stop - header), ("end", 1)]
        start = stop + 1
    assert checks.answer_mask.solution(segments) == mask


def test_class_weights_are_the_packages():
    tokenizer = train_tokenizer(["Is it far? No, it is near. GPT4 Correct User: Assistant:"], 300)
    experts = [True, False, False]
    rows = [
        encode_demonstration({"conversation": CONVERSATION, "expert": e}, tokenizer, 0.1).weights
        for e in experts
    ]
    weights = torch.cat(rows)
    answers = weights[weights > 0] / weights.sum()
    lengths = [int((row > 0).sum()) for row in rows]
    torch.testing.assert_close(
        checks.class_weights.solution(experts, lengths).float(), answers, rtol=1e-5, atol=0
    )


def test_pessimistic_value_is_the_least_in_the_ball():
    """No parameter of distance `bonus` from theta does worse; among many one is nearly as bad."""
    generator = torch.Generator().manual_seed(0)
    for theta, gain, metric, bonus in checks.pessimistic_value.cases:
        steps = torch.randn(20_000, len(theta), generator=generator, dtype=torch.float64)
        lengths = torch.einsum("ni,ij,nj->n", steps, metric, steps).sqrt()
        values = (theta + bonus * steps / lengths[:, None]) @ gain
        least = checks.pessimistic_value.solution(theta, gain, metric, bonus)
        assert least - 1e-9 <= values.min() <= least + 1e-2


def tiny(kind):
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    return kind(config).eval()


def test_rewards_are_read_where_the_package_reads_them():
    """A row padded on the left, one that is full, one padded on the right."""
    model = tiny(RewardModel)
    ids = torch.randint(9, (3, 4), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    positions = checks.position_ids.solution(mask)
    hidden = model.transformer(ids, attention_mask=mask, position_ids=positions)[0]
    rewards = checks.read_reward.solution(hidden, mask, model.v_head.weight[0])
    torch.testing.assert_close(rewards, model(ids, mask))


def test_a_packed_answer_is_scored_as_if_it_stood_alone():
    model = tiny(RewardModel)
    prompt, answers = [1, 5, 2], [[3, 4], [7], [8, 6, 2]]
    lengths = [len(answer) for answer in answers]
    segments = torch.arange(4).repeat_interleave(torch.tensor([3, *lengths]))
    together = model(
        torch.tensor([[*prompt, *chain.from_iterable(answers)]]),
        checks.sees.solution(segments)[None, None],
        checks.packed_positions.solution(3, lengths)[None],
        2 + torch.tensor(lengths).cumsum(0)[None],
    )[0]
    for reward, answer in zip(together, answers, strict=True):
        ids = torch.tensor([prompt + answer])
        torch.testing.assert_close(reward, model(ids, torch.ones_like(ids))[0])


@given(st.integers(1, 9), st.lists(st.integers(1, 9), min_size=2, max_size=7))
def test_tokens_computed_are_those_of_the_tensors(prompt, answers):
    ids = [[0] * size for size in answers]
    rows = [torch.zeros(prompt + size) for size in answers]
    pairs = [torch.cat(pair) for pair in combinations(rows, 2)]
    assert checks.tokens_computed.solution(prompt, answers) == (
        pack_list([0] * prompt, ids).input_ids.numel(),
        pad_sequence(rows).numel(),
        sum(map(torch.numel, pairs)),
    )


few_scores = st.integers(1, 4).flatmap(  # few values, so that many tie
    lambda n: st.integers(2, 5).flatmap(
        lambda k: arrays(float, (n, k), elements=st.integers(-2, 2).map(float))
    )
)


@given(few_scores)
def test_pair_accuracy_is_the_packages(scores):
    expected = ranking_metrics(torch.tensor(scores))["accuracy"]
    assert checks.pair_accuracy.solution(scores) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_no_guesses_are_better_than_the_bayes_accuracy(p):
    expected = max(
        np.mean([x if first else 1 - x for x, first in zip(p, guesses, strict=True)])
        for guesses in product([True, False], repeat=len(p))
    )
    assert checks.bayes_accuracy.solution(np.array(p)) == pytest.approx(expected)


def test_the_calibration_scale_is_the_likeliest():
    """In all cases; where margins are of one size, it is the log odds over that size."""

    def likelihood(c, margins):
        return -np.logaddexp(0, -c * margins).sum()

    found = [checks.calibration_scale.solution(*case) for case in checks.calibration_scale.cases]
    assert found[:2] == pytest.approx([math.log(2), 2 * math.log(3)])
    for c, (margins,) in zip(found, checks.calibration_scale.cases, strict=True):
        others = [likelihood(c * (1 + step), margins) for step in (-1, -0.1, -1e-3, 1e-3, 0.1, 1)]
        assert likelihood(c, margins) > max(others)


fine_scores = st.integers(-300, 300).map(lambda n: n / 250)  # 0.004 apart


@given(st.lists(st.tuples(*[fine_scores] * 3), min_size=1, max_size=8))
def test_truth_preference_is_the_packages(rows):
    texts = ("correct", "incorrect", "best")
    conversation = [{"role": "user", "content": "?"}]
    answered = tuple([*conversation, {"role": "assistant", "content": text}] for text in texts)
    items = [Item(answered, TRUTH, "?") for _ in rows]
    scores = np.array(rows)
    expected = evaluate(Benchmark("truth", items, texts), scores).credit.mean()
    assert checks.truth_preference.solution(*scores.T) == pytest.approx(expected)


@pytest.mark.parametrize("P", [1, 2, 5])
def test_response_logprobs_are_the_packages(P):
    policy = tiny(LlamaForCausalLM)
    ids, attended = torch.tensor([[4, 1, 7, 2, 5, 3]]), torch.ones(1, 6, dtype=torch.bool)
    expected = response_logprobs(policy, ids[:, :P], attended[:, :P], ids[:, P:], attended[:, P:])
    ours = checks.response_logprobs.solution(policy(ids).logits[0], ids[0], P)
    torch.testing.assert_close(ours, expected[0])


# The exercises of the committed lessons.


def imports(sources) -> dict:
    """A namespace in which only the import statements of these code cells were run."""
    namespace: dict = {}
    for source in sources:
        body = ast.parse(source).body
        kept = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(kept, []), "imports", "exec"), namespace)
    return namespace


def faults(nb) -> list[str]:
    """What is wrong with a lesson's exercises when they are done: the stub, then the solution."""
    found = []
    for i in (i for i, cell in enumerate(nb.cells) if "exercise" in anatomy.tags(cell)):
        header, stub, solution = nb.cells[i - 1 : i + 2]
        name, function = lint.checked_function(stub.source)
        if not lint.HEADER.match(header.source):
            found.append(f"{name}: no header with difficulty and minutes")
        if name not in checks.NAMES:
            found.append(f"{name}: there is no such exercise")
            continue
        judge = getattr(checks, name).judge

        before = [lint.python_source(c) for c in nb.cells[:i] if c.cell_type == "code"]
        namespace = imports(before)
        exec(stub.source.rpartition("check.")[0], namespace)
        status, message = judge(namespace[function])
        if status != NOT_ATTEMPTED:
            found.append(f"{name}: the stub is {status}: {message}")

        namespace = {}  # the solution states what it imports
        exec(lint.SOLUTION.fullmatch(solution.source)[1], namespace)
        status, message = judge(namespace[function])
        if status != PASSED:
            found.append(f"{name}: the solution is {status}: {message}")

        cells = SimpleNamespace(cells=[stub])
        shown = [(r["exercise"], r["status"]) for r in claims.recorded(cells, claims.CHECK)]
        if stub.outputs and shown != [(name, NOT_ATTEMPTED)]:
            found.append(f"{name}: the stored outputs are not the stub's: {shown}")
    return found


@pytest.mark.parametrize("path", anatomy.lesson_paths(anatomy.NOTEBOOKS), ids=lambda p: p.stem)
def test_exercises_of_the_lessons_can_be_solved_as_they_stand(path):
    assert faults(anatomy.read_notebook(path)) == []


SOLVED = """\
import numpy as np


def my_function(counts):
    expected = sum(counts) / len(counts)
    return np.sum((np.array(counts) - expected) ** 2) / expected"""
OUTPUT = new_output(
    "display_data",
    {"text/plain": "", claims.CHECK: {"exercise": "chi_square", "status": NOT_ATTEMPTED}},
)


def small_lesson(**changes):
    nb = lesson("import torch", *exercise(**{"solution": SOLVED} | changes))
    nb.cells[4].outputs = [OUTPUT]
    return nb


def test_a_lesson_with_a_solvable_exercise_has_no_fault():
    assert faults(small_lesson()) == []
    annotated = "def my_function(counts: torch.Tensor):\n    raise NotImplementedError"
    assert faults(small_lesson(stub=annotated)) == []


def other_output(nb):
    nb.cells[4].outputs = [new_output("stream", text="passed")]


@pytest.mark.parametrize(
    ("changes", "change", "fault"),
    [
        ({"solution": SOLVED.replace("/ len", "+ len")}, None, "the solution is wrong: chi_square"),
        ({"solution": SOLVED.partition("\n")[2]}, None, "the solution is wrong: .*NameError"),
        ({"stub": SOLVED}, None, "the stub is passed"),
        ({"stub": "def my_function(counts):\n    return 0"}, None, "the stub is wrong"),
        ({"name": "chi_squared"}, None, "there is no such exercise"),
        ({}, other_output, r"the stored outputs are not the stub's: \[\]"),
        ({}, lambda nb: nb.cells[3].update(source="### Exercise"), "no header with difficulty"),
    ],
)
def test_the_fault_of_an_exercise_is_found(changes, change, fault):
    nb = small_lesson(**changes)
    if change:
        change(nb)
    (found,) = faults(nb)
    assert re.search(fault, found, re.DOTALL), found
