"""Output of solvers and codecs that bypasses Python is suppressed, and nothing else is."""

from __future__ import annotations

import ctypes

import pytest

from avq.process import STANDARD_ERROR, STANDARD_OUTPUT, suppress_output

C = ctypes.CDLL(None)


def test_what_c_buffers_while_muted_never_comes_out(capfd: pytest.CaptureFixture[str]) -> None:
    C.puts(b"before")
    with suppress_output(STANDARD_OUTPUT):
        C.puts(b"a note to itself")
    C.puts(b"after")
    C.fflush(None)
    assert capfd.readouterr().out == "before\nafter\n"


def test_only_the_named_descriptor_is_muted_and_only_until_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="on the way"), suppress_output(STANDARD_ERROR):  # noqa: PT012
        C.puts(b"an answer")
        raise ValueError("on the way")
    C.perror(b"told")
    C.fflush(None)
    captured = capfd.readouterr()
    assert captured.out == "an answer\n" and captured.err.startswith("told")
