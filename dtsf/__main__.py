"""Run the command line as ``python -m dtsf``."""

from __future__ import annotations

from dtsf.cli import main

if __name__ == "__main__":
    main()
