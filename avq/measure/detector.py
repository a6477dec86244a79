"""Preprocess, infer, decode: one picture to its detections, the same way everywhere."""

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
    session: Session,
    preprocess: PreprocessSpec,
    decoder: DecoderSpec,
    class_names: tuple[str, ...],
    *,
    families: Sequence[Decoder] = (),
    package: str = "",
) -> Detector:
    """Put the parts of a bundle (or of a model under test) together; ``families`` are those of plugins."""
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
        threads: None takes the threads it was verified with.
        families: head families of plugins, beside the built-in ones.

    Raises:
        BundleError: the bundle has no decoded head or a damaged part.
        MachineError: its engine is not installed here.
    """
    manifest = bundle.manifest
    if manifest.preprocess is None or manifest.decoder is None or manifest.decoder.family == "none":
        raise BundleError(
            f"the bundle {bundle.path} has no decoded head, so it has no boxes to give",
            seen="decoder: none",
            fix="build it with --decoder NAME to serve it; avq inspect shows what it holds",
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
    """The bundle's model on its engine, with the precision and threads it was verified with."""
    use = bundle.manifest.engine
    if use.name not in engines:
        raise MachineError(
            f"the bundle {bundle.path} runs on {use.name}, which is not installed here",
            seen=f"installed: {', '.join(sorted(engines)) or 'none'}",
            fix=f'pip install "avq[{use.name}]", or rebuild with --target cpu',
        )
    engine = engines[use.name]
    if bundle.has(ENGINES) and isinstance(engine, CompilingEngine):
        key = wanted_key(bundle, engine.name, engine.status().version, engine.architecture())
        return engine.open_engine(require_engine(bundle, key), use.precision)
    options = SessionOptions(threads=threads or use.threads, precision=use.float_precision)
    return engine.open(bundle.read(MODEL), options)
