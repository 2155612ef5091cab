"""ExperienceService, put together from its groups of handlers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceServicer
from nightshift_experience.aggregation.aggregator import Aggregator
from nightshift_experience.experience import Experience
from nightshift_experience.importing.imports import Imports
from nightshift_experience.intake import Intake
from nightshift_experience.rpc.read_handlers import ReadHandlers
from nightshift_experience.rpc.record_handlers import RecordHandlers
from nightshift_kit.clock import Clock


class ExperienceServicer(RecordHandlers, ReadHandlers, ExperienceServiceServicer):
    """Handlers over the core's objects."""

    def __init__(
        self,
        *,
        intake: Intake,
        imports: Imports,
        experience: Experience,
        aggregator: Aggregator,
        embedding_counts: Callable[[str], Awaitable[tuple[int, int]]],
        clock: Clock,
    ) -> None:
        self.intake = intake
        self.imports = imports
        self.experience = experience
        self.aggregator = aggregator
        self.embedding_counts = embedding_counts
        self.clock = clock
