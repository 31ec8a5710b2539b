"""The demo keeps freed memory, so that the kernel need not clear it again for every step."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from examples.demo.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(2):  # from the second time on, what was freed could be used again
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(64 * 2**20, dtype=torch.uint8).add(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_memory_is_kept():
    def faults(argument: str) -> int:
        run = [sys.executable, "-c", FAULTS, argument]
        return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < faults("leave") / 10
