"""One optimiser step on ranked lists: packed as the package does it, padded, and as TRL's pairs.

Lists have Nectar's shape (a prompt of 160 tokens, seven answers, log-normal around 150), of random
tokens; the model has the shipped nano base's weights. Prints the ratios of tokens processed, with
padding, and of seconds to those of the packed step, after checking that all ways give the same
loss and gradients: the padded ones those of the K-wise loss, TRL's those of its mean over 21 pairs.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from itertools import combinations
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from starling_nb.policy.base import ASSET, load_policy
from starling_nb.reward.kwise import Loss, pairwise_nll, plackett_luce_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import collate, pack_list

LISTS, REPEATS = 4, 3
PROMPT, ANSWER, SPREAD, K, LONGEST = 160, 150, 0.6, 7, 1024  # tokens; SPREAD: sd of log length
PAIRS = K * (K - 1) // 2
RankedList = tuple[list[int], list[list[int]]]  # ids of a prompt, of its K answers, best first
Result = tuple[Tensor, int]  # a step's loss, and the tokens it processed


def ranked_list(generator: torch.Generator, first: int, end: int) -> RankedList:
    """Random ids from `first` to below `end`."""
    lengths = ANSWER * torch.exp(SPREAD * torch.randn(K, generator=generator))
    sizes = [PROMPT, *lengths.round().int().clamp(1, LONGEST - PROMPT).tolist()]
    ids = torch.randint(first, end, (sum(sizes),), generator=generator)
    prompt, *answers = [part.tolist() for part in ids.split(sizes)]
    return prompt, answers


def mean_pair_nll(scores: Tensor, mask: Tensor | None = None) -> Tensor:
    """TRL's loss, its mean over the pairs of a list."""
    return pairwise_nll(scores, mask) / PAIRS


def packed_step(
    model: RewardModel, lists: Sequence[RankedList], loss: Loss = plackett_luce_nll
) -> Result:
    """Forward and backward with every prompt computed once."""
    batch = collate([pack_list(*ranked) for ranked in lists])
    mask = batch.pop("mask")
    value = loss(model(**batch), mask).mean()
    value.backward()
    return value.detach(), batch["input_ids"].numel()


def padded_step(model: RewardModel, lists: Sequence[RankedList], lists_a_pass: int) -> Result:
    """The same with seven padded sequences a list, `lists_a_pass` in one forward pass."""
    total, tokens = torch.tensor(0.0), 0
    for start in range(0, len(lists), lists_a_pass):
        part = lists[start : start + lists_a_pass]
        rows = [torch.tensor(prompt + answer) for prompt, answers in part for answer in answers]
        ids = pad_sequence(rows, batch_first=True)
        attention = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        value = plackett_luce_nll(model(ids, attention).view(len(part), K)).sum() / len(lists)
        value.backward()
        total, tokens = total + value.detach(), tokens + ids.numel()
    return total, tokens


def pair_trainer(model: RewardModel, lists: Sequence[RankedList], tokenizer, folder: str):
    """TRL's RewardTrainer on the 21 pairs of each list, around the same weights.

    A micro-batch holds the pairs of one list, so that nothing is padded to the answers of another;
    gradients are accumulated over the lists of a step. TRL's defaults of bfloat16 and of
    gradient checkpointing, which computes the forward pass twice, are off, as in the other ways.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    model.save_pretrained(folder, format="sequence_classification")
    rows = [
        {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        for prompt, answers in lists
        for chosen, rejected in combinations(answers, 2)
    ]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        args=RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=PAIRS,
            gradient_accumulation_steps=len(lists),
            max_length=LONGEST,
            train_sampling_strategy="sequential",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
        ),
    )
    trainer.current_gradient_accumulation_steps = len(lists)  # as trainer.train() does
    return trainer


def pairs_step(trainer, micro_batches: Iterable[dict[str, Tensor]]) -> Result:
    """Forward and backward over the pairs of all lists."""
    total, tokens = torch.tensor(0.0), 0
    for inputs in micro_batches:
        tokens += inputs["input_ids"].numel()
        total += trainer.training_step(trainer.model, inputs)
    return total, tokens


def gradient(model: nn.Module) -> Tensor:
    """The gradient as one vector; the model is left without one."""
    vector = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return vector


def assert_same(name: str, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    """Loss and gradient agree to 1e-4, relative to the norm."""
    for what, a, b in zip(("loss", "gradient"), found, expected, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm(), f"{name}: another {what} than the packed step's"


def report(
    steps: dict[str, Callable[[], Result]], models: dict[str, nn.Module], tokens: dict[str, int]
) -> None:
    """Time the steps with their optimiser, and print tokens and seconds over the packed one's."""
    adamw = {name: torch.optim.AdamW(model.parameters()) for name, model in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS):
        for name, step in steps.items():  # in turn, so that other work on the machine hits all
            start = time.perf_counter()
            step()
            adamw[name].step()
            adamw[name].zero_grad()
            seconds[name].append(time.perf_counter() - start)
    print(f"{LISTS} lists of {K} a step, {torch.get_num_threads()} threads")
    for name in [*steps][1:]:
        ratio = median(seconds[name]) / median(seconds["packed"])
        print(f"tokens, {name} / packed:  {tokens[name] / tokens['packed']:.2f}")
        print(f"seconds, {name} / packed: {ratio:.2f}")
    if not find_spec("trl"):
        print('TRL is not installed: its part is skipped; pip install ".[peers]" brings it')


def main() -> None:
    policy, tokenizer = load_policy(ASSET)
    generator = torch.Generator().manual_seed(0)
    lists = [ranked_list(generator, 5, policy.config.vocab_size) for _ in range(LISTS)]

    packed, padded, by_list = (RewardModel.from_policy(policy) for _ in range(3))
    models: dict[str, nn.Module] = {
        "packed": packed,
        "padded": padded,
        "padded, list by list": by_list,
    }
    steps: dict[str, Callable[[], Result]] = {
        "packed": lambda: packed_step(packed, lists),
        "padded": lambda: padded_step(padded, lists, LISTS),
        "padded, list by list": lambda: padded_step(by_list, lists, 1),
    }
    tokens: dict[str, int] = {}

    with tempfile.TemporaryDirectory() as folder:
        if find_spec("trl"):
            trainer = pair_trainer(packed, lists, tokenizer, folder)
            micro_batches = trainer.get_train_dataloader()
            models["TRL, 21 pairs"] = trainer.model
            steps["TRL, 21 pairs"] = lambda: pairs_step(trainer, micro_batches)
        for name, step in steps.items():
            same_loss = mean_pair_nll if name.startswith("TRL") else plackett_luce_nll
            expected = packed_step(packed, lists, same_loss)[0], gradient(packed)
            loss, tokens[name] = step()
            assert_same(name, (loss, gradient(models[name])), expected)

        report(steps, models, tokens)


if __name__ == "__main__":
    main()
