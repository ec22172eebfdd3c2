"""Scoring conversations: as the package does it, and by the recipe of the published cards.

The recipe pads every conversation to 2 048 tokens and scores it alone. Lists have Nectar's shape
(a prompt of about 160 tokens, seven answers, log-normal around 150), their texts are the synthetic
world's; the model has the shipped nano base's weights and a random head. Prints the ratios of
tokens processed, with padding, and of seconds to those of the package, which groups conversations
by length, and computes a list's prompt once where asked, after checking that the scores are equal.
"""

import time
from collections.abc import Callable
from itertools import chain, islice
from statistics import median

import torch
from torch import Tensor

from starling_nb.data.chat import Conversation
from starling_nb.data.world import make_world
from starling_nb.policy.base import ASSET, load_policy
from starling_nb.reward.model import RewardModel, score
from starling_nb.reward.published import first_padding_reader, published_rewards
from starling_nb.reward.templates import template_text

LISTS, REPEATS = 4, 3
PROMPT, ANSWER, SPREAD, K, LONGEST = 160, 150, 0.6, 7, 1024  # tokens; SPREAD: sd of log length


def nectar_like(tokenizer) -> list[Conversation]:
    """Seven conversations a list, cut out of one stream of tokens."""
    generator = torch.Generator().manual_seed(0)
    documents = make_world(0).documents(10_000, seed=0)
    stream = chain.from_iterable(
        tokenizer(text, add_special_tokens=False).input_ids for text in documents
    )

    def text(tokens: int) -> str:
        return tokenizer.decode(list(islice(stream, tokens))).strip()

    conversations = []
    for _ in range(LISTS):
        asked = {"role": "user", "content": text(PROMPT)}
        lengths = ANSWER * torch.exp(SPREAD * torch.randn(K, generator=generator))
        for tokens in lengths.round().int().clamp(1, LONGEST - PROMPT).tolist():
            conversations.append([asked, {"role": "assistant", "content": text(tokens)}])
    return conversations


def main() -> None:
    policy, tokenizer = load_policy(ASSET)
    conversations = nectar_like(tokenizer)
    model = RewardModel.from_policy(policy)
    processed = 0

    def count(module, args, inputs) -> None:
        nonlocal processed
        processed += inputs["input_ids"].numel()

    model.transformer.register_forward_pre_hook(count, with_kwargs=True)

    def by_recipe() -> Tensor:
        """The 34B card's, right where no text holds the padding id, as here."""
        read = first_padding_reader(model, tokenizer.pad_token_id)
        texts = [template_text(conversation, "openchat") for conversation in conversations]
        return published_rewards(read, tokenizer, texts)

    ways: dict[str, Callable[[], Tensor]] = {
        "by length": lambda: score(model, tokenizer, conversations, share_prompts=False),
        "by length, prompts shared": lambda: score(model, tokenizer, conversations),
        "recipe": by_recipe,
    }
    scores, tokens = {}, {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():  # in turn: other work on the machine hits all
            processed, start = 0, time.perf_counter()
            scores[name] = way()
            seconds[name].append(time.perf_counter() - start)
            tokens[name] = processed
    for name in ways:
        torch.testing.assert_close(scores[name], scores["recipe"], rtol=1e-4, atol=1e-4)

    print(f"{len(conversations)} conversations, {torch.get_num_threads()} threads")
    for name in [*ways][:-1]:
        ratio = median(seconds["recipe"]) / median(seconds[name])
        print(f"tokens, recipe / {name}:  {tokens['recipe'] / tokens[name]:.2f}")
        print(f"seconds, recipe / {name}: {ratio:.2f}")


if __name__ == "__main__":
    main()
