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
    """Compares the share of activations outside the calibrated ranges with that of the calibration pictures.

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
        share = sum(ratios.values()) / len(ratios)
        self._cameras[frame.camera] = _row(after, share)
        if after.drifting == before:
            return []
        return [_event(after, share)]

    def state(self) -> Mapping[str, Any]:
        """Results so far; ``share`` is that of the worst camera on its last picture, None before the first."""
        if self._probe is None:
            return {"available": False, "why": self.unavailable}
        cameras = dict(self._cameras)
        return {
            "available": True,
            "bundle": self._probe.bundle,
            "drifting": any(row["drifting"] for row in cameras.values()),
            "share": max((row["share"] for row in cameras.values()), default=None),
            "cameras": cameras,
        }

    def close(self) -> None:
        if self._probe is not None:
            self._probe.session.close()
            self._probe = None


def _row(state: DriftState, share: float) -> dict[str, Any]:
    return {
        "share": round(share, 6),
        "score": round(state.score, 3),
        "drifting": state.drifting,
        "pictures": state.seen,
        "unusual_pictures": state.beyond_count,
        "limit": state.limit,
        "unusual": list(state.unusual),
    }


def _event(state: DriftState, share: float) -> Finding:
    if not state.drifting:
        reason = f"{state.beyond_count} of {state.seen} pictures are unusual again; {state.limit} are drift"
        return {"kind": "drift_cleared", "share": share, "reason": reason}
    reason = (
        f"{state.beyond_count} of the last {state.seen} pictures are unlike the calibration pictures; "
        f"{share:.2%} of activations lie outside their ranges, most in {', '.join(state.unusual[:2])}"
    )
    return {"kind": "drift_raised", "share": share, "reason": reason}


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
