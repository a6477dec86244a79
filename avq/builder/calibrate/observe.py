"""Observe inner tensors of the float model: passes with these as outputs, on one thread or several.

Counts and moments read the values of an `Observer`; a `Worker` counts them on its own thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import onnx
from onnx import helper

from avq.builder.calibrate.histogram import Histogram
from avq.builder.graph.edit import prune
from avq.builder.pictures.dataset import Item, read_picture
from avq.errors import CalibrationError, nearest
from avq.hookspecs import Engine, Session
from avq.preprocess import Preprocessor
from avq.types import AnyArray, PreprocessSpec, SessionOptions

#: A tensor of unknown shape is taken for one part in this many of the memory limit.
_UNKNOWN_SHARE = 16


@dataclass(frozen=True)
class Observation:
    """A model cut into passes, so that the outputs of one pass fit into the memory limit.

    Attributes:
        model: the folded float model.
        passes: names of the output tensors of each pass, run one after the other per picture.
        fed: requested tensors that are the picture itself.
    """

    model: onnx.ModelProto
    passes: tuple[tuple[str, ...], ...]
    fed: tuple[str, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        return (*self.fed, *(name for names in self.passes for name in names))

    def model_of(self, number: int) -> bytes:
        """Serialise the model of one pass: its tensors as outputs, pruned to the nodes they need."""
        return _with_outputs(self.model, self.passes[number])


def observe(model: onnx.ModelProto, tensors: Sequence[str], memory_limit_mb: int) -> Observation:
    """Plan how to fetch ``tensors`` of the folded float ``model``; the model is not changed.

    Raises:
        CalibrationError: a tensor does not exist or is a constant.
    """
    requested = sorted(set(tensors))
    fed = tuple(name for name in requested if name in {i.name for i in model.graph.input})
    computed = [name for name in requested if name not in fed]
    _check_exist(model.graph, computed)
    sizes = _sizes_bytes(model)
    groups = _grouped(computed, sizes, memory_limit_mb * 1_000_000)
    return Observation(model, tuple(tuple(group) for group in groups), fed)


class Observer:
    """Runs an Observation on pictures; one per thread."""

    def __init__(
        self, observation: Observation, engine: Engine, spec: PreprocessSpec, *, optimise: bool
    ) -> None:
        self._observation = observation
        self._engine = engine
        self._options = SessionOptions(threads=1, optimise=optimise)
        self._preprocessor = Preprocessor(spec)
        self._open: tuple[int, Session] | None = None

    def values(self, items: Sequence[Item]) -> Iterator[tuple[Item, str, AnyArray]]:
        """Yield (item, tensor name, values) for every tensor of every item.

        Grouped by pass, then by item: with several passes a session is opened once per call and pass. The array
        is valid until the next iteration.
        """
        for number in range(len(self._observation.passes)):
            session = self._session(number)
            for item in items:
                picture = self._preprocessor.prepare(read_picture(item)).tensor
                for name, value in session.infer(picture).items():
                    yield item, name, value
        for item in items if self._observation.fed else ():
            picture = self._preprocessor.prepare(read_picture(item)).tensor
            for name in self._observation.fed:
                yield item, name, picture

    def close(self) -> None:
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _session(self, number: int) -> Session:
        if self._open is None or self._open[0] != number:
            self.close()
            self._open = (number, self._engine.open(self._observation.model_of(number), self._options))
        return self._open[1]


def _check_exist(graph: onnx.GraphProto, tensors: Sequence[str]) -> None:
    computed = {name for node in graph.node for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    for name in tensors:
        if name in constants:
            raise CalibrationError(
                f"'{name}' is a constant", seen="an initialiser", fix="only activations are calibrated"
            )
        if name not in computed:
            raise CalibrationError(f"the model has no tensor '{name}'", fix=nearest(name, computed))


def _sizes_bytes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the bytes per tensor where the static shape is known."""
    graph = model.graph
    if {o for n in graph.node for o in n.output} - {v.name for v in (*graph.value_info, *graph.output)}:
        graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {}
    for info in (*graph.value_info, *graph.output):
        tensor = info.type.tensor_type
        dims = [dim.dim_value for dim in tensor.shape.dim]
        if tensor.HasField("shape") and all(dim > 0 for dim in dims):
            item = helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
            sizes[info.name] = item * int(np.prod(dims, dtype=np.int64))
    return sizes


def _grouped(tensors: Sequence[str], sizes: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Cut into consecutive groups of at most ``limit`` bytes; a larger tensor is alone."""
    group: list[str] = []
    total = 0
    for name in tensors:
        size = sizes.get(name, limit // _UNKNOWN_SHARE)
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(name)
        total += size
    if group:
        yield group


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    typed = {info.name: info for info in (*model.graph.value_info, *model.graph.output)}
    new = onnx.ModelProto()
    new.CopyFrom(model)
    del new.graph.output[:]
    for name in names:
        info = typed.get(name)
        # Without a type the runtime infers it.
        new.graph.output.append(info if info is not None else onnx.ValueInfoProto(name=name))
    kept = [info for info in new.graph.value_info if info.name not in set(names)]
    del new.graph.value_info[:]
    new.graph.value_info.extend(kept)
    prune(new.graph)
    return bytes(new.SerializeToString())


# Worker threads of the calibration pass.


@contextlib.contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Limit OpenCV to one thread: the workers run in parallel already."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class PictureQueue:
    """Queue of pictures, handed out in small chunks, with the number of finished ones."""

    def __init__(self, items: Sequence[Item], chunk: int) -> None:
        self._chunks = [items[at : at + chunk] for at in range(0, len(items), chunk)][::-1]
        self._changed = threading.Condition()
        self._total = len(items)
        self._stopped = False
        self.done = 0

    def take(self) -> Sequence[Item]:
        with self._changed:
            return self._chunks.pop() if self._chunks and not self._stopped else ()

    def finish(self, chunk: Sequence[Item]) -> None:
        with self._changed:
            self.done += len(chunk)
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out no more chunks: a worker that fails stops the others."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def finished(self) -> bool:
        """Wait for the next finished picture; return whether all are finished."""
        with self._changed:
            before = self.done
            self._changed.wait_for(
                lambda: self._stopped or self.done > before or self.done == self._total, 0.5
            )
            return self._stopped or self.done == self._total


class Worker:
    """Session and counts of one thread."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer
        self._counts: dict[str, Histogram] = {}

    def count(self, queue: PictureQueue) -> None:
        try:
            while chunk := queue.take():
                for _, name, values in self.observer.values(chunk):
                    self._counts.setdefault(name, Histogram()).add(values)
                queue.finish(chunk)
        except BaseException:
            queue.stop()
            raise

    def give(self, totals: Mapping[str, Histogram]) -> None:
        """Move the counts into ``totals``."""
        for name, counted in self._counts.items():
            totals[name].merge(counted)
        self._counts.clear()
