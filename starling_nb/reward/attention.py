"""Attention over packed lists: each prompt-and-answer sequence by itself, not a row's T² pairs."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from starling_nb.reward.packing import block_mask
from starling_nb.training import fill_batches

SHARED_PREFIX = "shared_prefix"  # its name in transformers
KINDS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")  # trunks with which it is tested
TOKENS = 1024  # of one call, padding included; on a CPU fewer or more are slower


def attend_by_sequence(trunk: PreTrainedModel) -> None:
    """Give a trunk of KINDS this attention; leave any other, which may lack the ways for it, be.

    Rows that are not packed go through sdpa as before.
    """
    if trunk.config.model_type in KINDS:
        trunk.set_attn_implementation(SHARED_PREFIX)


def packable(trunk: PreTrainedModel, longest: int) -> bool:
    """Whether a trunk reads sequences of up to `longest` tokens in packed rows as it does alone.

    It must attend by sdpa or by this, take its positions from `position_ids` (rotary or learned),
    have so many, and let every token see all before it: no recurrent layers, no shorter window.
    """
    config = trunk.config
    window = getattr(config, "sliding_window", None) or longest
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config._attn_implementation in (SHARED_PREFIX, "sdpa")
        and (hasattr(trunk, "rotary_emb") or hasattr(trunk, "wpe"))
        and min(window, config.max_position_embeddings) >= longest
        and layers <= {"full_attention", "sliding_attention"}
    )


def packed_attention(trunk: PreTrainedModel, segments: Tensor) -> dict[str, Any]:
    """What a trunk that is `packable` is given for packed rows (B, T) in the place of a mask."""
    if trunk.config._attn_implementation != SHARED_PREFIX:
        return {"attention_mask": block_mask(segments)}
    groups, found = sequence_places(segments.cpu())
    return {
        "groups": [places.to(segments.device) for places in groups],
        "found": found.to(segments.device),
        "attention_mask": segments.new_ones(1, 1, 1, 1),  # not read; else one is made
    }


def sequence_places(segments: Tensor) -> tuple[list[Tensor], Tensor]:
    """Where in a batch of packed rows the tokens of its prompt-and-answer sequences stand.

    segments: (B, T) on the CPU, 0 on the prompt and on the padding, k on answer k. -> `groups`,
    indices (n, L) into the B·T tokens of n sequences of similar length, padded at the right with 0,
    n·L at most TOKENS or n = 1; and `found` (B·T,), for each token its index in the groups laid
    behind each other, 0 for padding.
    """
    width = segments.shape[1]
    sequences = []
    for first, row in enumerate(segments):
        places = first * width + torch.arange(width)
        prompt = places[: int((row > 0).nonzero()[0])]
        answers = (places[row == k] for k in range(1, int(row.max()) + 1))
        sequences += [torch.cat([prompt, answer]) for answer in answers]
    lengths = [len(places) for places in sequences]
    order = sorted(range(len(sequences)), key=lambda i: lengths[i])
    groups, found, done = [], torch.zeros(segments.numel(), dtype=torch.long), 0
    for group in fill_batches(order, lengths, len(sequences), TOKENS):
        groups.append(pad_sequence([sequences[i] for i in group], batch_first=True))
        for i in group:  # a prompt is in K of them, and the same in each
            found[sequences[i]] = done + torch.arange(lengths[i])
            done += groups[-1].shape[1]
    return groups, found


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    groups: list[Tensor] | None = None,
    found: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each prompt-and-answer sequence of packed rows; else plain sdpa.

    query, key, value: (B, heads, T, d). groups, found: as from `sequence_places`, and then no mask
    is read; None for rows that are not packed. -> (B, T, heads, d).
    The naive twin is sdpa under `packing.block_mask`, which computes all T² pairs of a row.
    """
    if groups is None or found is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    batch, heads, width, size = query.shape
    laid = torch.cat([places.flatten() for places in groups])
    sizes = [places.numel() for places in groups]
    parts = [
        states.to(value.dtype)  # under autocast, rotation has left query and key in float32
        .transpose(1, 2)
        .reshape(batch * width, -1)
        .index_select(0, laid)
        .split(sizes)
        for states in (query, key, value)
    ]
    seen = []
    for places, *states in zip(groups, *parts, strict=True):
        q, k, v = (x.view(*places.shape, -1, size).transpose(1, 2) for x in states)
        part, _ = sdpa_attention_forward(module, q, k, v, None, **options)  # (n, L, heads, d)
        seen.append(part.flatten(0, 1).flatten(1))
    return torch.cat(seen).index_select(0, found).view(batch, width, heads, size), None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionMaskInterface.register(SHARED_PREFIX, sdpa_mask)
