"""Folders of files whose names alone matter, and where folders are quick."""

import os

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""A killed process loses nothing there either that it gave to the kernel."""


def touch(root, *names):
    """Make empty files; returns their folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root
