"""Read and write side files with quantization: TensorRT calibration caches and AIMET encodings."""

from __future__ import annotations

from avq.builder.encodings.aimet import WRITTEN_VERSIONS, parse_aimet, write_aimet
from avq.builder.encodings.trt_cache import CacheEntry, TrtCache, parse_cache, write_cache

__all__ = [
    "WRITTEN_VERSIONS",
    "CacheEntry",
    "TrtCache",
    "parse_aimet",
    "parse_cache",
    "write_aimet",
    "write_cache",
]
