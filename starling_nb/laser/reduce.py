"""LASER: replace a weight matrix by its best approximation of low rank, and search for which."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from starling_nb.device import progress
from starling_nb.policy.base import load_policy, save_policy
from starling_nb.policy.rollout import respond
from starling_nb.store import Context, stage, write_json


def matrices(policy: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the 2-D projection weights of the decoder blocks by their name in the policy.

    Raises ValueError when there are none.
    """
    blocks = {id(p) for p in policy.get_decoder().layers.parameters() if p.ndim == 2}
    found = {name: p for name, p in policy.named_parameters() if id(p) in blocks}
    if not found:
        raise ValueError("policy: expected 2-D weights in its decoder blocks, found none")
    return found


def rank_of(rho: float, shape: tuple[int, ...]) -> int:
    """Return the rank max(1, floor(rho * min(shape))) that a fraction rho in (0, 1] stands for.

    Raises ValueError for another rho. Source: Sharma et al. 2023 (arXiv 2312.13558).
    """
    if not 0 < rho <= 1:
        raise ValueError(f"rho: expected a fraction in (0, 1], found {rho}")
    return max(1, int(rho * min(shape)))


def low_rank(weight: Tensor, rank: int) -> Tensor:
    """Return the (n, m) matrix of that rank nearest to weight (n, m), in weight's dtype.

    Exact: the first `rank` terms of the float64 singular value decomposition. The squared distance
    is the sum of the squares of the singular values left out. Source: Eckart and Young 1936.
    """
    u, s, vh = torch.linalg.svd(weight.detach().double(), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ vh[:rank]).to(weight.dtype)


@contextmanager
def reduced(policy: PreTrainedModel, ranks: Mapping[str, int]) -> Iterator[PreTrainedModel]:
    """Give the policy with the named matrices at the given ranks; restore them after, bit for bit.

    Raises KeyError for a name that is not in `matrices`, before anything is changed.
    """
    weights = matrices(policy)
    approximations = {name: low_rank(weights[name], rank) for name, rank in ranks.items()}
    originals = {name: weights[name].detach().clone() for name in ranks}
    try:
        assign(weights, approximations)
        yield policy
    finally:
        assign(weights, originals)


@torch.no_grad()
def assign(weights: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy values into the weights of the same names, in place."""
    for name, value in values.items():
        weights[name].copy_(value)


def search(
    policy: PreTrainedModel,
    names: Sequence[str],
    rhos: Sequence[float],
    criterion: Callable[[PreTrainedModel], float],
) -> list[dict]:
    """Judge the policy with each matrix alone reduced to each fraction of its full rank.

    Returns dicts of name, rho, rank, score (what criterion gives, larger is better) and gain over
    the baseline. The baseline, the policy as it is, comes first with name None and gain 0; then
    the candidates, best first. The best of many gains is inflated by the choice: report it on data
    the criterion has not seen. Source: Sharma et al. 2023 (arXiv 2312.13558).
    """
    weights = matrices(policy)
    baseline = criterion(policy)
    candidates = []
    for name, rho in progress([(name, rho) for name in names for rho in rhos], desc="LASER search"):
        rank = rank_of(rho, weights[name].shape)
        with reduced(policy, {name: rank}):
            score = criterion(policy)
        candidates.append(
            {"name": name, "rho": rho, "rank": rank, "score": score, "gain": score - baseline}
        )
    first = {"name": None, "rho": 1.0, "rank": None, "score": baseline, "gain": 0.0}
    return [first, *sorted(candidates, key=lambda found: -found["score"])]


@dataclass(frozen=True)
class LaserConfig:
    """What the LASER stage searches; the defaults are the cpu profile's."""

    layers: int = 2  # the last so many
    rhos: tuple[float, ...] = (0.5, 0.1)
    prompts: int = 160  # training prompts that the criterion is measured on


def save_laser(built, folder: Path) -> None:
    """Write policy, tokenizer and search.json into a folder; `load_policy` reads the first two."""
    policy, tokenizer, found = built
    save_policy((policy, tokenizer), folder)
    write_json(folder / "search.json", found)


@stage("laser", needs=("apa", "world"), config=LaserConfig, save=save_laser, load=load_policy)
def build_laser(config: LaserConfig, ctx: Context, apa, world):
    """Keep the one reduction that most raises the gold reward of greedy answers, if any does."""
    policy, tokenizer = apa
    policy.to(ctx.device.device)
    drawn = world.sample(config.prompts, random.Random(ctx.seed))
    conversations = [prompt.conversation for prompt in drawn]

    def greedy_gold(policy: PreTrainedModel) -> float:
        with ctx.device.autocast():
            answered = respond(policy, tokenizer, conversations, temperature=0.0)
        return world.gold_reward(answered).mean().item()

    last = policy.get_decoder().layers[-config.layers :]
    chosen = {id(p) for p in last.parameters()}
    names = [name for name, p in matrices(policy).items() if id(p) in chosen]
    found = search(policy, names, config.rhos, greedy_gold)
    best = found[1]
    if best["gain"] > 0:
        weight = matrices(policy)[best["name"]]
        assign({"best": weight}, {"best": low_rank(weight, best["rank"])})
    return policy, tokenizer, found
