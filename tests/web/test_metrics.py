"""Histograms as Prometheus reads them are the daemon's own counts, and what runs beside is told."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from avq.daemon.latency import Histogram
from avq.web import Board
from avq.web.machine import MachineReader, clocks, temperatures
from avq.web.metrics import EDGES_NS, cumulative, exposition
from avq.web.viewers import ViewerCounts


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


def samples(board: Board, sys_folder: Path = Path("/nowhere")) -> dict[str, float]:
    text = exposition(board, MachineReader(sys_folder), ViewerCounts()).decode()
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_restarts_of_cameras_are_counted_by_cause() -> None:
    board = Board()
    for cause in ("silent", "died", "silent"):
        board.told({"kind": "camera_restarted", "camera": "front", "cause": cause, "reason": "", "t_ns": 0})
    found = samples(board)
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
    found = samples(Board(), tmp_path)
    assert found["avq_temperature_celsius['cpu-thermal']"] == 54.321
    assert found["avq_cpu_frequency_hertz['cpu0']"] == 1.5e9
