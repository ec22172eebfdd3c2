"""The reward model: a policy's trunk, one linear head, a score per conversation."""

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from starling_nb.data.chat import Conversation
from starling_nb.reward.attention import SHARED_PREFIX, attend_by_sequence, sequence_places
from starling_nb.reward.checkpoints import checkpoint_folder, find_layout, own_names, read_weights
from starling_nb.reward.packing import block_mask, pack_list, score_lists, shared_tokens
from starling_nb.reward.templates import TEMPLATES, encode_conversation
from starling_nb.training import MAX_TOKENS, fill_batches

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
MAX_LENGTH = 2048  # tokens of a conversation that the released reward models read

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
    of the released Starling-RM-34B. `config` is the trunk's own with two more fields:
    `reward_template`, the chat template in which conversations are scored (`templates`), and
    `reward_max_length`, the tokens of a conversation that are read, counted from its end.
    Source: Starling-RM cards; Ziegler et al. 2019 for the head's scale, N(0, 1/(h+1)).
    """

    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _supports_sdpa = True

    def __init__(self, config):
        if not hasattr(config, "reward_template"):
            config.reward_template = "openchat"
        if not hasattr(config, "reward_max_length"):
            longest = getattr(config, "max_position_embeddings", None) or MAX_LENGTH
            config.reward_max_length = min(MAX_LENGTH, longest)
        super().__init__(config)
        self.transformer = AutoModel.from_config(copy.deepcopy(config))
        if self.transformer.config._attn_implementation == "sdpa":
            attend_by_sequence(self.transformer)
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
        attend_by_sequence(model.transformer)
        generator = torch.Generator().manual_seed(seed)
        head = torch.randn(model.v_head.weight.shape, generator=generator)
        model.v_head.weight.data.copy_(head / (config.hidden_size + 1) ** 0.5)
        model.v_head.to(policy.device)
        return model

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source, *, config=None, template: str | None = None, **kwargs
    ) -> "RewardModel":
        """Load a checkpoint of any layout in `starling_nb.reward.checkpoints`.

        source: a folder, or a Hub repository, whose `revision`, `token`, `cache_dir` and
        `local_files_only` may be given.  config: instead of the checkpoint's config.json.
        template: a name in `templates.TEMPLATES`, instead of the checkpoint's own or, in a released
        layout, the released one's; unset for a foreign classifier, which then scores no
        conversations.  Further arguments (dtype, device_map) as in transformers.
        Raises FileNotFoundError for absent files, ConnectionError when the Hub fails, and
        ValueError naming the weights that are missing, unknown or of another shape.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = checkpoint_folder(source, **hub)
        if config is None and not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder}: expected config.json; give config=AutoConfig.from_pretrained(...) of "
                "the checkpoint's base model"
            )
        config = copy.deepcopy(
            config or AutoConfig.from_pretrained(folder, trust_remote_code=False)
        )
        with torch.device("meta"):
            blank = cls(copy.deepcopy(config))
        weights = read_weights(folder)
        layout = find_layout(weights, f"{blank.transformer.base_model_prefix}.")
        ours = cls.__name__ in (config.architectures or ())  # as such, openchat
        if template is not None:
            config.reward_template = template
        elif not ours and not hasattr(config, "reward_template"):
            config.reward_template = layout.template
        weights = own_names(weights, layout, blank, source)
        return super().from_pretrained(None, config=config, state_dict=weights, **kwargs)

    def save_pretrained(self, save_directory, *args, format: str = "starling", **kwargs) -> None:
        """Write config.json and safetensors; `from_pretrained` reads either format back.

        format: "starling", the layout of the released Starling-RM-34B, which its card's class
        reads; or "sequence_classification", which AutoModelForSequenceClassification reads. That
        one takes the last token whose id is not config.pad_token_id for the end of a sequence, so
        that id must be set, and must not be the one that ends an answer.
        Raises ValueError for another format, and where the second one cannot be read back.
        """
        if format == "starling":
            super().save_pretrained(save_directory, *args, **kwargs)
        elif format == "sequence_classification":
            self._classifier().save_pretrained(save_directory, *args, **kwargs)
        else:
            raise ValueError(
                f"format: expected 'starling' or 'sequence_classification', found {format!r}"
            )

    def _classifier(self) -> PreTrainedModel:
        """transformers' one-label classifier around the same trunk and head."""
        config = copy.deepcopy(self.config)
        config.num_labels = 1
        name = type(self.transformer).__name__
        if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            raise ValueError(f"format: transformers has no sequence classifier around {name}")
        ends = config.eos_token_id
        if config.pad_token_id in (None, *(ends if isinstance(ends, list) else [ends])):
            raise ValueError(
                "config.pad_token_id: expected an id that does not end an answer, found "
                f"{config.pad_token_id}; set it to the tokenizer's padding id before saving"
            )
        kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
        with torch.device("meta"):
            classifier = kind(config)
        setattr(classifier, kind.base_model_prefix, self.transformer)
        classifier.score = self.v_head
        return classifier

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        ends: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Score the sequences of a batch, in float32.

        input_ids, position_ids: (B, T).  attention_mask: (B, T) of 0 and 1, padded on either side.
        -> (B,).
        Of packed rows instead of a mask `segments` (B, T), 0 on the prompt and k on answer k, with
        their `position_ids` and `ends` (B, K), the last token of each answer. -> (B, K).  (Or, by
        sdpa, the mask (B, 1, T, T) of `packing.block_mask`, the naive twin.)
        The head sees one vector a score.  Raises ValueError when one of those is missing, and for
        packed rows in a trunk that does not attend by sdpa.
        """
        packed: dict[str, Any] = {}
        if segments is not None:
            if attention_mask is not None or position_ids is None or ends is None:
                raise ValueError(
                    "segments: expected with position_ids and ends, and without a mask"
                )
            own_attention = self.transformer.config._attn_implementation
            if own_attention == SHARED_PREFIX:
                groups, found = sequence_places(segments.cpu())
                groups = [places.to(segments.device) for places in groups]
                packed = {"groups": groups, "found": found.to(segments.device)}
                attention_mask = input_ids.new_ones(1, 1, 1, 1)  # not read; else one is made
            elif own_attention == "sdpa":
                attention_mask = block_mask(segments)
            else:
                raise ValueError(
                    "segments: packed rows need attention by sdpa, the trunk's is "
                    f"{own_attention!r}; load it without attn_implementation"
                )
        if attention_mask is None:
            raise ValueError("attention_mask: expected (B, T), or the segments of packed rows")
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        hidden = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **packed,
        ).last_hidden_state  # (B, T, h)
        last = last_attended(attention_mask)[:, None] if ends is None else ends  # (B, K)
        rows = torch.arange(len(hidden), device=hidden.device)[:, None]
        with torch.autocast(hidden.device.type, enabled=False):
            scores = self.v_head(hidden[rows, last].to(self.v_head.weight.dtype))[..., 0].float()
        return scores[:, 0] if ends is None else scores


def encode_conversations(
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    max_length: int,
    template: str = "openchat",
) -> tuple[list[list[int]], Tensor]:
    """Token ids of conversations that end with an answer, each cut at the left to `max_length`.

    -> N lists of ids, truncated (N,) bool.  The end, where the score is read, is always kept.
    Raises ValueError as `templates.encode_conversation` does.
    """
    encoded = [encode_conversation(tokenizer, c, template, max_length) for c in conversations]
    truncated = torch.tensor([cut for _, cut in encoded], dtype=torch.bool)
    return [ids for ids, _ in encoded], truncated


def own_template(model: RewardModel) -> str:
    """The chat template that the checkpoint carries; ValueError where it carries none."""
    template = model.config.reward_template
    if template not in TEMPLATES:
        raise ValueError(
            "config.reward_template: the checkpoint does not say in which chat template it reads "
            f"conversations (found {template!r}); load it with template= one of "
            f"{', '.join(TEMPLATES)}"
        )
    return template


def share_prefixes(
    sequences: Sequence[Sequence[int]], groups: Sequence[Hashable]
) -> list[tuple[int, list[int]]]:
    """Which sequences are computed in one row, and how many first tokens they share there.

    groups: (N,), equal for sequences that may share their beginning. -> (P, indices) for each row,
    every index once.  The sequences of a row have at most MAX_TOKENS tokens together, since the
    attention sees each whole; or there is one.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    rows: list[tuple[int, list[int]]] = []
    for indices in members.values():
        shared = shared_tokens([sequences[i] for i in indices])
        tokens = 0  # of the row's sequences
        for i in indices:
            size = len(sequences[i])
            if shared and tokens and tokens + size <= MAX_TOKENS:
                rows[-1][1].append(i)
                tokens += size
            else:
                rows.append((shared, [i]))
                tokens = size
    return rows


def can_pack(model: RewardModel, longest: int) -> bool:
    """Whether sequences of up to `longest` tokens score the same in packed rows as alone.

    The trunk must take its positions from `position_ids` (rotary or learned), and let every token
    see all before it: no recurrent layers, no window shorter than a sequence.
    """
    config = model.config
    window = getattr(config, "sliding_window", None) or longest
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    positions = hasattr(model.transformer, "rotary_emb") or hasattr(model.transformer, "wpe")
    return positions and window >= longest and layers <= {"full_attention", "sliding_attention"}


@torch.no_grad()
def score_sequences(
    model: RewardModel, sequences: Sequence[Sequence[int]], batch_size: int = 64
) -> Tensor:
    """Scores of token sequences, grouped by length, returned in the order given.

    sequences: N lists of ids -> (N,) float32 on the CPU. A batch has at most MAX_TOKENS tokens,
    padding included, or one sequence.
    """
    was_training = model.training
    model.eval()
    scores = torch.empty(len(sequences))
    lengths = [len(ids) for ids in sequences]
    order = sorted(range(len(sequences)), key=lambda i: lengths[i])
    for batch in fill_batches(order, lengths, batch_size):
        ids = [torch.tensor(sequences[i]) for i in batch]
        input_ids = pad_sequence(ids, batch_first=True).to(model.device)
        attention_mask = pad_sequence([torch.ones_like(x) for x in ids], batch_first=True)
        scores[batch] = model(input_ids, attention_mask.to(model.device)).cpu()
    model.train(was_training)
    return scores


def score_sharing(
    model: RewardModel,
    sequences: Sequence[Sequence[int]],
    groups: Sequence[Hashable],
    batch_size: int = 64,
) -> Tensor:
    """`score_sequences`, its naive twin, with what a group's sequences share computed once.

    groups: (N,), equal for the answers to one prompt; rows as in `share_prefixes`. Nothing is
    shared in a trunk that would not give the same scores, or that would compute a row's T² pairs.
    """
    by_sequence = model.transformer.config._attn_implementation == SHARED_PREFIX
    if not by_sequence or not can_pack(model, max(map(len, sequences), default=0)):
        return score_sequences(model, sequences, batch_size)
    rows = share_prefixes(sequences, groups)
    alone = [indices[0] for _, indices in rows if len(indices) == 1]
    packed = [(shared, indices) for shared, indices in rows if len(indices) > 1]
    scores = torch.empty(len(sequences))
    scores[alone] = score_sequences(model, [sequences[i] for i in alone], batch_size)
    if packed:
        lists = [
            pack_list(sequences[indices[0]][:shared], [sequences[i][shared:] for i in indices])
            for shared, indices in packed
        ]
        values, present = score_lists(model, lists, batch_size)
        scores[[i for _, indices in packed for i in indices]] = values[present]
    return scores


def score_with_truncation(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    *,
    batch_size: int = 64,
    max_length: int | None = None,
    share_prompts: bool = True,
) -> tuple[Tensor, Tensor]:
    """Reward of N conversations that end with the assistant's answer, in the checkpoint's template.

    -> scores (N,) float32, truncated (N,) bool, on the CPU: those longer than `max_length` tokens,
    by default config.reward_max_length, lose their beginning.  The messages before the answer are
    computed once where several conversations have the same, if `share_prompts`.
    Raises ValueError for a checkpoint whose template is not known, and as `encode_conversations`.
    """
    template = own_template(model)
    limit = max_length or model.config.reward_max_length
    sequences, truncated = encode_conversations(tokenizer, conversations, limit, template)
    if not share_prompts:
        return score_sequences(model, sequences, batch_size), truncated
    groups = [
        i if cut else json.dumps(conversation[:-1])
        for i, (cut, conversation) in enumerate(zip(truncated.tolist(), conversations, strict=True))
    ]
    return score_sharing(model, sequences, groups, batch_size), truncated


def score(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerFast,
    conversations: Sequence[Conversation],
    **options: Any,
) -> Tensor:
    """Reward of N conversations that end with the assistant's answer -> (N,) float32 on the CPU.

    Options and errors as in `score_with_truncation`, of which it is the first value.
    """
    return score_with_truncation(model, tokenizer, conversations, **options)[0]


def reward_function(
    model: RewardModel, tokenizer: PreTrainedTokenizerFast, **options: Any
) -> RewardFn:
    """The model as a function of conversations, what policy tuning takes; options as in `score`.

    Prompts are not shared unless asked for: a rollout's are short, and seldom repeat.
    """
    options = {"share_prompts": False} | options
    return lambda conversations: score(model, tokenizer, conversations, **options)


def shuffled(reward_fn: RewardFn, seed: int) -> RewardFn:
    """The reward function with its scores dealt out anew within each batch: a control.

    Tuning sees the same numbers, without what they say about the answers.
    """
    generator = torch.Generator().manual_seed(seed)

    def scores(conversations: list[Conversation]) -> Tensor:
        return reward_fn(conversations)[torch.randperm(len(conversations), generator=generator)]

    return scores
