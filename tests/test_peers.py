"""Peers as oracles: TRL's trainers on a list's pairs have the losses of rank breaking and DPO."""

from itertools import combinations

import pytest
import torch
from datasets import Dataset
from tiny_lists import colour_tokenizer, mistral, ranked_row
from transformers import AutoModelForSequenceClassification, MistralConfig

from starling_nb.data.chat import train_tokenizer
from starling_nb.policy.dpo import dpo_loss, list_logprobs, score_packed
from starling_nb.reward.kwise import pairwise_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import collate, encode_rows, pack_list


def test_trl_has_the_same_dpo_loss_and_gradient(tmp_path):
    """The same pairs, as conversations there and as Nectar rows here, against a policy apart."""
    trl = pytest.importorskip("trl", reason='TRL is absent; pip install ".[peers]" brings it')
    tokenizer = colour_tokenizer()
    policy, reference = mistral(len(tokenizer)), mistral(len(tokenizer))
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(2))
    texts = [("Red?", "It is red.", "No."), ("A longer question?", "Blue, I think.", "Green")]
    rows = [ranked_row(prompt, answers) for prompt, *answers in texts]
    lists, _ = encode_rows(rows, tokenizer)
    anchors = torch.stack(score_packed(reference, lists))
    logprobs, _ = list_logprobs(policy, collate(lists))
    expected = dpo_loss(logprobs - anchors, beta=0.3).mean()
    expected.backward()

    keys = ("prompt", "chosen", "rejected")
    roles = ("user", "assistant", "assistant")
    pairs = [
        {
            key: [{"role": role, "content": text}]
            for key, role, text in zip(keys, roles, row, strict=True)
        }
        for row in texts
    ]
    options = {"bf16": False, "use_cpu": True, "report_to": "none"}
    trainer = trl.DPOTrainer(
        model=(twin := mistral(len(tokenizer))),
        ref_model=reference,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
        args=trl.DPOConfig(output_dir=tmp_path, per_device_train_batch_size=2, beta=0.3, **options),
    )
    (inputs,) = trainer.get_train_dataloader()
    found = trainer.compute_loss(trainer.model, inputs)
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert abs(expected.item() - 0.6931) > 0.1  # far from log 2, the loss at the reference
    for ours, theirs in zip(policy.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-5)


def test_trl_has_the_same_loss_and_gradient_on_the_pairs_of_a_list(tmp_path):
    trl = pytest.importorskip("trl", reason='TRL is absent; pip install ".[peers]" brings it')
    tokenizer = train_tokenizer(["a b c"], 280)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": 280, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": 3}
    torch.manual_seed(0)
    model = RewardModel(MistralConfig(**ids, **sizes, **heads, initializer_range=0.3))
    model.v_head.weight.data *= 5  # scores far apart, so that the order of a pair matters
    prompt = torch.randint(5, 280, (9,)).tolist()
    answers = [torch.randint(5, 280, (size,)).tolist() for size in (4, 11, 1, 7, 7, 3, 20)]

    batch = collate([pack_list(prompt, answers)])
    mask = batch.pop("mask")
    expected = pairwise_nll(model(**batch), mask).mean() / 21
    expected.backward()

    model.save_pretrained(tmp_path, format="sequence_classification")
    pairs = [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for chosen, rejected in combinations(answers, 2)
    ]
    trainer = trl.RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(tmp_path),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(pairs),
        args=trl.RewardConfig(
            output_dir=tmp_path,
            per_device_train_batch_size=21,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
    )
    (inputs,) = trainer.get_train_dataloader()
    found = trainer.compute_loss(trainer.model, inputs)
    found.backward()

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert abs(expected.item() - 0.6931) > 0.1  # far from log 2, equal scores'
    for ours, theirs in zip(model.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-5)
