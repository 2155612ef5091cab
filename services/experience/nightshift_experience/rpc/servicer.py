"""ExperienceService, put together from its groups of handlers."""

from __future__ import annotations

from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceServicer
from nightshift_experience.aggregation.aggregator import Aggregator
from nightshift_experience.experience import Experience
from nightshift_experience.forgetting import Forgetter
from nightshift_experience.importing.imports import Imports
from nightshift_experience.intake import Intake
from nightshift_experience.opportunities import OpportunityService
from nightshift_experience.profiles.service import ProfileService
from nightshift_experience.profiles.tuning_service import TuningService
from nightshift_experience.rpc.forget_handlers import ForgetHandlers
from nightshift_experience.rpc.profile_handlers import ProfileHandlers
from nightshift_experience.rpc.read_handlers import ReadHandlers
from nightshift_experience.rpc.record_handlers import RecordHandlers
from nightshift_experience.rpc.render_profiles import RenderedProfiles
from nightshift_experience.rpc.search_handlers import SearchHandlers
from nightshift_experience.rpc.session_handlers import SessionHandlers
from nightshift_experience.rpc.tuning_handlers import TuningHandlers
from nightshift_experience.search import SearchService
from nightshift_experience.sessions.service import SessionService
from nightshift_kit.clock import Clock


class ExperienceServicer(
    RecordHandlers,
    ReadHandlers,
    SearchHandlers,
    SessionHandlers,
    ProfileHandlers,
    TuningHandlers,
    ForgetHandlers,
    ExperienceServiceServicer,
):
    """Handlers over the core's objects."""

    def __init__(
        self,
        *,
        intake: Intake,
        imports: Imports,
        experience: Experience,
        aggregator: Aggregator,
        search: SearchService,
        opportunities: OpportunityService,
        sessions: SessionService,
        profiles: ProfileService,
        tuning: TuningService,
        forgetter: Forgetter,
        clock: Clock,
    ) -> None:
        self.intake = intake
        self.imports = imports
        self.experience = experience
        self.aggregator = aggregator
        self.search = search
        self.opportunities = opportunities
        self.sessions = sessions
        self.profiles = profiles
        self.rendered_profiles = RenderedProfiles()
        self.tuning = tuning
        self.forgetter = forgetter
        self.clock = clock
