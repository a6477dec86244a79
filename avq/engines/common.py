"""What every engine checks the same way: the file, the picture, the named inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avq.errors import MachineError, ModelError, RequestError, nearest
from avq.types import U8, AnyArray, TensorView

#: Operators whose precision is the precision of a detector: nearly all multiply-adds are theirs.
COMPUTE_OPS = ("conv", "gemm", "matmul", "fullyconnected", "innerproduct")


def model_bytes(model: bytes | Path) -> bytes:
    """The file's bytes; ModelError names a path that cannot be read."""
    if isinstance(model, bytes):
        return model
    try:
        return Path(model).read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read the model {model}", seen=error.strerror or str(error), fix="check the path"
        ) from error


def missing_runtime(name: str, error: Exception) -> MachineError:
    """The error of an engine whose vendor library is not installed."""
    return MachineError(
        f"the runtime {name} is not installed here", seen=str(error), fix=f'pip install "avq[{name}]"'
    )


def unreadable(engine: str, error: Exception) -> ModelError:
    """The error of a model the runtime refuses; its first line is what a person needs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ModelError(
        f"{engine} cannot open the model",
        seen=" ".join(lines)[:400] or type(error).__name__,
        fix="check that the file is a complete ONNX model: avq inspect MODEL.onnx",
    )


def picture_input(inputs: Sequence[TensorView]) -> TensorView | None:
    """The one uint8 (1, C, h, w) input a picture goes to; None when the model takes something else."""
    if len(inputs) != 1:
        return None
    only = inputs[0]
    return only if only.dtype == "uint8" and len(only.shape) == 4 and -1 not in only.shape else None


def no_picture(inputs: Sequence[TensorView]) -> ModelError:
    """The error of ``infer`` on a model that does not take one uint8 picture."""
    seen = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in inputs) or "no inputs"
    return ModelError(
        "the model does not take one uint8 picture of fixed size",
        seen=seen,
        fix="avq build folds the preprocessing into the model; use run() for other inputs",
    )


def check_picture(tensor: U8, expected: TensorView) -> U8:
    """``tensor`` itself when it fits, made contiguous if need be; RequestError when it does not fit."""
    if tensor.shape != expected.shape or tensor.dtype != np.uint8:
        raise RequestError(
            f"the picture does not fit the model's input '{expected.name}'",
            seen=f"{tensor.dtype}{list(tensor.shape)}, wanted uint8{list(expected.shape)}",
            fix="preprocess with the spec the bundle was built with",
        )
    return tensor if tensor.flags.c_contiguous else np.ascontiguousarray(tensor)


def check_feeds(feeds: Mapping[str, Any], inputs: Iterable[TensorView]) -> dict[str, AnyArray]:
    """``feeds`` as contiguous arrays; RequestError when a name is missing, unknown or of the wrong type."""
    wanted = {t.name: t for t in inputs}
    for name in sorted(set(feeds) - set(wanted)):
        raise RequestError(f"the model has no input '{name}'", fix=nearest(name, wanted))
    missing = sorted(set(wanted) - set(feeds))
    if missing:
        raise RequestError("inputs are missing", seen=", ".join(missing), fix="feed every input by name")
    arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
    for name, array in arrays.items():
        _check_feed(array, wanted[name])
    return arrays


def _check_feed(array: AnyArray, wanted: TensorView) -> None:
    dims = wanted.shape
    fits = len(dims) == array.ndim and all(w in (-1, d) for w, d in zip(dims, array.shape, strict=True))
    if not fits or wanted.dtype not in ("", str(array.dtype)):
        raise RequestError(
            f"the array for input '{wanted.name}' does not fit",
            seen=f"{array.dtype}{list(array.shape)}, wanted {wanted.dtype}{list(dims)}",
            fix="-1 stands for any length; dtypes must be equal",
        )


def is_compute(op: str) -> bool:
    """True for convolutions and matrix products, in the spelling of any runtime."""
    low = op.lower()
    return "convert" not in low and any(word in low for word in COMPUTE_OPS)


def precision_name(int8: bool, floats: str) -> str:
    """The name a session reports: "f32", "bf16", "int8+f32" ..."""
    return f"int8+{floats}" if int8 else floats


# Names of GPU architectures.


def spelled(name: str) -> str:
    """ "8.9", "89", "sm_89" and "SM89" are "sm89"; what is no number stays as it is."""
    bare = name.strip().lower().removeprefix("sm").replace(".", "").removeprefix("_")
    return f"sm{bare}" if bare.isdigit() else name.strip().lower()
