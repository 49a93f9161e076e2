"""Selective scan and causal convolution: one function, several ways to run it."""
