"""What was measured on which machine, with what, on which pictures."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from avq.builder.report.story import Story
from avq.engines.cpu import instruction_set
from avq.render import Html, section, table


def machine(story: Story) -> Html:
    """One table: processor, engines, threads, pictures."""
    recipe, request = story.outcome.recipe, story.request
    judged = len(story.probe_set.items)
    counted = story.outcome.chosen.latency
    rows = [
        {"what": "processor", "value": f"{_processor()}, {os.cpu_count()} cores visible"},
        {"what": "instruction set", "value": instruction_set()},
        {
            "what": "system",
            "value": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        },
        {"what": "engines", "value": ", ".join(_versions(story))},
        {"what": "threads of the engine", "value": str(recipe.threads)},
        {"what": "time", "value": _time(counted is not None)},
        {"what": "judged on", "value": f"{judged} pictures of {recipe.data}"},
        {"what": "meaning", "value": f"unoptimised {request.reference.name} runs define what a plan means"},
    ]
    lead = "Times hold for this machine only; losses hold for these pictures."
    return section("What was measured on which machine", table(rows), lead=lead)


def _versions(story: Story) -> list[str]:
    return [f"{e.name} {e.status().version}" for e in story.request.float_engines.values()]


def _time(measured: bool) -> str:
    if not measured:
        return "not measured: the target cannot run here"
    return "candidates in turns on one picture, paired with the fastest float engine, 95 % intervals"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(named, "") or platform.processor() or platform.machine()
