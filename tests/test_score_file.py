"""Scoring a file: every kind of row, order, bad rows by number, a kill and what comes after it."""

import copy
import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from tiny_rewards import card_34b, llama_tokenizer
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import mistral_tokenizer, prompt_to_conversation, train_tokenizer
from starling_nb.lesson import cli
from starling_nb.reward import score_file as module
from starling_nb.reward.model import RewardModel, score
from starling_nb.reward.score_file import Scored, score_file

REPOSITORY = Path(module.__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["What is the capital of France? It is Paris."] * 3, 280)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=280, initializer_range=0.2, **sizes, **heads)
    return RewardModel.from_policy(MistralForCausalLM(config)).eval()


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    """The model and its tokenizer as a checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def talk(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def nectar(prompt: str, answers: list[str]) -> dict:
    ranked = [{"answer": a, "model": "m", "rank": float(i)} for i, a in enumerate(answers, 1)]
    return {"prompt": prompt, "answers": ranked, "source": ["x"], "turns": 2}


TWO_TURNS = "\n\nHuman: What?\n\nAssistant: That.\n\nHuman: Why?\n\nAssistant: "
ROWS = [
    {"conversation": talk("What is it?", "It is so."), "id": 3},
    {"messages": talk("What is it?", "It is not."), "note": "é \U0001f642", "x": None},
    {"prompt": "What is it? " * 9, "answer": "So."},
    nectar(TWO_TURNS, ["Because it is so.", "Because.", "I do not know."]),
    {"prompt": TWO_TURNS, "answers": ["No.", "Yes."]},
]


def expected(model, tokenizer) -> list[list[float]]:
    """The scores of ROWS, each conversation alone."""
    two = prompt_to_conversation(TWO_TURNS)
    lists = [
        [ROWS[0]["conversation"]],
        [ROWS[1]["messages"]],
        [talk("What is it? " * 9, "So.")],
        [[*two, {"role": "assistant", "content": a["answer"]}] for a in ROWS[3]["answers"]],
        [[*two, {"role": "assistant", "content": a}] for a in ROWS[4]["answers"]],
    ]
    return [[score(model, tokenizer, [t]).item() for t in talks] for talks in lists]


def write(path: Path, rows: list) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def read(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    data = path.read_bytes()
    data = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in data.splitlines()]


def many(n: int) -> list[dict]:
    """Rows of many lengths; a list of two every third, so that 6 rows hold 8 conversations."""
    rows = []
    for i in range(n):
        question = f"What is {i}? " + "Why? " * (i * 7 % 23)
        rows.append({"prompt": question, "answer": f"It is {i}."})
        if i % 3 == 0:
            rows[-1] = {"prompt": question, "answers": [f"{i}.", f"No, it is {i}."]}
    return rows


# --- what is written ---


@pytest.mark.parametrize(
    ("source", "output"),
    [("a.jsonl", "b.jsonl"), ("a.jsonl.gz", "b.jsonl"), ("a.jsonl", "b.jsonl.gz")],
)
def test_rows_keep_their_order_and_fields(model, tokenizer, tmp_path, source, output):
    write(tmp_path / source, ROWS)
    result = score_file(model, tokenizer, tmp_path / source, tmp_path / output)
    assert result == Scored(rows=5, conversations=8, truncated=0, resumed=0)
    rows = read(tmp_path / output)
    for row, before, scores in zip(rows, ROWS, expected(model, tokenizer), strict=True):
        found = row.pop("scores") if "answers" in row else [row.pop("score")]
        assert found == pytest.approx(scores, rel=1e-5, abs=1e-5)
        assert row.pop("truncated") == 0
        assert row == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source, output])


def test_parquet_keeps_its_columns(model, tokenizer, tmp_path):
    scores = expected(model, tokenizer)
    lists = write(tmp_path / "lists.parquet", [ROWS[3], ROWS[3]])
    score_file(model, tokenizer, lists, tmp_path / "out.parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.drop_columns(["scores", "truncated"]).equals(pq.read_table(lists))
    assert table.schema.field("scores").type == pa.list_(pa.float32())
    for row in table.to_pylist():
        assert row["scores"] == pytest.approx(scores[3], rel=1e-5, abs=1e-5)

    talks = write(tmp_path / "talks.parquet", [{"messages": ROWS[1]["messages"], "answers": 1}] * 3)
    score_file(model, tokenizer, talks, tmp_path / "talks-out.parquet")
    table = pq.read_table(tmp_path / "talks-out.parquet")
    assert table.schema.field("score").type == pa.float32()
    assert table["score"].to_pylist() == pytest.approx([scores[1][0]] * 3, rel=1e-5, abs=1e-5)


def test_scores_are_written_to_the_last_bit_of_float32(model, tokenizer, tmp_path):
    write(tmp_path / "a.jsonl", ROWS[:1])
    score_file(model, tokenizer, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    (row,) = read(tmp_path / "b.jsonl")
    exact = score(model, tokenizer, [ROWS[0]["conversation"]])
    assert torch.tensor([row["score"]], dtype=torch.float32).equal(exact)


def test_truncations_are_counted(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(model.config, "reward_max_length", 60)
    rows = [ROWS[2], {"prompt": "Why? " * 30, "answers": ["a", "b"]}, ROWS[0]]
    result = score_file(model, tokenizer, write(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl")
    assert [row["truncated"] for row in read(tmp_path / "b.jsonl")] == [1, 2, 0]
    assert (result.truncated, result.conversations) == (3, 4)


def test_bytes_that_are_no_utf8_pass_through_in_other_fields(model, tokenizer, tmp_path):
    line = json.dumps(ROWS[2] | {"note": "NOTE"}).encode().replace(b"NOTE", b"\xff\xfe")
    (tmp_path / "a.jsonl").write_bytes(line)
    score_file(model, tokenizer, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert b'"note": "\xff\xfe"' in (tmp_path / "b.jsonl").read_bytes()


# --- a kill, and what comes after it ---


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from starling_nb.reward import score_file as module
from starling_nb.reward.model import RewardModel
import torch
torch.set_num_threads(1)
folder, source, output, chunks = sys.argv[1:]
score_rows, calls = module.score_rows, []
def score_or_die(*args):
    if len(calls) == int(chunks):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(1)
    return score_rows(*args)
module.score_rows = score_or_die
model = RewardModel.from_pretrained(folder)
module.score_file(model, PreTrainedTokenizerFast.from_pretrained(folder), source, output, 4)
"""


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)


@pytest.mark.usefixtures("threads")
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tokenizer, folder, tmp_path):
    torch.set_num_threads(1)  # as the run that is killed
    model = RewardModel.from_pretrained(folder)
    source = write(tmp_path / "a.jsonl", many(300))
    score_file(model, tokenizer, source, tmp_path / "whole.jsonl", 4)
    arguments = [folder, source, tmp_path / "b.jsonl", 3]
    died = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
    assert not (tmp_path / "b.jsonl").exists()
    result = score_file(model, tokenizer, source, tmp_path / "b.jsonl", 4)
    assert (result.resumed, result.rows) == (3 * 48, 300)  # 48 rows of 64 conversations
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def stop_after(monkeypatch, chunks: int) -> None:
    """Interrupt the run when so many chunks are done."""
    calls = []
    score_rows = module.score_rows

    def score_or_stop(*args):
        if len(calls) == chunks:
            raise KeyboardInterrupt
        calls.append(1)
        return score_rows(*args)

    monkeypatch.setattr(module, "score_rows", score_or_stop)


@pytest.mark.parametrize("torn", [0, 1, 30, "header"])
def test_a_torn_last_line_is_computed_again(
    model, tokenizer, tmp_path, monkeypatch, small_chunks, torn
):
    source = write(tmp_path / "a.jsonl", many(30))
    score_file(model, tokenizer, source, tmp_path / "whole.jsonl")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            score_file(model, tokenizer, source, tmp_path / "b.jsonl")
    partial = tmp_path / "b.jsonl.partial"
    content = partial.read_bytes()
    assert content.count(b"\n") == 3
    kept = 20 if torn == "header" else len(content) - torn
    partial.write_bytes(content[:kept])
    result = score_file(model, tokenizer, source, tmp_path / "b.jsonl")
    assert result.resumed == {0: 12, 1: 6, 30: 6, "header": 0}[torn]
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_may_be_stopped_again_and_again(
    model, tokenizer, tmp_path, monkeypatch, small_chunks
):
    source = write(tmp_path / "a.jsonl", many(50))
    score_file(model, tokenizer, source, tmp_path / "whole.jsonl")
    for kept in (0, 1, 2):  # each run computes one chunk more than it finds, then tears it
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            with pytest.raises(KeyboardInterrupt):
                score_file(model, tokenizer, source, tmp_path / "b.jsonl")
        partial = tmp_path / "b.jsonl.partial"
        assert partial.read_bytes().count(b"\n") == 3 + kept
        partial.write_bytes(partial.read_bytes()[:-1])
    result = score_file(model, tokenizer, source, tmp_path / "b.jsonl")
    assert result.resumed == 18
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_run_killed_before_the_last_step_only_writes(
    model, tokenizer, tmp_path, monkeypatch, small_chunks
):
    source = write(tmp_path / "a.jsonl", many(10))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_jsonl", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            score_file(model, tokenizer, source, tmp_path / "b.jsonl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl.partial"]
    monkeypatch.setattr(module, "score_rows", None)
    assert score_file(model, tokenizer, source, tmp_path / "b.jsonl").resumed == 10
    assert len(read(tmp_path / "b.jsonl")) == 10


def started(model, tokenizer, folder, monkeypatch) -> Path:
    """An interrupted run of folder/a.jsonl; its partial file."""
    source = write(folder / "a.jsonl", many(30))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            score_file(model, tokenizer, source, folder / "b.jsonl")
    return folder / "b.jsonl.partial"


def test_scores_of_another_run_are_never_mixed_in(
    model, tokenizer, tmp_path, monkeypatch, small_chunks
):
    partial = started(model, tokenizer, tmp_path, monkeypatch)
    source, output = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    before = partial.read_bytes()
    other = copy.deepcopy(model)
    other.v_head.weight.data[0, 3] += 1e-6
    with pytest.raises(ValueError, match=r"partial: .* with another weights; delete it"):
        score_file(other, tokenizer, source, output)
    with pytest.raises(ValueError, match="with another tokenizer; delete it"):
        score_file(model, train_tokenizer(["other words"] * 9, 270), source, output)
    with pytest.raises(ValueError, match="with another batch_size; delete it"):
        score_file(model, tokenizer, source, output, batch_size=5)
    monkeypatch.setattr(model.config, "reward_max_length", 99)
    with pytest.raises(ValueError, match="with another max_length; delete it"):
        score_file(model, tokenizer, source, output)
    monkeypatch.undo()
    write(source, many(31))
    monkeypatch.setattr(module, "CHUNK", 8)
    with pytest.raises(ValueError, match="with another input; delete it"):
        score_file(model, tokenizer, source, output)
    assert partial.read_bytes() == before
    assert not output.exists()


@pytest.mark.parametrize(
    "content",
    [b"not\nwhat it\nshould be\n", b"[]\n[]\n", b'{"input": 1}\n[[1, 2, 3]]\n', b"\xff\n[]\n"],
)
def test_other_files_are_not_taken_for_scores(
    model, tokenizer, tmp_path, monkeypatch, small_chunks, content
):
    partial = started(model, tokenizer, tmp_path, monkeypatch)
    partial.write_bytes(content)
    with pytest.raises(ValueError, match=r"b\.jsonl\.partial: "):
        score_file(model, tokenizer, tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    assert partial.read_bytes() == content


def test_a_partial_file_with_too_many_rows_is_refused(
    model, tokenizer, tmp_path, monkeypatch, small_chunks
):
    partial = started(model, tokenizer, tmp_path, monkeypatch)
    header, first, _ = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(header + first * 6)
    with pytest.raises(ValueError, match="expected 30 rows at most; delete it and start again"):
        score_file(model, tokenizer, tmp_path / "a.jsonl", tmp_path / "b.jsonl")


# --- what is refused, before anything is computed ---


USER = {"role": "user", "content": "a"}
BAD = [
    ([], "expected an object with named fields"),
    ({"prompt": "a"}, "expected the fields conversation, messages, prompt and answer, or"),
    ({"answer": "a"}, "expected the fields"),
    ({"prompt": 3, "answer": "a"}, "field prompt: expected a text, found 3"),
    ({"prompt": "a", "answer": None}, "field answer: expected a text, found None"),
    ({"prompt": "a", "answers": []}, "field answers: expected a list of answers, found []"),
    ({"prompt": "a", "answers": "b"}, "field answers: expected a list of answers, found 'b'"),
    ({"prompt": "a", "answers": ["b", {"text": "c"}]}, "field answers[1]: expected a text"),
    ({"prompt": "\n\nHuman: a", "answer": "b"}, "prompt: expected '\\n\\nAssistant: ' at the end"),
    ({"conversation": "a"}, "field conversation: expected a list of messages, found 'a'"),
    ({"messages": []}, "field messages: expected a list of messages, found []"),
    ({"messages": [USER, "b"]}, "field messages[1]: expected an object with role and content"),
    ({"messages": [{"role": "user"}]}, "field messages[0]: expected an object with role and"),
    ({"messages": [USER | {"content": 1}]}, "field messages[0].content: expected a text, found 1"),
    ({"messages": [USER]}, "expected the assistant's answer at its end, found user"),
    ({"messages": [USER | {"role": "bot"}, *talk("a", "b")]}, "message 1, role: expected one of"),
    ({"prompt": "a", "answer": "b", "score": 1}, "field score: expected no such field"),
    ({"prompt": "a", "answer": "\ud800"}, "field answer: expected valid UTF-8"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_bad_rows_are_named_by_number(model, tokenizer, tmp_path, row, message):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(r) + "\n" for r in (ROWS[0], row, ROWS[1])))
    with pytest.raises(ValueError, match=r"^1 of 3 rows cannot be scored:\n") as error:
        score_file(model, tokenizer, source, tmp_path / "b.jsonl")
    assert f"{source}, line 2" in str(error.value)
    assert message in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_bad_rows_are_counted_and_the_first_five_spelled_out(model, tokenizer, tmp_path):
    source = write(tmp_path / "a.parquet", [{"prompt": "a", "answer": "b"}] + [{"prompt": "a"}] * 7)
    with pytest.raises(ValueError, match="7 of 8 rows cannot be scored") as error:
        score_file(model, tokenizer, source, tmp_path / "b.parquet")
    assert [f"row {n}," in str(error.value) for n in range(1, 9)] == [False] + [True] * 5 + [
        False
    ] * 2
    assert str(error.value).endswith("\n  and 2 more")


def test_lines_that_are_no_json_are_named(model, tokenizer, tmp_path):
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps(ROWS[0]) + '\n{"prompt": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: expected one JSON object"):
        score_file(model, tokenizer, source, tmp_path / "b.jsonl")


def test_the_template_of_the_checkpoint_decides_what_is_a_bad_row(tmp_path):
    torch.manual_seed(0)
    model = RewardModel(card_34b(vocab_size=32010).config).eval()
    system = [{"role": "system", "content": "Be kind."}, *talk("a", "b")]
    source = write(tmp_path / "a.jsonl", [{"messages": system}])
    model.config.reward_template = "llama2_starling"
    with pytest.raises(ValueError, match="line 1: conversation: llama2_starling expects the roles"):
        score_file(model, llama_tokenizer(), source, tmp_path / "b.jsonl")
    model.config.reward_template = None
    with pytest.raises(ValueError, match="does not say in which chat template"):
        score_file(model, llama_tokenizer(), source, tmp_path / "b.jsonl")
    model.config.reward_template = "chatml_yi"
    assert score_file(model, llama_tokenizer(), source, tmp_path / "b.jsonl").rows == 1


def test_a_score_that_is_not_finite_names_its_row(model, tokenizer, tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", [{"prompt": "What?", "answer": f"{i}"} for i in range(3)])

    def score_nan(model, tokenizer, talks, **options):
        return torch.tensor([1.0, float("nan"), 2.0]), torch.zeros(3)

    monkeypatch.setattr(module, "score_with_truncation", score_nan)
    with pytest.raises(FloatingPointError, match=r"line 2: expected finite scores, found \[nan\]"):
        score_file(model, tokenizer, source, tmp_path / "b.jsonl")


def test_places_that_cannot_be_read_or_written(model, tokenizer, tmp_path):
    source = write(tmp_path / "a.jsonl", ROWS)
    cases = [
        (tmp_path / "no.jsonl", tmp_path / "b.jsonl", FileNotFoundError, "no such file; give a"),
        (tmp_path, tmp_path / "b.jsonl", FileNotFoundError, "no such file"),
        (source, tmp_path / "no" / "b.jsonl", FileNotFoundError, "no such folder; make it first"),
        (source, source, FileExistsError, "is there already"),
        (source, tmp_path / "b.parquet", ValueError, "expected a name of the input's kind"),
        (source, tmp_path / "b.json", ValueError, "expected a name of the input's kind"),
    ]
    for given, wanted, kind, message in cases:
        with pytest.raises(kind, match=message):
            score_file(model, tokenizer, given, wanted)
    (tmp_path / "a.csv").write_text("x\n")
    with pytest.raises(ValueError, match="found another kind"):
        score_file(model, tokenizer, tmp_path / "a.csv", tmp_path / "b.jsonl")


# --- the command ---


def command(*arguments, **options):
    words = [str(a) for pair in options.items() for a in (f"--{pair[0]}", pair[1])]
    return CliRunner().invoke(cli.main, ["score", *arguments, *words])


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_command(model, tokenizer, folder, tmp_path):
    source = write(tmp_path / "a.jsonl", ROWS)
    result = command(model=folder, input=source, output=tmp_path / "b.jsonl")
    assert result.exit_code == 0, result.output
    assert "5 rows, 8 conversations scored\n" in result.stdout
    assert "score: 100 % (5/5)" in result.stderr
    rows = read(tmp_path / "b.jsonl")
    scores = expected(model, tokenizer)
    assert rows[0]["score"] == pytest.approx(scores[0][0], rel=1e-5, abs=1e-5)
    assert rows[3]["scores"] == pytest.approx(scores[3], rel=1e-5, abs=1e-5)

    again = command(model=folder, input=source, output=tmp_path / "b.jsonl")
    assert again.exit_code == 2
    assert "b.jsonl: is there already" in again.stderr


@pytest.mark.usefixtures("threads", "small_chunks")
def test_the_command_goes_on_after_an_interruption(folder, tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", many(30))
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        stopped = command(model=folder, input=source, output=tmp_path / "b.jsonl")
    assert stopped.exit_code == 130
    assert "the same command goes on from here" in stopped.stderr
    result = command(model=folder, input=source, output=tmp_path / "b.jsonl")
    assert "30 rows (12 of them before), 40 conversations scored" in result.stdout


@pytest.mark.usefixtures("threads")
def test_the_command_reads_a_released_layout_with_the_tokenizer_of_its_base(tmp_path):
    """Starling-RM-34B has no tokenizer of its own: it is that of Yi-34B-Chat."""
    card_34b(vocab_size=32010).save_pretrained(tmp_path / "34b")
    llama_tokenizer().save_pretrained(tmp_path / "yi")
    source = write(tmp_path / "a.jsonl", ROWS)
    options = {"model": tmp_path / "34b", "input": source, "output": tmp_path / "b.jsonl"}
    result = command(**options, tokenizer=tmp_path / "yi")
    assert result.exit_code == 0, result.output
    model = RewardModel.from_pretrained(tmp_path / "34b")
    scores = expected(model, llama_tokenizer())
    assert read(tmp_path / "b.jsonl")[4]["scores"] == pytest.approx(scores[4], rel=1e-5, abs=1e-5)
    named = command(
        **options | {"output": tmp_path / "c.jsonl"}, tokenizer=tmp_path / "yi", template="openchat"
    )
    assert named.exit_code == 0, named.output
    other = read(tmp_path / "c.jsonl")[4]["scores"]
    assert other != pytest.approx(scores[4], rel=1e-3)


@pytest.mark.usefixtures("threads")
def test_the_command_says_what_it_refuses(folder, tmp_path, monkeypatch):
    source = write(tmp_path / "a.jsonl", [*ROWS, {"prompt": "a"}])
    options = {"model": folder, "input": source, "output": tmp_path / "b.jsonl"}
    cases = [
        ({}, "line 6: expected the fields"),
        ({"model": tmp_path / "no"}, "neither a folder nor a Hub repository"),
        ({"input": tmp_path / "no.jsonl"}, "no such file"),
        ({"profile": "laptop"}, "laptop"),
        ({"template": "alpaca"}, "config.reward_template"),
    ]
    for changes, message in cases:
        result = command(**options | changes)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
    assert not (tmp_path / "b.jsonl").exists()


def test_the_tokenizers_of_a_checkpoint_survive_the_commands_way_of_loading(tmp_path):
    """AutoTokenizer beside a config.json of a Mistral model keeps the tokenizer's own rules."""
    from transformers import AutoTokenizer

    text = "GPT4 Correct User: Hello<|end_of_turn|>GPT4 Correct Assistant: Hi  7 <|end_of_turn|>"
    MistralConfig().save_pretrained(tmp_path)
    for tokenizer in (mistral_tokenizer(), llama_tokenizer("first")):
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded(text).input_ids == tokenizer(text).input_ids
