"""From an open run folder to a run record."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

from nightshift_experience.languages import LanguageDetector
from nightshift_experience.runs import (
    PRIVACY_WITHHELD,
    RunRecord,
    cut_utf8,
    is_valid_id,
    prompt_digest,
    run_id_ms,
)
from nightshift_experience.sources.devserver import entities as entity_rules
from nightshift_experience.sources.devserver.entities import Entity, mapping, text
from nightshift_experience.sources.devserver.fingerprint import (
    ContentDigest,
    is_settled,
    names_to_watch,
    signature,
)
from nightshift_experience.sources.devserver.instants import local_us, plausible, span_us
from nightshift_experience.sources.devserver.layout import FoundRun
from nightshift_experience.sources.devserver.metadata import METADATA_LIMIT_BYTES, parse_metadata
from nightshift_experience.sources.devserver.privacy import CONTENT_CHECKS, is_private
from nightshift_experience.sources.devserver.reading import RunFolder, Unreadable

SOURCE = "devserver-export"

# A text is kept up to here; a longer prompt is recognised by the digest of its whole.
KEPT_TEXT_BYTES = 64 * 1024
_TEXT_LIMIT_BYTES = 64 * 1024 * 1024
_DAY_US = 24 * 3600 * 1_000_000
_WORD_LIMIT = 200
_INT64 = 1 << 63


@dataclass(frozen=True)
class ReadingRules:
    """What reading a record depends on besides the record."""

    zone: tzinfo
    detector: LanguageDetector
    content_checks: Collection[str] = CONTENT_CHECKS


@dataclass(slots=True)
class ReadRun:
    """What was found in a run folder: a record, or why there is none."""

    path: str
    record: RunRecord | None
    skip_reason: str = ""
    skip_detail: str = ""
    # Empty where a later change might not show in the files' times.
    signature: bytes = b""
    names: list[str] = field(default_factory=list)
    content_digest: str = ""


def is_unchanged(folder: RunFolder, known_signature: bytes, names: list[str]) -> bool:
    """Whether the folder is the one that was read last; only stat calls."""
    return bool(known_signature) and signature(folder, names)[0] == known_signature


def read_run(found: FoundRun, folder: RunFolder, rules: ReadingRules) -> ReadRun:
    """Read one run; never raises for what is in the folder."""
    began_ns = time.time_ns()
    digest = ContentDigest()
    # Its folder tells date and device, so a moved folder is another content.
    digest.add("", found.path.encode("utf-8", "surrogatepass"))
    record: RunRecord | None = None
    reason = detail = ""
    try:
        record = _Reader(found, folder, rules, digest).read()
    except Unreadable as error:
        reason, detail = error.reason, error.detail
    names = names_to_watch(folder)
    if "metadata.json" not in names:
        names.append("metadata.json")
    mark, newest_ns = signature(folder, names)
    return ReadRun(
        path=found.path,
        record=record,
        skip_reason=reason,
        skip_detail=detail,
        signature=mark if is_settled(newest_ns, began_ns) else b"",
        names=names,
        content_digest=digest.hex(),
    )


class _Reader:
    """Reads one folder; holds what the steps share."""

    def __init__(
        self, found: FoundRun, folder: RunFolder, rules: ReadingRules, digest: ContentDigest
    ) -> None:
        self._found = found
        self._folder = folder
        self._rules = rules
        self._digest = digest
        self._flags: list[str] = []
        self._private = False

    def read(self) -> RunRecord:
        document, self._flags = self._metadata()
        steps = entity_rules.read_entities(document)
        last = entity_rules.deciding(steps)
        error_type = self._look_at_errors(steps, last)
        outcome = entity_rules.outcome(last, error_type)
        run_id = self._run_id(document)
        record = RunRecord(
            run_id=run_id,
            source=SOURCE,
            start_us=self._start_us(document, run_id),
            outcome=outcome,
            device=self._device(document),
            safety_level=_word(document.get("safety_level")),
            source_path=self._found.path,
        )
        self._add_span(record, document, last)
        self._add_configs(record, document, steps)
        self._add_texts(record, document, steps)
        record.media_types = list(dict.fromkeys(e.media_type for e in steps if e.is_media and e.media_type))
        record.flags = sorted(self._flags)
        return record

    def _metadata(self) -> tuple[dict[str, Any], list[str]]:
        data = self._folder.read("metadata.json", METADATA_LIMIT_BYTES + 1)
        if data is None:
            kind = self._folder.kind_of("metadata.json")
            if kind == "missing":
                if self._folder.is_empty():
                    raise Unreadable("FOLDER_EMPTY", "the folder holds no files")
                raise Unreadable("METADATA_MISSING", "there is no metadata.json")
            if kind == "link":
                raise Unreadable("SYMLINK", "metadata.json is a symbolic link; links are not followed")
            raise Unreadable("NOT_REGULAR_FILE", "metadata.json is not a regular file")
        self._digest.add("metadata.json", data)
        return parse_metadata(data)

    def _run_id(self, document: dict[str, Any]) -> str:
        told = text(document.get("run_id"))
        run_id = told if is_valid_id(told) else self._found.name
        if not is_valid_id(run_id):
            raise Unreadable("RUN_ID_INVALID", "neither the record nor its folder has a usable run id")
        if told != self._found.name:
            self._flags.append("run_id_differs")
        return run_id

    def _device(self, document: dict[str, Any]) -> str:
        return self._found.device or _word(document.get("device_id"))

    def _start_us(self, document: dict[str, Any], run_id: str) -> int:
        ms = run_id_ms(run_id)
        stamp = text(document.get("timestamp")) or text(document.get("start_time"))
        start = plausible(ms * 1000 if ms is not None else None)
        if start is None:
            start = local_us(stamp, self._rules.zone)
        if start is None:
            self._flags.append("time_unknown")
            start = local_us(self._found.path.partition("/")[0], self._rules.zone) or 0
        if start > time.time_ns() // 1000 + _DAY_US:
            self._flags.append("timestamp_future")
        return start

    def _add_span(self, record: RunRecord, document: dict[str, Any], last: Entity | None) -> None:
        end = last.timestamp if last is not None else text(document.get("completed_at"))
        begin = text(document.get("timestamp")) or text(document.get("start_time"))
        span = span_us(begin, end)
        if span is not None:
            record.duration_us = span
            record.end_us = record.start_us + span

    def _look_at_errors(self, steps: list[Entity], last: Entity | None) -> str:
        """Notice privacy blocks; return the error type of the deciding entity, "" if it is no error."""
        deciding_type = ""
        for entity in steps:
            if not entity.is_error:
                continue
            document = self._error_document(entity)
            if is_private(entity.metadata, document, self._rules.content_checks):
                self._private = True
            if entity is last:
                told = text(entity.metadata.get("error_type"))
                deciding_type = told or text(mapping(document).get("error_type"))
        return deciding_type

    def _error_document(self, entity: Entity) -> dict[str, Any] | None:
        data = self._read_of(entity)
        if data is None:
            return None
        try:
            return parse_metadata(data)[0]
        except Unreadable:
            return None

    def _add_configs(self, record: RunRecord, document: dict[str, Any], steps: list[Entity]) -> None:
        models = mapping(document.get("models_used"))
        record.models = {_word(k): _word(v) for k, v in list(models.items())[:64] if _word(k) and _word(v)}
        media = entity_rules.last_media(steps)
        record.output_config = _word(models.get("stage4_output"))
        if media is not None:
            if not record.output_config:
                record.output_config = _word(media.metadata.get("config")) or _word(
                    media.metadata.get("config_id")
                )
            record.seed = self._seed(media.metadata.get("seed"))
        record.interception_config = _word(document.get("interception_config"))
        if not record.interception_config:
            record.config_name = _word(document.get("config_name")) or _word(document.get("schema"))

    def _seed(self, value: Any) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        if not -_INT64 <= value < _INT64:
            self._flags.append("seed_out_of_range")
            return None
        return value

    def _add_texts(self, record: RunRecord, document: dict[str, Any], steps: list[Entity]) -> None:
        process = entity_rules.read_entities({"entities": document.get("prompting_process")})
        prompt = self._prompt(steps, process)
        transformed = self._last_of("interception", steps) or self._last_of("interception", process)
        told = text(mapping(document.get("comparison_group")).get("language")) or text(
            document.get("language")
        )
        record.language = _language_tag(told) or self._rules.detector.detect(prompt, transformed)
        if self._private:
            # Not even a digest may be kept: of a name and a street it is no secret.
            self._flags.append(PRIVACY_WITHHELD)
            return
        if prompt is not None and prompt.strip():
            record.prompt_digest = prompt_digest(prompt)
            record.prompt = cut_utf8(prompt, KEPT_TEXT_BYTES)
            if len(record.prompt) != len(prompt):
                self._flags.append("prompt_truncated")
            if "\ufffd" in record.prompt:
                self._flags.append("prompt_encoding_repaired")
        if transformed is not None:
            record.transformed_prompt = cut_utf8(transformed, KEPT_TEXT_BYTES)

    def _prompt(self, steps: list[Entity], process: list[Entity]) -> str | None:
        for entity in steps:
            if entity.kind == "input":
                found = self._text_of(entity)
                if found is not None:
                    return found
                break
        told = self._last_of("input", process)
        if told is not None:
            return told
        for entity in reversed(steps):
            if entity.kind == "latent_lab_params":
                return text(entity.metadata.get("prompt")) or None
        return None

    def _last_of(self, kind: str, steps: list[Entity]) -> str | None:
        for entity in reversed(steps):
            if entity.kind == kind:
                return self._text_of(entity)
        return None

    def _text_of(self, entity: Entity) -> str | None:
        data = self._read_of(entity)
        if data is None:
            return None
        # NUL cannot be stored as text by every database.
        return data.decode("utf-8", "replace").removeprefix("\ufeff").replace("\0", "\ufffd")

    def _read_of(self, entity: Entity) -> bytes | None:
        name = entity.filename or ""
        if not name:
            return None
        if not name.startswith("prompting_process/"):
            if "/" in name:
                return None
            if self._folder.has_folder("final"):
                name = f"final/{name}"
        data = self._folder.read(name, _TEXT_LIMIT_BYTES)
        if data is not None and not self._private:
            self._digest.add(name, data)
        return data


def _word(value: Any) -> str:
    """A short name out of the record: without controls, cut to what a name may be."""
    if not isinstance(value, str):
        return ""
    clean = value if value.isprintable() else "".join(c for c in value if c.isprintable())
    return clean.strip()[:_WORD_LIMIT]


def _language_tag(value: str) -> str:
    base = value.strip().lower().partition("-")[0].partition("_")[0]
    return base if 2 <= len(base) <= 3 and base.isascii() and base.isalpha() else ""
