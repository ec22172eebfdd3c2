"""Profiles: where the course runs and how large; and configs made of the sizes they give."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Profile:
    """One scale of the course.

    `device` is "cpu" or "cuda"; `precision` (of compute, not of weights) is "float32", "bfloat16"
    or "float16"; `threads` is torch's thread count, fixed because sums depend on it; `sizes` maps a
    stage's or lesson's name to the config fields that differ from its own defaults, which are those
    of the `cpu` profile.
    """

    name: str
    device: str
    precision: str
    threads: int
    sizes: Mapping[str, Mapping[str, object]]


# Stage or lesson -> config fields, tiny: every notebook in seconds, numbers meaningless.
SMOKE_SIZES: dict[str, dict[str, object]] = {
    "sft": {"rows": 128},
    "rankings": {"lists": 40, "held_out": 80, "limit": 24},
    "reward_model": {"lists": 40},
    "apa": {"iterations": 2, "batch_size": 16, "minibatch_size": 8, "max_new_tokens": 16},
    "laser": {"layers": 1, "rhos": (0.5,), "prompts": 8},
}

# Stage or lesson -> config fields, larger: one modern GPU.
GPU_SIZES: dict[str, dict[str, object]] = {
    "base": {
        "shipped": False,
        "hidden_size": 320,
        "intermediate_size": 832,
        "layers": 8,
        "heads": 8,
        "key_value_heads": 4,
        "rows": 32,
        "steps": 2500,
        "lr": 2e-3,
    },
    "sft": {"rows": 28_000, "batch_size": 64, "lr": 1e-3},
    "rankings": {"lists": 14_000},
    "reward_model": {"lists": 14_000, "batch_size": 24, "lr": 8e-4},
    "apa": {"batch_size": 256, "minibatch_size": 128, "lr": 3e-4},
}

PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("cpu", device="cpu", precision="float32", threads=2, sizes={}),
        Profile("smoke", device="cpu", precision="float32", threads=1, sizes=SMOKE_SIZES),
        Profile("gpu", device="cuda", precision="bfloat16", threads=8, sizes=GPU_SIZES),
    )
}


def get_profile(name: str) -> Profile:
    """The profile of that name; ValueError listing the names when there is none."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def make_config(name: str, config: type, changed: Mapping[str, object]) -> Any:
    """An instance of the dataclass `config` with the `changed` fields, every type checked.

    Fields are int, float, str, bool, tuple, or one of these and None; an int is taken for a float,
    a bool never for a number. Raises TypeError naming `name` (a stage or lesson) and the field.
    """
    hints = get_type_hints(config)
    defaults = config()
    values = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    unknown = [field for field in changed if field not in values]
    if unknown:
        raise TypeError(
            f"'{name}' has no config field '{unknown[0]}'; its fields are: {', '.join(values)}"
        )
    for field, value in {**values, **changed}.items():
        hint = hints[field]
        try:
            values[field] = fit(value, hint)
        except TypeError:
            expected = hint.__name__ if isinstance(hint, type) and not get_args(hint) else hint
            raise TypeError(
                f"'{name}', config field '{field}': expected {expected}, "
                f"got {type(value).__name__} {value!r}"
            ) from None
    return config(**values)


def fit(value: Any, hint: Any) -> Any:
    """`value` if it has the hinted type, an int as a float where one is hinted; else TypeError."""
    for option in get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,):
        if value is None and option is type(None):
            return None
        if isinstance(value, bool):  # before int, whose subclass it is
            if option is bool:
                return value
        elif option in (int, str, tuple) and isinstance(value, option):
            return value
        elif option is float and isinstance(value, int | float):
            return float(value)
        elif get_origin(option) is tuple and isinstance(value, tuple):
            items = get_args(option)
            if len(items) == 2 and items[1] is ...:
                items = items[:1] * len(value)
            if len(items) == len(value):
                return tuple(fit(item, of) for item, of in zip(value, items, strict=True))
    raise TypeError
