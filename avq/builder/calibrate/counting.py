"""Worker threads of the calibration pass: pictures handed out in chunks, each thread with counts of its own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence

import cv2

from avq.builder.calibrate.histogram import Histogram
from avq.builder.calibrate.observe import Observer
from avq.builder.pictures.dataset import Item


@contextlib.contextmanager
def opencv_on_one_thread() -> Iterator[None]:
    """Workers are the parallelism; OpenCV's own threads would only get in their way."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class PictureQueue:
    """Pictures waiting, handed out in small chunks; knows when all workers have ended."""

    def __init__(self, items: Sequence[Item], chunk: int) -> None:
        self._chunks = [items[at : at + chunk] for at in range(0, len(items), chunk)][::-1]
        self._changed = threading.Condition()
        self._wanted = len(items)
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
        """Hand out no more; a worker that fails stops the others."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def finished(self) -> bool:
        """Wait for the next picture, then say whether that was all."""
        with self._changed:
            seen = self.done
            self._changed.wait_for(
                lambda: self._stopped or self.done > seen or self.done == self._wanted, 0.5
            )
            return self._stopped or self.done == self._wanted


class Worker:
    """One thread's session and its own counts."""

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
