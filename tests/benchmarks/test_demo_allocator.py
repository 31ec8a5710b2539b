"""The demo keeps freed memory, so that the kernel need not clear it again for every step."""

from __future__ import annotations

import platform
import subprocess
import sys

FAULTS = """
import resource, sys, torch
from examples.demo.allocator import keep_freed_memory
kept = sys.argv[1] == "keep" and keep_freed_memory()
least = None
for _ in range(6):  # small objects may split what was freed, and a round or two then grow the heap once more
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(64 * 2**20, dtype=torch.uint8).add(1)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    least = faults if least is None else min(least, faults)
print(int(kept), least)
"""


def test_freed_memory_is_kept_where_glibc_is_there_to_be_told() -> None:
    def ran(argument: str) -> list[int]:
        run = [sys.executable, "-c", FAULTS, argument]
        return [
            int(n) for n in subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()
        ]

    (kept, faults), (_, usual) = ran("keep"), ran("leave")
    assert kept == (platform.libc_ver()[0] == "glibc")
    assert faults < usual / 10 or not kept
