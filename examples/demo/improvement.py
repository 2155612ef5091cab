"""Steps 1 to 5: from a folder of run exports to a promoted and rolled back config."""

from __future__ import annotations

import hashlib
import time
from typing import Any

from examples.demo.direct import refused_promotion
from examples.demo.narrator import DemoFailedError, Narrator
from examples.demo.stage import Stage, tree_digest

# Nobody wrote these words in the workshop: only meaning can find what they ask for.
QUERIES = ("someone who cannot hear well", "water rising in the streets", "speaking two tongues at home")


def remember(stage: Stage, narrator: Narrator, truth: dict[str, Any]) -> None:
    """Step 1: import, statistics, and what was skipped and why."""
    job = last(stage.nightshift("import", str(stage.workshop), "--platform", str(stage.platform_root)))
    job = job.get("import_job", job)
    narrator.say(
        f"{number(job, 'created_count')} runs stored, {number(job, 'skipped_count')} records skipped, "
        f"{number(job, 'favorite_count')} favourites"
    )
    for reason in job.get("skipped_reasons", []):
        narrator.say(f"  skipped: {reason['key']:<22} {reason['count']}")
    totals = truth["totals"]
    stored = number(job, "created_count")
    least, most = totals["importable_yes"], totals["importable_yes"] + totals["importable_optional"]
    narrator.check(least <= stored <= most, "every importable run is stored, no broken one", stored)

    rows = stage.nightshift("configs", "performance")["config_performance"]
    narrator.say(
        f"{'config':<20} {'runs':>5} {'production':>10} {'favourites':>16} {'blocked':>8} {'again':>6}"
    )
    for row in rows[:8]:
        rate = row.get("favorite_rate", {})
        interval = f"{rate.get('value', 0):.0%} [{rate.get('lower', 0):.0%}-{rate.get('upper', 0):.0%}]"
        blocked = row.get("block_rate", {}).get("value", 0)
        narrator.say(
            f"{row['config']:<20} {row['total_runs']:>5} {row['production_runs']:>10} {interval:>16} "
            f"{blocked:>8.1%} {row.get('avg_regenerations', 0):>6.2f}"
        )
    seen = {row["config"]: number(row, "production_runs") for row in rows}
    planted = {config: row["production_runs"] for config, row in truth["configs"].items()}
    narrator.check(
        {c: n for c, n in seen.items() if n} == {c: n for c, n in planted.items() if n},
        "production runs of every config are those that the simulator planted",
        seen,
    )
    again = last(stage.nightshift("import", str(stage.workshop), "--platform", str(stage.platform_root)))
    again = again.get("import_job", again)
    changed = number(again, "created_count") + number(again, "updated_count")
    narrator.check(changed == 0, "importing the same tree again changes nothing", again)


def find(stage: Stage, narrator: Narrator) -> None:
    """Step 2: embed, then search by meaning."""
    run = wait_run(stage, stage.nightshift("skills", "run", "build_embeddings", "--yes"))
    narrator.say(run.get("outcome", ""))
    for query in QUERIES:
        hits = stage.nightshift("runs", "search", query).get("hits", [])
        narrator.check(bool(hits), f"“{query}” finds neighbours across wording", hits)
        for hit in hits[:2]:
            narrator.say(f"  {hit['score']:.2f}  {hit['run']['prompt'][:80]}")


def learn(stage: Stage, narrator: Narrator) -> None:
    """Step 3: the machine counts as idle, and AUTO skills run by themselves."""
    idleness = wait_for(lambda: idle(stage), 60, "the machine to count as idle")
    for reason in idleness.get("reasons", []):
        narrator.say(f"  {reason['code']}: {reason['message']}")
    run = wait_for(
        lambda: finished(stage, "aggregate_experience"), 60, "aggregate_experience to run by itself"
    )
    narrator.say(run.get("outcome", ""))
    narrator.check(
        run["initiator"].startswith("trigger:"),
        f"aggregate_experience ran unasked ({run['initiator']})",
        run["initiator"],
    )
    wait_for(lambda: finished(stage, "detect_opportunities"), 120, "detect_opportunities to run by itself")
    for found in stage.nightshift("opportunities").get("opportunities", []):
        kind = found["kind"].removeprefix("OPPORTUNITY_KIND_").lower().replace("_", " ")
        narrator.say(f"  {kind}: {found['label']} - {found['explanation']}")


def propose(stage: Stage, narrator: Narrator) -> str:
    """Step 4: a plan, an approval, a validated proposal in the lab. Returns the proposal's name."""
    pending = wait_for(lambda: pending_approval(stage, "skills/propose_config"), 90, "propose_config to ask")
    plan = pending["plan"]
    narrator.say(plan["summary"])
    for line in plan.get("evidence", []):
        narrator.say(f"  {line}")
    narrator.say(f"  plan {plan['digest'][:16]}…, {pending['name']}")
    time.sleep(2)
    proposals = stage.nightshift("lab", "proposals").get("proposals", [])
    narrator.check(not proposals, "nothing happened while nobody approved", proposals)
    stage.nightshift("approvals", "approve", pending["name"], "--yes", "--comment", "for the demo")
    run = wait_run(stage, {"name": pending["skill_run"]})
    narrator.say(run.get("outcome", ""))
    proposals = stage.nightshift("lab", "proposals").get("proposals", [])
    narrator.check(
        len(proposals) == 1 and proposals[0]["state"] == "PROPOSAL_STATE_VALIDATED",
        "one validated proposal lies in the lab",
        proposals,
    )
    proposal: dict[str, Any] = proposals[0]
    report = proposal["report"]
    narrator.say(
        f"  {proposal['config_id']}: {len(report['levels'])} levels of validation, "
        f"{len(report.get('findings', []))} findings, nearest {report['nearest_config']} "
        f"at {report['nearest_similarity']:.2f}"
    )
    return str(proposal["name"])


def promote_and_roll_back(stage: Stage, narrator: Narrator, proposal: str) -> None:
    """Step 5: promotion on command alone, two refusals, rollback to the byte."""
    before = tree_digest(stage.platform_root)
    refusal = refused_promotion(stage.environment, proposal)
    narrator.check(
        refusal == ("UNAUTHENTICATED", "GRANT_MISSING"),
        "a direct call to lab without a grant is refused: UNAUTHENTICATED GRANT_MISSING",
        refusal,
    )
    protected = "schemas/configs/output/img_standard.json"
    try:
        wait_run(stage, stage.nightshift("lab", "promote", proposal, "--path", protected, "--yes"))
    except DemoFailedError as error:
        narrator.check(
            "PROTECTED_FILE" in str(error), "an attempt on a protected file is refused: PROTECTED_FILE", error
        )
    else:
        raise DemoFailedError("promotion to a protected file was not refused")
    narrator.check(tree_digest(stage.platform_root) == before, "the platform's tree is untouched so far")

    run = wait_run(stage, stage.nightshift("lab", "promote", proposal, "--yes"))
    narrator.say(run.get("outcome", ""))
    promotion = stage.nightshift("lab", "promotions")["promotions"][0]
    path = stage.platform_root / promotion["path"]
    written = hashlib.sha256(path.read_bytes()).hexdigest()
    narrator.check(written == promotion["digest"], f"{promotion['path']} is in production's folder", written)
    run = wait_run(stage, stage.nightshift("lab", "rollback", promotion["name"], "--yes"))
    narrator.say(run.get("outcome", ""))
    narrator.check(
        tree_digest(stage.platform_root) == before, "after the rollback the tree is byte-identical to before"
    )


def number(resource: dict[str, Any], field: str) -> int:
    """An int64 field of protobuf JSON, where 64-bit numbers are strings."""
    return int(resource.get(field, 0))


def last(answer: Any) -> dict[str, Any]:
    """The last message of a stream, or the one answer."""
    found: dict[str, Any] = answer[-1] if isinstance(answer, list) else answer
    return found


def wait_for(look: Any, timeout_s: float, what: str) -> Any:
    """Look four times a second until something is there; fail after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.25)
    raise DemoFailedError(f"waited {timeout_s:.0f} s for {what}")


def wait_run(stage: Stage, run: dict[str, Any], timeout_s: float = 120) -> dict[str, Any]:
    """Wait until a skill run has ended; fail unless it succeeded."""
    ended = ("SUCCEEDED", "FAILED", "CANCELLED", "INTERRUPTED", "DENIED", "NOTHING_TO_DO")

    def look() -> dict[str, Any] | None:
        seen: dict[str, Any] = stage.nightshift("skills", "show-run", run["name"])
        return seen if seen["state"].removeprefix("SKILL_RUN_STATE_") in ended else None

    seen: dict[str, Any] = wait_for(look, timeout_s, f"{run['name']} to end")
    if not seen["state"].endswith("SUCCEEDED"):
        raise DemoFailedError(
            f"{seen['skill']} ended {seen['state']}: {seen.get('failure', seen.get('outcome'))}"
        )
    return seen


def idle(stage: Stage) -> dict[str, Any] | None:
    """The idleness, once it is idle."""
    status = stage.nightshift("status")
    idleness: dict[str, Any] = status["monitor"]["idleness"]
    return idleness if idleness.get("idle") else None


def finished(stage: Stage, skill: str) -> dict[str, Any] | None:
    """The newest succeeded run of a skill."""
    runs = stage.nightshift("skills", "runs", "--skill", skill).get("skill_runs", [])
    done = [run for run in runs if run["state"] == "SKILL_RUN_STATE_SUCCEEDED"]
    return done[0] if done else None


def pending_approval(stage: Stage, skill: str) -> dict[str, Any] | None:
    """The pending approval of a skill."""
    approvals = stage.nightshift("approvals", "list").get("approvals", [])
    pending = [a for a in approvals if a["state"] == "APPROVAL_STATE_PENDING" and a["plan"]["skill"] == skill]
    return pending[0] if pending else None
