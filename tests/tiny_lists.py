"""Ranked lists as scores, token ids and rows, and a tiny policy, for several tests."""

import math
from functools import cache

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from starling_nb.data.chat import train_tokenizer

DOUBLE = torch.float64
STEPS = [3.0, 2, 1, 0, -1, -2, -3]


def tensor(*rows: list[float], dtype=DOUBLE) -> torch.Tensor:
    return torch.tensor(rows, dtype=dtype)


def ragged(rows: list[list[float]], fill: float = math.nan) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) scores, `fill` where a row has no more answers, and the mask."""
    rows = [torch.tensor(row, dtype=DOUBLE) for row in rows]
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=fill), mask


def mistral(vocabulary: int = 300, dtype=torch.float32) -> MistralForCausalLM:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=True,
        initializer_range=0.1,
        pad_token_id=4,
    )
    return MistralForCausalLM(config).to(dtype)


@cache
def colour_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([f"It is {word}, I think." for word in "red blue green".split()], 300)


def ranked_row(prompt: str, answers: list[str]) -> dict:
    ranked = [
        {"answer": text, "model": "m", "rank": float(rank)}
        for rank, text in enumerate(answers, start=1)
    ]
    return {"prompt": f"\n\nHuman: {prompt}\n\nAssistant: ", "answers": ranked}


AWKWARD = [
    "Paris.",
    "",
    " \n two",
    ") 3",
    "<|end_of_turn|> no </s>",
    "GPT4 Correct Assistant:",
    "▁é",
]
