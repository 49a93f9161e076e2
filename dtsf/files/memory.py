"""How much memory is free: asked before any is taken at the word of a file."""

from __future__ import annotations

import os
from pathlib import Path

from dtsf.errors import CacheError

ALWAYS = 64 << 20
"""Bytes that are taken without asking: the answer costs more time than reading a batch."""


def available_memory() -> int:
    """Bytes that can be taken without swapping, also inside a container with a limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text("ascii")) - int(Path(used).read_text("ascii")))
        except (OSError, ValueError):  # no such controller, or the word "max"
            continue
    return max(0, free)


def refuse_unless_fits(n_bytes: int, what: str) -> None:
    """Raise unless ``n_bytes`` can be taken. Raises CacheError: they cannot; nothing has been allocated."""
    if n_bytes <= ALWAYS:
        return
    free = available_memory()
    if n_bytes > free:
        raise CacheError(f"{what} would take {n_bytes / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
