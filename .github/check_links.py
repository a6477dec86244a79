"""Check that links in the Markdown files of the repository resolve: files, headings, and pages named in code.

Run from the repository root: ``python .github/check_links.py``. Exit code 1 when a link is broken. Only local
links are checked, so the check needs no network.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"!?\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
REFERENCE = re.compile(r"^\s*\[[^\]]+\]:\s+<?([^\s>]+)>?", re.MULTILINE)
#: Files that a page names in inline code, such as `docs/replay.md` or `launch/test`.
NAMED = re.compile(r"`((?:docs|launch)/[\w./-]+)`")
FENCE = re.compile(r"^(```|~~~).*?^\1[^\n]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def markdown_files(root: Path) -> list[Path]:
    """The Markdown files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return sorted(root / name for name in names.split("\0") if name and (root / name).is_file())


def anchors(page: Path) -> set[str]:
    """The heading anchors of a page, as GitHub writes them."""
    found: dict[str, int] = {}
    names: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def broken_links(page: Path, root: Path) -> Iterator[str]:
    """One message for every local link of ``page`` that does not resolve."""
    text = FENCE.sub("", page.read_text("utf-8"))
    for name in NAMED.findall(text):
        if not (root / name).exists():
            yield f"no file {name}"
    prose = CODE.sub("", text)
    for link in (*LINK.findall(prose), *REFERENCE.findall(prose)):
        if EXTERNAL.match(link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"no file {path}"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield f"no heading '{anchor}' in {target.name}"


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    pages = markdown_files(root)
    problems = [f"{page.relative_to(root)}: {why}" for page in pages for why in broken_links(page, root)]
    print("\n".join(problems) or f"{len(pages)} Markdown files: all local links resolve")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
