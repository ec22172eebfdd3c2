"""Training a reward model: what it learns, what each option trains, what resumes, what is saved."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from tiny_lists import AWKWARD, colour_tokenizer, mistral, ranked_row
from tiny_rewards import llama_config, llama_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from starling_nb.data.chat import encode, mistral_tokenizer
from starling_nb.data.nectar import conversations, load_rows
from starling_nb.device import Device
from starling_nb.reward import train as reward_train
from starling_nb.reward.kwise import plackett_luce_nll
from starling_nb.reward.model import RewardModel, score
from starling_nb.reward.packing import collate, encode_rows, score_lists
from starling_nb.reward.train import (
    RewardConfig,
    build_reward_model,
    load_model,
    save_model,
    train_reward_model,
)
from starling_nb.store import STAGES
from starling_nb.training import length_grouped_batches

COLOURS = ["red", "blue", "green"]


def colour_rows(count: int, seed: int = 0) -> list[dict]:
    """Rankings a model can learn: red before blue before green, two or three of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        asked, size = torch.randint(2, 4, (2,), generator=generator).tolist()
        places = torch.randperm(3, generator=generator)[:size].sort().values.tolist()
        answers = [f"It is {COLOURS[place]}." for place in places]
        rows.append(ranked_row(f"Is it {COLOURS[asked - 1]}?", answers))
    return rows


@pytest.fixture(scope="module")
def tokenizer():
    return colour_tokenizer()


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


# --------------------------------------------------------------------------------------- options
@pytest.mark.parametrize(
    ("template", "other"), [("llama2_starling", "chatml_yi"), ("chatml_yi", "llama2_starling")]
)
def test_a_template_is_trained_in_and_carried(template, other, tmp_path):
    tokenizer, rows = llama_tokenizer(), colour_rows(24)
    torch.manual_seed(0)
    policy = LlamaForCausalLM(llama_config(len(tokenizer)))
    model, _ = train_reward_model(rows, policy, tokenizer, template=template, max_length=60)
    save_model((model, tokenizer, []), tmp_path)
    model, _ = load_model(tmp_path)
    assert (model.config.reward_template, model.config.reward_max_length) == (template, 60)
    scores, mask = score_lists(model, encode_rows(rows, tokenizer, 60, template)[0])
    talks = [talk for ranked in rows for talk in conversations(ranked)]
    torch.testing.assert_close(score(model, tokenizer, talks), scores[mask], rtol=0, atol=1e-5)
    model.config.reward_template = other
    assert (score(model, tokenizer, talks) - scores[mask]).abs().mean() > 1e-3


def test_a_window_shorter_than_a_sequence_is_refused(policy, tokenizer):
    policy.config.sliding_window = 16
    with pytest.raises(ValueError, match="cannot have packed rows of"):
        train_reward_model(colour_rows(4), policy, tokenizer)


def test_an_unknown_template_is_refused(policy, tokenizer):
    with pytest.raises(ValueError, match=r"template: expected one of openchat, .* found 'alpaca'"):
        train_reward_model(colour_rows(2), policy, tokenizer, template="alpaca")


LORA = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["q_proj", "down_proj"])


def test_adapters_are_merged_into_a_plain_model(policy, tokenizer, tmp_path, monkeypatch):
    before, rows, adapted = RewardModel.from_policy(policy), colour_rows(60), []
    lists, _ = encode_rows(rows, tokenizer)

    def train_and_score(model, *args, **options):
        log = train(model, *args, **options)
        adapted.append(score_lists(model, lists)[0])
        return log

    train = reward_train.train
    monkeypatch.setattr(reward_train, "train", train_and_score)
    model, _ = train_reward_model(rows, policy, tokenizer, lora=LORA, lr=1e-2)
    assert model.state_dict().keys() == before.state_dict().keys()
    for name, weight in model.state_dict().items():
        targeted = any(part in name for part in ("q_proj", "down_proj", "v_head"))
        assert torch.equal(weight, before.state_dict()[name]) is not targeted, name
    assert all(weight.requires_grad for weight in model.parameters())
    scores = score_lists(model, lists)[0]
    torch.testing.assert_close(scores, adapted[0], rtol=0, atol=1e-5)
    save_model((model, tokenizer, []), tmp_path)
    assert torch.equal(score_lists(load_model(tmp_path)[0], lists)[0], scores)

    again, _ = train_reward_model(rows, policy, tokenizer, lora=LORA, lr=1e-2)
    assert same_weights(model, again, rtol=0, atol=0)


def test_adapters_and_last_layers_together_are_refused(policy, tokenizer):
    with pytest.raises(ValueError, match="last_layers, lora: expected one of them"):
        train_reward_model(colour_rows(2), policy, tokenizer, lora=LORA, last_layers=1)


def gpt2(vocabulary):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=1024)
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize(
    ("kind", "trained"),
    [(mistral, ("layers.1.", "er.norm.", "v_head")), (gpt2, ("h.1.", "ln_f", "v_head"))],
)
def test_only_the_last_layers_are_trained(tokenizer, kind, trained):
    policy = kind(len(tokenizer))
    before = RewardModel.from_policy(policy).state_dict()
    model, _ = train_reward_model(colour_rows(40), policy, tokenizer, last_layers=1)
    for name, weight in model.state_dict().items():
        moved = any(part in name for part in trained)
        assert torch.equal(weight, before[name]) is not moved, name
    assert all(weight.requires_grad for weight in model.parameters())


def test_all_blocks_may_be_the_last_ones(policy, tokenizer):
    """Then only the embeddings stay."""
    before = RewardModel.from_policy(policy).state_dict()
    model, _ = train_reward_model(colour_rows(40), policy, tokenizer, last_layers=2)
    same = [
        name for name, weight in model.state_dict().items() if torch.equal(weight, before[name])
    ]
    assert same == ["transformer.embed_tokens.weight"]


@pytest.mark.parametrize("layers", [0, -1, 3])
def test_impossible_numbers_of_last_layers_are_refused(policy, tokenizer, layers):
    with pytest.raises(ValueError, match=f"last_layers: expected 1 to 2, .* found {layers}"):
        train_reward_model(colour_rows(2), policy, tokenizer, last_layers=layers)


def test_the_zero_sum_penalty_pins_the_level(policy, tokenizer):
    rows = colour_rows(120)
    lists, _ = encode_rows(rows, tokenizer)
    sums = []
    for penalty in (0.0, 1.0):
        model, _ = train_reward_model(rows, policy, tokenizer, lr=4e-3, zero_sum_penalty=penalty)
        sums.append(score_lists(model, lists)[0].sum(-1).mean().abs().item())
    assert sums[1] < 0.25 * sums[0]


def test_the_zero_sum_penalty_is_added_to_each_list(policy, tokenizer):
    """One step's logged loss, by hand."""
    rows = colour_rows(12)
    scores, mask = score_lists(RewardModel.from_policy(policy), encode_rows(rows, tokenizer)[0])
    expected = plackett_luce_nll(scores, mask).mean() + 0.7 * (scores.sum(-1) ** 2).mean()
    _, (_, step) = train_reward_model(rows, policy, tokenizer, zero_sum_penalty=0.7)
    assert step["loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"last_layers": 1}, {"lora": LORA}])
def test_gradient_checkpointing_changes_no_weight(policy, tokenizer, options, monkeypatch):
    recomputed = []

    def counted(*args, **kwargs):
        recomputed.append(1)
        return checkpoint(*args, **kwargs)

    checkpoint = reward_train.checkpoint
    monkeypatch.setattr(reward_train, "checkpoint", counted)
    rows = colour_rows(36)
    plain, history = train_reward_model(rows, policy, tokenizer, **options)
    assert not recomputed
    model, _ = train_reward_model(rows, policy, tokenizer, gradient_checkpointing=True, **options)
    assert len(recomputed) == 2 * history[-1]["step"]  # two blocks a step
    assert same_weights(plain, model, rtol=0, atol=1e-5)
    model.train()
    model(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long)).sum().backward()
    assert len(recomputed) == 2 * history[-1]["step"]  # it is not left on


@pytest.mark.parametrize("options", [{}, {"lora": LORA}, {"last_layers": 1}])
def test_a_stopped_training_goes_on_to_the_same_model(policy, tokenizer, tmp_path, options):
    rows, steps = colour_rows(200), []

    def stopping(scores, mask):
        steps.append(len(steps))
        if len(steps) == 13:
            raise KeyboardInterrupt
        return plackett_luce_nll(scores, mask)

    whole, log = train_reward_model(rows, policy, tokenizer, **options)
    options = options | {"loss": stopping, "folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(rows, policy, tokenizer, **options)
    model, resumed_log = train_reward_model(rows, policy, tokenizer, **options)
    assert len(steps) == 13 + log[-1]["step"] - 10  # the state of step 10 was the last saved
    assert resumed_log == log
    assert same_weights(model, whole, rtol=0, atol=0)


def test_odd_rows_that_are_kept_can_be_trained_on(policy, tokenizer, tmp_path):
    """Ranks as strings and out of order, empty and repeated answers, tags in and cut off a text."""
    odd = ranked_row("Spell\n\nHuman: twice.", ["Twice.", "", "Twice.", " "])
    odd["prompt"] = odd["prompt"].removesuffix(" ")
    odd["answers"] = [answer | {"rank": str(answer["rank"])} for answer in odd["answers"]][::-1]
    odd |= {"turns": 1, "num_responses": 4, "source": ["test"], "good_natured": True}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(odd) + "\n")
    rows, report = load_rows(path)
    assert [answer["answer"] for answer in rows[0]["answers"]] == ["Twice.", "", "Twice.", " "]
    met = ["answers re-sorted", "ranks from strings", "prompt mended", "repeated tag"]
    assert report.outcomes == dict.fromkeys([*met, "repeated answer", "empty answer"], 1)
    model, history = train_reward_model(rows * 5, policy, tokenizer, validation_rows=rows)
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert math.isfinite(history[1]["loss"])
    assert history[-1]["validation_pairs"] == 6
    first, _, repeated, _ = score_lists(model, encode_rows(rows, tokenizer)[0])[0][0]
    assert first.item() == pytest.approx(repeated.item(), abs=1e-5)
