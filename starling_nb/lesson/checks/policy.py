"""The exercises of lesson 02: the template, what a loss weighs, and temperature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from starling_nb.data.chat import EOT, Conversation, openchat_text
from starling_nb.lesson.exercises import Exercise, vector
from starling_nb.policy.rollout import log_softmax

Segments = Sequence[tuple[str, int]]
OTHER_WEIGHT = 0.1  # of a demonstration by no expert, as in C-RLFT


def user(text: str) -> dict[str, str]:
    """A user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """An assistant's message."""
    return {"role": "assistant", "content": text}


def stripped(conversation: Conversation) -> Conversation:
    """The messages without blanks around their texts."""
    return [{**message, "content": message["content"].strip()} for message in conversation]


def uncapitalised(text: str) -> str:
    """OpenChat's text with the roles as they stand in the messages."""
    for role in ("User", "Assistant"):
        text = text.replace(f"GPT4 Correct {role}", f"GPT4 Correct {role.lower()}")
    return text


openchat = Exercise(
    name="openchat",
    expects='a conversation [{"role": ..., "content": ...}, ...] -> OpenChat\'s text, without '
    'BOS: each message is "GPT4 Correct User: " or "GPT4 Correct Assistant: ", the content and '
    '"<|end_of_turn|>"; at the end "GPT4 Correct Assistant:"',
    solution=openchat_text,
    cases=[
        ([user("Hello")],),
        ([user("Hi"), assistant("Hello."), user("A joke?")],),
        ([user(" User: one\n"), assistant("two"), user("Assistant:")],),
    ],
    mistakes={
        "a space stands behind the last colon: the answer's first token brings its own": (
            lambda c: openchat_text(c) + " "
        ),
        "<|end_of_turn|> is missing behind the messages": (
            lambda c: openchat_text(c).replace(EOT, "")
        ),
        "<|end_of_turn|> is missing behind the last message": lambda c: (
            openchat_text(c[:-1], add_generation_prompt=False)
            + openchat_text(c[-1:]).replace(EOT, "")
        ),
        "<|end_of_turn|> is missing behind the user's messages": lambda c: "".join(
            openchat_text([m], m == c[-1]).replace(EOT, "" if m["role"] == "user" else EOT)
            for m in c
        ),
        "<|end_of_turn|> stands behind the generation prompt: the answer goes there": (
            lambda c: openchat_text(c) + EOT
        ),
        "the generation prompt is missing: end at `GPT4 Correct Assistant:`": (
            lambda c: openchat_text(c, add_generation_prompt=False)
        ),
        "the class is missing from the generation prompt: it too begins with `GPT4 Correct`": (
            lambda c: openchat_text(c, add_generation_prompt=False) + "Assistant:"
        ),
        "the class is missing: every message begins with `GPT4 Correct`": (
            lambda c: openchat_text(c).replace("GPT4 Correct ", "")
        ),
        "`GPT3 Correct` is the class of the weaker answers: ask as `GPT4 Correct`": (
            lambda c: openchat_text(c, mode="GPT3 Correct")
        ),
        "the messages' roles lack their capital letter: write `User` and `Assistant`": lambda c: (
            uncapitalised(openchat_text(c, add_generation_prompt=False)) + "GPT4 Correct Assistant:"
        ),
        "all roles lack their capital letter, also at the end: write `User` and `Assistant`": (
            lambda c: uncapitalised(openchat_text(c))
        ),
        "a line end follows each <|end_of_turn|>: nothing belongs there": (
            lambda c: openchat_text(c).replace(EOT, EOT + "\n")
        ),
        "the messages are joined by line ends: nothing belongs between them": (
            lambda c: openchat_text(c).replace(EOT, EOT + "\n", len(c) - 1)
        ),
        "a space follows each <|end_of_turn|>: so it does in the code that trained Starling, but "
        "OpenChat's template has none": lambda c: openchat_text(c).replace(EOT, EOT + " "),
        "the space behind a message's colon is missing": lambda c: openchat_text(
            [{**m, "content": "\0" + m["content"]} for m in c]
        ).replace(" \0", ""),
        "BOS is in the text: the tokenizer adds it, so it would stand there twice": (
            lambda c: "<s>" + openchat_text(c)
        ),
        "the contents are stripped: blanks in a message are the message's": (
            lambda c: openchat_text(stripped(c))
        ),
    },
)


def answer_weights(
    segments: Segments, learned: Sequence[str] = ("assistant", "answer's end")
) -> list[int]:
    """1 on each token of the kinds learned, else 0; an answer's header and end are their own."""
    weights: list[int] = []
    for i, (kind, length) in enumerate(segments):
        if kind == "end" and segments[i - 1][0] == "assistant":
            kind = "answer's end"
        if kind == "header" and segments[i + 1][0] == "assistant":
            kind = "answer's header"
        weights += [int(kind in learned)] * length
    return weights


answer_mask = Exercise(
    name="answer_mask",
    expects='segments [(kind, length), ...] of a sequence, the kinds "bos", "header" (as in "GPT4 '
    'Correct User:"), "user", "assistant" and "end" (the end of turn) -> a list of one weight a '
    "token: 1 on what the assistant writes, its end of turn included, else 0",
    solution=lambda segments: answer_weights(segments),
    cases=[
        ([("bos", 1), ("header", 2), ("user", 3), ("end", 1)],),
        (
            [
                *(("bos", 1), ("header", 2), ("user", 3), ("end", 1)),
                *(("header", 2), ("assistant", 2), ("end", 1)),
            ],
        ),
        (
            [
                *(("bos", 1), ("header", 4), ("user", 2), ("end", 1)),
                *(("header", 4), ("assistant", 3), ("end", 1)),
                *(("header", 4), ("user", 5), ("end", 1)),
                *(("header", 4), ("assistant", 1), ("end", 1)),
            ],
        ),
    ],
    mistakes={
        "the end of turn behind an answer has no weight: a model that never learns it does not "
        "stop": lambda segments: answer_weights(segments, ["assistant"]),
        "the user's end of turn has weight: the model does not write it": (
            lambda segments: answer_weights(segments, ["assistant", "answer's end", "end"])
        ),
        "the last end of turn always has weight: it has none behind a user's message": (
            lambda segments: [*answer_weights(segments)[:-1], 1]
        ),
        "of the ends of turn only the last has weight, whoever spoke: it belongs on the end of "
        "every answer and of no user's message": lambda segments: [
            *answer_weights(segments, ["assistant"])[:-1],
            1,
        ],
        "only the last answer's end of turn has weight: every answer ends with one to learn": (
            lambda segments: [
                *answer_weights(segments, ["assistant"])[:-1],
                answer_weights(segments)[-1],
            ]
        ),
        "the header before an answer has weight: the template writes it, not the model": (
            lambda segments: answer_weights(
                segments, ["answer's header", "assistant", "answer's end"]
            )
        ),
        "the weights are turned around: 1 belongs on the answers": (
            lambda segments: [1 - weight for weight in answer_weights(segments)]
        ),
        "every token has weight: prompts are not to be learned": (
            lambda segments: [1] * sum(length for _, length in segments)
        ),
        "only the last answer has weight: every answer of the conversation counts": (
            lambda segments: (
                [0] * sum(length for _, length in segments[:-3]) + answer_weights(segments[-3:])
            )
        ),
        "the end of turn has weight, the answer does not": (
            lambda segments: answer_weights(segments, ["answer's end"])
        ),
        "one weight a segment: each of its tokens needs one": (
            lambda segments: answer_weights([(role, 1) for role, _ in segments])
        ),
        "shifted by one place: give each token its own weight, the loss shifts both": (
            lambda segments: [*answer_weights(segments)[1:], 0]
        ),
    },
)


def token_weights(
    experts: Sequence[bool], lengths: Sequence[int], other: float = OTHER_WEIGHT
) -> Tensor:
    """1 on each token of an expert's answer, `other` on the rest; not normalised."""
    by_answer = torch.tensor([1.0 if expert else other for expert in experts])
    return by_answer.double().repeat_interleave(torch.tensor(lengths))


def length_weights(experts: Sequence[bool], lengths: Sequence[int]) -> Tensor:
    """The weight of each token over the length of its answer; not normalised."""
    repeats = torch.tensor(lengths)
    return token_weights(experts, lengths) / repeats.repeat_interleave(repeats)


def normalised(weights: Tensor) -> Tensor:
    """Weights that sum to 1."""
    return weights / weights.sum()


class_weights = Exercise(
    name="class_weights",
    expects="experts [bool, ...] and lengths [int, ...] of the answers in a batch -> a list of "
    "one weight a token, answer after answer: 1 for experts, 0.1 for the rest, divided by the "
    "sum over all tokens",
    solution=lambda experts, lengths: normalised(token_weights(experts, lengths)),
    cases=[
        ([True], [2]),
        ([True, False], [1, 2]),
        ([False, True, True, False], [3, 1, 4, 2]),
    ],
    mistakes={
        "the weights do not sum to 1: divide by their sum": token_weights,
        "divided by the number of tokens: divide by the sum of the weights": (
            lambda experts, lengths: token_weights(experts, lengths) / sum(lengths)
        ),
        "divided by the number of answers: divide by the sum of the weights": (
            lambda experts, lengths: token_weights(experts, lengths) / len(lengths)
        ),
        "divided by the sum over answers: a weight counts once for each token": (
            lambda experts, lengths: (
                token_weights(experts, lengths) / token_weights(experts, [1] * len(experts)).sum()
            )
        ),
        "each answer counts the same whatever its length: tokens are to count, so a long answer "
        "counts more than a short one of its class": (
            lambda experts, lengths: normalised(length_weights(experts, lengths))
        ),
        "each answer is averaged over its length, then the answers over their number: divide every "
        "token's weight by the sum over all tokens": (
            lambda experts, lengths: length_weights(experts, lengths) / len(lengths)
        ),
        "the classes are swapped: experts weigh 1, the rest 0.1": lambda experts, lengths: (
            normalised(token_weights([not expert for expert in experts], lengths))
        ),
        "the rest is dropped: it weighs 0.1, not 0": (
            lambda experts, lengths: normalised(token_weights(experts, lengths, other=0))
        ),
        "all tokens weigh the same: an expert's should weigh 1, the rest 0.1": (
            lambda experts, lengths: normalised(token_weights(experts, lengths, other=1))
        ),
        "one weight an answer: each of its tokens needs one": lambda experts, lengths: normalised(
            token_weights(experts, [1] * len(experts))
        ),
    },
)


def cooled(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities at a temperature; at 0 all on the largest logit."""
    if temperature == 0:
        return torch.eye(len(logits), dtype=logits.dtype)[logits.argmax()]
    return log_softmax(logits, temperature).exp()


def at_zero(logits: Tensor, temperature: float, answer: Tensor) -> Tensor:
    """`answer` at temperature 0, else what is right."""
    return cooled(logits, temperature) if temperature else answer


def subtracting_undivided(logits: Tensor, temperature: float) -> Tensor:
    """The largest logit subtracted from divided ones: exp may overflow."""
    if temperature == 0:
        return cooled(logits, temperature)
    weights = (logits / temperature - logits.max()).exp()
    return weights / weights.sum()


cool = Exercise(
    name="cool",
    expects="logits (V,), temperature -> the probabilities (V,): softmax of logits / temperature, "
    "and 1 on the largest logit at temperature 0",
    solution=cooled,
    cases=[
        (vector(1, 0), 1.0),
        (vector(2, 0, -1), 0.5),
        (vector(0.5, 3, -1, 2), 2.0),
        (vector(-1, 1, 0.5), 0),
        (vector(1000, 999, 990), 1.0),
        (vector(30, 29, 10), 0.01),
    ],
    mistakes={
        "multiplied by the temperature: a low one must sharpen, so divide": (
            lambda logits, t: (logits * t).softmax(0) if t else cooled(logits, t)
        ),
        "the temperature plays no part: divide the logits by it": (
            lambda logits, t: logits.softmax(0) if t else cooled(logits, t)
        ),
        "the probabilities are divided, where the logits should be": (
            lambda logits, t: logits.softmax(0) / t if t else cooled(logits, t)
        ),
        "the softmax is taken of probabilities, where logits belong": (
            lambda logits, t: (logits.softmax(0) / t).softmax(0) if t else cooled(logits, t)
        ),
        "temperature 0 divides by zero: it stands for the largest logit alone": (
            lambda logits, t: (logits / t).softmax(0)
        ),
        "temperature 0 is not temperature 1: it stands for the largest logit alone": (
            lambda logits, t: at_zero(logits, t, logits.softmax(0))
        ),
        "at temperature 0 an index is returned: the answer is a vector of probabilities": (
            lambda logits, t: at_zero(logits, t, logits.argmax())
        ),
        "at temperature 0 all are equal: that is an infinite temperature": (
            lambda logits, t: at_zero(logits, t, torch.ones_like(logits) / len(logits))
        ),
        "exp overflows for large logits: subtract the largest before dividing by the temperature": (
            lambda logits, t: (
                (logits / t).exp() / (logits / t).exp().sum() if t else cooled(logits, t)
            )
        ),
        "exp overflows for large logits, and temperature 0 divides by zero: subtract the largest, "
        "and put all probability on it at 0": lambda logits, t: (
            (logits / t).exp() / (logits / t).exp().sum()
        ),
        "exp still overflows at a low temperature: subtract the largest of the divided logits": (
            subtracting_undivided
        ),
        "these are log-probabilities: take exp": (
            lambda logits, t: log_softmax(logits, t) if t else cooled(logits, t).log()
        ),
        "the exponentials are not divided by their sum": (
            lambda logits, t: ((logits - logits.max()) / t).exp() if t else cooled(logits, t)
        ),
    },
)
