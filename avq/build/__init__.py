"""The whole build: from a float ONNX file and a data folder to a verified bundle."""
