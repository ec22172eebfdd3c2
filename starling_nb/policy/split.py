"""What of a policy learns: all of it, its last blocks above a shared trunk, or adapters."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from starling_nb.policy.rollout import decode, response_logprobs
from starling_nb.reward.train import with_adapters

KINDS = ("llama", "mistral", "qwen2", "qwen3")  # blocks in a row, then a norm; rotary positions


@dataclass(frozen=True)
class LearningPart:
    """`actor` learns, above `trunk` where there is one; the reference stands still."""

    actor: PreTrainedModel
    trunk: nn.Module | None
    reference_logprobs: Callable[..., Tensor]  # arguments of `response_logprobs` -> (B, R)


@contextmanager
def learning_part(
    policy: PreTrainedModel,
    reference: PreTrainedModel | None,
    last_layers: int | None,
    lora: LoraConfig | None,
    seed: int,
) -> Iterator[LearningPart]:
    """Give the part of a policy that learns; afterwards the policy has its own form again.

    Without a reference it is the policy as it is now: a copy, of the top alone where only that
    learns, or the policy with its adapters off. Adapters are merged at the end, and dropped where
    an error ends the run. What was trainable is so again.
    Raises ValueError for `last_layers` with lora or with a reference, for adapters that train
    biases, which cannot be switched off, and the causes of `split_policy`.
    """
    if last_layers is not None and (lora is not None or reference is not None):
        raise ValueError("last_layers: expected neither lora nor a reference of your own with it")
    if lora is not None and lora.bias != "none":
        raise ValueError(f"lora: expected bias 'none', found {lora.bias!r}")
    trainable = [p for p in policy.parameters() if p.requires_grad]
    trunk: nn.Module | None = None
    actor, adapters = policy, None
    try:
        if last_layers is not None:
            trunk, actor, reference = split_policy(policy, last_layers)
        elif lora is not None:
            with torch.random.fork_rng():
                adapters = cast(PeftModel, with_adapters(policy, lora, seed)).eval()
        if reference is None and adapters is None:
            reference = copy.deepcopy(policy)
        if reference is not None:
            frozen = reference.to(policy.device).eval()  # type: ignore[arg-type]
            logprobs = partial(response_logprobs, frozen)
        else:
            logprobs = partial(logprobs_without, adapters)
        yield LearningPart(actor, trunk, logprobs)
        if adapters is not None:
            adapters.merge_adapter()
    finally:
        if adapters is not None:
            adapters.unload()
        for parameter in trainable:
            parameter.requires_grad_(True)


def logprobs_without(adapters: Any, *inputs: Tensor) -> Tensor:
    """Return `response_logprobs` of the model below the adapters."""
    with adapters.disable_adapter():
        return response_logprobs(adapters.get_base_model(), *inputs)


def split_policy(
    policy: PreTrainedModel, last_layers: int
) -> tuple[nn.Module, PreTrainedModel, PreTrainedModel]:
    """Return the trunk and the top of a policy, which share its weights, and a copy of the top.

    The trunk is a decoder without the last blocks and without the final norm; the top is a causal
    language model of those blocks, the norm and the head, which reads the trunk's states as
    embeddings: top(trunk(ids)) = policy(ids). All weights are frozen but those of the blocks and
    the norm of the top. The copy, which serves as reference, has its own blocks and norm.
    Raises ValueError for an architecture other than KINDS, and for a number of layers that is not
    between 1 and the policy's.
    """
    kind, depth = policy.config.model_type, policy.config.num_hidden_layers
    if kind not in KINDS:
        raise ValueError(f"last_layers: expected one of {', '.join(KINDS)}, found {kind}")
    if not 1 <= last_layers <= depth:
        raise ValueError(f"last_layers: expected 1 to {depth} (the policy's), found {last_layers}")
    decoder: Any = policy.get_decoder()
    trunk = part(decoder, slice(depth - last_layers), nn.Identity())
    top = shallow(policy)
    top.model = part(decoder, slice(depth - last_layers, depth), decoder.norm)
    top.config = top.model.config
    policy.requires_grad_(False)
    for module in (top.model.layers, decoder.norm):
        module.requires_grad_(True)
    frozen = policy.get_input_embeddings(), policy.get_output_embeddings()
    reference = copy.deepcopy(top, {id(module): module for module in frozen})
    return trunk, top, reference.requires_grad_(False)


def part(decoder: Any, blocks: slice, norm: nn.Module) -> Any:
    """Return a decoder of these blocks and this norm that shares everything else."""
    piece = shallow(decoder)
    piece.layers, piece.norm = decoder.layers[blocks], norm
    piece.config = copy.copy(decoder.config)
    piece.config.num_hidden_layers = len(piece.layers)
    if kinds := getattr(decoder.config, "layer_types", None):  # full or sliding attention, by block
        piece.config.layer_types = kinds[blocks]
    return piece


def shallow(module: Any) -> Any:
    """Return a copy of a module that shares its parts; replacing one leaves the original alone."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def trunk_features(
    trunk: nn.Module,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    response_ids: Tensor,
    action_mask: Tensor,
) -> Tensor:
    """Return the states (B, P + R, H) that the top reads, of prompts and responses."""
    mask = torch.cat([prompt_mask, action_mask], dim=1)
    return decode(trunk, torch.cat([prompt_ids, response_ids], dim=1), mask)
