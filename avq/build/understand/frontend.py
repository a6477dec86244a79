"""Old path of ``avq.builder.lift``, kept for scripts written before the move."""

from avq.builder.lift import import_model

__all__ = ["import_model"]
