"""``avq export``: a bundle's scales as a file that other tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avq.atomic_file import atomic_write
from avq.bundle import MODEL, PLAN_ARRAYS, PLAN_JSON, open_bundle
from avq.bundle.plan import plan_from_parts
from avq.errors import RequestError, nearest

FORMATS = ("trt-cache", "aimet")
NEWEST_AIMET = "2.0.0"


def export(bundle: Path, kind: str, output: Path, version: str | None = None) -> dict[str, Any]:
    """Write the plan of ``bundle`` to ``output``; the keys of ``avq export --json``.

    Args:
        bundle: any bundle with a plan, accepted or not.
        kind: "trt-cache" or "aimet".
        output: the file, which appears whole.
        version: of the AIMET encodings; for a cache, the number in its header, such as "8501".

    Raises:
        RequestError: a float bundle, an unknown kind or version. DataError: the output cannot be written.
        PlanError: the plan has grids that the format cannot express; they are named.
    """
    from avq.builder.encodings.write import cache_header, inspect_lowered, plan_as_aimet, plan_as_cache

    if kind not in FORMATS:
        raise RequestError(f"there is no format '{kind}'", fix=nearest(kind, FORMATS))
    opened = open_bundle(bundle, allow_unaccepted=True)
    if not opened.has(PLAN_JSON):
        raise RequestError(
            f"{bundle} has no plan to export",
            seen=f"strategy {opened.manifest.strategy.name}",
            fix="export a bundle of a quantizing strategy",
        )
    plan = plan_from_parts(opened.read(PLAN_JSON), opened.read(PLAN_ARRAYS))
    lowered = inspect_lowered(opened.read(MODEL), plan)
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
