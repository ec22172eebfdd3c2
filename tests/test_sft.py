"""Fine-tuning: ids and weights of a demonstration, the loss against its naive twin, learning."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.data.chat import decode_answer, encode, encode_with_mask, train_tokenizer
from starling_nb.data.world import make_world
from starling_nb.policy.base import load_policy
from starling_nb.policy.rollout import respond
from starling_nb.policy.sft import (
    EXPERT,
    OTHER,
    collate,
    encode_demonstration,
    fine_tune,
    save_sft,
    weighted_nll,
)
from starling_nb.store import read_json

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "sft_batches.py"


@pytest.fixture(scope="module")
def world():
    return make_world(0)


@pytest.fixture(scope="module")
def demonstrations(world):
    return world.demonstrations(60, seed=1)


@pytest.fixture(scope="module")
def tokenizer(demonstrations):
    texts = [m["content"] for row in demonstrations for m in row["conversation"]]
    return train_tokenizer([*texts, "GPT4 Correct User: GPT3 Correct Assistant:"] * 3, 600)


@pytest.fixture
def policy(tokenizer):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return MistralForCausalLM(config).eval()


@pytest.fixture
def examples(demonstrations, tokenizer):
    return [encode_demonstration(row, tokenizer, 0.1) for row in demonstrations]


def naive_nll(policy, batch):
    """All logits, all tokens, one by one."""
    logits = policy(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits.double()
    total, weight = 0.0, 0.0
    for b in range(len(logits)):
        for t in range(1, logits.shape[1]):
            w = batch["weights"][b, t].double()
            total = total - w * logits[b, t - 1].log_softmax(-1)[batch["input_ids"][b, t]]
            weight = weight + w
    return total / weight


# ------------------------------------------------------------------------------- ids and weights
def test_ids_are_the_templates_and_weights_stand_on_answers(demonstrations, tokenizer):
    for row in demonstrations:
        mode = EXPERT if row["expert"] else OTHER
        ids, weights = encode_demonstration(row, tokenizer, 0.1)
        assert ids.tolist() == encode(tokenizer, row["conversation"], False, mode)
        mask = torch.tensor(encode_with_mask(tokenizer, row["conversation"], mode)[1])
        assert torch.equal(weights, mask * (1.0 if row["expert"] else 0.1))
        starts = (mask.diff(prepend=mask.new_zeros(1)) == 1).nonzero()[:, 0].tolist()
        said = [decode_answer(tokenizer, ids[start:].tolist()) for start in starts]
        assert said == [m["content"] for m in row["conversation"] if m["role"] == "assistant"]
    kinds = {(row["expert"], len(row["conversation"])) for row in demonstrations}
    assert kinds == {(True, 2), (True, 4), (False, 2), (False, 4)}


def test_every_turn_of_the_assistant_is_learned(tokenizer):
    """Earlier answers like the last, ends of turn included; no prefix and no question."""
    turns = ("user", "Hot?"), ("assistant", "It is."), ("user", "And cold?"), ("assistant", "No.")
    row = {"conversation": [{"role": r, "content": c} for r, c in turns], "expert": True}
    ids, weights = encode_demonstration(row, tokenizer, 0.1)
    pieces, kept = [], None
    for token, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        if (weight > 0) != kept:
            kept = weight > 0
            pieces.append([])
        pieces[-1].append(token)
    assert [tokenizer.decode(piece) for piece in pieces] == [
        "<s>GPT4 Correct User: Hot?<|end_of_turn|>GPT4 Correct Assistant:",
        " It is.<|end_of_turn|>",
        "GPT4 Correct User: And cold?<|end_of_turn|>GPT4 Correct Assistant:",
        " No.<|end_of_turn|>",
    ]


def test_the_end_of_turn_is_learned_and_the_prompt_is_not(demonstrations, tokenizer):
    row = demonstrations[0] | {"expert": True}
    ids, weights = encode_demonstration(row, tokenizer, 0.1)
    prompt = encode(tokenizer, row["conversation"][:-1])
    assert ids[: len(prompt)].tolist() == prompt
    assert ids[-1] == tokenizer.eos_token_id
    if len(row["conversation"]) == 2:
        assert weights.tolist() == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def test_collate_pads_on_the_right_with_no_weight(examples):
    batch = collate(examples[:5])
    lengths = [len(example.ids) for example in examples[:5]]
    assert {name: tuple(t.shape) for name, t in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "weights"), (5, max(lengths))
    )
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["weights"] * (1 - batch["attention_mask"])).sum() == 0
    for row, example in zip(batch["input_ids"], examples, strict=False):
        assert torch.equal(row[: len(example.ids)], example.ids)


# ---------------------------------------------------------------------------------------- the loss
def test_the_loss_equals_its_naive_twin(policy, examples):
    for rows in (examples[:6], examples[6:7], examples[10:20]):
        batch = collate(rows)
        torch.testing.assert_close(
            weighted_nll(policy, batch).double(), naive_nll(policy, batch), rtol=1e-5, atol=1e-6
        )


def test_the_loss_equals_the_models_own_where_all_weights_are_one(policy, examples):
    ids = examples[0].ids[None]
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "weights": torch.ones(ids.shape),
    }
    torch.testing.assert_close(weighted_nll(policy, batch), policy(ids, labels=ids).loss)


@pytest.mark.parametrize("width", [256, 1], ids=["packed", "one to a row"])
def test_padded_packed_or_alone_a_demonstration_counts_the_same(policy, examples, width):
    """Loss and gradient; alone: the mean of the rows' losses, weighted by the rows' weights."""
    rows = sorted(examples, key=lambda e: len(e.ids))
    rows = [rows[i] for i in (0, -1, 30, 31, 1, 45)]
    weights = torch.stack([row.weights.sum() for row in rows])

    def alone():
        losses = torch.stack([weighted_nll(policy, collate([row])) for row in rows])
        return (losses * weights).sum() / weights.sum()

    batch = runpy.run_path(str(BENCHMARK))["packed"](rows, width)
    assert len(batch["input_ids"]) == (2 if width == 256 else len(rows))
    losses, gradients = [], []
    for loss in (alone(), weighted_nll(policy, collate(rows)), weighted_nll(policy, batch)):
        policy.zero_grad()
        loss.backward()
        losses.append(loss.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=0)
        assert (gradient - gradients[0]).norm() < 1e-5 * gradients[0].norm()


def test_a_class_counts_by_its_weight(policy, demonstrations, tokenizer):
    """One expert and one other answer: (n nll + .1 m nll') / (n + .1 m)."""
    expert = next(row for row in demonstrations if row["expert"])
    other = next(row for row in demonstrations if not row["expert"])
    for weight in (0.1, 0.5, 0.0):
        pair = [encode_demonstration(row, tokenizer, weight) for row in (expert, other)]
        nll = [weighted_nll(policy, collate([e._replace(weights=(e.weights > 0).float())])) if
               e.weights.any() else torch.tensor(0.0) for e in pair]  # fmt: skip
        n = [e.weights.sum() for e in pair]
        expected = (n[0] * nll[0] + n[1] * nll[1]) / (n[0] + n[1])
        torch.testing.assert_close(weighted_nll(policy, collate(pair)), expected)


def test_with_weight_one_for_all_it_is_plain_fine_tuning(policy, demonstrations, tokenizer):
    """transformers' own loss, prompts labelled -100; the classes keep their prefixes."""
    batch = collate([encode_demonstration(row, tokenizer, 1.0) for row in demonstrations[:12]])
    answers = torch.zeros_like(batch["input_ids"])
    for i, row in enumerate(demonstrations[:12]):
        mask = encode_with_mask(tokenizer, row["conversation"], EXPERT if row["expert"] else OTHER)
        answers[i, : len(mask[1])] = torch.tensor(mask[1])
    labels = batch["input_ids"].masked_fill(answers == 0, -100)
    reference = policy(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
    )
    torch.testing.assert_close(weighted_nll(policy, batch), reference.loss)


def test_the_targets_of_prompts_do_not_matter(policy, examples, monkeypatch):
    """At fixed states of the decoder the loss hears of other answers, not of other questions."""
    batch = collate(examples[:6])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    states = policy.get_decoder()(**inputs)
    fixed = SimpleNamespace(last_hidden_state=states.last_hidden_state.detach())
    monkeypatch.setattr(policy, "get_decoder", lambda: lambda **inputs: fixed)
    loss = weighted_nll(policy, batch)
    other = (batch["input_ids"] + 1) % len(policy.get_output_embeddings().weight)
    answers = batch["weights"] > 0
    asked = batch | {"input_ids": torch.where(answers, batch["input_ids"], other)}
    answered = batch | {"input_ids": torch.where(answers, other, batch["input_ids"])}
    assert torch.equal(weighted_nll(policy, asked), loss)
    assert not torch.isclose(weighted_nll(policy, answered), loss)


def test_no_gradient_reaches_the_predictions_of_prompts_and_padding(policy, examples):
    batch = collate(examples[:6])
    kept = {}

    def keep(module, inputs, output):
        output.last_hidden_state.retain_grad()
        kept["states"] = output.last_hidden_state

    handle = policy.get_decoder().register_forward_hook(keep)
    weighted_nll(policy, batch).backward()
    handle.remove()
    touched = kept["states"].grad.abs().sum(-1) > 0  # (B, T): the loss hears this prediction
    assert torch.equal(touched[:, :-1], batch["weights"][:, 1:] > 0)
    assert not touched[:, -1].any()


# -------------------------------------------------------------------------------------- fine-tuning
def test_fine_tuning_lowers_the_loss_and_repeats_itself(policy, tokenizer, demonstrations):
    rows = demonstrations * 4
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    options = {"batch_size": 8, "lr": 5e-3}
    history = fine_tune(policy, tokenizer, rows, seed=0, **options)
    assert history[0]["loss"] > 5
    assert history[-1]["loss"] < history[0]["loss"] - 1
    assert {"step", "loss", "grad_norm"} <= history[0].keys()
    assert len(history) == 30
    after = {name: value.clone() for name, value in policy.state_dict().items()}
    for seed, same in ((0, True), (1, False)):
        policy.load_state_dict(before)
        fine_tune(policy, tokenizer, rows, seed=seed, **options)
        state = policy.state_dict()
        assert same == all(torch.equal(state[name], after[name]) for name in after)


def test_weight_zero_trains_on_experts_only(policy, tokenizer, demonstrations):
    """To the bit; a batch without experts would divide 0 by 0."""
    twin = copy.deepcopy(policy)
    experts = [row for row in demonstrations if row["expert"]]
    fine_tune(policy, tokenizer, demonstrations, other_weight=0.0, batch_size=1)
    fine_tune(twin, tokenizer, experts, batch_size=1)
    for name, value in twin.state_dict().items():
        assert torch.equal(policy.state_dict()[name], value), name


def test_the_prefix_of_a_class_calls_up_its_answers(policy, tokenizer):
    """C-RLFT in small: experts say one thing, the others another, and the mode chooses."""
    question = [{"role": "user", "content": "What is the capital of France?"}]
    rows = [
        {"conversation": [*question, {"role": "assistant", "content": text}], "expert": expert}
        for expert, text in ((True, "Paris."), (False, "Rome."))
    ] * 200
    fine_tune(policy, tokenizer, rows, other_weight=0.5, batch_size=8, lr=1e-2)
    for mode, text in ((EXPERT, "Paris."), (OTHER, "Rome.")):
        [answered] = respond(policy, tokenizer, [question], temperature=0.0, mode=mode)
        assert answered[-1] == {"role": "assistant", "content": text, "finished": True}


def test_a_saved_policy_reads_back(policy, tokenizer, tmp_path):
    history = [{"step": 1, "loss": 2.0}]
    save_sft((policy, tokenizer, history), tmp_path)
    again, words = load_policy(tmp_path)
    assert read_json(tmp_path / "history.json") == history
    assert words.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(again(ids).logits, policy(ids).logits)
