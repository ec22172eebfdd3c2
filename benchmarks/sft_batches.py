"""Batches for fine-tuning: of similar length, as the package makes them; random; and packed.

A packed batch holds several demonstrations to a row, first-fit, each seeing only itself and
counting its positions from 0. Prints, of random and packed batches, the ratios of tokens processed
and of seconds to those of the package's, after checking that all three give the same loss.
"""

import time
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from starling_nb.data.world import make_world
from starling_nb.policy.base import ASSET, load_policy
from starling_nb.policy.sft import Example, collate, encode_demonstration, weighted_nll
from starling_nb.training import Batch, length_grouped_batches

ROWS, BATCH, REPEATS = 512, 32, 3
WIDTH = 128  # tokens of a packed row; 96 is as fast, 256 slower, for attention grows with it


def packed(examples: Sequence[Example], width: int = WIDTH) -> Batch:
    """Examples in rows of at most `width` tokens, first-fit, the longest first.

    -> input_ids, position_ids, weights (B, T), attention_mask (B, 1, T, T) bool: each example sees
    itself, causally; so does the padding behind them, for no row of the softmax may be empty.
    Rotary embeddings hear only differences of positions; restarts keep rows inside the context.
    """
    rows: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: -len(e.ids)):
        for row in rows:
            if sum(len(e.ids) for e in row) + len(example.ids) <= width:
                row.append(example)
                break
        else:
            rows.append([example])
    segments = pad_sequence(
        [torch.cat([torch.full_like(e.ids, i + 1) for i, e in enumerate(row)]) for row in rows],
        batch_first=True,
    )
    return {
        "input_ids": pad_sequence([torch.cat([e.ids for e in row]) for row in rows], True),
        "position_ids": pad_sequence(
            [torch.cat([torch.arange(len(e.ids)) for e in row]) for row in rows], True
        ),
        "attention_mask": (segments[:, :, None] == segments[:, None, :]).tril()[:, None],
        "weights": pad_sequence([torch.cat([e.weights for e in row]) for row in rows], True),
    }


def main() -> None:
    torch.set_num_threads(1)
    policy, tokenizer = load_policy(ASSET)
    rows = make_world(0).demonstrations(ROWS, seed=0)
    examples = [encode_demonstration(row, tokenizer, 0.1) for row in rows]
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(ROWS, generator=generator).split(BATCH)
    grouped = length_grouped_batches([len(e.ids) for e in examples], BATCH, generator)
    forms = {
        "similar length": [collate([examples[i] for i in batch]) for batch in grouped],
        "random": [collate([examples[i] for i in batch]) for batch in shuffled],
        "packed": [packed([examples[i] for i in batch]) for batch in shuffled],
    }
    seconds = {name: [float("inf")] * len(shuffled) for name in forms}  # the best of REPEATS
    losses = {name: [torch.tensor(0.0)] * len(shuffled) for name in forms}
    for i in list(range(len(shuffled))) * REPEATS:
        for name, batches in forms.items():  # in turn, so that other work on the machine hits all
            start = time.perf_counter()
            loss = weighted_nll(policy, batches[i])
            loss.backward()
            seconds[name][i] = min(seconds[name][i], time.perf_counter() - start)
            losses[name][i] = loss.detach() * batches[i]["weights"].sum()
    for name in forms:
        torch.testing.assert_close(
            sum(losses[name]), sum(losses["similar length"]), rtol=1e-5, atol=0
        )
    tokens = {name: sum(b["input_ids"].numel() for b in batches) for name, batches in forms.items()}
    useful = sum(len(e.ids) for e in examples)
    print(f"{ROWS} demonstrations in batches of {BATCH}, {torch.get_num_threads()} thread")
    print(f"tokens with padding / without, similar length: {tokens['similar length'] / useful:.2f}")
    for name in ("random", "packed"):
        print(f"tokens, {name} / similar length:  {tokens[name] / tokens['similar length']:.2f}")
        ratio = sum(seconds[name]) / sum(seconds["similar length"])
        print(f"seconds, {name} / similar length: {ratio:.2f}")


if __name__ == "__main__":
    main()
