"""Import jobs: watched, cancelled, one at a time, and taken up again after kill -9."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as resources
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import channel_to
from nightshift_kit.rpc.statuses import decode_error
from nightshift_kit.rpc.tls import load_credential
from nightshift_kit.settings import PlaneSettings
from tests.experience.experience_support import PARENT, PLATFORM, ROOT, ZONE, Experience, experience, simulate
from tests.experience.test_experience_simulator import assert_all

RUNNING, SUCCEEDED = resources.IMPORT_JOB_STATE_RUNNING, resources.IMPORT_JOB_STATE_SUCCEEDED
FAILED, CANCELLED = resources.IMPORT_JOB_STATE_FAILED, resources.IMPORT_JOB_STATE_CANCELLED


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("jobs") / "workshop"
    return folder, simulate(folder, "--runs", "2500", "--seed", "17", "--layout", "flat-fast")


async def start(service: Experience, folder: Path) -> Any:
    request = pb.ImportRunsRequest(parent=PARENT, directory=str(folder), platform_root=str(PLATFORM))
    return await service.stub.ImportRuns(request, timeout=10)


async def test_a_job_is_watched_and_the_service_answers_meanwhile(
    tmp_path: Path, workshop: tuple[Path, dict[str, Any]]
) -> None:
    folder, truth = workshop
    async with experience(tmp_path / "home") as service:
        job = await start(service, folder)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await start(service, folder)
        assert decode_error(caught.value).reason == "IMPORT_RUNNING"
        seqs: list[int] = []
        longest_s = 0.0

        async def watch() -> Any:
            last = None
            async for answer in service.stub.WatchImportJob(
                pb.WatchImportJobRequest(name=job.name), timeout=60
            ):
                seqs.append(answer.seq)
                last = answer.import_job
            return last

        watching = asyncio.create_task(watch())
        while not watching.done():
            began = time.monotonic()
            await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=5)
            longest_s = max(longest_s, time.monotonic() - began)
            await asyncio.sleep(0.01)
        done = await watching
        assert done.state == SUCCEEDED
        assert seqs == sorted(set(seqs))
        assert len(seqs) >= 3, "progress was told on the way"
        # A batch of 250 runs takes the interpreter for some tens of milliseconds; waiting for the import
        # would take seconds. The bound is that of a machine under load.
        assert longest_s < 2.0
        after = pb.WatchImportJobRequest(name=job.name, after_seq=seqs[-1])
        assert [a async for a in service.stub.WatchImportJob(after, timeout=10)] == []
        late = pb.WatchImportJobRequest(name=job.name)
        assert [a.import_job async for a in service.stub.WatchImportJob(late, timeout=10)] == [done]
        assert await service.stub.GetImportJob(pb.GetImportJobRequest(name=job.name), timeout=10) == done
        await assert_all(service, truth, done)


async def test_a_cancelled_import_keeps_what_it_stored_and_the_next_goes_on(
    tmp_path: Path, workshop: tuple[Path, dict[str, Any]]
) -> None:
    folder, truth = workshop
    async with experience(tmp_path / "home") as service:
        job = await start(service, folder)
        async for answer in service.stub.WatchImportJob(pb.WatchImportJobRequest(name=job.name), timeout=60):
            if answer.import_job.created_count > 0:
                break
        cancelled = await service.stub.CancelImportJob(pb.CancelImportJobRequest(name=job.name), timeout=10)
        assert cancelled.state == CANCELLED
        assert 0 < cancelled.created_count < truth["totals"]["importable_yes"]
        assert len(await service.runs()) == cancelled.created_count
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.CancelImportJob(pb.CancelImportJobRequest(name=job.name), timeout=10)
        assert decode_error(caught.value).reason == "IMPORT_JOB_ENDED"
        done = await service.import_all(folder, PLATFORM)
        assert done.unchanged_count >= cancelled.created_count
        assert done.created_count + cancelled.created_count == len(await service.runs())
        await assert_all(service, truth, done)
        listed: list[str] = []
        token = ""
        while True:
            request = pb.ListImportJobsRequest(parent=PARENT, page_size=1, page_token=token)
            page = await service.stub.ListImportJobs(request, timeout=10)
            listed += [one.name for one in page.import_jobs]
            token = page.next_page_token
            if not token:
                break
        assert listed == [done.name, job.name]


async def test_a_reading_process_that_dies_fails_the_job(
    tmp_path: Path, workshop: tuple[Path, dict[str, Any]]
) -> None:
    folder, truth = workshop
    async with experience(tmp_path / "home") as service:
        job = await start(service, folder)
        mine = str(os.getpid())
        killed = False
        while not killed:
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    line = (entry / "cmdline").read_bytes()
                    parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
                except OSError:
                    continue
                if b"nightshift_experience.importing.reader" in line and parent == mine:
                    os.kill(int(entry.name), signal.SIGKILL)
                    killed = True
            await asyncio.sleep(0.01)
        last = None
        async for answer in service.stub.WatchImportJob(pb.WatchImportJobRequest(name=job.name), timeout=60):
            last = answer.import_job
        assert last is not None
        assert (last.state, last.failure.reason) == (FAILED, "IMPORTER_DIED")
        await assert_all(service, truth, await service.import_all(folder, PLATFORM))


async def test_a_run_that_goes_missing_stays_and_a_broken_one_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "workshop"
    truth = simulate(folder, "--runs", "60", "--seed", "4")
    whole = [t for t in truth["runs"] if t["importable"] == "yes" and t["kind"] == "pipeline"]
    gone, broken, doubled = whole[0], whole[1], whole[2]
    async with experience(tmp_path / "home") as service:
        await service.import_all(folder, PLATFORM)
        before = await service.runs()
        shutil.rmtree(folder / gone["path"])
        (folder / broken["path"] / "metadata.json").write_text("{")
        copy = folder / (doubled["path"] + "_copy")
        shutil.copytree(folder / doubled["path"], copy)
        job = await service.import_all(folder, PLATFORM)
        assert (job.created_count, job.updated_count) == (0, 0)
        assert await service.runs() == before
        answer = await service.stub.ListSkippedRecords(
            pb.ListSkippedRecordsRequest(parent=PARENT, page_size=1000), timeout=10
        )
        reasons = {f"exports/json/{record.path}": record.reason for record in answer.skipped_records}
        assert reasons[broken["path"]] == "RECORD_TRUNCATED"
        assert reasons[doubled["path"] + "_copy"] == "DUPLICATE_RUN_ID"
        # A folder that moved is the same run at another place.
        shutil.rmtree(folder / doubled["path"])
        assert (await service.import_all(folder, PLATFORM)).updated_count == 1
        run = (await service.runs())[doubled["run_id"]]
        assert run.source_path == copy.relative_to(folder / "exports" / "json").as_posix()


async def test_favourites_are_followed_both_ways(tmp_path: Path) -> None:
    folder = tmp_path / "workshop"
    truth = simulate(folder, "--runs", "120", "--seed", "8")
    favorites = folder / "exports" / "json" / "favorites.json"
    async with experience(tmp_path / "home") as service:
        await service.import_all(folder, PLATFORM)
        marked = set(await service.runs("favorite = true"))
        assert marked == {t["run_id"] for t in truth["runs"] if t["favourite"]}
        content = favorites.read_text()
        favorites.write_text('{"version": "1.0", "favorites": []}')
        await service.import_all(folder, PLATFORM)
        assert await service.runs("favorite = true") == {}
        favorites.write_text("{broken")
        job = await service.import_all(folder, PLATFORM)
        assert "FAVORITES_RECORD_TRUNCATED" in {count.key for count in job.skipped_reasons}
        assert await service.runs("favorite = true") == {}
        favorites.write_text(content.replace("added_at", "when"))
        await service.import_all(folder, PLATFORM)
        assert set(await service.runs("favorite = true")) == marked


class Service:
    """The service as a process of its own."""

    def __init__(self, home: Path, port_base: int) -> None:
        self.settings = PlaneSettings(home=home, port_base=port_base)
        self._environment = {
            **os.environ,
            "NIGHTSHIFT_HOME": str(home),
            "NIGHTSHIFT_PORT_BASE": str(port_base),
            "NIGHTSHIFT_TIME_ZONE": ZONE,
        }
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> Any:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "nightshift_experience", "--parent-pid", str(os.getpid())],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = self.settings.port("experience")
        identity = self.settings.home / "credentials" / "platform" / "default.pem"
        for _ in range(600):
            if identity.exists():
                channel = channel_to(
                    f"127.0.0.1:{port}", "experience", load_credential(self.settings, "platform/default")
                )
                try:
                    await asyncio.wait_for(channel.channel_ready(), 1.0)
                except TimeoutError:
                    await channel.close()
                else:
                    self.channel = channel
                    return ExperienceServiceStub(channel)
            assert self.process.poll() is None, "the service has ended"
            await asyncio.sleep(0.05)
        raise TimeoutError("the service does not answer")

    async def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        await self.channel.close()


@pytest.mark.slow
async def test_an_import_killed_with_the_service_is_taken_up_again(
    tmp_path: Path, workshop: tuple[Path, dict[str, Any]]
) -> None:
    folder, truth = workshop
    home = tmp_path / "home"
    service = Service(home, find_free_base())
    counts: list[int] = []
    jobs: list[str] = []
    acknowledged: list[str] = []
    for kill_at in (300, 900, 1500):
        stub = await service.start()
        request = pb.ImportRunsRequest(parent=PARENT, directory=str(folder), platform_root=str(PLATFORM))
        job = await stub.ImportRuns(request, timeout=10)
        jobs.append(job.name)
        live = resources.Run(
            name=f"{PARENT}/runs/run_{1_770_000_000_000 + kill_at}_live",
            outcome=resources.RUN_OUTCOME_SUCCEEDED,
            device="x",
        )
        await stub.RecordRun(pb.RecordRunRequest(parent=PARENT, run=live), timeout=10)
        acknowledged.append(live.name.rpartition("/")[2])
        stored = 0
        async for answer in stub.WatchImportJob(pb.WatchImportJobRequest(name=job.name), timeout=60):
            stored = answer.import_job.created_count
            if stored + sum(counts) >= kill_at or answer.import_job.state != RUNNING:
                break
        counts.append(stored)
        await service.kill()
    async with experience(home) as after:
        for name in jobs:
            job = await after.stub.GetImportJob(pb.GetImportJobRequest(name=name), timeout=10)
            if job.state != SUCCEEDED:
                assert (job.state, job.failure.reason) == (FAILED, "INTERRUPTED")
        stored_runs = await after.runs()
        assert set(acknowledged) <= set(stored_runs)
        assert len(stored_runs) >= sum(counts) + len(acknowledged)
        done = await after.import_all(folder, PLATFORM)
        assert done.unchanged_count >= sum(counts)
        # What was recorded live in between is not part of the workshop's truth.
        await after.db.write(lambda c: c.exec_driver_sql("DELETE FROM runs WHERE source = 'live'"))
        await assert_all(after, truth, done)


async def test_whoever_saw_an_import_end_can_begin_the_next(tmp_path: Path) -> None:
    """The end is told before the reading process is gone; the next one waits for that."""
    simulate(tmp_path / "workshop", "--runs", "30", "--seed", "3", "--layout", "flat-fast")
    async with experience(tmp_path / "home") as service:
        for _ in range(6):
            job = await service.import_all(tmp_path / "workshop")
            assert job.state == resources.IMPORT_JOB_STATE_SUCCEEDED
