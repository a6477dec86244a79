"""Old path of ``avq.scenes``, kept for scripts written before the move."""

from avq.scenes import builtin_detector_path

__all__ = ["builtin_detector_path"]
