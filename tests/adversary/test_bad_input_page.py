"""docs/bad-input.md names tests; they are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "bad-input.md"


def test_every_test_that_the_page_names_exists() -> None:
    page = PAGE.read_text()
    found = re.findall(r"((?:\w+/)?test_\w+\.py)((?:(?:, )?::\w+)*)", page)
    assert len(found) > 60
    for name, cases in found:
        [path] = [p for p in TESTS.rglob(Path(name).name) if str(p).endswith(name)]
        for case in re.findall(r"::(\w+)", cases):
            assert f"def {case}(" in path.read_text(), (name, case)
