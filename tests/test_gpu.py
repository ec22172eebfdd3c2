"""All lessons on the `gpu` profile; skipped, with the reason, where there is no CUDA device."""

import pytest
import torch

from starling_nb.lesson import runner


@pytest.mark.gpu
def test_the_course_runs_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: the lessons were not run on the gpu profile")
    results = runner.run(profile="gpu", store=tmp_path / "store", output=tmp_path / "run")
    assert [(result.lesson, result.error) for result in results if result.error] == []
