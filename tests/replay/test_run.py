"""Replaying drives through the daemon's own loop on a clock of its own."""

from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from avq.errors import DataError, RequestError
from avq.progress import Silent
from avq.recording import RecorderSink
from avq.replay import ReplayRequest, ReplayResult, replay
from avq.replay.command import CompareOptions, compare
from avq.types import Detections, Frame, Published, StageTimes
from tests.replay.replay_kit import null_bundle, null_host

MS = 1_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return null_bundle(tmp_path_factory.mktemp("bundles") / "null.avq")


def flight_record(
    path: Path, bundle_digest: str, *, infer_ms: list[float], period_ms: float = 33.0, image: str = "png"
) -> Path:
    """A record as the daemon writes it, of a camera whose every frame was served at once."""
    sink = RecorderSink(path, labels=("car", "person"), image=image)
    for seq, spent_ms in enumerate(infer_ms):
        pixels = np.full((48, 64, 3), 3 * seq % 256, np.uint8)
        t_ns, spent_ns = round(seq * period_ms * MS) + 5 * MS, round(spent_ms * MS)
        seen = Detections.none("front", seq, t_ns)
        message = Published(seen, 2 * MS + spent_ns, 0, False, "normal", bundle_digest)
        sink.write_timing(message, StageTimes(2 * MS, 0, spent_ns, 0))
        sink.write(message, Frame("front", seq, t_ns, pixels))
    sink.close()
    return path


def test_a_flight_record_comes_back_with_its_own_times(bundle: Path, tmp_path: Path) -> None:
    digest = replay(ReplayRequest("scene://drive?frames=1", bundle), host=null_host()).bundle_digest
    log = flight_record(tmp_path / "drive.mcap", digest, infer_ms=[10.0, 20.0, 12.5])
    result = replay(ReplayRequest(str(log), bundle), host=null_host())
    assert result.timing == "recorded"
    assert [a.key for a in result.answers] == [("front", 0), ("front", 1), ("front", 2)]
    assert [a.virtual.infer_ns for a in result.answers] == [10 * MS, 20 * MS, 12_500_000]
    assert [a.published.age_ns for a in result.answers] == [12 * MS, 22 * MS, 14_500_000]
    assert result.account.balanced and result.account.captured == 3


def test_slower_work_drops_frames_and_is_late_on_the_replay_clock(bundle: Path, tmp_path: Path) -> None:
    digest = replay(ReplayRequest("scene://drive?frames=1", bundle), host=null_host()).bundle_digest
    log = flight_record(tmp_path / "drive.mcap", digest, infer_ms=[150.0] * 12)
    result = replay(ReplayRequest(str(log), bundle), host=null_host())
    assert result.account.dropped == {"superseded": 12 - result.frames} and result.frames < 6
    assert all(a.published.late for a in result.answers) and result.misses == result.frames
    every = replay(ReplayRequest(str(log), bundle, policy="every"), host=null_host())
    assert every.frames == 12 and every.account.dropped == {}


def test_the_same_log_gives_the_same_bits_and_survives_pickling(bundle: Path) -> None:
    request = pickle.loads(pickle.dumps(ReplayRequest("scene://drive?seed=2&frames=8", bundle)))
    one, two = (replay(request, host=null_host()) for _ in range(2))
    assert (one.sha256, one.decisions_sha256) == (two.sha256, two.decisions_sha256)
    again = pickle.loads(pickle.dumps(one))
    assert (again.sha256, again.decisions_sha256) == (one.sha256, one.decisions_sha256)
    other = replay(ReplayRequest("scene://drive?seed=2&frames=7", bundle), host=null_host())
    assert other.sha256 != one.sha256


def test_frames_that_the_road_dropped_are_in_the_books(bundle: Path, tmp_path: Path) -> None:
    log = tmp_path / "gaps.mcap"
    sink = RecorderSink(log, labels=("car",), image="png")
    for seq in (2, 3, 7):
        message = Published(Detections.none("front", seq, seq * 33 * MS), MS, 0, False, "normal", "x")
        sink.write(message, Frame("front", seq, seq * 33 * MS, np.zeros((8, 8, 3), np.uint8)))
    sink.close()
    result = replay(ReplayRequest(str(log), bundle), host=null_host())
    assert [a.published.dropped_since_last for a in result.answers] == [2, 0, 3]
    assert result.account.captured == 8 and result.account.dropped == {"unrecorded": 5}


def test_a_video_is_served_frame_by_frame_and_a_folder_in_its_order(bundle: Path, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 30.0, (64, 48))
    for seq in range(9):
        pixels = np.full((48, 64, 3), seq * 20, np.uint8)
        writer.write(pixels)
        cv2.imwrite(str(tmp_path / f"{seq}.png"), pixels)
    writer.release()
    for source in (tmp_path / "v.mp4", tmp_path):
        result = replay(ReplayRequest(str(source), bundle), host=null_host())
        assert [a.detections.seq for a in result.answers] == list(range(9))
    limited = replay(ReplayRequest(str(tmp_path / "v.mp4"), bundle, frames=4), host=null_host())
    assert limited.frames == 4


def test_what_cannot_be_replayed_says_why(bundle: Path, tmp_path: Path) -> None:
    bare = flight_record(tmp_path / "bare.mcap", "x", infer_ms=[1.0, 1.0], image="none")
    with pytest.raises(DataError, match="holds no images") as told:
        replay(ReplayRequest(str(bare), bundle), host=null_host())
    assert "2 frames" in told.value.seen
    with pytest.raises(RequestError, match="no end"):
        replay(ReplayRequest("scene://drive?seed=1", bundle), host=null_host())
    with pytest.raises(RequestError, match="no stage times"):
        replay(ReplayRequest("scene://drive?frames=2", bundle, timing="recorded"), host=null_host())
    (tmp_path / "noise.mcap").write_bytes(b"\0" * 100)
    with pytest.raises(DataError, match="not an MCAP"):
        replay(ReplayRequest(str(tmp_path / "noise.mcap"), bundle), host=null_host())


def test_a_configured_ladder_is_climbed_on_the_replay_clock(bundle: Path, tmp_path: Path) -> None:
    digest = replay(ReplayRequest("scene://drive?frames=1", bundle), host=null_host()).bundle_digest
    log = flight_record(tmp_path / "drive.mcap", digest, infer_ms=[45.0] * 60)
    config = tmp_path / "run.toml"
    config.write_text(
        f'bundle = "{bundle}"\n[[cameras]]\nid = "front"\nsource = "scene://drive"\n'
        '[budget]\ndeadline_ms = 60\n[[modes]]\nname = "full"\n[[modes]]\nname = "half"\nstride = 2\n'
    )
    runs = [replay(ReplayRequest(str(log), bundle, config), host=null_host()) for _ in range(2)]
    assert runs[0].modes == ("full", "half") and runs[0].account.dropped["stride"] > 5
    assert [event["kind"] for event in runs[0].events] == ["mode_changed"]
    assert runs[0].decisions_sha256 == runs[1].decisions_sha256
    plain = replay(ReplayRequest(str(log), bundle), host=null_host())
    assert plain.config_digest != runs[0].config_digest and "stride" not in plain.account.dropped


def test_a_miss_of_a_camera_with_its_own_deadline_is_counted(bundle: Path, tmp_path: Path) -> None:
    digest = replay(ReplayRequest("scene://drive?frames=1", bundle), host=null_host()).bundle_digest
    log = flight_record(tmp_path / "drive.mcap", digest, infer_ms=[10.0, 25.0, 10.0])

    def replayed(deadline: str) -> ReplayResult:
        config = tmp_path / "run.toml"
        config.write_text(
            f'bundle = "{bundle}"\n[[cameras]]\nid = "front"\nsource = "scene://drive"\n{deadline}'
            "[budget]\ndeadline_ms = 60\n"
        )
        return replay(ReplayRequest(str(log), bundle, config), host=null_host())

    shared, own = replayed(""), replayed("deadline_ms = 20\n")
    assert (shared.misses, own.misses) == (0, 1)
    assert [answer.published.late for answer in own.answers] == [False, True, False]
    assert own.config_digest != shared.config_digest, "references of another deadline do not compare"


def test_another_bundle_takes_the_ratio_of_the_two_builds(bundle: Path, tmp_path: Path) -> None:
    first = replay(ReplayRequest("scene://drive?frames=1", bundle), host=null_host())
    log = flight_record(tmp_path / "drive.mcap", first.bundle_digest, infer_ms=[12.0] * 4)
    slow = null_bundle(tmp_path / "slow.avq", p50_ms=15.0)  # the first one: 5 ms
    request = ReplayRequest(str(log), slow, known=first.benches)
    result = replay(request, host=null_host())
    assert result.timing == "scaled" and [a.virtual.infer_ns for a in result.answers] == [36 * MS] * 4
    own = replay(ReplayRequest("scene://drive?frames=2", slow), host=null_host())
    assert [a.virtual.infer_ns for a in own.answers] == [15 * MS] * 2


def test_a_cut_log_is_replayed_as_far_as_it_goes_and_says_so(bundle: Path, tmp_path: Path) -> None:
    log = flight_record(tmp_path / "drive.mcap", "x", infer_ms=[1.0] * 300)
    whole = log.read_bytes()
    log.write_bytes(whole[: len(whole) // 2])
    result = replay(ReplayRequest(str(log), bundle), host=null_host())
    assert 0 < result.frames < 300 and result.remark


def test_limits_of_stage_times_name_the_slowest_frame(bundle: Path) -> None:
    asked = CompareOptions(limits=(("infer_worst_ms", 1e-6), ("total_mean_ms", 1e6)))
    outcome = compare(ReplayRequest("scene://drive?seed=2&frames=6", bundle), asked, null_host(), Silent())
    (late,) = outcome.differences
    assert late.field == "timing.infer_worst_ms" and late.b > late.a and 0 <= late.frame < 6
    assert not outcome.passed
