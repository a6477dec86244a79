"""Read the address of an MQTT broker, with the password that it points to."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from avq.errors import RequestError
from avq.redaction import redact_uri
from avq.uris import parameters, whole

PARAMETERS = ("password_file", "password_env", "ca_file", "client_id", "spool", "spool_messages", "vehicle")
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class MqttTarget:
    """A broker, a topic, and the folder of undelivered messages.

    Attributes:
        client_id: at the broker; "" for one that is made from vehicle and spool.
        vehicle: name of the vehicle, "" where none is configured.
    """

    host: str
    port: int
    topic: str
    tls: bool
    user: str
    password: str
    ca_file: str
    client_id: str
    spool: Path
    spool_messages: int
    vehicle: str

    @property
    def place(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"


def mqtt_target(
    uri: str, environment: Mapping[str, str] = os.environ, *, with_password: bool = True
) -> MqttTarget:
    """Read ``mqtt://user@host:1883/topic`` and the password it points to.

    Raises:
        RequestError: the URI or its password file is not valid.
    """
    parts, port = _split(uri)
    table = parameters(uri, PARAMETERS)
    topic = unquote(parts.path.strip("/"))
    if not parts.hostname or not topic or "#" in uri or any(sign in topic for sign in "+\0"):
        raise RequestError(
            "an MQTT sink needs a host and a topic without wildcards",
            seen=redact_uri(uri),
            fix="mqtt://broker.example:1883/vehicles/17/alerts",
        )
    if parts.password is not None:
        raise RequestError(
            "a password does not belong in a URI: URIs are logged",
            seen=redact_uri(uri),
            fix="password_file = FILE, or password_env = NAME of an environment variable",
        )
    user = unquote(parts.username or "")
    name = f"{parts.hostname}_{port}_{topic}"
    spool = Path(table["spool"]) if "spool" in table else _state_folder(environment) / _file_name(name)
    return MqttTarget(
        host=parts.hostname,
        port=port,
        topic=topic,
        tls=parts.scheme == "mqtts",
        user=user,
        password=_password(table, user, environment) if with_password else "",
        ca_file=table.get("ca_file", ""),
        client_id=table.get("client_id", ""),
        spool=spool,
        spool_messages=whole(table, "spool_messages", 10_000, 2, 1_000_000),
        vehicle=table.get("vehicle", ""),
    )


def _split(uri: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(uri)
        (parts.hostname or "").encode("idna")
        return parts, parts.port or _PORTS[parts.scheme]
    except ValueError:  # its text may hold a part of a password
        raise RequestError(
            "not an MQTT address", seen=redact_uri(uri), fix="mqtt://host:1883/topic"
        ) from None


def _password(table: Mapping[str, str], user: str, environment: Mapping[str, str]) -> str:
    file, variable = table.get("password_file"), table.get("password_env")
    if (file or variable) and not user:
        raise RequestError(
            "a password without a user", seen="no user in the URI", fix="mqtt://user@host/topic"
        )
    if file:
        try:
            return plain_file(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError("the password file cannot be read", seen=str(error), fix="check it") from None
    if variable and variable not in environment:
        raise RequestError(
            f"the environment variable '{variable}' is not set", seen=variable, fix=f"export {variable}=..."
        )
    return environment[variable] if variable else ""


def plain_file(name: str) -> Path:
    """Return the path of a regular file; raise OSError for a FIFO, device or folder, whose reading may block."""
    path = Path(name)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a FIFO, device or folder, not a file", name)
    return path


def _state_folder(environment: Mapping[str, str]) -> Path:
    """systemd's state folder of the service, else the user's."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0]) / "spool"
    home = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(home) / "avq" / "spool"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", name)[:120]
