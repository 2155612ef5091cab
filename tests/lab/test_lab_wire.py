"""The lab over the wire: list, draft, validate, propose, diff, reject, promote, roll back."""

from __future__ import annotations

import asyncio
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.lab.v1 import lab_service_pb2 as pb
from nightshift.lab.v1 import resources_pb2
from nightshift.skills.v1 import control_service_pb2 as control_pb
from nightshift.skills.v1 import control_service_pb2_grpc as control_grpc
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import decode_error
from tests.lab.conftest import INTERCEPTION, Lab, content_of, load_config, protected_digest, tree_digest


async def outbox(lab: Lab) -> list[Any]:
    stub = lab.running.stub(control_grpc.OutboxServiceStub, "service/skills", control=True)
    answer = await stub.ListOutboxEvents(control_pb.ListOutboxEventsRequest(), timeout=5)
    return list(answer.outbox_events)


async def test_configs_are_listed_by_pages_and_got_one_by_one(lab: Lab) -> None:
    (lab.folder / "broken.json").write_text('{"pipeline": ')
    (lab.folder / "bom.json").write_bytes(b"\xef\xbb\xbf" + b'{"pipeline": "text_transformation"}')
    ids, token = [], ""
    for _ in range(10):
        page = await lab.read("ListConfigs", pb.ListConfigsRequest(page_size=5, page_token=token))
        ids += [config.name for config in page.configs]
        token = page.next_page_token
        if not token:
            break
    stems = sorted(f"configs/{path.name[:-5]}" for path in lab.folder.glob("*.json"))
    assert ids == stems
    assert len(stems) == 16

    for stem in ("zoomkette", "klischeefilter_ü", "bom"):
        config = await lab.read("GetConfig", pb.GetConfigRequest(name=f"configs/{stem}"))
        data = (lab.folder / f"{stem}.json").read_bytes()
        assert config.digest == hashlib.sha256(data).hexdigest()
        assert content_of(config.content) == json.loads(data.decode("utf-8-sig"))
        assert config.path == f"{INTERCEPTION}/{stem}.json"
        assert config.origin == resources_pb2.CONFIG_ORIGIN_PRODUCTION
        assert config.problem == ""
    broken = await lab.read("GetConfig", pb.GetConfigRequest(name="configs/broken"))
    assert "not JSON" in broken.problem
    assert not broken.HasField("content")


async def test_large_configs_come_in_smaller_pages(lab: Lab) -> None:
    for number in range(8):
        (lab.folder / f"large_{number}.json").write_text(json.dumps({"pipeline": "x", "text": "y" * 900_000}))
    ids: list[str] = []
    token = ""
    while True:
        page = await lab.read("ListConfigs", pb.ListConfigsRequest(page_size=1000, page_token=token))
        ids += [config.name for config in page.configs]
        token = page.next_page_token
        if not token:
            break
    assert ids == sorted(f"configs/{path.name[:-5]}" for path in lab.folder.glob("*.json"))


async def test_a_draft_is_valid_stable_and_stores_nothing(lab: Lab) -> None:
    before = tree_digest(lab.root)
    request = pb.DraftProposalRequest(
        opportunity="projects/p/opportunities/o",
        theme="wet paint",
        keywords=["drip", "brush", "Pfütze"],
        nearest_configs=["farbhunger", "configs/materialprobe", "gone"],
    )
    first, second = await lab.read("DraftProposal", request), await lab.read("DraftProposal", request)
    assert first == second
    assert first.report.valid
    assert not first.report.findings
    assert first.drafted_by == "composer"
    assert list(first.templates[:2]) == ["configs/farbhunger", "configs/materialprobe"]
    assert len(first.templates) == 3
    assert first.report.nearest_similarity < 0.8
    assert first.diff.startswith("--- ")
    assert not (await lab.read("ListProposals", pb.ListProposalsRequest())).proposals
    assert tree_digest(lab.root) == before

    (lab.folder / f"{first.config_id}.json").write_text('{"pipeline": "text_transformation"}')
    third = await lab.read("DraftProposal", request)
    assert third.config_id == f"{first.config_id}_2"


async def test_the_whole_way_of_a_proposal(lab: Lab) -> None:
    before, protected = tree_digest(lab.root), protected_digest(lab.root)
    proposal = await lab.propose()
    assert proposal.state == resources_pb2.PROPOSAL_STATE_VALIDATED
    assert proposal.report.valid
    assert tree_digest(lab.root) == before

    diff = await lab.read("DiffProposal", pb.DiffProposalRequest(name=proposal.name))
    assert diff.config == proposal.report.nearest_config
    assert f"+++ {proposal.config_id}.json" in diff.diff
    named = await lab.read(
        "DiffProposal", pb.DiffProposalRequest(name=proposal.name, config="configs/zoomkette")
    )
    assert named.config == "configs/zoomkette"

    promotion = await lab.promote(proposal)
    path = lab.root / promotion.path
    data = path.read_bytes()
    assert promotion.path == f"{INTERCEPTION}/{proposal.config_id}.json"
    assert promotion.digest == proposal.content_digest == hashlib.sha256(data).hexdigest()
    assert promotion.kind == resources_pb2.PROMOTION_KIND_PROMOTE
    assert promotion.proposal == proposal.name
    assert promotion.actor == "person/admin/tester"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert json.loads(data) == content_of(proposal.content)
    assert data.endswith(b"}\n")
    assert b'\n  "pipeline"' in data
    assert "“".encode() in data, "written as UTF-8, not escaped"
    assert list(json.loads(data))[:3] == ["pipeline", "instruction_type", "name"]
    assert protected_digest(lab.root) == protected
    assert not [path for path in lab.folder.iterdir() if path.name.startswith(".")]

    promoted = await lab.read("GetProposal", pb.GetProposalRequest(name=proposal.name))
    assert promoted.state == resources_pb2.PROPOSAL_STATE_PROMOTED
    assert promoted.etag != proposal.etag
    config = await lab.read("GetConfig", pb.GetConfigRequest(name=f"configs/{proposal.config_id}"))
    assert config.origin == resources_pb2.CONFIG_ORIGIN_PROMOTED

    undone = await lab.roll_back(promotion)
    assert undone.kind == resources_pb2.PROMOTION_KIND_ROLLBACK
    assert (undone.previous_digest, undone.digest) == (promotion.digest, "")
    assert undone.rolls_back == promotion.name
    assert undone.proposal == ""
    assert tree_digest(lab.root) == before
    again = await lab.read("GetPromotion", pb.GetPromotionRequest(name=promotion.name))
    assert again.rolled_back_by == undone.name
    back = await lab.read("GetProposal", pb.GetProposalRequest(name=proposal.name))
    assert back.state == resources_pb2.PROPOSAL_STATE_VALIDATED

    restored = await lab.roll_back(undone)
    assert restored.digest == promotion.digest
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    final = await lab.roll_back(restored)
    assert tree_digest(lab.root) == before
    listed = await lab.read("ListPromotions", pb.ListPromotionsRequest(page_size=3))
    assert [p.name for p in listed.promotions] == [final.name, restored.name, undone.name]
    rest = await lab.read(
        "ListPromotions", pb.ListPromotionsRequest(page_size=3, page_token=listed.next_page_token)
    )
    assert [p.name for p in rest.promotions] == [promotion.name]
    assert not rest.next_page_token

    kinds = [event.kind for event in await outbox(lab)]
    assert kinds == ["proposal.created", "config.promoted", *["config.rolled_back"] * 3]


async def test_a_promotion_can_be_made_again_after_its_rollback(lab: Lab) -> None:
    proposal = await lab.propose()
    await lab.roll_back(await lab.promote(proposal))
    fresh = await lab.read("GetProposal", pb.GetProposalRequest(name=proposal.name))
    promotion = await lab.promote(fresh)
    assert (lab.root / promotion.path).exists()


async def test_what_was_edited_by_hand_is_left_alone(lab: Lab) -> None:
    promotion = await lab.promote(await lab.propose())
    path = lab.root / promotion.path
    path.write_text(path.read_text().replace("“", "”", 1))
    edited = tree_digest(lab.root)
    for seen in (promotion.digest, hashlib.sha256(path.read_bytes()).hexdigest()):
        request = pb.RollbackPromotionRequest(name=promotion.name, current_digest=seen)
        error = await lab.refused("RollbackPromotion", request)
        assert error.reason == "DRIFT_DETECTED"
    path.unlink()
    request = pb.RollbackPromotionRequest(name=promotion.name, current_digest=promotion.digest)
    assert (await lab.refused("RollbackPromotion", request)).reason == "DRIFT_DETECTED"
    assert edited != tree_digest(lab.root)


async def test_a_config_edited_by_hand_is_no_longer_ours(lab: Lab) -> None:
    promotion = await lab.promote(await lab.propose())
    path = lab.root / promotion.path
    path.write_text(path.read_text() + "\n")
    config = await lab.read("GetConfig", pb.GetConfigRequest(name=f"configs/{promotion.config_id}"))
    assert config.origin == resources_pb2.CONFIG_ORIGIN_PRODUCTION


async def test_a_retry_gets_the_stored_answer(lab: Lab) -> None:
    proposal = await lab.propose()
    request = lab.promotion_of(proposal)
    jti = new_id()
    first = await lab.act("PromoteProposal", request, jti=jti)
    second = await lab.act("PromoteProposal", request, jti=jti)
    assert first == second
    assert [e.kind for e in await outbox(lab)] == ["proposal.created", "config.promoted"]
    rollback = pb.RollbackPromotionRequest(name=first.name, current_digest=first.digest)
    jti = new_id()
    undone = await lab.act("RollbackPromotion", rollback, jti=jti)
    assert await lab.act("RollbackPromotion", rollback, jti=jti) == undone

    made = await lab.draft("second theme")
    create = pb.CreateProposalRequest(config_id=made.config_id, content=made.content)
    jti = new_id()
    stored = await lab.act("CreateProposal", create, jti=jti)
    assert await lab.act("CreateProposal", create, jti=jti) == stored
    reject = pb.RejectProposalRequest(name=stored.name, etag=stored.etag, comment="not this one")
    jti = new_id()
    rejected = await lab.act("RejectProposal", reject, jti=jti)
    assert rejected.state == resources_pb2.PROPOSAL_STATE_REJECTED
    assert rejected.comment == "not this one"
    assert await lab.act("RejectProposal", reject, jti=jti) == rejected


async def test_fifty_promote_at_once_and_one_does(lab: Lab) -> None:
    proposal = await lab.propose()
    request = lab.promotion_of(proposal)
    answers = await asyncio.gather(
        *(lab.act("PromoteProposal", request) for _ in range(50)), return_exceptions=True
    )
    done = [answer for answer in answers if not isinstance(answer, BaseException)]
    reasons = {decode_error(a).reason for a in answers if isinstance(a, grpc.aio.AioRpcError)}
    assert len(done) == 1
    assert reasons == {"PROMOTION_CONFLICT"}
    assert hashlib.sha256((lab.root / done[0].path).read_bytes()).hexdigest() == proposal.content_digest
    assert len((await lab.read("ListPromotions", pb.ListPromotionsRequest())).promotions) == 1
    assert [e.kind for e in await outbox(lab)].count("config.promoted") == 1


async def test_different_proposals_promote_at_once(lab: Lab) -> None:
    proposals = [
        await lab.propose(f"theme number {word}") for word in ("one", "two", "three", "four", "five")
    ]
    done = await asyncio.gather(*(lab.promote(proposal) for proposal in proposals))
    for promotion in done:
        data = (lab.root / promotion.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == promotion.digest


async def test_the_same_rollback_twice_at_once(lab: Lab) -> None:
    promotion = await lab.promote(await lab.propose())
    request = pb.RollbackPromotionRequest(name=promotion.name, current_digest=promotion.digest)
    answers = await asyncio.gather(
        *(lab.act("RollbackPromotion", request) for _ in range(8)), return_exceptions=True
    )
    reasons = {decode_error(a).reason for a in answers if isinstance(a, grpc.aio.AioRpcError)}
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    assert reasons == {"ALREADY_ROLLED_BACK"}


async def test_invalid_content_is_stored_as_a_draft_with_everything_found(lab: Lab) -> None:
    made = await lab.draft()
    content = content_of(made.content)
    content["meta"]["skip_stage2"] = True
    content["parameters"]["TASK_INSTRUCTION"] = "do as I say"
    content["context"]["en"] += " Paint it in the style of Vincent van Gogh."
    request = pb.CreateProposalRequest(config_id="lantern_draft")
    request.content.update(content)
    proposal = await lab.act("CreateProposal", request)
    assert proposal.state == resources_pb2.PROPOSAL_STATE_DRAFT
    assert not proposal.report.valid
    reasons = {finding.reason for finding in proposal.report.findings}
    assert {"META_FORBIDDEN", "PARAMETER_FORBIDDEN", "STYLE_IMITATION", "ARTIST_NAME"} <= reasons
    assert list(proposal.report.levels) == [
        "schema", "required", "allow_list", "id", "collision", "safety", "quality", "style", "language",
    ]  # fmt: skip
    error = await lab.refused("PromoteProposal", lab.promotion_of(proposal))
    assert error.reason == "PROPOSAL_STATE"

    report = await lab.read(
        "ValidateConfig", pb.ValidateConfigRequest(config_id="x/y", content=request.content)
    )
    assert "CONFIG_ID_INVALID" in {finding.reason for finding in report.findings}


async def test_numbers_keep_their_kind_in_the_file(lab: Lab) -> None:
    promotion = await lab.promote(await lab.propose())
    content = load_config(lab.root, promotion.config_id)
    assert isinstance(content["parameters"]["max_tokens"], int)
    assert isinstance(content["display"]["order"], int)
    orders = [load_config(lab.root, path.stem)["display"]["order"] for path in lab.folder.glob("*.json")]
    assert sorted(orders)[-2:] == [content["display"]["order"] - 10, content["display"]["order"]]


async def test_proposals_are_listed_by_state(lab: Lab) -> None:
    made = [await lab.propose(f"theme number {word}") for word in ("one", "two", "three")]
    await lab.act(
        "RejectProposal", pb.RejectProposalRequest(name=made[1].name, etag=made[1].etag, comment="")
    )
    everything = await lab.read("ListProposals", pb.ListProposalsRequest(page_size=2))
    assert [p.name for p in everything.proposals] == [made[2].name, made[1].name]
    rest = await lab.read(
        "ListProposals", pb.ListProposalsRequest(page_size=2, page_token=everything.next_page_token)
    )
    assert [p.name for p in rest.proposals] == [made[0].name]
    rejected = await lab.read(
        "ListProposals", pb.ListProposalsRequest(state=resources_pb2.PROPOSAL_STATE_REJECTED)
    )
    assert [p.name for p in rejected.proposals] == [made[1].name]
    foreign = pb.ListProposalsRequest(
        page_token=everything.next_page_token, state=resources_pb2.PROPOSAL_STATE_DRAFT
    )
    assert (await lab.refused("ListProposals", foreign)).reason == "PAGE_TOKEN_INVALID"
    # A rejected id is free again.
    assert (await lab.propose("theme number two")).config_id == made[1].config_id


@pytest.mark.parametrize(
    "method", ["CreateProposal", "RejectProposal", "PromoteProposal", "RollbackPromotion"]
)
async def test_nobody_acts_without_a_grant(lab: Lab, method: str) -> None:
    requests: dict[str, Any] = {
        "CreateProposal": pb.CreateProposalRequest(config_id="abc"),
        "RejectProposal": pb.RejectProposalRequest(name="proposals/x"),
        "PromoteProposal": pb.PromoteProposalRequest(name="proposals/x"),
        "RollbackPromotion": pb.RollbackPromotionRequest(name="promotions/x"),
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(lab.stub, method)(requests[method], timeout=5)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert decode_error(caught.value).reason == "GRANT_MISSING"


async def test_background_grants_stop_at_the_fence(lab: Lab) -> None:
    made = await lab.draft()
    request = pb.CreateProposalRequest(config_id=made.config_id, content=made.content)
    stop = lab.running.stub(control_grpc.StopServiceStub, "service/skills", control=True)
    async for _ in stop.Stop(control_pb.StopRequest(fence=9, cause="user"), timeout=5):
        pass
    error = await lab.refused("CreateProposal", request, fence=1)
    assert error.reason == "PREEMPTED"
    assert (await lab.act("CreateProposal", request, fence=9)).config_id == made.config_id
    # A person may promote and roll back while users work.
    proposal = (await lab.read("ListProposals", pb.ListProposalsRequest())).proposals[0]
    promotion = await lab.act("PromoteProposal", lab.promotion_of(proposal), fence=1)
    assert promotion.digest == proposal.content_digest


async def test_the_audit_tells_no_text(lab: Lab) -> None:
    proposal = await lab.propose()
    await lab.act(
        "RejectProposal",
        pb.RejectProposalRequest(name=proposal.name, etag=proposal.etag, comment="Ida from class 7b said so"),
    )
    told = "".join(event.canonical for event in await outbox(lab))
    assert "Ida" not in told
    assert "lantern" in told, "the id is part of it"
    assert "“" not in told


def test_no_word_of_the_simulator_in_the_source() -> None:
    from examples.workshop import workshop_exports

    source = Path(__file__).parents[2] / "services" / "lab" / "nightshift_lab"
    text = "\n".join(path.read_text() for path in source.rglob("*.py")).casefold()
    phrases = [
        p for theme in workshop_exports.THEMES.values() for variants in theme.values() for p in variants
    ]
    assert not [p for p in phrases if p.casefold() in text]
    assert not [t for t in workshop_exports.UNCOVERED if t in text]
    assert not [c for c in workshop_exports.CONFIG_IDS if c in text]
