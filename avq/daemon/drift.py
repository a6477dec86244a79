"""Drift of the scene from the calibration pictures: the bundle's probe on a frame every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avq.bundle import DRIFT, PROBE, OpenBundle
from avq.daemon.side_task import Finding
from avq.errors import AvqError, MachineError, RequestError
from avq.hookspecs import Engine, Session
from avq.measure.drift import DriftMonitor, DriftReference, DriftState
from avq.preprocess import Preprocessor
from avq.types import Detections, Frame, SessionOptions

RUNTIME = "onnxruntime"


@dataclass
class _Probe:
    """The open probe of one bundle, with one monitor per camera: another camera is another scene."""

    bundle: str
    session: Session
    preprocessor: Preprocessor
    reference: DriftReference
    monitors: dict[str, DriftMonitor]


class Drift:
    """Compares the probe's ratios with those of the calibration pictures, in windows of pictures.

    A bundle without a probe, or a machine without onnxruntime, is reported once and then ignored.

    Args:
        engines: available on this machine; the probe needs onnxruntime.
        bundle: the serving one.

    Attributes:
        unavailable: why drift cannot be watched; "" when it can.
    """

    def __init__(self, engines: Mapping[str, Engine], bundle: OpenBundle) -> None:
        self.unavailable = ""
        self._engines = engines
        self._probe: _Probe | None = None
        self.on_bundle(bundle)

    def on_bundle(self, bundle: OpenBundle) -> None:
        """Continue with the probe of another bundle."""
        self.close()
        self._cameras: dict[str, dict[str, Any]] = {}
        self.unavailable, self._reported = "", False
        try:
            self._probe = _open(self._engines, bundle)
        except AvqError as error:
            self.unavailable = f"{error.what} ({error.seen}); {error.fix}"

    def examine(self, frame: Frame, detections: Detections, bundle: str) -> list[Finding]:
        probe = self._probe
        if probe is None:
            reported, self._reported = self._reported, True
            return [] if reported else [{"kind": "drift_unavailable", "reason": self.unavailable}]
        raw = probe.session.infer(probe.preprocessor.prepare(frame).tensor)
        ratios = {name: float(value) for name, value in raw.items()}
        if frame.camera not in probe.monitors:
            probe.monitors[frame.camera] = DriftMonitor(probe.reference)
        after = probe.monitors[frame.camera].update(ratios)
        before = self._cameras.get(frame.camera, {}).get("drifting", False)
        self._cameras[frame.camera] = _row(after)
        return [] if after.drifting == before else [_event(after)]

    def state(self) -> Mapping[str, Any]:
        """Results so far; ``share`` and ``occupancy`` are those of the camera with the largest share.

        Both are means over the pictures of its current window, and None before the first picture.
        """
        if self._probe is None:
            return {"available": False, "why": self.unavailable}
        cameras = dict(self._cameras)
        worst = max(
            cameras.values(), key=lambda row: row["share"], default={"share": None, "occupancy": None}
        )
        return {
            "available": True,
            "bundle": self._probe.bundle,
            "drifting": any(row["drifting"] for row in cameras.values()),
            "share": worst["share"],
            "occupancy": worst["occupancy"],
            "usual_share": self._probe.reference.usual_share,
            "usual_occupancy": self._probe.reference.usual_occupancy,
            "cameras": cameras,
        }

    def close(self) -> None:
        if self._probe is not None:
            self._probe.session.close()
            self._probe = None


def _row(state: DriftState) -> dict[str, Any]:
    return {
        "share": state.share,
        "occupancy": state.occupancy,
        "score": round(state.score, 3),
        "drifting": state.drifting,
        "pictures": state.seen,
        "unusual_pictures": state.beyond_count,
        "limit": state.limit,
        "unusual": list(state.unusual),
    }


def _event(state: DriftState) -> Finding:
    reason = (
        f"{state.beyond_count} of the last {state.seen} pictures are unlike the calibration pictures "
        f"({state.limit} are drift); most unusual ratios: {', '.join(state.unusual[:2])}; "
        f"{100 * state.share:.2g}% of activations are outside their calibrated ranges"
    )
    return {
        "kind": "drift_raised" if state.drifting else "drift_cleared",
        "share": state.share,
        "occupancy": state.occupancy,
        "unusual_pictures": state.beyond_count,
        "pictures": state.seen,
        "limit": state.limit,
        "reason": reason,
    }


def _open(engines: Mapping[str, Engine], bundle: OpenBundle) -> _Probe:
    manifest = bundle.manifest
    if not bundle.has(DRIFT) or not bundle.has(PROBE) or manifest.preprocess is None:
        raise RequestError(
            f"bundle {bundle.path} has no drift probe",
            seen=f"strategy {manifest.strategy.name}, {'' if bundle.has(PROBE) else 'no '}probe.onnx, no drift.json",
            fix="build a bundle with static ranges on at least 10 pictures; a float bundle has no ranges",
        )
    if RUNTIME not in engines:
        raise MachineError(
            "the drift probe needs onnxruntime",
            seen=f"installed: {', '.join(sorted(engines)) or 'no engine'}",
            fix='pip install "avq[onnxruntime]", or remove [drift] from the configuration',
        )
    reference = DriftReference.from_json(bundle.read(DRIFT))
    session = engines[RUNTIME].open(bundle.read(PROBE), SessionOptions(threads=1))
    return _Probe(bundle.digest, session, Preprocessor(manifest.preprocess), reference, {})
