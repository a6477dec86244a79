"""Histograms as Prometheus reads them are the daemon's own counts, and what runs beside is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from avq.daemon.metrics import Histogram
from avq.recording import RecorderSink
from avq.types import Frame, Published
from avq.web import LiveState
from avq.web.live_state import ViewerCounts
from avq.web.metrics import EDGES_NS, cumulative, exposition
from avq.web.status import MachineReader, clocks, temperatures
from tests.conftest import ROOT
from tests.daemon.daemon_kit import LABELS
from tests.web.web_kit import live


@given(st.lists(st.one_of(st.integers(0, 10**11), st.sampled_from(EDGES_NS).map(lambda edge: edge - 1),
                          st.sampled_from(EDGES_NS))))  # fmt: skip
def test_every_bound_counts_exactly_the_values_it_names(values_ns: list[int]) -> None:
    histogram = Histogram()
    for value_ns in values_ns:
        histogram.record(value_ns)
    rows, total_s = cumulative(histogram)
    assert abs(total_s - sum(values_ns) / 1e9) < 1e-6
    for (bound, count), edge_ns in zip(rows[:-1], EDGES_NS, strict=True):
        assert round(float(bound) * 1e9) == edge_ns - 1
        assert count == sum(value_ns <= edge_ns - 1 for value_ns in values_ns)
    assert rows[-1] == ("+Inf", len(values_ns))


def samples(live_state: LiveState, sys_folder: Path = Path("/nowhere")) -> dict[str, float]:
    text = exposition(live_state, MachineReader(sys_folder), ViewerCounts()).decode()
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_restarts_of_cameras_are_counted_by_cause() -> None:
    live_state = LiveState()
    for cause in ("silent", "died", "silent"):
        live_state.on_event(
            {"kind": "camera_restarted", "camera": "front", "cause": cause, "reason": "", "t_ns": 0}
        )
    found = samples(live_state)
    assert found["avq_source_reconnects_total['front', 'silent']"] == 2
    assert found["avq_source_reconnects_total['died', 'front']"] == 1
    assert found["avq_events_total['camera_restarted', 'front']"] == 3


def test_temperatures_and_clocks_are_read_where_the_machine_has_them(tmp_path: Path) -> None:
    for number, (kind, temp) in enumerate(
        (("cpu-thermal", "54321"), ("cpu-thermal", "40000"), ("gpu", "off"))
    ):
        zone = tmp_path / f"class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(f"{kind}\n")
        (zone / "temp").write_text(f"{temp}\n")
    folder = tmp_path / "devices/system/cpu/cpu0/cpufreq"
    folder.mkdir(parents=True)
    (folder / "scaling_cur_freq").write_text("1500000\n")
    (folder / "cpuinfo_max_freq").write_text("3000000\n")
    assert temperatures(tmp_path) == {"cpu-thermal": 54.321, "cpu-thermal 1": 40.0}
    assert clocks(tmp_path) == {"cpu0": (1.5e9, 3e9)}
    found = samples(LiveState(), tmp_path)
    assert found["avq_temperature_celsius['cpu-thermal']"] == 54.321
    assert found["avq_cpu_frequency_hertz['cpu0']"] == 1.5e9


SCENE = "scene://drive?seed=2&fps=30&size=320x192"


class Keeping:
    """A sink that counts for itself, and breaks."""

    wants_pixels = False
    gauges = frozenset({"waiting"})

    def __init__(self, report: Callable[[], dict[str, int]], breaks_at: int = 10**9) -> None:
        self.report = report
        self._left = breaks_at

    def write(self, message: Published, frame: Frame | None) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError("the link is down")

    def close(self) -> None:
        """Nothing to free."""


def cannot_tell() -> dict[str, int]:
    raise ValueError("not now")


def test_what_sinks_count_themselves_is_told_as_counters_and_gauges(tmp_path: Path) -> None:
    own = {"delivered": 7, "dropped": 2, "waiting": 3, "missed": 9}
    sinks = (
        Keeping(lambda: own),
        Keeping(cannot_tell, breaks_at=5),
        RecorderSink(tmp_path / "o.mcap", labels=LABELS),
    )
    with live(SCENE, sinks=sinks) as run:
        run.wait_for(20)
        text = run.get("/metrics").text
        status = run.get("/status").json()["sinks"]
    families = {family.name: family for family in text_string_to_metric_families(text)}
    kinds = {name: families[name].type for name in ("avq_sink_own", "avq_sink_state", "avq_sink_working")}
    assert kinds == {"avq_sink_own": "counter", "avq_sink_state": "gauge", "avq_sink_working": "gauge"}
    found = {
        (
            sample.name,
            sample.labels["number"],
            sample.labels.get("count") or sample.labels.get("state"),
        ): sample.value
        for name in kinds
        for sample in families[name].samples
    }
    counts = {"delivered": 7, "dropped": 2, "missed": 9}
    assert {key: found["avq_sink_own_total", "0", key] for key in counts} == counts
    assert found["avq_sink_state", "0", "waiting"] == 3
    assert [found["avq_sink_working", str(number), None] for number in range(3)] == [1, 0, 1]
    assert found["avq_sink_own_total", "2", "files"] == 1 and found["avq_sink_own_total", "2", "lost"] == 0
    assert all(sample.labels["number"] != "1" for sample in families["avq_sink_own"].samples)
    assert status[0]["delivered"] == 7 and status[0]["own_missed"] == 9 and status[0]["missed"] == 0
    assert status[1]["missed"] > 0 and "the link is down" in status[1]["error"]
    assert (status[2]["name"], status[2]["files"], status[2]["deleted"]) == ("RecorderSink", 1, 0)
    assert {"avq_sink_queued_messages", "avq_sink_messages"} <= set(families)


def test_every_metric_is_on_the_page_of_metrics_and_named_as_prometheus_asks(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "page.md").read_text()
    with live(SCENE, sinks=(Keeping(dict),)) as run:
        run.wait_for(5)
        told = list(text_string_to_metric_families(run.get("/metrics").text))
    for family in told:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page or f"`{name}_info`" in page, name
        assert family.name.startswith("avq_") and family.documentation
