"""How a broken side file is refused: the place, what stands there, what should."""

from __future__ import annotations

from avq.errors import CalibrationError


def broken(where: str, line: int, what: str, seen: str, fix: str) -> CalibrationError:
    """The error for one line of a file; ``seen`` carries file:line."""
    return CalibrationError(what, seen=f"{where}:{line}: {seen}", fix=fix)


def decoded(data: bytes, where: str) -> str:
    """The text of a file; CalibrationError with its line when it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise broken(
            where, line, "the file is not text", f"byte {error.start}", "write it as UTF-8"
        ) from None
