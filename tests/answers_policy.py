"""Answers to the exercises of lesson 02, as learners write them."""

# ruff: noqa: B905

import math

import numpy as np
import torch
from answers import right, wrong

TURN = "<|end_of_turn|>"


def template(conversation, mode="GPT4 Correct ", end=TURN, gap=" ", last="Assistant:"):
    names = {"user": "User:", "assistant": "Assistant:"}
    text = ""
    for message in conversation:
        text += mode + names[message["role"]] + gap + message["content"] + end
    return text + (mode if last else "") + last


@right("openchat")
def joined_strings(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}" for m in conversation]
    return TURN.join([*parts, "GPT4 Correct Assistant:"])


@wrong("openchat", "a space stands behind the last colon")
def trailing_space(conversation):
    return template(conversation, last="Assistant: ")


@wrong("openchat", "missing behind the messages")
def no_end_of_turn(conversation):
    return template(conversation, end="")


@wrong("openchat", "missing behind the last message")
def no_last_end(conversation):
    *before, asked = [f"GPT4 Correct {m['role'].title()}: {m['content']}" for m in conversation]
    return "".join(text + TURN for text in before) + asked + "GPT4 Correct Assistant:"


@wrong("openchat", "missing behind the user's")
def end_after_answers_only(conversation):
    text = ""
    for m in conversation:
        text += f"GPT4 Correct {m['role'].title()}: {m['content']}"
        text += TURN if m["role"] == "assistant" else ""
    return text + "GPT4 Correct Assistant:"


@wrong("openchat", "behind the generation prompt")
def end_of_nothing(conversation):
    return template(conversation) + TURN


@wrong("openchat", "the generation prompt is missing")
def no_generation_prompt(conversation):
    return template(conversation, last="")


@wrong("openchat", "the class is missing from the generation prompt")
def bare_generation_prompt(conversation):
    return template(conversation, last="") + "Assistant:"


@wrong("openchat", "every message begins with")
def no_class(conversation):
    return template(conversation, mode="")


@wrong("openchat", "class of the weaker")
def other_class(conversation):
    return template(conversation, mode="GPT3 Correct ")


@wrong("openchat", "messages' roles lack")
def role_as_it_is(conversation):
    text = ""
    for message in conversation:
        text += "GPT4 Correct " + message["role"] + ": " + message["content"] + TURN
    return text + "GPT4 Correct Assistant:"


@wrong("openchat", "all roles lack")
def lower_case(conversation):
    parts = [f"GPT4 Correct {m['role']}: {m['content']}{TURN}" for m in conversation]
    return "".join(parts) + "GPT4 Correct assistant:"


@wrong("openchat", "a line end follows each")
def lines(conversation):
    return template(conversation, end=TURN + "\n")


@wrong("openchat", "a line end follows each")
def joined_lines_with_the_prompt(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}{TURN}" for m in conversation]
    return "\n".join([*parts, "GPT4 Correct Assistant:"])


@wrong("openchat", "joined by line ends")
def joined_lines(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}{TURN}" for m in conversation]
    return "\n".join(parts) + "GPT4 Correct Assistant:"


@wrong("openchat", "a space follows each")
def joined_by_spaces(conversation):
    parts = [f"GPT4 Correct {m['role'].title()}: {m['content']}{TURN}" for m in conversation]
    return " ".join([*parts, "GPT4 Correct Assistant:"])


@wrong("openchat", "behind a message's colon is missing")
def no_gap(conversation):
    return template(conversation, gap="")


@wrong("openchat", "^Likely cause: BOS is in the text")
def with_bos(conversation):
    return "<s>" + template(conversation)


@wrong("openchat", "are stripped")
def tidied(conversation):
    return template([{**m, "content": m["content"].strip()} for m in conversation])


@right("answer_mask")
def switch(segments):
    mask, answering = [], False
    for kind, length in segments:
        mask += [1 if kind == "assistant" or (kind == "end" and answering) else 0] * length
        answering = kind == "assistant"
    return torch.tensor(mask)


@wrong("answer_mask", "does not stop")
def no_end(segments):
    return [1 if kind == "assistant" else 0 for kind, length in segments for _ in range(length)]


@wrong("answer_mask", "the user's end of turn has weight")
def every_end(segments):
    mask = []
    for kind, length in segments:
        mask.extend([int(kind in ("assistant", "end"))] * length)
    return mask


@wrong("answer_mask", "the last end of turn always")
def last_end_always(segments):
    mask = switch(segments).tolist()
    mask[-1] = 1
    return mask


@wrong("answer_mask", "only the last has weight, whoever spoke")
def last_end_only(segments):
    mask = []
    for i, (kind, length) in enumerate(segments):
        final = kind == "end" and i == len(segments) - 1
        mask += [int(kind == "assistant" or final)] * length
    return mask


@wrong("answer_mask", "only the last answer's end")
def last_answers_end_only(segments):
    mask = [int(kind == "assistant") for kind, length in segments for _ in range(length)]
    if segments[-2][0] == "assistant":
        mask[-1] = 1
    return mask


@wrong("answer_mask", "the header before an answer")
def with_header(segments):
    mask, kinds = [], [kind for kind, _ in segments]
    for i, (kind, length) in enumerate(segments):
        near = kinds[i + 1 : i + 2] == ["assistant"] or kinds[i - 1] == "assistant"
        mask += [int(kind == "assistant" or near)] * length
    return mask


@wrong("answer_mask", "turned around")
def inverted(segments):
    return 1 - switch(segments)


@wrong("answer_mask", "every token has weight")
def everything(segments):
    return [1 for _, length in segments for _ in range(length)]


@wrong("answer_mask", "only the last answer has")
def last_answer(segments):
    mask = [0] * sum(length for _, length in segments)
    if segments[-2][0] == "assistant":
        for i in range(segments[-2][1] + 1):
            mask[-1 - i] = 1
    return mask


@wrong("answer_mask", "the answer does not")
def ends_of_answers(segments):
    mask = switch(segments).tolist()
    position = 0
    for kind, length in segments:
        if kind == "assistant":
            mask[position : position + length] = [0] * length
        position += length
    return mask


@wrong("answer_mask", "one weight a segment")
def by_segment(segments):
    return [
        int(kind == "assistant" or (kind == "end" and segments[i - 1][0] == "assistant"))
        for i, (kind, _) in enumerate(segments)
    ]


@wrong("answer_mask", "shifted by one")
def shifted(segments):
    return torch.cat([switch(segments)[1:], torch.tensor([0])])


def tokens(values, lengths):
    return np.repeat(np.array(values, dtype=float), lengths)


@right("class_weights")
def over_their_sum(experts, lengths):
    weights = tokens([1 if expert else 0.1 for expert in experts], lengths)
    return (weights / weights.sum()).tolist()


@right("class_weights")
def in_float32(experts, lengths):
    weights = []
    for expert, length in zip(experts, lengths):
        weights += [1.0 if expert else 0.1] * length
    return torch.tensor(weights) / sum(weights)


@wrong("class_weights", "do not sum to 1")
def raw_weights(experts, lengths):
    return tokens([1 if expert else 0.1 for expert in experts], lengths)


@wrong("class_weights", "the number of tokens")
def over_tokens(experts, lengths):
    weights = tokens([1 if expert else 0.1 for expert in experts], lengths)
    return weights / len(weights)


@wrong("class_weights", "the number of answers")
def over_answers(experts, lengths):
    return tokens([1 if expert else 0.1 for expert in experts], lengths) / len(experts)


@wrong("class_weights", "the sum over answers")
def over_the_answers_sum(experts, lengths):
    each = np.array([1 if expert else 0.1 for expert in experts])
    return np.repeat(each / each.sum(), lengths)


@wrong("class_weights", "averaged over its length")
def mean_of_means(experts, lengths):
    weights = []
    for expert, length in zip(experts, lengths):
        weights += [(1 if expert else 0.1) / length / len(experts)] * length
    return weights


@wrong("class_weights", "whatever its length")
def by_answer(experts, lengths):
    each = np.array([1 if expert else 0.1 for expert in experts])
    return np.repeat(each / each.sum() / lengths, lengths)


@wrong("class_weights", "classes are swapped")
def swapped_classes(experts, lengths):
    weights = tokens([0.1 if expert else 1 for expert in experts], lengths)
    return weights / weights.sum()


@wrong("class_weights", "the rest is dropped")
def filtered(experts, lengths):
    weights = tokens([float(expert) for expert in experts], lengths)
    return weights / weights.sum()


@wrong("class_weights", "weigh the same")
def equal(experts, lengths):
    return [1 / sum(lengths)] * sum(lengths)


@wrong("class_weights", "one weight an answer")
def one_each(experts, lengths):
    each = np.array([1 if expert else 0.1 for expert in experts])
    return each / each.sum()


@right("cool")
def guarded(logits, temperature):
    if temperature == 0:
        p = torch.zeros(len(logits))
        p[torch.argmax(logits)] = 1
        return p
    return torch.softmax(logits / temperature, dim=-1)


@right("cool")
def numpy_softmax(logits, temperature):
    z = logits.numpy()
    if not temperature:
        return (z == z.max()).astype(int)
    e = np.exp((z - z.max()) / temperature)
    return e / e.sum()


@wrong("cool", "multiplied by the temperature")
def heated(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    return torch.softmax(logits * temperature, -1)


@wrong("cool", "the temperature plays no part")
def only_greedy(logits, temperature):
    return torch.softmax(logits, -1) if temperature else guarded(logits, 0)


@wrong("cool", "the probabilities are divided")
def divided_after(logits, temperature):
    return torch.softmax(logits, -1) / temperature if temperature else guarded(logits, 0)


@wrong("cool", "softmax is taken of probabilities")
def twice_softmax(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    p = torch.softmax(logits, -1)
    return torch.softmax(p / temperature, -1)


@wrong("cool", "divides by zero")
def no_greedy(logits, temperature):
    return torch.softmax(logits / temperature, -1)


@wrong("cool", "divides by zero")
def no_greedy_in_python(logits, temperature):
    z = [x / temperature for x in logits.tolist()]
    e = [math.exp(x - max(z)) for x in z]
    return [x / sum(e) for x in e]


@wrong("cool", "not temperature 1")
def zero_as_one(logits, temperature):
    return torch.softmax(logits / (temperature or 1.0), -1)


@wrong("cool", "an index is returned")
def index(logits, temperature):
    if temperature == 0:
        return int(logits.argmax())
    return torch.softmax(logits / temperature, -1)


@wrong("cool", "all are equal")
def uniform(logits, temperature):
    if temperature == 0:
        return torch.full_like(logits, 1 / len(logits))
    return torch.softmax(logits / temperature, -1)


@wrong("cool", "largest of the divided")
def largest_undivided(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    weights = torch.exp(logits / temperature - logits.max())
    return weights / weights.sum()


@wrong("cool", "and temperature 0 divides")
def as_in_the_formula(logits, temperature):
    weights = torch.exp(logits / temperature)
    return weights / weights.sum()


@wrong("cool", "exp overflows for large logits: ")
def naive(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    e = np.exp(logits.numpy() / temperature)
    return e / e.sum()


@wrong("cool", "log-probabilities")
def logs(logits, temperature):
    if temperature == 0:
        return torch.log(guarded(logits, 0))
    return torch.log_softmax(logits / temperature, -1)


@wrong("cool", "not divided by their sum")
def unnormalised(logits, temperature):
    if temperature == 0:
        return guarded(logits, 0)
    return torch.exp((logits - logits.max()) / temperature)
