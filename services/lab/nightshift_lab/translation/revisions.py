"""Translation revisions: the one way in which Nightshift changes a config that people wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.errors import ContentChanged, DriftDetected, FieldRequired
from nightshift_kit.grants import Effect

from ..catalog import Catalog, ConfigFile
from ..changes import Changes, Planned
from ..errors import PromotionConflict, TranslationInvalid
from ..records import Kind, Promotion, promotion_from_bytes
from ..store import promotions as rows
from .drafting import translatable
from .gaps import Translation, gaps
from .insertion import inserted
from .rules import problem

MAX_TRANSLATIONS = 64
MAX_DRAFTED_BY_CHARACTERS = 200


@dataclass(frozen=True)
class Revision:
    """What somebody wants to add; digests are SHA-256 (hex) of the file before and after."""

    config_id: str
    base_digest: str
    translations: tuple[Translation, ...]
    content_digest: str
    drafted_by: str = ""


class Revisions:
    """Adds languages to production's configs.

    Args:
        changes: Changes the folder.
        clock: Times of the records.
        new_id: Makes ids that sort by time.
    """

    def __init__(self, changes: Changes, clock: Clock, new_id: Callable[[], str]) -> None:
        self._changes = changes
        self._clock = clock
        self._new_id = new_id

    async def translate(self, effect: Effect, revision: Revision) -> Promotion:
        """Add missing languages to name, description and category of a config.

        Raises:
            FieldRequired, TranslationInvalid, ConfigIdInvalid, ConfigUnknown, ConfigIdCollision,
            ConfigNotTranslatable, PromotionConflict, DriftDetected, ContentChanged; the errors of files.
        """
        if not revision.translations:
            raise FieldRequired.at("translations", "must be given")
        if len(revision.translations) > MAX_TRANSLATIONS:
            raise TranslationInvalid.at("translations", f"at most {MAX_TRANSLATIONS}")
        if len(revision.drafted_by) > MAX_DRAFTED_BY_CHARACTERS:
            raise TranslationInvalid.at("drafted_by", f"at most {MAX_DRAFTED_BY_CHARACTERS} characters")
        return await self._changes.make(
            lambda connection, catalog: self._translate(connection, effect, revision, catalog)
        )

    def _translate(
        self, connection: sa.Connection, effect: Effect, revision: Revision, catalog: Catalog
    ) -> Planned:
        stored = effect.begin(connection)
        if stored is not None:
            return Planned(promotion_from_bytes(stored))
        file = translatable(catalog, revision.config_id)
        last = rows.newest(connection, file.path)
        _check_base(file, revision.base_digest, last)
        _check_texts(file, revision.translations, catalog)
        content = inserted(file.data, revision.translations)
        if sha256_hex(content) != revision.content_digest:
            raise ContentChanged(
                "The bytes to be written are not those that were approved; look at the draft again.",
                metadata={"content_digest": sha256_hex(content)},
            )
        promotion = Promotion(
            promotion_id=self._new_id(),
            kind=Kind.TRANSLATE,
            # A config that Nightshift brought stays its own, in more languages.
            proposal_id=last.proposal_id if last is not None and last.digest == file.digest else "",
            config_id=file.config_id,
            path=file.path,
            previous_digest=file.digest,
            previous_content=file.data,
            digest=revision.content_digest,
            content=content,
            rolls_back="",
            rolled_back_by="",
            created_at=self._clock.now(),
            actor=effect.actor,
        )
        added = [f"{one.field}.{one.language}" for one in revision.translations]
        return self._changes.plan(
            connection,
            effect,
            promotion,
            "config.translated",
            further={"added": added, "drafted_by": revision.drafted_by},
        )


def _check_base(file: ConfigFile, base_digest: str, last: Promotion | None) -> None:
    if file.digest == base_digest:
        return
    if last is not None and (last.previous_digest, last.digest) == (base_digest, file.digest):
        raise PromotionConflict("Somebody else has just translated this very version.")
    raise DriftDetected(
        "The file is not what the translations were drafted for; somebody has changed it since.",
        metadata={"path": file.path, "digest": file.digest},
    )


def _check_texts(file: ConfigFile, translations: Sequence[Translation], catalog: Catalog) -> None:
    """Raises TranslationInvalid for a text that no draft would have; names the field, not the text."""
    assert file.content is not None
    found = {gap.field: gap for gap in gaps(file.content)}
    seen: set[tuple[str, str]] = set()
    for index, one in enumerate(translations):
        where = f"translations[{index}]"
        gap = found.get(one.field)
        if gap is None:
            raise TranslationInvalid.at(where, "of a field that lacks no language, or is no text by language")
        if (one.field, one.language) in seen:
            raise TranslationInvalid.at(where, "the same language twice")
        seen.add((one.field, one.language))
        why = problem(gap, one.language, one.text, catalog.safety_words)
        if why:
            raise TranslationInvalid.at(where, f"refused: {why}")
