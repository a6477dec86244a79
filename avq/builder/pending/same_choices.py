"""Two files of one network compared value by value, as if both had chosen alike.

TopK, ArgMax and NonMaxSuppression choose among values. Where two of these differ by less than a rounding, another
precision takes them in another order, and every row behind them moves although each detection is the same. So the
values that are chosen from are compared as they are, and what follows for the choices of the first file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing

import onnx

from avq.builder.choices import Choice, choices_of, given_name, with_given, with_told
from avq.hookspecs import Session
from avq.measure.fidelity import SqnrMeter
from avq.types import U8, AnyArray


def sqnr_with_same_choices(
    reference: bytes, other: bytes, opened: Callable[[bytes], Session], pictures: Iterable[U8]
) -> dict[str, float]:
    """Graph output, or "input I of NODE" for what is chosen from -> SQNR of ``other`` to ``reference`` in dB.

    Args:
        reference, other: files of one network: same outputs, choosing nodes of the same names.
        opened: opens one of them; its session must ``run`` named inputs.
        pictures: (1, 3, h, w) uint8 each, for the first input.

    Raises:
        DataError: the outputs differ in name or shape, or there is no picture.
        ModelError: one of them gives NaN or Inf.
    """
    first, second = (onnx.load_model_from_string(content) for content in (reference, other))
    picture, outputs = first.graph.input[0].name, [value.name for value in first.graph.output]
    ours, theirs = choices_of(first), choices_of(second)
    meter = SqnrMeter()
    with ExitStack() as open_sessions:
        teller = open_sessions.enter_context(closing(opened(with_told(first, ours).SerializeToString())))
        follower: Session | None = None
        for tensor in pictures:
            told = teller.run({picture: tensor})
            chosen = {given_name(choice.name): told[choice.indices] for choice in ours}
            if follower is None:
                model = with_given(second, theirs, {name: array.ndim for name, array in chosen.items()})
                follower = open_sessions.enter_context(closing(opened(model.SerializeToString())))
            said = follower.run({picture: tensor, **chosen})
            meter.add(_compared(told, outputs, ours), _compared(said, outputs, theirs))
    return meter.result_db()


def _compared(
    answers: Mapping[str, AnyArray], outputs: Sequence[str], choices: Sequence[Choice]
) -> dict[str, AnyArray]:
    """What one file said, under names that the other has too."""
    compared = {name: answers[name] for name in outputs}
    for choice in choices:
        for place, source in enumerate(choice.sources):
            compared[f"input {place} of {choice.name}"] = answers[source]
    return compared
