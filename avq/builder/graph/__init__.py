"""Normalise a user's ONNX file into one float graph. Read: edit, opset, inputs, fold, view, model."""
