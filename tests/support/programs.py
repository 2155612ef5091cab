"""Programs of the system that a test needs."""

from __future__ import annotations

import os
import shutil

import pytest


def required_under_ci(missing: str) -> None:
    """Skip the test for what is missing; under CI fail it, for there nothing may go unproven."""
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(f"{missing} is required here")
    pytest.skip(f"{missing} is not on this machine")


def require(program: str) -> str:
    """The program's path; without it the test is skipped, or fails under CI."""
    path = shutil.which(program)
    if path is None:
        required_under_ci(program)
    return str(path)
