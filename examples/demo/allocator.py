"""Keep freed memory for the next step; glibc gives large tensors back, and the kernel clears each page again."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, for the whole process; its size then stays at its peak.

    Returns:
        Whether it did: only Linux with glibc can.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)])  # -1: never
