"""Where the lab may write on the platform's side: one folder, one name a config, by allow-list.

The list of protected files only chooses the words of a refusal. Nothing is writable because it is missing
from it.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath

from nightshift_kit.errors import PathEscape

from .errors import ConfigIdInvalid, ProtectedFile
from .resources import ConfigName
from .validation.identity import CONFIG_ID

CONFIGS_FOLDER = "schemas/configs"
INTERCEPTION_FOLDER = f"{CONFIGS_FOLDER}/interception"
SUFFIX = ".json"

#: Never modifiable by any skill, tier or mode.
PROTECTED = (
    "schemas/engine/**",
    "schemas/configs/pre_interception/**",
    "schemas/configs/pre_output/**",
    "schemas/configs/output/**",
    "schemas/configs/user_configs/**",
    "schemas/pipelines/**",
    "schemas/chunks/**",
    "schemas/*safety*.json",
    "schemas/stage1_*.json",
    "schemas/output_config_defaults.json",
    "config.py",
    "user_settings.json",
    "**/*.key",
    "**/api_keys.json",
    "my_app/**",
    "gpu_service/**",
    "LICENSE.md",
    "**/*.sh",
    "exports/json/**",
)


def _pattern(glob: str) -> re.Pattern[str]:
    parts = re.split(r"(\*\*/|/\*\*$|\*)", glob)
    translated = {"**/": r"(?:.*/)?", "/**": r"/.*", "*": r"[^/]*"}
    return re.compile("".join(translated.get(part, re.escape(part)) for part in parts), re.IGNORECASE)


_PROTECTED = tuple((glob, _pattern(glob)) for glob in PROTECTED)


def protected_by(path: str) -> str:
    """The glob that protects `path`, "" if none; compared without regard to case."""
    return next((glob for glob, pattern in _PROTECTED if pattern.fullmatch(path)), "")


def config_path(config_id: str) -> str:
    """Path below the platform's root that a promotion of `config_id` writes: the only one.

    Raises:
        ConfigIdInvalid: the id is not [a-z0-9_]{3,64}.
    """
    if not CONFIG_ID.fullmatch(config_id):
        raise ConfigIdInvalid.at("config_id", "use 3 to 64 of the characters a-z, 0-9 and _")
    return f"{INTERCEPTION_FOLDER}/{config_id}{SUFFIX}"


def existing_path(config_id: str) -> str:
    """Path of a config that production has already, whatever its id looks like: the only one, too.

    Raises:
        ConfigIdInvalid: the id could be a path, or carries control or format characters.
    """
    return f"{INTERCEPTION_FOLDER}/{ConfigName.parse(f'configs/{config_id}', 'config_id').config_id}{SUFFIX}"


def _escapes(path: str) -> bool:
    folded = unicodedata.normalize("NFKC", path).replace("\\", "/")
    return (
        folded.startswith(("/", "~"))
        or ".." in PurePosixPath(folded).parts
        or any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in path)
        or re.match(r"[A-Za-z]:", folded) is not None
    )


def check_path(requested: str, config_id: str) -> str:
    """The path to write, where the caller named none or the right one.

    Raises:
        PathEscape: the path leads outside the platform's root, in any spelling.
        ProtectedFile: any other path, whether it is on the list of protected files or not.
        ConfigIdInvalid: as config_path.
    """
    allowed = config_path(config_id)
    if requested in ("", allowed):
        return allowed
    if _escapes(requested):
        raise PathEscape("The path leads outside the platform's folder; nothing was written.")
    glob = protected_by(requested)
    why = f"is protected ({glob})" if glob else f"is not the place of this config ({allowed})"
    raise ProtectedFile(
        f"The path {why}; the lab writes nothing else.", metadata={"allowed": allowed, "protected_by": glob}
    )
