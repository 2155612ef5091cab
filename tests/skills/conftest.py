"""A real skills service for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.skills.skills_support import Plane, plane_in
from tests.support.postgres import postgres_server, postgres_url

__all__ = ["plane", "postgres_server", "postgres_url"]


@pytest.fixture
async def plane(tmp_path: Path) -> AsyncIterator[Plane]:
    async with plane_in(tmp_path / "home") as plane:
        yield plane
