"""A function in a process of its own, which has all that this one has imported."""

import os
import warnings


def forked(action):
    """Start ``action`` and return the process's number; its exit code is 0 where the action returns, else 1."""
    with warnings.catch_warnings():
        # Threads of the parent are of no concern to the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def exit_code(child):
    """Wait for it; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
