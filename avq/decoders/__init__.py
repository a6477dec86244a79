"""Decode raw network outputs to detections: one class per head family, recognised by graph structure."""

from __future__ import annotations

from avq.decoders.detect import DetectionDecoder
from avq.decoders.recognise import builtin_decoders, find_decoder, head_nodes, named, recognise

__all__ = ["DetectionDecoder", "builtin_decoders", "find_decoder", "head_nodes", "named", "recognise"]
