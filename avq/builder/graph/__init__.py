"""Normalise a user's ONNX file into one float graph."""
