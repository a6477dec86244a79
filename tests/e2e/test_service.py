"""``avq run`` as a service: bundles swapped by SIGHUP, shadow, drift, and notifications to systemd."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from avq.bundle import GOLDEN, MANIFEST, MODEL, Part, open_bundle, render, sealed
from tests.conftest import ROOT
from tests.daemon.daemon_kit import picture_folder
from tests.daemon.manager import Manager

CONFIG = """
bundle = "{bundle}"
[budget]
deadline_ms = 600
[[cameras]]
id = "front"
source = "scene://drive?seed=1&fps=15&size=320x192&weather=night"
policy = "every"
[shadow]
bundle = "shadow.avq"
every_n = 3
[drift]
every_n = 2
"""


def variant(bundle: Path, copy: Path, **changes: object) -> Path:
    """A copy whose manifest says something else, sealed again."""
    shutil.copytree(bundle, copy)
    manifest = msgspec.structs.replace(open_bundle(copy, allow_unaccepted=True).manifest, **changes)
    (copy / MANIFEST).write_bytes(render(sealed(manifest, manifest.parts)))
    return copy


def with_other_answers(bundle: Path, copy: Path) -> Path:
    """A copy whose golden frames were answered by another engine, it seems."""
    variant(bundle, copy)
    manifest = open_bundle(copy, allow_unaccepted=True).manifest
    with np.load(copy / GOLDEN) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
        if name.startswith("output_"):
            arrays[name] = array[..., ::-1].copy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    raw = buffer.getvalue()
    (copy / GOLDEN).write_bytes(raw)
    parts = {**manifest.parts, GOLDEN: Part(hashlib.sha256(raw).hexdigest(), len(raw))}
    (copy / MANIFEST).write_bytes(render(sealed(manifest, parts)))
    return copy


@pytest.fixture
def folder(built: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    bundle = built[0]
    variant(bundle, tmp_path / "first.avq", accepted=True)
    variant(bundle, tmp_path / "candidate.avq", accepted=True, created="2026-01-01T00:00:00Z")
    variant(bundle, tmp_path / "shadow.avq", accepted=True, created="2026-01-02T00:00:00Z")
    variant(bundle, tmp_path / "refused.avq", accepted=False, reasons=("slower",))
    variant(
        bundle,
        tmp_path / "boats.avq",
        accepted=True,
        class_names=tuple(
            f"boat {n}" for n in range(len(open_bundle(bundle, allow_unaccepted=True).manifest.class_names))
        ),
    )
    variant(bundle, tmp_path / "damaged.avq", accepted=True)
    with (tmp_path / "damaged.avq" / MODEL).open("r+b") as file:
        file.seek(1000)
        file.write(b"\0" * 8)
    with_other_answers(tmp_path / "first.avq", tmp_path / "wrong.avq")
    return tmp_path


class Service:
    """The command in a process of its own, and its service manager."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manager = folder, Manager(folder / "notify")
        self.lines = folder / "lines.jsonl"
        self.configure("first.avq")
        with self.lines.open("w") as out, (folder / "errors").open("w") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from avq.cli import main; main()",
                    "run",
                    folder / "run.toml",
                    "--json",
                ],
                stdin=subprocess.DEVNULL,  # on a terminal SIGHUP would mean that it was closed
                stdout=out,
                stderr=errors,
                cwd=ROOT,
                env={**os.environ, **self.manager.environment(2.0)},
            )

    def configure(self, bundle: str) -> None:
        (self.folder / "run.toml").write_text(CONFIG.format(bundle=bundle))

    def hear(self, key: str, times: int = 1) -> None:
        assert self.manager.hear(120, until=key, times=times) == times, (self.folder / "errors").read_text()

    def reload(self) -> None:
        """Ends when the reload has ended."""
        self.process.send_signal(signal.SIGHUP)
        self.hear("RELOADING")
        self.hear("READY")

    def end(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """(messages, summary)."""
        self.process.send_signal(signal.SIGTERM)
        self.hear("STOPPING")
        assert self.process.wait(120) == 0, (self.folder / "errors").read_text()
        *messages, summary = (json.loads(line) for line in self.lines.read_text().splitlines())
        return messages, summary


@pytest.mark.slow
def test_bundles_are_swapped_while_it_serves_and_bad_ones_refused(folder: Path) -> None:
    service = Service(folder)
    try:
        service.hear("READY")
        service.hear("WATCHDOG", 3)
        for name in ("refused.avq", "boats.avq", "damaged.avq", "wrong.avq", "nothing.avq", "candidate.avq"):
            service.configure(name)
            service.reload()
        (folder / "run.toml").write_text('bundle = "first.avq"\ncamera = []\n')
        service.reload()
        service.hear("WATCHDOG", 3)
    finally:
        messages, summary = service.end()
        service.manager.close()
    digests = [open_bundle(folder / name).digest for name in ("first.avq", "candidate.avq")]
    assert [digest for digest, _ in groupby(message["bundle"] for message in messages)] == digests
    assert [message["seq"] for message in messages] == list(range(len(messages)))
    assert summary["captured"] == summary["published"] + summary["dropped"].get("stopped", 0)
    assert [sink["address"] for sink in summary["sinks"]] == ["standard output"]
    events = [event for event in summary["events"] if event["kind"].startswith(("swap", "bundle"))]
    assert [event["kind"] for event in events] == ["swap_refused"] * 5 + ["bundle_swapped", "swap_refused"]
    reasons = " ".join(event["reason"] for event in events)
    for reason in ("not accepted by its gate", "has other classes", "damaged or was replaced",
                   "does not reproduce the golden outputs", "there is no bundle at", "run.toml:2"):  # fmt: skip
        assert reason in reasons, reasons
    shadow, drift = summary["shadow"], summary["drift"]
    assert shadow["frames"] > 0 and shadow["agreement"] == 1.0 and shadow["boxes"] > 0
    assert drift["available"] and 0 <= drift["share"] <= 1 and drift["cameras"]["front"]["pictures"] > 0


def bytes_in(pipe: int) -> int:
    answer = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, answer)
    return int.from_bytes(answer, sys.byteorder)


@pytest.mark.slow
def test_a_reader_that_hangs_does_not_keep_a_run_from_ending(folder: Path) -> None:
    """A run of files waits for the reader of standard output, until a signal ends it."""
    pictures = picture_folder(folder / "pictures", 300)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    manager = Manager(folder / "notify")
    command = ["run", "--bundle", folder / "first.avq", "--source", pictures, "--no-web", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from avq.cli import main; main()", *map(str, command)],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **manager.environment(0.4)},
    )
    os.close(writer)
    try:
        assert manager.hear(120, until="READY") == 1
        while manager.hear(1.0, until="WATCHDOG") or bytes_in(reader) < 2048:
            pass  # until the pipe is full, so that nothing goes on
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=120)[1]
    finally:
        process.kill()
        manager.close()
        os.close(reader)
    assert process.returncode == 0 and "standard output is blocked" in errors, errors
