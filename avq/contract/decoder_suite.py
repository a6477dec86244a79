"""What any head family must do, its own or a plugin's."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from avq.decoders import DetectionDecoder
from avq.errors import DataError, PluginError
from avq.hookspecs import Decoder
from avq.types import AnyArray, DecoderSpec, GraphView, ModelInput, NodeView, TensorView

_OPEN_SIZE = 5  # rows given to outputs whose number of rows depends on the picture


def check_decoder(decoder: Decoder, graph: GraphView, *, seed: int = 0) -> DecoderSpec:
    """Run the whole suite on a graph the decoder must recognise; returns its spec.

    Raises:
        PluginError: naming the promise that was broken.
    """
    spec = decoder.recognise(graph)
    _must(spec is not None, decoder, "recognises the graph", "recognise() gave None")
    assert spec is not None
    _check_spec(decoder, spec)
    _check_names(decoder, graph, spec, seed)
    _check_head(decoder, graph, spec)
    _check_presets(decoder, graph, spec)
    _check_candidates(decoder, graph, spec, seed)
    _check_not_finite(decoder, graph, spec)
    return spec


def _must(good: bool, decoder: Decoder, promise: str, seen: str) -> None:
    if not good:
        raise PluginError(
            f"decoder '{decoder.family}' does not keep its contract: it {promise}",
            seen=seen,
            fix="see the Decoder protocol in avq.hookspecs",
        )


def _check_spec(decoder: Decoder, spec: DecoderSpec) -> None:
    _must(spec.family == decoder.family, decoder, "names its own family in the spec", spec.family)
    try:
        same = json.loads(json.dumps(dict(spec.params))) == dict(spec.params)
    except TypeError as error:
        _must(False, decoder, "keeps JSON values only in params", str(error))
    else:
        _must(same, decoder, "keeps JSON values only in params", repr(spec.params))


def _check_names(decoder: Decoder, graph: GraphView, spec: DecoderSpec, seed: int) -> None:
    other, old_names = renamed(graph, seed)
    again = decoder.recognise(other)
    _must(again is not None, decoder, "recognises structure, not names", "None after renaming everything")
    assert again is not None
    same = replace(again, params=_with_names(again.params, old_names)) == spec
    _must(same, decoder, "recognises structure, not names", f"{again.params} after renaming everything")


def _check_head(decoder: Decoder, graph: GraphView, spec: DecoderSpec) -> None:
    reasons = decoder.head_nodes(graph, spec)
    strange = set(reasons) - {node.name for node in graph.nodes}
    _must(not strange, decoder, "names nodes of the graph only", ", ".join(sorted(strange)))
    _must(all(reasons.values()), decoder, "gives a reason for every node", "an empty reason")
    last = {node.name for name in graph.output_names if (node := graph.producer(name)) is not None}
    _must(
        last <= set(reasons), decoder, "keeps what writes the outputs float", ", ".join(last - set(reasons))
    )


def _check_presets(decoder: Decoder, graph: GraphView, spec: DecoderSpec) -> None:
    height, width = graph.inputs[0].shape[2:]
    for preset in decoder.presets(graph, spec):
        size = (preset.width_px, preset.height_px)
        _must(size == (width, height), decoder, "gives presets of the input's size", f"{size}")


def _check_candidates(decoder: Decoder, graph: GraphView, spec: DecoderSpec, seed: int) -> None:
    empty = decoder.candidates(raw_outputs(graph, None), spec, 0.6)
    _must(len(empty[1]) == 0, decoder, "gives no boxes where no score is above", f"{len(empty[1])} boxes")
    boxes, scores, class_ids = decoder.candidates(raw_outputs(graph, seed), spec, 0.01)
    count = len(scores)
    shapes = (boxes.shape, scores.shape, class_ids.shape)
    _must(shapes == ((count, 4), (count,), (count,)), decoder, "gives (N, 4), (N,) and (N,)", str(shapes))
    kinds = (boxes.dtype, scores.dtype, class_ids.dtype)
    _must(
        [kind.name for kind in kinds] == ["float32", "float32", "int64"],
        decoder,
        "gives float32, float32, int64",
        str(kinds),
    )
    _must(
        bool(np.all(scores >= 0.01)), decoder, "drops scores below the threshold", f"{scores.min(initial=1)}"
    )
    if spec.num_classes:
        inside = np.all((class_ids >= 0) & (class_ids < spec.num_classes))
        _must(bool(inside), decoder, "gives class ids below num_classes", f"{class_ids.max(initial=0)}")


def _check_not_finite(decoder: Decoder, graph: GraphView, spec: DecoderSpec) -> None:
    raw = raw_outputs(graph, None)
    spoiled = next((name for name, value in raw.items() if value.dtype.kind == "f" and value.size), None)
    if spoiled is None:
        return
    raw[spoiled].reshape(-1)[-1] = np.nan
    given = ModelInput(np.zeros((1, 3, 1, 1), np.uint8), np.array([[1.0, 0, 0], [0, 1, 0]]), (1, 1))
    try:
        DetectionDecoder(spec, [decoder]).decode(raw, given)
    except DataError as error:
        _must(spoiled in error.what, decoder, "lets NaN be reported with its output", error.what)
    else:
        _must(False, decoder, "lets NaN be reported", "no DataError")


def raw_outputs(graph: GraphView, seed: int | None) -> dict[str, AnyArray]:
    """Outputs of the graph's shapes: zeros, or random numbers in 0..1 (integers: zeros)."""
    rng = np.random.default_rng(seed)
    raw: dict[str, AnyArray] = {}
    for view in graph.outputs:
        shape = tuple(_OPEN_SIZE if size < 0 else size for size in view.shape)
        values = np.zeros(shape) if seed is None or not view.dtype.startswith("float") else rng.random(shape)
        raw[view.name] = values.astype(view.dtype)
    return raw


def renamed(graph: GraphView, seed: int) -> tuple[GraphView, Mapping[str, str]]:
    """The same graph with random node and tensor names, and new tensor name -> old."""
    rng = random.Random(seed)
    names = sorted({t for n in graph.nodes for t in (*n.inputs, *n.outputs) if t} | set(graph.constants))
    names += [view.name for view in (*graph.inputs, *graph.outputs) if view.name not in names]
    new = {name: f"t{rng.getrandbits(48):012x}" for name in names} | {"": ""}
    tensors = {new[n]: _view(v, new) for n, v in graph.tensors.items() if n in new}
    other = replace(
        graph,
        nodes=tuple(_node(node, new, rng) for node in graph.nodes),
        inputs=tuple(_view(view, new) for view in graph.inputs),
        outputs=tuple(_view(view, new) for view in graph.outputs),
        tensors=tensors,
        constants={new[name]: value for name, value in graph.constants.items()},
    )
    return other, {fresh: old for old, fresh in new.items() if old}


def _view(view: TensorView, new: Mapping[str, str]) -> TensorView:
    return replace(view, name=new[view.name])


def _node(node: NodeView, new: Mapping[str, str], rng: random.Random) -> NodeView:
    inputs, outputs = (tuple(new[name] for name in side) for side in (node.inputs, node.outputs))
    return replace(node, name=f"n{rng.getrandbits(48):012x}", inputs=inputs, outputs=outputs)


def _with_names(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_names(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_names(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
