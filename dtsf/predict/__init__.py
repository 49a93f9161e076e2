"""A trained run, opened: answers about videos, and ONNX."""
