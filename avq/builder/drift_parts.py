"""The bundle's drift parts: the probe, and what it says of the pictures the ranges were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from avq.builder.frontend.analyse import Understood
from avq.builder.lower import saturation_probe
from avq.builder.pictures.dataset import Item, Pictures, read_picture
from avq.builder.request import Request
from avq.bundle import DRIFT, PROBE
from avq.errors import AvqError
from avq.hookspecs import Engine
from avq.measure.drift import MIN_REFERENCE, reference_of
from avq.preprocess import Preprocessor
from avq.progress import Reporter
from avq.types import PreprocessSpec, QuantizationPlan, SessionOptions

#: More pictures would sharpen the threshold little: one in a hundred usual pictures is seen from here on.
MAX_PICTURES = 100


def drift_parts(
    request: Request, understood: Understood, plan: QuantizationPlan, pictures: Pictures, report: Reporter
) -> dict[str, bytes]:
    """probe.onnx and drift.json; nothing for plans without static ranges, no drift.json for few pictures.

    Held-out pictures come first: nothing was fitted to them.
    """
    probe: onnx.ModelProto = saturation_probe(understood.model.proto, plan)
    if not plan.points or not probe.graph.output:  # with float data there is no range to leave
        return {}
    parts = {PROBE: probe.SerializeToString()}
    known = {item.sha256: item for item in (*pictures.held_out.items, *pictures.calibration.items)}
    items = list(known.values())[:MAX_PICTURES]
    if len(items) < MIN_REFERENCE:
        report.message(f"no drift reference: {len(items)} pictures are too few, it takes {MIN_REFERENCE}")
        return parts
    try:
        rows = probe_ratios(
            parts[PROBE], request.reference, understood.spec, items, report, threads=request.probe_threads
        )
    except AvqError as error:
        report.warning(f"no drift reference: {error.what}")
        return parts
    return {**parts, DRIFT: reference_of(rows).to_json()}


def probe_ratios(
    probe: bytes,
    engine: Engine,
    spec: PreprocessSpec,
    items: Sequence[Item],
    report: Reporter,
    *,
    threads: int,
) -> list[Mapping[str, float]]:
    """The probe's outputs per picture, in order."""
    preprocessor = Preprocessor(spec)
    session = engine.open(probe, SessionOptions(threads=threads))
    try:
        return [
            {
                name: float(value)
                for name, value in session.infer(preprocessor.prepare(read_picture(item)).tensor).items()
            }
            for item in report.track(items, "drift", len(items))
        ]
    finally:
        session.close()
