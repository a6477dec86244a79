"""Generated files of ten dialects, and files with one fault each: imported equal to their source, or told why not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from avq.builder.lift.findings import PITFALLS, SIDE_FILE_PITFALLS
from tests.builder.lift.corpus.dialects import DIALECTS
from tests.builder.lift.corpus.faults import FAULTS, ODD
from tests.builder.lift.corpus.importing import Ended, ended, lowered
from tests.builder.lift.corpus.nets import NETS
from tests.builder.lift.corpus.plain_writers import SPELLED
from tests.builder.lift.corpus.writer import pictures, run

FILES = [(dialect, net) for dialect in DIALECTS for net in NETS]
#: OpenVINO's formula divides by the range and not by the scale; its float32 results differ in the last digits.
NOT_TO_THE_BIT = {"nncf-fakequantize"}
COUNTED = {"equal": 0, "error": 0, "refused": 0}


@pytest.fixture(scope="module", autouse=True)
def count() -> Iterator[None]:
    yield
    files = sum(COUNTED.values())
    print(
        f"\nimport corpus: {files} files, {len(DIALECTS)} dialects: {COUNTED['equal']} imported equal to the source, "
        f"{COUNTED['error'] + COUNTED['refused']} refused with the expected diagnostic"
    )


def _counted(one: Ended) -> Ended:
    COUNTED[one.ending] = COUNTED.get(one.ending, 0) + 1
    return one


def test_the_corpus_holds_more_than_sixty_files_over_ten_dialects() -> None:
    assert len(DIALECTS) >= 10
    assert len(FILES) + len(FAULTS) + len(ODD) >= 60


@pytest.mark.parametrize(("dialect", "net"), FILES)
def test_a_file_is_imported_equal_to_its_source(dialect: Any, net: Any) -> None:
    one = _counted(ended(DIALECTS[dialect](NETS[net]()).write()))
    assert one.ending == "equal", one.parity.summary if one.parity else one.codes
    assert one.parity is not None and one.imported is not None
    assert one.parity.exact or dialect in NOT_TO_THE_BIT, one.parity.summary
    assert one.imported.foreign.points


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_never_passed_over(name: Any) -> None:
    fault = FAULTS[name]
    one = _counted(ended(fault.make()))
    assert (one.ending, fault.code in one.codes) == (fault.ending, True), (one.codes, one.parity)


@pytest.mark.parametrize("name", ODD)
def test_what_is_only_unusual_is_imported(name: Any) -> None:
    one = _counted(ended(ODD[name]()))
    assert one.ending == "equal", one.codes


def test_every_pitfall_of_the_table_is_injected_somewhere() -> None:
    parity = "AVQ-Q41"  # that an import differs is shown with a damaged plan, in test_lift
    assert {fault.code for fault in FAULTS.values()} == set(PITFALLS) - {parity} - {
        p.code for p in SIDE_FILE_PITFALLS
    }


@pytest.mark.parametrize("name", FAULTS)
def test_a_finding_says_what_was_seen_and_what_to_do(name: Any) -> None:
    row = PITFALLS[FAULTS[name].code]
    assert row.what
    assert row.why
    assert row.fix
    assert (row.severity == "error") == (FAULTS[name].ending != "equal")


@pytest.mark.parametrize(("dialect", "net"), [(d, n) for d in SPELLED for n in NETS])
def test_an_import_equals_the_same_file_written_in_plain_operators(dialect: Any, net: Any) -> None:
    """Independent of every reader: the dialect's writer itself emits Div, Round, Clip and Mul."""
    imported = ended(DIALECTS[dialect](NETS[net]()).write()).imported
    plain = SPELLED[dialect](NETS[net]()).write()
    assert imported is not None
    ours = lowered(imported)
    for picture in pictures(3, seed=21):
        meant, found = (run(model, {"x": picture})["out"] for model in (plain, ours))
        if dialect in NOT_TO_THE_BIT:
            np.testing.assert_allclose(found, meant, rtol=0, atol=1e-5 * np.abs(meant).max())
        else:
            np.testing.assert_array_equal(found, meant)
