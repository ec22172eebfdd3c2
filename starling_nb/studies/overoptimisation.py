"""Lesson 06: proxy and true reward along PPO runs, by reward model and by the price of KL.

Reward models learn from many lists or few, labelled by the course's judge or by one that likes
length and a leading bullet. All else is equal: the answers on the lists, the start of the policy,
the seed, the number of samples.
"""

import random
from typing import Any

import torch

from starling_nb.data.chat import Conversation
from starling_nb.evaluate.gold import by_habit, score_answers
from starling_nb.policy.objectives import PPO
from starling_nb.policy.rl import tune_policy
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import RewardFn, reward_function
from starling_nb.reward.train import train_reward_model
from starling_nb.store import Store

LISTS = {"many": 7000, "few": 500}
JUDGES: dict[str, dict[str, float]] = {"fair": {}, "biased": {"length": 0.1, "bullet": 0.8}}
PRICES = (0.2, 0.05, 0.0)
SIZES: dict[str, Any] = {"iterations": 60, "batch_size": 64, "minibatch_size": 32, "lr": 2e-4}
SMOKE: dict[str, Any] = {"batch_size": 16, "minibatch_size": 8, "max_new_tokens": 16}
SHOWN = 6  # answers quoted from the end of each run


def measure(profile: str, store: str) -> dict[str, Any]:
    """A trace for each of twelve runs, what the tuned policies are worth, and answers of theirs."""
    course = Store(store, profile, 0)
    world = course.get("world")
    lists = LISTS if profile != "smoke" else {"many": 40, "few": 20}
    found = []
    for judge, dials in JUDGES.items():
        rows = world.rankings(max(lists.values()), seed=1, judge=world.judge(**dials))
        for size, count in lists.items():
            policy, tokenizer = course.get("sft")
            model, _ = train_reward_model(
                rows[:count], policy, tokenizer, seed=0, device=course.device
            )
            likes = reward_function(model, tokenizer)
            found += [
                {"judge": judge, "lists": size, **measure_run(course, likes, price)}
                for price in PRICES
            ]
    return {"runs": found}


def measure_run(course: Store, likes: RewardFn, price: float) -> dict[str, Any]:
    """One run of PPO: per iteration the proxy, gold and length of the batch; its end, judged."""
    world, (policy, tokenizer) = course.get("world"), course.get("sft")
    smoke = course.profile.name == "smoke"
    sizes = SIZES | (SMOKE | {"iterations": 2} if smoke else {})
    drawn = world.sample(sizes["iterations"] * sizes["batch_size"], random.Random(0))
    true: list[dict[str, float]] = []

    def reward_fn(conversations: list[Conversation]) -> torch.Tensor:
        scores = score_answers(world, conversations)
        true.append({"gold": float(scores.total.mean()), "words": float(scores.words.mean())})
        return likes(conversations)

    _, history = tune_policy(
        policy,
        reward_fn,
        [prompt.conversation for prompt in drawn],
        tokenizer=tokenizer,
        objective=PPO(),
        whitening=True,
        kl_coef=price,
        seed=0,
        device=course.device,
        **sizes,
    )
    trace = [
        {"kl": record["kl"], "proxy": record["reward"], **batch}
        for record, batch in zip(history, true, strict=True)
    ]
    prompts = world.test if not smoke else world.test[:40]
    asked = [prompt.conversation for prompt in prompts]
    judged, shown = {}, []
    for temperature in (1, 0):
        answered = respond(policy, tokenizer, asked, temperature=temperature)
        scores = score_answers(world, answered)
        judged[str(temperature)] = {
            **{name: float(value) for name, value in scores.row().items()},
            "proxy": likes(answered).mean().item(),
            "habits": [{"habit": k, **v} for k, v in by_habit(prompts, answered).items()],
        }
        if temperature:
            shown = [
                {
                    "prompt": answered[i][-2]["content"],
                    "answer": answered[i][-1]["content"],
                    "gold": float(scores.total[i]),
                }
                for i in random.Random(0).sample(range(len(prompts)), SHOWN)
            ]
    return {"kl_coef": price, "trace": trace, "test": judged, "answers": shown}
