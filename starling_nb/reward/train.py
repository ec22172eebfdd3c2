"""A reward model fitted to ranked lists, and the course's stage of it."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.nectar import Row
from starling_nb.device import Device
from starling_nb.reward.kwise import Loss, plackett_luce_nll, squared_sum
from starling_nb.reward.metrics import ranking_metrics
from starling_nb.reward.model import RewardModel, can_pack
from starling_nb.reward.packing import collate, encode_rows, score_lists
from starling_nb.store import Context, stage, write_json
from starling_nb.training import Batch, length_grouped_batches, train

if TYPE_CHECKING:
    from peft import LoraConfig


def train_reward_model(
    rows: Sequence[Row],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    loss: Loss = plackett_luce_nll,
    zero_sum_penalty: float = 0.0,
    epochs: int = 1,
    batch_size: int = 12,
    lr: float = 1.2e-3,
    max_length: int = 1024,
    template: str = "openchat",
    last_layers: int | None = None,
    lora: "LoraConfig | None" = None,
    gradient_checkpointing: bool = False,
    seed: int = 0,
    device: Device | None = None,
    validation_rows: Sequence[Row] = (),
    folder: Path | None = None,
) -> tuple[RewardModel, list[dict[str, float]]]:
    """Fit a reward model, its trunk a copy of the policy's, to ranked lists.

    loss: scores (B, K) best first, mask (B, K) -> (B,); to it `zero_sum_penalty` times the
    `squared_sum` is added, and the mean taken over the lists of a batch.
    template: a name in `templates.TEMPLATES`; the model carries it and `max_length`, so that it
    scores conversations as it was trained on them.
    last_layers: train only so many of the last blocks, the final norm and the head.  lora: train
    adapters of the trunk, merged into it at the end, and the head.  By default all is trained.
    gradient_checkpointing: compute each block twice, to keep less of it in memory.
    folder: where a stopped run goes on, as in `starling_nb.training.train`, whose are the
    optimiser, schedule and device too.
    -> the model in eval mode, and the history: first the number of tokens and the `Truncation`;
    then step, loss and grad_norm over the run; last, when there are validation rows, their
    `ranking_metrics`.  The same seed gives the same model; the policy is left as it was.
    Raises ValueError for an unknown template, for `last_layers` outside the trunk's number of
    blocks, for both `last_layers` and `lora`, and for a trunk that cannot have packed rows: with
    recurrent layers, positions of another kind, or a window shorter than a prompt and its answer.
    """
    if last_layers is not None and lora is not None:
        raise ValueError(
            "last_layers, lora: expected one of them; LoraConfig(layers_to_transform=[...]) adapts "
            "some layers only"
        )
    model = RewardModel.from_policy(policy, seed)
    model.config.reward_template, model.config.reward_max_length = template, max_length
    lists, truncation = encode_rows(rows, tokenizer, max_length, template)
    longest = max((int(packed.position_ids.max()) + 1 for packed in lists), default=0)
    if not can_pack(model, longest):
        raise ValueError(
            f"policy: {type(model.transformer).__name__} cannot have packed rows of {longest} "
            "tokens a sequence: expected rotary or learned positions and full attention"
        )
    if last_layers is not None:
        freeze_below(model.transformer, last_layers)
    if lora is not None:
        model.transformer = with_adapters(model.transformer, lora, seed)
    if gradient_checkpointing:
        recompute = partial(checkpoint, use_reentrant=False)  # needs no gradient at a block's input
        model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=recompute)

    lengths = [len(packed.input_ids) for packed in lists]
    generator = torch.Generator().manual_seed(seed)
    batches = [
        [lists[i] for i in batch]
        for _ in range(epochs)
        for batch in length_grouped_batches(lengths, batch_size, generator)
    ]

    def batch_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
        mask = batch.pop("mask")
        scores = model(**batch)
        return (loss(scores, mask) + zero_sum_penalty * squared_sum(scores, mask)).mean()

    log = train(
        model,
        batches,
        collate=collate,
        loss=batch_loss,
        lr=lr,
        seed=seed,
        device=device,
        desc="reward model",
        folder=folder,
    )
    if gradient_checkpointing:
        model._set_gradient_checkpointing(enable=False)
    if lora is not None:
        model.transformer = model.transformer.merge_and_unload()
    model.requires_grad_(True)

    history = [{"step": 0, "tokens": sum(lengths), **truncation._asdict()}, *log]
    if validation_rows:
        held_out, _ = encode_rows(validation_rows, tokenizer, max_length, template)
        metrics = ranking_metrics(*score_lists(model, held_out, batch_size))
        named = {f"validation_{name}": value for name, value in metrics.items()}
        history.append({"step": len(batches), **named})
    return model, history


def freeze_below(trunk: nn.Module, last_layers: int) -> None:
    """Leave trainable the last blocks of a trunk and what follows them, its final norm.

    Raises ValueError unless 1 <= last_layers <= the number of blocks.
    """
    parts = list(trunk.children())
    place = next(i for i, part in enumerate(parts) if isinstance(part, nn.ModuleList))
    blocks: Any = parts[place]
    if not 1 <= last_layers <= len(blocks):
        raise ValueError(
            f"last_layers: expected 1 to {len(blocks)}, the trunk's blocks, found {last_layers}"
        )
    trunk.requires_grad_(False)
    for part in [*blocks[-last_layers:], *parts[place + 1 :]]:
        part.requires_grad_(True)


def with_adapters(trunk: nn.Module, lora: "LoraConfig", seed: int) -> nn.Module:
    """The trunk, frozen, with trainable low-rank adapters drawn from `seed` (arXiv 2106.09685)."""
    from peft import get_peft_model

    torch.manual_seed(seed)  # peft draws from torch's own generator, which Trainer seeds alike
    return get_peft_model(trunk, copy.deepcopy(lora))


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
    "reward_model",
    needs=("sft", "rankings"),
    config=RewardConfig,
    version=2,
    save=save_model,
    load=load_model,
)
def build_reward_model(config: RewardConfig, ctx: Context, sft, rankings):
    """The SFT policy's trunk, fitted to the world's rankings."""
    policy, tokenizer = sft
    options = asdict(config)
    rows = rankings.train[: options.pop("lists")]
    options |= {"seed": ctx.seed, "device": ctx.device, "validation_rows": rankings.validation}
    model, history = train_reward_model(rows, policy, tokenizer, **options)
    return model, tokenizer, history
