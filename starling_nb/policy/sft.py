"""Supervised fine-tuning, plain or class-conditioned (C-RLFT)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import encode_with_mask
from starling_nb.device import Device
from starling_nb.policy.base import load_policy, save_policy
from starling_nb.store import Context, stage, write_json
from starling_nb.training import Batch, length_grouped_batches, train

EXPERT, OTHER = "GPT4 Correct", "GPT3 Correct"  # the classes' prefixes in the template


class Example(NamedTuple):
    """One demonstration: ids (T,), and the weight (T,) of predicting each of them; 0 on prompts."""

    ids: Tensor
    weights: Tensor


def encode_demonstration(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerFast, other_weight: float
) -> Example:
    """{"conversation", "expert"} as an example: its class sets the prefix and the weight.

    Experts speak behind "GPT4 Correct" with weight 1, the rest behind "GPT3 Correct" with
    `other_weight`: every assistant turn, its end of turn included, earlier turns like the last.
    Prompts and the prefixes themselves have weight 0. Source: C-RLFT, arXiv 2309.11235.
    """
    mode, weight = (EXPERT, 1.0) if row["expert"] else (OTHER, other_weight)
    ids, answer = encode_with_mask(tokenizer, row["conversation"], mode)
    return Example(torch.tensor(ids), weight * torch.tensor(answer, dtype=torch.float32))


def collate(examples: Sequence[Example]) -> Batch:
    """B examples, right-padded: input_ids, attention_mask and weights, all (B, T)."""
    ids, weights = (list(column) for column in zip(*examples, strict=True))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "weights": pad_sequence(weights, batch_first=True),
    }


def weighted_nll(policy: PreTrainedModel, batch: Batch) -> Tensor:
    """The weighted mean of −log π(token | before) over tokens of weight > 0, in nats.

    loss = Σ w_t (−log π(y_t | y_<t)) / Σ w_t.  The LM head is applied to weighted tokens only.
    batch: weights (B, T) and what the decoder reads, as `collate` makes them.
    Naive twin: cross entropy of all tokens, in tests/test_sft.py.
    """
    targets, weights = batch["input_ids"][:, 1:], batch["weights"][:, 1:]
    inputs = {name: tensor for name, tensor in batch.items() if name != "weights"}
    states = policy.get_decoder()(**inputs, use_cache=False).last_hidden_state[:, :-1]
    chosen = weights > 0
    logits = policy.get_output_embeddings()(states[chosen]).float()  # (N, V)
    nll = cross_entropy(logits, targets[chosen], reduction="none")
    return (weights[chosen] * nll).sum() / weights.sum()


def fine_tune(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict[str, Any]],
    *,
    loss=weighted_nll,
    other_weight: float = 0.1,
    batch_size: int = 32,
    lr: float = 1.5e-3,
    seed: int = 0,
    device: Device | None = None,
) -> list[dict[str, float]]:
    """Fine-tune `policy`, in place, on demonstrations; return Trainer's log.

    rows: {"conversation": ending with the assistant, "expert": bool}.  other_weight: of rows that
    are no expert's; 0 leaves them out.  loss: of (policy, batch), the batch as `collate` makes it.
    The same seed gives the same weights.
    """
    rows = [row for row in rows if row["expert"] or other_weight]
    examples = [encode_demonstration(row, tokenizer, other_weight) for row in rows]
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(example.ids) for example in examples]
    batches = [
        [examples[i] for i in batch]
        for batch in length_grouped_batches(lengths, batch_size, generator)
    ]
    return train(
        policy, batches, collate=collate, loss=loss, lr=lr, seed=seed, device=device, desc="SFT"
    )


@dataclass(frozen=True)
class SFTConfig:
    """Sizes and optimisation of fine-tuning; the defaults are the cpu profile's."""

    rows: int = 14_000
    other_weight: float = 0.1
    batch_size: int = 32
    lr: float = 1.5e-3


def save_sft(built, folder: Path) -> None:
    """Policy, tokenizer and history.json into a folder; `load_policy` reads the first two."""
    policy, tokenizer, history = built
    save_policy((policy, tokenizer), folder)
    write_json(folder / "history.json", history)


@stage("sft", needs=("base", "world"), config=SFTConfig, save=save_sft, load=load_policy)
def build_sft(config: SFTConfig, ctx: Context, base, world):
    """The base model fine-tuned with C-RLFT on the world's demonstrations."""
    policy, tokenizer = base
    sizes = asdict(config)
    rows = world.demonstrations(sizes.pop("rows"), seed=ctx.seed)
    history = fine_tune(policy, tokenizer, rows, seed=ctx.seed, device=ctx.device, **sizes)
    return policy, tokenizer, history
