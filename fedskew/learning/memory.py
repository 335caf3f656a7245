"""Memory between training steps. On a CPU, handing pages back and faulting them in again took a tenth of a step."""

from __future__ import annotations

import ctypes
from functools import lru_cache

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt(3)
KEPT_BYTES = 2**29  # of freed memory that a process keeps at most at the end of its heap
LARGEST_BYTES = 2**25  # blocks up to this come from the heap: the largest threshold that glibc takes


@lru_cache(maxsize=1)  # a setting of the process: once is enough
def keep_freed_memory() -> bool:
    """Let glibc keep what a step frees for the next one, instead of giving it back to the system.

    A step frees and takes again every activation and gradient. No result depends on it.

    Returns:
        Whether there is such a setting (glibc) and it was taken; elsewhere nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((MMAP_THRESHOLD, LARGEST_BYTES), (TRIM_THRESHOLD, KEPT_BYTES), (TOP_PAD, KEPT_BYTES // 4))
    taken = [mallopt(parameter, value) for parameter, value in settings]  # each, whatever became of the others
    return all(value == 1 for value in taken)
