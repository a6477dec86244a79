"""The one redactor: takes users, passwords, tokens and keys out of URIs and of texts that hold URIs.

Only what is known to be harmless is shown. Everything that may be a part of a secret is replaced by ``***``: a path
that is hidden does less harm than a password that is shown, and an unescaped password leaves no certain parts.
"""

from __future__ import annotations

import re

HIDDEN = "***"
#: Keys of queries and paths whose values are no secrets.
_HARMLESS_KEYS = frozenset(
    (
        "after_s", "before_s", "ca_file", "channel", "client_id", "connect", "format", "fps", "frames", "height",
        "image", "keep_mb", "listen", "log_on", "mode", "password_env", "password_file", "profile", "quality",
        "resolution", "rotate_mb", "rotate_s", "scout", "seed", "size", "spool", "spool_messages", "stream",
        "subtype", "topic", "transport", "unicast", "vehicle", "weather", "width",
    )
)  # fmt: skip
_HARMLESS_VALUE = re.compile(r"[\w./:,+%-]{0,200}")
_HOST = re.compile(r"[\w.-]*(:\d{1,5})?|\[[0-9A-Fa-f:.%\w]*\](:\d{1,5})?")
#: Schemes whose paths are files, topics or names; paths of all others may hold keys.
_LOCAL = frozenset(("file", "folder", "jsonl", "mcap", "mqtt", "mqtts", "scene", "v4l2", "zenoh"))
_KEY_LIKE = re.compile(r"(?=[^/]*\d)(?=[^/]*[A-Za-z])[\w~=+-]{16,}")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_WORDS = (
    r"(?:pass(?:word|wd|phrase)?|pwd|psw|pw|secret|(?:access_?|auth_?|api_?)?token|(?:api_?|access_?|stream_?)key|auth|"
    r"credentials?|signature|sig|user(?:name)?|usr|login)"
)
_PAIR = re.compile(
    rf"(?i)(?:(?<![\w-])|(?<=%[0-9a-f][0-9a-f]))({_WORDS})(=|%3d)(?!\s)(?!\*\*\*)[^\s&,;)\]}}]+"
)
#: A URI begins after a blank, with quotes, brackets or ``key=`` between: "://" within a password begins none.
_STARTS = re.compile(r"(?:^|\s)[\"'`(\[{<,;|]*(?:[\w-]+=)?[\"'`]?([A-Za-z][A-Za-z0-9+.-]*://)")
_BLANK = re.compile(r"\s")
#: A word with a colon inside: ``user:pass``, not ``camera front: text`` or ``tensor@node:0``.
_COLON = re.compile(r"(?<![^\s\"'`(\[{<])[^\s\"'`(\[{<:@]*:(?=[^\s])")
#: Before the last ``@`` of a URI these leave it uncertain whether user and password or a query lie there.
_PAIR_BEFORE = re.compile(r"[?&;/#][^@/=?&]*(=|%3[dD])")
_HOST_AND_QUERY = re.compile(rf"(?:[^@/?#]*@)?(?:{_HOST.pattern})(?:/[^?#]*)?[?#]")
_END = re.compile(r"[\"'`)\]}>,;:.!?]*$")


def redact_uri(uri: str) -> str:
    """Return a URI without user, password, token and key, for messages and pages: ``rtsp://***@host/path``.

    What precedes the last ``@`` goes, so does every query with a key that is not known, ``/user=..&password=..`` in
    paths, and what stands in the place of a port and is none. Where ``@``, ``?`` and ``=`` leave it uncertain what is
    a password, only the scheme stays. Text without ``://`` loses ``user:password@`` only.
    """
    match = _URI.match(uri)
    if match is None:
        return _redacted_words(uri)
    scheme, rest = match.group(1), uri[match.end() :]
    start = match.group()
    before, at, after = rest.rpartition("@")
    if at:
        if _is_harmless_user(before):
            return start + before + at + _location(after, scheme)
        uncertain = _PAIR_BEFORE.search(before) or _HOST_AND_QUERY.match(before)
        return start + (HIDDEN if uncertain else f"{HIDDEN}@{_location(after, scheme)}")
    return start + _location(rest, scheme)


def redact(text: str) -> str:
    """Return a text with all its URIs, ``user:password@`` and ``password=...`` redacted; lines are kept.

    Idempotent. Linear in the length of the text.
    """
    if "@" not in text and "=" not in text and "://" not in text and "%3" not in text:
        return text
    return "".join(_redacted_line(line) for line in text.splitlines(keepends=True))


def _redacted_line(line: str) -> str:
    """Redact URI by URI; each is looked for up to the next one."""
    starts = [match.start(1) for match in _STARTS.finditer(line)]
    if not starts:
        return _redacted_words(line)
    parts = [_redacted_words(line[: starts[0]])]
    for start, end in zip(starts, [*starts[1:], len(line)], strict=True):
        parts.append(_redacted_piece(line[start:end], line[start - 1 : start]))
    return "".join(parts)


def _redacted_piece(piece: str, before: str) -> str:
    """Redact a piece of a line that begins with a URI; what follows the URI is text.

    The URI ends at the quote that it began with, else at a blank; blanks before a later ``@`` are part of a password.
    """
    end = _next_blank(piece, 0)
    if before in ("'", '"', "`") and (quote := piece.rfind(before)) > 0:
        end = quote
    elif (at := piece.rfind("@")) >= end:
        end = _next_blank(piece, at)
    uri, rest = piece[:end], piece[end:]
    closing = _END.search(uri)
    cut = end if closing is None else closing.start()
    return redact_uri(uri[:cut]) + uri[cut:] + _redacted_words(rest)


def _next_blank(text: str, start: int) -> int:
    blank = _BLANK.search(text, start)
    return len(text) if blank is None else blank.start()


def _redacted_words(text: str) -> str:
    """Redact ``user:password@`` and ``password=...`` in a text without URIs."""
    before, at, after = text.rpartition("@")
    if at and (found := _COLON.search(before)):
        text = f"{before[: found.start()]}{HIDDEN}@{after}"
    return _PAIR.sub(rf"\1\2{HIDDEN}", text)


def _is_harmless_user(text: str) -> bool:
    """Whether the part before the last ``@`` is a placeholder of help texts, or redacted already."""
    return text in ("user", HIDDEN)


def _location(text: str, scheme: str) -> str:
    """Redact host, path, query and fragment, without user and password."""
    end = re.search(r"[/?#]", text)
    host, rest = (text, "") if end is None else (text[: end.start()], text[end.start() :])
    if scheme not in _LOCAL or ":" in host:
        host = host if _HOST.fullmatch(host) else HIDDEN
    path, question, query = rest.partition("?")
    path, hash_sign, _ = path.partition("#")
    shown = host + _path(path, scheme)
    if hash_sign:
        return f"{shown}#{HIDDEN}"
    if not question:
        return shown
    return f"{shown}?{query if _is_harmless_query(query) else HIDDEN}"


def _path(text: str, scheme: str) -> str:
    """Redact segments that look like keys, and all from the first ``key=value`` on that is not known."""
    shown: list[str] = []
    for segment in text.split("/"):
        if ("=" in segment or "%3d" in segment.lower()) and not _is_harmless_query(segment):
            return "/".join((*shown, HIDDEN))
        is_key = scheme.lower() not in _LOCAL and _KEY_LIKE.fullmatch(segment)
        shown.append(HIDDEN if is_key else segment)
    return "/".join(shown)


def _is_harmless_query(query: str) -> bool:
    pairs = [pair.partition("=") for pair in re.split(r"[&;]", query) if pair]
    return all(
        key.lower() in _HARMLESS_KEYS
        and _HARMLESS_VALUE.fullmatch(value) is not None
        and _PAIR.search(value) is None
        for key, _, value in pairs
    )
