"""Lint against the real parser, on networks whose faults are known because they were put in.

No broken network passes, no legal one fails, and the parser rejects nothing that lint passed.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from avq.builder.lint import RULES, lint
from avq.builder.lint.types import UNSUPPORTED
from tests.builder.lint import faults_of_graphs, faults_of_pairs  # noqa: F401  (they fill FAULTS)
from tests.builder.lint.costly import COSTLY, integer_output, open_batch, output_quantized, with_pattern
from tests.builder.lint.fault import FAULTS, Fault
from tests.builder.lint.graph_maker import OPSETS, Made, make
from tests.builder.lint.real_parser import Answer, real_parser

TARGET = "tensorrt-rtx"
LEGAL, FOR_EACH_FAULT, FOR_EACH_PATTERN = 150, 4, 4
#: A remark on the scales' type that says nothing against a network.
REMARKS = {"AVQ-L25"}


@pytest.fixture(scope="module")
def parser() -> Any:
    return real_parser()


def _found(made: Made) -> tuple[set[str], set[str]]:
    """Rules that hit: as errors, as warnings."""
    findings = lint(made.proto, TARGET)
    errors = {finding.id for finding in findings if finding.severity == "error"}
    return errors, {finding.id for finding in findings} - errors


def _ask(parser: Any, made: Made) -> Answer:
    return parser.ask(made.proto.SerializeToString())


@pytest.mark.parametrize("first", range(0, LEGAL, 30))
def test_no_legal_network_fails_and_the_parser_takes_each(parser: Any, first: Any) -> None:
    for seed in range(first, first + 30):
        made = make(seed)
        onnx.checker.check_model(made.proto)
        errors, warnings = _found(made)
        assert (seed, errors, warnings - REMARKS) == (seed, set(), set())
        assert (seed, _ask(parser, made)) == (seed, Answer("accepts"))


@pytest.mark.slow
def test_legal_networks_are_legal_to_others_too(parser: Any) -> None:
    for seed in range(0, LEGAL, 15):
        model = make(seed).proto.SerializeToString()
        onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        assert (seed, parser.builds(model)) == (seed, "")


def test_the_networks_differ() -> None:
    made = [make(seed) for seed in range(LEGAL)]
    assert {network.opset for network in made} == set(OPSETS)
    assert 20 < sum(network.half for network in made) < LEGAL - 20
    operators = Counter(op for network in made for op in {node.op_type for node in network.proto.graph.node})
    wanted = {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Concat",
        "Pad",
        "MaxPool",
        "Resize",
        "Sigmoid",
    }
    assert min(operators[op] for op in wanted) >= 10


def _broken(fault: Fault, seed: int) -> Made:
    """The next network from ``seed`` on that has a place for the fault."""
    for attempt in range(seed, seed + 200):
        made = make(attempt)
        if fault.inject(made, np.random.default_rng(attempt)):
            return made
    raise AssertionError(f"no network has a place for {fault.name}")


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_no_broken_network_passes_and_the_parser_says_what_is_known(parser: Any, fault: Any) -> None:
    for turn in range(FOR_EACH_FAULT):
        made = _broken(fault, 1000 + 200 * turn)
        errors, _ = _found(made)
        assert fault.rule in errors
        answer = _ask(parser, made)
        assert fault.parser in (answer.verdict, "depends"), answer.words
        if answer.verdict == "warns":
            assert "INT8 instead" in answer.words


@pytest.mark.parametrize("pattern", COSTLY, ids=[pattern.name for pattern in COSTLY])
def test_a_costly_pattern_is_warned_of_and_the_parser_takes_it_silently(parser: Any, pattern: Any) -> None:
    for seed in range(FOR_EACH_PATTERN):
        made = with_pattern(seed, pattern)
        errors, warnings = _found(made)
        assert (errors, warnings - REMARKS) == (set(), {pattern.rule})
        assert _ask(parser, made) == Answer("accepts")


def test_integers_and_one_grid_at_the_output_and_open_sizes_are_warned_of(parser: Any) -> None:
    for seed in range(FOR_EACH_PATTERN):
        cases = {
            "AVQ-L16": output_quantized(seed),
            "AVQ-L29": integer_output(seed),
            "AVQ-L46": open_batch(make(seed)),
        }
        for rule, made in cases.items():
            errors, warnings = _found(made)
            assert not errors and rule in warnings
            assert _ask(parser, made) == Answer("accepts")
        words = parser.builds(cases["AVQ-L46"].proto.SerializeToString())
        assert "no optimization profile" in words


def test_half_scales_are_converted_back_by_the_builder(parser: Any) -> None:
    """Why AVQ-L25 remarks on them."""
    made = next(made for made in map(make, range(50)) if "AVQ-L25" in _found(made)[1])
    assert parser.builds(made.proto.SerializeToString()) == ""
    assert any("scales to fp32" in words for words in parser.log_lines)


def test_the_list_of_operators_is_the_parsers_own(parser: Any) -> None:
    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    unread = {name for name in standard if not parser.reads(name)}
    assert unread <= UNSUPPORTED and not {name for name in UNSUPPORTED if parser.reads(name)}


def test_more_than_300_networks_and_every_error_of_the_table_are_shown() -> None:
    assert LEGAL + len(FAULTS) * FOR_EACH_FAULT + (len(COSTLY) + 3) * FOR_EACH_PATTERN >= 300
    shown = {fault.rule for fault in FAULTS} | {pattern.rule for pattern in COSTLY}
    shown |= {"AVQ-L16", "AVQ-L25", "AVQ-L29", "AVQ-L46"}
    shown |= {f"AVQ-L{number}" for number in range(47, 53)}  # test_int4.py
    shown |= {"AVQ-L53", "AVQ-L54"}  # test_architectures.py
    assert {rule.id for rule in RULES if TARGET in rule.targets} - shown == set()
