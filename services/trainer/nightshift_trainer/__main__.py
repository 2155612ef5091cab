"""The trainer service: the only place where its objects meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nightshift.trainer.v1 import trainer_service_pb2_grpc
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import Clock
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.serve import Wiring, run
from nightshift_kit.rpc.stop import Registration, StopHub, Work
from nightshift_kit.settings import service_settings
from nightshift_kit.storage import Database
from nightshift_trainer.backend_choice import BackendChoice
from nightshift_trainer.config import TrainerSettings
from nightshift_trainer.engine import BackgroundWork, Engine, Tuning
from nightshift_trainer.gpu import Gpus, find_gpus
from nightshift_trainer.gpu_host.service import GpuHostService
from nightshift_trainer.inspection import Inspector
from nightshift_trainer.job_files import JobFiles
from nightshift_trainer.jobs import TrainingJobs
from nightshift_trainer.launcher import worker_environment
from nightshift_trainer.reading import TrainingReads
from nightshift_trainer.release import ReleaseCheck
from nightshift_trainer.rpc.render import encoded_job
from nightshift_trainer.rpc.render_gpu import encoded_loaded, encoded_unloaded
from nightshift_trainer.rpc.servicer import TrainerServicer
from nightshift_trainer.supervisor import Supervisor

FULL_NAME = "nightshift.trainer.v1.TrainerService"


def registering(hub: StopHub) -> Callable[[BackgroundWork], Registration]:
    """Workers as works of the stop hub. A person's own are not leased: they may outlive skills."""

    def register(work: BackgroundWork) -> Registration:
        return hub.register(
            Work(
                name=work.name,
                skill_run=work.skill_run,
                fence=work.fence,
                stop=work.stop,
                kill=work.kill,
                on_purpose=work.on_purpose,
                leased=not work.on_purpose,
            )
        )

    return register


def make_jobs(
    settings: TrainerSettings, home: Path, db: Database, hub: StopHub, clock: Clock, gpus: Gpus
) -> TrainingJobs:
    """The core with everything around it, on the database's migrated tables."""
    trainer_home = home / "trainer"
    (trainer_home / "jobs").mkdir(parents=True, exist_ok=True)
    environment = worker_environment(settings.cpu_threads, trainer_home / "caches")
    files = JobFiles(home, settings.kept_points)
    inspector = Inspector(
        adapters_home=trainer_home / "adapters",
        gpus=gpus,
        budget_bytes=settings.vram_budget_bytes,
        reserve_bytes=settings.vram_reserve_bytes,
    )
    supervisor = Supervisor(
        environment=environment,
        log_folder=trainer_home,
        worker_module=settings.worker_module,
        boottime_ns=clock.boottime_ns,
    )
    hub.on_release(
        ReleaseCheck(gpus, lambda: supervisor.recent_pids, settings.vram_reserve_bytes, clock.boottime_ns)
    )
    engine = Engine(
        db=db,
        files=files,
        outbox=Outbox("trainer", clock),
        clock=clock,
        supervisor=supervisor,
        backends=BackendChoice(settings.backend, environment),
        gpus=gpus,
        register=registering(hub),
        encode=encoded_job,
        tuning=Tuning(
            cpu_threads=settings.cpu_threads,
            stop_grace_s=settings.stop_grace_s,
            keep_warm_s=settings.keep_warm_s,
            fork_on_cpu=settings.cpu_start == "fork",
        ),
    )
    reads = TrainingReads(db, inspector, engine, settings.keep_alive_s)
    return TrainingJobs(
        db=db, files=files, clock=clock, new_id=new_id, inspector=inspector, engine=engine, reads=reads
    )


def make_gpu_host(settings: TrainerSettings, db: Database, clock: Clock, gpus: Gpus) -> GpuHostService:
    """Who else lies on the GPU, on the database's migrated tables."""
    return GpuHostService(
        settings=settings,
        db=db,
        outbox=Outbox("trainer", clock),
        clock=clock,
        gpus=gpus,
        encode_unloaded=encoded_unloaded,
        encode_loaded=encoded_loaded,
    )


async def wire(wiring: Wiring) -> None:
    """Makes the trainer and hands it to the server."""
    settings = service_settings(TrainerSettings, "trainer", wiring.settings)
    db = wiring.database(Database(settings.database_url, migrations="nightshift_trainer", name="trainer"))
    gpus = find_gpus()
    jobs = make_jobs(settings, wiring.settings.home, db, wiring.acting(db), wiring.clock, gpus)
    gpu_host = make_gpu_host(settings, db, wiring.clock, gpus)
    await jobs.recover()
    wiring.on_stop(jobs.close)
    wiring.on_stop(gpu_host.close)
    wiring.add(
        trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
        TrainerServicer(jobs, gpu_host),
        FULL_NAME,
    )


if __name__ == "__main__":
    raise SystemExit(run("trainer", wire))
