"""Which kind of sink a URI or path asks for: ``-``, ``out.jsonl``, ``jsonl:out``, ``out.mcap?image=png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from avq.errors import RequestError, nearest
from avq.hookspecs import Sink, SinkType


def open_sink(uri: str, types: Sequence[SinkType], *, labels: Sequence[str]) -> Sink:
    """Open ``uri`` with the type that claims its scheme or suffix.

    Raises:
        RequestError: nobody claims it, or its folder does not exist.
        DataError: it cannot be created.
    """
    claims = {scheme: kind for kind in types for scheme in kind.schemes}
    key = sink_key(uri, set(claims))
    if key not in claims:
        raise RequestError(f"no sink writes '{uri}'", seen=key or "no suffix", fix=nearest(key, claims))
    return claims[key].open(uri, labels=labels)


def sink_key(uri: str, known: set[str]) -> str:
    """The scheme or suffix by which a type claims ``uri``."""
    scheme, colon, _ = uri.partition(":")
    if uri in known:
        return uri
    if colon and (scheme in known or "://" in uri):
        return scheme
    return Path(uri.partition("?")[0]).suffix.lower()
