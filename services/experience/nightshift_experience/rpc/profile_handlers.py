"""What a project's runs cost and how they fared, and what that advises."""

from __future__ import annotations

from typing import Any

from nightshift.experience.v1 import profiles_pb2 as pb
from nightshift_experience.profiles.advice import CurrentSettings, Rules
from nightshift_experience.profiles.service import ProfileService
from nightshift_experience.resources import parse_profile, parse_project
from nightshift_experience.rpc import render_profiles
from nightshift_experience.rpc.convert import run_settings
from nightshift_experience.rpc.convert_profiles import half_life_us, level_of, rules_of
from nightshift_kit.pages import decode_token, encode_token, page_size, query_digest


class ProfileHandlers:
    """Handlers of profiles."""

    profiles: ProfileService
    rendered_profiles: render_profiles.RenderedProfiles

    async def GetProfile(self, request: pb.GetProfileRequest, context: Any) -> pb.Profile:
        """See the proto."""
        project = parse_profile(request.name)
        return self.rendered_profiles.of(project, await self.profiles.profile(project))

    async def ListRecommendations(
        self, request: pb.ListRecommendationsRequest, context: Any
    ) -> pb.ListRecommendationsResponse:
        """See the proto."""
        project, size = parse_project(request.parent), page_size(request.page_size)
        advice = await self.profiles.recommendations(
            project,
            _settings(request.settings),
            use_latest_run=request.use_latest_run,
            rules=rules_of(request.rules) if request.HasField("rules") else Rules(),
            half_life_us=half_life_us(request),
        )
        digest = query_digest(method="ListRecommendations", request=_without_page(request))
        position = decode_token(request.page_token, digest, (int,))
        after = int(position[0] or 0) if position else 0
        found = [one for one in advice.recommendations if one.category > after]
        return pb.ListRecommendationsResponse(
            recommendations=[render_profiles.recommendation(one) for one in found[:size]],
            next_page_token=encode_token((int(found[size - 1].category),), digest)
            if len(found) > size
            else "",
            settings=render_profiles.settings(advice.settings),
            runs=advice.runs,
        )

    async def PredictRunCost(self, request: pb.PredictRunCostRequest, context: Any) -> pb.RunCostPrediction:
        """See the proto."""
        project, told = parse_project(request.parent), _settings(request.settings)
        level = level_of(request.level)
        return render_profiles.prediction(
            await self.profiles.predict(project, told.mode, told.strategy, level)
        )


def _settings(message: Any) -> CurrentSettings:
    told = run_settings(message, "settings")
    return CurrentSettings(told.mode, told.strategy, told.max_rounds, told.max_cost_usd)


def _without_page(request: pb.ListRecommendationsRequest) -> str:
    asked = pb.ListRecommendationsRequest()
    asked.CopyFrom(request)
    asked.ClearField("page_size")
    asked.ClearField("page_token")
    return asked.SerializeToString(deterministic=True).hex()
