"""Policy tuning by reinforcement learning: sample answers, score them, follow an objective."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import Conversation, encode
from starling_nb.device import Device, progress
from starling_nb.policy.base import load_policy, save_policy
from starling_nb.policy.objectives import (
    APA,
    Objective,
    Sampled,
    gae,
    kl_estimate,
    shape_rewards,
    value_loss,
    whiten,
)
from starling_nb.policy.rollout import (
    action_logprobs,
    append_answers,
    check_prompts,
    response_states,
    rollout,
    row_seeds,
)
from starling_nb.policy.split import learning_part, trunk_features
from starling_nb.policy.state import (
    due,
    load_state,
    remove_state,
    restore,
    save_state,
    weights_digest,
)
from starling_nb.reward.model import RewardFn, reward_function
from starling_nb.store import Context, digest, stage, write_json

WARMUP = 5  # iterations in which a learning rate rises to its full size
KL_GAIN, KL_ERROR = 0.1, 0.2  # of the adaptive KL coefficient
COLLAPSED = 1e-3  # nats a token: a policy of less entropy says one thing only
RUNAWAY = 5  # iterations in a row without an answer that ends

Record = dict[str, float]


class Stopped(RuntimeError):
    """A run that a guard has stopped; `history` is what it recorded until then."""

    def __init__(self, reason: str, history: list[Record]):
        super().__init__(reason)
        self.history = history


def tune_policy(
    policy: PreTrainedModel,
    reward_fn: RewardFn,
    prompts: Sequence[Conversation],
    *,
    tokenizer: PreTrainedTokenizerFast,
    objective: Objective,
    reference: PreTrainedModel | None = None,
    iterations: int = 30,
    batch_size: int = 128,
    minibatch_size: int = 64,
    epochs: int = 2,
    samples: int = 1,
    lr: float = 4e-4,
    critic_lr: float = 5e-3,
    kl_coef: float = 0.0,
    kl_target: float | None = None,
    reward_shift: float = 0.0,
    whitening: bool = False,
    critic_iterations: int = 0,
    gae_lambda: float = 1.0,
    max_new_tokens: int = 48,
    last_layers: int | None = None,
    lora: LoraConfig | None = None,
    seed: int = 0,
    device: Device | None = None,
    folder: Path | None = None,
    on_iteration: Callable[[Record], object] | None = None,
) -> tuple[PreTrainedModel, list[Record]]:
    """Tune a policy, in place, to the reward of its own answers; return it and its history.

    Each iteration draws prompts, samples batch_size answers at temperature 1 (`samples` to each
    prompt), scores them, and takes `epochs` passes of AdamW over them, whose rates rise to lr and
    critic_lr in five iterations.
    objective: PPO, APA, AWR or P3O of `objectives`, or a function of your own of that type.
    reference: the initial policy unless given.
    Scores are shifted and scaled by mean and standard deviation of the first batch, moved up by
    `reward_shift` deviations; an answer without an end of turn loses 1. kl_coef: the price of a nat
    of KL to the reference, adapted to reach kl_target (nats an answer) where that is given.
    whitening: advantages get mean 0 and variance 1 over the batch. critic_iterations: at the start
    train the critic only. last_layers: train the last blocks and the final norm only; what lies
    below runs once a batch. lora: train adapters, merged at the end. By default all is trained.
    folder: of this run alone. About ten times a run its state is saved there; a run that was
    stopped goes on from it when started again with the same arguments, the policy as it was at the
    start among them, to the same weights. A finished run leaves nothing there.
    Under `accelerate launch` each process has its share of the batch, and gradients are averaged.

    History, a record per iteration, measured before its updates: reward (mean, as reward_fn gives
    it), kl (nats an answer), kl_coef, entropy (nats a token), length (tokens), finished (share);
    and means over its updates: losses, grad_norm (before clipping at 1), diagnostics. The first
    process calls on_iteration with each. The seed fixes everything but reward_fn.
    Raises ValueError for no prompts or one that leaves no room for an answer, sizes that do not
    divide, a reference of another vocabulary, scores that are not (B,) finite numbers, a folder of
    another run, and the causes of `learning_part`; Stopped for a loss or gradient that is not
    finite, before it is applied, and for a policy that has collapsed or ends no answer any more.
    Source: Ziegler et al. 2019 (arXiv 1909.08593); Zhu et al. 2023 (arXiv 2306.02231).
    """
    numbers: dict[str, Any] = {k: v for k, v in locals().items() if isinstance(v, int | float)}
    accelerator = Accelerator()
    rank, ranks = accelerator.process_index, accelerator.num_processes
    check_options(numbers, objective, ranks)
    if reference is policy:
        reference = None
    if reference is not None and reference.config.vocab_size != policy.config.vocab_size:
        raise ValueError(
            f"reference: expected the policy's vocabulary of {policy.config.vocab_size}, found "
            f"{reference.config.vocab_size}; log-probabilities of the two cannot be compared"
        )
    encoded = [encode(tokenizer, conversation) for conversation in prompts]
    check_prompts(encoded, policy.config.max_position_embeddings - max_new_tokens)
    state, settings = None, {**numbers}
    if folder:
        settings |= {"objective": name_of(objective), "prompts": digest(encoded)}
        settings |= {"policy": weights_digest(policy), "reference": weights_digest(reference)}
        settings |= {"lora": str(lora and sorted(lora.to_dict().items())), "processes": ranks}
        settings |= {"device": str(device and device.dtype)}
        state = load_state(folder, settings)

    if ranks > 1:
        policy.to(accelerator.device)  # type: ignore[arg-type]
    elif device:
        policy.to(device.device)  # type: ignore[arg-type]
    policy.eval()  # dropout would make the ratio to the sampled log-probabilities differ from 1
    autocast = device.autocast if device else nullcontext
    generator = torch.Generator().manual_seed(seed)
    critic = value_head(policy.config.hidden_size, generator).to(policy.device)
    history: list[Record] = []
    mean, sd = 0.0, 1.0  # of the scores of the first batch
    with learning_part(policy, reference, last_layers, lora, seed) as part:
        parameters = [p for p in part.actor.parameters() if p.requires_grad]
        learned = [*parameters, *critic.parameters()]
        groups = [
            {"params": parameters, "highest": lr, "start": critic_iterations},
            {"params": [*critic.parameters()], "highest": critic_lr, "start": 0},
        ]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)
        if state:
            restore(state, learned, optimizer, generator)
            kept = state["run"]
            history, kl_coef, mean, sd = (kept[k] for k in ("history", "kl_coef", "mean", "sd"))
            state = None
        for iteration in progress(range(len(history), iterations), desc="tuning the policy"):
            # Sample this process's share of a batch of answers, and score them.
            drawn = torch.randint(len(prompts), (batch_size // samples,), generator=generator)
            seeds = row_seeds(batch_size, generator).view(-1, samples)[rank::ranks]
            drawn = drawn[rank::ranks]
            with autocast():
                batch = rollout(
                    policy,
                    [encoded[i] for i in drawn],
                    seeds=seeds,
                    max_new_tokens=max_new_tokens,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                    keep_states=True,
                )
            asked = [prompts[i] for i in drawn.repeat_interleave(samples)]
            raw_scores = checked(reward_fn(append_answers(tokenizer, asked, batch)), len(asked))
            raw_scores = raw_scores.to(policy.device)
            if iteration == 0:
                first = accelerator.gather(raw_scores)
                mean, sd = first.mean().item(), first.std(correction=0).item()
                sd = sd if sd > 1e-6 else 1.0
            scores = (raw_scores - mean) / sd + reward_shift - batch.truncated.float()

            # Rewards, values and advantages of every action, under the policy that sampled it.
            mask, old_logprobs = batch.action_mask, batch.logprobs
            inputs = [batch.prompt_ids, batch.prompt_mask, batch.response_ids, mask]
            assert batch.states is not None  # they were asked for
            with torch.no_grad(), autocast():
                if part.trunk is not None:
                    inputs.append(trunk_features(part.trunk, *inputs))
                reference_logprobs = part.reference_logprobs(*inputs)
            with torch.no_grad():
                old_values = critic(batch.states.float())[..., 0]
            kl = kl_estimate(old_logprobs, reference_logprobs)
            rewards = shape_rewards(scores, kl, mask, kl_coef)
            advantages, returns = gae(rewards, old_values, mask, lam=gae_lambda)
            if whitening:
                advantages = whiten(advantages, mask, accelerator.reduce)
            sampled = Sampled(old_logprobs, reference_logprobs, advantages, scores, mask)
            measured = {
                "reward": raw_scores.mean(),
                "kl": kl.sum(1).mean(),
                "entropy": -old_logprobs[mask].mean(),
                "length": mask.sum(1).float().mean(),
                "finished": 1 - batch.truncated.float().mean(),
            }

            # Update policy and critic; the critic reads the policy's states, and does not shape
            # them. While it learns alone, the policy says what it said when it sampled.
            for group in optimizer.param_groups:
                done = max(0, iteration + 1 - group["start"])
                group["lr"] = group["highest"] * min(1.0, done / WARMUP)
            updates = []
            for _ in range(epochs):
                for rows in minibatches(len(asked), minibatch_size // ranks, samples, generator):
                    some = sampled[rows]
                    if iteration < critic_iterations:
                        states, logprobs = batch.states[rows], old_logprobs[rows]
                    else:
                        with autocast():
                            states = response_states(part.actor, *(x[rows] for x in inputs))
                            logprobs = action_logprobs(
                                part.actor, states, batch.response_ids[rows], some.mask
                            )
                    values = critic(states.detach().float())[..., 0]
                    policy_loss, diagnostics = objective(logprobs, some)
                    miss, fit = value_loss(values, old_values[rows], returns[rows], some.mask)
                    optimizer.zero_grad()
                    (policy_loss + miss).backward()
                    average_gradients(accelerator, learned)
                    grad_norm = clip_grad_norm_(parameters, 1.0).to(policy.device)
                    critic_norm = clip_grad_norm_(critic.parameters(), 1.0)
                    losses = {"policy_loss": policy_loss.detach(), "grad_norm": grad_norm}
                    losses |= {"value_loss": miss.detach()}
                    if not (sum(losses.values()) + critic_norm).isfinite():
                        found = ", ".join(f"{k} {v.item():.3g}" for k, v in losses.items())
                        raise Stopped(
                            f"iteration {iteration}: expected finite losses and gradients, found "
                            f"{found}; lower lr",
                            history,
                        )
                    optimizer.step()
                    updates.append({**losses, **diagnostics, **fit})

            measured |= {key: torch.stack([u[key] for u in updates]).mean() for key in updates[0]}
            means = accelerator.reduce(torch.stack([*measured.values()]), "mean").tolist()
            record = dict(zip(measured, means, strict=True))
            history.append({"iteration": iteration, "kl_coef": kl_coef, **record})
            if on_iteration and accelerator.is_main_process:
                on_iteration(history[-1])
            guard(history)
            if kl_target is not None:
                kl_coef = adapted(kl_coef, history[-1]["kl"], kl_target)
            if folder and accelerator.is_main_process and due(iteration, iterations):
                run: dict[str, Any] = {"settings": settings, "history": history}
                run |= {"kl_coef": kl_coef, "mean": mean, "sd": sd}
                save_state(folder, run, learned, optimizer, generator)
    if folder and accelerator.is_main_process:
        remove_state(folder)
    return policy, history


def value_head(hidden_size: int, generator: torch.Generator) -> nn.Sequential:
    """Return a critic, states (..., H) -> values (..., 1): one tanh layer; it begins at V = 0."""
    hidden, out = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, 1)
    nn.init.xavier_uniform_(hidden.weight, generator=generator)
    for parameter in (hidden.bias, out.weight, out.bias):
        nn.init.zeros_(parameter)
    return nn.Sequential(hidden, nn.Tanh(), out)


def name_of(objective: Objective) -> str:
    """An objective with its settings; of a function of one's own the name alone is known."""
    if is_dataclass(objective):
        return repr(objective)
    return getattr(objective, "__qualname__", type(objective).__qualname__)


def check_options(numbers: dict[str, Any], objective: Any, ranks: int) -> None:
    """Raise ValueError for sizes that do not fit each other and for a KL target without a price."""
    for name in ("iterations", "epochs", "samples", "max_new_tokens"):
        if numbers[name] < 1:
            raise ValueError(f"{name}: expected at least 1, found {numbers[name]}")
    samples = numbers["samples"]
    if samples % getattr(objective, "samples", 1):
        raise ValueError(f"samples: expected {objective.samples} for {objective}, found {samples}")
    for name in ("batch_size", "minibatch_size"):
        if numbers[name] < 1 or numbers[name] % (samples * ranks):
            raise ValueError(
                f"{name}: expected a multiple of {samples * ranks} (samples of a prompt times "
                f"processes), found {numbers[name]}"
            )
    if "kl_target" in numbers and min(numbers["kl_target"], numbers["kl_coef"]) <= 0:
        raise ValueError(
            "kl_target, kl_coef: expected both above 0, since the one is multiplied to reach the "
            f"other, found {numbers['kl_target']} and {numbers['kl_coef']}"
        )


def checked(scores: Tensor, count: int) -> Tensor:
    """Return scores, detached and in float32, if they are (count,) and finite; else ValueError."""
    scores = torch.as_tensor(scores).detach().float()
    if scores.shape != (count,):
        raise ValueError(
            f"reward_fn: expected scores of shape ({count},), one for each conversation, "
            f"found {tuple(scores.shape)}"
        )
    bad = (~scores.isfinite()).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"reward_fn: expected finite scores, found {scores[bad[0]].item()} for conversation "
            f"{bad[0]} of the batch ({len(bad)} of {count} are not finite)"
        )
    return scores


def minibatches(
    count: int, size: int, samples: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the rows of shuffled minibatches of `size`; a prompt's samples stay side by side."""
    for groups in torch.randperm(count // samples, generator=generator).split(size // samples):
        yield (groups[:, None] * samples + torch.arange(samples)).flatten()


def average_gradients(accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over the processes; nothing to do for one."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad = accelerator.reduce(parameter.grad, "mean")


def adapted(kl_coef: float, kl: float, target: float) -> float:
    """Return the coefficient moved towards one that keeps KL at the target.

    b (1 + 0.1 e), e = clip(KL / target - 1, ± 0.2). Source: Ziegler et al. 2019, section 2.2.
    """
    error = min(max(kl / target - 1, -KL_ERROR), KL_ERROR)
    return kl_coef * (1 + KL_GAIN * error)


def guard(history: list[Record]) -> None:
    """Raise Stopped when the last record is that of a policy past help."""
    last = history[-1]
    if last["entropy"] < COLLAPSED:
        raise Stopped(
            f"iteration {last['iteration']}: the policy has collapsed to one answer (entropy "
            f"{last['entropy']:.2g} nats a token); lower lr or raise kl_coef or lam",
            history,
        )
    finished = [record["finished"] for record in history]
    if max(finished) > 0 and len(finished) > RUNAWAY and max(finished[-RUNAWAY:]) == 0:
        raise Stopped(
            f"iteration {last['iteration']}: no answer has ended for {RUNAWAY} iterations; raise "
            "reward_shift, kl_coef or lam, or look at what the reward function favours",
            history,
        )


@dataclass(frozen=True)
class RLConfig:
    """Sizes and optimisation of policy tuning; the defaults are the cpu profile's."""

    iterations: int = 30
    batch_size: int = 128
    minibatch_size: int = 64
    epochs: int = 2
    lr: float = 4e-4
    critic_lr: float = 5e-3
    gae_lambda: float = 1.0
    max_new_tokens: int = 48


@dataclass(frozen=True)
class APAConfig(RLConfig):
    """APA without a KL penalty in the reward, as in the paper; lam in deviations of the reward."""

    lam: float = 0.3


def save_tuned(built, folder: Path) -> None:
    """Write policy, tokenizer and history.json into a folder; `load_policy` reads the first two."""
    policy, tokenizer, history = built
    save_policy((policy, tokenizer), folder)
    write_json(folder / "history.json", history)


INPUTS = ("sft", "reward_model", "world")


@stage("apa", needs=INPUTS, config=APAConfig, version=3, save=save_tuned, load=load_policy)
def build_apa(config: APAConfig, ctx: Context, sft, reward_model, world):
    """Tune the SFT policy by APA against the learned reward, on the world's training prompts."""
    options = asdict(config)
    return tuned(ctx, sft, reward_model, world, objective=APA(options.pop("lam")), **options)


def tuned(ctx: Context, sft, reward_model, world, **options):
    """Return policy, tokenizer and history of a run of `tune_policy` on a stage's inputs."""
    policy, tokenizer = sft
    scorer, scorer_tokenizer = reward_model
    drawn = world.sample(options["iterations"] * options["batch_size"], random.Random(ctx.seed))
    policy, history = tune_policy(
        policy,
        reward_function(scorer.to(ctx.device.device), scorer_tokenizer),
        [prompt.conversation for prompt in drawn],
        tokenizer=tokenizer,
        seed=ctx.seed,
        device=ctx.device,
        **options,
    )
    return policy, tokenizer, history
