"""Lesson 08: LASER on a model trained on facts, some common, most rare, and all of them noisily.

A fact is (entity, relation) -> object. How often an entity is spoken of falls with its rank as
Zipf's law has it; each sentence states the true object or, in three of ten, one drawn by how common
objects are. A small model reads each fact in two of three wordings and is asked in the third, whose
meaning it knows from other facts. Then each of its matrices is reduced alone, to each fraction of
its rank: to its largest components, and as control to as many random ones. Facts are split at
random: half to choose an intervention on, half to report it on. Three more controls: the same
search on the model before training; the same search for objects dealt out anew among the facts; and
a temperature, chosen on the same half, since it too makes a model more or less sure of all it says.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import MistralConfig, MistralForCausalLM

from starling_nb.laser.reduce import (
    Approximate,
    low_rank,
    matrices,
    random_components,
    rank_of,
    reduced,
)
from starling_nb.laser.search import Candidate, kind_of, layer_of, winners_curse
from starling_nb.training import train

SEEDS = (0, 1, 2)
ENTITIES, RELATIONS, OBJECTS, WORDINGS = 2000, 4, 40, 3
SENTENCES, EPOCHS, BATCH, LR = 100_000, 3, 256, 2e-3
NOISE, COMMON = 0.3, 0.1  # share of false statements; share of the entities that count as common
RHOS = (0.8, 0.5, 0.2, 0.05, 0.01)
TEMPERATURES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)
LAYERS = 6


def measure(profile: str, store: str) -> dict[str, Any]:
    """For each seed the model's scores, those of every intervention, and what a choice is worth."""
    if profile == "smoke":
        return {"seeds": [measure_seed(0, 60, 512, (0.5,))]}
    return {"seeds": [measure_seed(seed, ENTITIES, SENTENCES, RHOS) for seed in SEEDS]}


def measure_seed(seed: int, entities: int, sentences: int, rhos: tuple[float, ...]) -> dict:
    """One model, trained and untrained."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(OBJECTS, (entities, RELATIONS), generator=generator)
    unread = torch.randint(WORDINGS, (entities, RELATIONS), generator=generator)  # of each fact
    model = make_model(entities, seed)
    facts = torch.cartesian_prod(torch.arange(entities), torch.arange(RELATIONS))  # (F, 2)
    asked = sentence(entities, facts, unread.flatten())
    answers = truth.flatten()
    validating = torch.rand(len(facts), generator=generator) < 0.5
    common = facts[:, 0] < COMMON * entities
    groups = {
        f"{name}, {half}": mask & part
        for name, mask in (("common", common), ("rare", ~common))
        for half, part in (("validation", validating), ("test", ~validating))
    }
    untrained = search(model, asked, answers, groups, rhos, seed)
    learn(model, truth, unread, sentences, generator, seed)
    dealt = answers[torch.randperm(len(answers), generator=generator)]
    return {
        "trained": search(model, asked, answers, groups, rhos, seed, control=True),
        "untrained": untrained,
        "dealt": search(model, asked, dealt, groups, rhos, seed),
    }


def make_model(entities: int, seed: int) -> MistralForCausalLM:
    """A model of six layers, whose words are objects, entities, and relations by wording."""
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=OBJECTS + entities + RELATIONS * WORDINGS,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8,
        initializer_range=0.06,
        tie_word_embeddings=True,
    )
    return MistralForCausalLM(config).eval()


def sentence(entities: int, facts: Tensor, wordings: Tensor) -> Tensor:
    """What is read before the object, (N, 2): entity, and relation in a wording."""
    relation = OBJECTS + entities + facts[:, 1] * WORDINGS + wordings
    return torch.stack([OBJECTS + facts[:, 0], relation], dim=1)


def learn(model, truth: Tensor, unread: Tensor, sentences: int, generator, seed: int) -> None:
    """Train on sentences drawn by Zipf's law, none in the wording in which its fact is asked."""
    entities = len(truth)

    def zipf(count: int, size: int) -> Tensor:
        weights = 1 / torch.arange(1.0, size + 1)
        return weights.multinomial(count, replacement=True, generator=generator)

    def uniform(size: int) -> Tensor:
        return torch.randint(size, (sentences,), generator=generator)

    facts = torch.stack([zipf(sentences, entities), uniform(RELATIONS)], dim=1)
    stated, not_in = (table[facts[:, 0], facts[:, 1]] for table in (truth, unread))
    wordings = (not_in + 1 + uniform(WORDINGS - 1)) % WORDINGS
    false = torch.rand(sentences, generator=generator) < NOISE
    stated = torch.where(false, zipf(sentences, OBJECTS), stated)
    ids = torch.cat([sentence(entities, facts, wordings), stated[:, None]], dim=1)
    order = [
        rows
        for _ in range(EPOCHS)
        for rows in torch.randperm(sentences, generator=generator).split(BATCH)
    ]

    def loss(model, batch) -> Tensor:
        logits = model(input_ids=batch["ids"][:, :-1], logits_to_keep=1).logits[:, -1]
        return cross_entropy(logits.float(), batch["ids"][:, -1])

    train(
        model,
        [list(ids[rows]) for rows in order],
        collate=lambda rows: {"ids": torch.stack(list(rows))},
        loss=loss,
        lr=LR,
        seed=seed,
        device=None,
        desc="facts",
    )


def search(model, asked, answers, groups, rhos, seed: int, control: bool = False) -> dict[str, Any]:
    """The scores at the start, after the intervention that is best on validation, and cooled.

    With the control also those of every intervention, by the components that are kept.
    """
    start = ask(model, asked, answers)
    validating = groups["common, validation"] | groups["rare, validation"]
    generator = torch.Generator().manual_seed(seed)
    ways: dict[str, Approximate] = {"largest": low_rank}
    if control:
        ways["random"] = partial(random_components, generator=generator)
    cells, candidates, changes = [], [], {}
    for name, weight in matrices(model).items():
        for rho in rhos:
            rank = rank_of(rho, weight.shape)
            cell = {"type": kind_of(name), "layer": layer_of(name), "rho": rho}
            for way, approximate in ways.items():
                with reduced(model, {name: rank}, approximate=approximate):
                    found = ask(model, asked, answers)
                cell[way] = [pair[0] for pair in means(found - start, groups).values()]
                if way == "largest":
                    candidates.append(Candidate(name, rho, rank, found[0, validating]))
                    changes[name, rho] = means(found - start, groups)
            cells.append(cell)
    best = max(candidates, key=lambda candidate: candidate.scores.mean().item())
    warm = [ask(model, asked, answers, temperature) for temperature in TEMPERATURES]
    cooled = max(range(len(warm)), key=lambda i: warm[i][0, validating].mean().item())
    return {
        "start": means(start, groups),
        "best": {
            "type": kind_of(best.name),
            "layer": layer_of(best.name),
            "rho": best.rho,
            **changes[best.name, best.rho],
        },
        "curse": winners_curse(start[0, validating], candidates, seed),
        "cooled": {"temperature": TEMPERATURES[cooled], **means(warm[cooled] - start, groups)},
        **({"groups": [*groups], "cells": cells} if control else {}),
    }


@torch.no_grad()
def ask(model, asked: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
    """(2, F): log-likelihood of each fact's object, and whether it is the likeliest one."""
    logits = torch.cat(
        [model(input_ids=rows, logits_to_keep=1).logits[:, -1] for rows in asked.split(2048)]
    )
    log_pi = (logits[:, :OBJECTS] / temperature).log_softmax(-1)
    return torch.stack(
        [log_pi.gather(1, answers[:, None])[:, 0], (log_pi.argmax(1) == answers).float()]
    )


def means(values: Tensor, groups: dict[str, Tensor]) -> dict[str, list[float]]:
    """Of (2, F) the means over each group: [log-likelihood, accuracy]."""
    return {
        name: [round(value, 4) for value in values[:, mask].mean(1).tolist()]
        for name, mask in groups.items()
    }
