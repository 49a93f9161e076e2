"""Stage 2: the network, how it learns, and what a run looks like."""
