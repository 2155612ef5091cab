"""A process that promotes and rolls back until it is killed, again and again: run by test_lab_kills.

The driver imports everything once and forks: each child opens the same database and folder, works for a
while and dies by SIGKILL at a random moment; a second child recovers, asks once more for whatever was not
acknowledged, and checks. What was acknowledged is journalled in a file that is no part of the lab.

    python -m tests.lab.promotion_kills FOLDER KILLS SEED
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.canonical import sha256_hex
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import Effect
from nightshift_kit.ids import new_id
from nightshift_kit.safe_files import FileEffects
from nightshift_kit.storage import Database
from nightshift_lab.changes import Changes
from nightshift_lab.drafting import draft
from nightshift_lab.platform import Production, open_root
from nightshift_lab.promotions import Promotions
from nightshift_lab.proposals import NewProposal, Proposals
from nightshift_lab.records import Promotion, State, promotion_to_bytes
from nightshift_lab.store import promotions as rows
from nightshift_lab.store.tables import kit, promotions
from tests.lab.conftest import INTERCEPTION, tree_digest

THEMES = ("first theme", "second theme", "third theme")


class Workplace:
    """The lab's core on one folder, as `__main__` wires it, without a server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.platform = folder / "platform"
        self.journal = folder / "journal.jsonl"
        clock = SystemClock()
        self.db = Database(f"sqlite:///{folder}/lab.db", migrations="nightshift_lab", name="lab")
        self.db.migrate()
        self.root = open_root(self.platform)
        self.production = Production(self.root)
        self.outbox = Outbox("lab", clock)
        effects = FileEffects(self.root, self.db, clock=clock)
        self.proposals = Proposals(self.db, self.production, self.outbox, clock, new_id)
        self.changes = Changes(self.db, effects, self.production, self.outbox, clock)
        self.promotions = Promotions(self.db, self.changes, clock, new_id)

    def note(self, **entry: Any) -> None:
        """One line, appended in one write: it is in the kernel's hands when this returns."""
        handle = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(handle, json.dumps(entry).encode() + b"\n")
        os.close(handle)

    def noted(self) -> list[dict[str, Any]]:
        return (
            [json.loads(line) for line in self.journal.read_text().splitlines()]
            if self.journal.exists()
            else []
        )

    def do(self, asked: dict[str, Any]) -> Promotion:
        effect = Effect.for_tests(jti=asked["jti"], arguments_digest=sha256_hex(json.dumps(asked).encode()))
        if asked["what"] == "promote":
            work = self.promotions.promote(effect, asked["id"], asked["etag"], asked["digest"], "")
        else:
            work = self.promotions.roll_back(effect, asked["id"], asked["digest"])
        return asyncio.run(work)

    def propose(self) -> None:
        for theme in THEMES:
            made = draft(theme, ["one", "two"], [], self.production())
            new = NewProposal(made.config_id, made.content, drafted_by=made.drafted_by)
            asyncio.run(self.proposals.create(Effect.for_tests(), new))


def next_step(place: Workplace, choice: random.Random) -> dict[str, Any]:
    """Promote a proposal that is not in production, or take back one that is."""
    proposal = choice.choice(asyncio.run(place.proposals.page(10, None, None)))
    jti = new_id()
    if proposal.state is State.VALIDATED:
        return {
            "what": "promote",
            "id": proposal.proposal_id,
            "etag": proposal.etag,
            "digest": proposal.content_digest,
            "jti": jti,
        }
    last = next(
        p for p in asyncio.run(place.promotions.page(1000, None)) if p.proposal_id == proposal.proposal_id
    )
    return {"what": "rollback", "id": last.promotion_id, "digest": last.digest, "jti": jti}


def work(folder: Path, seed: int) -> None:
    """Promote and roll back for ever."""
    place = Workplace(folder)
    choice = random.Random(seed)
    place.changes.recover()
    while True:
        asked = next_step(place, choice)
        place.note(kind="asked", **asked)
        done = place.do(asked)
        place.note(kind="acknowledged", jti=asked["jti"], promotion=done.promotion_id, digest=done.digest)


def check(folder: Path, baseline: str) -> str:
    """Recover, ask again for what was not acknowledged, check; the phase in which the kill landed."""
    place = Workplace(folder)
    noted = place.noted()
    acknowledged = {entry["jti"]: entry for entry in noted if entry["kind"] == "acknowledged"}
    pending = [entry for entry in noted if entry["kind"] == "asked" and entry["jti"] not in acknowledged]
    phase = phase_of(place, pending[-1]["jti"] if pending else "")
    place.changes.recover()
    assert len(pending) <= 1, "one worker asks for one thing at a time"
    for entry in pending:
        asked = {key: value for key, value in entry.items() if key != "kind"}
        done = place.do(asked)
        again = place.do(asked)
        assert promotion_to_bytes(again) == promotion_to_bytes(done), (
            "the same grant asked again gets the same answer"
        )
        place.note(kind="acknowledged", jti=asked["jti"], promotion=done.promotion_id, digest=done.digest)
    invariants(place, baseline)
    place.changes.close()
    place.db.close()
    place.root.close()
    return phase


def phase_of(place: Workplace, jti: str) -> str:
    if not jti:
        return "between two calls"
    query = sa.select(promotions.c.intent_id, promotions.c.path, promotions.c.digest).where(
        promotions.c.jti == jti
    )
    row = place.db.read_sync(lambda connection: connection.execute(query).one_or_none())
    if row is None:
        return "before the commit"
    state = place.db.read_sync(
        lambda connection: connection.execute(
            sa.select(kit.intents.c.state).where(kit.intents.c.id == row.intent_id)
        ).scalar_one()
    )
    if state == "done":
        return "after the effect"
    path = place.platform / row.path
    now = sha256_hex(path.read_bytes()) if path.exists() else ""
    aside = any(name.startswith(".nightshift-") for name in [entry.name for entry in path.parent.iterdir()])
    if now == row.digest:
        return "file changed, not confirmed"
    return "file half way" if aside else "committed, file not touched"


def invariants(place: Workplace, baseline: str) -> None:
    acknowledged = [entry for entry in place.noted() if entry["kind"] == "acknowledged"]
    stored = {p.promotion_id: p for p in asyncio.run(place.promotions.page(100_000, None))}
    assert set(stored) == {entry["promotion"] for entry in acknowledged}, "nothing lost, nothing twice"
    assert len(stored) == len(acknowledged)
    assert all(stored[entry["promotion"]].digest == entry["digest"] for entry in acknowledged)
    standing = place.db.read_sync(rows.standing)
    for path, digest in standing.items():
        assert sha256_hex((place.platform / path).read_bytes()) == digest, "the file is what the rows say"
    names = {entry.name for entry in (place.platform / INTERCEPTION).iterdir()}
    assert not [name for name in names if name.startswith(".")], "no half files"
    kept = {path: (place.platform / path).read_bytes() for path in standing}
    for path in kept:
        (place.platform / path).unlink()
    assert tree_digest(place.platform) == baseline, "nothing else has changed"
    for path, content in kept.items():
        (place.platform / path).write_bytes(content)
        (place.platform / path).chmod(0o644)
    for proposal in asyncio.run(place.proposals.page(10, None, None)):
        path = f"{INTERCEPTION}/{proposal.config_id}.json"
        assert (proposal.state is State.PROMOTED) == (path in standing)
    events = place.db.read_sync(lambda connection: place.outbox.events(connection, 0, 100_000))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    effects = [event for event in events if event.kind.startswith("config.")]
    assert sorted(e.subject for e in effects) == sorted(f"promotions/{name}" for name in stored)
    assert all(one.hash == other.previous_hash for one, other in itertools.pairwise(events))


def forked(function: Any, *args: Any) -> tuple[int, int]:
    """Run in a child; its process id and the reading end of its answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    try:
        answer = function(*args)
        os.write(writing, json.dumps({"answer": answer}).encode())
        os._exit(0)
    except BaseException:  # noqa: BLE001 - told to the parent, whatever it is
        os.write(writing, json.dumps({"failed": traceback.format_exc()}).encode()[:60_000])
        os._exit(1)


def finished(child: int, reading: int) -> dict[str, Any]:
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(data or b"{}")
    return answer


def setup(folder: Path) -> None:
    place = Workplace(folder)
    place.propose()
    place.changes.close()
    place.db.close()


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill and check; phases by how often a kill landed there, and how many calls were acknowledged."""
    choice = random.Random(seed)
    baseline = tree_digest(folder / "platform")
    told = finished(*forked(setup, folder))
    if "failed" in told:
        return told
    phases: collections.Counter[str] = collections.Counter()
    for number in range(kills):
        before = (folder / "journal.jsonl").stat().st_size if (folder / "journal.jsonl").exists() else 0
        child, reading = forked(work, folder, seed + number)
        # From the first call on, within the time of a few.
        give_up_s = time.monotonic() + 30
        while time.monotonic() < give_up_s:
            if (folder / "journal.jsonl").exists() and (folder / "journal.jsonl").stat().st_size > before:
                break
            time.sleep(0.0005)
        time.sleep(choice.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        told = finished(child, reading)
        if "failed" in told:
            return {"kill": number, **told}
        told = finished(*forked(check, folder, baseline))
        if "failed" in told:
            return {"kill": number, **told}
        phases[told["answer"]] += 1
    entries = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {"phases": phases, "acknowledged": sum(entry["kind"] == "acknowledged" for entry in entries)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
