"""Detector: preprocessing, engine session and decoder of a bundle or model, from one picture to its detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from avq.bundle import MODEL, OpenBundle
from avq.bundle.engines import ENGINES, require_engine, wanted_key
from avq.decoders import DetectionDecoder, builtin_decoders
from avq.errors import BundleError, MachineError
from avq.hookspecs import CompilingEngine, Decoder, Engine, Session
from avq.preprocess import Preprocessor
from avq.types import U8, DecoderSpec, Detections, ModelInput, PreprocessSpec, SessionOptions


@dataclass(frozen=True)
class Detector:
    """A model ready to detect objects in pictures. Not thread-safe.

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
        """Detect objects in one picture.

        Args:
            pixels: (H, W, 3) uint8 BGR.
            score_threshold: None uses that of the decoder.
        """
        return self.detect_input(self.preprocessor.prepare(pixels), score_threshold=score_threshold)

    def detect_input(self, model_input: ModelInput, *, score_threshold: float | None = None) -> Detections:
        """Detect objects in a prepared network input."""
        raw = self.session.infer(model_input.tensor)
        return self.decoder.decode(raw, model_input, score_threshold=score_threshold)

    def close(self) -> None:
        self.session.close()


def open_detector(
    session: Session,
    preprocess: PreprocessSpec,
    decoder: DecoderSpec,
    class_names: tuple[str, ...],
    *,
    families: Sequence[Decoder] = (),
    package: str = "",
) -> Detector:
    """Build a detector from a session and specifications; ``families`` are head families of plugins."""
    decode = DetectionDecoder(decoder, (*builtin_decoders(), *families), package)
    return Detector(Preprocessor(preprocess), session, decode, class_names)


def detector_of(
    bundle: OpenBundle,
    engines: Mapping[str, Engine],
    *,
    threads: int | None = None,
    families: Sequence[Decoder] = (),
) -> Detector:
    """Open a bundle's model on the engine it was verified with.

    Args:
        bundle: an opened bundle; its model part is verified before it is loaded.
        engines: installed engines by name.
        threads: None uses the thread count it was verified with.
        families: head families of plugins, beside the built-in ones.

    Raises:
        BundleError: the bundle has no decoded head or a damaged part.
        MachineError: its engine is not installed.
    """
    manifest = bundle.manifest
    if manifest.preprocess is None or manifest.decoder is None or manifest.decoder.family == "none":
        raise BundleError(
            f"the bundle {bundle.path} has no decoder, so it cannot output boxes",
            seen="decoder: none",
            fix="build it with --decoder NAME; 'avq plugins' lists the names",
        )
    session = open_session(bundle, engines, threads=threads)
    return open_detector(
        session,
        manifest.preprocess,
        manifest.decoder,
        manifest.class_names,
        families=families,
        package=manifest.decoder_package or "",
    )


def open_session(bundle: OpenBundle, engines: Mapping[str, Engine], *, threads: int | None = None) -> Session:
    """Open the bundle's model on its engine, with the precision and threads it was verified with."""
    use = bundle.manifest.engine
    if use.name not in engines:
        raise MachineError(
            f"the bundle {bundle.path} needs the engine {use.name}, which is not installed",
            seen=f"installed: {', '.join(sorted(engines)) or 'none'}",
            fix=f'pip install "avq[{use.name}]", or rebuild with --target cpu',
        )
    engine = engines[use.name]
    if bundle.has(ENGINES) and isinstance(engine, CompilingEngine):
        key = wanted_key(bundle, engine.name, engine.status().version, engine.architecture())
        return engine.open_engine(require_engine(bundle, key), use.precision)
    options = SessionOptions(threads=threads or use.threads, precision=use.float_precision)
    return engine.open(bundle.read(MODEL), options)
