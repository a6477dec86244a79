"""``avq replay --mine DIR``: frames that the models disagree about most, as the next calibration or labelling set."""

from __future__ import annotations

from avq.replay.mine.command import mine

__all__ = ["mine"]
