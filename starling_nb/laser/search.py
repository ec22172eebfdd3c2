"""Which matrices to reduce: LASER's and laserRMT's searches, by a criterion of one's choice."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from starling_nb.data.chat import Conversation, encode
from starling_nb.device import progress
from starling_nb.laser.reduce import assign, low_rank, matrices, named, rank_of, reduced
from starling_nb.laser.scan import Spectrum
from starling_nb.laser.spectra import snr
from starling_nb.policy.base import load_policy, save_policy
from starling_nb.policy.dpo import score_packed
from starling_nb.policy.rollout import respond
from starling_nb.reward.model import RewardFn
from starling_nb.reward.packing import pack_list
from starling_nb.store import Context, stage, write_json

Criterion = Callable[[PreTrainedModel], Tensor]  # a score for each of N items; larger is better
RMT_TYPES = ("down_proj", "up_proj", "q_proj", "k_proj", "v_proj", "o_proj")


def likelihood(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]
) -> Criterion:
    """The criterion log pi(answer | prompt) / tokens, in nats, of conversations' last messages."""
    lists = []
    for conversation in conversations:
        prompt = encode(tokenizer, conversation[:-1])
        whole = encode(tokenizer, conversation, add_generation_prompt=False)
        lists.append(pack_list(prompt, [whole[len(prompt) :]]))
    tokens = torch.tensor([int(packed.segments.sum()) for packed in lists])
    return lambda policy: torch.cat(score_packed(policy, lists)) / tokens


def reward_of_answers(
    reward_fn: RewardFn,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Conversation],
    temperature: float = 0.0,
) -> Criterion:
    """The criterion reward of the policy's own answers to prompts, greedy unless told otherwise."""
    return lambda policy: reward_fn(respond(policy, tokenizer, prompts, temperature=temperature))


class Candidate(NamedTuple):
    """A matrix reduced alone, and what the criterion then gives for each item."""

    name: str
    rho: float
    rank: int
    scores: Tensor  # (N,)


def search(
    policy: PreTrainedModel,
    names: Sequence[str],
    rhos: Sequence[float],
    criterion: Criterion,
) -> tuple[Tensor, list[Candidate]]:
    """Judge the policy with each matrix alone reduced to each fraction of its full rank.

    -> the scores (N,) of the policy as it is, and the candidates, best mean first. The best of many
    gains is inflated by the choice (`winners_curse`): report it on items the criterion has not
    seen.  Raises KeyError for a name that is not in `matrices`.
    Source: Sharma et al. 2023 (arXiv 2312.13558).
    """
    weights = named(policy, names)
    baseline = criterion(policy)
    candidates = []
    for name, rho in progress([(name, rho) for name in names for rho in rhos], desc="LASER search"):
        rank = rank_of(rho, weights[name].shape)
        with reduced(policy, {name: rank}):
            candidates.append(Candidate(name, rho, rank, criterion(policy)))
    return baseline, sorted(candidates, key=lambda found: -found.scores.mean().item())


def compose(
    policy: PreTrainedModel,
    candidates: Iterable[tuple[str, int]],
    criterion: Criterion,
    *,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Reduce matrices in place, one (name, rank) after the other, and keep what raises the mean.

    A reduction that does not raise it is undone bit for bit, and `limit` ends the search after so
    many kept.  The order is the search: `best_first` is LASER's, `last_layers_first` and
    `lowest_snr_first` are laserRMT's.  -> the kept, each with name, rank and the mean score then.
    Raises KeyError for a name that is not in `matrices`, before anything is changed.
    Source: laser_compose.py of LASER; rmt_laser.py and rmt_laser_snr.py of laserRMT.
    """
    order = list(candidates)
    weights = named(policy, dict(order))
    best = criterion(policy).mean().item()
    kept: list[dict[str, Any]] = []
    for name, rank in progress(order, desc="composing"):
        if len(kept) == limit:
            break
        before = weights[name].detach().clone()
        assign(weights, {name: low_rank(before, rank)})
        score = criterion(policy).mean().item()
        if score > best:
            best = score
            kept.append({"name": name, "rank": rank, "score": score})
        else:
            assign(weights, {name: before})
    return kept


def best_first(baseline: Tensor, candidates: Sequence[Candidate]) -> list[tuple[str, int]]:
    """Of each matrix that gained by a `search` its best rank, the largest gain first."""
    first: dict[str, int] = {}
    for found in candidates:
        if found.scores.mean() > baseline.mean():
            first.setdefault(found.name, found.rank)
    return [*first.items()]


def above_noise(spectra: Iterable[Spectrum], method: str) -> dict[str, int]:
    """Of each matrix the number of singular values above its noise edge, where some lie below.

    At least 1.  A matrix with nothing below is left out: reducing it changes nothing, which the
    published search by SNR counts as a reduction.
    """
    kept = {s.name: int((s.values > s.edge(method)).sum()) for s in spectra}
    return {s.name: max(1, kept[s.name]) for s in spectra if kept[s.name] < len(s.values)}


def last_layers_first(
    spectra: Sequence[Spectrum], method: str = "laserrmt"
) -> list[tuple[str, int]]:
    """Every matrix at its rank above the noise, from the last layer to the first.

    Within a layer down, up, q, k, v, o; no gate. Source: rmt_laser.py of laserRMT, which stops
    after five kept.
    """
    kept = above_noise(spectra, method)
    tried = [name for name in kept if kind_of(name) in RMT_TYPES]
    tried.sort(key=lambda name: (-layer_of(name), RMT_TYPES.index(kind_of(name))))
    return [(name, kept[name]) for name in tried]


def lowest_snr_first(
    spectra: Sequence[Spectrum], method: str = "laserrmt", count: int = 15
) -> list[tuple[str, int]]:
    """The matrices of lowest SNR, over all types, at their rank above the noise.

    Source: rmt_laser_snr.py of laserRMT.
    """
    kept = above_noise(spectra, method)
    ratios = {s.name: snr(s.values, s.edge(method)) for s in spectra}
    return [(name, kept[name]) for name in sorted(kept, key=ratios.__getitem__)[:count]]


def kind_of(name: str) -> str:
    """ "up_proj" of "model.layers.3.mlp.up_proj.weight"."""
    return name.removesuffix(".weight").rpartition(".")[2]


def layer_of(name: str) -> int:
    """3 of "model.layers.3.mlp.up_proj.weight"."""
    return int(next(part for part in name.split(".") if part.isdigit()))


def winners_curse(
    baseline: Tensor, candidates: Sequence[Candidate], seed: int = 0, resamples: int = 1000
) -> dict[str, float]:
    """How much of the best candidate's gain is owed to its having been chosen.

    gain: its mean over the items.  out_of_bag: the mean, over bootstrap samples of the items, of
    the gain of the sample's best candidate on the items left out.  p: how often the largest of all
    candidates' t-values reaches its, when no candidate has an effect: every candidate's gains less
    their mean, each item's sign drawn, the same for all candidates.
    """
    gains = torch.stack([found.scores - baseline for found in candidates]).double()  # (C, N)
    items, best = gains.shape[1], int(gains.mean(1).argmax())
    centred = gains - gains.mean(1, keepdim=True)
    error = gains.std(1).clamp(min=1e-12) / items**0.5  # (C,) of the mean
    reached = (gains.mean(1) / error)[best]
    generator = torch.Generator().manual_seed(seed)
    left_out, as_large = [], 0
    for _ in range(resamples):
        drawn = torch.randint(items, (items,), generator=generator)
        out = torch.ones(items, dtype=torch.bool)
        out[drawn] = False
        if out.any():
            left_out.append(gains[gains[:, drawn].mean(1).argmax(), out].mean())
        signs = 2.0 * torch.randint(2, (items,), generator=generator).double() - 1
        as_large += bool(((centred @ signs / items) / error).max() >= reached)
    return {
        "gain": gains[best].mean().item(),
        "out_of_bag": torch.stack(left_out).mean().item(),
        "p": (1 + as_large) / (1 + resamples),
    }


@dataclass(frozen=True)
class LaserConfig:
    """What the LASER stage searches; the defaults are the cpu profile's."""

    layers: int = 2  # the last so many
    rhos: tuple[float, ...] = (0.5, 0.1)
    prompts: int = 160  # training prompts that the criterion is measured on


def save_laser(built, folder: Path) -> None:
    """Write policy, tokenizer and search.json into a folder; `load_policy` reads the first two.

    search.json: dicts of name, rho, rank, score and gain; first the policy as it is, name None.
    """
    policy, tokenizer, found = built
    save_policy((policy, tokenizer), folder)
    write_json(folder / "search.json", found)


@stage(
    "laser",
    needs=("apa", "world"),
    config=LaserConfig,
    version=2,
    save=save_laser,
    load=load_policy,
)
def build_laser(config: LaserConfig, ctx: Context, apa, world):
    """Keep the one reduction that most raises the gold reward of greedy answers, if any does."""
    policy, tokenizer = apa
    policy.to(ctx.device.device)
    drawn = world.sample(config.prompts, random.Random(ctx.seed))
    prompts = [prompt.conversation for prompt in drawn]
    greedy_gold = reward_of_answers(world.gold_reward, tokenizer, prompts)

    def criterion(policy: PreTrainedModel) -> Tensor:
        with ctx.device.autocast():
            return greedy_gold(policy)

    last = policy.get_decoder().layers[-config.layers :]
    chosen = {id(p) for p in last.parameters()}
    names = [name for name, p in matrices(policy).items() if id(p) in chosen]
    baseline, candidates = search(policy, names, config.rhos, criterion)
    start = baseline.mean().item()
    rows: list[dict[str, Any]] = [
        {"name": None, "rho": 1.0, "rank": None, "score": start, "gain": 0.0}
    ]
    for name, rho, rank, scores in candidates:
        score = scores.mean().item()
        rows.append({"name": name, "rho": rho, "rank": rank, "score": score, "gain": score - start})
    if rows[1]["gain"] > 0:
        weights, best = matrices(policy), candidates[0]
        assign(weights, {best.name: low_rank(weights[best.name], best.rank)})
    return policy, tokenizer, rows
