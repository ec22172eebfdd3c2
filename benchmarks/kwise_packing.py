"""A K-wise training step with the prompt shared, against seven separate sequences a list.

Prints the ratio of tokens processed beside the ratio of seconds, after checking that both ways give
the same loss. Lists come from the synthetic world, the model is the shipped nano base.
"""

import time

import torch
from torch.nn.utils.rnn import pad_sequence

from starling_nb.data.world import make_world
from starling_nb.policy.base import ASSET, load_policy
from starling_nb.reward.kwise import plackett_luce_nll
from starling_nb.reward.model import RewardModel
from starling_nb.reward.packing import collate, encode_rows

LISTS, BATCH, REPEATS = 96, 12, 3


def separate(packed):
    """The K sequences (prompt and answer) of a packed list."""
    prompt = packed.input_ids[packed.segments == 0]
    answers = [packed.input_ids[packed.segments == k + 1] for k in range(len(packed.ends))]
    return [torch.cat([prompt, answer]) for answer in answers]


def packed_step(model, lists):
    """One forward and backward pass over packed lists: loss, and tokens with padding."""
    batch = collate(lists)
    mask = batch.pop("mask")
    loss = plackett_luce_nll(model(**batch), mask).mean()
    loss.backward()
    return loss.item(), batch["input_ids"].numel()


def separate_step(model, lists):
    """The same over seven padded sequences a list."""
    rows = [row for packed in lists for row in separate(packed)]
    ids = pad_sequence(rows, batch_first=True)
    attention = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    scores = model(input_ids=ids, attention_mask=attention).view(len(lists), -1)
    loss = plackett_luce_nll(scores).mean()
    loss.backward()
    return loss.item(), ids.numel()


def main() -> None:
    torch.manual_seed(0)
    policy, tokenizer = load_policy(ASSET)
    lists, _ = encode_rows(make_world(0).rankings(LISTS, seed=0), tokenizer)
    lists.sort(key=lambda packed: len(packed.input_ids))
    batches = [lists[i : i + BATCH] for i in range(0, LISTS, BATCH)]
    model = RewardModel.from_policy(policy)
    seconds, tokens, losses = {}, {}, {}
    for step in (packed_step, separate_step):
        step(model, batches[0])  # warm up
        start = time.perf_counter()
        for _ in range(REPEATS):
            results = [step(model, batch) for batch in batches]
        seconds[step] = time.perf_counter() - start
        losses[step], counts = zip(*results, strict=True)
        tokens[step] = sum(counts)
    torch.testing.assert_close(
        torch.tensor(losses[packed_step]), torch.tensor(losses[separate_step]), rtol=1e-4, atol=0
    )
    print(f"{LISTS} lists of seven, batches of {BATCH}, {torch.get_num_threads()} threads")
    print(f"tokens, separate / packed:  {tokens[separate_step] / tokens[packed_step]:.2f}")
    print(f"seconds, separate / packed: {seconds[separate_step] / seconds[packed_step]:.2f}")


if __name__ == "__main__":
    main()
