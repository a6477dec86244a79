"""Old path of ``avq.builder.graph.model``, kept for scripts written before the move."""

from avq.builder.graph.model import read_model

__all__ = ["read_model"]
