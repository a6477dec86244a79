"""Manifest of a bundle: manifest.json, its canonical form and its digest; names of the parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from avq.errors import BundleError
from avq.types import Answer, DecoderSpec, EnginePrecision, PreprocessSpec, TensorView, TimeAnswer

#: Format version; increased when older readers would misread a manifest.
FORMAT = 1
MANIFEST = "manifest.json"
#: Largest manifest that is read; a bundle's bulk is in its parts.
MAX_MANIFEST_BYTES = 16 << 20
_PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_RESERVED = frozenset({MANIFEST, "signature"})

Accepted = bool | Literal["pending-target"]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle: SHA-256 (hex) and length."""

    sha256: str
    bytes: int


class StrategyUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Plugin and version of the strategy."""

    name: str
    owner: str = ""
    version: str = ""


class EngineUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The runtime the bundle was verified with, and how it was opened.

    Attributes:
        precision: what really ran, as the runtime reported it.
        float_precision: the hint the float parts were opened with.
        threads: of the runtime, up to 1024.
        encoding: "s8", "u8", "asymmetric", or "" for a float model.
    """

    name: str
    version: str = ""
    precision: str = ""
    float_precision: EnginePrecision = "f32"
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    encoding: str = ""


class CalibrationUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Calibration data: number of pictures and digest of the set."""

    images: int
    digest: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Metadata of a bundle.

    Attributes:
        format: version of this layout.
        avq_version: that wrote it.
        created: UTC, ISO 8601.
        accepted: the gate's answer; "pending-target" until compiled and timed on the vehicle.
        accuracy_verdict: "yes", "no" or "cannot tell"; left out by releases before the three answers.
        time_verdict: the same, "not judged" (``--gate accuracy``), or "pending-target".
        source_digest: SHA-256 of the model file it was built from; left out by older releases.
        target: the requested target: "cpu", "openvino", "tensorrt" ...
        isa: instruction set of the machine that accepted it, space separated; '' makes no demand.
        input: name, shape and dtype of the picture input, (1, 3, h, w) uint8.
        preprocess, decoder: None for models that take no pictures or have no boxes.
        decoder_package: package and version of the plugin that brings the decoder; left out for a built-in one.
        graph_digest: of the float graph; plan_digest: of the plan, '' for a float bundle.
        metrics: what was measured, JSON values; for people and reports.
        reasons: why it was accepted or not, in the order checked.
        parts: file name -> digest and length.
        digest: SHA-256 of the canonical manifest with this field empty; covers the parts by theirs.
    """

    format: int = FORMAT
    avq_version: str
    created: str
    accepted: Accepted
    accuracy_verdict: Answer | msgspec.UnsetType = msgspec.UNSET
    time_verdict: TimeAnswer | msgspec.UnsetType = msgspec.UNSET
    source_digest: str | msgspec.UnsetType = msgspec.UNSET
    strategy: StrategyUse
    target: str
    engine: EngineUse
    isa: str = ""
    input: TensorView
    outputs: tuple[TensorView, ...]
    preprocess: PreprocessSpec | None = None
    decoder: DecoderSpec | None = None
    decoder_package: str | msgspec.UnsetType = msgspec.UNSET
    class_names: tuple[str, ...] = ()
    graph_digest: str
    plan_digest: str = ""
    calibration: CalibrationUse | None = None
    metrics: dict[str, Any] = {}
    reasons: tuple[str, ...] = ()
    parts: dict[str, Part] = {}
    digest: str = ""


def sealed(manifest: Manifest, parts: Mapping[str, Part]) -> Manifest:
    """Return the manifest with ``parts`` and its own digest."""
    for name in parts:
        require_part_name(name)
    blank = msgspec.structs.replace(manifest, parts=dict(parts), digest="")
    return msgspec.structs.replace(blank, digest=hashlib.sha256(_canonical(blank)).hexdigest())


def render(manifest: Manifest) -> bytes:
    """Encode a manifest in canonical form: sorted keys, indent of one space, newline at the end."""
    return msgspec.json.format(_canonical(manifest), indent=1) + b"\n"


def parse(raw: bytes, where: str) -> Manifest:
    """Read manifest.json, strictly: any byte that ``render`` would not write is a damage.

    Raises BundleError: not JSON, unknown format, made by a newer avq, missing or wrong fields, digest wrong.
    """
    _require_format(raw, where)
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(where, str(error)) from None
    for name in manifest.parts:
        require_part_name(name)
    expected = sealed(manifest, manifest.parts)
    if manifest.digest != expected.digest or render(manifest) != raw:
        raise _damaged(where, f"its digest does not match: stored {manifest.digest[:12] or '(none)'}")
    return manifest


def require_part_name(name: str) -> None:
    """Raise BundleError unless ``name`` is a plain file name a bundle may hold."""
    if not _PART_NAME.fullmatch(name) or name in _RESERVED:
        raise BundleError(
            "a bundle part must have a plain file name",
            seen=repr(name),
            fix="letters, digits, '.', '_' and '-'; not manifest.json or signature",
        )


def check_machine(manifest: Manifest, isa: str) -> None:
    """Raise BundleError when this machine (``isa``, space separated) lacks what the bundle was accepted with.

    Other instructions mean other kernels: other rounding, saturation and times than the gate saw.
    """
    missing = [flag for flag in manifest.isa.split() if flag not in isa.split()]
    if missing:
        raise BundleError(
            "the bundle was accepted on a machine with instructions this one lacks",
            seen=f"missing: {' '.join(missing)}; here: {isa or 'unknown'}",
            fix="rebuild it on this kind of machine, or: avq compile BUNDLE --target " + manifest.target,
        )


def _canonical(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest, order="sorted", enc_hook=_plain)


def _plain(value: object) -> object:
    """Convert numpy numbers and paths to JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, PurePath):
        return str(value)
    raise BundleError("a manifest holds JSON values only", seen=f"{type(value).__name__}: {value!r}"[:200])


def _require_format(raw: bytes, where: str) -> None:
    try:
        head = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(where, str(error)) from None
    found = head.get("format") if isinstance(head, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise BundleError(
            f"the bundle {where} was written by a newer avq",
            seen=f"format {found} by avq {head.get('avq_version')}, this avq reads up to {FORMAT}",
            fix="upgrade avq, or rebuild the bundle with this version",
        )
    if found != FORMAT:
        raise BundleError(
            f"the bundle {where} has an unknown format", seen=f"format {found!r}", fix=f"expected {FORMAT}"
        )


def _damaged(where: str, seen: str) -> BundleError:
    return BundleError(
        f"the manifest of {where} is damaged or was edited", seen=seen, fix="copy or build the bundle again"
    )


# Names of the parts of a bundle.

MODEL = "model.onnx"
PLAN_JSON = "plan.json"
PLAN_ARRAYS = "plan.npz"
GOLDEN = "golden.npz"
#: The same network without INT8, if the build wrote one: the latency baseline of the vehicle.
FP16_BASELINE = "float.onnx"
#: Engines compiled ahead, by compute capability: "engine.sm87".
ENGINE_PREFIX = "engine."
#: Input of DLA and of TensorRT 10's implicit quantization: no Q/DQ, ranges in a cache, precisions by layer name.
IMPLICIT = "implicit.onnx"
IMPLICIT_CACHE = "implicit.cache"
IMPLICIT_PRECISIONS = "implicit.json"
PROBE = "probe.onnx"
DRIFT = "drift.json"
REPORT = "report.html"
