"""When the frames of a flight record reached the inbox and the loop: as estimated, and as recorded.

The record has the time at which each published frame was taken and done, not its arrival. An idle loop takes a frame
on arrival; one that waited arrived earlier, at an unknown time, which is estimated. The estimate serves replays of
other bundles, where a frame may wait longer or be replaced by a newer one. A replay of the recorded bundle needs no
arrivals: it takes the frames in the recorded order at the recorded times, unless the estimate gives the same frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from avq.clock import ReplayClock
from avq.daemon.inbox import Arrival, Inbox
from avq.replay.log import FrameKey, Taken
from avq.types import Frame

#: A frame taken within this time after the previous one was already waiting: the loop was not idle.
_HANDOVER_NS = 1_000_000
_NO_PIXELS = np.zeros((1, 1, 3), np.uint8)


def estimated_arrivals(frames: Sequence[Taken]) -> tuple[list[Taken], dict[str, int]]:
    """Return the frames with estimated arrivals, in order of capture, and the typical delay of each camera.

    An idle loop takes a frame on arrival. A frame taken as soon as the previous one was done arrived earlier, at an
    unknown time: the typical delay of the camera's idle frames after their capture is assumed.
    """
    order = sorted(frames, key=lambda frame: frame.t_capture_ns)
    idle: dict[FrameKey, int] = {}
    free_ns = 0
    for frame in order:
        if frame.taken_ns > free_ns + _HANDOVER_NS:
            idle[frame.key] = frame.times.queue_ns
        free_ns = max(free_ns, frame.done_ns)
    typical: dict[str, int] = {}
    for (camera, _), queue_ns in idle.items():
        typical[camera] = min(queue_ns, typical.get(camera, queue_ns))
    arrived = []
    for frame in order:
        delay_ns = idle.get(frame.key, min(frame.times.queue_ns, typical.get(frame.key[0], 0)))
        arrived.append(replace(frame, arrival_ns=frame.t_capture_ns + max(0, delay_ns)))
    return arrived, typical


def as_taken(frames: Iterable[Taken]) -> list[Taken] | None:
    """Return the frames in the order of the recording loop; None when one loop cannot have served them.

    Each is taken when the one before it is done, at the earliest, and frames of one camera in the order of their
    numbers.
    """
    order = sorted(frames, key=lambda frame: (frame.taken_ns, frame.done_ns))
    last: dict[str, int] = {}
    for frame in order:
        camera, seq = frame.key
        if seq <= last.get(camera, -1):
            return None
        last[camera] = seq
    if any(after.taken_ns < before.done_ns for before, after in pairwise(order)):
        return None
    return order


def estimate_holds(order: Sequence[Taken], deadline_ns: Mapping[str, int]) -> bool:
    """Whether the estimated arrivals lead to the recorded order, without a further drop, and to the same late frames.

    Args:
        order: as ``as_taken`` returns it, with estimated arrivals.
        deadline_ns: camera -> deadline.
    """
    arrivals = sorted(order, key=lambda frame: (frame.arrival_ns, *frame.key))
    inbox, clock, waiting = Inbox(), ReplayClock(), deque(arrivals)
    opened: set[str] = set()
    for recorded in order:
        _offer_due(inbox, opened, waiting, clock.now_ns())
        arrival = inbox.take()
        if arrival is None and waiting:
            clock.advance_to(waiting[0].arrival_ns)
            _offer_due(inbox, opened, waiting, clock.now_ns())
            arrival = inbox.take()
        if arrival is None or (arrival.frame.camera, arrival.frame.seq) != recorded.key:
            return False  # another order, or a newer frame replaced this one
        times = recorded.times
        clock.advance_by(times.preprocess_ns + times.infer_ns + times.decode_ns)
        inbox.finished(recorded.key[0])
        limit_ns = deadline_ns[recorded.key[0]]
        if (clock.now_ns() - recorded.t_capture_ns > limit_ns) != (recorded.age_ns > limit_ns):
            return False
    return True


def _offer_due(inbox: Inbox, opened: set[str], waiting: deque[Taken], now_ns: int) -> None:
    while waiting and waiting[0].arrival_ns <= now_ns:
        frame = waiting.popleft()
        camera, seq = frame.key
        if camera not in opened:
            opened.add(camera)
            inbox.open_camera(camera, every=False)
        inbox.offer(Arrival(Frame(camera, seq, frame.t_capture_ns, _NO_PIXELS)), {})
