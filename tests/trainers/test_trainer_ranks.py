"""The default settings on two ranks equal a plain loop over what both ranks were given, through the real trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "zero1", "zero2", "zero3", "dpo"])
def test_two_ranks_equal_a_plain_loop(tmp_path, mode):
    """LoRA and full fine-tuning, with and without reentrant checkpointing, accumulation 2; DeepSpeed resumes."""
    script = Path(__file__).parents[1] / "support" / "trainer_ranks.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path), mode],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert done.stdout.count("Case(") == 2 * (6 if mode == "zero3" else 4)
