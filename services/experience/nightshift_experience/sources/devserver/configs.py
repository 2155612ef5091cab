"""Which config ids are interceptions and which are outputs.

A record's `config_name` is the output config where the generation route began the run, and the
interception config otherwise; nothing but knowledge of the ids tells which. They come from the platform's
own folders (ids that were deactivated too: old runs name them) and from what the imported records
themselves show as output.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SUFFIXES = (".json", ".json.deactivated")


@dataclass(frozen=True)
class KnownConfigs:
    """Ids found in a platform's folders."""

    interceptions: frozenset[str] = frozenset()
    outputs: frozenset[str] = frozenset()


def read_known_configs(platform_root: str) -> KnownConfigs:
    """Ids below `platform_root`/schemas/configs; empty where there is no such folder."""
    if not platform_root:
        return KnownConfigs()
    configs = Path(platform_root) / "schemas" / "configs"
    interceptions = _stems(configs / "interception")
    # An id in both folders names an interception: the record's own stage4_output tells outputs anyway.
    return KnownConfigs(interceptions, _stems(configs / "output") - interceptions)


def _stems(folder: Path) -> frozenset[str]:
    found = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False):
                    continue
                for suffix in _SUFFIXES:
                    if entry.name.endswith(suffix) and len(entry.name) > len(suffix):
                        found.add(entry.name.removesuffix(suffix))
    except OSError:
        return frozenset()
    return frozenset(found)


def interception_config(explicit: str, config_name: str, output_config: str, is_output: bool) -> str:
    """The interception config of a run, "" if it has none.

    `is_output` says whether `config_name` is known to be an output config.
    """
    if explicit:
        return explicit
    if config_name == output_config or is_output:
        return ""
    return config_name
