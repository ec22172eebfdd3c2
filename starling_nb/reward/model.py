"""The reward model: a policy's trunk, one linear head, a score per conversation."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import Conversation, encode

RewardFn = Callable[[list[Conversation]], Tensor]


def last_attended(attention_mask: Tensor) -> Tensor:
    """Index of each row's last attended token, whichever side is padded.

    attention_mask: (B, T) of 0 and 1 -> (B,) int64.
    """
    positions = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return (attention_mask * positions).argmax(-1)


class RewardModel(PreTrainedModel):
    """A causal trunk without its language-model head, and r = w · h at a sequence's last token.

    Every block and the final norm are kept; `v_head` has no bias, since the likelihood of a
    ranking does not see one. The parameter names, `transformer.*` and `v_head.weight`, are those
    of the released Starling-RM-34B; `config` is the trunk's own.
    Source: Starling-RM cards; Ziegler et al. 2019 for the head's scale, N(0, 1/(h+1)).
    """

    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.transformer = AutoModel.from_config(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False, dtype=torch.float32)
        self.post_init()

    def _init_weights(self, module):
        if module is self.v_head:
            module.weight.normal_(0.0, (module.in_features + 1) ** -0.5)

    @classmethod
    def from_policy(cls, policy: PreTrainedModel, seed: int = 0) -> "RewardModel":
        """A reward model on a trainable copy of the policy's trunk, its head drawn from `seed`."""
        config = copy.deepcopy(policy.config)
        config.use_cache = False
        model = cls(config)
        model.transformer = copy.deepcopy(policy.base_model).requires_grad_(True)
        generator = torch.Generator().manual_seed(seed)
        head = torch.randn(model.v_head.weight.shape, generator=generator)
        model.v_head.weight.data.copy_(head / (config.hidden_size + 1) ** 0.5)
        model.v_head.to(policy.device)
        return model

    @classmethod
    def from_pretrained(cls, path, **kwargs) -> "RewardModel":  # type: ignore[override]
        """Load what `save_pretrained` wrote: config.json and model.safetensors.

        Raises ValueError naming the weights that are missing, unknown or of another shape.
        """
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True}
        loaded: Any = super().from_pretrained(
            path, config=config, output_loading_info=True, **kwargs
        )
        model, report = loaded
        defects = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
        if defects:
            raise ValueError(f"{path}: expected exactly the weights of {cls.__name__}: {defects}")
        return model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Score the sequences of a batch, in float32.

        input_ids, position_ids: (B, T).  attention_mask: (B, T) of 0 and 1, padded on either side,
        or (B, 1, T, T) boolean, True where a row's token may look.  ends: (B, K), the last token of
        each of a row's K answers. -> (B,), or (B, K) with `ends`.
        A mask (B, 1, T, T) needs `position_ids` and `ends`.  The head sees B·K vectors, not B·T.
        """
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        hidden = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        ).last_hidden_state  # (B, T, h)
        last = last_attended(attention_mask)[:, None] if ends is None else ends  # (B, K)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.v_head(hidden[rows, last].to(self.v_head.weight.dtype))[..., 0].float()
        return scores[:, 0] if ends is None else scores


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation], max_length: int
) -> tuple[list[list[int]], Tensor]:
    """Token ids of conversations that end with an answer, each cut at the left to `max_length`.

    -> N lists of ids, truncated (N,) bool.  The end, where the score is read, is always kept.
    """
    sequences = [encode(tokenizer, c, add_generation_prompt=False) for c in conversations]
    truncated = torch.tensor([len(ids) > max_length for ids in sequences], dtype=torch.bool)
    return [ids[-max_length:] for ids in sequences], truncated


@torch.no_grad()
def score_sequences(
    model: RewardModel, sequences: Sequence[Sequence[int]], batch_size: int = 64
) -> Tensor:
    """Scores of token sequences, grouped by length, returned in the order given.

    sequences: N lists of ids -> (N,) float32 on the CPU.
    """
    was_training = model.training
    model.eval()
    scores = torch.empty(len(sequences))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    for batch in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
        ids = [torch.tensor(sequences[i]) for i in batch]
        input_ids = pad_sequence(ids, batch_first=True).to(model.device)
        attention_mask = pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
        scores[batch] = model(input_ids, attention_mask.to(model.device)).cpu()
    model.train(was_training)
    return scores


def score(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    *,
    batch_size: int = 64,
    max_length: int = 1024,
) -> Tensor:
    """Reward of N conversations that end with the assistant's answer -> (N,) float32 on the CPU.

    Conversations longer than `max_length` tokens lose their beginning; to learn which, call
    `encode_conversations` and `score_sequences`, the two steps of this function.
    """
    sequences, _ = encode_conversations(tokenizer, conversations, max_length)
    return score_sequences(model, sequences, batch_size)


def reward_function(
    model: RewardModel, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> RewardFn:
    """The model as a function of conversations, what policy tuning takes; options as in `score`."""
    return lambda conversations: score(model, tokenizer, conversations, **options)
