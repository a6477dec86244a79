"""Old paths of three builder modules, kept for scripts written before they moved."""

import sys

from avq.builder import lift
from avq.builder.graph import model

__path__: list[str] = []
sys.modules[f"{__name__}.graph"] = sys.modules[f"{__name__}.understand"] = sys.modules[__name__]
sys.modules[f"{__name__}.graph.model"] = sys.modules[f"{__name__}.graph.read"] = model
sys.modules[f"{__name__}.understand.frontend"] = lift
