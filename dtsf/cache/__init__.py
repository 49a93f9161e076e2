"""The cache: written by stage 1, read by stage 2."""
