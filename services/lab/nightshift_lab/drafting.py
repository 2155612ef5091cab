"""Reading work of the lab: drafts, validation, diffs. Nothing here is stored."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .catalog import Catalog
from .composer.composer import DRAFTED_BY, compose
from .content import file_bytes
from .validation.report import Report
from .validation.validator import validate
from .wording import Json


@dataclass(frozen=True)
class DraftResult:
    """A draft with what validation says of it; `templates` and `nearest` are config ids."""

    config_id: str
    content: Mapping[str, Json]
    templates: tuple[str, ...]
    drafted_by: str
    report: Report
    diff: str


def unified_diff(
    old: Mapping[str, Json] | None, new: Mapping[str, Json], old_name: str, new_name: str
) -> str:
    """Unified diff of the files' text; an absent `old` diffs against nothing."""
    before = file_bytes(old).decode().splitlines(keepends=True) if old is not None else []
    after = file_bytes(new).decode().splitlines(keepends=True)
    source = f"{old_name}.json" if old is not None else "/dev/null"
    return "".join(difflib.unified_diff(before, after, source, f"{new_name}.json"))


def draft(
    theme: str, keywords: Sequence[str], nearest_configs: Sequence[str], catalog: Catalog
) -> DraftResult:
    """A validated draft for a theme.

    Args:
        theme: In a few words, any language.
        keywords: Strongest first.
        nearest_configs: Config ids, best first; ids that production does not have are passed over.
        catalog: Production now.

    Raises:
        ThemeInvalid, TemplatesMissing: as composer.compose.
    """
    made = compose(theme, keywords, nearest_configs, catalog.contents, catalog.taken)
    report = validate(made.config_id, made.content, catalog.surroundings)
    return DraftResult(
        config_id=made.config_id,
        content=made.content,
        templates=made.templates,
        drafted_by=DRAFTED_BY,
        report=report,
        diff=unified_diff(
            catalog.contents.get(report.nearest_config), made.content, report.nearest_config, made.config_id
        ),
    )
