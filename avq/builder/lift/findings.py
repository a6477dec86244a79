"""Pitfalls of quantized files, by number: how grave, what it is, why it matters, and the way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from avq.errors import ModelError
from avq.types import Finding


@dataclass(frozen=True, slots=True)
class Pitfall:
    """One row: "error" cannot be taken over as it is, "warning" costs something, "info" is good to know."""

    code: str
    severity: str
    what: str
    why: str
    fix: str


_EXPORT = "export the model again with a newer exporter"
_SYMMETRIC = "--option resymmetrize=true re-centres the grids; its cost is measured"
_DROP = "--option drop=true leaves these tensors float"

_ROWS: tuple[tuple[str, str, str, str, str], ...] = (
    (
        "01",
        "error",
        "the model carries no quantization",
        "there is nothing to take over",
        "--strategy static",
    ),
    (
        "02",
        "warning",
        "signed grids with a zero point other than 0",
        "TensorRT takes symmetric grids only",
        _SYMMETRIC,
    ),
    (
        "03",
        "warning",
        "unsigned grids whose zero point is not 128",
        "they are not a signed grid around zero in disguise, so TensorRT cannot have them",
        _SYMMETRIC,
    ),
    (
        "04",
        "info",
        "ranges that reach farther on one side of zero",
        "a symmetric grid spends levels on values that never come",
        _SYMMETRIC,
    ),
    (
        "05",
        "warning",
        "depthwise convolutions with one weight scale for all channels",
        "their channels differ most, and the small ones are rounded away",
        "quantize these weights per channel, or --option float_depthwise=true",
    ),
    (
        "06",
        "warning",
        "activations with one scale per channel",
        "TensorRT refuses them and CPU kernels fall back to float",
        "--option per_tensor=true merges them; its cost is measured",
    ),
    (
        "07",
        "error",
        "the channel axis of a scale does not fit its tensor",
        "the wrong channels would be scaled",
        f"axis is 0 for Conv, 1 for ConvTranspose, the output side for Gemm; {_DROP}",
    ),
    (
        "08",
        "error",
        "QuantizeLinear without DequantizeLinear",
        "integers would reach an operator that this import does not know in integers",
        _EXPORT,
    ),
    (
        "09",
        "error",
        "DequantizeLinear is fed by no integers",
        "its input is neither a constant nor what a QuantizeLinear wrote",
        _EXPORT,
    ),
    (
        "10",
        "info",
        "different quantizers on one tensor",
        "each reader keeps its own, as one point per edge",
        "nothing to do; fewer conversions with one quantizer per tensor",
    ),
    (
        "11",
        "error",
        "scales that are zero, negative or not finite",
        "dividing by them gives no number",
        f"calibrate that tensor again; {_DROP}",
    ),
    (
        "12",
        "warning",
        "scales below the smallest normal float32",
        "runtimes that flush them to zero divide by zero",
        "--option raise_scales=true raises them to the smallest normal number",
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
        "ONNX then means unsigned bytes from 0, which is rarely what was meant for signed values",
        "write the zero point with its type",
    ),
    (
        "15",
        "error",
        "zero points that are no integers, or lie outside of their grid",
        "real zero would not be represented",
        _DROP,
    ),
    (
        "16",
        "info",
        "scales or zero points that are computed in the graph from constants",
        "TensorRT wants them as constants",
        "nothing to do: they were folded",
    ),
    (
        "17",
        "warning",
        "scales per channel below opset 13",
        "QuantizeLinear had no axis then: runtimes refuse the file",
        "nothing to do: the operator set was raised",
    ),
    (
        "18",
        "warning",
        "FP16 scales below opset 19",
        "runtimes refuse the file",
        "nothing to do: the model was turned into float32",
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
        "onnxruntime then converts to float around every operator",
        "export with opset 17 to 21",
    ),
    (
        "21",
        "warning",
        "batch normalisation behind a convolution with quantized weights",
        "it runs as an operator of its own, and folding it later moves the ranges",
        "nothing to do: both are kept as they are; fuse before fine-tuning for a faster engine",
    ),
    (
        "22",
        "warning",
        "biases whose scale is not that of input times weight",
        "integer kernels add the bias in the accumulator's scale and would round it again",
        "nothing to do: they stay float, with the same values",
    ),
    (
        "23",
        "info",
        "weighted operators that are not quantized",
        "a strongly typed engine runs them in float32",
        "--strategy static quantizes from the float model",
    ),
    (
        "24",
        "warning",
        "Concat joins tensors of different scales",
        "each input is rescaled by a kernel of its own",
        "quantize inputs and output of a Concat alike",
    ),
    (
        "25",
        "warning",
        "one scale over tensors of very different ranges",
        "boxes and scores on one grid leave the scores a handful of levels",
        "--option float_heads=true leaves such tensors float",
    ),
    (
        "26",
        "warning",
        "operators that decode are quantized",
        "Sigmoid, Softmax, TopK and the like turn one lost level into lost boxes",
        "--option float_heads=true leaves such tensors float",
    ),
    (
        "27",
        "warning",
        "symmetric grids that do not agree on 127 or 128 levels",
        "the outermost value is clipped, or read as one level less elsewhere",
        "use scale = amax / 127 and integers from -127",
    ),
    (
        "28",
        "info",
        "weights that use half of their grid or less",
        "7-bit weights, against overflow on CPUs without VNNI: needless on newer ones",
        "export without the overflow fix where the target has VNNI",
    ),
    (
        "29",
        "error",
        "a number of levels that is no integer grid",
        "only 2^bits and 2^bits - 1 are",
        f"use 256 or 255 levels; {_DROP}",
    ),
    (
        "30",
        "error",
        "a FakeQuantize whose output range is not its input range",
        "it scales as well as it quantizes",
        f"fold the scaling into the next layer; {_DROP}",
    ),
    (
        "31",
        "error",
        "activations rounded otherwise than half to even",
        "QuantizeLinear rounds half to even and nothing else",
        f"export with rounding_mode ROUND; {_DROP}",
    ),
    (
        "32",
        "error",
        "activations with a narrow or low-bit grid per channel",
        "no runtime has them",
        f"train with one scale per tensor; {_DROP}",
    ),
    (
        "33",
        "error",
        "activations are quantized at run time",
        "their scales are found anew in every picture, so the file holds no plan",
        "quantize the float model: avq build FLOAT.onnx --strategy static",
    ),
    (
        "34",
        "error",
        "integer operators hold the quantization",
        "the float operators behind it are gone, and their rounding is their own",
        "export in Q/DQ format (onnxruntime: QuantFormat.QDQ), or quantize the float model",
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
        f"use 2 bits or more for activations; {_DROP}",
    ),
    (
        "37",
        "error",
        "integers are truncated on the way",
        "Trunc drops low bits by a rule that Q/DQ does not have",
        "export average pooling in float",
    ),
    (
        "38",
        "error",
        "QuantizeLinear and its DequantizeLinear do not agree",
        "together they scale as well as they quantize",
        f"give both the same scale, zero point and axis; {_DROP}",
    ),
    (
        "39",
        "error",
        "quantizers inside of If, Loop or Scan",
        "a plan names edges of the main graph",
        "export without control flow",
    ),
    (
        "40",
        "info",
        "a quantizer behind another",
        "values are rounded twice",
        "nothing to do: both are kept",
    ),
    (
        "41",
        "error",
        "the imported plan does not compute what the file computes",
        "an import is only accepted when both agree",
        "report the file; --no-gate writes it anyway",
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
        "integer kernels scale their sums per output channel and run such layers in float",
        "axis is 0 for Conv, 1 for ConvTranspose, the output side for Gemm",
    ),
)

#: Pitfalls of side files: calibration caches and AIMET encodings.
SIDE_FILE_PITFALLS = (
    Pitfall(
        "AVQ-Q50",
        "warning",
        "names that the model does not have",
        "their grids belong to no tensor and are left out",
        "take the file that was written beside this very model, or rename the entries",
    ),
    Pitfall(
        "AVQ-Q51",
        "error",
        "scale, offset and range do not agree",
        "min and max tell another grid than scale and offset, and nothing says which one is meant",
        "correct the entry, or --option drop=true takes it as not written",
    ),
    Pitfall(
        "AVQ-Q52",
        "warning",
        "offsets above zero",
        "old files print them one off and with the other sign; min and scale tell the true one, which is used",
        "write the file again with AIMET 1.20 or newer",
    ),
    Pitfall(
        "AVQ-Q53",
        "warning",
        "scales that are zero, negative, denormal or not finite",
        "no grid has them; the tensors are treated as if the file did not name them",
        "calibrate these tensors again; a scale of zero usually means that a tensor never moved",
    ),
    Pitfall(
        "AVQ-Q54",
        "info",
        "tensors that the file keeps in floating point or in 32 bits",
        "they get no quantizer; biases in the accumulator's scale stay as exact in float",
        "nothing to do",
    ),
    Pitfall(
        "AVQ-Q55",
        "error",
        "grids that no plan can say",
        "scales of scales, grids shifted by half a step, one-bit grids, offsets outside of the grid",
        "export plain INT8 encodings, per tensor or per channel, or --option drop=true takes it as not written",
    ),
    Pitfall(
        "AVQ-Q56",
        "error",
        "scales that do not fit their tensor",
        "their number is not that of the channels along the axis that the operator quantizes",
        "take the file that was written beside this very model, or --option drop=true",
    ),
    Pitfall(
        "AVQ-Q57",
        "info",
        "tensors that no integer operator reads",
        "a calibration cache names every tensor; a quantizer helps only in front of weighted operators",
        "nothing to do",
    ),
    Pitfall(
        "AVQ-Q58",
        "info",
        "weighted operators that the file leaves open",
        "it does not name everything they read",
        "they stay float: add --data to calibrate what is missing, or name their inputs and weights",
    ),
    Pitfall(
        "AVQ-Q59",
        "warning",
        "weights that do not fit their grid",
        "values reach more than twice as far as the grid, so they would be clipped: was a batch normalisation "
        "folded after the file was written?",
        "write the encodings after folding",
    ),
    Pitfall(
        "AVQ-Q60",
        "info",
        "operators of the head",
        "a calibration cache says how to quantize, not where, so avq's own rule holds: they stay float",
        "nothing to do",
    ),
)

PITFALLS: dict[str, Pitfall] = {f"AVQ-Q{row[0]}": Pitfall(f"AVQ-Q{row[0]}", *row[1:]) for row in _ROWS}
PITFALLS |= {row.code: row for row in SIDE_FILE_PITFALLS}

#: Places named in one finding; the rest is counted.
_SHOWN = 8


def finding(
    code: str, seen: str | Iterable[str] = "", *, severity: str | None = None, fix: str | None = None
) -> Finding:
    """The pitfall ``code`` as a finding: ``seen`` is a text, or the places where it was met."""
    row = PITFALLS[code]
    text = seen if isinstance(seen, str) else _listed(list(seen))
    return Finding(severity or row.severity, code, f"{row.what}: {row.why}", text, fix or row.fix)


def refusal(code: str, seen: str | Iterable[str] = "") -> ModelError:
    """The pitfall as an error, for files of which no float graph can be made."""
    said = finding(code, seen)
    return ModelError(f"{code}: {said.what}", seen=said.seen, fix=said.fix)


def _listed(places: list[str]) -> str:
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return f"{len(places)}: {', '.join(places[:_SHOWN])}{more}" if places else ""
