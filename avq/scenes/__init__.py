"""Procedural road scenes with exact boxes, and a small detector trained on them.

For demonstrations, tests and the regression harness. Neither the pictures nor the detector say anything about real
roads: do not use the detector in a vehicle.
"""

from __future__ import annotations

import pathlib

from avq.scenes.drive import Drive, random_scene
from avq.scenes.labels import CLASS_NAMES, WEATHERS, LabelledScene


def builtin_detector_path() -> pathlib.Path:
    """The ONNX file trained on these scenes; see ``avq.scenes.train`` for how it was made."""
    return pathlib.Path(__file__).with_name("detector.onnx")


__all__ = ["CLASS_NAMES", "WEATHERS", "Drive", "LabelledScene", "builtin_detector_path", "random_scene"]
