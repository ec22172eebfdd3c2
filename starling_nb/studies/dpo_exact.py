"""Lesson 09: DPO where the best policy is known, by what lists are broken into.

Problems of one prompt and eight answers: the reference, and rewards of which the best policy at a
price beta of KL is known. Four different answers are drawn and ranked by Plackett-Luce on their
rewards, and a policy, eight free logits, is fitted to n such lists by the K-wise loss or by DPO on
pairs. Every fit of a problem sees the same lists.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from starling_nb.policy import bandit
from starling_nb.policy.dpo import dpo_loss, kwise_dpo_loss

ANSWERS, K, BETA = 8, 4, 0.5
TRIALS = {200: 100, 1000: 100, 5000: 40, 20_000: 20}  # number of lists -> problems
LOSSES: dict[str, Callable[..., Tensor]] = {
    "K-wise": kwise_dpo_loss,
    "all pairs": partial(dpo_loss, breaking="full"),
    "best against rest": partial(dpo_loss, breaking="best_vs_rest"),
    "neighbours": partial(dpo_loss, breaking="adjacent"),
    "best against worst": partial(dpo_loss, breaking="best_vs_worst"),
}


def measure(profile: str, store: str) -> dict[str, Any]:
    """Means over problems: distance from the best policy, reward and KL, by loss and n."""
    trials = TRIALS if profile != "smoke" else dict.fromkeys(TRIALS, 2)
    found: dict[str, Any] = {name: {} for name in [*LOSSES, "the best"]}
    for n, count in trials.items():
        generator = torch.Generator().manual_seed(n)
        log_init, rewards = bandit.random_problems(count, ANSWERS, seed=n)
        best, _ = bandit.optimum(log_init, rewards, BETA)
        ranked = rankings(rewards, n, generator)
        for name, loss in LOSSES.items():
            found[name][str(n)] = worth(fit(loss, log_init, ranked), best, log_init, rewards)
        found["the best"][str(n)] = worth(best, best, log_init, rewards)
    return found


def rankings(rewards: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """(N, n, K): the places of K different answers of each of n lists, best first."""
    uniform = torch.rand(len(rewards), n, ANSWERS, dtype=rewards.dtype, generator=generator)
    drawn = uniform.argsort(-1)[..., :K]
    scores = rewards[:, None].expand(-1, n, -1).gather(-1, drawn)
    gumbel = -torch.empty_like(scores).exponential_(generator=generator).log()
    return drawn.gather(-1, (scores + gumbel).argsort(-1, descending=True))


def fit(loss: Callable[..., Tensor], log_init: Tensor, ranked: Tensor) -> Tensor:
    """log pi (N, V) of the policies with the least loss, found from the reference on."""
    ratios = torch.zeros_like(log_init, requires_grad=True)  # of the logits to the reference's
    optimiser = torch.optim.LBFGS(
        [ratios],
        max_iter=200,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )
    lists = ranked.shape[1]

    def mean_loss() -> Tensor:
        optimiser.zero_grad()
        h = (log_init + ratios).log_softmax(-1) - log_init
        listed = h[:, None].expand(-1, lists, -1).gather(-1, ranked)
        value = loss(listed.flatten(0, 1), beta=BETA).sum() / lists
        value.backward()
        return value

    optimiser.step(mean_loss)
    return (log_init + ratios.detach()).log_softmax(-1)


def worth(log_pi: Tensor, best: Tensor, log_init: Tensor, rewards: Tensor) -> dict[str, float]:
    """Means over the problems; regret is beta times KL(pi || best), exactly."""
    cells = {
        "apart": bandit.divergence(log_pi, best),
        "reward": bandit.expected(log_pi, rewards),
        "kl": bandit.divergence(log_pi, log_init),
    }
    return {name: cell.mean().item() for name, cell in cells.items()}
