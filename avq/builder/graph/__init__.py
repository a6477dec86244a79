"""A user's ONNX file as one normal float graph. Read: read, opset, inputs, norms, fold, view, model."""
