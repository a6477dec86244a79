"""docs/qat.md tells every diagnostic of imports and side files, in the words of the program."""

from __future__ import annotations

import re

from avq.build.lift.table import PITFALLS as IMPORT_PITFALLS
from avq.build.sidefiles.pitfalls import PITFALLS as FILE_PITFALLS
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "qat.md").read_text()


def test_the_numbers_of_imports_and_side_files_do_not_overlap() -> None:
    assert not IMPORT_PITFALLS.keys() & FILE_PITFALLS.keys()


def test_the_page_lists_every_diagnostic_and_no_other() -> None:
    pitfalls = [*IMPORT_PITFALLS.values(), *FILE_PITFALLS.values()]
    wanted = "\n".join(f"| {p.code} | {p.severity} | {p.what}: {p.why} | {p.fix} |" for p in pitfalls)
    table = re.search(
        r"<!-- pitfalls:begin -->\n.*?\n.*?\n(.*?)\n<!-- pitfalls:end -->", PAGE, flags=re.DOTALL
    )
    assert table is not None
    assert table.group(1) == wanted, f"write this between the marks of docs/qat.md:\n{wanted}"
    assert set(re.findall(r"AVQ-Q\d+", PAGE)) <= {p.code for p in pitfalls}
