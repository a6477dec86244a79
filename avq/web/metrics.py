"""Prometheus metrics of a run, collected on request from the counts and histograms of the loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from avq.daemon.inbox import FrameCounts
from avq.daemon.metrics import Histogram, bucket
from avq.daemon.observer import RunView
from avq.web.live_state import CameraState, LiveState, ViewerCounts
from avq.web.status import MachineReader

#: Two bounds per octave from 16 us to 13 s, each the first nanosecond of a log bucket: counts are exact.
EDGES_NS = tuple(edge for power in range(14, 33) for edge in (2**power, 3 * 2 ** (power - 1)))


def cumulative(histogram: Histogram) -> tuple[list[tuple[str, float]], float]:
    """[(le in seconds, frames that took no longer)], and the sum in seconds."""
    counts = sorted(dict(histogram.counts).items())
    rows: list[tuple[str, float]] = []
    seen, position = 0, 0
    for edge_ns in EDGES_NS:
        above = bucket(edge_ns)
        while position < len(counts) and counts[position][0] < above:
            seen += counts[position][1]
            position += 1
        rows.append((repr((edge_ns - 1) / 1e9), seen))
    rows.append(("+Inf", sum(count for _, count in counts)))
    return rows, histogram.sum_ns / 1e9


class RunCollector(Collector):
    """Everything about a run, read at the moment of the scrape."""

    def __init__(self, live_state: LiveState, machine: MachineReader, web: ViewerCounts) -> None:
        self._live_state = live_state
        self._machine = machine
        self._web = web

    def collect(self) -> Iterator[Metric]:
        cameras = dict(self._live_state.cameras)
        if self._live_state.run is not None:
            yield from _frame_counts(self._live_state.run.counts_by_camera())
            yield from _sinks(self._live_state.run)
            yield from _side_tasks(self._live_state.run)
        yield from _times(cameras)
        yield from self._modes()
        yield _counter(
            "avq_events",
            "Events by kind",
            ("kind", "camera"),
            dict(self._live_state.counted_events),
        )
        yield _counter(
            "avq_source_reconnects", "Capture processes started again", ("camera", "cause"),
            dict(self._live_state.reconnects),
        )  # fmt: skip
        yield from self._engine()
        yield from self._readings()

    def _modes(self) -> Iterator[Metric]:
        live_state = self._live_state
        mode = GaugeMetricFamily("avq_mode", "1 for the mode that serves", labels=["mode"])
        for name in dict.fromkeys(
            [*(row["name"] for row in live_state.run_info.get("modes", ())), *dict(live_state.modes)]
        ):
            mode.add_metric([name], float(name == live_state.mode))
        yield mode
        yield GaugeMetricFamily(
            "avq_alert", "1 while too many frames are late", value=float(live_state.alert)
        )
        yield _counter(
            "avq_mode_transitions", "Decisions of the governor", ("from", "to", "reason"),
            dict(live_state.transitions),
        )  # fmt: skip

    def _engine(self) -> Iterator[Metric]:
        bundle = self._live_state.run_info.get("bundle")
        if bundle:
            labels = {
                "engine": bundle["engine"],
                "precision": bundle["precision"],
                "sha256": bundle["digest"],
            }
            yield InfoMetricFamily("avq_engine", "The serving bundle", value=labels)

    def _readings(self) -> Iterator[Metric]:
        now = self._machine.read()
        yield GaugeMetricFamily(
            "avq_process_resident_memory_bytes", "Resident memory", value=float(now.memory_bytes)
        )
        yield _gauge("avq_temperature_celsius", "Thermal zones", "zone", now.temperatures_c)
        clock_hz = {cpu: clock[0] for cpu, clock in now.clocks_hz.items()}
        yield _gauge("avq_cpu_frequency_hertz", "Clocks", "cpu", clock_hz)
        yield GaugeMetricFamily("avq_web_viewers", "Open event streams", value=float(self._web.now))
        yield CounterMetricFamily(
            "avq_web_viewers_dropped", "Viewers that did not keep up", value=self._web.dropped
        )
        yield CounterMetricFamily(
            "avq_web_frames_missed", "Frames that could not be sent to any viewer", value=self._web.missed
        )


def _frame_counts(counts_by_camera: Mapping[str, FrameCounts]) -> Iterator[Metric]:
    captured = {(camera,): counts.captured for camera, counts in counts_by_camera.items()}
    yield _counter("avq_frames_captured", "Frames that came from a camera", ("camera",), captured)
    outcomes = {}
    for camera, counts in counts_by_camera.items():
        outcomes[camera, "published"] = counts.published
        outcomes[camera, "dropped"] = sum(counts.dropped.values())
    yield _counter("avq_frames", "Frames by outcome", ("camera", "outcome"), outcomes)
    causes = {
        (c, cause): count for c, counts in counts_by_camera.items() for cause, count in counts.dropped.items()
    }
    yield _counter("avq_frames_dropped", "Dropped frames by cause", ("camera", "cause"), causes)
    waiting = {camera: counts.in_flight for camera, counts in counts_by_camera.items()}
    yield _gauge("avq_frames_in_flight", "Frames in flight", "camera", waiting)


def _sinks(run: RunView) -> Iterator[Metric]:
    label = ("sink", "number")
    messages: dict[tuple[str, ...], float] = {}
    counts: dict[tuple[str, ...], float] = {}
    gauges: dict[tuple[str, ...], float] = {}
    queued: dict[tuple[str, ...], float] = {}
    working: dict[tuple[str, ...], float] = {}
    for number, sink in enumerate(run.sinks()):
        at = (sink.name, str(number))
        messages |= {(*at, "written"): sink.written, (*at, "missed"): sink.missed}
        queued[at], working[at] = sink.queued, float(not sink.error)
        for name, value in sink.numbers.items():
            own = gauges if name in sink.gauges else counts
            own[sink.name, str(number), name] = value
    yield _counter("avq_sink_messages", "Messages by outcome at a sink", (*label, "outcome"), messages)
    yield _counter("avq_sink_own", "Counters that a sink reports", (*label, "count"), counts)
    yield _gauges("avq_sink_state", "State values that a sink reports", (*label, "state"), gauges)
    yield _gauges("avq_sink_queued_messages", "Messages that wait for a sink", label, queued)
    yield _gauges("avq_sink_working", "0 when a sink has failed", label, working)


#: Metric, key of a camera's row and description of each number of the drift watch.
_DRIFT = (
    ("avq_drift_share_ratio", "share", "Activations outside the calibrated ranges, mean of the window"),
    ("avq_drift_occupancy_ratio", "occupancy", "Activations outside the inner eighth of their ranges"),
    ("avq_drift_unusual_pictures", "unusual_pictures", "Pictures of the window beyond the threshold"),
    ("avq_drift_window_pictures", "pictures", "Pictures in the current window"),
    ("avq_drift_limit_pictures", "limit", "Unusual pictures in a window that are drift"),
)


def _side_tasks(run: RunView) -> Iterator[Metric]:
    """Metrics of drift watch and shadow, where they are configured."""
    cameras = (run.drift() or {}).get("cameras", {})
    for name, key, text in _DRIFT:
        yield _gauge(name, text, "camera", {camera: float(row[key]) for camera, row in cameras.items()})
    drifting = {camera: float(row["drifting"]) for camera, row in cameras.items()}
    yield _gauge("avq_drifting", "1 while pictures differ from the calibration pictures", "camera", drifting)
    agreement = (run.shadow() or {}).get("agreement")
    if agreement is not None:
        yield GaugeMetricFamily("avq_shadow_agreement_ratio", "Share of matched boxes", value=agreement)


def _times(cameras: Mapping[str, CameraState]) -> Iterator[Metric]:
    stages = HistogramMetricFamily(
        "avq_stage_duration_seconds", "Time per stage of a frame", labels=["camera", "stage"]
    )
    ages = HistogramMetricFamily("avq_frame_age_seconds", "Age since capture", labels=["camera", "point"])
    misses = {}
    for name, camera in cameras.items():
        for stage, histogram in dict(camera.stages).items():
            stages.add_metric([name, stage], *cumulative(histogram))
            misses[name, stage] = camera.late[stage]
        ages.add_metric([name, "publish"], *cumulative(camera.age))
    yield stages
    yield ages
    yield _counter(
        "avq_deadline_misses", "Late frames, by the stage that took longest", ("camera", "stage"), misses
    )


def _counter(name: str, text: str, labels: Iterable[str], rows: Mapping[Any, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for values, count in rows.items():
        family.add_metric(list(values), count)
    return family


def _gauge(name: str, text: str, label: str, rows: Mapping[str, float]) -> GaugeMetricFamily:
    return _gauges(name, text, (label,), {(value,): reading for value, reading in rows.items()})


def _gauges(name: str, text: str, labels: Iterable[str], rows: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, reading in rows.items():
        family.add_metric(list(values), reading)
    return family


def exposition(live_state: LiveState, machine: MachineReader, web: ViewerCounts) -> bytes:
    """The text of /metrics."""
    registry = CollectorRegistry()
    registry.register(RunCollector(live_state, machine, web))
    return generate_latest(registry)
