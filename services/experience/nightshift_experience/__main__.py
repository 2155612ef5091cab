"""Runs experience: ``python -m nightshift_experience``. The only place where its objects meet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from zoneinfo import ZoneInfo

from nightshift.experience.v1.experience_service_pb2_grpc import add_ExperienceServiceServicer_to_server
from nightshift_experience.aggregation.aggregator import Aggregator
from nightshift_experience.config import ExperienceSettings
from nightshift_experience.embedding import EmbeddingProcess, EmbeddingSettings, find_model
from nightshift_experience.experience import Experience
from nightshift_experience.forgetting import Forgetter
from nightshift_experience.importing.imports import Imports, ImportSettings
from nightshift_experience.intake import Intake
from nightshift_experience.languages import LanguageDetector
from nightshift_experience.opportunities import OpportunityService
from nightshift_experience.profiles.service import ProfileService
from nightshift_experience.profiles.tuning_service import TuningService
from nightshift_experience.rpc.servicer import ExperienceServicer
from nightshift_experience.search import SearchService
from nightshift_experience.sessions.service import SessionService
from nightshift_experience.sources.devserver.devices import ProductionRule
from nightshift_experience.store.run_writes import WritingRules
from nightshift_kit.clock import Clock
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.serve import Wiring, run
from nightshift_kit.settings import PlaneSettings, service_settings
from nightshift_kit.storage import Database

SERVICE = "nightshift.experience.v1.ExperienceService"


@dataclass(frozen=True)
class Core:
    """What the handlers stand on, search left out."""

    detector: LanguageDetector
    intake: Intake
    imports: Imports
    experience: Experience
    aggregator: Aggregator
    sessions: SessionService
    profiles: ProfileService
    tuning: TuningService


def make_core(db: Database, clock: Clock, settings: ExperienceSettings, plane: PlaneSettings) -> Core:
    """Makes the core's objects over a migrated database."""
    detector = LanguageDetector(settings.languages)
    rules = WritingRules(ProductionRule(settings.production_deny, settings.workshop_dates))
    importing = ImportSettings(
        time_zone=plane.time_zone,
        content_checks=settings.content_checks,
        platform_root=str(plane.platform_root or ""),
        writing=rules,
    )
    profiles = ProfileService(db)
    return Core(
        detector=detector,
        intake=Intake(db, clock, rules, detector),
        imports=Imports(db, clock, new_id, importing),
        experience=Experience(db),
        aggregator=Aggregator(db, clock),
        sessions=SessionService(db, clock, gap_s=settings.session_gap_s, zone=ZoneInfo(plane.time_zone)),
        profiles=profiles,
        tuning=TuningService(db, clock, profiles),
    )


async def wire(wiring: Wiring) -> None:
    """Makes experience's objects and puts them where they belong."""
    settings = service_settings(ExperienceSettings, "experience", wiring.settings)
    home = wiring.settings.service_home("experience")
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    db = wiring.database(
        Database(settings.database_url, migrations="nightshift_experience", name="experience")
    )
    wiring.acting(db)
    core = make_core(db, wiring.clock, settings, wiring.settings)
    await core.imports.recover()
    wiring.on_stop(core.imports.close)
    embedder = EmbeddingProcess(find_model(settings.embedding_model), EmbeddingSettings())
    wiring.on_stop(embedder.close)
    search = SearchService(db, embedder, folder=home / "lance", clock=wiring.clock)
    wiring.on_stop(search.close)
    await search.start()
    opportunities = OpportunityService(
        db, wiring.clock, search, embedder, platform_root=wiring.settings.platform_root
    )
    wiring.on_stop(opportunities.close)
    forgetter = Forgetter(db, wiring.clock, search)
    servicer = ExperienceServicer(
        intake=core.intake,
        imports=core.imports,
        experience=core.experience,
        aggregator=core.aggregator,
        search=search,
        opportunities=opportunities,
        sessions=core.sessions,
        profiles=core.profiles,
        tuning=core.tuning,
        forgetter=forgetter,
        clock=wiring.clock,
    )
    wiring.add(add_ExperienceServiceServicer_to_server, servicer, SERVICE)

    async def load_detector() -> None:
        # Half a second of work that the first run told without a language would otherwise wait for.
        await asyncio.to_thread(core.detector.load)

    wiring.spawn("load-language-model", load_detector)
    wiring.spawn("forget-to-the-end", forgetter.recover)


if __name__ == "__main__":
    raise SystemExit(run("experience", wire))
