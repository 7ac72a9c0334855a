"""Training on a CPU: freed memory stays with the process, so that the next step need not have it cleared again."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_MOST = 2**31 - 1  # bytes that may lie unused at the heap's end; the largest int


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed; memory then grows to its peak and stays there until the process ends.

    By default a tensor over 32 MiB, as a batch's activations are, is a mapping of its own that goes back to the kernel
    when it is freed. The next step gets it again page by page, each cleared first, which can take longer than computing
    it. Numbers do not change.

    Returns:
        Whether that is so now: False with another C library, and where the environment sets malloc up (`MALLOC_...`,
        `GLIBC_TUNABLES`, `LD_PRELOAD`), which is left as it is.
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))
