"""Partial freezing: which weight matrices of a model are trained, and how many numbers that is."""

import random
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from starling_nb.laser.reduce import matrices

LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Trained:
    """What a selection leaves trainable; all else is frozen."""

    names: tuple[str, ...]  # of parameters, in the model's order
    count: int  # numbers trained
    total: int  # numbers of the model, tied ones once

    def peft_targets(self) -> list[str]:
        """The modules of these weights, for `LoraConfig(target_modules=...)`.

        Names are whole: peft also takes ends of names, and `up_proj` would adapt every layer.
        """
        return [name.removesuffix(".weight") for name in self.names]


def train_only(model: PreTrainedModel, names: Collection[str]) -> Trained:
    """Leave the named parameters of a model trainable and freeze all others.

    Raises ValueError for a name that is none of the model's (a tied weight has one name only), for
    no name, and for a quantised weight, with nothing changed.
    """
    parameters = dict(model.named_parameters())
    unknown = [name for name in names if name not in parameters]
    if unknown or not names:
        raise ValueError(
            f"names: expected parameters of the model, such as {next(iter(parameters))}, found "
            f"{', '.join(unknown[:3]) or 'none'}"
        )
    for name in names:
        if not parameters[name].is_floating_point():
            raise ValueError(
                f"names: expected floating-point weights, {name} is {parameters[name].dtype}; only "
                "adapters of it can be trained"
            )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in names)
    chosen = tuple(name for name in parameters if name in names)
    return Trained(chosen, count(parameters[n] for n in chosen), count(parameters.values()))


def count(parameters: Iterable[nn.Parameter]) -> int:
    """How many numbers they hold."""
    return sum(parameter.numel() for parameter in parameters)


def matching(model: PreTrainedModel, patterns: Iterable[str]) -> list[str]:
    """The parameters that one of the regular expressions matches from their name's first letter.

    Raises ValueError for a pattern that matches none: published lists name `lm.head` and
    `^lm_head.weight$`, which some of their readers compare letter by letter and never find. And for
    what is no regular expression.
    """
    names = [name for name, _ in model.named_parameters()]
    found = {}
    for pattern in patterns:
        try:
            found[pattern] = [name for name in names if re.match(pattern, name)]
        except re.error as error:
            raise ValueError(f"pattern {pattern!r}: no regular expression ({error})") from error
    for pattern, matched in found.items():
        if not matched:
            raise ValueError(f"pattern {pattern!r}: expected to match a parameter, matched none")
    return [name for name in names if any(name in matched for matched in found.values())]


def freeze_by_score(
    model: PreTrainedModel,
    scores: Mapping[str, float],
    per_type_top: int,
    *,
    pick: str = "top",
    seed: int = 0,
) -> Trained:
    """Train so many matrices of each type, those of the highest scores, and freeze all else.

    scores: one for each of `reduce.matrices(model)`, by name: of `scan.scores` a column. The layers
    of a type (`mlp.up_proj`) are compared with each other only: a score may depend on the shape.
    pick: "top", or as controls of equal size "bottom" and "random", drawn from `seed`.
    Equal scores: the earlier layer counts as higher.
    Raises ValueError for another pick, for scores of other names than the matrices', for NaN, for a
    type whose layers differ in shape, and unless 1 <= per_type_top <= the number of layers.
    Source: laser-QLoRA (laserQlora.ipynb), which trains 16 of 32 layers of each type.
    """
    if pick not in ("top", "bottom", "random"):
        raise ValueError(f"pick: expected top, bottom or random, found {pick!r}")
    weights = matrices(model)
    if scores.keys() != weights.keys():
        odd = ", ".join(sorted(scores.keys() ^ weights.keys())[:3])
        raise ValueError(
            f"scores: expected one for each of the {len(weights)} matrices of the blocks, found "
            f"{len(scores)}; on one side only: {odd}"
        )
    nan = [name for name, score in scores.items() if score != score]
    if nan:
        raise ValueError(f"scores: expected numbers, found NaN for {', '.join(nan[:3])}")
    types: dict[str, list[str]] = defaultdict(list)
    for name in weights:
        types[LAYER.sub(".*.", name, count=1)].append(name)
    generator, chosen = random.Random(seed), []
    for kind, names in types.items():
        if not 1 <= per_type_top <= len(names):
            raise ValueError(
                f"per_type_top: expected 1 to {len(names)}, the layers of {kind}, found "
                f"{per_type_top}"
            )
        shapes = {tuple(weights[name].shape) for name in names}
        if len(shapes) > 1:
            raise ValueError(f"model: expected one shape for all {kind}, found {sorted(shapes)}")
        if pick == "random":
            chosen += generator.sample(names, per_type_top)
        else:
            ordered = sorted(names, key=lambda name: -scores[name])
            chosen += ordered[:per_type_top] if pick == "top" else ordered[-per_type_top:]
    return train_only(model, chosen)


def unfreeze_last(model: PreTrainedModel, layers: int) -> Trained:
    """Train the matrices of so many last blocks and freeze all else, norms and embeddings too.

    As many numbers as `freeze_by_score` trains with per_type_top = layers. Raises ValueError unless
    1 <= layers <= the number of blocks.
    """
    weights = matrices(model)
    blocks = model.get_decoder().layers
    if not 1 <= layers <= len(blocks):
        raise ValueError(f"layers: expected 1 to {len(blocks)}, the blocks, found {layers}")
    last = {id(parameter) for parameter in blocks[-layers:].parameters()}
    return train_only(model, [name for name, p in weights.items() if id(p) in last])
