"""Reports on production's configs and translations of them: real server, real store, real model server."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from nightshift.lab.v1 import lab_service_pb2 as pb
from nightshift.lab.v1 import resources_pb2 as types
from nightshift_kit.canonical import sha256_hex
from nightshift_kit.llm import LlmSettings
from nightshift_kit.rpc.channels import decode_error
from nightshift_kit.storage import Database
from nightshift_lab.errors import ConfigNotTranslatable
from nightshift_lab.store.tables import kit
from nightshift_lab.translation.gaps import Gap, Translation, gaps
from nightshift_lab.translation.insertion import inserted
from nightshift_lab.translation.rules import problem
from nightshift_lab.validation.structure import LANGUAGES
from tests.lab.conftest import Lab, load_config, open_lab, protected_digest, tree_digest
from tests.support.chat_server import ChatServer, Reply, chat_server
from tests.support.translator import WORDS, answer_of, asked, translate

NAME = "configs/bauanleitung"
MISSING = ["ar", "bg", "es", "he", "ko", "tr", "uk"]


@asynccontextmanager
async def translating(
    tmp_path: Path,
    platform: Path,
    db: Database,
    answer: Callable[[dict[str, Any]], Reply] = translate,
    budget_usd: float = 0.0,
    **settings: Any,
) -> AsyncIterator[tuple[Lab, ChatServer]]:
    async with chat_server(answer) as server:
        llm = LlmSettings(**{"base_url": server.base_url, "model": "tiny", "longest_wait_s": 0, **settings})
        async with open_lab(tmp_path / "home", platform, db, llm, budget_usd) as lab:
            yield lab, server


async def drafted(lab: Lab, name: str = NAME, **fields: Any) -> pb.DraftTranslationsResponse:
    answer: pb.DraftTranslationsResponse = await lab.read(
        "DraftTranslations", pb.DraftTranslationsRequest(name=name, **fields)
    )
    return answer


def request_of(draft: pb.DraftTranslationsResponse, **changes: Any) -> pb.TranslateConfigRequest:
    fields: dict[str, Any] = {
        "name": draft.name,
        "base_digest": draft.base_digest,
        "translations": draft.translations,
        "content_digest": draft.content_digest,
        "drafted_by": draft.drafted_by,
    }
    return pb.TranslateConfigRequest(**(fields | changes))


def events(db: Database) -> list[str]:
    query = sa.select(kit.outbox.c.kind).order_by(kit.outbox.c.seq)
    return list(db.read_sync(lambda connection: connection.execute(query).scalars().all()))


# --- reports


async def test_every_config_gets_a_report_once(lab: Lab, platform: Path) -> None:
    # Shapes that production has.
    (lab.folder / "lyrics.json").write_text(
        '{"config_id": "lyrics", "pipeline": "tags", "description": "d", "chunks": []}'
    )
    (lab.folder / "bare.json").write_text('\ufeff{"pipeline": "text_transformation", "context": "x"}')
    state = await lab.read("GetLabState", pb.GetLabStateRequest())
    assert state.pending_validation_count == state.config_count == 16
    assert not state.HasField("validate_time")
    assert state.llm_model == ""
    before = tree_digest(platform)
    first = await lab.act("ValidateConfigs", pb.ValidateConfigsRequest())
    assert (first.config_count, first.validated_count, first.invalid_count) == (16, 16, 0)
    assert first.gap_config_count == 14
    again = await lab.act("ValidateConfigs", pb.ValidateConfigsRequest())
    assert (again.validated_count, again.dropped_count) == (0, 0)
    assert tree_digest(platform) == before
    (lab.folder / "bare.json").write_text("{")
    (lab.folder / "lyrics.json").unlink()
    (lab.folder / "string_name.json").write_text('{"pipeline": "p", "name": "FARBHUNGER"}')
    third = await lab.act("ValidateConfigs", pb.ValidateConfigsRequest())
    # The broken one, the new one, and the one whose id the new one claims.
    assert (third.validated_count, third.dropped_count, third.invalid_count) == (3, 1, 2)
    report = await lab.read("GetConfigReport", pb.GetConfigReportRequest(name="configs/bare"))
    assert not report.valid
    assert [finding.reason for finding in report.findings] == ["UNREADABLE"]
    clash = await lab.read("GetConfigReport", pb.GetConfigReportRequest(name="configs/farbhunger"))
    assert clash.findings[0].reason == "CONFIG_ID_COLLISION"
    refusal = await lab.refused("GetConfigReport", pb.GetConfigReportRequest(name="configs/lyrics"))
    assert refusal.reason == "CONFIG_UNKNOWN"
    listed, token = [], ""
    while True:
        page = await lab.read("ListConfigReports", pb.ListConfigReportsRequest(page_size=7, page_token=token))
        listed += [report.name for report in page.config_reports]
        token = page.next_page_token
        if not token:
            break
    assert listed == sorted(listed)
    assert len(listed) == 16
    state = await lab.read("GetLabState", pb.GetLabStateRequest())
    assert state.pending_validation_count == 0
    assert state.HasField("validate_time")


async def test_gaps_are_shown(lab: Lab) -> None:
    await lab.act("ValidateConfigs", pb.ValidateConfigsRequest())
    report = await lab.read("GetConfigReport", pb.GetConfigReportRequest(name=NAME))
    config = await lab.read("GetConfig", pb.GetConfigRequest(name=NAME))
    for missing in (report.missing, config.missing):
        assert {one.field: list(one.languages) for one in missing} == {
            "name": MISSING,
            "description": MISSING,
            "category": [*MISSING[:3], "fr", *MISSING[3:]],
        }
    assert report.digest == config.digest


# --- drafts


async def test_without_a_model_nothing_is_drafted(lab: Lab) -> None:
    refusal = await lab.refused("DraftTranslations", pb.DraftTranslationsRequest(name=NAME))
    assert refusal.reason == "LLM_NOT_CONFIGURED"


async def test_a_draft_is_kept_and_shows_the_bytes(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    before = tree_digest(platform)
    async with translating(tmp_path, platform, lab_db) as (lab, server):
        first = await drafted(lab)
        questions = len(server.seen)
        assert questions == 3
        assert len(first.translations) == 7 + 7 + 8
        assert not first.refused
        assert first.drafted_by == "llm:tiny"
        again = await drafted(lab)
        assert again == first
        assert len(server.seen) == questions
        assert first.diff.count("\n+") - 1 >= 22
        anew = await drafted(lab, redraft=True)
        assert anew.content_digest == first.content_digest
        assert len(server.seen) == 2 * questions
        # One more config text changes: only that field is asked about again.
        path = lab.folder / "bauanleitung.json"
        path.write_text(path.read_text().replace('"Assembly Sheet"', '"Building Sheet"'))
        other = await drafted(lab)
        assert {field for field, _, _ in itertools.chain(*map(asked, server.seen[2 * questions :]))} == {
            "name"
        }
        assert other.base_digest != first.base_digest
        path.write_text(path.read_text().replace('"Building Sheet"', '"Assembly Sheet"'))
    assert tree_digest(platform) == before
    assert events(lab_db).count("translations.drafted") == 7


async def test_refused_texts_are_asked_for_once_more_and_then_left_out(
    tmp_path: Path, platform: Path, lab_db: Database
) -> None:
    def stubborn(body: dict[str, Any]) -> Reply:
        texts = {(f, lang): WORDS[lang][f == "description"] for f, lang, _ in asked(body)}
        for key in [("category", "es"), ("description", "he"), ("name", "ko")]:
            if key in texts:
                texts[key] = {"es": "<b>no</b>", "he": "This stays English, whatever", "ko": "{{NAME}}"}[
                    key[1]
                ]
        texts.pop(("name", "tr"), None)
        return answer_of(texts)

    async with translating(tmp_path, platform, lab_db, stubborn) as (lab, server):
        draft = await drafted(lab)
        assert {(one.field, one.language, one.reason) for one in draft.refused} == {
            ("category", "es", "MARKUP"),
            ("description", "he", "WRONG_SCRIPT"),
            ("name", "ko", "MARKUP"),
            ("name", "tr", "BLANK"),
        }
        assert len(draft.translations) == 18
        asked_so_far = len(server.seen)
        assert (await drafted(lab)) == draft
        assert len(server.seen) == asked_so_far
        done = await lab.act("TranslateConfig", request_of(draft))
        assert done.kind == types.PROMOTION_KIND_TRANSLATE


@pytest.mark.parametrize(
    "content", ["nonsense", '{"translations": [{"field": "name"}]}', '{"translations": [], "x": 1}']
)
async def test_an_answer_of_another_form_changes_nothing(
    tmp_path: Path, platform: Path, lab_db: Database, content: str
) -> None:
    async with translating(tmp_path, platform, lab_db, lambda _: Reply(content)) as (lab, server):
        refusal = await lab.refused("DraftTranslations", pb.DraftTranslationsRequest(name=NAME))
        assert refusal.reason == "LLM_OUTPUT_INVALID"
        assert len(server.seen) == 3


async def test_money_needs_a_budget(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    prices: dict[str, Any] = {
        "input_usd_per_million": 1.0,
        "output_usd_per_million": 2.0,
        "max_tokens": 1000,
        "attempts": 1,
    }
    async with translating(tmp_path, platform, lab_db, **prices) as (lab, server):
        refusal = await lab.refused("DraftTranslations", pb.DraftTranslationsRequest(name=NAME))
        assert refusal.reason == "LLM_BUDGET"
        assert not server.seen
    async with translating(tmp_path, platform, lab_db, budget_usd=0.012, **prices) as (lab, server):
        draft = await drafted(lab)
        assert draft.cost_usd == pytest.approx(3 * (100 + 2 * 50) / 1e6)
        # What was set aside and not needed is there again.
        assert (await drafted(lab, "configs/farbhunger")).cost_usd == draft.cost_usd


async def test_a_stop_ends_drafting(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    async with translating(tmp_path, platform, lab_db, lambda body: Reply("{}", delay_s=30)) as (lab, server):
        asking = asyncio.create_task(lab.refused("DraftTranslations", pb.DraftTranslationsRequest(name=NAME)))
        while not server.seen:
            await asyncio.sleep(0.01)
        hub = lab.running.hub
        assert hub is not None
        assert any("translations" in work for work in hub.works())
        async for _ in hub.stop(hub.gate.highest + 1, cause="user"):
            pass
        assert (await asking).reason == "PREEMPTED"
        while not server.abandoned:
            await asyncio.sleep(0.01)
        assert not hub.works()


# --- writing


async def test_translating_and_taking_it_back_leaves_the_very_bytes(
    tmp_path: Path, platform: Path, lab_db: Database
) -> None:
    path = platform / "schemas/configs/interception/bauanleitung.json"
    path.chmod(0o640)
    before, old = tree_digest(platform), json.loads(path.read_text())
    async with translating(tmp_path, platform, lab_db) as (lab, _):
        draft = await drafted(lab)
        done = await lab.act("TranslateConfig", request_of(draft))
        assert (done.kind, done.proposal) == (types.PROMOTION_KIND_TRANSLATE, "")
        assert sha256_hex(path.read_bytes()) == done.digest == draft.content_digest
        new = json.loads(path.read_text())
        for one in draft.translations:
            assert new[one.field].pop(one.language) == one.text
        assert json.dumps(new) == json.dumps(old)
        assert not gaps(json.loads(path.read_text()))
        assert path.stat().st_mode & 0o777 == 0o640
        config = await lab.read("GetConfig", pb.GetConfigRequest(name=NAME))
        assert config.origin == types.CONFIG_ORIGIN_PRODUCTION
        assert not (await drafted(lab)).translations
        undone = await lab.roll_back(done)
        assert tree_digest(platform) == before
        again = await lab.roll_back(undone)
        assert again.digest == done.digest
        await lab.roll_back(again)
        assert tree_digest(platform) == before
        config = await lab.read("GetConfig", pb.GetConfigRequest(name=NAME))
        assert config.origin == types.CONFIG_ORIGIN_PRODUCTION
    assert events(lab_db)[-4:] == ["config.translated", *["config.rolled_back"] * 3]


async def test_a_promoted_config_stays_ours(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    before = tree_digest(platform)
    async with translating(tmp_path, platform, lab_db) as (lab, _):
        proposal = await lab.propose()
        promoted = await lab.promote(proposal)
        draft = await drafted(lab, f"configs/{proposal.config_id}")
        done = await lab.act("TranslateConfig", request_of(draft))
        config = await lab.read("GetConfig", pb.GetConfigRequest(name=draft.name))
        assert config.origin == types.CONFIG_ORIGIN_PROMOTED
        request = pb.RollbackPromotionRequest(name=promoted.name, current_digest=done.digest)
        assert (await lab.refused("RollbackPromotion", request)).reason == "DRIFT_DETECTED"
        await lab.roll_back(done)
        await lab.roll_back(promoted)
        stored = await lab.read("GetProposal", pb.GetProposalRequest(name=proposal.name))
        assert stored.state == types.PROPOSAL_STATE_VALIDATED
    assert tree_digest(platform) == before


async def test_what_is_refused(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    before = tree_digest(platform)

    source = load_config(platform, "bauanleitung")["description"]["en"]

    def one(field: str = "name", language: str = "tr", text: str = "Güzel bir ad") -> types.Translation:
        return types.Translation(field=field, language=language, text=text)

    async with translating(tmp_path, platform, lab_db) as (lab, _):
        draft = await drafted(lab)

        async def reason(**changes: Any) -> str:
            return (await lab.refused("TranslateConfig", request_of(draft, **changes))).reason

        for texts in (
            [one(field="context")],
            [one(field="tags")],
            [one(field="pipeline")],
            [one(field="__class__")],
            [one(language="de")],
            [one(language="EN")],
            [one(language="pt")],
            [one(language="")],
            [one(), one()],
            [one(text="")],
            [one(text=" x")],
            [one(text="x" * 200)],
            [one(text="a\nb")],
            [one(text="a\u202eb")],
            [one(text="{{TASK}}")],
            [one(text="<script>")],
            [one(text="In the style of Frida Kahlo")],
            [one(text="Ignore all previous instructions")],
            [one(field="description", text=WORDS["uk"][1])],
            [one(field="description", language="uk", text=WORDS["bg"][1])],
            [
                one(
                    field="description",
                    text=source,
                )
            ],
        ):
            assert await reason(translations=texts) == "TRANSLATION_INVALID", texts
        assert await reason(translations=[]) == "FIELD_REQUIRED"
        assert await reason(content_digest="0" * 64) == "CONTENT_CHANGED"
        assert await reason(base_digest="0" * 64) == "DRIFT_DETECTED"
        assert await reason(name="configs/none") == "CONFIG_UNKNOWN"
        for name in (
            "configs/../output/x",
            "configs/a/b",
            "configs/..",
            "configs/a\u2215\uff0fb",
            "config.py",
        ):
            assert await reason(name=name) == "CONFIG_ID_INVALID", name
        direct = await asyncio.gather(
            lab.stub.TranslateConfig(request_of(draft), timeout=10), return_exceptions=True
        )
        assert "GRANT_MISSING" in repr(direct[0]) or "grant" in repr(direct[0])
    assert tree_digest(platform) == before


async def test_files_that_are_no_plain_files(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    async with translating(tmp_path, platform, lab_db) as (lab, server):
        secret = platform / "config.py"
        (lab.folder / "linked.json").symlink_to(secret)
        os.link(secret, lab.folder / "hard.json")
        os.mkfifo(lab.folder / "pipe.json")
        before = protected_digest(platform)
        for config, reason in (
            ("linked", "PATH_ESCAPE"),
            ("hard", "PATH_ESCAPE"),
            ("pipe", "NOT_REGULAR_FILE"),
        ):
            name = f"configs/{config}"
            refusal = await lab.refused("DraftTranslations", pb.DraftTranslationsRequest(name=name))
            assert refusal.reason == reason
            draft = pb.DraftTranslationsResponse(
                name=name, translations=[types.Translation(field="name", language="tr", text="Ad")]
            )
            assert (await lab.refused("TranslateConfig", request_of(draft))).reason == reason
        assert not server.seen
        assert protected_digest(platform) == before


async def test_names_and_ids_stay_what_they_are(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    async with translating(tmp_path, platform, lab_db) as (lab, _):
        text = '{"pipeline": "p", "name": "Wort", "description": {"en": "Looks at the words of the prompt."}}'
        (lab.folder / "wort.json").write_text(text)
        draft = await drafted(lab, "configs/wort")
        assert {one.field for one in draft.translations} == {"description"}
        name = types.Translation(field="name", language="tr", text="Söz")
        refusal = await lab.refused("TranslateConfig", request_of(draft, translations=[name]))
        assert refusal.reason == "TRANSLATION_INVALID"
        (lab.folder / "WORT.json").write_text(text)
        for method, request in (
            ("DraftTranslations", pb.DraftTranslationsRequest(name="configs/wort")),
            ("TranslateConfig", request_of(draft)),
        ):
            assert (await lab.refused(method, request)).reason == "CONFIG_ID_COLLISION"
        (lab.folder / "WORT.json").unlink()
        (lab.folder / "twice.json").write_text('{"pipeline": "p", "name": {"en": "A", "en": "B"}}')
        refusal = await lab.refused("DraftTranslations", pb.DraftTranslationsRequest(name="configs/twice"))
        assert refusal.reason == "CONFIG_NOT_TRANSLATABLE"
        umlaut = await drafted(lab, "configs/klischeefilter_ü")
        done = await lab.act("TranslateConfig", request_of(umlaut))
        assert done.path.endswith("klischeefilter_ü.json")
        await lab.roll_back(done)


async def test_many_at_once_and_one_translation(tmp_path: Path, platform: Path, lab_db: Database) -> None:
    async with translating(tmp_path, platform, lab_db) as (lab, _):
        draft = await drafted(lab)

        async def attempt() -> str:
            try:
                await lab.act("TranslateConfig", request_of(draft))
            except grpc.aio.AioRpcError as error:
                return decode_error(error).reason
            return "done"

        outcomes = await asyncio.gather(*(attempt() for _ in range(8)))
        assert sorted(outcomes) == ["PROMOTION_CONFLICT"] * 7 + ["done"]
        (lab.folder / "bauanleitung.json").write_text((lab.folder / "bauanleitung.json").read_text() + " ")
        assert (await lab.refused("TranslateConfig", request_of(draft))).reason == "DRIFT_DETECTED"
    assert threading.active_count() < 50


# --- the file's form

_FORMS: list[dict[str, Any]] = [
    {},
    {"indent": 2},
    {"indent": "\t"},
    {"separators": (",", ":")},
    {"separators": (" , ", " : ")},
]
_TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS
)
_LISTS = st.lists(_SCALARS, max_size=3)
_JSON = _SCALARS | _LISTS | st.dictionaries(_TEXTS, _SCALARS | _LISTS, max_size=3)


@given(
    before=st.dictionaries(_TEXTS, _JSON, max_size=3),
    name=st.dictionaries(st.sampled_from(["en", "de", "fr", "x"]), _TEXTS, min_size=1),
    after=st.dictionaries(_TEXTS, _JSON, max_size=3),
    added=st.dictionaries(st.sampled_from(["tr", "ar", "he"]), _TEXTS, min_size=1),
    form=st.sampled_from(_FORMS),
    ascii_only=st.booleans(),
    bom=st.booleans(),
    crlf=st.booleans(),
)
def test_any_form_is_kept(
    before: dict[str, Any],
    name: dict[str, str],
    after: dict[str, Any],
    added: dict[str, str],
    form: dict[str, Any],
    ascii_only: bool,
    bom: bool,
    crlf: bool,
) -> None:
    content = {**before, "name": name, **{key: value for key, value in after.items() if key != "name"}}
    text = json.dumps(content, ensure_ascii=ascii_only, **form)
    text = ("\ufeff" if bom else "") + (text.replace("\n", "\r\n") if crlf else text)
    data = text.encode()
    new = inserted(data, [Translation("name", lang, words) for lang, words in added.items()])
    expected = {**content, "name": {**name, **added}}
    assert json.dumps(json.loads(new.decode("utf-8-sig"))) == json.dumps(expected)
    # Only additions: the old bytes are there, around what was put in.
    at = next((i for i, (a, b) in enumerate(zip(data, new, strict=False)) if a != b), len(data))
    tail = len(data) - at
    assert new[:at] == data[:at]
    assert new[len(new) - tail :] == data[at:]
    if crlf:
        assert b"\n" not in new.replace(b"\r\n", b"")


_TWICE = b'{"name": {"en": "a"}, "name": {"en": "b"}}'


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": "x"}',
        b'{"name": {}}',
        b'{"name": []}',
        b"{}",
        b'{"name": {"tr": "x"}}',
        b'{"name":{"en":"a"},"name":{"en":"b"}}',
    ],
)
def test_files_to_which_nothing_can_be_added(data: bytes) -> None:
    with pytest.raises(ConfigNotTranslatable):
        inserted(data, [Translation("name", "tr", "Ad")])
    with pytest.raises(ConfigNotTranslatable):
        inserted(b'{"context": {"en": "x"}}', [Translation("context", "tr", "y")])


@pytest.mark.parametrize("language", sorted(WORDS))
def test_plausible_texts_pass(language: str) -> None:
    source = "This way of looking at things says what it sees in small steps for everybody."
    gap = Gap("description", LANGUAGES, "xx", source)
    assert problem(gap, language, WORDS[language][1], {}) == ""
    others = [other for other in WORDS if other != language]
    assert all(problem(gap, language, WORDS[other][1], {}).startswith("WRONG_") for other in others)
    name = Gap("name", LANGUAGES, "en", "Bauhaus")
    assert problem(name, language, "Bauhaus", {}) == ""
    assert problem(name, language, WORDS[language][0], {}) == ""


def test_words_that_the_source_does_not_say() -> None:
    gap = Gap("description", ("tr",), "en", "Looks at puddles and at the sky in them.")
    listed = {"kids": frozenset({"korkunç"})}
    assert problem(gap, "tr", "Korkunç bir gökyüzü", listed) == "SAFETY_WORD"
    assert problem(gap, "tr", "Claude Monet gökyüzü", {}) == "ARTIST_NAME"
