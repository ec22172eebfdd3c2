"""One optimiser step of DPO on ranked lists: packed, sequence by sequence, and as TRL's pairs.

Lists are those of reward_step.py; the model is the shipped nano base, the reference its copy with
noise, whose log-probabilities all ways have beforehand. Prints the ratios of tokens processed, with
padding, and of seconds to those of the packed step, after checking that all ways give the same
loss and gradients: the padded one those of the K-wise loss, TRL's those of its mean over 21 pairs.
"""

import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib.util import find_spec
from itertools import combinations

import torch
from reward_step import (
    LISTS,
    LONGEST,
    PAIRS,
    K,
    RankedList,
    Result,
    assert_same,
    gradient,
    pairs_step,
    ranked_list,
    report,
)
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from starling_nb.policy.base import ASSET, load_policy
from starling_nb.policy.dpo import (
    attending_by_sequence,
    dpo_loss,
    kwise_dpo_loss,
    list_logprobs,
    score_packed,
)
from starling_nb.reward.kwise import Loss
from starling_nb.reward.packing import collate, pack_list

BETA = 0.1


def mean_pair_loss(ratios: Tensor, mask: Tensor | None = None) -> Tensor:
    """TRL's loss, its mean over the pairs of a list."""
    return dpo_loss(ratios, mask, BETA) / PAIRS


def packed_step(
    policy: PreTrainedModel, lists: Sequence[RankedList], anchors: Tensor, loss: Loss
) -> Result:
    """Forward and backward with every prompt computed once."""
    batch = collate([pack_list(*ranked) for ranked in lists])
    value = loss(list_logprobs(policy, batch).logprobs - anchors, batch["mask"]).mean()
    value.backward()
    return value.detach(), batch["input_ids"].numel()


def padded_step(policy: PreTrainedModel, lists: Sequence[RankedList], anchors: Tensor) -> Result:
    """The K-wise loss with seven padded sequences a list, list by list, logits everywhere."""
    total, tokens = torch.tensor(0.0), 0
    for (prompt, answers), anchor in zip(lists, anchors, strict=True):
        rows = [torch.tensor(prompt + answer) for answer in answers]
        ids = pad_sequence(rows, batch_first=True)
        attention = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        log_pi = policy(input_ids=ids, attention_mask=attention).logits.log_softmax(-1)
        chosen = log_pi[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * attention[:, 1:]
        ratios = chosen[:, len(prompt) - 1 :].sum(1) - anchor
        value = kwise_dpo_loss(ratios[None], beta=BETA).sum() / len(lists)
        value.backward()
        total, tokens = total + value.detach(), tokens + ids.numel()
    return total, tokens


def pair_trainer(policy, reference, lists: Sequence[RankedList], anchors, tokenizer, folder: str):
    """TRL's DPOTrainer on the 21 pairs of each list, a micro-batch for each list.

    As in reward_step.py its defaults of bfloat16 and gradient checkpointing are off.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt_ids": prompt,
            "chosen_ids": answers[i],
            "rejected_ids": answers[j],
            "ref_chosen_logps": anchor[i].item(),
            "ref_rejected_logps": anchor[j].item(),
        }
        for (prompt, answers), anchor in zip(lists, anchors, strict=True)
        for i, j in combinations(range(K), 2)
    ]
    asked = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * len(rows)
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(asked),  # its own tokens are put in their place below
        args=DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PAIRS,
            gradient_accumulation_steps=len(lists),
            max_length=LONGEST,
            beta=BETA,
            train_sampling_strategy="sequential",
            precompute_ref_log_probs=True,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
        ),
    )
    trainer.current_gradient_accumulation_steps = len(lists)  # as trainer.train() does
    trainer.train_dataset = Dataset.from_list(rows)
    return trainer


def main() -> None:
    policy, tokenizer = load_policy(ASSET)
    generator = torch.Generator().manual_seed(0)
    lists = [ranked_list(generator, 5, policy.config.vocab_size) for _ in range(LISTS)]
    reference = deepcopy(policy)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    anchors = torch.stack(score_packed(reference, [pack_list(*ranked) for ranked in lists]))

    packed, padded = deepcopy(policy), deepcopy(policy)
    models: dict[str, nn.Module] = {"packed": packed, "padded, list by list": padded}

    def kwise(ratios: Tensor, mask: Tensor | None = None) -> Tensor:
        return kwise_dpo_loss(ratios, mask, BETA)

    steps: dict[str, Callable[[], Result]] = {
        "packed": lambda: packed_step(packed, lists, anchors, kwise),
        "padded, list by list": lambda: padded_step(padded, lists, anchors),
    }
    tokens: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder, attending_by_sequence(packed):
        if find_spec("trl"):
            trainer = pair_trainer(deepcopy(policy), reference, lists, anchors, tokenizer, folder)
            micro_batches = trainer.get_train_dataloader()
            models["TRL, 21 pairs"] = trainer.model
            steps["TRL, 21 pairs"] = lambda: pairs_step(trainer, micro_batches)
        for name, step in steps.items():
            same_loss = mean_pair_loss if name.startswith("TRL") else kwise
            expected = packed_step(packed, lists, anchors, same_loss)[0], gradient(packed)
            loss, tokens[name] = step()
            assert_same(name, (loss, gradient(models[name])), expected)

        report(steps, models, tokens)


if __name__ == "__main__":
    main()
