"""Has the scene left what the bundle was calibrated on? The bundle's probe on a frame every few seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avq.bundle import DRIFT, PROBE, OpenBundle
from avq.errors import AvqError, MachineError, RequestError
from avq.hookspecs import Engine, Session
from avq.measure.drift import DriftMonitor, DriftReference, DriftState
from avq.preprocess import Preprocessor
from avq.types import Detections, Frame, SessionOptions

RUNTIME = "onnxruntime"


@dataclass
class _Probe:
    """One bundle's probe, open, with a monitor per camera: another camera is another scene."""

    bundle: str
    session: Session
    preprocessor: Preprocessor
    reference: DriftReference
    monitors: dict[str, DriftMonitor]


class Drift:
    """Shares of activations outside the calibrated ranges, against what they were on the calibration pictures.

    A bundle without a probe, or a machine without its runtime, is told once and not looked at.

    Args:
        engines: that run here; the probe needs onnxruntime.
        bundle: that serves.
    """

    def __init__(self, engines: Mapping[str, Engine], bundle: OpenBundle) -> None:
        self.why_not = ""
        self._engines = engines
        self._probe: _Probe | None = None
        self.serves(bundle)

    def serves(self, bundle: OpenBundle) -> None:
        """Look with the probe of another bundle."""
        self.close()
        self._cameras: dict[str, dict[str, Any]] = {}
        self.why_not, self._told = "", False
        try:
            self._probe = _open(self._engines, bundle)
        except AvqError as error:
            self.why_not = f"{error.what} ({error.seen}); {error.fix}"

    def look(self, frame: Frame, served: Detections, bundle: str) -> list[dict[str, Any]]:
        probe = self._probe
        if probe is None:
            told, self._told = self._told, True
            return [] if told else [{"kind": "drift_unavailable", "reason": self.why_not}]
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
        """``share``: of activations outside the calibrated ranges, worst camera, last picture; null before one."""
        if self._probe is None:
            return {"available": False, "why": self.why_not}
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


def _event(state: DriftState, share: float) -> dict[str, Any]:
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
            f"the bundle {bundle.path} cannot tell drift",
            seen=f"strategy {manifest.strategy.name}, {'' if bundle.has(PROBE) else 'no '}probe.onnx, no drift.json",
            fix="build one with static ranges on at least 10 pictures: a float bundle has none to leave",
        )
    if RUNTIME not in engines:
        raise MachineError(
            "drift cannot be watched here: its probe needs onnxruntime",
            seen=f"installed: {', '.join(sorted(engines)) or 'no engine'}",
            fix='pip install "avq[onnxruntime]", or remove [drift] from the configuration',
        )
    reference = DriftReference.from_json(bundle.read(DRIFT))
    session = engines[RUNTIME].open(bundle.read(PROBE), SessionOptions(threads=1))
    return _Probe(bundle.digest, session, Preprocessor(manifest.preprocess), reference, {})
