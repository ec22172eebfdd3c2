"""Reward-model checkpoints on disk: where they lie, their files, and how their weights are named.

A reward model is a trunk and a linear head. Four layouts name the two, p being the prefix under
which transformers names the trunk inside a causal LM ("model." for Llama, Mistral and Yi):

    transformer.*       v_head.weight   ours, and Starling-RM-34B
    p*  lm_head.weight  v_head.weight   a causal LM and a head: Starling-RM-7B-alpha
    model.p*  model.lm_head.weight  transformer.*  v_head.weight
                                        the same out of its card's class, which holds the LM as
                                        `model` and its trunk once more as `transformer`
    p*                  score.weight    a *ForSequenceClassification of transformers with one label
"""

import pickle
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from starling_nb.data.sources import REPOSITORY
from starling_nb.store import read_json

OWN_TRUNK, OWN_HEAD = "transformer.", "v_head.weight"
DERIVED = ".rotary_emb.inv_freq"  # buffers that old Llama checkpoints hold; the config gives them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHOWN = 5  # weights of one kind spelled out in a message


def checkpoint_folder(source: str | Path, **hub: Any) -> Path:
    """The folder of a checkpoint: `source` itself, or the Hub repository of that name, fetched.

    hub: revision, token, cache_dir and local_files_only, as huggingface_hub takes them. Of a
    repository only json, tokenizer and weight files are fetched, .bin weights only where there are
    no safetensors.
    Raises FileNotFoundError for what is neither, and ConnectionError when the Hub fails.
    """
    if Path(source).is_dir():
        return Path(source)
    if not REPOSITORY.fullmatch(str(source)):
        raise FileNotFoundError(
            f"{source}: neither a folder nor a Hub repository (owner/name); give a checkpoint's "
            "folder, or a name like Nexusflow/Starling-RM-34B"
        )
    from huggingface_hub import snapshot_download

    folder = Path()
    try:
        for weights in ("*.safetensors", "*.bin"):
            patterns = ["*.json", "tokenizer.model", weights]
            folder = Path(snapshot_download(str(source), allow_patterns=patterns, **hub))
            if any(folder.glob(weights)):
                break
    except Exception as error:  # the errors of the Hub's clients have no common base class
        raise ConnectionError(
            f"{source}: no such folder here, and fetching it from the Hub failed "
            f"({type(error).__name__}: {error}); check the name or the network"
        ) from error
    return folder


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, on the CPU, mapped into memory and not yet read.

    Takes the first of WEIGHT_FILES that is there; .bin files are opened with weights_only=True.
    Raises FileNotFoundError when a file is absent and ValueError for one that is damaged or holds
    more than tensors.
    """
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        present = ", ".join(sorted(path.name for path in folder.iterdir())) or "no file"
        raise FileNotFoundError(
            f"{folder}: expected one of {', '.join(WEIGHT_FILES)}; found {present}"
        )
    if found.suffix != ".json":
        return _read_file(found)
    weights: dict[str, Tensor] = {}
    for name in _shards(found):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: {found.name} names this file, and it is not there; "
                "fetch the checkpoint again"
            )
        weights |= _read_file(folder / name)
    return weights


class Layout(NamedTuple):
    """How a checkpoint names its weights, and the chat template of the released one of its kind."""

    trunk: str  # what the trunk's names begin with
    head: str = "v_head.weight"
    unread: str = ""  # the language-model head's name, where one lies there
    copy: str = ""  # what the names of a second copy of the trunk begin with
    template: str | None = None


def find_layout(names: Iterable[str], part: str) -> Layout:
    """The layout of weights with these names, the module's table from its end.

    part: the trunk's prefix inside a causal LM, the p of the table. Names of no layout are read as
    the first, under which `own_names` will find them missing and unknown.
    """
    names = set(names)
    if "score.weight" in names:
        return Layout(part, head="score.weight")
    if any(name.startswith(f"model.{part}") for name in names):
        alpha = Layout(f"model.{part}", unread="model.lm_head.weight", copy="transformer.")
        return alpha._replace(template="llama2_starling")
    if part != "transformer." and any(name.startswith(part) for name in names):
        return Layout(part, unread="lm_head.weight", template="llama2_starling")
    return Layout("transformer.", template="chatml_yi")


def own_names(
    weights: dict[str, Tensor], layout: Layout, blank: nn.Module, source: object
) -> dict[str, Tensor]:
    """The weights under RewardModel's names.

    blank: a RewardModel of the checkpoint's config, on the meta device; its names and shapes are
    what is expected. Raises ValueError that names, as the checkpoint does, each weight that is
    missing, unknown, of another shape, or unlike its copy.
    """
    expected = blank.state_dict()
    theirs = {
        name: layout.head if name == OWN_HEAD else layout.trunk + name.removeprefix(OWN_TRUNK)
        for name in expected
    }
    renamed = {own: weights[name] for own, name in theirs.items() if name in weights}
    defects = {
        "missing": [name for name in theirs.values() if name not in weights],
        "mis-shaped": [
            f"{theirs[own]} {tuple(tensor.shape)}, expected {tuple(expected[own].shape)}"
            for own, tensor in renamed.items()
            if tensor.shape != expected[own].shape
        ],
        "unlike its copy": [],
        "unknown": [],
    }
    for name in weights.keys() - set(theirs.values()):
        twin = weights.get(layout.trunk + name.removeprefix(layout.copy))
        if name == layout.unread or name.endswith(DERIVED):
            continue
        if layout.copy and name.startswith(layout.copy) and twin is not None:
            if not torch.equal(weights[name], twin):
                defects["unlike its copy"].append(name)
        else:
            defects["unknown"].append(name)
    lines = [f"  {kind}: {_listed(names)}" for kind, names in defects.items() if names]
    if lines:
        raise ValueError(
            f"{source}: expected {OWN_HEAD} or score.weight, one output, and the weights of "
            f"{type(blank.get_submodule('transformer')).__name__}; found otherwise\n"
            + "\n".join(lines)
        )
    return renamed


def _listed(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(sorted(names)[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _shards(index: Path) -> list[str]:
    """The files that an index names, all of its own folder."""
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    files = list(names.values()) if isinstance(names, dict) else []
    if not files or any(not isinstance(f, str) or Path(f).name != f for f in files):
        raise ValueError(
            f"{index}: expected a weight_map of weights to files of this folder; fetch it again"
        )
    return sorted(set(files))


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors or .bin file, mapped into memory where the format allows."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mapped = zipfile.is_zipfile(path)  # torch's older format cannot be
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: expected tensors alone; found what would run code when read, or damage, and "
            f"did not read it ({str(error).splitlines()[0]}); find it as safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: expected a whole weights file, found it damaged or cut short "
            f"({str(error).splitlines()[0]}); fetch it again"
        ) from None
    if not isinstance(weights, dict) or not all(isinstance(w, Tensor) for w in weights.values()):
        raise ValueError(f"{path}: expected tensors by name, found other values; convert it")
    return weights
