"""``avq run``: from flags or a file to the daemon, and back to one summary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from avq.alerts import AlertWatch
from avq.clock import UNIX_CLOCK
from avq.config import Budget, Camera, RunConfig, load_run, recorder_from
from avq.daemon import (
    CameraOptions,
    RestartPolicy,
    RunOptions,
    RunSummary,
    serve_bundle,
    sink_types,
    source_providers,
    source_types,
)
from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.metrics import RunAnswer
from avq.daemon.modes import Mode, mode_sources
from avq.daemon.observer import NullObserver
from avq.daemon.startup import FallbackPolicy, fallbacks, start
from avq.daemon.stop_deadline import StopDeadline
from avq.daemon.systemd import SystemdNotifier
from avq.errors import DataError, PluginError, RequestError, nearest
from avq.hookspecs import Sink, SinkType, SourceType
from avq.plugins import PluginHost
from avq.progress import Reporter
from avq.serve.components import make_bundle_swapper, make_side_tasks, opener_of
from avq.serve.log_records import ReporterHandler, levels_of, log_records, standard_error_handler
from avq.serve.sink_opening import STANDARD_OUTPUT, open_sinks, place_of
from avq.sinks import AlertSink, rule_of
from avq.text import utf8
from avq.web import LiveState, open_page, run_info, web_from_flag

Tables = list[tuple[str, list[Mapping[str, object]]]]


def summary_tables(summary: RunSummary) -> Tables:
    """Tables of a run for people: frame counts, stage times, side tasks and events."""
    answer = summary.as_json()
    dropped = ", ".join(f"{cause} {count}" for cause, count in answer["dropped"].items())
    counts: Mapping[str, object] = {
        "captured": answer["captured"],
        "published": answer["published"],
        "in_flight": answer["in_flight"],
        "misses": answer["misses"],
        "dropped": dropped or "none",
    }
    stages: list[Mapping[str, object]] = [
        {"stage": name, **values} for name, values in answer["stages"].items()
    ]
    tables: Tables = [("Frames", [counts]), ("Milliseconds per stage", stages)]
    tables += _side_task_tables(answer)
    if answer["events"]:
        tables.append(("Events", list(answer["events"])))
    return tables


def _side_task_tables(answer: RunAnswer) -> Tables:
    """Tables of the shadow and the drift watch, where they are configured."""
    tables: Tables = []
    if shadow := answer.get("shadow"):
        row = {**shadow, "candidate": shadow["candidate"][:12], "serving": shadow["serving"][:12]}
        tables.append(("Candidate in the shadow", [row]))
    if drift := answer.get("drift"):
        rows: list[Mapping[str, object]] = [
            {"camera": camera, **row, "unusual": ", ".join(row["unusual"][:2])}
            for camera, row in drift.get("cameras", {}).items()
        ]
        tables.append(("Drift", rows or [{"why": drift.get("why", "no picture was examined")}]))
    return tables


#: Events logged as warnings; all others are logged as JSON at level debug only.
_WARNED = {
    "swap_refused",
    "swap_rolled_back",
    "drift_raised",
    "memory_grows",
    "shadow_failed",
    "clock_stepped",
    "frame_failed",
    "engine_failed",
    "engine_replaced",
    "drift_failed",
}
_CAMERA_WARNED = {
    "camera_stalled",
    "camera_resumed",
    "camera_dead",
    "camera_remark",
    "camera_unsteady",
    "camera_steady",
}
_log = logging.getLogger("avq.serve")
_daemon_log = logging.getLogger("avq.daemon")
_event_log = logging.getLogger("avq.daemon.events")
KindT = TypeVar("KindT", SourceType, SinkType)


def run_config(
    *,
    config: Path | None,
    bundle: Path | None,
    source: str | None,
    frames: int | None,
    deadline_ms: float | None,
    policy: str | None,
    allow_unaccepted: bool,
    web: str | None = None,
    log: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Merge the configuration file with the flags, or build a configuration from flags alone.

    Args:
        log: keys of the table [recorder]; None for a flag that was not given.

    Raises:
        RequestError: bundle or source is missing.
        ConfigError: the file is not valid.
    """
    base = load_run(config) if config is not None else _from_flags(bundle, source)
    changes: dict[str, Any] = {}
    if config is not None and bundle is not None:
        changes["bundle"] = bundle
    if config is not None and source is not None:
        changes["cameras"] = (_one_camera(source),)
    if frames is not None:
        changes["frames"] = frames
    if deadline_ms is not None:
        changes["budget"] = base.budget.model_copy(update={"deadline_ms": deadline_ms})
    if policy is not None:
        cameras = changes.get("cameras", base.cameras)
        changes["cameras"] = tuple(camera.model_copy(update={"policy": policy}) for camera in cameras)
    if allow_unaccepted:
        changes["allow_unaccepted"] = True
    if web is not None:
        changes["web"] = web_from_flag(web, base.web)
    changes["recorder"] = recorder_from(base.recorder, log or {})
    return base.model_copy(update=changes)


def _from_flags(bundle: Path | None, source: str | None) -> RunConfig:
    if bundle is None or not source:
        missing = "--bundle" if bundle is None else "--source"
        raise RequestError(
            "bundle or source is missing",
            seen=f"no configuration file and no {missing}",
            fix="avq run CONFIG.toml, or avq run --bundle B --source scene://drive",
        )
    return RunConfig(bundle=bundle, cameras=(_one_camera(source),), budget=Budget())


def _one_camera(source: str) -> Camera:
    """The camera of ``--source``; a file name may hold bytes that are not UTF-8, which the model does not take."""
    return Camera(id="camera", source=utf8(source)).model_copy(update={"source": source})


def serve(
    config: RunConfig,
    host: PluginHost,
    report: Reporter | None = None,
    *,
    json_lines: bool = False,
    reread: Callable[[], RunConfig] | None = None,
) -> RunSummary:
    """Open the configured bundle, serve until the run ends, and close everything again.

    Args:
        config: of the run.
        host: the plugins.
        report: receives the log records of the run; None for lines on standard error.
        json_lines: one line per published frame on standard output; the default log level is then "warning".
        reread: the configuration as it is now, for SIGHUP.

    Raises:
        AvqError: the bundle, a camera or a sink cannot be opened, or the engine failed on a frame.
    """
    handler = standard_error_handler() if report is None else ReporterHandler(report)
    deadline = StopDeadline()
    with (
        deadline.watch(),
        log_records(handler, levels_of(config, quiet=json_lines)),
        open_page(config.web, "web" in config.model_fields_set) as live_state,
    ):
        return _serve(config, host, live_state, deadline, json_lines=json_lines, reread=reread)


def _serve(
    config: RunConfig,
    host: PluginHost,
    live_state: LiveState | None,
    deadline: StopDeadline,
    *,
    json_lines: bool,
    reread: Callable[[], RunConfig] | None,
) -> RunSummary:
    notifier = SystemdNotifier.from_environment()
    opener = opener_of(config, host, notifier)
    fallback = FallbackPolicy(config.fallback.bundle, config.fallback.onnxruntime)
    sources = mode_sources(config.bundle, config.modes)
    served = start(opener, sources, fallback, _daemon_log.warning)
    swapper = make_bundle_swapper(config, opener, served, reread, notifier)
    try:
        side_tasks = make_side_tasks(config, host, opener, served)
        if live_state is not None:
            live_state.describe(run_info(config, served))
        sinks, addresses = _sinks(config, host, served.modes[0].parts.labels, json_lines=json_lines)
        for mode in served.modes:
            _log.info(_mode_line(mode))
        summary = serve_bundle(
            served.modes,
            sources={camera.id: camera.source for camera in config.cameras},
            sinks=sinks,
            budget=config.budget.latency_budget(),
            options=replace(
                _options(config, host),
                on_event=_event_listener(config, host, live_state, swapper),
                observer=live_state or NullObserver(),
                notifier=notifier,
                deadline=deadline,
                swapper=swapper,
                side_tasks=side_tasks,
                fallbacks=fallbacks(opener, sources, fallback),
                addresses=addresses,
            ),
        )
    finally:
        swapper.close()
        notifier.close()
    if summary.engine_error is not None:
        _daemon_log.error("%s", summary.engine_error)
    for failure in summary.failures:
        _daemon_log.warning("camera %s: %s", failure.camera, failure.error)
    return summary


def _mode_line(mode: Mode) -> str:
    parts = mode.parts
    prefix = "" if parts.mode == "normal" else f"mode {parts.mode}: "
    every = "" if mode.stride == 1 else f", one of {mode.stride} frames"
    engine = f"{parts.session.engine} ({parts.session.precision})"
    return f"{prefix}serving bundle {parts.bundle_digest[:12]} on {engine}{every}"


def _event_listener(
    config: RunConfig, host: PluginHost, live_state: LiveState | None, swapper: BundleSwapper
) -> Callable[[Mapping[str, Any]], None]:
    """Create the function that receives every event on a thread of its own: for the page, the log and the hooks."""

    def on_event(event: Mapping[str, Any]) -> None:
        kind = event.get("kind")
        if live_state is not None:
            if kind in ("bundle_swapped", "swap_rolled_back"):
                live_state.describe(run_info(config, swapper.serving))
            live_state.on_event(event)
        _log_event(event)
        if kind == "alert_raised":
            for failure in host.budget_missed(event):
                _log.warning(failure)

    return on_event


def _log_event(event: Mapping[str, Any]) -> None:
    if _event_log.isEnabledFor(logging.DEBUG):
        _event_log.debug(msgspec.json.encode(event).decode())
    kind, reason = event.get("kind"), event.get("reason")
    if kind == "alert":
        _log.info("alert %s: %s (%s)", event["alert"], reason, event["camera"] or "all cameras")
    if kind in _WARNED:
        _daemon_log.warning(str(reason or kind))
    if kind in _CAMERA_WARNED:
        _daemon_log.warning("camera %s: %s", event["camera"], reason)


def _options(config: RunConfig, host: PluginHost) -> RunOptions:
    return RunOptions(
        frames=config.frames,
        cameras={
            camera.id: CameraOptions(
                camera.policy,
                camera.open_timeout_ms,
                camera.read_timeout_ms,
                RestartPolicy(camera.reconnect, camera.max_restarts, camera.window_s),
                None if camera.deadline_ms is None else round(camera.deadline_ms * 1e6),
            )
            for camera in config.cameras
        },
        providers=source_providers(_distinct("source", source_types(), host.sources())),
    )


def _distinct(kind: str, ours: Sequence[KindT], theirs: Sequence[KindT]) -> Sequence[KindT]:
    """Return ``theirs``; raise PluginError when one of them has a built-in scheme."""
    taken = {scheme for one in ours for scheme in one.schemes}
    for one in theirs:
        for scheme in one.schemes:
            if scheme in taken:
                raise PluginError(
                    f"a plugin registers the built-in {kind} scheme '{scheme}'",
                    seen=f"{type(one).__module__}.{type(one).__qualname__}",
                    fix="uninstall the plugin, or report the scheme to its author",
                )
    return theirs


def _sinks(
    config: RunConfig, host: PluginHost, labels: tuple[str, ...], *, json_lines: bool
) -> tuple[list[Sink], tuple[str, ...]]:
    """Open the sinks; return them and their addresses without credentials."""
    uris = [sink.address(config.vehicle) for sink in config.sinks]
    if json_lines and STANDARD_OUTPUT not in uris:
        uris.append(STANDARD_OUTPUT)
    if config.recorder is not None:
        _require_folder(config.recorder.path)
        uris.append(config.recorder.address())
    types = (*sink_types(), *_distinct("sink", sink_types(), host.sinks()))
    finders: list[Sink] = [AlertSink(_alert_watch(config, labels))] if config.alerts else []
    sinks = [*finders, *open_sinks(uris, types, labels)]
    return sinks, (*[""] * len(finders), *map(place_of, uris))


def _require_folder(log: Path) -> None:
    if not log.parent.is_dir():
        raise DataError(f"the log {log} has no folder", seen=f"no {log.parent}", fix=f"mkdir -p {log.parent}")


def _alert_watch(config: RunConfig, labels: tuple[str, ...]) -> AlertWatch:
    for alert in config.alerts:
        for name in alert.classes or ():
            if name not in labels:
                raise RequestError(
                    f"alert '{alert.name}' names a class that the bundle does not have",
                    seen=name,
                    fix=nearest(name, labels),
                )
    return AlertWatch(
        [rule_of(alert) for alert in config.alerts],
        labels,
        offset_ns=UNIX_CLOCK.offset_ns,
        vehicle=config.vehicle,
    )
