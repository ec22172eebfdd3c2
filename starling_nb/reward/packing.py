"""A prompt and its K answers in one row, each token computed once."""

from collections.abc import Sequence
from functools import partial
from itertools import chain, pairwise, takewhile
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import EOT, encode, prompt_to_conversation
from starling_nb.data.nectar import Row
from starling_nb.reward.templates import encode_conversation
from starling_nb.training import Batch, fill_batches


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

    -> input_ids, position_ids, segments (B, T), ends (B, K): the inputs of RewardModel; and mask
    (B, K) bool, which of the K answers are there.
    """
    input_ids, position_ids, segments, ends = (list(field) for field in zip(*lists, strict=True))
    pad = partial(pad_sequence, batch_first=True)
    return {
        "input_ids": pad(input_ids),
        "position_ids": pad(position_ids),
        "segments": pad(segments),
        "ends": pad(ends),
        "mask": pad([torch.ones_like(e, dtype=torch.bool) for e in ends]),
    }


def shared_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """How many first tokens all the sequences share, at least one left to each."""
    columns = zip(*sequences, strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return min(shared, *(len(ids) - 1 for ids in sequences))


def encode_list(
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    answers: Sequence[str],
    template: str = "openchat",
) -> tuple[list[int], list[list[int]]]:
    """Ids of a Nectar prompt and of each answer behind it, to its end of turn, in a chat template.

    The same as `encode_conversation` on the K conversations, cut where they begin to differ. In
    openchat the cut is behind "Assistant:", and it is done in one call: the answers are encoded as
    turns that follow each other, and cut apart at the ends of turn, which no text can contain.
    """
    asked = prompt_to_conversation(prompt)
    turns = [{"role": "assistant", "content": answer} for answer in answers]
    if template != "openchat":
        whole = [encode_conversation(tokenizer, [*asked, turn], template)[0] for turn in turns]
        shared = shared_tokens(whole)
        return whole[0][:shared], [ids[shared:] for ids in whole]
    ids = encode(tokenizer, [*asked, *turns], add_generation_prompt=True)
    eot = tokenizer.convert_tokens_to_ids(EOT)
    stops = [i + 1 for i, token in enumerate(ids) if token == eot]
    messages = [ids[start:stop] for start, stop in pairwise([0, *stops])]
    opening = ids[stops[-1] :]  # "GPT4 Correct Assistant:", with which every answer begins
    prompt_ids = [*chain.from_iterable(messages[: len(asked)]), *opening]
    return prompt_ids, [message[len(opening) :] for message in messages[len(asked) :]]


def encode_rows(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int = 1024,
    template: str = "openchat",
) -> tuple[list[PackedList], Truncation]:
    """Validated Nectar rows as packed lists, answers in the order of the row, best first.

    No prompt and answer together exceed `max_length` tokens: the prompt is cut at the left, down
    to half of `max_length`, then the answers at the right, which also takes their end of turn. The
    BOS of llama2_starling stays, as it does in `encode_conversation`.
    """
    bos = int(template == "llama2_starling")
    lists, prompts_cut, answers_cut, answers_seen = [], 0, 0, 0
    for row in rows:
        texts = [answer["answer"] for answer in row["answers"]]
        prompt, answers = encode_list(tokenizer, row["prompt"], texts, template)
        longest = max(map(len, answers))
        room = min(len(prompt), max(max_length - longest, max_length // 2))
        kept = prompt[:bos] + prompt[len(prompt) - room + bos :]
        lists.append(pack_list(kept, [ids[: max_length - room] for ids in answers]))
        prompts_cut += len(prompt) > room
        answers_cut += sum(len(ids) > max_length - room for ids in answers)
        answers_seen += len(answers)
    return lists, Truncation(prompts_cut, answers_cut, len(lists), answers_seen)


@torch.no_grad()
def score_lists(
    model: PreTrainedModel, lists: Sequence[PackedList], batch_size: int = 12
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
