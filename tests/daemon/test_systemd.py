"""The notification protocol on a real socket: what is said, to whom, and what happens when nobody listens."""

from __future__ import annotations

import os
import struct
import threading
import uuid
from pathlib import Path

import pytest

from avq.daemon import systemd as notify
from avq.daemon.capture import _environment
from avq.daemon.systemd import SystemdNotifier
from tests.daemon.manager import Manager


def test_messages_reach_a_path_and_an_abstract_address(tmp_path: Path) -> None:
    for address in (tmp_path / "notify", f"@avq-{uuid.uuid4()}"):
        manager = Manager(address)
        notifier = SystemdNotifier.from_environment(manager.environment(2.0))
        assert notifier.watchdog_s == 2.0
        notifier.extend_timeout("opening b")
        notifier.ready("serving")
        notifier.reloading()
        notifier.ping()
        notifier.stopping()
        assert manager.hear(5, until="STOPPING") == 1
        assert [sorted(message) for message in manager.said] == [
            ["EXTEND_TIMEOUT_USEC", "STATUS"],
            ["READY", "STATUS"],
            ["MONOTONIC_USEC", "RELOADING", "STATUS"],
            ["WATCHDOG"],
            ["STATUS", "STOPPING"],
        ]
        notifier.close()
        manager.close()
        notifier.ping()  # a manager that went away, a socket that was closed: no error


def test_a_full_socket_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        notify, "_SEND_TIMEOUT", struct.pack("ll", 60, 0)
    )  # a second may pass all_sinks_failed where we read
    manager = Manager(tmp_path / "notify")
    notifier = SystemdNotifier.from_environment(manager.environment())
    for _ in range(2000):
        notifier.status("x" * 200)
    told = threading.Thread(target=notifier.stopping)  # told once, so it waits for room
    told.start()
    assert manager.hear(60, until="STOPPING") == 1
    told.join(60)
    assert 1 < len(manager.said) < 2000
    notifier.close()
    manager.close()


def test_without_a_manager_nothing_is_said() -> None:
    for environment in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}):
        notifier = SystemdNotifier.from_environment(environment)
        assert not notifier.enabled and notifier.watchdog_s == 0.0
        notifier.ready("serving")


def test_a_watchdog_for_another_process_is_not_ours(tmp_path: Path) -> None:
    given = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
    assert SystemdNotifier.from_environment(given).watchdog_s == 0.0
    assert SystemdNotifier.from_environment({**given, "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 2.0


def test_capture_processes_do_not_speak_for_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(_environment())
