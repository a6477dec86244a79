"""The plugin contract is explicit: features of plugin objects are protocols, never names looked up by hand."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from avq import hookspecs
from tests.architecture.test_structure import ROOT, sources

#: (file, literal name) -> why the lookup is no lookup on a plugin's object.
ALLOWED = {
    ("avq/builder/frontend/preprocess_search.py", "run"): "a field of threading.local",
    ("avq/cli/app.py", "item"): "a number of numpy, which is imported late",
    ("avq/cli/app.py", "ndim"): "a number of numpy, which is imported late",
    ("avq/config/errors.py", "__origin__"): "a type annotation",
    ("avq/parallel/executors.py", "on_stderr"): "a mark on a function of Ray",
    ("avq/parallel/executors.py", "print_to_stdstream"): "a private function of Ray, absent in some releases",
    ("avq/plugins/host.py", "__name__"): "a module has it, another object may not",
    ("avq/plugins/options.py", "__name__"): "a type annotation",
    ("avq/replay/pytest_plugin.py", "cache"): "pytest's own configuration",
    ("avq/replay/timing.py", "preprocessor"): "a field of threading.local",
}
#: Vendors' libraries are probed for what a release has; that is what engines are for.
PROBES_VENDORS = "avq/engines/"


def literal_lookups(path: Path) -> list[tuple[int, str]]:
    """(line, name) of each getattr, hasattr or attrgetter with a literal name."""
    lookups = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        position = {"getattr": 1, "hasattr": 1, "getattr_static": 1, "attrgetter": 0}.get(function)
        if position is None or len(node.args) <= position:
            continue
        name = node.args[position]
        if isinstance(name, ast.Constant):
            lookups.append((node.lineno, str(name.value)))
    return lookups


@pytest.mark.slow
def test_features_are_found_by_protocol() -> None:
    names = {(str(path.relative_to(ROOT)), name, line) for path in sources("avq", "plugins")
             for line, name in literal_lookups(path)}  # fmt: skip
    names = {entry for entry in names if not entry[0].startswith(PROBES_VENDORS)}
    wrong = sorted(f"{file}:{line} {name}" for file, name, line in names if (file, name) not in ALLOWED)
    assert not wrong, f"declare a protocol in avq.hookspecs and use isinstance: {wrong}"
    unused = set(ALLOWED) - {(file, name) for file, name, _ in names}
    assert not unused, f"no such lookup any more: {sorted(unused)}"


@pytest.mark.parametrize(
    "code",
    [
        'getattr(engine, "layer_times", None)',
        'hasattr(sink, "write_event")',
        'builtins.getattr(source, "lost", {})',
        'inspect.getattr_static(source, "lost", {})',
        'operator.attrgetter("live")(kind)',
    ],
)
def test_a_literal_lookup_is_noticed(tmp_path: Path, code: str) -> None:
    (tmp_path / "reader.py").write_text(code)
    assert len(literal_lookups(tmp_path / "reader.py")) == 1


def optional_protocols() -> list[type]:
    """The runtime-checkable protocols of the contract."""
    exported = [getattr(hookspecs, name) for name in hookspecs.__all__]
    return [value for value in exported if getattr(value, "_is_runtime_protocol", False)]


def test_every_optional_protocol_is_public_and_documented() -> None:
    import avq

    assert len(optional_protocols()) >= 13
    for protocol in optional_protocols():
        assert protocol.__name__ in avq.__all__
        for member, value in vars(protocol).items():
            if not member.startswith("_"):
                text = inspect.getdoc(value) or ""
                assert len(text) > 25 and ("." in text), f"{protocol.__name__}.{member} needs a docstring"
