"""Training of the built-in detector: the only part of ``avq.scenes`` that needs torch and onnx.

The detector is for demonstrations, tests and the regression harness. It has seen drawn streets only and is not for
real roads.
"""
