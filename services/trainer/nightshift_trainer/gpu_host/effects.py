"""Unloading and loading, once a grant: looked at, written down, looked at again, done, seen.

    look ▸ intent (transaction) ▸ look again ▸ fence ▸ HTTP call ▸ look ▸ audit event, answer (transaction)

The intent is on disk before the call leaves, so that whoever calls again after a crash or a lost reply finds
it: a model that is gone by then was unloaded, once; one that was used since is left alone; one that lies
there untouched is decided on anew. Nothing goes on by itself after a restart: a call under the fence in
force has to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.errors import FieldInvalid, NightshiftError
from nightshift_kit.grants import Effect
from nightshift_kit.storage import Database
from nightshift_trainer.base_model import megabytes
from nightshift_trainer.errors import (
    EvictionInProgress,
    GpuHostUnavailable,
    ModelUnknown,
    UnloadRefused,
    VramInsufficient,
)
from nightshift_trainer.gpu_host.choosing import IN_USE, USED_MEANWHILE, Choice, Outcome, Spared, choose
from nightshift_trainer.gpu_host.host import GpuHost
from nightshift_trainer.gpu_host.models import HostModel, ModelRef, Reading
from nightshift_trainer.resources import GPU_HOST
from nightshift_trainer.store import gpu_intents
from nightshift_trainer.store.gpu_intents import Intent

# Models that come into use faster than they can be looked at: then none is idle.
_MOST_LOOKS: Final = 5
_LOOK_EACH_S: Final = 0.1


@dataclass(frozen=True)
class Unloaded:
    """What became of a wish to unload."""

    outcome: Outcome
    ref: ModelRef | None
    freed_bytes: int
    used_bytes: int
    spared: tuple[Spared, ...]


@dataclass(frozen=True)
class Loaded:
    """What became of a wish to load."""

    ref: ModelRef
    already_loaded: bool
    vram_bytes: int
    free_bytes: int


class HostEffects:
    """Acts on the GPU host, one call at a time. One event loop owns it."""

    def __init__(
        self,
        *,
        db: Database,
        outbox: Outbox,
        clock: Clock,
        host: GpuHost,
        encode_unloaded: Callable[[Unloaded], bytes],
        encode_loaded: Callable[[Loaded], bytes],
        reserve_bytes: int,
        settle_s: float,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._host = host
        self._encode_unloaded = encode_unloaded
        self._encode_loaded = encode_loaded
        self._reserve_bytes = reserve_bytes
        self._settle_s = settle_s
        self._one_at_a_time = asyncio.Lock()
        self._unbroken: set[asyncio.Task[bytes]] = set()

    async def unload_idle(self, effect: Effect, allowed: Sequence[ModelRef], target_used_bytes: int) -> bytes:
        """Unloads at most one model (see `choose`); answers encoded.

        A call that is stopped after its HTTP call has left ends at once, and what came of it is still
        written down.

        Raises:
            Preempted: a user came before anything was unloaded.
            GpuHostUnconfigured, GpuHostInvalid, UnloadRefused: the host tells nothing, nonsense, or does not.
            GpuHostUnavailable, EvictionInProgress: try again with the same grant.
        """
        return await self._to_its_end(self._unload_idle(effect, allowed, target_used_bytes))

    async def load(self, effect: Effect, ref: ModelRef, vram_bytes: int) -> bytes:
        """Loads a declared model into memory that is free beside the reserve; answers encoded.

        A stop cancels it, with the HTTP call. Raises as unload_idle, and FieldInvalid, ModelUnknown,
        VramInsufficient.
        """
        async with self._one_at_a_time:
            return await self._load(effect, ref, vram_bytes)

    async def close(self, grace_s: float = 5.0) -> None:
        """Lets calls that have left come to their end, for so long; the rest is found by its intent."""
        if self._unbroken:
            await asyncio.wait(self._unbroken, timeout=grace_s)
        for task in self._unbroken:
            task.cancel()
        await asyncio.gather(*self._unbroken, return_exceptions=True)

    async def _unload_idle(self, effect: Effect, allowed: Sequence[ModelRef], target: int) -> bytes:
        async with self._one_at_a_time:
            stored, intent = await self._db.read(_look_up, effect)
            if stored is not None:
                return stored
            reading = await self._settled_reading()
            if intent is not None:
                answer = await self._end_earlier(effect, intent, reading)
                if answer is not None:
                    return answer
            choice = choose(reading, allowed, target)
            for _ in range(_MOST_LOOKS):
                if choice.model is None:
                    return await self._nothing(effect, choice, reading)
                await self._intend(effect, "unload", choice.model.ref, choice.model.mark, reading)
                reading = await self._settled_reading()
                before, choice = choice.model, choose(reading, allowed, target)
                if choice.model is not None and _same_use(before, choice.model):
                    return await self._evict(effect, choice, choice.model, reading)
            return await self._nothing(effect, _none_left(choice), reading)

    async def _evict(self, effect: Effect, choice: Choice, model: HostModel, before: Reading) -> bytes:
        """The call that was decided on. What it came to is told even where a user has come meanwhile."""
        if effect.gate is not None:
            effect.gate.check(effect.grant)
        problem: NightshiftError | None = None
        try:
            await self._host.unload(model.ref)
        except NightshiftError as error:
            # Its reply may be lost, and the model gone: only a look tells.
            problem = error
        after, left = await self._watch_going(model)
        if left is None:
            return await self._unloaded(effect, model.ref, before.used_bytes, after, choice.spared)
        if not _same_use(model, left) or (problem is None and not left.use_known):
            reason = USED_MEANWHILE if left.use_known else IN_USE
            return await self._spared_after_all(effect, model.ref, reason, after, choice.spared)
        if isinstance(problem, GpuHostUnavailable):
            raise problem
        await self._db.write(gpu_intents.remove, effect.grant.jti)
        raise problem or UnloadRefused(
            f"{model.ref.backend} said that it unloaded {model.ref.model}, and it is still there.",
            metadata={"backend": model.ref.backend, "model": model.ref.model},
        )

    async def _end_earlier(self, effect: Effect, intent: Intent, reading: Reading) -> bytes | None:
        """Answer of a call that was decided on before; None where it has to be decided anew."""
        found = _find(reading, intent.ref)
        if found is None:
            return await self._unloaded(effect, intent.ref, intent.used_bytes, reading, ())
        if found.in_use or found.mark != intent.mark:
            return await self._spared_after_all(effect, intent.ref, USED_MEANWHILE, reading, ())
        return None

    async def _watch_going(self, model: HostModel) -> tuple[Reading, HostModel | None]:
        """Looks until the model is gone, was used, or `settle_s` have passed."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._settle_s
        while True:
            reading = await self._host.read()
            left = _find(reading, model.ref)
            if left is None or not _same_use(model, left) or loop.time() >= until_s:
                return reading, left
            await asyncio.sleep(_LOOK_EACH_S)

    async def _unloaded(
        self, effect: Effect, ref: ModelRef, used_before: int, after: Reading, spared: tuple[Spared, ...]
    ) -> bytes:
        freed = max(0, used_before - after.used_bytes)
        answer = Unloaded(Outcome.UNLOADED, ref, freed, after.used_bytes, spared)
        payload = {"freed_bytes": freed, "used_bytes": after.used_bytes}
        return await self._finish(effect, "gpu.model_unloaded", ref, payload, self._encode_unloaded(answer))

    async def _spared_after_all(
        self, effect: Effect, ref: ModelRef, reason: str, after: Reading, spared: tuple[Spared, ...]
    ) -> bytes:
        others = tuple(one for one in spared if one.ref != ref)
        answer = Unloaded(Outcome.NONE_IDLE, None, 0, after.used_bytes, (Spared(ref, reason), *others))
        encoded = self._encode_unloaded(answer)
        return await self._finish(effect, "gpu.model_spared", ref, {"cause": reason}, encoded)

    async def _nothing(self, effect: Effect, choice: Choice, reading: Reading) -> bytes:
        answer = Unloaded(choice.outcome, None, 0, reading.used_bytes, choice.spared)
        payload = {
            "outcome": choice.outcome.value,
            "used_bytes": reading.used_bytes,
            "spared": [
                {"backend": one.ref.backend, "model": one.ref.model, "cause": one.reason}
                for one in choice.spared
            ],
        }
        return await self._finish(
            effect, "gpu.nothing_unloaded", None, payload, self._encode_unloaded(answer), checked=True
        )

    async def _load(self, effect: Effect, ref: ModelRef, vram_bytes: int) -> bytes:
        stored, intent = await self._db.read(_look_up, effect)
        if stored is not None:
            return stored
        if not self._host.declared(ref):
            raise FieldInvalid.at("model", "must be one of the settings' preload_models")
        reading = await self._settled_reading(preloads=True)
        there = _find(reading, ref)
        if there is None:
            needed = self._needed(reading, ref, vram_bytes)
            await self._intend(effect, "load", ref, "", reading)
            if effect.gate is not None:
                effect.gate.check(effect.grant)
            await self._host.load(ref)
            reading = await self._host.read()
            there = reading.find(ref)
            held = needed if there is None else there.vram_bytes
            answer = Loaded(ref, False, held, reading.free_bytes)
        else:
            # With an intent it was this very call that loaded it, and its reply was lost.
            answer = Loaded(ref, intent is None, there.vram_bytes, reading.free_bytes)
        payload = {"vram_bytes": answer.vram_bytes, "free_bytes": answer.free_bytes}
        kind = "gpu.model_was_loaded" if answer.already_loaded else "gpu.model_loaded"
        return await self._finish(effect, kind, ref, payload, self._encode_loaded(answer))

    def _needed(self, reading: Reading, ref: ModelRef, vram_bytes: int) -> int:
        preload = next(one for one in reading.preloads if one.ref == ref)
        if not preload.installed:
            raise ModelUnknown(
                f"{ref.backend} has no model {ref.model}.",
                metadata={"backend": ref.backend, "model": ref.model},
            )
        needed = max(vram_bytes, preload.vram_bytes)
        if needed > reading.free_bytes - self._reserve_bytes:
            raise VramInsufficient(
                f"{ref.model} needs {megabytes(needed)} MiB; {megabytes(reading.free_bytes)} MiB are free, "
                f"and {megabytes(self._reserve_bytes)} MiB of them stay free.",
                metadata={
                    "model": ref.model,
                    "needed_bytes": str(needed),
                    "free_bytes": str(reading.free_bytes),
                    "reserve_bytes": str(self._reserve_bytes),
                },
            )
        return needed

    async def _settled_reading(self, *, preloads: bool = False) -> Reading:
        reading = await self._host.read(preloads=preloads)
        if reading.eviction_in_progress:
            raise EvictionInProgress(
                "The GPU service makes room by itself right now; it is not interfered with.",
                retry_after_s=1.0,
            )
        return reading

    async def _intend(self, effect: Effect, kind: str, ref: ModelRef, mark: str, reading: Reading) -> None:
        intent = Intent(
            jti=effect.grant.jti,
            kind=kind,
            ref=ref,
            mark=mark,
            used_bytes=reading.used_bytes,
            skill_run=effect.grant.skill_run,
            create_time=self._clock.now(),
        )

        def transaction(connection: sa.Connection) -> None:
            effect.begin(connection)
            gpu_intents.put(connection, intent)
            self._record(connection, effect, f"gpu.{kind}_intended", ref, {})

        await self._db.write(transaction)

    async def _finish(
        self,
        effect: Effect,
        kind: str,
        ref: ModelRef | None,
        payload: Mapping[str, object],
        answer: bytes,
        *,
        checked: bool = False,
    ) -> bytes:
        """Ends the intent, writes the audit event and the answer.

        The fence counts where `checked`; not for what has happened already, which is told in any case.
        """

        def transaction(connection: sa.Connection) -> None:
            if checked:
                effect.begin(connection)
            gpu_intents.remove(connection, effect.grant.jti)
            self._record(connection, effect, kind, ref, payload)
            effect.finish(connection, answer)

        await self._db.write(transaction)
        return answer

    def _record(
        self,
        connection: sa.Connection,
        effect: Effect,
        kind: str,
        ref: ModelRef | None,
        payload: Mapping[str, object],
    ) -> None:
        about: dict[str, object] = {} if ref is None else {"backend": ref.backend, "model": ref.model}
        self._outbox.append(
            connection,
            kind=kind,
            actor=effect.actor,
            subject=GPU_HOST,
            payload={**about, **payload, "skill_run": effect.grant.skill_run},
        )

    async def _to_its_end(self, work: Coroutine[Any, Any, bytes]) -> bytes:
        task = asyncio.ensure_future(work)
        self._unbroken.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[bytes]) -> None:
        self._unbroken.discard(task)
        if not task.cancelled():
            # Its caller may have gone; what it had to tell stands in the store.
            task.exception()


def _look_up(connection: sa.Connection, effect: Effect) -> tuple[bytes | None, Intent | None]:
    return effect.begin(connection), gpu_intents.get(connection, effect.grant.jti)


def _find(reading: Reading, ref: ModelRef) -> HostModel | None:
    """A loaded model, None where it is not. Raises GpuHostUnavailable where nobody can tell."""
    for problem in reading.problems:
        if problem.source == ref.backend:
            raise GpuHostUnavailable(problem.message, metadata={"source": problem.source}, retry_after_s=1.0)
    return reading.find(ref)


def _same_use(before: HostModel, now: HostModel) -> bool:
    return before.ref == now.ref and before.mark == now.mark and not now.in_use


def _none_left(choice: Choice) -> Choice:
    spared = choice.spared
    if choice.model is not None:
        spared = (*spared, Spared(choice.model.ref, USED_MEANWHILE))
    return Choice(None, Outcome.NONE_IDLE, spared)
