"""The two published readers of Starling's reward models, re-stated so that their defects show.

Both compute the head on every token, and then look in a row's ids for the first padding id: the
reward is read one place before it, or at the end of a row without one.

- The card of Starling-RM-34B takes 0 for the padding id. Where the text itself holds that id, the
  reward is read in the middle of the conversation. Under left padding, the first id is padding,
  and one place before it is place -1, the last: right by accident.
- The class of Starling-RM-7B-alpha takes the first id of its tokenised padding token. Llama's
  tokenizer puts BOS in front, so that this is BOS, which stands at place 0: the reward is read at
  place -1, of a padded row a padding token. It depends on the width of the batch, and agrees with
  itself only while all rows are padded to one width, which `published_rewards` does: 2 048.

Sources: the cards of Starling-RM-34B and Starling-RM-7B-alpha.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from starling_nb.reward.model import RewardModel

PAD_ID_34B = 0
Reader = Callable[[Tensor, Tensor], Tensor]  # input_ids, attention_mask (B, T) -> rewards (B,)


def pad_id_7b(tokenizer: PreTrainedTokenizerFast) -> int:
    """What the class of Starling-RM-7B-alpha takes for padding: BOS, under Llama's tokenizer."""
    return tokenizer(tokenizer.pad_token).input_ids[0]


@torch.no_grad()
def token_rewards(model: RewardModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The head on every token: input_ids, attention_mask (B, T) -> (B, T) float32.

    Positions are counted from the row's first place, padding or not, as the published classes do.
    """
    hidden = model.transformer(input_ids=input_ids, attention_mask=attention_mask)
    return model.v_head(hidden.last_hidden_state.to(model.v_head.weight.dtype))[..., 0].float()


def first_padding_reader(model: RewardModel, pad_id: int) -> Reader:
    """The published readers: pad_id is PAD_ID_34B, or `pad_id_7b` of the tokenizer.

    -> a function of input_ids and attention_mask (B, T) that returns rewards (B,) on the CPU.
    """

    def read(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        device = model.device
        rewards = token_rewards(model, input_ids.to(device), attention_mask.to(device)).cpu()
        scores = []
        for ids, row in zip(input_ids, rewards, strict=True):
            places = (ids == pad_id).nonzero()
            first = places[0].item() if len(places) else len(ids)
            scores.append(row[first - 1])
        return torch.stack(scores)

    return read


def published_rewards(
    read: Reader,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    padding: str = "max_length",
    max_length: int = 2048,
    batch_size: int = 1,
) -> Tensor:
    """The cards' `get_reward`: strings in a chat template -> rewards (N,).

    Cut at the left to `max_length` tokens, BOS added where the tokenizer adds one, and padded on
    the right to `max_length`, or with padding="longest" to the longest row of a batch.
    """
    tokenizer = copy.copy(tokenizer)
    tokenizer.truncation_side, tokenizer.padding_side = "left", "right"
    rewards = []
    for start in range(0, len(texts), batch_size):
        batch = tokenizer(
            list(texts[start : start + batch_size]),
            truncation=True,
            max_length=max_length,
            padding=padding,
            return_tensors="pt",
        )
        rewards.append(read(batch["input_ids"], batch["attention_mask"]))
    return torch.cat(rewards)
