"""Local tokens issued and taken back: one transaction each, its audit event inside, then the register.

The database is the truth, the register what the services read of it. It is written after each change and at
the start, and again until it could be: a caller is told that a token is revoked when every service knows it.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
import structlog

from nightshift_kit.errors import FieldInvalid, NightshiftError
from nightshift_kit.tokens import LocalToken, RegisterWriter
from nightshift_skills.approvals import is_admin, person_of
from nightshift_skills.books import Books
from nightshift_skills.errors import LocalTokenUnknown, TokenLimit, TokensNotPublished
from nightshift_skills.store import tokens as store
from nightshift_skills.token_records import TokenRecord

SHORTEST = timedelta(minutes=1)
LONGEST = timedelta(days=90)
MOST_ACTIVE = 500
# So long a holder is told that the token has ended; after that it is one that nobody knows.
KEPT = timedelta(days=30)
MOST_ENDED = 2_000
RETRY_S = 1.0

_PERSON = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_LONGEST_NAME = 64
_log: Any = structlog.get_logger("nightshift.skills.local_tokens")


class LocalTokens:
    """Issues, lists and revokes.

    Args:
        books: The store.
        writer: Of the register.
        plane: Which plane this is, see `nightshift_kit.tokens.plane_id`.
    """

    def __init__(self, books: Books, writer: RegisterWriter, plane: str) -> None:
        self._books = books
        self._writer = writer
        self._plane = plane
        self._publishing = asyncio.Lock()
        self._unpublished = asyncio.Event()

    async def create(
        self, *, person: str, role: str, ttl: timedelta, display_name: str, issuer: str
    ) -> tuple[TokenRecord, str]:
        """A new token and its text, which is kept nowhere.

        Args:
            person: Whom it is for, by name.
            role: "viewer", "approver" or "admin".
            ttl: How long it is good.
            display_name: What it is called, for people.
            issuer: SPIFFE id of the admin who issues it.

        Raises:
            FieldInvalid: naming the field.
            TokenLimit: as many as there may be are good now.
            TokensNotPublished: it is stored, but no service knows it yet.
        """
        if not _PERSON.fullmatch(person):
            raise FieldInvalid.at("person", "a letter or digit, then at most 63 of [A-Za-z0-9._-]")
        if not SHORTEST <= ttl <= LONGEST:
            raise FieldInvalid.at("ttl", f"from one minute to {LONGEST.days} days")
        if len(display_name) > _LONGEST_NAME or not (display_name or "x").isprintable():
            raise FieldInvalid.at("display_name", f"at most {_LONGEST_NAME} printable characters")
        token = LocalToken.new(self._plane, self._books.ids())
        now = self._books.clock.now()
        record = TokenRecord(token.id, token.digest, person, role, display_name, issuer, now, now + ttl)
        await self._books.write(self._create, record)
        await self._publish_or_raise("It is stored, but the services do not know it yet.")
        return record, token.text

    async def get(self, token_id: str, asker: str) -> TokenRecord:
        """One that the asker (SPIFFE id) may see: their own, any for an admin. Raises LocalTokenUnknown."""
        record = await self._books.read(store.get_token, token_id)
        if not (is_admin(asker) or person_of(asker) == record.person):
            raise LocalTokenUnknown("There is no such token.")
        return record

    async def page(self, asker: str, *, active_only: bool, before: str, limit: int) -> list[TokenRecord]:
        """Those that the asker may see, newest first, older than `before` ("" means no limit)."""
        person = "" if is_admin(asker) else person_of(asker)
        since = self._books.clock.now() if active_only else None
        return await self._books.read(store.list_tokens, person, since, before, limit)

    async def revoke(self, token_id: str, by: str) -> TokenRecord:
        """Takes one back; one that is revoked already stays as it is.

        Raises:
            LocalTokenUnknown: there is none, or it is another person's and `by` is no admin.
            TokensNotPublished: it is revoked, but services may still take it.
        """
        await self.get(token_id, by)
        record = await self._books.write(self._revoke, token_id, by)
        await self._publish_or_raise("It is revoked, but services may still take it.")
        return record

    async def publish(self) -> None:
        """Writes the register as the database is now. Raises OSError, and as the database does."""
        self._unpublished.set()
        async with self._publishing:
            now = self._books.clock.now()
            generation, records = await self._books.read(store.published, now, now - KEPT, MOST_ENDED)
            entries = [record.entry() for record in records]
            if not await asyncio.to_thread(self._writer.write, entries, generation):
                _log.warning("a newer register of tokens stands there", generation=generation)
            self._unpublished.clear()

    async def begin(self) -> None:
        """Writes the register above whatever stands there; to be called before the first change."""
        standing = await asyncio.to_thread(self._writer.generation)
        await self._books.write(store.raise_generation, standing)
        await self.publish_soon()

    async def publish_soon(self) -> None:
        """Writes the register; where it cannot be, `keep_published` does later, and no token is lost."""
        try:
            await self.publish()
        except (OSError, NightshiftError) as error:
            _log.warning("register of tokens not written", problem=str(error))

    async def keep_published(self) -> None:
        """Writes the register again where it could not be, or is not ours any more, until cancelled.

        Readers refuse an older register that was put in its place; this brings the present one back.
        """
        while True:
            await asyncio.sleep(RETRY_S)
            if (self._unpublished.is_set() or self._writer.replaced) and not self._publishing.locked():
                await self.publish_soon()

    async def _publish_or_raise(self, state: str) -> None:
        try:
            # Whoever is cancelled while waiting leaves the writing to finish.
            await asyncio.shield(self.publish())
        except (OSError, NightshiftError) as error:
            raise TokensNotPublished(f"{state} The register cannot be written: {error}") from error

    def _create(self, connection: sa.Connection, record: TokenRecord) -> None:
        if store.count_active(connection, record.create_time) >= MOST_ACTIVE:
            raise TokenLimit(f"{MOST_ACTIVE} tokens are good now; revoke those that nobody uses.")
        store.add_token(connection, record)
        # The name that people give it stays out of the audit, as all of their words do.
        self._books.event(
            connection,
            "token.issued",
            record.issuer,
            record.name,
            person=record.person,
            role=record.role,
            expire_time=record.expire_time.isoformat(),
        )

    def _revoke(self, connection: sa.Connection, token_id: str, by: str) -> TokenRecord:
        record = store.get_token(connection, token_id)
        if record.revoke_time is not None:
            return record
        record = replace(record, revoke_time=self._books.clock.now(), revoker=by)
        store.save_revocation(connection, record)
        self._books.event(
            connection, "token.revoked", by, record.name, person=record.person, role=record.role
        )
        return record
