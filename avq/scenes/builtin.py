"""Where the packaged detector is."""

from __future__ import annotations

import pathlib


def builtin_detector_path() -> pathlib.Path:
    """The ONNX file trained on these scenes; see ``avq.scenes.train`` for how it was made."""
    return pathlib.Path(__file__).with_name("detector.onnx")
