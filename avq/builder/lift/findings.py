"""Pitfalls of quantized files and side files: code, severity, problem, reason and fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from avq.errors import ModelError
from avq.types import Finding


@dataclass(frozen=True, slots=True)
class Pitfall:
    """One row of the table.

    Attributes:
        code: such as "AVQ-Q07".
        severity: "error" prevents the import, "warning" costs speed or accuracy, "info" needs no action.
        what, why, fix: the problem, its effect, and what to do.
    """

    code: str
    severity: str
    what: str
    why: str
    fix: str


_EXPORT = "export the model again with a newer exporter"
_SYMMETRIC = "re-centre the grids with --option resymmetrize=true; its cost is measured"
_DROP = "keep these tensors float with --option drop=true"

_ROWS: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "01",
        "error",
        "the model is not quantized",
        "there is nothing to import",
        "use --strategy static",
    ),
    (
        "02",
        "warning",
        "signed grids with a zero point other than 0",
        "TensorRT supports symmetric grids only",
        _SYMMETRIC,
    ),
    (
        "03",
        "warning",
        "unsigned grids whose zero point is not 128",
        "they are not equal to a signed grid around zero, so TensorRT cannot run them",
        _SYMMETRIC,
    ),
    (
        "04",
        "info",
        "ranges that are larger on one side of zero",
        "a symmetric grid has levels that no value uses",
        _SYMMETRIC,
    ),
    (
        "05",
        "warning",
        "depthwise convolutions with one weight scale for all channels",
        "channels differ in range, and small ones are rounded to zero",
        "quantize these weights per channel, or --option float_depthwise=true",
    ),
    (
        "06",
        "warning",
        "activations with one scale per channel",
        "TensorRT refuses them and CPU kernels fall back to float",
        "merge them with --option per_tensor=true; its cost is measured",
    ),
    (
        "07",
        "error",
        "the channel axis of a scale does not fit its tensor",
        "wrong channels would be scaled",
        f"use axis 0 for Conv, 1 for ConvTranspose, the output axis for Gemm, or {_DROP}",
    ),
    (
        "08",
        "error",
        "QuantizeLinear without DequantizeLinear",
        "integers reach an operator that the import does not support in integers",
        _EXPORT,
    ),
    (
        "09",
        "error",
        "DequantizeLinear without integers",
        "its input is neither a constant nor the output of a QuantizeLinear",
        _EXPORT,
    ),
    (
        "10",
        "info",
        "different quantizers on one tensor",
        "each reader keeps its quantizer, as one point per edge",
        "nothing to do; one quantizer per tensor needs fewer conversions",
    ),
    (
        "11",
        "error",
        "scales that are zero, negative or not finite",
        "values divided by them are not finite",
        f"calibrate that tensor again, or {_DROP}",
    ),
    (
        "12",
        "warning",
        "scales below the smallest normal float32",
        "runtimes that flush them to zero divide by zero",
        "raise them to the smallest normal number with --option raise_scales=true",
    ),
    (
        "13",
        "warning",
        "scales outside of FP16",
        "an engine with FP16 scales reads infinity or zero",
        "keep the float parts in float32, or scale the layer before",
    ),
    (
        "14",
        "info",
        "quantizers without a zero point",
        "ONNX then defines unsigned integers from 0, which does not fit signed values",
        "export an explicit zero point with its type",
    ),
    (
        "15",
        "error",
        "zero points that are no integers, or outside of their grid",
        "the grid does not contain real zero",
        _DROP,
    ),
    (
        "16",
        "info",
        "scales or zero points that are computed in the graph from constants",
        "TensorRT needs constants",
        "nothing to do: they were folded",
    ),
    (
        "17",
        "warning",
        "scales per channel below opset 13",
        "QuantizeLinear has no axis there: runtimes refuse the file",
        "nothing to do: the operator set was raised",
    ),
    (
        "18",
        "warning",
        "FP16 scales below opset 19",
        "runtimes refuse the file",
        "nothing to do: the model was converted to float32",
    ),
    (
        "19",
        "warning",
        "4-bit or 16-bit integers below opset 21",
        "runtimes refuse the file",
        "nothing to do: the operator set is raised where the plan needs it",
    ),
    (
        "20",
        "warning",
        "an operator set newer than quantized CPU kernels",
        "onnxruntime converts to float around every operator",
        "export with opset 17 to 21",
    ),
    (
        "21",
        "warning",
        "batch normalisation after a convolution with quantized weights",
        "it runs as a separate operator, and folding it later changes the ranges",
        "nothing to do: both are kept; fuse them before fine-tuning for a faster engine",
    ),
    (
        "22",
        "warning",
        "biases whose scale is not that of input times weight",
        "integer kernels add the bias in the accumulator's scale and round it again",
        "nothing to do: biases stay float, with the same values",
    ),
    (
        "23",
        "info",
        "weighted operators that are not quantized",
        "a strongly typed engine runs them in float32",
        "quantize the float model with --strategy static",
    ),
    (
        "24",
        "warning",
        "Concat joins tensors of different scales",
        "a separate kernel rescales each input",
        "give inputs and output of a Concat one scale",
    ),
    (
        "25",
        "warning",
        "one scale over tensors of very different ranges",
        "with boxes and scores on one grid, scores have few levels",
        "keep such tensors float with --option float_heads=true",
    ),
    (
        "26",
        "warning",
        "decoding operators are quantized",
        "a lost level before Sigmoid, Softmax or TopK loses boxes",
        "keep such tensors float with --option float_heads=true",
    ),
    (
        "27",
        "warning",
        "weights outside of the grid from -127 to 127",
        "the largest value is clipped, or read as one level less by other runtimes",
        "use scale = amax / 127 and integers from -127",
    ),
    (
        "28",
        "info",
        "weights that use half of their grid or less",
        "7-bit weights prevent overflow on CPUs without VNNI; newer CPUs do not need them",
        "export without the overflow fix where the target has VNNI",
    ),
    (
        "29",
        "error",
        "a number of levels other than 2^bits or 2^bits - 1",
        "it is no integer grid",
        f"use 256 or 255 levels, or {_DROP}",
    ),
    (
        "30",
        "error",
        "a FakeQuantize whose output range is not its input range",
        "it scales in addition to quantizing",
        f"fold the scaling into the next layer, or {_DROP}",
    ),
    (
        "31",
        "error",
        "activations that are not rounded half to even",
        "QuantizeLinear rounds half to even only",
        f"export with rounding_mode ROUND, or {_DROP}",
    ),
    (
        "32",
        "error",
        "activations with a narrow or low-bit grid per channel",
        "no runtime supports them",
        f"train with one scale per tensor, or {_DROP}",
    ),
    (
        "33",
        "error",
        "activations are quantized at run time",
        "their scales are computed for every picture, so the file has no static scales",
        "calibrate them with --data DIR; or --strategy static, which starts from this file's float weights",
    ),
    (
        "34",
        "error",
        "integer operators instead of Q/DQ",
        "these have no float form that avq knows",
        "export in Q/DQ format (onnxruntime: QuantFormat.QDQ), or give the float model",
    ),
    (
        "35",
        "error",
        "floating-point quantization",
        "FP8, FP4 and block floats are no integer grids",
        "export with INT8, or quantize the float model",
    ),
    (
        "36",
        "error",
        "activations of one bit",
        "a grid of -1 and +1 has no zero",
        f"use 2 bits or more for activations, or {_DROP}",
    ),
    (
        "37",
        "error",
        "integers are truncated",
        "Q/DQ cannot express Trunc, which drops low bits",
        "export average pooling in float",
    ),
    (
        "38",
        "error",
        "QuantizeLinear and its DequantizeLinear differ",
        "together they scale in addition to quantizing",
        f"give both the same scale, zero point and axis, or {_DROP}",
    ),
    (
        "39",
        "error",
        "quantizers inside of If, Loop or Scan",
        "a plan has edges of the main graph only",
        "export without control flow",
    ),
    (
        "40",
        "info",
        "a quantizer after another",
        "values are rounded twice",
        "nothing to do: both are kept",
    ),
    (
        "41",
        "error",
        "the imported plan does not compute what the file computes",
        "an import is accepted only when both are equal",
        "report the file, or write it anyway with --no-gate",
    ),
    (
        "42",
        "error",
        "scales depend on the picture",
        "they are no constants even after folding",
        "export with fixed scales, or quantize the float model",
    ),
    (
        "43",
        "warning",
        "weights with one scale per input channel",
        "integer kernels scale sums per output channel and run such layers in float",
        "use axis 0 for Conv, 1 for ConvTranspose, the output axis for Gemm",
    ),
)

#: Pitfalls of side files (calibration caches and AIMET encodings).
SIDE_FILE_PITFALLS = (
    Pitfall(
        "AVQ-Q50",
        "warning",
        "names that the model does not have",
        "their grids have no tensor and are ignored",
        "use the file that was written for this model, or rename its entries",
    ),
    Pitfall(
        "AVQ-Q51",
        "error",
        "scale, offset and range do not agree",
        "min and max describe another grid than scale and offset",
        "correct the entry, or ignore it with --option drop=true",
    ),
    Pitfall(
        "AVQ-Q52",
        "warning",
        "offsets above zero",
        "old files write them one off and with the opposite sign; the offset is computed from min and scale",
        "write the file again with AIMET 1.20 or newer",
    ),
    Pitfall(
        "AVQ-Q53",
        "warning",
        "scales that are zero, negative, denormal or not finite",
        "they are no grid, so the entries are ignored",
        "calibrate these tensors again; a scale of zero usually means a constant tensor",
    ),
    Pitfall(
        "AVQ-Q54",
        "info",
        "tensors in floating point or 32 bits",
        "they get no quantizer; biases in the accumulator's scale are as exact in float",
        "nothing to do",
    ),
    Pitfall(
        "AVQ-Q55",
        "error",
        "grids that a plan cannot express",
        "scales of scales, grids shifted by half a step, one-bit grids, offsets outside of the grid",
        "export plain INT8 encodings, per tensor or per channel, or ignore it with --option drop=true",
    ),
    Pitfall(
        "AVQ-Q56",
        "error",
        "scales that do not fit their tensor",
        "there is not one scale per channel of the axis that the operator quantizes",
        "use the file that was written for this model, or ignore the entry with --option drop=true",
    ),
    Pitfall(
        "AVQ-Q57",
        "info",
        "tensors that no integer operator reads",
        "a calibration cache has every tensor; quantizers are useful only in front of weighted operators",
        "nothing to do",
    ),
    Pitfall(
        "AVQ-Q58",
        "info",
        "weighted operators with missing entries",
        "the file has no grid for some of their inputs, so they stay float",
        "add --data to calibrate the missing ranges, or add entries for their inputs and weights",
    ),
    Pitfall(
        "AVQ-Q59",
        "warning",
        "weights that do not fit their grid",
        "values are more than twice the end of the grid and would be clipped; perhaps a batch normalisation was "
        "folded after the file was written",
        "write the encodings after folding",
    ),
    Pitfall(
        "AVQ-Q60",
        "info",
        "operators of the head",
        "a calibration cache has no placement, so the head stays float, as in other builds",
        "nothing to do",
    ),
)

PITFALLS: dict[str, Pitfall] = {f"AVQ-Q{row[0]}": Pitfall(f"AVQ-Q{row[0]}", *row[1:]) for row in _ROWS}
PITFALLS |= {row.code: row for row in SIDE_FILE_PITFALLS}

#: Places in one finding; further ones are counted.
_SHOWN = 8


def finding(
    code: str, seen: str | Iterable[str] = "", *, severity: str | None = None, fix: str | None = None
) -> Finding:
    """The pitfall ``code`` as a finding; ``seen`` is a text, or the places."""
    row = PITFALLS[code]
    text = seen if isinstance(seen, str) else _listed(list(seen))
    return Finding(severity or row.severity, code, f"{row.what}: {row.why}", text, fix or row.fix)


def refusal(code: str, seen: str | Iterable[str] = "") -> ModelError:
    """The pitfall as an error, for files without a float graph."""
    pitfall = finding(code, seen)
    return ModelError(f"{code}: {pitfall.what}", seen=pitfall.seen, fix=pitfall.fix)


def _listed(places: list[str]) -> str:
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return f"{len(places)}: {', '.join(places[:_SHOWN])}{more}" if places else ""
