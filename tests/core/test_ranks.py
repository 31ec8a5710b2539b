"""Two ranks equal one process with the whole batch, in losses and gradients, to 1e-5 (spec/PACT.md, C4.2 and C4.3).

DeepSpeed: test_trainer_ranks.py. The first version of FSDP is refused: test_fsdp1.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_ranks_equal_one_process_with_the_whole_batch(tmp_path, wrapper):
    """LoRA and full fine-tuning, each term and the default, with a table and without, another reference, checkpointing.

    Accumulation 2; anchors with a backward pass of their own (DDP), and in that of the batch.
    """
    script = Path(__file__).parents[1] / "support" / "rank_steps.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path), wrapper],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert done.stdout.count("Case(") == (40 if wrapper == "ddp" else 31)
