"""One function, three executors, the same answers."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from avq.errors import MachineError, RequestError
from avq.parallel import WorkerPool
from tests.parallel.ray_pool import always_killed, killed_once, ray_processes

HAVE_RAY = importlib.util.find_spec("ray") is not None


def mapped(function: Callable[[Any], Any], items: Iterable[Any], **options: Any) -> Iterator[Any]:
    with WorkerPool(**options) as pool:
        yield from pool.map(function, items)


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_results_come_in_the_order_of_the_items(executor: str) -> None:
    assert list(mapped(partial(pow, 2), range(9), executor=executor, workers=2)) == [2**n for n in range(9)]


def test_processes_are_fresh_and_no_more_than_workers() -> None:
    pids = set(mapped(_process_id, range(8), executor="processes", workers=2))
    assert os.getpid() not in pids
    assert len(pids) <= 2


def _process_id(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_what_a_call_raises_is_raised_here_after_the_results_before_it(executor: str) -> None:
    results = mapped(math.sqrt, [4.0, 9.0, -1.0, 16.0], executor=executor, workers=1)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        next(results)


def test_a_worker_that_always_dies_is_a_machine_error() -> None:
    with pytest.raises(MachineError, match="worker process died"):
        list(mapped(os._exit, [1], executor="processes"))


def test_items_are_taken_lazily() -> None:
    taken = []

    def items() -> Iterator[Any]:
        for n in range(1000):
            taken.append(n)
            yield n

    assert next(mapped(str, items())) == "0"
    assert taken == [0]


@pytest.mark.skipif(HAVE_RAY, reason="ray is installed")
def test_without_ray_the_fix_is_named() -> None:
    with pytest.raises(MachineError) as caught:
        list(mapped(str, [1], executor="ray"))
    assert 'pip install "avq[ray]"' in caught.value.fix


@pytest.mark.slow
def test_ray_gives_the_same_answers(ray_workers: Any) -> None:
    assert list(ray_workers.map(partial(pow, 2), range(6))) == [2**n for n in range(6)]
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(ray_workers.map(math.sqrt, [-1.0]))
    with pytest.raises(RequestError) as caught:
        list(ray_workers.map(refused, [1]))
    assert (caught.value.seen, caught.value.fix) == ("1", "use 2")


def refused(number: int) -> None:
    raise RequestError("refused", seen=str(number), fix="use 2")


def test_ray_listens_on_the_loopback_only(ray_workers: Any) -> None:
    import psutil

    found = []
    for pid in ray_processes():
        with suppress(psutil.Error):  # it has ended meanwhile
            found += psutil.Process(pid).net_connections("inet")
    listening = {c.laddr.ip for c in found if c.status == "LISTEN"}
    assert listening and listening <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert not any(c.laddr.port == 8265 for c in found)


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["processes", "ray"])
def test_work_of_a_killed_worker_is_done_again(
    request: pytest.FixtureRequest, tmp_path: Path, executor: str
) -> None:
    pool = request.getfixturevalue("ray_workers") if executor == "ray" else WorkerPool("processes", 2)
    numbers = list(pool.map(partial(killed_once, tmp_path), range(8)))
    assert numbers == [n * n for n in range(8)] and (tmp_path / "killed").exists()
    if executor == "processes":
        pool.close()


@pytest.mark.slow
def test_an_item_that_kills_every_worker_costs_itself_only() -> None:
    with WorkerPool("processes", 2) as pool:
        numbers = list(pool.map(always_killed, range(6), on_lost=lambda item, error: (item, error.exit_code)))
    assert numbers == [0, 1, 2, (3, 3), 4, 5]


def test_unknown_executors_are_refused_with_the_nearest() -> None:
    with pytest.raises(RequestError, match="did you mean 'processes'"):
        WorkerPool("process")
    with pytest.raises(RequestError, match="at least one worker"):
        WorkerPool(workers=0)
