"""Analyse a model file: its float graph, its head, its preprocessing and its classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import onnx

from avq import decoders
from avq.builder.equivalence import Equivalence, check_folded_input, drawn_tensors, normalise_checked
from avq.builder.frontend.fold_input import fold_input, served_spec, source_picture
from avq.builder.frontend.metadata import (
    PREPROCESS_KEY,
    class_names,
    declared_size_px,
    expected_input_max,
    has_open_size,
    is_ultralytics,
    require_detection,
    size_only_px,
)
from avq.builder.frontend.plausibility import check_boxes
from avq.builder.frontend.preprocess_candidates import Candidate, variants
from avq.builder.frontend.preprocess_labels import LabelledSamples, labelled_samples
from avq.builder.frontend.preprocess_search import Infer, PreprocessSearch
from avq.builder.graph.model import FloatModel, normalise, read_model
from avq.builder.lift import (
    RUN_TIME_DIALECT,
    Imported,
    import_model,
    is_dynamic,
    is_quantized,
    lift_dynamic,
    mark_file,
    on_folded_input,
    prove_products,
    runnable,
)
from avq.builder.pictures.dataset import CalibrationSet, Pictures
from avq.builder.request import FLOAT_STRATEGY, Request, reference_engine
from avq.decoders.recognise import NONE, find_decoder
from avq.decoders.structure import input_size_px
from avq.errors import ModelError
from avq.hookspecs import Decoder, Engine, Session
from avq.measure.labels import load_labels
from avq.plugins import PluginHost
from avq.preprocess import PRESETS, Preprocessor, spec_from_json, spec_named
from avq.progress import Reporter
from avq.types import (
    U8,
    AnyArray,
    DecoderSpec,
    GraphView,
    ImportedQuantization,
    PreprocessSpec,
    RawOutputs,
    Recipe,
    SessionOptions,
)

#: Pictures on which the float graph is compared with the file, besides drawn ones.
_COMPARED = 3


@dataclass(frozen=True)
class ModelAnalysis:
    """Facts about a model that a build needs before it plans.

    Attributes:
        model: the float network that every later step uses; its input is the uint8 picture.
        source: the same network before the preprocessing was folded into its input.
        spec: preprocessing of a picture.
        decoder: how outputs become boxes; family "none" for outputs that are not decoded.
        class_names: one name per class index; empty for family "none".
        keep_float: node of the head that stays float -> reason.
        messages, warnings: lines for the user.
        foreign: quantization that the file contains, on edges of ``model``; None for a float file.
        imported: the same before the input was folded, with the file that the import is compared to.
    """

    model: FloatModel
    source: FloatModel
    spec: PreprocessSpec
    decoder: DecoderSpec
    class_names: tuple[str, ...]
    keep_float: Mapping[str, str]
    messages: tuple[str, ...]
    warnings: tuple[str, ...]
    foreign: ImportedQuantization | None = None
    imported: Imported | None = None


def analyse_file(
    model_path: Path | str,
    *,
    decoder: str | None,
    preprocess: str | None,
    classes: str | None,
    sample_pixels: Callable[[], Sequence[U8]] | None,
    infer: Infer,
    extra_decoders: Sequence[Decoder] = (),
    labelled: Callable[[Sequence[str]], LabelledSamples | None] | None = None,
    imports: bool = False,
    engine: Engine | None = None,
) -> ModelAnalysis:
    """Read, normalise and analyse a model.

    Args:
        model_path: the ONNX file.
        decoder, preprocess, classes: values of the flags; None to detect them.
        sample_pixels: gives pictures (H, W, 3) uint8 BGR to try preprocessings on; None without pictures.
        infer: opens a model; the result maps an input (1, 3, h, w) to raw outputs. Called from several threads,
            one model each.
        labelled: gives labelled pictures for class names; they decide the preprocessing. None without labels.
        extra_decoders: families of plugins, tried after the built-in ones.
        imports: whether quantized files are read too, for strategies that import their quantization.
        engine: compares the normalised graph with the file in numbers; None leaves that out.

    Returns:
        The analysis.

    Raises:
        ModelError: the file is no usable model, or its input is not one colour picture.
        RequestError: a flag does not fit the model.
        ConfigError: the preprocessing file is not valid.
    """
    families = (*decoders.builtin_decoders(), *extra_decoders)
    path, samples = Path(model_path), cache(sample_pixels) if sample_pixels is not None else None
    source, imported, proto, unproven = _source(path, preprocess, engine, imports=imports)
    graph = source.view
    spec = decoders.named(decoder, graph, families) if decoder else decoders.recognise(graph, families)
    messages = [*source.messages, *_head_messages(graph, spec, named=decoder is not None)]
    if decoder is None:
        require_detection(graph, spec.family, reads_keypoints=bool(spec.params.get("keypoints")))
    names, remarks = ((), []) if spec.family == NONE else class_names(graph, spec.num_classes, classes)
    messages += remarks
    spec = replace(spec, num_classes=len(names)) if spec.family != NONE else spec
    labels = partial(labelled, names) if labelled is not None else None
    chosen = _Preprocessing(source, spec, families, preprocess, samples, labels, infer).choose()
    folded = fold_input(source, chosen.spec)
    if engine is not None:
        pictures = list(samples())[:_COMPARED] if samples is not None else []
        equal, unknown = _compared(proto, source, folded, chosen.spec, pictures, engine, path.name)
        messages += equal
        unproven += unknown
    if spec.family != NONE and samples is not None:
        checked, doubts = _check_head(
            folded, spec, families, chosen, samples(), infer, named=decoder is not None
        )
        messages += checked
        unproven = [*unproven, *doubts]
    return ModelAnalysis(
        folded,
        source,
        served_spec(source, chosen.spec),
        spec,
        names,
        decoders.head_nodes(folded.view, spec, families),
        (*messages, *chosen.messages),
        (*unproven, *chosen.warnings),
        on_folded_input(imported.foreign, source, folded) if imported is not None else None,
        imported,
    )


def _compared(
    proto: onnx.ModelProto,
    source: FloatModel,
    folded: FloatModel,
    spec: PreprocessSpec,
    pictures: Sequence[U8],
    engine: Engine,
    name: str,
) -> tuple[list[str], list[str]]:
    """Compare the file with the float graph that is served; a message, or a warning that it cannot be."""
    preprocessor = Preprocessor(spec)
    tensors = drawn_tensors(folded.proto.graph.input[0])
    tensors += [preprocessor.prepare(pixels, copy=True).tensor for pixels in pictures]
    feeds = [(source_picture(source, tensor, spec), tensor) for tensor in tensors]
    result: Equivalence = check_folded_input(proto, source, folded, feeds, engine, where=name)
    if result.answer == "equal":
        return [f"float graph equal to the file ({len(pictures)} of them pictures): {result.detail}"], []
    return [], [f"cannot tell whether the float graph computes what the file computes: {result.detail}"]


def _source(
    path: Path, preprocess: str | None, engine: Engine | None, *, imports: bool
) -> tuple[FloatModel, Imported | None, onnx.ModelProto, list[str]]:
    """The normalised model, the import it comes from, the float file behind it, and warnings."""
    proto = read_model(path)
    size = declared_size_px(proto, preprocess) if has_open_size(proto) else None
    read: list[str] = []
    unproven: list[str] = []
    if is_dynamic(proto):
        proto, read, unproven = _lifted(path, proto, engine, size, imports=imports)
    if is_quantized(proto):
        if imports:
            imported = import_model(proto, where=path.name, input_size_px=size)
            model = replace(imported.model, messages=(*read, *imported.model.messages))
            dialect = RUN_TIME_DIALECT if read else imported.foreign.dialect
            foreign = replace(imported.foreign, dialect=dialect)
            return model, replace(imported, model=model, foreign=foreign), model.proto, unproven
        mark_file(
            proto, where=path.name
        )  # names what no strategy can read, before --strategy qat is suggested
    if engine is None:
        return normalise(proto, where=path.name, input_size_px=size), None, proto, unproven
    model, _ = normalise_checked(proto, engine, where=path.name, input_size_px=size)
    return replace(model, messages=(*read, *model.messages)), None, proto, unproven


def _lifted(
    path: Path, proto: onnx.ModelProto, engine: Engine | None, size: tuple[int, int] | None, *, imports: bool
) -> tuple[onnx.ModelProto, list[str], list[str]]:
    """A run-time quantized file in float (strategies that import get its weights' grids), messages, warnings."""
    try:
        lifted = lift_dynamic(proto, "weights" if imports else "float")
        proof = prove_products(runnable(proto, size), engine) if engine is not None else None
    except ModelError as error:
        raise ModelError(f"{path.name}: {error.what}", seen=error.seen, fix=error.fix) from None
    read = (
        "the file quantizes activations at run time: its weights were read as stored, activations are float"
    )
    if engine is None:
        return lifted, [read], []
    if proof is None:
        return (
            lifted,
            [read],
            ["cannot tell whether the weights were read right: no engine here runs the file"],
        )
    if not proof.equal:
        raise ModelError(f"{path.name}: {proof.summary}", fix="give the float model")
    return lifted, [read, proof.summary], []


def _check_head(
    folded: FloatModel,
    spec: DecoderSpec,
    families: Sequence[Decoder],
    chosen: _Chosen,
    pictures: Sequence[U8],
    infer: Infer,
    *,
    named: bool,
) -> tuple[list[str], list[str]]:
    """Messages and warnings of the head's boxes on pictures; a head of the wrong meaning stops the build."""
    if len(pictures) == 0:
        return [], []
    result = check_boxes(infer(folded), chosen.spec, spec, pictures, families)
    if result.answer == "plausible":
        return [f"head checked: {result.detail}"], []
    if result.answer == "cannot tell":
        return [], [f"cannot tell whether the head is read right: {result.detail}"]
    if named and result.of_class:
        return [], [f"the {spec.family} head sees other classes in mirrored pictures: {result.detail}"]
    fix = "check the pictures, set --preprocess, or name the head with --decoder NAME; "
    if result.of_class:
        fix = f"if the classes differ in left and right, name the head with --decoder {spec.family}; "
    elif named:
        fix = "check the pictures, or set --preprocess; "
    raise ModelError(
        f"the outputs have the structure of a {spec.family} head, but do not behave like one",
        seen=result.detail,
        fix=f"{fix}--decoder none leaves the outputs undecoded",
    )


def _head_messages(graph: GraphView, spec: DecoderSpec, *, named: bool) -> list[str]:
    if spec.family == NONE:
        return ["outputs are not decoded (--decoder none)"]
    outputs = ", ".join("x".join(map(str, o.shape)) for o in graph.outputs)
    how = "as named" if named else "recognised by its structure"
    return [f"head: {spec.family}, {how} ({outputs})", *spec.params.get("notes", [])]


@dataclass(frozen=True, slots=True)
class _Chosen:
    spec: PreprocessSpec
    messages: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Preprocessing:
    """Chooses the preprocessing: by flag, by the model's metadata, else by a search over pictures.

    Attributes:
        source: the float model before its input is folded.
        decoder: of its outputs.
        families: decoders whose published preprocessings are tried.
        flag: value of --preprocess; None without it.
        sample_pixels, infer: as in `analyse_file`.
        labelled: gives labelled pictures, which decide where there are any.
    """

    source: FloatModel
    decoder: DecoderSpec
    families: Sequence[Decoder]
    flag: str | None
    sample_pixels: Callable[[], Sequence[U8]] | None
    labelled: Callable[[], LabelledSamples | None] | None
    infer: Infer

    def choose(self) -> _Chosen:
        size = self._size_px()
        if self.flag is not None and size_only_px(self.flag) != size:
            return _Chosen(spec_named(self.flag, *size), (f"preprocessing: {self.flag}",))
        text = self.source.view.metadata.get(PREPROCESS_KEY)
        if text:
            spec = spec_from_json(text, where=f"the model's metadata '{PREPROCESS_KEY}'", size_px=size)
            return _Chosen(spec, ("preprocessing: from the model's metadata",))
        if is_ultralytics(self.source.view) and self.decoder.family != NONE:
            return _Chosen(self._ultralytics(size), ("preprocessing: Ultralytics', by the model's metadata",))
        return self._published(size)

    def _ultralytics(self, size_px: tuple[int, int]) -> PreprocessSpec:
        """Letterboxed RGB 0..1; the stretched preset of RT-DETR where the head selects boxes in the graph."""
        family = find_decoder(self.decoder.family, self.families)
        presets = family.presets(self.source.view, self.decoder) if family.nms_in_graph else ()
        return presets[0] if presets else PRESETS["yolov8"](*size_px)

    def _size_px(self) -> tuple[int, int]:
        size = input_size_px(self.source.view)
        if size is None or self.source.view.inputs[0].shape[1] != 3:
            seen = "; ".join(f"'{i.name}' {i.shape}" for i in self.source.view.inputs)
            raise ModelError(
                "the model's input is not a colour picture",
                seen=seen,
                fix="export it with one input of shape (1, 3, h, w)",
            )
        return size

    def _published(self, size_px: tuple[int, int]) -> _Chosen:
        """Search over the family's published preprocessings and their variants."""
        if self.decoder.family == NONE:
            why = "outputs are not decoded, so the preprocessing cannot be detected"
            return _Chosen(
                PRESETS["rgb-unit"](*size_px),
                ("preprocessing: stretched, RGB, 0..1",),
                (f"{why}: RGB 0..1 is assumed; set it with --preprocess",),
            )
        presets = find_decoder(self.decoder.family, self.families).presets(self.source.view, self.decoder)
        bytes_only = self.source.view.inputs[0].dtype == "uint8"
        likely_max = expected_input_max(self.source.view)
        candidates = variants(presets, size_px, likely_max=likely_max, bytes_only=bytes_only)
        labelled = self.labelled() if self.labelled is not None and len(candidates) > 1 else None
        if labelled is not None:
            by_labels = (labelled.judge, "mAP, mean over pictures")
            search = self._search()
            search = replace(search, judges=(by_labels, *search.judges))
            result = search.run(candidates, labelled.pictures)
            return _Chosen(result.spec, result.messages)
        pictures = self.sample_pixels() if self.sample_pixels is not None and len(candidates) > 1 else ()
        if len(pictures) == 0:
            return self._untried(candidates[0])
        result = self._search().run(candidates, pictures)
        return _Chosen(result.spec, result.messages)

    def _search(self) -> PreprocessSearch:
        return PreprocessSearch(self.source, self.decoder, self.families, self.infer)

    def _untried(self, first: Candidate) -> _Chosen:
        warning = "no pictures to detect the preprocessing with: check it, or set it with --preprocess"
        how = f"as {self.decoder.family} is published" if first.published else "assumed"
        return _Chosen(first.spec, (f"preprocessing: {first.label}, {how}",), (warning,))


# Analysis with the engine, the decoders and the pictures of one request.


def analyse_model(request: Request, pictures: Pictures, report: Reporter) -> ModelAnalysis:
    """Analyse the recipe's model and report its messages and warnings.

    Args:
        request: the recipe, the reference engine and the decoders.
        pictures: preprocessings are tried on those for calibration.
        report: takes the messages.

    Returns:
        The analysis.

    Raises:
        ModelError: the file, its head or its preprocessing cannot be read.
    """
    recipe = request.recipe
    sessions = _SearchSessions(request.reference)
    try:
        analysis = analyse_file(
            recipe.model,
            decoder=recipe.decoder,
            preprocess=recipe.preprocess,
            classes=recipe.classes,
            sample_pixels=pictures.samples,
            labelled=_labelled(recipe, pictures) if recipe.labels is not None else None,
            infer=sessions.open,
            extra_decoders=request.families,
            imports=request.imports,
            engine=request.reference,
        )
    finally:
        sessions.close()
    for message in analysis.messages:
        report.message(message)
    for warning in analysis.warnings:
        report.warning(warning)
    return analysis


def _labelled(recipe: Recipe, pictures: Pictures) -> Callable[[Sequence[str]], LabelledSamples | None]:
    def samples(names: Sequence[str]) -> LabelledSamples | None:
        assert recipe.labels is not None
        labels = load_labels(recipe.labels, class_map=recipe.class_map, class_names=names)
        return labelled_samples(labels, pictures.calibration.items)

    return samples


class _SearchSessions:
    """Sessions of the float model for the preprocessing search, one per thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: list[Session] = []

    def open(self, model: FloatModel) -> Callable[[AnyArray], RawOutputs]:
        session = self._engine.open(model.proto.SerializeToString(), SessionOptions())
        self._sessions.append(session)
        name = model.view.inputs[0].name
        return lambda values: session.run({name: values})

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._sessions.clear()


def analyse_for_command(
    model: Path,
    pictures: CalibrationSet,
    host: PluginHost,
    report: Reporter,
    *,
    decoder: str | None = None,
    preprocess: str | None = None,
    classes: str | None = None,
    threads: int = 1,
) -> tuple[Request, ModelAnalysis]:
    """Analyse a model for commands that build nothing: calibrate, eval, inspect.

    Returns:
        The request that stands for a build, and the analysis.
    """
    recipe = Recipe(
        model=model,
        output=Path(),
        data=pictures.folder,
        strategy=FLOAT_STRATEGY,
        target="onnxruntime",
        decoder=decoder,
        preprocess=preprocess,
        classes=classes,
        threads=threads,
    )
    reference = reference_engine(host)
    alone = {reference.name: reference}
    request = Request(recipe, None, None, alone, alone, reference, host.decoders())
    return request, analyse_model(request, Pictures(pictures, pictures), report)
