"""Miniature reward models and tokenizers in the shapes of the released ones, for several tests.

The classes are re-created from what the cards of Starling-RM-34B and Starling-RM-7B-alpha say.
"""

import copy
from functools import cache

import torch
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    PreTrainedTokenizerFast,
)

from starling_nb.data.chat import mistral_tokenizer


class LlamaForSequenceClassification(LlamaPreTrainedModel):
    """The class on the card of Starling-RM-34B."""

    def __init__(self, config):
        super().__init__(config)
        self.transformer = LlamaModel(config)
        self.v_head = nn.Linear(config.hidden_size, 1, bias=False)
        self.PAD_ID = 0
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None):
        hidden = self.transformer(input_ids, attention_mask=attention_mask)[0]
        rewards = self.v_head(hidden).squeeze(-1)
        return torch.stack([rewards[i, end(row, 0) - 1] for i, row in enumerate(input_ids)])


class GPTRewardModel(nn.Module):
    """The class on the card of Starling-RM-7B-alpha, around a given language model."""

    def __init__(self, model, pad_id):
        super().__init__()
        self.config = model.config
        self.model = model
        self.transformer = model.model
        self.v_head = nn.Linear(model.config.hidden_size, 1, bias=False)
        self.PAD_ID = pad_id

    def forward(self, input_ids=None, attention_mask=None):
        hidden = self.transformer(input_ids, attention_mask=attention_mask)[0]
        rewards = self.v_head(hidden).squeeze(-1)
        ends = [end(row, self.PAD_ID) for row in input_ids]
        return torch.stack([rewards[i, stop - 1] for i, stop in enumerate(ends)])


def end(ids, pad_id):
    """Where the first padding id stands, or the row's length."""
    places = (ids == pad_id).nonzero()
    return places[0].item() if len(places) else len(ids)


def llama_config(vocab_size=300, **changes):
    """A Llama of two layers and 32 dimensions; bos 1, eos 2 and no padding id, as Llama-2's."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(vocab_size=vocab_size, initializer_range=0.2, **sizes, **heads, **changes)


def card_34b(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(llama_config(**changes)).eval()


def card_7b(seed=0, **changes):
    torch.manual_seed(seed)
    return GPTRewardModel(LlamaForCausalLM(llama_config(**changes)).eval(), pad_id=1).eval()


@cache
def llama_tokenizer(prepend_scheme="always"):
    """Stands for Llama-2's and Yi's tokenizers: sentencepiece words, <unk> for padding, ChatML's
    tokens. prepend_scheme is what the three ways of writing such a tokenizer differ in."""
    rust = Tokenizer.from_str(mistral_tokenizer().backend_tokenizer.to_str())
    chatml = ("<|im_start|>", "<|im_end|>")
    rust.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in chatml])
    rust.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prepend_scheme, split=False)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=rust, **names)


def without_bos(tokenizer):
    """As Yi's, which adds no BOS."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer
