"""The demo keeps freed memory, so that the kernel need not clear it again for every step."""

from __future__ import annotations

import platform
import subprocess
import sys

FAULTS = """
import resource, torch
from examples.demo.allocator import keep_freed_memory
def faults():
    least = None
    for _ in range(6):  # small objects may split what was freed, and a round or two then grow the heap once more
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            torch.ones(64 * 2**20, dtype=torch.uint8).add(1)
        found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        least = found if least is None else min(least, found)
    return least
usual = faults()
print(int(keep_freed_memory()), faults(), usual)
"""


def test_freed_memory_is_kept_where_glibc_is_there_to_be_told() -> None:
    ran = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    kept, faults, usual = map(int, ran.stdout.split())
    assert kept == (platform.libc_ver()[0] == "glibc")
    assert faults < usual / 10 or not kept
