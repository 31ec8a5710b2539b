"""Two ranks equal one process with the whole batch, in losses and gradients, to 1e-5 (spec/PACT.md, C4.2 and C4.3).

DeepSpeed: test_trainer_ranks.py. The first version of FSDP is refused: trainers/test_fsdp.py.
"""

from __future__ import annotations

import pytest
from forks import run_script
from rank_steps import cases


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_two_ranks_equal_one_process_with_the_whole_batch(tmp_path, wrapper):
    """LoRA and full fine-tuning, each term and the default, with a table and without, another reference, checkpointing.

    Accumulation 2; anchors with a backward pass of their own (DDP), and in that of the batch.
    """
    printed = run_script("rank_steps.py", str(tmp_path), wrapper, log=tmp_path / "log", ranks=2)
    assert printed.count("Case(") == len(list(cases(wrapper)))
