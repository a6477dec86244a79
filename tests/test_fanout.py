"""One function, three executors, the same answers."""

from __future__ import annotations

import importlib.util
import math
import os
from functools import partial

import pytest

from avq.errors import MachineError, RequestError
from avq.fanout import fan_out

HAVE_RAY = importlib.util.find_spec("ray") is not None


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_results_come_in_the_order_of_the_items(executor):
    assert list(fan_out(partial(pow, 2), range(9), executor=executor, workers=2)) == [2**n for n in range(9)]


def test_processes_are_fresh_and_at_most_as_many_as_asked():
    pids = set(fan_out(_process_id, range(8), executor="processes", workers=2))
    assert os.getpid() not in pids
    assert len(pids) <= 2


def _process_id(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("executor", ["serial", "processes"])
def test_what_a_call_raises_is_raised_here_after_the_results_before_it(executor):
    results = fan_out(math.sqrt, [4.0, 9.0, -1.0, 16.0], executor=executor, workers=1)
    assert [next(results), next(results)] == [2.0, 3.0]
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        next(results)


def test_a_worker_that_dies_is_a_machine_error():
    with pytest.raises(MachineError, match="worker process died"):
        list(fan_out(os._exit, [1], executor="processes"))


def test_items_are_taken_lazily():
    taken = []

    def items():
        for n in range(1000):
            taken.append(n)
            yield n

    assert next(fan_out(str, items())) == "0"
    assert taken == [0]


@pytest.mark.skipif(HAVE_RAY, reason="ray is installed")
def test_without_ray_the_fix_is_named():
    with pytest.raises(MachineError) as caught:
        list(fan_out(str, [1], executor="ray"))
    assert 'pip install "avq[ray]"' in caught.value.fix


@pytest.mark.slow
@pytest.mark.skipif(not HAVE_RAY, reason="ray is not installed")
def test_ray_gives_the_same_answers():
    assert list(fan_out(partial(pow, 2), range(6), executor="ray", workers=2)) == [2**n for n in range(6)]
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(fan_out(math.sqrt, [-1.0], executor="ray"))


def test_unknown_executors_are_refused_with_the_nearest():
    with pytest.raises(RequestError, match="did you mean 'processes'"):
        fan_out(str, [1], executor="process")
    with pytest.raises(RequestError, match="at least one worker"):
        fan_out(str, [1], workers=0)
