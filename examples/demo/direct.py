"""What somebody with grpcurl would try: calls straight to a service, past skills."""

from __future__ import annotations

import json
import os
from pathlib import Path

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from nightshift.lab.v1 import lab_service_pb2, lab_service_pb2_grpc


def refused_promotion(environment: dict[str, str], proposal: str) -> tuple[str, str]:
    """Call PromoteProposal without a grant, as an admin; return (status code, reason) of the refusal.

    Returns ("OK", "") where it was not refused.
    """
    home = Path(environment["NIGHTSHIFT_HOME"])
    endpoints = json.loads((home / "endpoints.json").read_text(encoding="utf-8"))
    credential = home / "credentials" / "person" / str(os.getuid())
    credentials = grpc.ssl_channel_credentials(
        (home / "ca" / "ca.pem").read_bytes(),
        credential.with_suffix(".key").read_bytes(),
        credential.with_suffix(".pem").read_bytes(),
    )
    with grpc.secure_channel(endpoints["services"]["lab"]["address"], credentials) as channel:
        stub = lab_service_pb2_grpc.LabServiceStub(channel)
        try:
            stub.PromoteProposal(lab_service_pb2.PromoteProposalRequest(name=proposal), timeout=5)
        except grpc.RpcError as error:
            status = rpc_status.from_call(error)
            info = error_details_pb2.ErrorInfo()
            for detail in status.details if status else ():
                if detail.Unpack(info):
                    break
            return error.code().name, info.reason
    return "OK", ""
