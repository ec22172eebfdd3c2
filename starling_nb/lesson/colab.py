"""What Colab needs of a lesson: badge, setup cell and metadata, the same in all, kept here.

python -m starling_nb.lesson.colab    write the three into every lesson
"""

import re
from pathlib import Path
from typing import Any

from starling_nb.lesson import anatomy
from starling_nb.store import replace_atomically

# Where the repository lies on GitHub, and the branch or tag that Colab opens and installs. Change
# them here when it has its home, then run this module.
REPOSITORY = "starling-workbook/starling-workbook"
BRANCH = "main"

# Modules that lessons need and Colab's image lacks, with what pip installs for them. The last two
# are mistral-common's: while it is incomplete, AutoTokenizer fails on every Mistral model.
NEEDED = {
    "starling_nb": f"git+https://github.com/{REPOSITORY}@{BRANCH}",
    "mistral_common": "mistral-common>=1.5",
    "pydantic_extra_types": "pydantic-extra-types>=2.10.5",
    "pycountry": "pycountry>=23",
}

# No "accelerator": lessons run on the profile `cpu` unless told otherwise, and a notebook that asks
# for a GPU without using it spends the reader's quota.
METADATA = {"provenance": [], "toc_visible": True}

SETUP = """\
# @title Setup (does nothing outside Colab)
import importlib
import importlib.util
import os
import subprocess
import sys

# What lessons need and Colab lacks. Its own torch, numpy and the rest stay as they are.
needed = {
    ENTRIES
}
lacking = [name for name in needed if importlib.util.find_spec(name) is None]
if lacking and "google.colab" not in sys.modules:
    raise ModuleNotFoundError(
        f"{', '.join(lacking)} not found: run `pip install -e .` in the repository, "
        "then restart the kernel"
    )
if lacking:
    wanted = [needed[name] for name in lacking]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *wanted]
    installed = subprocess.run(command, capture_output=True, text=True)
    importlib.invalidate_caches()
    try:
        for name in lacking:
            importlib.import_module(name)
    except ImportError as error:
        by_hand = "!pip install --no-deps " + " ".join(f'"{w}"' for w in wanted)
        raise ModuleNotFoundError(
            f"{installed.stderr}\\nThe installation failed. Run it in a new cell to see "
            f"more, then restart the session:\\n{by_hand}"
        ) from error
if store.startswith("/content/drive") and not os.path.ismount("/content/drive"):
    raise FileNotFoundError(
        "store lies on Google Drive, which is not mounted. Run in a new cell:\\n"
        'from google.colab import drive; drive.mount("/content/drive")'
    )""".replace("    ENTRIES", "\n".join(f'    "{name}": "{NEEDED[name]}",' for name in NEEDED))


def badge(path: Path) -> str:
    """The Markdown of the badge that opens the lesson on Colab."""
    colab = "https://colab.research.google.com"
    target = f"{colab}/github/{REPOSITORY}/blob/{BRANCH}/notebooks/{path.name}"
    return f"[![Open In Colab]({colab}/assets/colab-badge.svg)]({target})"


def renew(nb: Any, path: Path) -> None:
    """Give the lesson at `path` the badge, the setup cell (folded) and the metadata, in place."""
    first = nb.cells[0]
    first.source = re.sub(r"\[!\[Open In Colab\]\(.*\)\]\(.*?\)", badge(path), first.source)
    for cell in anatomy.tagged(nb, "setup"):
        cell.source = SETUP
        cell.metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
    nb.metadata.pop("accelerator", None)
    nb.metadata["colab"] = dict(METADATA)


def main() -> None:
    """Renew all lessons; their outputs have to be made again where the setup cell changed."""
    import nbformat

    for path in anatomy.lesson_paths(anatomy.NOTEBOOKS):
        nb = anatomy.read_notebook(path)
        renew(nb, path)
        with replace_atomically(path) as temporary:
            nbformat.write(nb, temporary)


if __name__ == "__main__":
    main()
