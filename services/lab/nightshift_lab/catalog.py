"""Production's configs as they are now, in every shape that production has.

The platform's loader asks for little: a `pipeline`, nothing more. So the reader accepts lyrics and tag
configs, string names, missing contexts, byte order marks and non-ASCII ids; what it cannot read is listed
with the reason. All access goes through the kit's safe files: links that lead out, hard links and FIFOs are
listed as problems, never followed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.errors import NightshiftError, NotRegularFile, PathEscape
from nightshift_kit.safe_files import Root

from .errors import ConfigUnknown, PlatformMissing
from .paths import CONFIGS_FOLDER, INTERCEPTION_FOLDER, SUFFIX
from .validation.identity import fold
from .validation.validator import Surroundings
from .wording import Json

# No path of the kit's is deeper than 512 folders; the loader's glob goes all the way down.
_DEPTH = 512
_MAX_NESTING = 64
# Larger ones are no configs; the answer of one RPC must hold at least one.
_MAX_FILE_BYTES = 1024 * 1024
# What follows the stem: "x.json", and "x.json.deactivated", "x.json.proposed" and the like, which the
# loader passes over.
_NAME = re.compile(r"(?P<stem>.+?)\.json(?P<rest>\..+)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class ConfigFile:
    """One file below schemas/configs.

    Attributes:
        config_id: The file's stem.
        path: Below the platform's root.
        active: Whether the loader reads it (its name ends in ".json").
        content: None where it could not be read.
        digest: SHA-256 (hex) of the bytes, "" where there were none to read.
        problem: Why it cannot be read, "" if it can.
        refusal: The error of the safe files, where they refused it.
        data: Its bytes, where it could be read.
    """

    config_id: str
    path: str
    active: bool
    content: Mapping[str, Json] | None
    digest: str
    problem: str
    refusal: NightshiftError | None = field(default=None, compare=False)
    data: bytes = field(default=b"", repr=False, compare=False)

    @property
    def is_interception(self) -> bool:
        """Whether it lies directly in production's folder of interception configs."""
        return str(PurePosixPath(self.path).parent) == INTERCEPTION_FOLDER


def parse(data: bytes) -> tuple[Mapping[str, Json] | None, str]:
    """Content of a config file, or the reason why there is none."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return None, f"not UTF-8 (byte {error.start})"
    except json.JSONDecodeError as error:
        return None, f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    except RecursionError:
        return None, "nested too deep"
    except ValueError:
        return None, "a number with too many digits"
    if not isinstance(value, dict):
        return None, "not a JSON object"
    return (None, trouble) if (trouble := _trouble(value)) else (value, "")


def _trouble(value: Json) -> str:
    """What JSON of Python's allows and a protobuf Struct or a strict reader does not."""
    level: list[Json] = [value]
    for _ in range(_MAX_NESTING):
        following: list[Json] = []
        for item in level:
            if isinstance(item, Mapping):
                following += [*item.values(), *item]
            elif isinstance(item, str):
                if any("\ud800" <= c <= "\udfff" for c in item):
                    return "a lone surrogate in a text"
            elif isinstance(item, Sequence):
                following += item
            elif isinstance(item, float) and not math.isfinite(item):
                return "NaN or an infinite number"
            elif isinstance(item, int) and not isinstance(item, bool) and abs(item) > 2**1000:
                return "a number with too many digits"
        if not following:
            return ""
        level = following
    return "nested too deep"


@dataclass(frozen=True)
class Catalog:
    """Every config of every kind, read at one moment.

    Attributes:
        files: By path.
        safety_words: The platform's own lists (schemas/*safety*.json), audience → case-folded words.
    """

    files: tuple[ConfigFile, ...]
    safety_words: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def interception(self) -> tuple[ConfigFile, ...]:
        """Active interception configs by id, readable or not."""
        found = (file for file in self.files if file.active and file.is_interception)
        return tuple(sorted(found, key=lambda file: file.config_id))

    @cached_property
    def contents(self) -> Mapping[str, Mapping[str, Json]]:
        """Readable interception configs by id."""
        return {file.config_id: file.content for file in self.interception if file.content is not None}

    @cached_property
    def taken(self) -> Mapping[str, str]:
        """Folded id → path, over configs of every kind, deactivated ones too.

        A string `name` and a `config_id` count as well: the loader would take them for the id.
        """
        ids: dict[str, str] = {}
        for file in self.files:
            claims = [file.config_id]
            if file.content is not None:
                claims += [
                    text for key in ("name", "config_id") if isinstance(text := file.content.get(key), str)
                ]
            for claim in claims:
                ids.setdefault(fold(claim), file.path)
        return ids

    @cached_property
    def _claimants(self) -> Mapping[str, tuple[str, ...]]:
        """Folded id → paths of the active files that claim it, by stem or by a text as name."""
        found: dict[str, list[str]] = {}
        for file in self.files:
            if not file.active:
                continue
            claims = {fold(file.config_id)} if file.is_interception else set()
            if file.content is not None:
                texts = (file.content.get(key) for key in ("name", "config_id"))
                claims |= {fold(text) for text in texts if isinstance(text, str)}
            for claim in claims:
                found.setdefault(claim, []).append(file.path)
        return {claim: tuple(paths) for claim, paths in found.items()}

    def rivals(self, file: ConfigFile) -> tuple[str, ...]:
        """Paths of other active files that claim an interception config's id, by stem or by a text as name.

        A stem counts in the same folder only, where a file system that folds names would mix the two up;
        production keeps output configs of the same name elsewhere.
        """
        claimants = self._claimants.get(fold(file.config_id), ())
        return tuple(path for path in claimants if path != file.path)

    @cached_property
    def surroundings(self) -> Surroundings:
        """What a proposal is compared with."""
        output = f"{CONFIGS_FOLDER}/output/"
        return Surroundings(
            configs=self.contents,
            production=frozenset(file.config_id for file in self.interception),
            taken=self.taken,
            safety_words=self.safety_words,
            output_configs=frozenset(
                f.config_id for f in self.files if f.active and f.path.startswith(output)
            ),
        )

    def get(self, config_id: str) -> ConfigFile:
        """One active interception config.

        Raises:
            ConfigUnknown: production has none of that exact id.
        """
        for file in self.interception:
            if file.config_id == config_id:
                return file
        raise ConfigUnknown(f"Production has no interception config {config_id!r}.")

    def at(self, path: str) -> ConfigFile | None:
        """The file at a path, readable or not; None where nothing is."""
        return next((file for file in self.files if file.path == path), None)


def load(files: Root) -> Catalog:
    """Read everything below schemas/configs. Blocks; about 50 small files.

    Raises:
        PlatformMissing: there is no folder of interception configs.
    """
    try:
        files.listdir(INTERCEPTION_FOLDER)
    except (FileNotFoundError, NotRegularFile) as error:
        raise PlatformMissing(
            f"The platform's root has no {INTERCEPTION_FOLDER}; set NIGHTSHIFT_PLATFORM_ROOT."
        ) from error
    found = tuple(sorted(_walk(files, CONFIGS_FOLDER, 0), key=lambda file: file.path))
    return Catalog(found, _safety_words(files))


def _walk(files: Root, folder: str, depth: int) -> Iterator[ConfigFile]:
    for name in sorted(files.listdir(folder)):
        path = f"{folder}/{name}"
        match = _NAME.fullmatch(name)
        if match:
            # A name that is not UTF-8 comes with surrogates, which no answer can carry.
            stem = match["stem"].encode(errors="surrogateescape").decode(errors="replace")
            yield _read(files, path, stem, active=match["rest"] is None and name.endswith(SUFFIX))
        elif depth < _DEPTH:
            try:
                yield from _walk(files, path, depth + 1)
            except (NotRegularFile, PathEscape, FileNotFoundError):
                # Not a folder, or one that leads elsewhere: the loader's business, not a config.
                continue


def _read(files: Root, path: str, stem: str, *, active: bool) -> ConfigFile:
    try:
        data = files.read(path, _MAX_FILE_BYTES)
    except NightshiftError as error:
        return ConfigFile(stem, path, active, None, "", f"{error.reason}: {error.message}", error)
    except OSError as error:
        return ConfigFile(stem, path, active, None, "", f"cannot be read: {error.strerror or error}")
    content, problem = parse(data)
    return ConfigFile(stem, path, active, content, sha256_hex(data), problem, data=data)


def _safety_words(files: Root) -> dict[str, frozenset[str]]:
    """Words of schemas/*safety*.json: objects of lists of words; what has another shape is passed over."""
    words: dict[str, set[str]] = {}
    for name in files.listdir("schemas"):
        if "safety" not in name or not name.endswith(SUFFIX):
            continue
        content = _read(files, f"schemas/{name}", name, active=False).content or {}
        for audience, listed in content.items():
            if isinstance(listed, list):
                kept = {word.casefold().strip() for word in listed if isinstance(word, str)}
                words.setdefault(audience, set()).update(word for word in kept if len(word) > 2)
    return {audience: frozenset(listed) for audience, listed in words.items() if listed}
