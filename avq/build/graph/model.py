"""Old path of ``avq.builder.graph.model``, kept for scripts written before the move."""

from avq.builder.graph.model import normalise

__all__ = ["normalise"]
