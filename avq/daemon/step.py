"""One frame through the engine: pure, without queue, hook or plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from avq.clock import Clock
from avq.hookspecs import Session
from avq.types import U8, Detections, Frame, ModelInput, RawOutputs, StageTimes


class Prepares(Protocol):
    """The part of ``avq.preprocess.Preprocessor`` that the daemon uses."""

    def prepare(self, picture: Frame | U8) -> ModelInput: ...


class Decodes(Protocol):
    """The part of ``avq.decoders.DetectionDecoder`` that the daemon uses."""

    def decode(
        self, raw: RawOutputs, model_input: ModelInput, *, camera: str, seq: int, t_capture_ns: int
    ) -> Detections: ...


@dataclass(frozen=True)
class Parts:
    """One opened bundle, ready to serve.

    Attributes:
        preprocessor, session, decoder: of one loop; none of them is thread-safe. The decoder is None where the
            outputs are no detections; such a bundle is not served.
        labels: class names by id.
        bundle_digest: names the bundle in every message.
        mode: name of the mode, as in the configuration.
        input_size_px: (width, height) of the network, for the warm-up.
    """

    preprocessor: Prepares
    session: Session
    decoder: Decodes | None
    labels: tuple[str, ...]
    bundle_digest: str
    input_size_px: tuple[int, int]
    mode: str = "normal"


def step(frame: Frame, parts: Parts, clock: Clock) -> tuple[Detections, StageTimes]:
    """Preprocess, infer and decode one frame.

    Args:
        frame: pixels (H, W, 3) uint8, BGR.
        parts: an open bundle with a decoder.
        clock: measures the stages.

    Returns:
        Detections in pixels of the frame, and nanoseconds per stage; the queue time starts at the capture.
    """
    assert parts.decoder is not None
    taken_ns = clock.now_ns()
    model_input = parts.preprocessor.prepare(frame)
    prepared_ns = clock.now_ns()
    raw = parts.session.infer(model_input.tensor)
    inferred_ns = clock.now_ns()
    detections = parts.decoder.decode(
        raw, model_input, camera=frame.camera, seq=frame.seq, t_capture_ns=frame.t_capture_ns
    )
    decoded_ns = clock.now_ns()
    return detections, StageTimes(
        queue_ns=taken_ns - frame.t_capture_ns,
        preprocess_ns=prepared_ns - taken_ns,
        infer_ns=inferred_ns - prepared_ns,
        decode_ns=decoded_ns - inferred_ns,
    )
