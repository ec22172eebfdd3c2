"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real preference data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("STARLING_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data folder absent: {folder} (set STARLING_DATA to its place)")
    return folder
