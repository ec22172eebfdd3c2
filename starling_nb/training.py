"""Supervised training on transformers.Trainer, over batches that are made beforehand."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor
from tqdm.std import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import SAFE_WEIGHTS_NAME

from starling_nb.device import Device, progress
from starling_nb.store import read_json, write_json

Batch = dict[str, Tensor]


MAX_TOKENS = 8192  # of a batch, padding included: bounds memory where items are long


def length_grouped_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator, pool: int = 16
) -> list[list[int]]:
    """One pass over N items in batches of similar length.

    The items are shuffled, sorted by length inside pools of `pool` batches, and the batches
    shuffled. -> lists of indices, each index once; a smaller batch where a pool is cut short, or
    where `batch_size` items would exceed MAX_TOKENS.
    """
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), pool * batch_size):
        pooled = sorted(order[start : start + pool * batch_size], key=lambda i: lengths[i])
        batches += fill_batches(pooled, lengths, batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def fill_batches(
    order: Sequence[int], lengths: Sequence[int], batch_size: int, max_tokens: int = MAX_TOKENS
) -> list[list[int]]:
    """Indices in `order` as batches of at most `batch_size` items and `max_tokens`, or one item."""
    batches: list[list[int]] = []
    longest = 0
    for i in order:
        longest = max(longest, lengths[i])
        batch = batches[-1] if batches else []
        if not batch or len(batch) == batch_size or (len(batch) + 1) * longest > max_tokens:
            batches.append([i])
            longest = lengths[i]
        else:
            batch.append(i)
    return batches


def train(
    model: PreTrainedModel,
    batches: Sequence[Sequence[Any]],
    *,
    collate: Callable[[Any], Batch],
    loss: Callable[[PreTrainedModel, Batch], Tensor],
    lr: float,
    seed: int,
    device: Device | None,
    desc: str,
    folder: Path | None = None,
) -> list[dict[str, float]]:
    """Fit `model`, in place, in one pass over `batches`; return Trainer's log of loss and norm.

    A batch is a list of items; collate(items) makes the tensors of a step, and loss(model, tensors)
    its scalar.  AdamW with betas (0.9, 0.98), 5 % warm-up, then a cosine to a tenth of `lr`;
    gradients clipped at norm 1.
    The model's own device and float32 unless a `device` is given. Ends in eval mode.
    folder: of this run alone. About ten times a run its state is saved there; a run that was
    stopped goes on from the last one when it is started again with the same arguments, and ends
    with the same weights. A finished run leaves nothing there. None saves nothing.
    Raises ValueError when the folder holds a run of other steps, learning rate or seed.
    """
    kind = device.device.type if device else model.device.type
    logged = max(1, len(batches) // 50)
    settings = {"steps": len(batches), "lr": lr, "seed": seed}
    state = last_state(folder, settings) if folder else None
    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(
            output_dir=str(folder or scratch),
            seed=seed,
            use_cpu=kind == "cpu",
            bf16=device is not None and device.dtype == torch.bfloat16,
            fp16=device is not None and device.dtype == torch.float16,
            per_device_train_batch_size=1,  # an item of the data set is a whole batch
            train_sampling_strategy="sequential",
            num_train_epochs=1,
            learning_rate=lr,
            adam_beta2=0.98,
            weight_decay=0.0,
            warmup_steps=0.05,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            max_grad_norm=1.0,
            logging_steps=logged,
            save_strategy="steps" if folder else "no",
            save_steps=5 * logged,  # a multiple, so that a resumed run logs the same means
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        args._n_gpu = min(args.n_gpu, 1)  # Trainer would join a batch for each GPU of the machine
        trainer = LossTrainer(
            loss=loss,
            model=model,
            train_dataset=batches,
            data_collator=lambda items: collate([*chain.from_iterable(items)]),
            callbacks=[ProgressBar(desc), SealState(settings)],
            args=args,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=str(state) if state else None)
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # drops its autocast
    for path in saved_states(folder) if folder else []:
        shutil.rmtree(path)
    model.eval()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


class LossTrainer(Trainer):
    """Trainer whose loss is a function of the model and a batch."""

    def __init__(self, *, loss: Callable[[PreTrainedModel, Batch], Tensor], **options):
        super().__init__(**options)
        self.loss = loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with self.accelerator.autocast():  # Trainer itself wraps only the model's own forward
            return self.loss(model, inputs)

    def _save(self, output_dir=None, state_dict=None):
        """The weights alone, which Trainer reads back; it would also pickle its arguments."""
        if self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            model = self.accelerator.unwrap_model(self.model)
            save_model(model, str(Path(output_dir) / SAFE_WEIGHTS_NAME))


SEAL = "run.json"  # the last file of a saved state: one without it was cut short


class SealState(TrainerCallback):
    """Marks a saved state as whole, writes of which run it is, and deletes the ones before it."""

    def __init__(self, settings: dict[str, float]):
        self.settings = settings

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(saved / SEAL, self.settings)
            for path in saved_states(saved.parent):
                if path != saved:
                    shutil.rmtree(path)


def saved_states(folder: Path) -> list[Path]:
    """Trainer's checkpoints in a folder, whole or not, the last one first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1]))


def last_state(folder: Path, settings: dict[str, float]) -> Path | None:
    """The last whole state of the run with these settings, None where there is none.

    Raises ValueError when it is another run's.
    """
    path = next((path for path in saved_states(folder) if (path / SEAL).is_file()), None)
    if path and (found := read_json(path / SEAL)) != settings:
        raise ValueError(
            f"{path}: expected the state of a run with {settings}, found {found}; empty the folder "
            "to start again, or give the arguments with which that run was started"
        )
    return path


class ProgressBar(TrainerCallback):
    """The package's progress bar on a Trainer, which otherwise prints every log entry."""

    def __init__(self, desc: str):
        self.desc = desc

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar: tqdm = progress(total=state.max_steps, desc=self.desc)
        self.bar.update(state.global_step)  # of a run that goes on

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
