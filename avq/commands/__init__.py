"""Questions about finished things: how accurate, how fast, what is inside, what differs.

Bundles are answered without the onnx package, so every question is imported from its own file.
"""
