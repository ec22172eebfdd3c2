"""The state of an unfinished tuning run on disk, from which it goes on to the same weights."""

import json
import math
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from starling_nb.store import replace_atomically

STATE = "state.pt"


def weights_digest(model: nn.Module | None) -> str:
    """The first 16 hex digits of the sha256 of a model's weights and their names."""
    found = sha256()
    for name, value in model.state_dict().items() if model is not None else ():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def save_state(
    folder: Path,
    run: dict[str, Any],
    learned: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write weights, optimiser, generator and what else the run knows; whole or not at all."""
    state = {
        "run": json.dumps(run, default=float),
        "learned": [parameter.detach() for parameter in learned],
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replace_atomically(folder / STATE) as temporary:
        torch.save(state, temporary)


def load_state(folder: Path | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Return the state in a folder, None without one.

    Raises ValueError when it is another run's, naming what differs, and when it is damaged.
    """
    if folder is None or not (path := folder / STATE).is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path}: expected the saved state of a run, found a damaged file; delete it to start "
            "again"
        ) from error
    state["run"] = json.loads(state["run"])
    expected = json.loads(json.dumps(settings, default=float))
    found = state["run"]["settings"]
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"{path}: expected the state of a run with {name} {expected.get(name)}, found "
                f"{found.get(name)}; empty the folder to start again, or give the arguments with "
                "which that run was started"
            )
    return state


def restore(
    state: dict[str, Any],
    learned: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Put weights, optimiser and generator into a saved state."""
    with torch.no_grad():
        for parameter, value in zip(learned, state["learned"], strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state["optimizer"])
    generator.set_state(state["generator"])


def due(iteration: int, iterations: int) -> bool:
    """Say whether the state is to be saved after an iteration: about ten times a run."""
    done = iteration + 1
    return done % math.ceil(iterations / 10) == 0 and done < iterations


def remove_state(folder: Path) -> None:
    """Delete the state of a run that has finished."""
    (folder / STATE).unlink(missing_ok=True)
