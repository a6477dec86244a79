"""Checks across the tables of a run configuration, from the file alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import parse_qs

from avq.config.errors import Problem
from avq.config.run import Camera, RunConfig
from avq.errors import nearest

#: A deadline above this many frame periods is probably a wrong unit.
_MAX_PERIODS = 10


def run_problems(config: RunConfig) -> list[Problem]:
    """Return every contradiction, in the order of the checks."""
    checks = (_names, _modes, _cameras, _alerts, _sinks, _shadow)
    return [problem for check in checks for problem in check(config)]


def implausible(config: RunConfig) -> list[Problem]:
    """Return valid but implausible values, which ``avq config check`` refuses and ``avq run`` accepts."""
    return list(_budget(config))


def _names(config: RunConfig) -> Iterator[Problem]:
    for table, key, rows in (
        ("cameras", "id", [camera.id for camera in config.cameras]),
        ("modes", "name", [mode.name for mode in config.modes]),
        ("alerts", "name", [alert.name for alert in config.alerts]),
    ):
        for index in _repeated(rows):
            reason = f"two {table} share the {key} {rows[index]}; each {key} must be unique"
            yield Problem((table, index, key), reason, f"choose another {key}")


def _repeated(values: Sequence[object]) -> list[int]:
    """Return the indices of values that occur earlier in the sequence."""
    return [index for index, value in enumerate(values) if value in values[:index]]


def _modes(config: RunConfig) -> Iterator[Problem]:
    fix = "order modes from best to cheapest: each with another bundle, or a larger stride"
    largest: dict[Path, tuple[int, str]] = {}
    for index, mode in enumerate(config.modes):
        bundle = mode.bundle or config.bundle
        stride, name = largest.get(bundle, (0, ""))
        if mode.stride <= stride:
            relation = "the same" if mode.stride == stride else "a smaller"
            reason = (
                f"modes {name} and {mode.name} are the same bundle at {relation} stride; "
                "each mode must be cheaper than the mode before it"
            )
            yield Problem(("modes", index), reason, fix)
        largest[bundle] = (max(stride, mode.stride), mode.name)


def _cameras(config: RunConfig) -> Iterator[Problem]:
    devices = [camera.source if camera.source.startswith("v4l2:") else object() for camera in config.cameras]
    for index in _repeated(devices):
        yield Problem(
            ("cameras", index, "source"),
            f"{devices[index]} is the source of another camera; a device can be opened once",
            "give another device",
        )
    for index, camera in enumerate(config.cameras):
        period_ms = frame_period_ms(camera)
        is_set = "read_timeout_ms" in camera.model_fields_set
        if is_set and period_ms is not None and camera.read_timeout_ms <= period_ms:
            yield Problem(
                ("cameras", index, "read_timeout_ms"),
                f"{camera.read_timeout_ms} ms is shorter than one frame period ({period_ms:.0f} ms), "
                "so every frame would count as a stall",
                "three frame periods or more",
            )


def _budget(config: RunConfig) -> Iterator[Problem]:
    """Check deadlines that the file sets against frame rates that the file sets."""
    if "deadline_ms" in config.budget.model_fields_set:
        periods = [period for camera in config.cameras if (period := frame_period_ms(camera)) is not None]
        yield from _deadline(("budget", "deadline_ms"), config.budget.deadline_ms, max(periods, default=None))
    for index, camera in enumerate(config.cameras):
        if camera.deadline_ms is not None:
            at = ("cameras", index, "deadline_ms")
            yield from _deadline(at, camera.deadline_ms, frame_period_ms(camera))


def _deadline(at: tuple[str | int, ...], deadline_ms: float, period_ms: float | None) -> Iterator[Problem]:
    if deadline_ms < 1:
        yield Problem(
            at,
            f"deadline_ms = {deadline_ms:g} is below 1 ms; did you mean seconds?",
            f"deadline_ms = {deadline_ms * 1000:g}",
        )
    if period_ms is not None and deadline_ms > _MAX_PERIODS * period_ms:
        yield Problem(
            at,
            f"deadline_ms = {deadline_ms:g} is {deadline_ms / period_ms:.0f} frame periods, so no frame would "
            "ever count as late",
            f"at most {_MAX_PERIODS * period_ms:.0f}; with {period_ms:.0f} or less, no frame has to be dropped",
        )


def frame_period_ms(camera: Camera) -> float | None:
    """Return the frame period from ``fps=`` in the source URI; None without it."""
    scheme, _, rest = camera.source.partition("://")
    rates = parse_qs(rest.partition("?")[2]).get("fps", [])
    try:
        return 1000.0 / float(rates[-1]) if scheme in ("scene", "v4l2") and rates else None
    except (ValueError, ZeroDivisionError):
        return None


def _alerts(config: RunConfig) -> Iterator[Problem]:
    ids = [camera.id for camera in config.cameras]
    for index, alert in enumerate(config.alerts):
        for camera in alert.cameras or ():
            if camera not in ids:
                reason = f"no camera '{camera}'"
                yield Problem(("alerts", index, "cameras"), reason, nearest(camera, ids))
        if alert.kind == "drift" and config.drift is None:
            yield Problem(
                ("alerts", index, "kind"),
                'an alert of kind "drift" needs a [drift] table',
                "add a [drift] table, or drop this alert",
            )


def _sinks(config: RunConfig) -> Iterator[Problem]:
    targets = [
        sink.uri.partition("?")[0].removeprefix("mcap:").removeprefix("jsonl:") for sink in config.sinks
    ]
    for index in _repeated(targets):
        yield Problem(("sinks", index, "uri"), f"two sinks write {targets[index]}", "give another file")
    if config.recorder is not None and str(config.recorder.path) in targets:
        yield Problem(("recorder", "path"), "a sink writes the same file", "give another file")


def _shadow(config: RunConfig) -> Iterator[Problem]:
    if config.shadow is not None and config.shadow.bundle == config.bundle:
        yield Problem(
            ("shadow", "bundle"),
            "the shadow bundle is the serving bundle",
            "give the bundle to compare with it",
        )
