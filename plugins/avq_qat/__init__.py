"""Strategy ``qat``: import the quantization that a model was trained or exported with."""

from __future__ import annotations

from avq import hookimpl
from avq_qat.strategy import QatOptions, QatQuantizer

__all__ = ["QatOptions", "QatQuantizer", "avq_register_quantizers"]


@hookimpl
def avq_register_quantizers() -> list[QatQuantizer]:
    return [QatQuantizer()]
