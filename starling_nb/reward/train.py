"""A reward model fitted to ranked lists, and the course's stage of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.nectar import Row
from starling_nb.device import Device
from starling_nb.reward.kwise import Loss, plackett_luce_nll
from starling_nb.reward.metrics import ranking_metrics
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import collate, encode_rows, score_lists
from starling_nb.store import Context, stage, write_json
from starling_nb.training import Batch, length_grouped_batches, train


def train_reward_model(
    rows: Sequence[Row],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    loss: Loss = plackett_luce_nll,
    epochs: int = 1,
    batch_size: int = 12,
    lr: float = 1.2e-3,
    max_length: int = 1024,
    seed: int = 0,
    device: Device | None = None,
    validation_rows: Sequence[Row] = (),
) -> tuple[RewardModel, list[dict[str, float]]]:
    """Fit a reward model, its trunk a copy of the policy's, to ranked lists.

    loss: scores (B, K) best first, mask (B, K) -> (B,), averaged over the lists of a batch.
    Optimiser, schedule and device are those of `starling_nb.training.train`.
    -> the model in eval mode, and the history: first the number of tokens and the `Truncation`;
    then step, loss and grad_norm over the run; last, when there are validation rows, their
    `ranking_metrics`.  The same seed gives the same model; the policy is left as it was.
    """
    lists, truncation = encode_rows(rows, tokenizer, max_length)
    lengths = [len(packed.input_ids) for packed in lists]
    generator = torch.Generator().manual_seed(seed)
    batches = [
        [lists[i] for i in batch]
        for _ in range(epochs)
        for batch in length_grouped_batches(lengths, batch_size, generator)
    ]

    def batch_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        mask = batch.pop("mask")
        return loss(model(**batch), mask).mean()

    model = RewardModel.from_policy(policy, seed)
    log = train(
        model,
        batches,
        collate=collate,
        loss=batch_loss,
        lr=lr,
        seed=seed,
        device=device,
        desc="reward model",
    )
    history = [{"step": 0, "tokens": sum(lengths), **truncation._asdict()}, *log]
    if validation_rows:
        held_out, _ = encode_rows(validation_rows, tokenizer, max_length)
        metrics = ranking_metrics(*score_lists(model, held_out, batch_size))
        named = {f"validation_{name}": value for name, value in metrics.items()}
        history.append({"step": len(batches), **named})
    return model, history


@dataclass(frozen=True)
class RewardConfig:
    """Sizes and optimisation of the reward model; the defaults are the cpu profile's."""

    lists: int = 7000
    batch_size: int = 12
    lr: float = 1.2e-3
    epochs: int = 1
    max_length: int = 1024


def save_model(built, folder: Path) -> None:
    """Model, tokenizer and history into a folder."""
    model, tokenizer, history = built
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "history.json", history)


def load_model(folder: Path) -> tuple[RewardModel, PreTrainedTokenizerFast]:
    """Model and tokenizer out of a folder; history.json stays there to be read."""
    return RewardModel.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)


@stage(
    "reward_model", needs=("sft", "rankings"), config=RewardConfig, save=save_model, load=load_model
)
def build_reward_model(config: RewardConfig, ctx: Context, sft, rankings):
    """The SFT policy's trunk, fitted to the world's rankings."""
    policy, tokenizer = sft
    options = asdict(config)
    rows = rankings.train[: options.pop("lists")]
    options |= {"seed": ctx.seed, "device": ctx.device, "validation_rows": rankings.validation}
    model, history = train_reward_model(rows, policy, tokenizer, **options)
    return model, tokenizer, history
