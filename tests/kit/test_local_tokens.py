"""A token's text, the register of digests, and what becomes of refused uses; all of it without a wire."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import FakeClock
from nightshift_kit.errors import (
    DbBusy,
    NightshiftError,
    TokenExpired,
    TokenForeign,
    TokenInvalid,
    TokenRevoked,
    TokenUnknown,
    TokenUnverifiable,
)
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.token_door import is_loopback
from nightshift_kit.storage import Database
from nightshift_kit.tokens import (
    LocalToken,
    RefusedUses,
    RegisterWriter,
    TokenEntry,
    TokenRegister,
    TokenVerifier,
)
from nightshift_kit.tokens.register import RegisterDamaged, parse, render

AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
KEY = Ed25519PrivateKey.generate()
PLANE = "0123456789abcdef"
TOKEN = LocalToken.new(PLANE, new_id())
INSTANTS = st.datetimes(timezones=st.just(UTC))
ENTRIES = st.builds(
    TokenEntry,
    id=st.uuids().map(str),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
    person=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    role=st.sampled_from(["viewer", "approver", "admin"]),
    issuer=st.from_regex(r"[A-Za-z0-9]{0,12}", fullmatch=True),
    expire_time=INSTANTS,
    revoke_time=st.none() | INSTANTS,
)


def entry(token: LocalToken, **changes: object) -> TokenEntry:
    fields: dict[str, object] = {
        "id": token.id,
        "digest": token.digest,
        "person": "ada",
        "role": "approver",
        "issuer": "1000",
        "expire_time": AT + timedelta(hours=1),
    }
    return TokenEntry(**{**fields, **changes})  # type: ignore[arg-type]


class Home:
    """A register with its writer and one reader."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens" / "register.json"
        self.writer = RegisterWriter(self.path, PLANE, KEY)
        self.generations = itertools.count(1)
        self.clock = FakeClock(AT)
        self.register = TokenRegister(self.path, PLANE, KEY.public_key())
        self.verifier = TokenVerifier(self.register, PLANE, self.clock)

    def write(self, entries: list[TokenEntry]) -> None:
        assert self.writer.write(entries, next(self.generations))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


@given(st.uuids().map(str))
def test_a_token_comes_back_from_its_text(token_id: str) -> None:
    token = LocalToken.new(PLANE, token_id)
    assert LocalToken.parse(token.text) == token
    assert len(token.secret) == 64
    assert token.secret not in repr(token) + str(token)


@given(st.text())
@example("")
@example("nst1_")
@example(TOKEN.text + "\n")
@example(TOKEN.text.upper())
@example(TOKEN.text.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"))
def test_nothing_else_is_a_token(text: str) -> None:
    for candidate in (text, f"nst1_{PLANE}_{text}", TOKEN.text + text, text + TOKEN.text):
        try:
            parsed = LocalToken.parse(candidate)
        except TokenInvalid as error:
            assert TOKEN.secret not in str(error) + str(error.metadata)
            continue
        assert parsed.text == candidate


@given(st.data())
def test_an_altered_token_is_never_good(data: st.DataObject) -> None:
    text = TOKEN.text
    position = data.draw(st.integers(0, len(text) - 1))
    altered = data.draw(
        st.one_of(
            st.just(text[:position]),
            st.just(text[position + 1 :]),
            st.just(text[:position] + text[position + 1 :]),
            st.characters(codec="ascii").map(lambda c: text[:position] + c + text[position + 1 :]),
            st.characters(codec="ascii").map(lambda c: text[:position] + c + text[position:]),
        )
    )
    verifier = TokenVerifier(_Standing(TOKEN), PLANE, FakeClock(AT))
    if altered == text:
        assert verifier.verify(altered).person == "ada"
        return
    with pytest.raises((TokenInvalid, TokenForeign, TokenUnknown)) as caught:
        verifier.verify(altered)
    assert TOKEN.secret not in str(caught.value)
    assert not caught.value.metadata


class _Standing(TokenRegister):
    """A register that holds one token, without a file."""

    def __init__(self, token: LocalToken) -> None:
        super().__init__(Path("/nowhere"), PLANE, KEY.public_key())
        self._entry = entry(token)

    def find(self, token_id: str) -> TokenEntry | None:
        return self._entry if token_id == self._entry.id else None


@given(st.lists(ENTRIES, max_size=20, unique_by=lambda one: one.id), st.integers(0, 2**53))
def test_a_register_comes_back_from_its_file(entries: list[TokenEntry], generation: int) -> None:
    content = render(entries, plane=PLANE, generation=generation, private_key=KEY)
    snapshot = parse(content, plane=PLANE, public_key=KEY.public_key())
    assert list(snapshot.entries.values()) == entries
    assert snapshot.generation == generation


@given(st.binary() | st.text().map(str.encode))
@example(b"{}")
@example(b'{"register": {}, "signature": ""}')
@example(b"[" * 10_000)
def test_nothing_else_is_a_register(content: bytes) -> None:
    with pytest.raises(RegisterDamaged):
        parse(content, plane=PLANE, public_key=KEY.public_key())


def test_every_altered_byte_of_a_register_is_noticed() -> None:
    content = render([entry(TOKEN)], plane=PLANE, generation=3, private_key=KEY)
    for position, bit in itertools.product(range(0, len(content), 3), (0, 4)):
        changed = bytearray(content)
        changed[position] ^= 1 << bit
        with pytest.raises(RegisterDamaged):
            parse(bytes(changed), plane=PLANE, public_key=KEY.public_key())
    for plane, key in ((PLANE, Ed25519PrivateKey.generate()), ("f" * 16, KEY)):
        with pytest.raises(RegisterDamaged):
            parse(content, plane=plane, public_key=key.public_key())


def test_the_file_holds_no_secret_and_belongs_to_its_owner_alone(home: Home) -> None:
    home.write([entry(TOKEN)])
    content = home.path.read_bytes()
    assert TOKEN.secret.encode() not in content
    assert TOKEN.digest.encode() in content
    assert home.path.stat().st_mode & 0o777 == 0o600
    assert home.path.parent.stat().st_mode & 0o777 == 0o700
    assert list(home.path.parent.iterdir()) == [home.path]


def test_a_token_is_good_from_the_issue_to_its_end(home: Home) -> None:
    with pytest.raises(TokenUnknown):
        home.verifier.verify(TOKEN.text)
    home.write([entry(TOKEN)])
    assert home.verifier.verify(TOKEN.text).person == "ada"
    home.clock.advance(3599)
    home.verifier.verify(TOKEN.text)
    home.clock.advance(1)
    with pytest.raises(TokenExpired) as expired:
        home.verifier.verify(TOKEN.text)
    assert expired.value.metadata == {"token": f"tokens/{TOKEN.id}", "person": "ada"}
    home.write([entry(TOKEN, revoke_time=AT)])
    with pytest.raises(TokenRevoked):
        home.verifier.verify(TOKEN.text)
    home.path.unlink()
    with pytest.raises(TokenUnknown):
        home.verifier.verify(TOKEN.text)


def test_only_its_holder_learns_that_a_token_has_ended(home: Home) -> None:
    guess = LocalToken(PLANE, TOKEN.id, "0" * 64)
    for state in ({}, {"revoke_time": AT}, {"expire_time": AT}):
        home.write([entry(TOKEN, **state)])
        with pytest.raises(TokenUnknown) as caught:
            home.verifier.verify(guess.text)
        assert not caught.value.metadata
    other = LocalToken("f" * 16, TOKEN.id, TOKEN.secret)
    with pytest.raises(TokenForeign):
        home.verifier.verify(other.text)


def test_every_change_of_the_register_is_seen_by_the_next_call(home: Home) -> None:
    # Faster than any clock of a file system ticks; sizes stay the same, inodes come again.
    for round_ in range(60):
        revoked = round_ % 2 == 1
        home.write([entry(TOKEN, revoke_time=AT if revoked else datetime(2026, 3, 4, tzinfo=UTC))])
        home.write([entry(TOKEN, revoke_time=AT) if revoked else entry(TOKEN)])
        if revoked:
            with pytest.raises(TokenRevoked):
                home.verifier.verify(TOKEN.text)
        else:
            home.verifier.verify(TOKEN.text)


def test_what_cannot_be_trusted_lets_nobody_in(home: Home) -> None:
    home.write([entry(TOKEN)])
    good = home.path.read_bytes()
    home.verifier.verify(TOKEN.text)
    home.write([entry(TOKEN, revoke_time=AT)])
    newer = home.path.read_bytes()
    with pytest.raises(TokenRevoked):
        home.verifier.verify(TOKEN.text)
    # Whoever can write the file, but has no key of skills: an older register, a made one, half of one.
    made = json.loads(good)
    made["register"]["generation"] += 10
    for content in (good, json.dumps(made).encode(), newer[: len(newer) // 2], b""):
        home.path.write_bytes(content)
        with pytest.raises(TokenUnverifiable):
            home.verifier.verify(TOKEN.text)
    home.path.unlink()
    home.path.mkdir()
    with pytest.raises(TokenUnverifiable):
        home.verifier.verify(TOKEN.text)
    home.path.rmdir()
    # skills puts it right, above whatever was seen.
    home.write([entry(TOKEN)])
    home.verifier.verify(TOKEN.text)


def test_a_register_that_cannot_be_written_leaves_the_one_before(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write([entry(TOKEN)])
    before = home.path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        home.write([])
    assert home.path.read_bytes() == before
    assert list(home.path.parent.iterdir()) == [home.path]


def test_who_does_not_lead_any_more_puts_no_older_register_over_a_newer(home: Home) -> None:
    home.write([entry(TOKEN)])
    paused = RegisterWriter(home.path, PLANE, KEY)
    home.write([entry(TOKEN, revoke_time=AT)])
    assert home.writer.generation() == 2
    assert not paused.write([entry(TOKEN)], 1)
    assert not paused.replaced
    with pytest.raises(TokenRevoked):
        home.verifier.verify(TOKEN.text)
    # The same state again, after a damage.
    home.path.write_bytes(b"")
    assert home.writer.replaced
    assert paused.generation() == 0
    assert home.writer.write([entry(TOKEN, revoke_time=AT)], 2)
    with pytest.raises(TokenRevoked):
        home.verifier.verify(TOKEN.text)


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("ipv4:127.0.0.1:4711", True),
        ("ipv4:127.9.9.9:4711", True),
        ("ipv6:[::1]:4711", True),
        ("ipv6:%5B::1%5D:4711", False),
        ("unix:/run/x", True),
        ("unix:", True),
        ("ipv4:192.0.2.7:4711", False),
        ("ipv4:10.0.0.127:1", False),
        ("ipv6:[fe80::1%eth0]:4711", False),
        ("ipv6:[::ffff:192.0.2.7]:4711", False),
        ("dns:localhost:1", False),
        ("", False),
        ("ipv4:", False),
    ],
)
def test_who_is_on_this_machine(peer: str, here: bool) -> None:
    assert is_loopback(peer) is here


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path}/x.db", migrations="tests.kit.sample_store", name="lab")
    made.migrate()
    yield made
    made.close()


def refusals(db: Database) -> list[tuple[str, str, int]]:
    outbox = Outbox("lab")
    events = db.read_sync(outbox.events)
    assert {event.kind for event in events} <= {"token.refused"}
    return [(event.subject, event.fields["reason"], event.fields["count"]) for event in events]


async def until(db: Database, wanted: list[tuple[str, str, int]]) -> None:
    deadline_s = time.monotonic() + 20
    while refusals(db) != wanted:
        assert time.monotonic() < deadline_s, refusals(db)
        await asyncio.sleep(0.01)


async def test_the_first_refusal_is_told_at_once_and_a_flood_is_counted(db: Database) -> None:
    now_s = [100.0]
    refused = RefusedUses(db, Outbox("lab"), monotonic=lambda: now_s[0])
    running = asyncio.create_task(refused.run())
    try:
        await asyncio.sleep(0)
        refused.note(token="tokens/1", actor="person/ada", reason="TOKEN_REVOKED", method="x.Y/Z")
        await until(db, [("tokens/1", "TOKEN_REVOKED", 1)])
        for number in range(10_000):
            refused.note(token="tokens/1", actor="person/ada", reason="TOKEN_REVOKED", method=f"x.Y/{number}")
        refused.note(token="", actor="", reason="TOKEN_UNKNOWN", method="x.Y/Z")
        await until(db, [("tokens/1", "TOKEN_REVOKED", 1), ("tokens/-", "TOKEN_UNKNOWN", 1)])
        now_s[0] += 61
        refused.note(token="", actor="", reason="TOKEN_UNKNOWN", method="x.Y/Z")
        told = {("tokens/1", "TOKEN_REVOKED", 10_000), ("tokens/-", "TOKEN_UNKNOWN", 1)}
        deadline_s = time.monotonic() + 20
        while set(refusals(db)[2:]) != told:
            assert time.monotonic() < deadline_s, refusals(db)
            await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    (event,) = [e for e in db.read_sync(Outbox("lab").events) if e.fields["count"] == 10_000]
    assert event.actor == "person/ada"
    assert len(event.fields["methods"]) == 8


async def test_what_the_disk_refused_is_written_later(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = RefusedUses(db, Outbox("lab"))
    refused.note(token="tokens/1", actor="", reason="TOKEN_EXPIRED", method="x.Y/Z")

    async def busy(*_: object) -> None:
        # While it is written, more comes.
        refused.note(token="tokens/1", actor="", reason="TOKEN_EXPIRED", method="x.Y/W")
        raise DbBusy("Somebody holds it.")

    with monkeypatch.context() as patched:
        patched.setattr(db, "write", busy)
        await refused.flush()
    assert refusals(db) == []
    refused.note(token="tokens/1", actor="", reason="TOKEN_EXPIRED", method="x.Y/Z")
    await refused.flush()
    assert refusals(db) == [("tokens/1", "TOKEN_EXPIRED", 3)]
    (event,) = db.read_sync(Outbox("lab").events)
    assert event.fields["methods"] == ["x.Y/W", "x.Y/Z"]
    await refused.flush()
    assert len(refusals(db)) == 1


def test_each_refusal_has_a_reason_of_its_own() -> None:
    kinds: list[type[NightshiftError]] = [
        kind for kind in NightshiftError.__subclasses__() if kind.__name__.startswith("Token")
    ]
    assert len({kind.reason for kind in kinds}) == len(kinds) >= 8
