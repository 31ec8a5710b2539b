"""A table on several ranks whose parameters are sharded; test_trl.py has ranks with whole ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_fsdp2_full_fine_tuning_equals_a_whole_model_with_a_copy(tmp_path):
    """For each term that looks at the data's positions."""
    script = Path(__file__).parents[1] / "support" / "fsdp_table.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["easing", "hold", "published"]
