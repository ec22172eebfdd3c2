"""K-wise maximum likelihood: the losses, a list packed into one row, and the training of it.

Zhu, Jordan and Jiao 2023 (arXiv 2301.11270): the Plackett-Luce likelihood of a ranking (MLE_K)
beside the likelihood of its pairs (MLE_2).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import EOT, encode, prompt_to_conversation
from starling_nb.data.nectar import Row
from starling_nb.device import Device
from starling_nb.reward.model import RewardModel
from starling_nb.store import Context, stage, write_json
from starling_nb.training import Batch, fill_batches, length_grouped_batches, train

Loss = Callable[[Tensor, Tensor], Tensor]

BREAKINGS = {  # i, j: places in the ranking, best first; last: the worst answer's place
    "full": lambda i, j, last: i < j,
    "adjacent": lambda i, j, last: j == i + 1,
    "best_vs_rest": lambda i, j, last: i == 0,
    "best_vs_second": lambda i, j, last: (i == 0) & (j == 1),
    "best_vs_worst": lambda i, j, last: (i == 0) & (j == last),
    "rest_vs_worst": lambda i, j, last: j == last,
}


def _scores_and_mask(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in float32 or better, 0 where there is no answer, and the mask as bool."""
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask.bool()
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.masked_fill(~mask, 0), mask


def plackett_luce_nll(scores: Tensor, mask: Tensor | None = None, top: int | None = None) -> Tensor:
    """Negative log-likelihood of each list's ranking under Plackett-Luce.

        nll = Σ_j [ log Σ_{i>=j} exp(s_i) − s_j ]

    scores: (B, K), best first.  mask: (B, K), True on each row's answers, which come first; None
    when every row has K.  top: keep the first `top` terms, when only the best are ranked.
    -> (B,) in nats, float32 or better; ln K! where all scores are equal.
    Source: Plackett 1975; arXiv 2301.11270, MLE_K. Naive twin: `naive_nll` in tests/test_kwise.py.
    """
    scores, mask = _scores_and_mask(scores, mask)
    absent = torch.finfo(scores.dtype).min  # -inf would put NaN into logcumsumexp's gradient
    ranked = scores.masked_fill(~mask, absent)
    log_rest = ranked.flip(-1).logcumsumexp(-1).flip(-1)  # log_rest_j = log Σ_{i>=j} exp(s_i)
    terms = (log_rest - scores).masked_fill(~mask, 0)
    return terms[:, :top].sum(-1)


def pairwise_nll(scores: Tensor, mask: Tensor | None = None, breaking: str = "full") -> Tensor:
    """Negative log-likelihood of a ranking broken into Bradley-Terry pairs.

        nll = Σ_{(i, j) in pairs} log(1 + exp(s_j − s_i))

    scores, mask: as in `plackett_luce_nll`.  breaking: "full" (all K(K−1)/2 pairs, MLE_2),
    "adjacent", "best_vs_rest", "best_vs_second", "best_vs_worst" or "rest_vs_worst".
    -> (B,) in nats, summed over pairs.  Raises ValueError for another breaking.
    Source: arXiv 2301.11270, MLE_2; only "full" and "best_vs_rest" are consistent.
    """
    if breaking not in BREAKINGS:
        raise ValueError(f"breaking: expected one of {', '.join(BREAKINGS)}, found {breaking!r}")
    scores, mask = _scores_and_mask(scores, mask)
    place = torch.arange(scores.shape[-1], device=scores.device)
    i, j = place[:, None], place[None, :]
    last = mask.sum(-1)[:, None, None] - 1
    pairs = BREAKINGS[breaking](i, j, last) & (i < j) & mask[:, :, None] & mask[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]  # (B, K, K): s_i − s_j
    return (softplus(-margins) * pairs).sum((-1, -2))


def ranking_metrics(scores: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """How well scores order ranked lists.

    scores, mask: as in `plackett_luce_nll`. -> accuracy over all pairs, adjacent_accuracy (the
    authors' metric: the hardest pairs), top1 (the best answer scored highest), nll = the mean of
    NLL/(K−1), chance_nll = the same for equal scores, ln K!/(K−1), and the counts lists and pairs.
    A tie counts as half an ordered pair, and as 1/n of a top answer among n: equal scores are at
    chance in all of them.
    """
    scores, mask = _scores_and_mask(scores, mask)
    both = mask[:, :, None] & mask[:, None, :]
    margins = scores[:, :, None] - scores[:, None, :]
    ordered = (margins > 0) + 0.5 * (margins == 0)
    highest = scores.masked_fill(~mask, -math.inf).amax(-1, keepdim=True)
    winners = (scores == highest) & mask
    size = mask.sum(-1)
    stages = (size - 1).clamp(min=1)
    return {
        "accuracy": ordered[both.triu(1)].mean().item(),
        "adjacent_accuracy": ordered[both.triu(1).tril(1)].mean().item(),
        "top1": (winners[:, 0] / winners.sum(-1)).mean().item(),
        "nll": (plackett_luce_nll(scores, mask) / stages).mean().item(),
        "chance_nll": (torch.lgamma(size + 1.0) / stages).mean().item(),
        "lists": len(scores),
        "pairs": int(both.triu(1).sum()),
    }


class PackedList(NamedTuple):
    """A prompt and its K answers in one row of T = P + ΣA tokens, each token computed once."""

    input_ids: Tensor  # (T,)
    position_ids: Tensor  # (T,): every answer goes on where the prompt ends
    segments: Tensor  # (T,): 0 on the prompt, k on answer k = 1..K
    ends: Tensor  # (K,): index of each answer's last token


class Truncation(NamedTuple):
    """How many prompts and answers lost tokens to `max_length`, of how many."""

    prompts: int
    answers: int
    of_prompts: int
    of_answers: int


def pack_list(prompt_ids: Sequence[int], answers_ids: Sequence[Sequence[int]]) -> PackedList:
    """Lay a prompt (P tokens) and its K answers behind each other, positions restarted.

    Raises ValueError when the prompt or an answer has no tokens.
    """
    prompt, sizes = len(prompt_ids), [len(answer) for answer in answers_ids]
    if not prompt or not sizes or 0 in sizes:
        raise ValueError(f"expected a prompt and answers with tokens, found {prompt} and {sizes}")
    return PackedList(
        input_ids=torch.tensor([*prompt_ids, *chain.from_iterable(answers_ids)]),
        position_ids=torch.cat(
            [torch.arange(prompt), *(torch.arange(prompt, prompt + size) for size in sizes)]
        ),
        segments=torch.arange(len(sizes) + 1).repeat_interleave(torch.tensor([prompt, *sizes])),
        ends=prompt - 1 + torch.tensor(sizes).cumsum(0),
    )


def block_mask(segments: Tensor) -> Tensor:
    """Who sees whom in packed rows: an answer the prompt and itself, the prompt itself, causally.

    segments: (B, T), 0 on padding too: it sees the prompt, so that no row of the softmax is empty,
    and as it comes last nothing sees it. -> (B, 1, T, T) bool, [.., query, key].
    """
    query, key = segments[:, :, None], segments[:, None, :]
    sees = (key == 0) | (key == query)
    return sees.tril()[:, None]


def collate(lists: Sequence[PackedList]) -> Batch:
    """A batch of B packed lists, T the longest and K the most answers among them.

    -> input_ids, position_ids (B, T), attention_mask (B, 1, T, T) bool, ends (B, K): the inputs of
    RewardModel; and mask (B, K) bool, which of the K answers are there.
    """
    input_ids, position_ids, segments, ends = (list(field) for field in zip(*lists, strict=True))
    pad = partial(pad_sequence, batch_first=True)
    return {
        "input_ids": pad(input_ids),
        "position_ids": pad(position_ids),
        "attention_mask": block_mask(pad(segments)),
        "ends": pad(ends),
        "mask": pad([torch.ones_like(e, dtype=torch.bool) for e in ends]),
    }


def encode_list(
    tokenizer: PreTrainedTokenizerFast, prompt: str, answers: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Ids of a Nectar prompt, up to "Assistant:", and of each answer behind it, to its end of turn.

    The same as `encode` on the K conversations, in one call: the answers are encoded as turns that
    follow each other, and cut apart at the ends of turn, which no text can contain.
    """
    asked = prompt_to_conversation(prompt)
    turns = [{"role": "assistant", "content": answer} for answer in answers]
    ids = encode(tokenizer, [*asked, *turns], add_generation_prompt=True)
    eot = tokenizer.convert_tokens_to_ids(EOT)
    stops = [i + 1 for i, token in enumerate(ids) if token == eot]
    messages = [ids[start:stop] for start, stop in pairwise([0, *stops])]
    opening = ids[stops[-1] :]  # "GPT4 Correct Assistant:", with which every answer begins
    prompt_ids = [*chain.from_iterable(messages[: len(asked)]), *opening]
    return prompt_ids, [message[len(opening) :] for message in messages[len(asked) :]]


def encode_rows(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, max_length: int = 1024
) -> tuple[list[PackedList], Truncation]:
    """Validated Nectar rows as packed lists, answers in the order of the row, best first.

    No prompt and answer together exceed `max_length` tokens: the prompt is cut at the left, down
    to half of `max_length`, then the answers at the right, which also takes their end of turn.
    """
    lists, prompts_cut, answers_cut, answers_seen = [], 0, 0, 0
    for row in rows:
        texts = [answer["answer"] for answer in row["answers"]]
        prompt, answers = encode_list(tokenizer, row["prompt"], texts)
        longest = max(map(len, answers))
        room = min(len(prompt), max(max_length - longest, max_length // 2))
        lists.append(pack_list(prompt[-room:], [ids[: max_length - room] for ids in answers]))
        prompts_cut += len(prompt) > room
        answers_cut += sum(len(ids) > max_length - room for ids in answers)
        answers_seen += len(answers)
    return lists, Truncation(prompts_cut, answers_cut, len(lists), answers_seen)


@torch.no_grad()
def score_lists(
    model: RewardModel, lists: Sequence[PackedList], batch_size: int = 12
) -> tuple[Tensor, Tensor]:
    """Scores of packed lists in the order given -> scores (N, K) float32, mask (N, K), on the CPU.

    K is the largest number of answers; the scores of absent answers are 0.
    """
    was_training = model.training
    model.eval()
    most = max(len(packed.ends) for packed in lists)
    scores, mask = torch.zeros(len(lists), most), torch.zeros(len(lists), most, dtype=torch.bool)
    lengths = [len(packed.input_ids) for packed in lists]
    for rows in fill_batches(
        sorted(range(len(lists)), key=lambda i: lengths[i]), lengths, batch_size
    ):
        batch = {k: v.to(model.device) for k, v in collate([lists[i] for i in rows]).items()}
        present = batch.pop("mask")
        scores[rows, : present.shape[1]] = model(**batch).masked_fill(~present, 0).cpu()
        mask[rows, : present.shape[1]] = present.cpu()
    model.train(was_training)
    return scores, mask


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
