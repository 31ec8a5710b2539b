"""The default settings on two ranks equal a plain loop over what both ranks were given, through the real trainer."""

from __future__ import annotations

import pytest
from forks import run_script


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3", "dpo"])
def test_two_ranks_equal_a_plain_loop(tmp_path, mode):
    """LoRA and full fine-tuning, with and without reentrant checkpointing, accumulation 2.

    DDP with a static graph, too; DeepSpeed resumes.
    """
    printed = run_script("trainer_ranks.py", str(tmp_path), mode, log=tmp_path / "log", ranks=2)
    assert printed.count("Case(") == 2 * {"ddp": 5, "dpo": 4, "zero1": 1, "zero3": 4}.get(mode, 2)
