"""Trained runs: prediction of videos, evaluation, and export to ONNX."""
