"""Regression cases: a case.toml names a log, a bundle or recipe, a baseline and tolerances.

Bundles of recipes are built once and cached by the digest of their inputs.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, model_validator

from avq import __version__
from avq.bundle import is_bundle
from avq.config import load_document, load_recipe
from avq.config.fields import Count, Document, FilePath, PositiveNumber, Ratio, Switch, Uri
from avq.errors import RequestError
from avq.plugins import PluginHost, option_paths
from avq.progress import Reporter
from avq.replay.command import CompareOptions, accept_reference, compare, with_report
from avq.replay.log import file_digest
from avq.replay.log_sources import open_log
from avq.replay.outcome import Outcome
from avq.replay.run import ReplayRequest
from avq.sources.uri import local_path
from avq.types import Recipe

#: Packages of avq that determine the content of a bundle.
_CODE = ("avq.builder", "avq.toolbox")


def cached_bundle(recipe_path: Path, cache: Path, host: PluginHost, report: Reporter) -> Path:
    """Return the bundle of a recipe, from the cache if its inputs have not changed, else built.

    Processes that need the same bundle wait for the one that builds it.

    Raises:
        RequestError: the recipe's gate refuses the bundle. A build raises further errors.
    """
    from avq.builder import build

    recipe = load_recipe(recipe_path, {"output": Path("-")})
    folder = cache / bundle_name(recipe_path, recipe, host)
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{folder.name}.lock"):
        if not is_bundle(folder):
            build(replace(recipe, output=folder), host, report)
    if not is_bundle(folder):
        raise RequestError(
            f"the gate refused the bundle of the recipe {recipe_path}",
            seen="no bundle was written",
            fix="set gate = false in the recipe to replay the bundle anyway",
        )
    return folder


def bundle_name(recipe_path: Path, recipe: Recipe, host: PluginHost) -> str:
    """Return a folder name with a digest of the recipe, the files it names, the pictures and the builder's code."""
    from avq.builder.request import options_of

    named = (recipe.model, recipe.labels, recipe.calibration, recipe.preprocess, recipe.classes)
    files = [Path(name) for name in named if name is not None]
    files += option_paths(options_of(recipe, host))
    made_from = [
        __version__,
        recipe_path.read_text(),
        _set_digest(recipe.data),
        *(file_digest(path) for path in files if path.is_file()),
        *(_code_digest(package) for package in (*_CODE, *_strategy_package(recipe, host))),
    ]
    return f"{recipe_path.stem}-{hashlib.sha256(msgspec.json.encode(made_from)).hexdigest()[:16]}.avq"


def _set_digest(data: Path | None) -> str:
    """Return the digest of the set's index.csv; of a folder without one, the file names."""
    if data is None:
        return ""
    index = data / "index.csv"
    return file_digest(index) if index.is_file() else ",".join(sorted(entry.name for entry in data.iterdir()))


def _strategy_package(recipe: Recipe, host: PluginHost) -> tuple[str, ...]:
    packages = {
        quantizer.name: type(quantizer).__module__.partition(".")[0] for quantizer in host.quantizers()
    }
    return (packages[recipe.strategy],) if recipe.strategy in packages else ()


def _code_digest(package: str) -> str:
    """Return the digest of a package's Python files, or of a module."""
    module = importlib.util.find_spec(package)
    if module is None or module.origin is None:
        return ""
    files = [Path(module.origin)]
    for folder in module.submodule_search_locations or ():
        files = sorted(Path(folder).rglob("*.py"))
    return hashlib.sha256("\n".join(map(file_digest, files)).encode()).hexdigest()


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


CASE = "case.toml"
REFERENCE = "reference.mcap"
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CaseTolerances(Document):
    """Limits that replace those of the reference."""

    box_px: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        default=None, title="Box", description="largest distance of a corner coordinate, picture pixels"
    )
    score: Ratio | None = Field(default=None, title="Score", description="largest difference of one score")
    max_lost: Ratio | None = Field(
        default=None, title="Lost boxes", description="share of boxes with score >= 0.5, with by_loss"
    )
    max_appeared: Ratio | None = Field(default=None, title="New boxes", description="the same for new boxes")
    max_confidence_shift: Ratio | None = Field(
        default=None, title="Confidence", description="largest mean shift of the score, with by_loss"
    )


class TimingLimits(Document):
    """Limits of stage times on the machine that runs the case."""

    limits_ms: dict[
        Annotated[str, Field(pattern=r"^(preprocess|infer|decode|total)_(mean|p99|worst)_ms$")], Milliseconds
    ] = Field(default_factory=dict, title="Limits", description="such as infer_p99_ms = 12.0")
    max_ratio: PositiveNumber | None = Field(
        default=None, title="Ratio", description="total time / that of the baseline bundle, paired"
    )


class CaseFile(Document):
    """Content of ``case.toml``; relative paths are relative to its folder."""

    log: Uri = Field(title="Log", description="a log, video, folder or scene:// drive")
    bundle: FilePath | None = Field(default=None, title="Bundle", description="the bundle to replay with")
    recipe: FilePath | None = Field(
        default=None, title="Recipe", description="build the bundle from it instead, once"
    )
    baseline: FilePath | None = Field(
        default=None, title="Baseline", description="a reference or a bundle; reference.mcap when not given"
    )
    baseline_recipe: FilePath | None = Field(
        default=None, title="Baseline recipe", description="build the baseline bundle from it instead, once"
    )
    config: FilePath | None = Field(
        default=None, title="Configuration", description="a run configuration: budget and modes"
    )
    stage_times: Literal["recorded", "scaled", "measured"] | None = Field(
        default=None, title="Stage times", description="as --timing"
    )
    policy: Literal["auto", "every", "newest"] = Field(
        default="auto", title="Frame policy", description="auto: newest wins for logs of cameras"
    )
    frames: Count | None = Field(default=None, title="Frame limit", description="of published frames")
    tier: Literal["exact", "toleranced", "metric"] | None = Field(
        default=None, title="Tier", description="how to compare; what the two allow when not given"
    )
    by_loss: Switch = Field(
        default=False, title="By loss", description="another bundle differs only beyond the limits of loss"
    )
    optional: Switch = Field(
        default=False, title="Optional", description="skip the case where the log does not exist"
    )
    tolerances: CaseTolerances = Field(
        default=CaseTolerances(), title="Tolerances", description="in place of the reference's"
    )
    timing: TimingLimits = Field(
        default=TimingLimits(), title="Timing", description="limits of stage times on this machine"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> CaseFile:
        if (self.bundle is None) == (self.recipe is None):
            raise ValueError("name either bundle or recipe")
        if self.baseline is not None and self.baseline_recipe is not None:
            raise ValueError("name either baseline or baseline_recipe")
        if self.timing.max_ratio is not None and self.baseline is None and self.baseline_recipe is None:
            raise ValueError("max_ratio needs a baseline bundle to be paired with")
        return self


@dataclass(frozen=True)
class Case:
    """A case.

    Attributes:
        folder: folder of case.toml; its name is that of the case.
        file: content of case.toml.
    """

    folder: Path
    file: CaseFile

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def missing(self) -> str:
        """Reason why an optional case cannot run on this machine; "" when it can."""
        if not self.file.optional or self.file.log.startswith("scene://"):
            return ""
        path = local_path(self.file.log)
        return "" if path.exists() else f"the log {path} is not on this machine"


def load_case(path: Path) -> Case:
    """Load the case at ``path``, a folder or its case.toml. Raises ConfigError with file:line."""
    file = path / CASE if path.is_dir() else path
    return Case(file.resolve().parent, load_document(file, CaseFile, "case"))


def run_case(
    case: Case,
    *,
    cache: Path,
    report_folder: Path,
    accept: bool = False,
    host: PluginHost | None = None,
    report: Reporter,
) -> Outcome:
    """Build the bundles of recipes, replay and compare; a failure writes a report to ``report_folder``/NAME.

    Args:
        case: of ``load_case``.
        cache: folder of bundles built from recipes.
        report_folder: folder of the reports.
        accept: write the reference of the case instead of failing on differences.
        host: plugins; None loads the installed ones.
        report: progress.

    Raises:
        RequestError: the gate of a recipe refuses. A replay raises further errors.
    """
    plugins, file = host or PluginHost(), case.file
    open_log(file.log, plugins.sources())  # a wrong log fails before minutes of building
    bundle = file.bundle or cached_bundle(_named(file.recipe), cache, plugins, report)
    baseline = file.baseline or case.folder / REFERENCE
    if file.baseline_recipe is not None:
        baseline = cached_bundle(file.baseline_recipe, cache, plugins, report)
    request = ReplayRequest(file.log, bundle, file.config, file.stage_times, file.policy, file.frames)
    options = CompareOptions(
        baseline,
        file.tier,
        _tolerances(file.tolerances),
        tuple(file.timing.limits_ms.items()),
        file.timing.max_ratio,
        file.by_loss,
    )
    if accept and not is_bundle(baseline):
        return accept_reference(request, options, plugins, report)
    outcome = compare(request, options, plugins, report)
    if outcome.passed:
        return outcome
    return with_report(outcome, report_folder / case.name, plugins)


def _named(recipe: Path | None) -> Path:
    if recipe is None:
        raise RequestError("a case needs a bundle or a recipe", fix="add bundle or recipe to case.toml")
    return recipe


def _tolerances(given: CaseTolerances) -> dict[str, Any]:
    return {name: value for name, value in given.model_dump().items() if value is not None}


__all__ = ["CASE", "Case", "CaseFile", "load_case", "run_case"]
