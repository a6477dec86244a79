"""The report of a replay: Markdown for a pull request, one HTML page, and an MCAP with both runs for Foxglove."""

from __future__ import annotations

from pathlib import Path

from avq.atomic_file import write_whole
from avq.errors import DataError
from avq.plugins import PluginHost
from avq.replay.log import pictures_of
from avq.replay.open_log import open_log
from avq.replay.outcome import Outcome
from avq.replay.report.foxglove import write_both
from avq.replay.report.markdown import markdown
from avq.replay.report.page import replay_page, shown_pairs

PAGE, COMMENT, BOTH = "report.html", "diff.md", "both.mcap"
#: What people attach to an issue and open on a phone.
LIMIT_BYTES = 3_000_000
_MOST_FRAMES = 10


def write_report(outcome: Outcome, folder: Path, host: PluginHost) -> dict[str, Path]:
    """Write the report into ``folder``; returns what was written, by kind.

    Raises DataError when the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made", seen=str(error), fix="choose another --report") from None
    log = open_log(outcome.result.log, host.sources())
    shown = shown_pairs(outcome, _MOST_FRAMES)
    pictures = pictures_of(log, {pair.key for pair in shown})
    text = replay_page(outcome, shown, pictures)
    while len(text.encode()) > LIMIT_BYTES and shown:
        shown = shown[: len(shown) // 2]
        text = replay_page(outcome, shown, pictures)
    files = {"page": folder / PAGE, "comment": folder / COMMENT}
    write_whole(files["page"], text)
    write_whole(files["comment"], markdown(outcome))
    if outcome.verdict is not None:
        files["both"] = folder / BOTH
        write_both(files["both"], outcome, pictures)
    return files
