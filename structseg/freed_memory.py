"""Training on a CPU: the process keeps freed memory, so that the next step gets it without waiting for the kernel."""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
_MOST = 2**31 - 1  # bytes that may lie unused at the heap's end; the largest int


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed; memory then grows to its peak and stays there until the process ends.

    By default a tensor over 32 MiB, such as a batch's activations, is a mapping of its own that is returned to the
    kernel when it is freed. The next step gets it back page by page, each cleared first, which can take longer than
    computing it. Results do not change.

    Returns:
        Whether malloc was set: False with another C library, and where the environment already configures malloc
        (`MALLOC_...`, `GLIBC_TUNABLES`, `LD_PRELOAD`).
    """
    if any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _MOST))
