"""A TCP port that nobody has, and that no outgoing connection is given in the meantime."""

from __future__ import annotations

import random
import socket

#: Below the ports that Linux gives to outgoing connections (from 32768), above most of those of services.
_FIRST, _LAST = 20_000, 32_000


def free_port() -> int:
    """Free on loopback now. Drawn: two processes that ask at the same moment get different ones."""
    chance = random.SystemRandom()
    while True:
        port = chance.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # somebody has it
                continue
            return port
