"""Open whatever the user named, a bundle or a float model, as a detector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avq.builder.pictures.dataset import CalibrationSet
from avq.bundle import open_bundle
from avq.engines.cpu import instruction_set
from avq.hookspecs import Engine
from avq.measure.detector import Detector, detector_of, open_detector
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.types import SessionOptions


@dataclass(frozen=True)
class ModelFlags:
    """How a float model is to be read; ignored for bundles, which know."""

    decoder: str | None = None
    preprocess: str | None = None
    classes: str | None = None
    threads: int = 1


def open_subject(
    path: Path, pictures: CalibrationSet, flags: ModelFlags, host: PluginHost, report: Reporter
) -> Detector:
    """A detector for a bundle folder or an ONNX file.

    Raises BundleError or ModelError when it is neither or damaged.
    """
    if path.is_dir():
        bundle = open_bundle(path, allow_unaccepted=True, isa=instruction_set())
        engines = _engines(bundle.manifest.engine.name, host, report)
        return detector_of(bundle, engines, threads=flags.threads, families=host.decoders())
    from avq.builder.understand.host import understand_alone

    request, understood = understand_alone(
        path,
        pictures,
        host,
        report,
        decoder=flags.decoder,
        preprocess=flags.preprocess,
        classes=flags.classes,
        threads=flags.threads,
    )
    session = request.reference.open(
        understood.model.proto.SerializeToString(), SessionOptions(threads=flags.threads)
    )
    return open_detector(
        session, understood.spec, understood.decoder, understood.class_names, families=request.families
    )


def _engines(wanted: str, host: PluginHost, report: Reporter) -> dict[str, Engine]:
    """The engines that run here; for a bundle of a GPU that does not, the reference on its very bytes."""
    engines = host.running_engines()
    if wanted not in engines:
        from avq.builder.pending.stand_in import StandIn, pending_compiler
        from avq.builder.request import reference_engine

        compiler = pending_compiler(wanted, host.engines())
        if compiler is not None:
            engines[wanted] = StandIn(compiler, reference_engine(host))
            report.message(f"{wanted} cannot run here: its model is judged in the unoptimised reference")
    return engines
