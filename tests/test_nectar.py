"""Nectar rows: every outcome of the module's table, files good and damaged, the split."""

import copy
import gzip
import json
import random
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starling_nb.data import nectar
from starling_nb.data.nectar import SAMPLE, BadRow, conversations, load_rows, split, validate

PROMPT = "\n\nHuman: Name a colour.\n\nAssistant: "


def good_row(k=3, prompt=PROMPT, turns=1):
    answers = [{"answer": f"Colour {i}.", "model": "m", "rank": float(i)} for i in range(1, k + 1)]
    return {
        "prompt": prompt,
        "answers": answers,
        "turns": turns,
        "num_responses": k,
        "source": ["test"],
        "good_natured": True,
    }


def changed(*path_and_value):
    """A good row with the value at the end of the path replaced."""
    *path, last, value = path_and_value
    row = node = good_row()
    for step in path:
        node = node[step]
    node[last] = value
    return row


def without(*path):
    *path, last = path
    row = node = good_row()
    for step in path:
        node = node[step]
    del node[last]
    return row


def write(path, rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def raw_sample():
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


# The outcomes of the table: errors.

ERRORS = [
    ("not an object", ["a", "list"], "", "list ['a', 'list']"),
    ("not an object", None, "", "NoneType None"),
    ("not an object", changed("answers", 1, "just text"), "answers[1]", "str 'just text'"),
    ("missing field", without("prompt"), "prompt", "only the fields answers, turns"),
    ("missing field", without("good_natured"), "good_natured", "only the fields prompt"),
    ("missing field", without("answers", 2, "rank"), "answers[2].rank", "answer, model"),
    ("missing field", {}, "prompt", "no field at all"),
    ("wrong type", changed("prompt", 7), "prompt", "int 7"),
    ("wrong type", changed("answers", "text"), "answers", "str 'text'"),
    ("wrong type", changed("turns", "1"), "turns", "str '1'"),
    ("wrong type", changed("turns", True), "turns", "bool True"),
    ("wrong type", changed("num_responses", 3.0), "num_responses", "float 3.0"),
    ("wrong type", changed("source", "sharegpt"), "source", "str 'sharegpt'"),
    ("wrong type", changed("source", ["a", 3]), "source[1]", "int 3"),
    ("wrong type", changed("good_natured", 1), "good_natured", "int 1"),
    ("wrong type", changed("answers", 0, "answer", None), "answers[0].answer", "NoneType None"),
    ("wrong type", changed("answers", 0, "rank", None), "answers[0].rank", "NoneType None"),
    ("wrong type", changed("answers", 0, "rank", True), "answers[0].rank", "bool True"),
    ("broken text", changed("answers", 1, "answer", "caf\udce9"), "answers[1].answer", "'caf'"),
    ("broken text", changed("prompt", "\ud800" + PROMPT), "prompt", "broken character"),
    ("broken text", changed("source", ["\udfff"]), "source[0]", "broken character"),
    ("too few answers", good_row(1), "answers", "two or more, found 1"),
    ("too few answers", good_row(0), "answers", "two or more, found 0"),
    ("bad ranks", changed("answers", 2, "rank", 4.0), "answers[2].rank", "to 3, found float 4.0"),
    ("bad ranks", changed("answers", 0, "rank", 0), "answers[0].rank", "int 0"),
    ("bad ranks", changed("answers", 0, "rank", -1), "answers[0].rank", "int -1"),
    ("bad ranks", changed("answers", 0, "rank", 1.5), "answers[0].rank", "float 1.5"),
    ("bad ranks", changed("answers", 0, "rank", float("nan")), "answers[0].rank", "float nan"),
    ("bad ranks", changed("answers", 0, "rank", float("inf")), "answers[0].rank", "float inf"),
    ("bad ranks", changed("answers", 0, "rank", 10**400), "answers[0].rank", "int 1000"),
    ("bad ranks", changed("answers", 0, "rank", "best"), "answers[0].rank", "str 'best'"),
    ("bad ranks", changed("answers", 0, "rank", "1.5"), "answers[0].rank", "str '1.5'"),
    ("bad ranks", changed("answers", 2, "rank", 1), "answers[2].rank", "as in answers[0]"),
    ("bad prompt", changed("prompt", "Name a colour."), "prompt", "expected"),
    ("bad prompt", changed("prompt", "Name one." + PROMPT), "prompt", "at the start"),
    ("bad prompt", changed("prompt", PROMPT + "Red."), "prompt", "at the end"),
    ("bad prompt", changed("prompt", ""), "prompt", "expected"),
]


@pytest.mark.parametrize(("reason", "row", "field", "words"), ERRORS)
def test_refused_rows_name_file_line_and_field(tmp_path, reason, row, field, words):
    def place(line):
        return f"rows.jsonl, line {line}, field {field}:" if field else f"rows.jsonl, line {line}:"

    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(good_row()), json.dumps(row), json.dumps(row), json.dumps(good_row())]
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match="2 of 4 rows") as caught:
        load_rows(path)
    for line in (2, 3):
        assert place(line) in str(caught.value)
    assert words in str(caught.value)

    rows, report = load_rows(path, drop_bad=True)
    assert (len(rows), report.read, dict(report.dropped)) == (2, 4, {reason: 2})
    assert f"dropped: {reason}" in str(report)
    assert place(2) in str(report)


def test_message_shows_five_problems_and_counts_the_rest(tmp_path):
    path = write(tmp_path / "rows.jsonl", [good_row(1)] * 8)
    with pytest.raises(ValueError, match=r"(?s)8 of 8 rows.*line 5,.*and 3 more\n") as caught:
        load_rows(path)
    assert "line 6" not in str(caught.value)
    with pytest.raises(ValueError, match="8 of 8 rows"):  # nothing usable is left
        load_rows(path, drop_bad=True)


# The outcomes of the table: repairs and oddities.

H, A = "\n\nHuman: ", "\n\nAssistant: "
KEPT = [
    ("answers re-sorted", good_row() | {"answers": good_row()["answers"][::-1]}),
    ("ranks from strings", changed("answers", 1, "rank", "2")),
    ("ranks from strings", changed("answers", 1, "rank", " 2.0")),
    ("prompt mended", changed("prompt", PROMPT.rstrip())),
    ("prompt mended", changed("prompt", PROMPT + " \n")),
    ("prompt mended", changed("prompt", H + "Name a colour.")),
    ("prompt mended", changed("prompt", " \n" + PROMPT)),
    ("num_responses set", changed("num_responses", 7)),
    ("other fields cut", good_row() | {"language": "en"}),
    ("other fields cut", changed("answers", 0, "score", 0.5)),
    ("repeated answer", changed("answers", 2, "answer", " Colour 1. ")),
    ("empty answer", changed("answers", 2, "answer", "\n")),
    ("fixed refusal", changed("answers", 2, "answer", nectar.FIXED_REFUSAL)),
    ("fixed refusal", changed("answers", 2, "answer", nectar.FIXED_REFUSAL.replace("'", "’"))),
    ("repeated tag", good_row(prompt=f"{H}Spell{H}twice.{A}")),
    ("repeated tag", good_row(prompt=f"{H}Hi.{A}Hello.{A}Still there?{H}Yes.{A}", turns=2)),
    ("turns differ", good_row(prompt=f"{H}Hi.{A}Hello.{H}Bye.{A}", turns=3)),
]


@pytest.mark.parametrize(("outcome", "row"), KEPT)
def test_repairs_and_oddities_are_counted_one_by_one(tmp_path, outcome, row):
    rows, report = load_rows(write(tmp_path / "rows.jsonl", [row, good_row(4)]))
    expected = {outcome: 1}
    if row["prompt"] in (PROMPT, PROMPT.rstrip(), PROMPT + " \n", " \n" + PROMPT, PROMPT[:-13]):
        expected["repeated prompt"] = 1
    assert dict(report.outcomes) == expected
    assert (len(rows), report.dropped.total()) == (2, 0)
    assert re.search(rf"(repaired|noticed): {outcome} +1\n?", str(report))
    if outcome in nectar.REPAIRS:  # a repair leaves exactly the good row
        assert rows[0] == validate(good_row(), "")
    again: set[str] = set()
    assert validate(rows[0], "", again) == rows[0]
    assert again == {outcome} & set(nectar.NOTICED)


def test_duplicated_rows_and_repeated_prompts(tmp_path):
    same, other = good_row(), good_row(4)
    shuffled = same | {"answers": same["answers"][::-1]}
    rows, report = load_rows(write(tmp_path / "rows.jsonl", [same, other, shuffled, same]))
    assert len(rows) == 4
    assert report.outcomes == {"duplicated row": 2, "repeated prompt": 1, "answers re-sorted": 1}


def test_a_tag_inside_a_users_text_stays_text():
    row = validate(good_row(prompt=f"{H}Spell{H}twice.{A}"), "")
    assert conversations(row)[0] == [
        {"role": "user", "content": f"Spell{H}twice."},
        {"role": "assistant", "content": "Colour 1."},
    ]


def test_the_table_lists_exactly_the_outcomes():
    table = {
        kind: re.findall(r"^      (\w[\w-]*(?: [\w-]+)*?)  ", text, flags=re.M)
        for kind, text in re.findall(
            r"^    (ERROR|REPAIR|NOTICED): (.*?)(?=^    [A-Z]{4}|^Counts)",
            nectar.__doc__,
            flags=re.M | re.S,
        )
    }
    assert set(table["ERROR"]) == {reason for reason, *_ in ERRORS}
    assert tuple(table["REPAIR"]) == nectar.REPAIRS
    assert tuple(table["NOTICED"]) == nectar.NOTICED
    tested = {outcome for outcome, _ in KEPT} | {"repeated prompt", "duplicated row"}
    assert tested == {*nectar.REPAIRS, *nectar.NOTICED}


# Properties of validate.


@settings(deadline=None)
@given(st.data())
def test_order_and_number_type_of_ranks_do_not_matter(data):
    row = good_row(data.draw(st.integers(2, 9)))
    original = copy.deepcopy(row)
    row["answers"] = data.draw(st.permutations(row["answers"]))
    for answer in row["answers"]:
        kind = data.draw(st.sampled_from([int, float, lambda r: str(int(r)), str]))
        answer["rank"] = kind(answer["rank"])
    given_row = copy.deepcopy(row)
    result = validate(row, "here")
    assert row == given_row  # not changed in place
    assert result == original
    assert [a["rank"] for a in result["answers"]] == list(range(1, len(row["answers"]) + 1))
    assert all(type(a["rank"]) is int for a in result["answers"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
PLACES = [(field,) for field in good_row()]
PLACES += [("answers", i, field) for i in range(3) for field in ("answer", "model", "rank")]
PLACES += [("answers", 1), ("source", 0)]


@settings(deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_value_anywhere_is_refused_by_name_or_yields_a_row(place, value):
    try:
        row = validate(changed(*place, value), "here")
    except BadRow as error:
        problem = str(error)
    else:
        problem = ""
    if problem:
        assert problem.startswith(f"here, field {place[0]}")
        return
    assert [a["rank"] for a in row["answers"]] == list(range(1, len(row["answers"]) + 1))
    json.dumps(conversations(row), ensure_ascii=False).encode()


# Files.


def test_sample_rows_are_what_they_promise():
    raw = raw_sample()
    rows, report = load_rows(SAMPLE)
    assert len(rows) == 21
    assert {len(row["answers"]) for row in rows} == {2, 3, 4, 5, 6, 7}
    assert {row["turns"] for row in rows} == {1, 2, 3}
    assert {row["good_natured"] for row in rows} == {True, False}
    assert {type(a["rank"]) for row in raw for a in row["answers"]} == {int, float}
    assert report.outcomes == {"answers re-sorted": 1, "repeated answer": 1, "fixed refusal": 1}
    for row in rows:
        turns = conversations(row)
        assert [c[-1]["content"] for c in turns] == [a["answer"] for a in row["answers"]]
        assert all(len(c) == 2 * row["turns"] for c in turns)


def test_report_is_an_aligned_table():
    assert str(load_rows(SAMPLE)[1]).splitlines() == [
        "nectar_sample.jsonl",
        "  rows read                    21",
        "  rows kept                    21",
        "  repaired: answers re-sorted   1",
        "  noticed: repeated answer      1",
        "  noticed: fixed refusal        1",
    ]


def test_all_formats_give_the_same_rows(tmp_path):
    expected, _ = load_rows(SAMPLE)
    floats = raw_sample()
    for row in floats:
        for answer in row["answers"]:
            answer["rank"] = float(answer["rank"])
    assert load_rows(write(tmp_path / "a.jsonl.gz", raw_sample()))[0] == expected
    assert load_rows(str(write_parquet(tmp_path / "a.parquet", floats)))[0] == expected
    whole = copy.deepcopy(floats)
    for row in whole:
        for answer in row["answers"]:
            answer["rank"] = int(answer["rank"])
    assert load_rows(write_parquet(tmp_path / "b.parquet", whole))[0] == expected
    windows = SAMPLE.read_bytes().replace(b"\n", b"\r\n\r\n")  # other line ends, blank lines
    (tmp_path / "c.jsonl").write_bytes(windows)
    assert load_rows(tmp_path / "c.jsonl")[0] == expected


def test_folder_is_read_in_the_order_of_names(tmp_path):
    raw, (expected, _) = raw_sample(), load_rows(SAMPLE)
    floats = [r for r in raw if all(isinstance(a["rank"], float) for a in r["answers"])]
    write(tmp_path / "b.jsonl", raw[:3])
    write_parquet(tmp_path / "c.parquet", floats)
    write(tmp_path / "a.jsonl.gz", raw[5:])
    (tmp_path / "README.md").write_text("not data")
    rows, report = load_rows(tmp_path)
    order = expected[5:] + expected[:3] + [expected[raw.index(row)] for row in floats]
    assert rows == order
    assert report.ignored == ["README.md"]
    assert "ignored: README.md" in str(report)
    assert load_rows(tmp_path, limit=18)[0] == order[:18]


@pytest.mark.parametrize("limit", [1, 5, 21, 100])
def test_limit_reads_the_first_rows_only(tmp_path, limit):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(SAMPLE.read_bytes() + b"no JSON\n")
    if limit > 21:
        with pytest.raises(ValueError, match=r"rows.jsonl, line 22: expected one JSON object"):
            load_rows(path, limit=limit)
    else:
        rows, report = load_rows(path, limit=limit)
        assert rows == load_rows(SAMPLE)[0][:limit]
        assert report.read == limit
    with pytest.raises(ValueError, match="limit: expected at least 1"):
        load_rows(path, limit=0)


def test_gzip_cut_short_or_damaged(tmp_path):
    whole = gzip.compress(SAMPLE.read_bytes())
    path = tmp_path / "rows.jsonl.gz"
    wrong_sum = whole[:-8] + bytes(4) + whole[-4:]
    for content in (whole[: len(whole) // 2], whole[:-8], whole[:5], wrong_sum, b"plain text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"rows.jsonl.gz, after line \d+: expected a whole gz"):
            load_rows(path, drop_bad=True)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF  # found in the text or in the stream, whichever comes first
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"rows.jsonl.gz, (after )?line \d+"):
        load_rows(path, drop_bad=True)


def test_invalid_utf8_names_line_and_field(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(SAMPLE.read_bytes().replace("bibliothèque".encode(), b"biblioth\xe8que", 1))
    with pytest.raises(
        ValueError, match=r"line 5, field answers\[0\].answer: expected valid UTF-8"
    ):
        load_rows(path)
    path.write_bytes(json.dumps(good_row()).encode() + b"\n\xff\xfe\n")  # not inside a text
    with pytest.raises(ValueError, match=r"line 2: expected one JSON object"):
        load_rows(path)

    table = pa.Table.from_pylist([good_row(), good_row()])
    broken = pa.array([PROMPT.encode(), b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(0, "prompt", broken), tmp_path / "rows.parquet")
    with pytest.raises(
        ValueError, match=r"rows.parquet, row 2, field prompt: expected valid UTF-8"
    ):
        load_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "cut sh', "cut short"),
        ("[" * 100_000, "expected one JSON object"),
        (json.dumps([good_row()]), r"found list \["),
        (json.dumps([good_row()], indent=1), "line 2: expected one JSON object"),
    ],
)
def test_lines_that_are_no_json_object(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(good_row()) + "\n" + line)
    with pytest.raises(ValueError, match=rf"(?s)rows.jsonl, line 2.*{words}|{words}"):
        load_rows(path)


def test_parquet_of_other_columns_or_damaged(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.Table.from_pylist([good_row(), good_row()])
    pq.write_table(table.drop_columns(["source"]), path)
    with pytest.raises(ValueError, match=r"rows.parquet, row 1, field source: expected a list"):
        load_rows(path)
    pq.write_table(table.set_column(2, "turns", pa.array(["1", "1"])), path)
    with pytest.raises(ValueError, match=r"row 1, field turns: expected an integer, found str '1'"):
        load_rows(path)
    pq.write_table(table.set_column(0, "prompt", pa.array([PROMPT, None])), path)
    with pytest.raises(ValueError, match=r"row 2, field prompt: expected a text, found NoneType"):
        load_rows(path)
    pq.write_table(table, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"rows.parquet, after row 0: expected a whole parquet"):
        load_rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
def test_empty_file(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([good_row()])[:0], path)
    else:
        path.write_bytes(gzip.compress(b"\n") if path.suffix == ".gz" else b"")
    with pytest.raises(ValueError, match=rf"{name}: expected rows, found an empty file"):
        load_rows(path)


def test_sources_that_are_none(tmp_path):
    for missing in (tmp_path / "none.jsonl", "nowhere", "folder/rows.jsonl.gz", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="neither a file nor a folder nor a Hub"):
            load_rows(missing)
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"expected .parquet, .jsonl, .jsonl.gz files directly"):
        load_rows(tmp_path)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(ValueError, match=r"rows.json: expected a .parquet, .jsonl, .jsonl.gz file"):
        load_rows(tmp_path / "rows.json")


def test_hub_dataset_is_streamed_only_when_no_such_path_exists(tmp_path, monkeypatch):
    raw = [r for r in raw_sample() if all(isinstance(a["rank"], float) for a in r["answers"])]
    stored = write_parquet(tmp_path / "rlaif.parquet", raw)
    real, calls = datasets.load_dataset, []

    def stand_in(repository, **options):
        calls.append((repository, options))
        return real("parquet", data_files=str(stored), cache_dir=str(tmp_path), **options)

    monkeypatch.setattr(datasets, "load_dataset", stand_in)
    monkeypatch.chdir(tmp_path)
    rows, report = load_rows("berkeley-nest/Nectar", limit=4)
    assert rows == load_rows(stored)[0][:4]
    assert (report.source, report.read) == ("berkeley-nest/Nectar", 4)
    assert calls == [("berkeley-nest/Nectar", {"split": "train", "streaming": True})]

    (tmp_path / "berkeley-nest" / "Nectar").mkdir(parents=True)
    with pytest.raises(ValueError, match="directly in this folder"):
        load_rows("berkeley-nest/Nectar")
    assert len(calls) == 1


def test_hub_failure_names_the_repository(monkeypatch):
    def broken(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("no such dataset")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(
        ConnectionError, match=r"some/rows, after row 0: no such file.*no such data"
    ):
        load_rows("some/rows")


# The split.


def numbered(n, prompts):
    return [{"prompt": f"\n\nHuman: {i % prompts}{A}", "number": i} for i in range(n)]


@pytest.mark.parametrize("n", [4000, 4321])
def test_large_split_is_the_authors(n):
    rows = numbered(n, n)
    train, held_back, validation = split(rows)
    assert validation == rows[n - 1000 :]
    assert held_back == rows[n - 2000 : n - 1000]
    assert train == rows[: n - 2000]


@settings(deadline=None)
@given(st.integers(3, 300), st.integers(1, 4), st.randoms(use_true_random=False))
def test_small_split_keeps_prompts_together(prompts, repeats, rng: random.Random):
    rows = numbered(prompts * repeats, prompts)
    parts = split(rows)
    assert sorted(r["number"] for part in parts for r in part) == list(range(len(rows)))
    train, held_back, validation = ({r["prompt"] for r in part} for part in parts)
    assert len(train) + len(held_back) + len(validation) == len(train | held_back | validation)
    eighth = max(1, prompts // 8)
    assert (len(held_back), len(validation)) == (eighth, eighth)
    shuffled = rows[:]
    rng.shuffle(shuffled)
    for part, again in zip(parts, split(shuffled), strict=True):
        assert sorted(r["number"] for r in part) == sorted(r["number"] for r in again)
        assert [r["number"] for r in part] == sorted(r["number"] for r in part)


def test_split_needs_three_prompts():
    with pytest.raises(ValueError, match="at least 3 different prompts to split, found 2"):
        split(numbered(10, 2))


# Real files.

REAL = {
    "nectar_like/nectar_like_alpacaeval.train.parquet": (644, {7}, 1, {}),
    "nectar_like/nectar_like_alpacaeval.train.jsonl.gz": (644, {7}, 1, {}),
    "nectar_like/nectar_like_alpacaeval_extra.train.jsonl.gz": (
        1920,
        {7},
        1,
        {"repeated prompt": 1276},
    ),
    "nectar_like/nectar_like_hh_harmless_k2.train.jsonl.gz": (
        1867,
        {2},
        18,
        {"repeated prompt": 2, "repeated tag": 3},
    ),
    "nectar_like/nectar_like_mtbench_varK.train.jsonl.gz": (
        51,
        {3, 4, 5, 6},
        1,
        {"repeated answer": 1, "empty answer": 1},
    ),
    "nectar_real/nectar_rankings.train.jsonl.gz": (240, {7}, 7, {"repeated answer": 18}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_load(shared_data, name):
    number, sizes, most_turns, outcomes = REAL[name]
    rows, report = load_rows(shared_data / name)
    assert len(rows) == number
    assert {len(row["answers"]) for row in rows} == sizes
    assert max(len(c) // 2 for row in rows for c in conversations(row)[:1]) == most_turns
    assert report.dropped.total() == 0
    assert report.outcomes == outcomes


def test_real_parquet_equals_jsonl(shared_data):
    stem = shared_data / "nectar_like" / "nectar_like_alpacaeval.train"
    assert load_rows(f"{stem}.parquet")[0] == load_rows(f"{stem}.jsonl.gz")[0]


def test_real_repeated_prompts_do_not_straddle(shared_data):
    folder = shared_data / "nectar_like"
    rows = load_rows(folder / "nectar_like_alpacaeval.train.jsonl.gz")[0]
    rows += load_rows(folder / "nectar_like_alpacaeval_extra.train.jsonl.gz")[0]
    train, held_back, validation = ({r["prompt"] for r in part} for part in split(rows))
    assert (len(train), len(held_back), len(validation)) == (484, 80, 80)
    assert len(train | held_back | validation) == 644
