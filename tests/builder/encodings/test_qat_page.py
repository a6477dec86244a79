"""docs/qat.md tells every diagnostic of imports and side files, in the words of the program."""

from __future__ import annotations

import re

from avq.builder.lift.findings import PITFALLS
from tests.conftest import ROOT

PATH = ROOT / "docs" / "qat.md"
PAGE = PATH.read_text()
TABLE = re.compile(r"(<!-- pitfalls:begin -->\n.*?\n.*?\n)(.*?)(\n<!-- pitfalls:end -->)", flags=re.DOTALL)


def rows() -> str:
    """The table, from the program's own."""
    return "\n".join(f"| {p.code} | {p.severity} | {p.what}: {p.why} | {p.fix} |" for p in PITFALLS.values())


def test_the_page_lists_every_diagnostic_and_no_other() -> None:
    table = TABLE.search(PAGE)
    assert table is not None
    assert table.group(2) == rows(), "python -m tests.builder.encodings.test_qat_page writes the table anew"
    assert set(re.findall(r"AVQ-Q\d+", PAGE)) <= set(PITFALLS)


if __name__ == "__main__":
    PATH.write_text(TABLE.sub(lambda found: found.group(1) + rows() + found.group(3), PAGE))
