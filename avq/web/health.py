"""Is it alive, is it ready, and if not, why: answers a supervisor acts on."""

from __future__ import annotations

from avq.web.board import Board

#: The loop goes round at least every 50 ms without frames; with one it takes as long as the engine does.
STANDS_S = 5.0
#: A run without any published frame for so long (or for three of its usual gaps) is not ready, whatever the cause.
SILENT_S = 5.0


def not_alive(board: Board, now_ns: int) -> str:
    """Why a supervisor should end the process; '' when it should not."""
    if board.run is None or board.over:
        return ""
    stood_s = (now_ns - board.beat_ns) / 1e9
    return f"the loop has stood for {stood_s:.1f} s" if stood_s > STANDS_S else ""


def not_ready(board: Board, now_ns: int) -> str:
    """Why nobody should rely on messages now; '' when they may."""
    if board.over:
        return "the run is over"
    if board.run is None:
        return "the bundle is being opened and warmed"
    cameras = [camera for camera in list(board.cameras.values()) if camera.seen_ns]
    if not cameras:
        return "no frame has been published yet"
    silent_s = (now_ns - max(camera.seen_ns for camera in cameras)) / 1e9
    usual_s = max(camera.gap_ns for camera in cameras) / 1e9
    if silent_s > max(SILENT_S, 3 * usual_s):
        return f"no frame has been published for {silent_s:.1f} s"
    return not_alive(board, now_ns)
