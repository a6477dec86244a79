"""A trained replica as the ONNX file that torch's exporter writes, under random names."""

from __future__ import annotations

import io
import json
import pathlib
import warnings

import onnx
import torch
from onnx import helper

from avq.scenes.labels import CLASS_NAMES
from avq.scenes.train.data import INPUT_HEIGHT_PX, INPUT_WIDTH_PX
from avq.scenes.train.export import PREPROCESS
from tests.replicas.names import randomised
from tests.replicas.replica import Exported, Replica

OPSET = 17


def to_onnx(replica: Replica, seed: int) -> onnx.ModelProto:
    """Evaluation mode, batch norms folded by the exporter, class names and preprocessing in the metadata."""
    file = io.BytesIO()
    images = torch.zeros(1, 3, INPUT_HEIGHT_PX, INPUT_WIDTH_PX)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Exported(replica).eval(),
            (images,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
        )
    model = randomised(onnx.load_from_string(file.getvalue()), seed)
    model.producer_name, model.producer_version = "replica", ""
    metadata = {"names": json.dumps(list(CLASS_NAMES)), "avq.preprocess": json.dumps(PREPROCESS)}
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def write_onnx(replica: Replica, path: pathlib.Path, seed: int) -> None:
    """Write through a temporary name, so a reader never sees half a file."""
    staged = path.with_suffix(".onnx.part")
    staged.write_bytes(to_onnx(replica, seed).SerializeToString())
    staged.replace(path)
