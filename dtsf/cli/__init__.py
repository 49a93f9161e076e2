"""The command line: parses, calls :mod:`dtsf.api`, prints. Nothing heavy is imported before a command runs."""

from dtsf.cli.app import main

__all__ = ["main"]
