"""Run a calibration and write its file."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from avq.builder.calibrate import avqcal
from avq.builder.calibrate.run import CalibrationRun
from avq.builder.calibrate.spread import spread
from avq.parallel import Fleet
from avq.process import peak_rss_mb


def run_calibrate(run: CalibrationRun, output: Path, fleet: Fleet | None = None) -> dict[str, Any]:
    """``avq calibrate``: run here or on a fleet, write ``output``, drop the checkpoint; the keys of its --json.

    The checkpoint, unless one is given, lies beside the output, so that starting again resumes.
    """
    started = time.monotonic()
    avqcal.check_writable(output)
    if run.checkpoint is None:
        run.checkpoint = output.with_name(f".{output.name}.checkpoint")
    shards = output.with_name(f".{output.name}.shards")
    try:
        data = spread(run, fleet, shards) if fleet is not None and fleet.spreads else run.run()
    finally:
        run.close()
    avqcal.write(output, data)
    avqcal.discard(run.checkpoint)
    shutil.rmtree(shards, ignore_errors=True)
    return {
        "images": len(data.images),
        "tensors": len(data.histograms),
        "seconds": round(time.monotonic() - started, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
        "digest": data.digest,
        "inferences": run.inferences,
        "resumed": run.resumed,
        "not_finite": sorted(name for name, h in data.histograms.items() if h.nans or h.infinities),
        "file": str(output),
    }
