"""Levels id and collision: what a config may be called.

An id becomes a file's stem, a key of the platform's table of all configs, and part of paths: it is held to
plain ASCII, and compared with every config of any kind in a folded form, because file systems and loaders
fold differently.
"""

# ruff: noqa: SIM905 - word lists read better as text

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping

from .report import Finding, error

CONFIG_ID = re.compile(r"[a-z0-9_]{3,64}")
#: Stems that mean a device on some file systems, and what a loader might take for its own.
RESERVED = frozenset(
    ("con prn aux nul com1 lpt1 default config index init __init__ schema template test").split()
)


def fold(config_id: str) -> str:
    """Case-folded NFKC (which includes NFC) without format characters: two ids that fold alike collide."""
    composed = unicodedata.normalize("NFKC", config_id)
    visible = "".join(c for c in composed if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", visible.casefold())


def id_findings(config_id: str) -> Iterator[Finding]:
    """Whether the id may be a file's stem."""
    if not CONFIG_ID.fullmatch(config_id):
        yield error(
            "id",
            "config_id",
            "CONFIG_ID_INVALID",
            "Use 3 to 64 of the characters a-z, 0-9 and _ (no path, no dots).",
        )
    elif config_id in RESERVED or not re.search(r"[a-z]", config_id):
        yield error(
            "id", "config_id", "CONFIG_ID_INVALID", "Reserved, or without a letter; choose a telling word."
        )


def collision_findings(
    config_id: str, taken: Mapping[str, str], production: frozenset[str]
) -> Iterator[Finding]:
    """Whether another config has the id.

    Args:
        config_id: The id to try.
        taken: Folded id → path of the config that has it, over configs of every kind, deactivated ones too.
        production: Exact ids of the interception configs.
    """
    if config_id in production:
        yield error(
            "collision", "config_id", "CONFIG_EXISTS", f"Production has a config {config_id!r} already."
        )
    elif fold(config_id) in taken:
        yield error(
            "collision",
            "config_id",
            "CONFIG_ID_COLLISION",
            f"Collides with {taken[fold(config_id)]}; choose another id.",
        )
