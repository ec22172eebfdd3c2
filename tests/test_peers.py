"""Peers as oracles: TRL's RewardTrainer on a list's pairs has the loss of rank breaking."""

from itertools import combinations

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, MistralConfig

from starling_nb.data.chat import train_tokenizer
from starling_nb.reward.kwise import pairwise_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import collate, pack_list


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
