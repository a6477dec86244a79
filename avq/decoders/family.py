"""What every built-in head family has in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from avq.decoders.structure import head_reasons, input_size_px
from avq.types import DecoderSpec, GraphView, PreprocessSpec
from avq.types.preprocess import PRESETS


class HeadFamily:
    """Defaults of the ``Decoder`` protocol; a family adds ``recognise`` and ``candidates``."""

    family: str = ""
    nms_in_graph: bool = False
    preset_names: tuple[str, ...] = ()

    def head_nodes(self, graph: GraphView, spec: DecoderSpec) -> Mapping[str, str]:
        """The bare head layers and all after them, with reasons."""
        return head_reasons(graph, spec.family)

    def presets(self, graph: GraphView, spec: DecoderSpec) -> Sequence[PreprocessSpec]:
        """Published preprocessing at the graph's input size; empty when the input is no picture."""
        size = input_size_px(graph)
        return [] if size is None else [PRESETS[name](*size) for name in self.preset_names]
