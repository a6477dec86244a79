"""Debian's mosquitto, started and stopped by a test, and a listener that keeps what it heard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


class Broker:
    """Listens on loopback only; keeps its sessions on disk, as a broker in service does."""

    def __init__(self, folder: Path, *extra: str) -> None:
        if MOSQUITTO is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        pytest.importorskip("paho.mqtt", reason='paho-mqtt is not installed (pip install "avq[mqtt]")')
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        user = f"user {os.environ.get('USER', 'root')}\n" if os.getuid() == 0 else ""
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\npersistence true\npersistence_location {folder}/\n{user}"
            + "".join(f"{line}\n" for line in (extra or ("allow_anonymous true",)))
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, "mosquitto ended at once"
            time.sleep(0.02)
        raise AssertionError("mosquitto does not listen")

    def freeze(self) -> None:
        """It holds its connections and does nothing any more; SIGKILL still ends it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None


class Listener:
    """Subscribes with a session that outlives its connection; one entry per delivery, in order."""

    def __init__(self, port: int, topic: str) -> None:
        from paho.mqtt import client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        self.heard: list[dict[str, Any]] = []
        self.status: list[bool] = []
        self._subscribed = threading.Event()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="listener", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 2), (f"{topic}/status", 1)])
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._keep
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(60)

    def _keep(self, client: Any, userdata: Any, message: Any) -> None:
        body = json.loads(message.payload)
        if message.topic.endswith("/status"):
            self.status.append(body["online"])
        else:
            self.heard.append(body)

    @property
    def ids(self) -> list[str]:
        return [alert["id"] for alert in self.heard]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def wait_until(condition: Any, timeout_s: float = 90.0) -> bool:
    """Whether it came to be: the limit only ends a test that hangs."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True
