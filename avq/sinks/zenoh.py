"""Published frames over Zenoh, as vision_msgs/Detection2DArray in CDR: what ROS 2 bridges read.

``zenoh://fleet/17?connect=tcp/10.0.0.2:7447`` publishes ``fleet/17/<camera>/detections``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from avq.errors import MachineError, RequestError
from avq.hookspecs import Sink
from avq.types import Frame, Published
from avq.uris import one_of, parameters

PARAMETERS = ("mode", "connect", "listen", "scout")
MODES = ("peer", "client")
#: Closing cuts off what is not out yet, and Zenoh does not say when all of it is.
_LINGER_S = 0.5
_KEY = re.compile(r"[^/*$#?\s]+(/[^/*$#?\s]+)*")


class ZenohSinkType:
    """``zenoh://KEY?mode=peer|client&connect=ENDPOINT,...&listen=ENDPOINT,...&scout=true|false``."""

    schemes = ("zenoh",)

    def open(self, uri: str, *, labels: Sequence[str]) -> Sink:
        """Raises RequestError on a URI that does not fit, MachineError where Zenoh is missing or cannot open."""
        key, settings = zenoh_settings(uri)
        return ZenohSink(key, settings, labels)

    def check(self, uri: str) -> None:
        """Raises RequestError on a URI that does not fit."""
        zenoh_settings(uri)


def zenoh_settings(uri: str) -> tuple[str, dict[str, Any]]:
    """(key prefix, Zenoh configuration by path). Raises RequestError."""
    key = uri.partition("://")[2].partition("?")[0].strip("/")
    if not _KEY.fullmatch(key):
        raise RequestError("a Zenoh sink needs a key without wildcards", seen=uri, fix="zenoh://fleet/17")
    table = parameters(uri, PARAMETERS)
    settings: dict[str, Any] = {"mode": one_of(table, "mode", MODES)}
    for name in ("connect", "listen"):
        if name in table:
            settings[f"{name}/endpoints"] = [_endpoint(text, uri) for text in table[name].split(",")]
    settings["scouting/multicast/enabled"] = one_of(table, "scout", ("true", "false")) == "true"
    return key, settings


def _endpoint(text: str, uri: str) -> str:
    protocol, slash, address = text.partition("/")
    if not (protocol.isalnum() and slash and address):
        raise RequestError(
            f"'{text}' is not a Zenoh endpoint", seen=uri, fix="protocol/address, as in tcp/10.0.0.2:7447"
        )
    return text


class ZenohSink:
    """One publisher per camera, declared with its first message; nobody has to listen.

    A listener that takes too little is waited for, on the sink's thread: what it misses is then counted. (Zenoh alone
    would drop it and not say so.) One that takes nothing for five seconds is given up by Zenoh, until it comes back.

    Args:
        key: prefix of the keys.
        settings: of Zenoh, by path.
        labels: class names by id.
    """

    wants_pixels = False

    def __init__(self, key: str, settings: Mapping[str, Any], labels: Sequence[str]) -> None:
        from avq.sinks.vision_msgs import DetectionArrays

        try:
            import zenoh
        except ImportError:
            raise MachineError(
                "nothing can be published over Zenoh here",
                seen="eclipse-zenoh is missing",
                fix='pip install "avq[zenoh]"',
            ) from None
        self._arrays = DetectionArrays(labels, time.time_ns() - time.monotonic_ns())
        self._key = key
        self._publishers: dict[str, Any] = {}
        config = zenoh.Config()
        try:
            for path, value in settings.items():
                config.insert_json5(path, json.dumps(value))
            self._session: Any = zenoh.open(config)
        except Exception as error:  # zenoh.ZError, and what a later version calls it
            raise MachineError(
                "Zenoh cannot be opened", seen=str(error), fix="check the endpoints of the sink's URI"
            ) from None

    def write(self, message: Published, frame: Frame | None) -> None:
        camera = message.detections.camera
        if camera not in self._publishers:
            self._publishers[camera] = self._declared(camera)
        self._publishers[camera].put(self._arrays.cdr(message))

    def _declared(self, camera: str) -> Any:
        from zenoh import CongestionControl

        return self._session.declare_publisher(
            f"{self._key}/{camera}/detections", congestion_control=CongestionControl.BLOCK
        )

    def close(self) -> None:
        time.sleep(_LINGER_S if self._publishers else 0.0)
        self._session.close()
