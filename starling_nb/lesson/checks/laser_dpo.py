"""The exercises of lesson 09: DPO of pairs and of lists, packed answers, layers chosen by type."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from starling_nb.lesson.exercises import Exercise, vector
from starling_nb.policy import dpo
from starling_nb.reward.kwise import pairwise_nll


def pair_loss(better: Tensor, worse: Tensor, ref_better: Tensor, ref_worse: Tensor, beta) -> Tensor:
    """The mean of `policy.dpo.dpo_loss` over pairs (B,)."""
    ratios = torch.stack([better - ref_better, worse - ref_worse], 1)
    return dpo.dpo_loss(ratios, beta=beta).mean()


def of_margin(loss: Callable[[Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """The mean of a loss of h of the better less h of the worse (B,), and beta."""

    def mean(b: Tensor, w: Tensor, rb: Tensor, rw: Tensor, beta: float) -> Tensor:
        return loss((b - rb) - (w - rw), beta).mean()

    return mean


dpo_loss = Exercise(
    name="dpo_loss",
    expects="better, worse (B,): log pi of the answers of B pairs, ref_better, ref_worse (B,): "
    "log pi_ref of the same, beta -> a number: the mean of -log sigmoid(beta (h_better - "
    "h_worse)), h = log pi - log pi_ref",
    solution=pair_loss,
    cases=[
        (vector(-10), vector(-12), vector(-11), vector(-11.5), 0.1),
        (vector(-3, -8, -20), vector(-4, -6, -21), vector(-5, -7, -18), vector(-3, -7, -24), 0.5),
        (vector(-900, -5), vector(-2, -6), vector(-4, -6), vector(-700, -5), 0.5),  # h far apart
    ],
    mistakes={
        "the reference is missing: h is log pi - log pi_ref": lambda b, w, rb, rw, beta: pair_loss(
            b, w, 0 * rb, 0 * rw, beta
        ),
        "the reference is added: subtract it": lambda b, w, rb, rw, beta: pair_loss(
            b, w, -rb, -rw, beta
        ),
        "better and worse are swapped": lambda b, w, rb, rw, beta: pair_loss(w, b, rw, rb, beta),
        "beta is missing": lambda b, w, rb, rw, beta: pair_loss(b, w, rb, rw, 1),
        "divided by beta: h is multiplied by it": lambda b, w, rb, rw, beta: pair_loss(
            b, w, rb, rw, 1 / beta
        ),
        "beta stands outside: it multiplies h, inside the sigmoid": of_margin(
            lambda margin, beta: -beta * logsigmoid(margin)
        ),
        "beta multiplies log pi only: it multiplies h": lambda b, w, rb, rw, beta: (
            -logsigmoid((beta * b - rb) - (beta * w - rw)).mean()
        ),
        "the logarithm is missing: this is -sigmoid": of_margin(
            lambda margin, beta: -(beta * margin).sigmoid()
        ),
        "this is the probability of the wrong order: the loss is -log of that of the right one": (
            of_margin(lambda margin, beta: (-beta * margin).sigmoid())
        ),
        "the sign: the loss is positive": of_margin(lambda margin, beta: logsigmoid(beta * margin)),
        "log(sigmoid) is -inf where h are far apart: logsigmoid or softplus is not": of_margin(
            lambda margin, beta: -(beta * margin).sigmoid().log()
        ),
        "the sum over pairs: their mean is asked for": lambda b, w, rb, rw, beta: (
            len(b) * pair_loss(b, w, rb, rw, beta)
        ),
        "the mean is taken before the loss: h of a pair goes with its own": of_margin(
            lambda margin, beta: -logsigmoid(beta * margin.mean())
        ),
        "this is a squared distance, as in IPO: -log sigmoid is asked for": of_margin(
            lambda margin, beta: (margin - 0.5 / beta) ** 2
        ),
        "h is the ratio of the logarithms: the logarithm of a ratio is their difference": (
            lambda b, w, rb, rw, beta: -logsigmoid(beta * (b / rb - w / rw)).mean()
        ),
    },
)


def whole_list(ratios: Tensor, beta: float) -> Tensor:
    """`policy.dpo.kwise_dpo_loss` of one list (K,)."""
    return dpo.kwise_dpo_loss(ratios[None], beta=beta)[0]


def broken(breaking: str) -> Callable[[Tensor, float], Tensor]:
    """DPO of the pairs that one list is broken into."""
    return lambda ratios, beta: pairwise_nll(beta * ratios[None], None, breaking)[0]


kwise_dpo_loss = Exercise(
    name="kwise_dpo_loss",
    expects="ratios (K,): h = log pi - log pi_ref of the answers of one list, best first, beta -> "
    "a number: minus the log-probability of the list under Plackett-Luce with scores beta h",
    solution=whole_list,
    cases=[
        (vector(2, -1), 0.5),
        (vector(1, 0.5, -2), 0.5),
        (vector(-1, 3, 0.5, -2), 2.0),
        (vector(-900, 0, 600, -1200), 1.0),
    ],
    mistakes={
        "all pairs are counted: a place is one softmax over the answers that are left": (
            broken("full")
        ),
        "only the first place is counted: so is each later one, over what is left": (
            lambda h, beta: -(beta * h).log_softmax(0)[0]
        ),
        "only neighbours are compared: a place is a softmax over all answers that are left": (
            broken("adjacent")
        ),
        "only best and worst are compared": broken("best_vs_worst"),
        "the best is compared with each other one by itself: places are softmaxes": (
            broken("best_vs_rest")
        ),
        "no answer leaves: at each place the better ones are taken already": (
            lambda h, beta: -(beta * h).log_softmax(0).sum()
        ),
        "the wrong end leaves first: the softmaxes go from the best down": (
            lambda h, beta: whole_list(h.flip(0), beta)
        ),
        "beta is missing": lambda h, beta: whole_list(h, 1),
        "divided by beta: h is multiplied by it": lambda h, beta: whole_list(h, 1 / beta),
        "beta stands outside: it multiplies h": lambda h, beta: beta * whole_list(h, 1),
        "divided by the number of places: the sum over them is asked for": (
            lambda h, beta: whole_list(h, beta) / (len(h) - 1)
        ),
        "divided by the number of answers: the sum over places is asked for": (
            lambda h, beta: whole_list(h, beta) / len(h)
        ),
        "the sign: minus the log-probability": lambda h, beta: -whole_list(h, beta),
        "this is the probability: minus its logarithm is asked for": (
            lambda h, beta: (-whole_list(h, beta)).exp()
        ),
        "exp overflows or vanishes where h are far apart: use logsumexp": lambda h, beta: sum(
            (beta * h).exp()[k:].sum().log() - (beta * h).exp()[k].log() for k in range(len(h))
        ),
    },
)


def places(segments: Tensor) -> Tensor:
    """Of each answer token the place of the state that predicts it."""
    answer = segments > 0
    starts = answer & (segments != segments.roll(1))
    before = torch.arange(len(segments)) - 1
    return torch.where(starts, prompt_end(segments), before)[answer]


def prompt_end(segments: Tensor) -> Tensor:
    """The place of the prompt's last token."""
    return (segments > 0).int().argmax() - 1


def answers_at(segments: Tensor) -> Tensor:
    """The places of the answer tokens."""
    return (segments > 0).nonzero()[:, 0]


predicting_places = Exercise(
    name="predicting_places",
    expects="segments (T,) of a packed row, 0 on the prompt and then 1 1 2 2 2 ... on its answers "
    "-> (N,) integers: for each of the N answer tokens, in their order, the place in the row of "
    "the state that predicts it",
    solution=places,
    cases=[
        (torch.tensor([0, 0, 1, 1]),),
        (torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]),),
        (torch.tensor([0, 0, 0, 0, 1, 2, 2, 3, 3, 3, 4]),),
    ],
    mistakes={
        "each token is predicted by the one before it in the row, also where an answer begins: "
        "its first follows the prompt's last": lambda s: answers_at(s) - 1,
        "these are the places of the tokens: a state predicts the next one": answers_at,
        "every token is predicted by the prompt's last: only the first of an answer is": (
            lambda s: prompt_end(s).expand(len(answers_at(s)))
        ),
        "one too far: the state before a token predicts it": lambda s: places(s) + 1,
        "the state behind a token cannot predict it: take the one before": (
            lambda s: answers_at(s) + 1
        ),
        "an answer's first token is left out: it is predicted by the prompt's last": (
            lambda s: (answers_at(s) - 1)[s[answers_at(s)] == s[answers_at(s) - 1]]
        ),
        "an answer's first is predicted by the prompt's last token, not its first": (
            lambda s: torch.where(
                places(s) == prompt_end(s), torch.zeros_like(places(s)), places(s)
            )
        ),
        "an answer's first is predicted by the prompt's last token: this is the place behind it": (
            lambda s: torch.where(places(s) == prompt_end(s), places(s) + 1, places(s))
        ),
        "prompt tokens are in it too: only those of answers are asked for": (
            lambda s: torch.cat([torch.arange(int(prompt_end(s))), places(s)])
        ),
        "places are counted from 0 at the first answer: count from the start of the row": (
            lambda s: places(s) - prompt_end(s) - 1
        ),
    },
)


def kind(name: str) -> str:
    """up_proj of model.layers.3.mlp.up_proj.weight."""
    return name.split(".")[-2]


def block(name: str) -> str:
    """3 of model.layers.3.mlp.up_proj.weight."""
    return name.split(".")[2]


def top(
    scores: dict[str, float], count: int, group: Callable[[str], str] = kind, sign: int = 1
) -> list[str]:
    """The names of the `count` highest scores of each group, in the order given."""
    chosen: set[str] = set()
    for value in {group(name) for name in scores}:
        members = [name for name in scores if group(name) == value]
        chosen |= {*sorted(members, key=lambda name: -sign * scores[name])[:count]}
    return [name for name in scores if name in chosen]


def layer_scores(*values: tuple[float, ...]) -> dict[str, float]:
    """Scores of q, up and down of each layer."""
    parts = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    return {
        f"model.layers.{layer}.{part}.weight": score
        for layer, row in enumerate(values)
        for part, score in zip(parts, row, strict=True)
    }


top_of_each_type = Exercise(
    name="top_of_each_type",
    expects="scores: name -> number, names like model.layers.3.mlp.up_proj.weight, count -> the "
    "names of the `count` highest scores of each type, as a list in the order of scores",
    solution=top,
    cases=[
        (layer_scores((0.5, 20, 9), (0.4, 30, 8)), 1),
        (layer_scores((0.5, 20, 9), (1.4, 35, 16), (0.9, 2, 18), (0.3, 28, 12)), 2),
        (layer_scores((1.1, 3, 7), (0.2, 8, 30), (0.7, 5, 6), (0.9, 4, 40), (0.6, 9, 1)), 3),
    ],
    mistakes={
        "so many over all types: scores of different shapes cannot be compared, choose within "
        "each type": lambda s, count: top(s, 3 * count, lambda name: ""),
        "so many in all: `count` of each type are asked for, and every name ends in .weight": (
            lambda s, count: top(s, count, lambda name: "")
        ),
        "the lowest are chosen: take the highest": lambda s, count: top(s, count, sign=-1),
        "chosen within each layer: choose within each type": lambda s, count: top(s, count, block),
        "attention and mlp are taken for the types: up_proj and down_proj are types of their own": (
            lambda s, count: top(s, count, lambda name: name.split(".")[3])
        ),
        "one of each type: `count` are asked for": lambda s, count: top(s, 1),
        "one too few of each type": lambda s, count: top(s, count - 1),
        "one too many of each type": lambda s, count: top(s, count + 1),
        "in the order of the scores: keep the order in which they were given": (
            lambda s, count: sorted(top(s, count), key=lambda name: -s[name])
        ),
        "type by type: keep the order in which they were given": lambda s, count: sorted(
            top(s, count), key=lambda name: [*map(kind, s)].index(kind(name))
        ),
        "in the order of the alphabet: keep the order in which they were given": (
            lambda s, count: sorted(top(s, count))
        ),
    },
)
