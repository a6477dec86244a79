"""Preprocess, infer, decode: one picture to its detections, the same way everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from avq.decoders import DetectionDecoder
from avq.hookspecs import Session
from avq.preprocess import Preprocessor
from avq.types import U8, DecoderSpec, Detections, ModelInput, PreprocessSpec


@dataclass(frozen=True)
class Detector:
    """An opened model with its way in and its way out. Not thread-safe.

    Attributes:
        preprocessor: picture -> network input.
        session: the engine.
        decoder: raw outputs -> boxes in picture pixels.
        class_names: by class id.
    """

    preprocessor: Preprocessor
    session: Session
    decoder: DetectionDecoder
    class_names: tuple[str, ...]

    def detect(self, pixels: U8, *, score_threshold: float | None = None) -> Detections:
        """Boxes in one picture, (H, W, 3) uint8 BGR."""
        return self.detect_input(self.preprocessor.prepare(pixels), score_threshold=score_threshold)

    def detect_input(self, model_input: ModelInput, *, score_threshold: float | None = None) -> Detections:
        """The same for a picture that is prepared already."""
        raw = self.session.infer(model_input.tensor)
        return self.decoder.decode(raw, model_input, score_threshold=score_threshold)

    def close(self) -> None:
        self.session.close()


def open_detector(
    session: Session, preprocess: PreprocessSpec, decoder: DecoderSpec, class_names: tuple[str, ...]
) -> Detector:
    """Put the parts of a bundle (or of a model under test) together."""
    return Detector(Preprocessor(preprocess), session, DetectionDecoder(decoder), class_names)


def detect_all(
    detector: Detector, pictures: Iterable[U8], *, score_threshold: float | None = None
) -> Iterator[Detections]:
    """Detections of each picture, in order; only one picture is held at a time."""
    for pixels in pictures:
        yield detector.detect(pixels, score_threshold=score_threshold)
