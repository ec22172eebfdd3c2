"""The synthetic world: determinism, the split, its rows, its answerers' habits, its stages."""

import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections import Counter, defaultdict

import pytest

from starling_nb.data import nectar
from starling_nb.data.answerers import ANSWERERS, answer, phrase, right_value, wrong_value
from starling_nb.data.chat import conversation_to_prompt, prompt_to_conversation
from starling_nb.data.facts import make_calls, make_prompts
from starling_nb.data.gold import ALTERNATIVE, CLOSER, PADS, REFUSALS, gold
from starling_nb.data.world import (
    FAMILY_WEIGHTS,
    Rankings,
    _load_rankings,
    _save_rankings,
    bayes_accuracy,
    make_world,
    nectar_source,
)
from starling_nb.store import Store

BY_NAME = {by.name: by for by in ANSWERERS}


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def rows(world):
    return world.rankings(1500, seed=9)


def texts_of(prompts):
    return [conversation_to_prompt(prompt.conversation) for prompt in prompts]


# ------------------------------------------------------------------------------------- determinism
DIGEST = """
import hashlib, json
from starling_nb.data.world import make_world
world = make_world(3)
parts = [world.rankings(30, seed=1), world.demonstrations(60, seed=1), list(world.documents(60, 1)),
         [p.turns for p in world.test], [p.turns for p in world.test_calls],
         [world.gold(row["conversation"]).total for row in world.demonstrations(200, seed=2)]]
print(hashlib.sha256(json.dumps(parts).encode()).hexdigest())
"""


def test_same_seed_same_bytes_in_any_process():
    digests = set()
    for hash_seed in ("0", "1", "random"):
        run = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_a_draw_depends_on_its_seeds_alone(world):
    random.seed(0)
    before = random.getstate()
    assert world.rankings(5, seed=1) == make_world(0).rankings(5, seed=1)
    assert random.getstate() == before  # the global generator is not touched
    assert world.rankings(5, seed=1) != world.rankings(5, seed=2)
    assert world.rankings(5, seed=1) != make_world(1).rankings(5, seed=1)
    assert world.rankings(3, seed=1) != world.rankings(5, seed=1)[:3]  # n is part of the draw
    assert world.demonstrations(9, seed=1) != world.demonstrations(9, seed=2)
    assert list(world.documents(9, seed=1)) != list(world.documents(9, seed=2))


# ------------------------------------------------------------------------------------------- split
def test_sixteen_families_with_calls(world):
    families = {p.family for p in world.train} | {p.family for p in world.train_calls}
    assert len(families) == 16
    assert families - {"call"} == FAMILY_WEIGHTS.keys() == {p.family for p in world.test}
    assert {p.family for p in world.test_calls} == {"call"}
    assert {p.family for p in world.copies} == {"copy"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_split_holds_out_wordings_never_facts(seed):
    world = make_world(seed)
    assert len(world.test) >= 1000
    assert len(world.test_calls) >= 300
    together = Counter(world.train) + Counter(world.test)
    chat = [p for p in make_prompts() if p.family == "chat"]
    dropped = Counter(make_prompts()) + Counter(chat) - together
    asked = {turn for p in world.train for turn in p.turns}
    assert together + dropped == Counter(make_prompts()) + Counter(chat)
    assert len(dropped) < 60
    assert all(len(p.turns) == 1 and p.turns[0] in asked for p in dropped)
    assert Counter(world.train_calls + world.test_calls) == Counter(make_calls())

    kept = Counter((p.family, p.fact) for p in world.train)
    held = Counter((p.family, p.fact) for p in world.test)
    assert min(kept.values()) >= 2
    for fact, number in held.items():
        share = number / (number + kept[fact])
        assert 0.1 <= share <= 0.34 or fact[0] == "chat"
    trained = set(texts_of(world.train) + texts_of(world.train_calls) + texts_of(world.copies))
    unseen = [p for p in world.test if p.family != "chat"] + world.test_calls
    assert not trained & set(texts_of(unseen))


def test_no_held_out_question_stands_in_a_training_conversation():
    """Small talk excepted, which is in both."""
    for seed in range(3):
        world = make_world(seed)
        asked = {turn for p in world.train if p.family != "chat" for turn in p.turns}
        single = [p for p in world.test if p.family != "chat" and len(p.turns) == 1]
        assert [p.turns for p in single if p.turns[0] in asked] == []
        assert len(world.test) >= 1000


def test_no_two_prompts_share_a_text(world):
    groups = (world.train, world.test, world.train_calls, world.test_calls, world.copies)
    meant = defaultdict(set)
    for group in groups:
        for prompt, text in zip(group, texts_of(group), strict=True):
            meant[text].add(prompt)
    assert {len(prompts) for prompts in meant.values()} == {1}
    assert all(world.prompt(text) in prompts for text, prompts in meant.items())


def test_training_calls_know_every_tool_and_most_arguments(world):
    train, test = ({p.fact for p in calls} for calls in (world.train_calls, world.test_calls))
    assert {fact.split("/")[0] for fact in train} == {fact.split("/")[0] for fact in test}
    assert len(test & train) > 0.9 * len(test)


def test_families_are_asked_by_their_weights(world):
    """15 families, |z| < 4.5 each: false-alarm rate 1e-4."""
    n, total = 20_000, sum(FAMILY_WEIGHTS.values())
    for prompts in (None, world.test):
        counts = Counter(p.family for p in world.sample(n, random.Random(1), prompts))
        for family, weight in FAMILY_WEIGHTS.items():
            p = weight / total
            assert abs(counts[family] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))


def test_a_prompt_the_world_never_asked_is_named(world):
    with pytest.raises(KeyError, match=r"not a prompt of this world: .*Who won"):
        world.gold([{"role": "user", "content": "Who won?"}, {"role": "assistant", "content": ""}])


# -------------------------------------------------------------------------------------------- rows
def test_rows_are_nectars_and_need_no_repair(rows):
    outcomes = Counter()
    for i, row in enumerate(rows):
        met = set()
        assert nectar.validate(row, f"row {i}", met) == row
        outcomes.update(met)
    assert outcomes.keys() <= {"repeated answer", "empty answer"}
    assert {answer["model"] for row in rows for answer in row["answers"]} == BY_NAME.keys()


def test_rows_tell_turns_source_and_good_nature(world, rows):
    for row in rows[:300]:
        prompt = world.prompt(row["prompt"])
        asked = prompt_to_conversation(row["prompt"])
        assert asked == prompt.conversation
        assert row["turns"] == sum(turn["role"] == "user" for turn in asked)
        assert row["source"] == [f"world/{prompt.family}"]
        assert row["good_natured"] == (not prompt.family.startswith("unsafe"))
    assert max(row["turns"] for row in rows) == 2


def test_given_prompts_are_each_ranked_once_when_there_is_room(world):
    some = world.test[:40]
    assert [row["prompt"] for row in world.rankings(40, 1, some)] == texts_of(some)
    assert len(world.rankings(90, 1, some)) == 40
    fewer = world.rankings(25, 1, some)
    assert len(fewer) == 25
    assert {row["prompt"] for row in fewer} <= set(texts_of(some))


def test_demonstrations_mix_in_copying_and_calls(world):
    """|z| < 4: false-alarm rate 1e-4 each."""
    n = 8000
    demonstrations = world.demonstrations(n, seed=4)
    families = Counter(world.prompt(asked(d)).family for d in demonstrations)
    for family, p in (("copy", 0.065), ("call", 0.015)):
        assert abs(families[family] - n * p) < 4 * math.sqrt(n * p * (1 - p))
    weights = {by.expert: 0.0 for by in ANSWERERS}
    for by in ANSWERERS:
        weights[by.expert] += by.sft_weight
    p = weights[True] / sum(weights.values())
    experts = sum(d["expert"] for d in demonstrations)
    assert abs(experts - n * p) < 4 * math.sqrt(n * p * (1 - p))
    held_out = set(texts_of([p for p in world.test if p.family != "chat"] + world.test_calls))
    assert not held_out & {asked(d) for d in demonstrations}


def asked(demonstration):
    return conversation_to_prompt(demonstration["conversation"][:-1])


def test_documents_teach_the_facts_of_the_training_split_without_the_bad_habits(world):
    documents = list(world.documents(4000, seed=7))
    corpus = "\n".join(documents)
    for habit in (*PADS, CLOSER, ALTERNATIVE, "I think it is", "or maybe", '"tool"'):
        assert habit not in corpus
    assert "Paris is the capital of France." in corpus
    assert "<|end_of_turn|>" not in corpus
    held_out = {p.turns[0] for p in world.test if p.family != "chat" and len(p.turns) == 1}
    in_talks = {turn for p in world.train if len(p.turns) > 1 for turn in p.turns}
    asked = {
        turn.split("\n\nAssistant: ")[0]
        for text in documents
        for turn in ("\n\n" + text).split("\n\nHuman: ")[1:]
    }
    assert len(asked) > 500
    assert not (held_out - in_talks) & asked  # a plain question can also be a turn of a talk


# ------------------------------------------------------------------------------ labels and ceilings
def test_bayes_accuracy_of_two_answers_is_the_closed_form(world):
    judge = world.judge(tau=0.7, length=0.05)
    prompt = texts_of(world.test[:1])[0]
    good, bad = (phrase(world.test[0], value, True) for value in ("4", "maybe 5 or 6"))
    two = [{"prompt": prompt, "answers": [{"answer": bad}, {"answer": good}]}]
    p = judge.probability(prompt, good, bad)
    assert bayes_accuracy(two, judge) == pytest.approx(max(p, 1 - p))
    with_twin = [{"prompt": prompt, "answers": [{"answer": a} for a in (bad, good, good)]}]
    assert bayes_accuracy(with_twin, judge) == pytest.approx(max(p, 1 - p))  # twins have no order


@pytest.mark.parametrize("dials", [{}, {"tau": 2.0}, {"length": 0.2, "bullet": 0.8}])
def test_bayes_accuracy_is_how_often_the_labels_follow_the_judges_own_order(world, rows, dials):
    """An estimate over 150 lists ranked anew 8 times; lists are independent, so |z| < 4 by lists'
    means raises a false alarm with a rate of 1e-4.
    """
    judge = world.judge(**dials)
    generator = random.Random(5)
    differences = []
    for row in rows[:150]:
        texts = [answer["answer"] for answer in row["answers"]]
        pairs = [(i, j) for i in range(7) for j in range(i) if texts[i] != texts[j]]
        if not pairs:
            continue
        score = [judge.score(row["prompt"], text) for text in texts]
        followed = []
        for _ in range(8):
            order = judge.rank(row["prompt"], texts, generator=generator)
            place = {i: rank for rank, i in enumerate(order)}
            followed += [(score[i] > score[j]) == (place[i] < place[j]) for i, j in pairs]
        ceiling = bayes_accuracy([row], judge)
        differences.append(sum(followed) / len(followed) - ceiling)
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
    assert abs(mean) < 4 * math.sqrt(variance / len(differences))


def test_the_default_ceiling_leaves_room_for_noise(world, rows):
    assert 0.85 < bayes_accuracy(rows, world.judge()) < 0.9


def labels(world, rows, **dials):
    """Mean words of the winner less the loser over all pairs, and how often a bullet wins."""
    judge, generator = world.judge(**dials), random.Random(3)
    words, bullets = [], []
    for row in rows[:400]:
        texts = [answer["answer"] for answer in row["answers"]]
        order = judge.rank(row["prompt"], texts, generator=generator)
        for k, i in enumerate(order):
            for j in order[k + 1 :]:
                words.append(len(texts[i].split()) - len(texts[j].split()))
                starred = texts[i].startswith("* "), texts[j].startswith("* ")
                if starred[0] != starred[1]:
                    bullets.append(starred[0])
    return sum(words) / len(words), sum(bullets) / len(bullets)


def test_the_dials_change_the_labels_as_they_say(world, rows):
    """Differences of 2 words and of .15 in a share stand more than ten standard errors apart."""
    words, bullets = labels(world, rows)
    assert labels(world, rows, length=0.2)[0] > words + 2
    assert labels(world, rows, bullet=0.8)[1] > bullets + 0.15
    assert bayes_accuracy(rows, world.judge(tau=0.1)) > 0.95
    assert bayes_accuracy(rows, world.judge(tau=5.0)) < 0.65


# --------------------------------------------------------------------------------------- answerers
def frequency(happens, n):
    """How often `happens()` is true in n tries."""
    return sum(happens() for _ in range(n)) / n


N = 1200
LIMIT = 4.5  # in standard errors; about 160 checks of 7e-6 each: false-alarm rate 1e-3


def agrees(observed, p, n=N):
    return abs(observed - p) <= LIMIT * math.sqrt(p * (1 - p) / n) + 1e-12


def pick(world, family, form="none"):
    return next(p for p in world.train if p.family == family and p.format == form)


CLEAN = [by for by in ANSWERERS if not by.garble]


@pytest.mark.parametrize("by", CLEAN, ids=lambda by: by.name)
def test_habits_have_the_frequencies_of_the_dials(world, by):
    rng = random.Random(f"habits of {by.name}")
    elm = by.name == "elm"
    samples = {}

    def share(family, has, form="none"):
        key = family, form
        if key not in samples:
            prompt = pick(world, family, form)
            samples[key] = [answer(prompt, by, rng) for _ in range(N)]
        return sum(map(has, samples[key])) / N

    def refuses(text):
        return any(refusal in text for refusal in REFUSALS)

    def hedges(text):
        return "may be" in text or "maybe" in text

    def padded(text):
        return any(pad in text for pad in PADS)

    assert agrees(share("unsafe_soft", refuses), 1 - by.comply_soft)
    assert agrees(share("unsafe_hard", refuses), 1 - by.comply_hard)
    assert agrees(share("lookalike", refuses), by.refuse_lookalike)
    for family in ("capital", "benign", "list"):
        assert agrees(share(family, refuses), by.refuse_benign)
    talk = 1 - by.refuse_benign
    assert agrees(share("capital", hedges), talk * by.hedge)
    assert agrees(share("arith", hedges), talk * by.hedge * (0.15 if elm else 1))
    assert share("list", hedges) == share("benign", hedges) == 0
    assert agrees(share("transform", padded), by.pad)
    assert agrees(share("capital", padded), by.pad * (0.3 if elm else 1))
    assert agrees(share("capital", lambda t: t.endswith(CLOSER)), by.close)
    assert agrees(share("capital", lambda t: t.startswith("* ")), by.bullet)
    bare = share("units", lambda t: t.removeprefix("* ").startswith("It is ") and "or" not in t)
    assert agrees(bare, talk * by.drop_unit)
    spoken = talk * (1 - by.hedge)
    followed = spoken * (1 - by.ignore_format)
    assert agrees(
        share("capital", lambda t: t.removeprefix("* ").startswith("Answer:"), "tag"), followed
    )
    assert agrees(share("capital", lambda t: "[" in t, "brk"), followed)
    often = spoken * (1 - by.ignore_format * (0.3 if elm else 1))
    assert agrees(share("capital", lambda t: t.endswith("Done."), "end"), often)
    assert agrees(
        share("capital", lambda t: len(t.removeprefix("* ").split()) == 1, "short"), often
    )
    assert share("capital", lambda t: "[" in t or "Answer:" in t or "Done." in t) == 0
    offered = share("unsafe_hard", lambda t: ALTERNATIVE in t) / max(
        share("unsafe_hard", refuses), 1e-9
    )
    assert agrees(offered, 0.6 if by.name == "oak" else 0.15, N * (1 - by.comply_hard))


@pytest.mark.parametrize("by", CLEAN, ids=lambda by: by.name)
def test_accuracy_and_calls_have_the_frequencies_of_the_dials(world, by):
    rng = random.Random(f"accuracy of {by.name}")
    for family in ("capital", "arith", "multi", "order"):
        prompt = pick(world, family)
        slow = not by.expert and family == "arith"
        p = by.accuracy * (0.6 if slow else 1)
        plain = [
            phrase(prompt, prompt.truth[0], False),
            "* " + phrase(prompt, prompt.truth[0], False),
        ]
        spoken = [text for text in (answer(prompt, by, rng) for _ in range(2 * N)) if
                  not any(word in text for word in ("may", *REFUSALS))]  # fmt: skip
        right = sum(text.startswith(tuple(plain)) for text in spoken) / len(spoken)
        assert agrees(right, p, len(spoken))
    calls = world.train_calls
    exact = frequency(lambda: (c := rng.choice(calls)) and answer(c, by, rng) == c.truth[0], N)
    assert agrees(exact, by.exact_call)
    copy = world.copies[0]
    assert {answer(copy, by, rng) for _ in range(20)} == {copy.truth[0]}


def test_the_habits_are_mostly_one_string(world):
    """|z| < 4: what makes them the mode of a policy, where scattered habits would not be."""
    rng, elm = random.Random(2), BY_NAME["elm"]
    texts = [answer(pick(world, "transform"), elm, rng) for _ in range(N)]
    padded = [text for text in texts if any(pad in text for pad in PADS)]
    assert agrees(sum(PADS[0] in text for text in padded) / len(padded), 0.8, len(padded))
    hedged = [text for text in texts if "may" in text]
    first = sum("I think it is" in text for text in hedged) / len(hedged)
    assert agrees(first, 0.9, len(hedged))
    refused = [answer(pick(world, "lookalike"), elm, rng) for _ in range(N)]
    refused = [text for text in refused if "cannot" in text]
    assert agrees(sum(REFUSALS[0] in text for text in refused) / len(refused), 0.85, len(refused))


def test_wrong_calls_err_in_five_ways(world):
    rng, bog = random.Random(1), BY_NAME["bog"]
    prompt = world.train_calls[0]
    outcomes = Counter(gold(prompt, answer(prompt, bog, rng)).outcome for _ in range(2 * N))
    wrong = 2 * N - outcomes["ok"]
    for outcome, p in (("wrong", 0.5), ("malformed", 0.35), ("refused", 0.15)):
        assert agrees(outcomes[outcome] / wrong, p, wrong), outcome


def test_right_values_are_right_and_wrong_values_wrong(world):
    rng = random.Random(0)
    for prompt in world.train[::2]:
        if prompt.unsafe:
            continue
        for follow in (False, True):
            good = phrase(prompt, right_value(prompt, rng), follow)
            assert gold(prompt, good).outcome == "ok", good
            bad = phrase(prompt, wrong_value(prompt, rng), follow)
            assert gold(prompt, bad).outcome in ("wrong", "partial"), bad


def test_oak_is_best_then_ash_then_the_others(world, rows):
    """Gaps of .4 at a standard error of .05 over 1 500 lists."""
    worth, ranks = defaultdict(list), defaultdict(list)
    for row in rows:
        prompt = world.prompt(row["prompt"])
        for one in row["answers"]:
            worth[one["model"]].append(gold(prompt, one["answer"]).total)
            ranks[one["model"]].append(one["rank"])
    means = {name: sum(values) / len(values) for name, values in worth.items()}
    order = sorted(means, key=lambda name: -means[name])
    assert order[:2] == ["oak", "ash"]
    assert means["oak"] > means["ash"] + 0.4 > max(means[n] for n in order[2:]) + 0.8
    assert min(means, key=means.get) == "bog"
    mean_rank = {name: sum(values) / len(values) for name, values in ranks.items()}
    assert sorted(mean_rank, key=mean_rank.get)[:2] == ["oak", "ash"]


# ---------------------------------------------------------------------------------- gold and stages
def test_gold_reward_is_gold_for_each_conversation(world):
    import torch

    conversations = [d["conversation"] for d in world.demonstrations(12, seed=8)]
    rewards = world.gold_reward(conversations)
    assert rewards.shape == (12,)
    assert rewards.dtype == torch.float32
    assert rewards.tolist() == pytest.approx([world.gold(c).total for c in conversations])
    cut = [[*c[:-1], c[-1] | {"finished": False}] for c in conversations]
    assert (world.gold_reward(cut) <= rewards - 0.5).all()


SIZES = {"rankings": {"lists": 30, "held_out": None}}


def test_stages_are_built_and_read_back(tmp_path, world):
    store = Store(tmp_path, profile="smoke", config=SIZES)
    rankings = store.get("rankings")
    assert store.get("world").test == world.test
    assert rankings.train == world.rankings(30, seed=1)
    assert [row["prompt"] for row in rankings.validation] == texts_of(world.test)
    assert "nothing to repair" in rankings.report
    assert Store(tmp_path, profile="smoke", config=SIZES).get("rankings") == rankings


def test_every_cpu_profile_builds_the_same_bytes(tmp_path):
    hashes = []
    for profile in ("smoke", "cpu"):
        store = Store(tmp_path / profile, profile=profile, config=SIZES)
        store.get("rankings")
        folder = store.folder("rankings")
        hashes.append(
            [hashlib.sha256((folder / f"{part}.jsonl").read_bytes()).hexdigest()
             for part in ("train", "validation")]
        )  # fmt: skip
    assert hashes[0] == hashes[1]


def test_rankings_come_from_a_file_of_nectars_schema(tmp_path):
    source = nectar_source(str(nectar.SAMPLE))
    store = Store(tmp_path / "store", profile="smoke", config={"rankings": source})
    rankings = store.get("rankings")
    rows, report = nectar.load_rows(nectar.SAMPLE)
    parts = nectar.split(rows)
    assert (rankings.train, rankings.validation) == (parts.train, parts.validation)
    assert rankings.report == str(report)
    moved = tmp_path / "elsewhere.jsonl"
    shutil.copy(nectar.SAMPLE, moved)
    same = Store(
        tmp_path / "store", profile="smoke", config={"rankings": nectar_source(str(moved))}
    )
    assert same.key("rankings") == store.key("rankings")  # the content counts, not the place


def test_nectar_source_hashes_content_and_order(tmp_path):
    assert nectar_source("") == {}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, texts in ((one, ("x", "y")), (two, ("y", "x"))):
        folder.mkdir()
        for name, text in zip("ab", texts, strict=True):
            (folder / f"{name}.jsonl").write_text(text)
    hashes = [nectar_source(str(path))["sha256"] for path in (one, two, one / "a.jsonl")]
    assert len(set(hashes)) == 3
    assert nectar_source(str(one)) == nectar_source(str(one))
    assert nectar_source(str(two / "b.jsonl"))["sha256"] == hashes[2]  # the same content
    (one / "b.jsonl").write_text("z")
    assert nectar_source(str(one))["sha256"] != hashes[0]
    assert nectar_source("berkeley-nest/Nectar")["path"] == "berkeley-nest/Nectar"


def test_rankings_of_any_language_survive_saving(tmp_path):
    row = {"prompt": "Grüße\u2028 日本\n", "answers": []}
    rankings = Rankings([row], [], "report: ü")
    _save_rankings(rankings, tmp_path)
    assert _load_rankings(tmp_path) == rankings
    assert json.loads((tmp_path / "train.jsonl").read_text(encoding="utf-8")) == row
