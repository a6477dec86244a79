"""Components of a run around its frame path: the bundle opener, bundle swaps, shadow and drift watch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from avq.bundle import OpenBundle, Trust, read_trust
from avq.config import RunConfig, Security
from avq.daemon.bundle_swap import BundleSwapper
from avq.daemon.drift import Drift
from avq.daemon.modes import ActiveModes, Opener, mode_sources, require_classes, warm_up
from avq.daemon.shadow import Shadow
from avq.daemon.side_task import SideTaskWorker
from avq.daemon.systemd import SystemdNotifier
from avq.measure.detector import Detector
from avq.measure.golden import require_golden
from avq.plugins import PluginHost

#: Keys that a reload applies; every other key needs a restart.
_RELOADED = {"bundle", "modes"}
_log = logging.getLogger("avq.serve")


def opener_of(config: RunConfig, host: PluginHost, notifier: SystemdNotifier) -> Opener:
    """Create the bundle opener of a run; it extends the start timeout of systemd before each bundle."""
    return Opener(
        host.running_engines(),
        families=host.decoders(),
        trust=_trust(config.security),
        allow_unaccepted=config.allow_unaccepted,
        on_begin=lambda path: notifier.extend_timeout(f"opening {path.name}"),
    )


def _trust(security: Security) -> Trust | None:
    if not security.require_signature:
        return None
    return read_trust(security.trusted_keys, not_before=security.not_before)


def make_bundle_swapper(
    config: RunConfig,
    opener: Opener,
    served: ActiveModes,
    reread: Callable[[], RunConfig] | None,
    notifier: SystemdNotifier,
) -> BundleSwapper:
    """Create the bundle swapper of a run; a new bundle must reproduce its golden outputs.

    Args:
        reread: the configuration as it is now, for SIGHUP; None without a file.
    """

    def golden(bundle: OpenBundle, detector: Detector) -> None:
        require_golden(bundle, detector.session, opener.families)

    strict = replace(opener, on_open=golden, on_begin=lambda path: None)

    def prepare(path: Path | None) -> ActiveModes:
        now = reread() if path is None and reread is not None else config
        if left := _changed(config, now):
            _log.warning("reload applies bundle and modes only; restart to apply: %s", ", ".join(left))
        sources = mode_sources(now.bundle, now.modes)
        if path is not None:
            sources = [replace(s, bundle=path) if s.bundle == config.bundle else s for s in sources]
        return strict.ladder(sources)

    return BundleSwapper(served, prepare, notifier, reloads=reread is not None and not _has_terminal())


def _has_terminal() -> bool:
    """Whether standard input is a terminal: then SIGHUP means that it was closed, not a reload."""
    try:
        return os.isatty(0)
    except OSError:
        return False


def _changed(before: RunConfig, after: RunConfig) -> list[str]:
    keys = sorted(set(RunConfig.model_fields) - _RELOADED)
    return [key for key in keys if getattr(before, key) != getattr(after, key)]


def make_side_tasks(
    config: RunConfig, host: PluginHost, opener: Opener, served: ActiveModes
) -> tuple[SideTaskWorker, ...]:
    """Open the configured shadow and drift watch.

    Raises:
        AvqError: the shadow bundle cannot be opened.
    """
    side_tasks: list[SideTaskWorker] = []
    if config.shadow is not None:
        candidate = opener.open(config.shadow.bundle, "shadow")
        try:
            require_classes(candidate.parts, served.modes[0].parts.labels, "the shadow")
            warm_up(candidate.parts)
        except BaseException:
            candidate.close()
            raise
        shadow = Shadow(candidate.parts, candidate.close)
        side_tasks.append(SideTaskWorker("shadow", config.shadow.every_n, shadow, in_spare_time=True))
    if config.drift is not None and served.bundle is not None:
        drift = Drift(host.running_engines(), served.bundle)
        if drift.unavailable:
            _log.warning("drift: %s", drift.unavailable)
        side_tasks.append(SideTaskWorker("drift", config.drift.every_n, drift))
    return tuple(side_tasks)
