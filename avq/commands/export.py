"""``avq export``: the scales of a bundle as a calibration cache or AIMET encodings."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from avq.atomic_file import atomic_write
from avq.bundle import MODEL, PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.errors import RequestError, nearest

FORMATS = ("trt-cache", "aimet")
NEWEST_AIMET = "2.0.0"


class ExportJson(TypedDict):
    """Object of ``avq export --json``; ``unsaid`` maps a reason to the tensors that are not in the file."""

    bundle: str
    format: str
    version: str
    output: str
    entries: int
    unsaid: dict[str, list[str]]


def export(bundle: Path, kind: str, output: Path, version: str | None = None) -> ExportJson:
    """Write the scales of a bundle's plan to a file of another tool.

    Args:
        bundle: bundle with a plan, accepted or not.
        kind: "trt-cache" or "aimet".
        output: file to write; it is replaced by one rename.
        version: version of the AIMET encodings, or the TensorRT version in a cache's header, such as "8501".

    Raises:
        RequestError: the bundle has no plan; unknown ``kind`` or ``version``.
        DataError: the output cannot be written.
        PlanError: the format cannot express grids of the plan; the error names them.
    """
    from avq.builder.encodings.write import cache_header, inspect_lowered, plan_as_aimet, plan_as_cache

    if kind not in FORMATS:
        raise RequestError(f"unknown format '{kind}'", seen="--format", fix=nearest(kind, FORMATS))
    source = open_bundle(bundle, allow_unaccepted=True)
    if not source.has(PLAN_JSON):
        raise RequestError(
            f"bundle {bundle} has no plan to export",
            seen=f"strategy {source.manifest.strategy.name}",
            fix="build it with a strategy other than float",
        )
    plan = plan_from_parts(source.read(PLAN_JSON), source.read(PLAN_ARRAYS))
    lowered = inspect_lowered(source.read(MODEL), plan)
    if kind == "aimet":
        written = plan_as_aimet(plan, lowered, version or NEWEST_AIMET)
    else:
        written = plan_as_cache(plan, lowered, cache_header(version))
    atomic_write(output, written.data)
    return {
        "bundle": str(bundle),
        "format": kind,
        "version": (version or NEWEST_AIMET) if kind == "aimet" else cache_header(version),
        "output": str(output),
        "entries": written.entries,
        "unsaid": {reason: list(names) for reason, names in written.omitted.items()},
    }
