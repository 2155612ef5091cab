"""The lab as the process that the plane starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.lab.v1 import lab_service_pb2 as pb
from nightshift.lab.v1 import lab_service_pb2_grpc as pb_grpc
from nightshift_kit.processes.table import find_free_base
from nightshift_kit.rpc.channels import decode_error, sync_channel
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings
from tests.lab.conftest import INTERCEPTION


@contextmanager
def lab_process(home: Path, **more: str) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    base = find_free_base()
    settings = PlaneSettings(home=home, port_base=base)
    ensure_home(settings)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NIGHTSHIFT_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "nightshift_lab"],
        env={**kept, "NIGHTSHIFT_HOME": str(home), "NIGHTSHIFT_PORT_BASE": str(base), **more},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        address = f"127.0.0.1:{settings.port('lab')}"
        with sync_channel("lab", settings, f"person/{os.getuid()}", address=address) as channel:
            grpc.channel_ready_future(channel).result(timeout=40)
            yield pb_grpc.LabServiceStub(channel), process
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors.decode()


def test_it_serves_and_ends_on_sigterm(tmp_path: Path, platform: Path) -> None:
    with lab_process(tmp_path / "home", NIGHTSHIFT_PLATFORM_ROOT=str(platform)) as (stub, _):
        listed = stub.ListConfigs(pb.ListConfigsRequest(), timeout=10)
        assert len(listed.configs) == len(list((platform / INTERCEPTION).glob("*.json")))
        made = stub.DraftProposal(pb.DraftProposalRequest(theme="old lanterns"), timeout=10)
        assert made.report.valid
    assert (tmp_path / "home" / "lab" / "lab.db").exists()
    assert (tmp_path / "home" / "lab").stat().st_mode & 0o077 == 0


def test_without_a_platform_it_serves_what_it_has(tmp_path: Path) -> None:
    with lab_process(tmp_path / "home", NIGHTSHIFT_PLATFORM_ROOT=str(tmp_path / "gone")) as (stub, _):
        assert not stub.ListProposals(pb.ListProposalsRequest(), timeout=10).proposals
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListConfigs(pb.ListConfigsRequest(), timeout=10)
        error = decode_error(caught.value)
        assert error.code is grpc.StatusCode.FAILED_PRECONDITION
        assert error.reason == "PLATFORM_MISSING"
