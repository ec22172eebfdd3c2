"""One iteration of policy tuning by part, as the package does it and written naively.

The SFT policy and the reward model of the course (built in the store named as the first argument,
"store" otherwise) answer 128 of the world's prompts. The naive way is the same algorithm as many
write it: `generate` until the last row ends, then one forward pass each for old log-probabilities,
reference and values, all rows padded to the widest, logits at every position. After checking that
both give the same log-probabilities, loss and gradient, it prints the seconds of each part, its
arithmetic rate as a share of that of a matrix product, and the naive way's seconds over ours;
then, where TRL is installed, those of an iteration of its RLOO. What an iteration costs by batch
and by length of the answers is the study `iteration_cost`.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from starling_nb.data.chat import encode
from starling_nb.policy import rollout as module
from starling_nb.policy.objectives import ppo_loss
from starling_nb.policy.rollout import (
    Rollout,
    action_logprobs,
    append_answers,
    position_ids,
    response_logprobs,
    response_states,
    rollout,
    row_seeds,
)
from starling_nb.reward.model import reward_function
from starling_nb.store import Store
from starling_nb.studies.iteration_cost import seconds

BATCH, MINIBATCH, EPOCHS, LONGEST, ITERATIONS = 128, 64, 2, 48, 3


def padded_logprobs(policy, batch: Rollout) -> Tensor:
    """Log-probabilities (B, R) from one call on all rows with logits at every position."""
    mask = torch.cat([batch.prompt_mask, batch.action_mask], dim=1)
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    logits = policy(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).logits
    log_pi = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    return log_pi[:, batch.prompt_ids.shape[1] - 1 :] * batch.action_mask


def rows_of(batch: Rollout, rows: Tensor) -> Rollout:
    """Some rows of a rollout, as wide as before."""
    names = ("prompt_ids", "prompt_mask", "response_ids", "action_mask", "logprobs", "truncated")
    return Rollout(**{name: getattr(batch, name)[rows] for name in names})


def ours(policy, batch: Rollout) -> Tensor:
    """Log-probabilities (B, R) as the package computes them in an update."""
    inputs = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.action_mask)
    states = response_states(policy, *inputs)
    return action_logprobs(policy, states, batch.response_ids, batch.action_mask)


def update(policy, batch: Rollout, advantages: Tensor, logprobs: Callable) -> Tensor:
    """Forward and backward over all minibatches of all epochs; the loss of the first."""
    losses = []
    for _ in range(EPOCHS):
        for rows in torch.arange(BATCH).split(MINIBATCH):
            part = rows_of(batch, rows)
            policy.zero_grad()
            loss, _ = ppo_loss(
                logprobs(policy, part), part.logprobs, advantages[rows], part.action_mask
            )
            loss.backward()
            losses.append(loss.detach())
    return losses[0]


def gradient(policy: nn.Module) -> Tensor:
    """The gradient of the last minibatch as one vector."""
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def matmul_rate() -> float:
    """Operations a second of a product of two 1024 x 1024 matrices."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / seconds(lambda: [a @ a for _ in range(20)]) * 20


def rloo_seconds(policy, tokenizer, reward_fn, conversations) -> float:
    """Median seconds of an iteration of TRL's RLOO of the same sizes: no critic, no GAE."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    steps, ticks = EPOCHS * BATCH // MINIBATCH, []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step % steps == 0:
                ticks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = RLOOConfig(
            output_dir=folder,
            per_device_train_batch_size=MINIBATCH,
            steps_per_generation=BATCH // MINIBATCH,
            num_iterations=EPOCHS,
            max_steps=(ITERATIONS + 2) * steps,  # the first warms up, the last is not finished
            num_generations=2,
            max_completion_length=LONGEST,
            beta=0.2,
            learning_rate=0.0,  # answers stay as long as they are
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = RLOOTrainer(
            model=deepcopy(policy),
            args=config,
            processing_class=tokenizer,
            reward_funcs=lambda prompts, completions, **_: reward_fn(
                [p + c for p, c in zip(prompts, completions, strict=True)]
            ).tolist(),
            train_dataset=Dataset.from_dict({"prompt": conversations}),
            callbacks=[Clock()],
        )
        trainer.train()
    return median(b - a for a, b in pairwise(ticks[1:]))


def main() -> None:
    course = Store(sys.argv[1] if len(sys.argv) > 1 else "store", "cpu", 0)
    policy, tokenizer = course.get("sft")
    reward_fn = reward_function(*course.get("reward_model"))
    drawn = course.get("world").sample(BATCH, random.Random(0))
    conversations = [prompt.conversation for prompt in drawn]
    prompts = [encode(tokenizer, conversation) for conversation in conversations]
    seeds = row_seeds(BATCH, torch.Generator().manual_seed(0))
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}

    def sample(every: int) -> Rollout:
        module.DROP_EVERY = every
        return rollout(policy, prompts, seeds=seeds, max_new_tokens=LONGEST, **ids)

    dropping = module.DROP_EVERY
    batch = sample(dropping)
    assert torch.equal(batch.response_ids, sample(LONGEST).response_ids)
    inputs = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.action_mask)
    answered = append_answers(tokenizer, conversations, batch)
    advantages = torch.randn(batch.logprobs.shape, generator=torch.Generator().manual_seed(1))

    # Equal outputs first: log-probabilities, the loss of a minibatch, the gradient of another.
    with torch.no_grad():
        old = padded_logprobs(policy, batch)
        torch.testing.assert_close(old, response_logprobs(policy, *inputs), rtol=0, atol=1e-4)
        torch.testing.assert_close(old, batch.logprobs, rtol=0, atol=1e-4)
    found = []
    for logprobs in (padded_logprobs, ours):
        loss = update(policy, batch, advantages, logprobs)
        found.append((loss, gradient(policy)))
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()

    @torch.no_grad()
    def passes(count: int) -> None:
        for _ in range(count):
            padded_logprobs(policy, batch)

    @torch.no_grad()
    def generate() -> Tensor:
        torch.manual_seed(0)
        options = {"do_sample": True, "top_k": 0, "max_new_tokens": LONGEST, **ids}
        return policy.generate(
            input_ids=batch.prompt_ids, attention_mask=batch.prompt_mask, **options
        )

    @torch.no_grad()
    def reference() -> Tensor:
        return response_logprobs(policy, *inputs)

    times = {
        "rollout": (seconds(lambda: sample(dropping)), seconds(generate)),
        "reward": (seconds(lambda: reward_fn(answered)),) * 2,
        "reference, old log-probabilities, values": (
            seconds(reference),
            seconds(lambda: passes(3)),
        ),
        "update": tuple(
            seconds(lambda f=f: update(policy, batch, advantages, f))
            for f in (ours, padded_logprobs)
        ),
    }
    body = sum(p.numel() for p in policy.get_decoder().layers.parameters())
    head = policy.get_output_embeddings().weight.numel()
    tokens = int(batch.prompt_mask.sum() + batch.action_mask.sum())
    actions = int(batch.action_mask.sum())
    forward = 2 * (body * tokens + head * actions)  # attention's own products left out
    needed = {"rollout": forward, "update": 3 * EPOCHS * forward}
    needed["reference, old log-probabilities, values"] = forward
    rate = matmul_rate()
    print(
        f"{BATCH} answers, {tokens} tokens with their prompts, {actions} of them sampled;", end=" "
    )
    print(f"padded to the widest {BATCH * (len(batch.prompt_ids[0]) + len(batch.logprobs[0]))}")
    print(f"a matrix product runs at {rate / 1e9:.0f} GFLOP/s; the rate of a part is beside it")
    for name, (mine, naive) in times.items():
        speed = f"{needed[name] / mine / rate:5.2f} of it" if name in needed else " " * 11
        print(f"{mine:6.2f} s  {speed}  naive / ours {naive / mine:5.2f}  {name}")
    mine, naive = (sum(column) for column in zip(*times.values(), strict=True))
    print(f"{mine:6.2f} s  {' ' * 11}  naive / ours {naive / mine:5.2f}  the iteration")

    kept = seconds(lambda: sample(LONGEST)) / times["rollout"][0]
    print(f"seconds of a rollout that keeps finished rows, over one that drops them: {kept:.2f}")
    full = seconds(lambda: update(policy, batch, advantages, padded_but_few_logits))
    ratio = times["update"][1] / full
    print(f"seconds of a padded update with all logits, over those of actions only: {ratio:.2f}")
    if find_spec("trl"):
        theirs = rloo_seconds(policy, tokenizer, reward_fn, conversations)
        print(f"{theirs:6.2f} s, {theirs / mine:.2f} times ours: an iteration of TRL's RLOO")


def padded_but_few_logits(policy, batch: Rollout) -> Tensor:
    """Log-probabilities (B, R) from one padded call, with logits of actions only."""
    mask = torch.cat([batch.prompt_mask, batch.action_mask], dim=1)
    ids = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    states = policy.get_decoder()(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state[:, batch.prompt_ids.shape[1] - 1 : -1]
    return action_logprobs(policy, states, batch.response_ids, batch.action_mask)


if __name__ == "__main__":
    main()
