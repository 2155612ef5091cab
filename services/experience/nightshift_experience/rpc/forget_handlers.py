"""Forgetting a device.

A mixin for the servicer, which sets ``forgetter``.
"""

from __future__ import annotations

from typing import Any

from nightshift.experience.v1 import forgetting_pb2 as pb
from nightshift_experience.forgetting import Forgetter
from nightshift_experience.resources import parse_project
from nightshift_experience.rpc.render import timestamp
from nightshift_kit.rpc.context import current_call


class ForgetHandlers:
    """Handlers of what is known of a device, and of forgetting it."""

    forgetter: Forgetter

    async def GetDeviceFootprint(
        self, request: pb.GetDeviceFootprintRequest, context: Any
    ) -> pb.DeviceFootprint:
        """See the proto."""
        known = await self.forgetter.footprint(parse_project(request.parent), request.device)
        return pb.DeviceFootprint(
            run_count=len(known.run_ids),
            session_count=known.session_count,
            first_time=timestamp(known.first_us) if known.first_us is not None else None,
            last_time=timestamp(known.last_us) if known.last_us is not None else None,
        )

    async def ForgetDevice(self, request: pb.ForgetDeviceRequest, context: Any) -> pb.ForgetDeviceResponse:
        """See the proto."""
        project = parse_project(request.parent)
        told = await self.forgetter.forget(current_call().effect(), project, request.device)
        return pb.ForgetDeviceResponse(run_count=told.run_count, session_count=told.session_count)
