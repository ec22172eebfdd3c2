"""LASER's intervention: a weight matrix replaced by its best approximation of low rank."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from starling_nb.laser.spectra import check_matrix

Approximate = Callable[[Tensor, int], Tensor]  # weight (n, m), rank -> (n, m)


def matrices(policy: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the 2-D projection weights of the decoder blocks by their name in the policy.

    Raises ValueError when there are none, and for a block with experts in one 3-D weight, which
    would be left out.
    """
    layers = getattr(policy.get_decoder(), "layers", nn.Module())
    blocks = {id(p) for p in layers.parameters() if p.ndim >= 2}
    found = {name: p for name, p in policy.named_parameters() if id(p) in blocks}
    if not found:
        raise ValueError(
            f"policy: expected 2-D weights in the layers of its decoder, found none in "
            f"{type(policy).__name__}"
        )
    for name, weight in found.items():
        if weight.ndim > 2:
            raise ValueError(f"policy: expected 2-D weights, found {name} {tuple(weight.shape)}")
    return found


def named(policy: PreTrainedModel, names: Collection[str]) -> dict[str, nn.Parameter]:
    """Return those of the `matrices`; raise KeyError for a name that none of them has."""
    weights = matrices(policy)
    for name in names:
        if name not in weights:
            raise KeyError(f"no matrix {name!r}: expected a name such as {next(iter(weights))!r}")
    return {name: weights[name] for name in names}


def rank_of(rho: float, shape: tuple[int, ...]) -> int:
    """Return the rank max(1, floor(rho * min(shape))) that a fraction rho in (0, 1] stands for.

    Raises ValueError for another rho. Source: Sharma et al. 2023 (arXiv 2312.13558).
    """
    if not 0 < rho <= 1:
        raise ValueError(f"rho: expected a fraction in (0, 1], found {rho}")
    return max(1, int(rho * min(shape)))


def low_rank(weight: Tensor, rank: int) -> Tensor:
    """Return the (n, m) matrix of that rank nearest to weight (n, m), in weight's dtype.

    The product of its `factors`, in float64: the squared distance is the sum of the squares of the
    singular values left out. Source: Eckart and Young 1936.
    """
    left, right = factors(weight, rank)
    return (left @ right).to(weight.dtype)


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return (n, rank) and (rank, m), float64, whose product is the nearest matrix of that rank.

    They are W projected on its leading singular vectors of the smaller side, which are eigenvectors
    of the Gram matrix there. Raises ValueError unless weight is a matrix of finite floating-point
    numbers and 1 <= rank <= min(n, m).
    """
    check_rank(weight, rank)
    return project(weight.detach().double(), singular_vectors(weight)[:, :rank])


def random_components(weight: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Return weight (n, m) with `rank` of its components, drawn at random: the control of LASER.

    Raises ValueError as `factors` does.
    """
    check_rank(weight, rank)
    drawn = torch.randperm(min(weight.shape), generator=generator)[:rank].to(weight.device)
    left, right = project(weight.detach().double(), singular_vectors(weight)[:, drawn])
    return (left @ right).to(weight.dtype)


def sketched_low_rank(
    weight: Tensor, rank: int, seed: int, oversampling: int = 10, iterations: int = 2
) -> Tensor:
    """Return nearly the nearest matrix of that rank, for a fraction of the work, in weight's dtype.

    The span of W times rank + oversampling random vectors, sharpened by `iterations` products with
    W Wᵀ, stands for that of the leading singular vectors. Exact where rank + oversampling reaches
    min(n, m). The published code has neither oversampling nor a seed.
    Source: Halko, Martinsson and Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1. Naive twin:
    `low_rank`. Raises ValueError as `factors` does.
    """
    check_rank(weight, rank)
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    size = min(rank + oversampling, *wide.shape)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(wide.shape[1], size, generator=generator, dtype=wide.dtype).to(wide.device)
    basis = torch.linalg.qr(wide @ drawn)[0]  # (n, size)
    for _ in range(iterations):
        basis = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ basis)[0])[0]
    rotation = torch.linalg.svd(basis.T @ wide, full_matrices=False)[0][:, :rank]
    left = basis @ rotation  # (n, rank)
    return (left @ (left.T @ wide)).to(weight.dtype)


def singular_vectors(weight: Tensor) -> Tensor:
    """The singular vectors of the smaller side, as columns (d, d), d = min(n, m), largest first."""
    wide = weight.detach().double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    return torch.linalg.eigh(gram)[1].flip(1)


def project(weight: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Two factors of W projected on orthonormal columns (d, r) of its smaller side."""
    if weight.shape[0] <= weight.shape[1]:
        return vectors, vectors.T @ weight
    return weight @ vectors, vectors.T


def check_rank(weight: Tensor, rank: int) -> None:
    """Raise ValueError unless weight is a matrix that has an approximation of that rank."""
    check_matrix(weight)
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"rank: expected 1 to {min(weight.shape)}, found {rank}")


@contextmanager
def reduced(
    policy: PreTrainedModel,
    ranks: Mapping[str, int],
    *,
    approximate: Approximate = low_rank,
) -> Iterator[PreTrainedModel]:
    """Give the policy with the named matrices at the given ranks; restore them after, bit for bit.

    Raises KeyError for a name that is not in `matrices`, and ValueError as `factors` does, before
    anything is changed.
    """
    weights = named(policy, ranks)
    approximations = {name: approximate(weights[name], rank) for name, rank in ranks.items()}
    originals = {name: weight.detach().clone() for name, weight in weights.items()}
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


@contextmanager
def factored(policy: PreTrainedModel, ranks: Mapping[str, int]) -> Iterator[PreTrainedModel]:
    """Give the policy with `reduced` matrices kept as two thin ones, where those are smaller.

    An (n, m) weight becomes layers of (rank, m) and (n, rank), r (n + m) numbers for n m; where
    that is not fewer, it is reduced as it stands. The layers are put back after.
    Raises as `reduced` does.
    """
    weights = named(policy, ranks)
    thin = {n: r for n, r in ranks.items() if r * sum(weights[n].shape) < weights[n].numel()}
    layers = {name: policy.get_submodule(name.removesuffix(".weight")) for name in thin}
    pairs = {name: thin_layers(cast(nn.Linear, layers[name]), rank) for name, rank in thin.items()}
    with reduced(policy, {n: r for n, r in ranks.items() if n not in thin}):
        try:
            for name, pair in pairs.items():
                policy.set_submodule(name.removesuffix(".weight"), pair)
            yield policy
        finally:
            for name, layer in layers.items():
                policy.set_submodule(name.removesuffix(".weight"), layer)


def thin_layers(layer: nn.Linear, rank: int) -> nn.Sequential:
    """A linear layer as two of the given rank, its bias with the second."""
    weight = layer.weight
    left, right = factors(weight, rank)
    options = {"device": weight.device, "dtype": weight.dtype}
    first = nn.Linear(weight.shape[1], rank, bias=False, **options)
    second = nn.Linear(rank, weight.shape[0], bias=layer.bias is not None, **options)
    with torch.no_grad():
        first.weight.copy_(right)
        second.weight.copy_(left)
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)
