"""What a reward model has to beat on ranked lists of the world: predictors that know one thing."""

import numpy as np

from starling_nb.data.nectar import Row
from starling_nb.data.world import World
from starling_nb.evaluate.gold import score_answers


def rivals(world: World, train: list[Row], rows: list[Row]) -> dict[str, np.ndarray]:
    """What knows one thing only: the true style, who wrote, the number of words. Each (N, 7)."""
    ranks: dict[str, list[int]] = {}
    for row in train:
        for answer in row["answers"]:
            ranks.setdefault(answer["model"], []).append(answer["rank"])
    style = gold_of(world, rows, "style")
    words = np.array([[len(a["answer"].split()) for a in row["answers"]] for row in rows])
    author = [[-np.mean(ranks[a["model"]]) for a in row["answers"]] for row in rows]
    return {"style": style, "author": np.array(author), "longer": words, "shorter": -words}


def gold_of(world: World, rows: list[Row], part: str = "total") -> np.ndarray:
    """The gold utility of every answer, or its content or style: (N, 7)."""
    asked = [world.prompt(row["prompt"]).conversation for row in rows]
    answered = [
        [*conversation, {"role": "assistant", "content": answer["answer"]}]
        for conversation, row in zip(asked, rows, strict=True)
        for answer in row["answers"]
    ]
    return getattr(score_answers(world, answered), part).reshape(len(rows), -1)
