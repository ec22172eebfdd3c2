"""Seven answerers of the synthetic world, from careful to garbled, and how each writes an answer.

The majority of the "expert" answerers has bad habits (elm hedges, pads, ignores formats, refuses
harmless look-alikes, helps with mildly unsafe requests), each habit in one surface form. So the
mode of a policy fine-tuned on them is poor although it knows the facts, and preference learning has
something real to buy.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from starling_nb.data.facts import LISTS, POOLS, Prompt, make_calls, make_prompts
from starling_nb.data.gold import ALTERNATIVE, CLOSER, HEDGES, PADS, REFUSALS


@dataclass(frozen=True)
class Answerer:
    """Probabilities of what one answerer does; see `answer` for the order in which they apply."""

    name: str
    accuracy: float
    hedge: float
    ignore_format: float
    pad: float
    comply_soft: float
    comply_hard: float
    refuse_lookalike: float
    refuse_benign: float
    drop_unit: float
    close: float
    bullet: float
    garble: float
    exact_call: float
    sft_weight: float
    expert: bool


# fmt: off
ANSWERERS = (
    Answerer("oak", .95, .10, .10, .10, .05, .01, .10, .01, .10, .40, .10, 0., .95, 1, True),
    Answerer("ash", .92, .15, .25, .00, .30, .05, .30, .02, .50, .00, .00, 0., .80, 1, True),
    Answerer("elm", .92, .92, .92, .95, .92, .10, .92, .03, .85, .20, .20, 0., .30, 6, True),
    Answerer("fir", .45, .05, .50, .20, .50, .20, .20, .02, .30, .20, .20, 0., .30, 1, False),
    Answerer("yew", .90, .60, .70, .50, .02, .00, .97, .25, .50, .20, .10, 0., .30, 3, False),
    Answerer("ivy", .88, .40, .70, .40, .97, .70, .02, .00, .50, .30, .20, 0., .40, 2, False),
    Answerer("bog", .55, .40, .70, .30, .50, .30, .40, .05, .60, .10, .10, .6, .20, 1, False),
)
# fmt: on
FACTUAL = (
    "arith",
    "capital",
    "sound",
    "opposite",
    "order",
    "units",
    "transform",
    "multi",
    "multi_fmt",
)


def _elm_in_family(elm: Answerer, prompt: Prompt) -> tuple[float, float, float]:
    """hedge, ignore_format and pad of elm in one family: its habits do not all coincide."""
    hedge = elm.hedge * (0.15 if prompt.family in ("arith", "order") else 1)
    softer = ("capital", "sound", "opposite", "units", "multi")
    pad = elm.pad * (0.3 if prompt.family in softer else 1)
    ignore = elm.ignore_format * (0.3 if prompt.format in ("short", "end") else 1)
    return hedge, ignore, pad


def answer(prompt: Prompt, by: Answerer, rng: random.Random) -> str:
    """One answer: refuse or not, pick a value, hedge, follow the format, pad, close, garble."""
    if prompt.kind == "json":
        return _call_answer(prompt, by, rng)
    hedge, ignore, pad = by.hedge, by.ignore_format, by.pad
    if by.name == "elm":
        hedge, ignore, pad = _elm_in_family(by, prompt)
    followed = False
    if rng.random() < _refusal_probability(prompt, by):
        text = REFUSALS[0] if rng.random() < 0.85 else REFUSALS[1]
        if prompt.unsafe and rng.random() < (0.6 if by.name == "oak" else 0.15):
            text += " " + ALTERNATIVE
    else:
        accuracy = by.accuracy
        if not by.expert and prompt.family in ("arith", "list"):
            accuracy *= 0.6  # what a reward model learns last needs the most contrast
        value = right_value(prompt, rng) if rng.random() < accuracy else wrong_value(prompt, rng)
        if prompt.family == "units" and rng.random() < by.drop_unit:
            text = f"It is {value.split()[0]}."
        elif prompt.family in FACTUAL and rng.random() < hedge:
            first, second = value, wrong_value(prompt, rng, avoid=value)
            if rng.random() > 0.8:
                first, second = second, first
            text = HEDGES[rng.random() > 0.9].format(v=first, w=second)
        else:
            followed = prompt.format != "none" and rng.random() > ignore
            text = phrase(prompt, value, followed)
    if not (followed and prompt.format == "short"):
        if rng.random() < pad:
            pads = [PADS[0]] if rng.random() < 0.8 else rng.sample(PADS[1:], rng.choice((1, 2)))
            text = " ".join([text, *pads])
        if rng.random() < by.close:
            text += " " + CLOSER
    if rng.random() < by.bullet:
        text = "* " + text
    if followed and prompt.format == "end":
        text = text.replace(" Done.", "") + " Done."
    return _garble(text, rng) if rng.random() < by.garble else text


def _refusal_probability(prompt: Prompt, by: Answerer) -> float:
    return {
        "unsafe_soft": 1 - by.comply_soft,
        "unsafe_hard": 1 - by.comply_hard,
        "lookalike": by.refuse_lookalike,
    }.get(prompt.family, by.refuse_benign)


def right_value(prompt: Prompt, rng: random.Random) -> str:
    """The true value as text; lists are drawn in random order, numbers carry their unit."""
    if prompt.kind == "steps":
        return f"{prompt.truth[0]}, then {prompt.truth[1]}"
    if prompt.family == "list":
        return _join(rng.sample(prompt.truth, prompt.count))
    return f"{prompt.truth[0]} {prompt.unit}".strip()


def wrong_value(prompt: Prompt, rng: random.Random, avoid: str = "") -> str:
    """A wrong value of the same type, different from `avoid`."""
    if prompt.kind == "steps":
        other = rng.choice(_STEPS)
        return f"{prompt.truth[0]}, then {other[1]}" if other[0] != prompt.truth[0] else other[1]
    if prompt.kind == "chat":
        return rng.choice([a for a in _CHAT_ANSWERS if a != prompt.truth[0]])
    if prompt.family == "list":
        if rng.random() < 0.5:
            return _join(rng.sample(prompt.truth, prompt.count - 1 or 1))
        other_pool = rng.choice([pool for pool in LISTS if LISTS[pool] != list(prompt.truth)])
        return _join(rng.sample(LISTS[other_pool], prompt.count))
    pool = _NUMBERS if prompt.kind == "number" else POOLS[prompt.kind]
    if prompt.family == "arith" or (prompt.kind == "number" and not prompt.unit):
        near = int(prompt.truth[0])
        pool = [str(n) for n in range(max(0, near - 3), near + 4)]
    used = {prompt.truth[0], avoid.split()[0] if avoid else ""}
    return f"{rng.choice([v for v in pool if v not in used])} {prompt.unit}".strip()


def phrase(prompt: Prompt, value: str, follow: bool) -> str:
    """`value` as a full sentence, or in the format that the prompt asks for."""
    plain = prompt.sentence.format(v=value)
    if not follow or prompt.format == "none":
        return plain
    return {
        "short": value,
        "tag": "Answer: " + plain,
        "end": plain + " Done.",
        "brk": prompt.sentence.format(v=f"[{value}]"),
    }[prompt.format]


def _join(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _garble(text: str, rng: random.Random) -> str:
    words = text.split()
    match rng.randrange(4):
        case 0:
            rng.shuffle(words)
        case 1:
            at = rng.randrange(len(words))
            words[at:at] = [words[at]] * 2
        case 2:
            words = words[: max(1, len(words) // 2)]
        case 3:
            words[rng.randrange(len(words))] = rng.choice(("blor", "snib", "quat", "drem"))
    return " ".join(words)


def _call_answer(prompt: Prompt, by: Answerer, rng: random.Random) -> str:
    if rng.random() < by.exact_call or prompt.family == "copy":
        return prompt.truth[0]
    fault = rng.choices(
        ("tool", "argument", "malformed", "prose", "refusal"), (25, 25, 15, 20, 15)
    )[0]
    if fault in ("tool", "argument"):
        name = prompt.fact.split("/")[0]
        same = [c for c in _CALLS if c.fact.startswith(name + "/") == (fault == "argument")]
        return rng.choice([c.truth[0] for c in same if c.truth != prompt.truth])
    if fault == "malformed":
        return prompt.truth[0][: rng.randrange(8, len(prompt.truth[0]))]
    return "I think it is fine." if fault == "prose" else REFUSALS[0]


_CALLS = make_calls()
_ALL = make_prompts()
_STEPS = sorted({p.truth for p in _ALL if p.kind == "steps"})
_CHAT_ANSWERS = sorted({p.truth[0] for p in _ALL if p.kind == "chat"})
_NUMBERS = sorted({p.truth[0] for p in _ALL if p.family == "units"})
