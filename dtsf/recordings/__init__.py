"""Recordings: untrimmed film of several cameras, its clocks, marks and answers."""
