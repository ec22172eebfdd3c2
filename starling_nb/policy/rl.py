"""Policy tuning by reinforcement learning: sample answers, score them, follow PPO or APA."""

import copy
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import Conversation, encode
from starling_nb.device import Device, progress
from starling_nb.policy.base import load_policy, save_policy
from starling_nb.policy.objectives import (
    Loss,
    apa_loss,
    gae,
    kl_estimate,
    ppo_loss,
    shape_rewards,
    value_loss,
    whiten,
)
from starling_nb.policy.rollout import (
    action_logprobs,
    append_answers,
    response_logprobs,
    response_states,
    rollout,
    row_seeds,
)
from starling_nb.reward.model import RewardFn, reward_function
from starling_nb.store import Context, stage, write_json

# (logprobs, old_logprobs, reference_logprobs, advantages, mask), all (B, R) -> loss, diagnostics
Objective = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Loss]

WARMUP = 5  # iterations in which the learning rate rises to lr


def tune_policy(
    policy: PreTrainedModel,
    reward_fn: RewardFn,
    prompts: Sequence[Conversation],
    *,
    tokenizer: PreTrainedTokenizerFast,
    objective: str | Objective = "apa",
    reference: PreTrainedModel | None = None,
    iterations: int = 30,
    batch_size: int = 128,
    minibatch_size: int = 64,
    epochs: int = 2,
    lr: float = 4e-4,
    lam: float = 0.3,
    kl_coef: float | None = None,
    gae_lambda: float = 1.0,
    max_new_tokens: int = 48,
    seed: int = 0,
    device: Device | None = None,
    on_iteration: Callable[[dict[str, float]], object] | None = None,
) -> tuple[PreTrainedModel, list[dict[str, float]]]:
    """Tune a policy, in place, to the reward of its own answers; return it and its history.

    Each iteration samples batch_size answers at temperature 1, scores them, and takes `epochs`
    passes of AdamW over them. `objective` is "apa" (anchored at the reference, as in the paper; lam
    in standard deviations of the initial policy's reward), "ppo" (advantages whitened), or a
    function of your own of the type `Objective`, which gets the advantages as they are. `reference`
    is the initial policy unless given; kl_coef, the price of a nat of KL to it in the reward, is
    0.1 for "ppo" and 0 for the rest unless given. Scores are shifted and scaled by mean and
    standard deviation of the first batch; an answer without an end of turn then loses 1.

    History, one dict per iteration, measured before its updates: reward (mean, as reward_fn gives
    it), kl (to the reference, nats an answer), entropy (nats a token), length (tokens), finished
    (share); and means over its updates: losses, grad_norm (before clipping at 1), diagnostics.
    The seed fixes everything but reward_fn. Raises ValueError for an unknown objective, no prompts,
    a reference of another vocabulary, or scores that are not (B,) finite numbers.
    Source: Ziegler et al. 2019; Zhu et al. 2023 (arXiv 2306.02231).
    """
    policy_loss = choose_objective(objective, lam)
    if kl_coef is None:
        kl_coef = 0.1 if objective == "ppo" else 0.0
    if not prompts:
        raise ValueError("prompts: expected at least one conversation, found none")
    reference = copy.deepcopy(policy) if reference is None else reference
    if reference.config.vocab_size != policy.config.vocab_size:
        raise ValueError(
            f"reference: expected the policy's vocabulary of {policy.config.vocab_size}, found "
            f"{reference.config.vocab_size}; log-probabilities of the two cannot be compared"
        )
    if device:
        policy.to(device.device)  # type: ignore[arg-type]
    policy.eval()  # dropout would make the ratio to the sampled log-probabilities differ from 1
    reference.to(policy.device).eval()  # type: ignore[arg-type]
    autocast = device.autocast if device else nullcontext
    generator = torch.Generator().manual_seed(seed)
    critic = value_head(policy.config.hidden_size, generator).to(policy.device)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [*parameters, *critic.parameters()], lr=lr, betas=(0.9, 0.95), weight_decay=0.0
    )
    history = []
    for iteration in progress(range(iterations), desc="tuning the policy"):
        # Sample a batch of answers and score them.
        drawn = torch.randint(len(prompts), (batch_size,), generator=generator).tolist()
        with autocast():
            batch = rollout(
                policy,
                [encode(tokenizer, prompts[i]) for i in drawn],
                seeds=row_seeds(batch_size, generator),
                max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        answered = append_answers(tokenizer, [prompts[i] for i in drawn], batch)
        raw_scores = checked(reward_fn(answered), batch_size).to(policy.device, torch.float32)
        if iteration == 0:
            mean, sd = raw_scores.mean(), raw_scores.std(correction=0).clamp(min=1e-6)
        scores = (raw_scores - mean) / sd - batch.truncated.float()

        # Rewards, values and advantages of every action, under the policy that sampled it.
        mask, old_logprobs = batch.action_mask, batch.logprobs
        inputs = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, mask)
        with torch.no_grad():
            with autocast():
                reference_logprobs = response_logprobs(reference, *inputs)
                states = response_states(policy, *inputs)
            old_values = critic(states.float())[..., 0]
        kl = kl_estimate(old_logprobs, reference_logprobs)
        rewards = shape_rewards(scores, kl, mask, kl_coef)
        advantages, returns = gae(rewards, old_values, mask, lam=gae_lambda)

        # Update policy and critic; the critic reads the policy's states and does not shape them.
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (iteration + 1) / WARMUP)
        updates = []
        for _ in range(epochs):
            for rows in torch.randperm(batch_size, generator=generator).split(minibatch_size):
                old, ref, m = old_logprobs[rows], reference_logprobs[rows], mask[rows]
                with autocast():
                    states = response_states(policy, *(x[rows] for x in inputs))
                    logprobs = action_logprobs(policy, states, batch.response_ids[rows], m)
                values = critic(states.detach().float())[..., 0]
                loss, diagnostics = policy_loss(logprobs, old, ref, advantages[rows], m)
                critic_loss, fit = value_loss(values, old_values[rows], returns[rows], m)
                optimizer.zero_grad()
                (loss + critic_loss).backward()
                grad_norm = clip_grad_norm_(parameters, 1.0)
                clip_grad_norm_(critic.parameters(), 1.0)
                optimizer.step()
                losses = {"policy_loss": loss.detach(), "value_loss": critic_loss.detach()}
                updates.append({**losses, "grad_norm": grad_norm, **diagnostics, **fit})

        record = {
            "iteration": iteration,
            "reward": raw_scores.mean().item(),
            "kl": kl.sum(1).mean().item(),
            "entropy": -old_logprobs[mask].mean().item(),
            "length": mask.sum(1).float().mean().item(),
            "finished": 1 - batch.truncated.float().mean().item(),
            **{key: torch.stack([u[key] for u in updates]).mean().item() for key in updates[0]},
        }
        history.append(record)
        if on_iteration:
            on_iteration(record)
    return policy, history


def choose_objective(objective: str | Objective, lam: float) -> Objective:
    """Return the objective of that name, or the one given; ValueError for an unknown name."""
    if callable(objective):
        return objective
    known: dict[str, Objective] = {
        "apa": lambda new, old, reference, a, mask: apa_loss(new, reference, a, mask, lam),
        "ppo": lambda new, old, reference, a, mask: ppo_loss(new, old, whiten(a, mask), mask),
    }
    if objective not in known:
        raise ValueError(
            f"objective: expected {' or '.join(known)} or a function, found {objective!r}"
        )
    return known[objective]


def value_head(hidden_size: int, generator: torch.Generator) -> nn.Sequential:
    """Return a critic, states (..., H) -> values (..., 1): one tanh layer; it begins at V = 0."""
    hidden, out = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, 1)
    nn.init.xavier_uniform_(hidden.weight, generator=generator)
    for parameter in (hidden.bias, out.weight, out.bias):
        nn.init.zeros_(parameter)
    return nn.Sequential(hidden, nn.Tanh(), out)


def checked(scores: Tensor, batch_size: int) -> Tensor:
    """Return scores if they are (batch_size,) and finite; else raise ValueError."""
    if scores.shape != (batch_size,):
        raise ValueError(
            f"reward_fn: expected scores of shape ({batch_size},), one for each conversation, "
            f"found {tuple(scores.shape)}"
        )
    bad = (~scores.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"reward_fn: expected finite scores, found {scores[bad[0]].item()} for conversation "
            f"{bad[0]} of the batch ({len(bad)} of {batch_size} are not finite)"
        )
    return scores


@dataclass(frozen=True)
class RLConfig:
    """Sizes and optimisation of policy tuning; the defaults are the cpu profile's."""

    iterations: int = 30
    batch_size: int = 128
    minibatch_size: int = 64
    epochs: int = 2
    lr: float = 4e-4
    lam: float = 0.3
    gae_lambda: float = 1.0
    max_new_tokens: int = 48


def save_tuned(built, folder: Path) -> None:
    """Write policy, tokenizer and history.json into a folder; `load_policy` reads the first two."""
    policy, tokenizer, history = built
    save_policy((policy, tokenizer), folder)
    write_json(folder / "history.json", history)


@stage(
    "apa",
    needs=("sft", "reward_model", "world"),
    config=RLConfig,
    save=save_tuned,
    load=load_policy,
)
def build_apa(config: RLConfig, ctx: Context, sft, reward_model, world):
    """Tune the SFT policy by APA against the learned reward, on the world's training prompts."""
    policy, tokenizer = sft
    scorer, scorer_tokenizer = reward_model
    drawn = world.sample(config.iterations * config.batch_size, random.Random(ctx.seed))
    policy, history = tune_policy(
        policy,
        reward_function(scorer.to(ctx.device.device), scorer_tokenizer),
        [prompt.conversation for prompt in drawn],
        tokenizer=tokenizer,
        objective="apa",
        seed=ctx.seed,
        device=ctx.device,
        **asdict(config),
    )
    return policy, tokenizer, history
