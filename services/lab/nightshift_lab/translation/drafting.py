"""Drafting missing languages by the model, once: what came back is kept, refused texts included.

A plan that waits for a person must stay the same when it is made again, and a model gives other words each
time. So each text is kept under its config, field and language together with the digest of what it depends on
(source text, model, rules). While that holds, the same draft is given back without asking the model.
"""

from __future__ import annotations

import asyncio
import difflib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from nightshift_kit.audit import Outbox
from nightshift_kit.canonical import digest_json, sha256_hex
from nightshift_kit.clock import Clock
from nightshift_kit.llm import LlmBudget, LlmClient, LlmNotConfigured
from nightshift_kit.storage import Database

from ..catalog import Catalog, ConfigFile
from ..errors import ConfigIdCollision, ConfigNotTranslatable
from ..paths import existing_path
from ..records import KeptText
from ..resources import ConfigName
from ..store import drafts as rows
from .gaps import Gap, Translation, gaps
from .insertion import inserted
from .questions import VERSION, Drafted, complaint, question
from .rules import problem

#: Texts a question: an answer of this many fits into `max_tokens` in every script.
TEXTS_A_QUESTION = 9
#: Questions about the same text: the second one about what was refused the first time.
ROUNDS = 2


@dataclass(frozen=True)
class TranslationDraft:
    """A draft and the bytes that it would make.

    Attributes:
        translations: Texts that passed, in the order in which they are written.
        content: The file with them; b"" without any.
        refused: (field, language, reason) of texts that did not pass.
        cost_usd: Of the questions asked for this answer.
    """

    config_id: str
    base_digest: str
    translations: tuple[Translation, ...]
    content: bytes
    diff: str
    refused: tuple[tuple[str, str, str], ...]
    drafted_by: str
    cost_usd: float

    @property
    def content_digest(self) -> str:
        """SHA-256 (hex) of the bytes that would be written, "" for none."""
        return sha256_hex(self.content) if self.content else ""


class Drafting:
    """Drafts translations.

    Args:
        db: The lab's database.
        catalog: Reads production; blocks.
        llm: The model.
        budget_usd_per_day: What a paid model may cost on a UTC day.
        outbox: The lab's audit outbox: money and the GPU are used.
        clock: Times of the records.
    """

    def __init__(
        self,
        db: Database,
        catalog: Callable[[], Catalog],
        llm: LlmClient,
        budget_usd_per_day: float,
        outbox: Outbox,
        clock: Clock,
    ) -> None:
        self._db = db
        self._catalog = catalog
        self._llm = llm
        self._budget_usd_per_day = budget_usd_per_day
        self._outbox = outbox
        self._clock = clock
        # One question at a time: a local model has one GPU, and the day's budget is looked at before each.
        self._one = asyncio.Lock()

    @property
    def model(self) -> str:
        """The model's name, "" where none is set."""
        return self._llm.settings.model

    async def draft(self, config_id: str, *, redraft: bool, actor: str) -> TranslationDraft:
        """What could be added to a config.

        Args:
            config_id: Which.
            redraft: Forget what is kept.
            actor: Who asks, for the audit.

        Raises:
            ConfigUnknown, ConfigIdInvalid, ConfigIdCollision, ConfigNotTranslatable, PathEscape,
            NotRegularFile, PlatformMissing; where the model has to be asked, LlmError.
        """
        if not self._llm.configured:
            raise LlmNotConfigured("The lab has no language model: set [lab.llm] base_url and model.")
        async with self._one:
            catalog = await asyncio.to_thread(self._catalog)
            file = translatable(catalog, config_id)
            assert file.content is not None
            found = gaps(file.content)
            if redraft:
                await self._db.write(rows.forget, config_id)
            cost = 0.0
            for wanted in await self._wanted(config_id, found):
                cost += await self._ask(config_id, wanted, catalog.safety_words, actor)
            kept = await self._kept(config_id, found)
        return self._made(file, found, kept, cost)

    def _basis(self, gap: Gap) -> str:
        return digest_json([VERSION, self.model, gap.field, gap.source_language, gap.source])

    async def _kept(self, config_id: str, found: Sequence[Gap]) -> dict[tuple[str, str], KeptText]:
        """What is kept and still counts."""
        bases = {gap.field: self._basis(gap) for gap in found}
        kept = await self._db.read(rows.kept, config_id)
        return {key: text for key, text in kept.items() if text.basis == bases.get(text.field)}

    async def _wanted(self, config_id: str, found: Sequence[Gap]) -> list[list[tuple[Gap, str]]]:
        """(gap, language) pairs without a kept text, one question's worth at a time, language by language."""
        kept = await self._kept(config_id, found)
        pairs = [
            (gap, language) for gap in found for language in gap.missing if (gap.field, language) not in kept
        ]
        pairs.sort(key=lambda pair: pair[1])
        return [pairs[at : at + TEXTS_A_QUESTION] for at in range(0, len(pairs), TEXTS_A_QUESTION)]

    async def _ask(
        self,
        config_id: str,
        wanted: Sequence[tuple[Gap, str]],
        safety_words: Mapping[str, frozenset[str]],
        actor: str,
    ) -> float:
        """Asks about some texts until each passed or was refused twice; keeps them. Cost in US dollars."""
        cost = 0.0
        left = list(wanted)
        done: list[KeptText] = []
        for _ in range(ROUNDS):
            answer, spent = await self._question(left)
            cost += spent
            given = {(text.field, text.language): text.text for text in answer.translations}
            refused: list[tuple[Gap, str]] = []
            done = [text for text in done if not text.problem]
            for gap, language in left:
                text = unicodedata.normalize("NFC", given.get((gap.field, language), "")).strip()
                # Half a second of loading and regular expressions: not on the loop that serves calls.
                why = await asyncio.to_thread(problem, gap, language, text, safety_words)
                done.append(KeptText(gap.field, language, self._basis(gap), "" if why else text, why))
                if why:
                    refused.append((gap, language))
            if not refused:
                break
            left = refused
        await self._db.write(self._keep, config_id, done, cost, actor)
        return cost

    async def _question(self, wanted: Sequence[tuple[Gap, str]]) -> tuple[Drafted, float]:
        """One question, paid from the day's budget: the most it can cost is set aside before it is asked."""
        prompt = question(wanted)
        highest = self._llm.highest_cost_usd(prompt)
        day = self._clock.now().date().isoformat()
        if highest:
            await self._db.write(self._set_aside, day, highest)
        told: list[float] = []
        try:
            answer = await self._llm.ask(
                prompt, Drafted, check=lambda drafted: complaint(drafted, wanted), on_cost=told.append
            )
        except asyncio.CancelledError:
            # What a cut-off question costs is not known: all that was set aside stays spent.
            raise
        except BaseException:
            await self._give_back(day, highest - sum(told))
            raise
        await self._give_back(day, highest - answer.cost_usd)
        return answer.value, answer.cost_usd

    def _set_aside(self, connection: sa.Connection, day: str, highest: float) -> None:
        spent = rows.spent_usd(connection, day)
        if spent + highest > self._budget_usd_per_day:
            raise LlmBudget(
                f"The question could cost {highest:.4f} $, and {spent:.4f} $ of today's "
                f"{self._budget_usd_per_day:.4f} $ are spent (llm_budget_usd_per_day).",
                metadata={"day": day},
            )
        rows.spend(connection, day, highest)

    async def _give_back(self, day: str, amount_usd: float) -> None:
        if amount_usd:
            await self._db.write(rows.spend, day, -amount_usd)

    def _keep(
        self, connection: sa.Connection, config_id: str, texts: Sequence[KeptText], cost: float, actor: str
    ) -> None:
        now = self._clock.now()
        for text in texts:
            rows.keep(connection, config_id, text, now)
        self._outbox.append(
            connection,
            kind="translations.drafted",
            actor=actor,
            subject=ConfigName(config_id).name,
            payload={
                "model": self.model,
                "texts": len(texts),
                "refused": sum(bool(text.problem) for text in texts),
                "cost_usd": f"{cost:.6f}",
            },
        )

    def _made(
        self,
        file: ConfigFile,
        found: Sequence[Gap],
        kept: Mapping[tuple[str, str], KeptText],
        cost: float,
    ) -> TranslationDraft:
        texts = [
            kept[gap.field, language]
            for gap in found
            for language in gap.missing
            if (gap.field, language) in kept
        ]
        passed = tuple(Translation(one.field, one.language, one.text) for one in texts if not one.problem)
        content = inserted(file.data, passed) if passed else b""
        return TranslationDraft(
            config_id=file.config_id,
            base_digest=file.digest,
            translations=passed,
            content=content,
            diff=file_diff(file, content) if passed else "",
            refused=tuple((one.field, one.language, one.problem) for one in texts if one.problem),
            drafted_by=f"llm:{self.model}",
            cost_usd=cost,
        )


def translatable(catalog: Catalog, config_id: str) -> ConfigFile:
    """The config, if its file may be changed.

    Raises:
        ConfigIdInvalid, ConfigUnknown; PathEscape, NotRegularFile where the safe files refuse its file;
        ConfigIdCollision where another file claims its id; ConfigNotTranslatable where it cannot be read.
    """
    path = existing_path(config_id)
    file = catalog.get(config_id)
    if file.refusal is not None:
        raise file.refusal
    if file.path != path or file.content is None:
        raise ConfigNotTranslatable(
            f"Config {config_id!r} cannot be read: {file.problem or 'its file name'}."
        )
    rivals = catalog.rivals(file)
    if rivals:
        raise ConfigIdCollision(
            f"{rivals[0]} claims the id {config_id!r}, too; which one counts is not for the lab to say.",
            metadata={"path": rivals[0]},
        )
    return file


def file_diff(file: ConfigFile, content: bytes) -> str:
    """Unified diff of a file's text and what would be written."""
    name = f"{file.config_id}.json"
    before, after = (data.decode().splitlines(keepends=True) for data in (file.data, content))
    return "".join(difflib.unified_diff(before, after, name, name))
