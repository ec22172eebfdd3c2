"""A policy cut in two: its halves together are the policy, and only the top learns."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from starling_nb.policy.rollout import response_logprobs
from starling_nb.policy.split import KINDS, split_policy, trunk_features

SIZES = {
    "vocab_size": 30,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
POLICIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
}


def tiny(kind):
    torch.manual_seed(0)
    return POLICIES[kind]().double().eval()


def inputs():
    """Left-padded prompts and right-padded responses: (3, 4) and (3, 5)."""
    generator = torch.Generator().manual_seed(1)
    prompts, responses = (torch.randint(30, (3, n), generator=generator) for n in (4, 5))
    prompt_mask = torch.tensor([[False, False, True, True], [True] * 4, [False] + [True] * 3])
    action_mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]])
    return prompts, prompt_mask, responses, action_mask


def test_every_kind_that_is_named_is_tested():
    assert set(POLICIES) == set(KINDS)


@pytest.mark.parametrize("last_layers", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_halves_are_the_policy(kind, last_layers):
    policy, batch = tiny(kind), inputs()
    expected = response_logprobs(policy, *batch)
    trunk, top, reference = split_policy(policy, last_layers)
    features = trunk_features(trunk, *batch)
    for half in (top, reference):
        torch.testing.assert_close(response_logprobs(half, *batch, features), expected)
    torch.testing.assert_close(response_logprobs(policy, *batch), expected)
    assert len(policy.model.layers) == policy.config.num_hidden_layers == 3


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
@pytest.mark.parametrize("last_layers", [1, 2])
def test_each_half_keeps_the_attention_of_its_blocks(kind, last_layers):
    """The first blocks see all, the last three tokens only."""
    torch.manual_seed(0)
    config, model = {
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[kind]
    mixed = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    policy, batch = model(config(**SIZES, **mixed)).double().eval(), inputs()
    assert len(set(policy.config.layer_types)) == 2
    expected = response_logprobs(policy, *batch)
    trunk, top, reference = split_policy(policy, last_layers)
    for half in (top, reference):
        found = response_logprobs(half, *batch, trunk_features(trunk, *batch))
        torch.testing.assert_close(found, expected)


def test_only_blocks_and_norm_of_the_top_learn_and_the_policy_learns_with_them():
    policy, batch = tiny("mistral"), inputs()
    trunk, top, reference = split_policy(policy, 1)
    before = response_logprobs(reference, *batch, trunk_features(trunk, *batch))
    learns = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learns == {n for n, _ in policy.named_parameters() if ".layers.2." in n or ".norm." in n}
    with torch.no_grad():
        for parameter in (p for p in top.parameters() if p.requires_grad):
            parameter.mul_(1.5)
    after = response_logprobs(policy, *batch)
    assert (after - before).abs().max() > 0.1
    features = trunk_features(trunk, *batch)
    torch.testing.assert_close(response_logprobs(top, *batch, features), after)
    torch.testing.assert_close(response_logprobs(reference, *batch, features), before)
    assert not any(p.requires_grad for p in reference.parameters())


def test_the_reference_copies_neither_embeddings_nor_head():
    policy = tiny("llama")
    _, _, reference = split_policy(policy, 2)
    assert reference.lm_head.weight is policy.lm_head.weight
    assert reference.model.embed_tokens.weight is policy.model.embed_tokens.weight
    assert len(reference.model.layers) == 2


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match=r"last_layers: expected 1 to 3 .*, found 4"):
        split_policy(tiny("llama"), 4)
    with pytest.raises(ValueError, match=r"last_layers: expected 1 to 3 .*, found 0"):
        split_policy(tiny("llama"), 0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match=r"expected one of llama, mistral, .*, found gpt2"):
        split_policy(gpt2, 1)
