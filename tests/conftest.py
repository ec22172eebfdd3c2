"""Fixtures and settings shared by all tests."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)  # tiny tensors: a second thread only waits
hypothesis.settings.register_profile("starling", deadline=None)
hypothesis.settings.load_profile("starling")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real preference data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("STARLING_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the folder of real data is absent (STARLING_DATA may name its place)")
    return folder
