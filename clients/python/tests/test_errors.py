"""Failures of services, also of hostile ones."""

from __future__ import annotations

import re

import grpc
import pytest
from conftest import ROOT
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from potluck import errors
from potluck.errors import BY_REASON, from_status

KEY = "grpc-status-details-bin"


def details(*messages: object) -> bytes:
    status = status_pb2.Status()
    for message in messages:
        packed = Any()
        packed.Pack(message)
        status.details.append(packed)
    return status.SerializeToString()


def test_every_reason_of_the_document_has_an_exception() -> None:
    document = (ROOT / "docs/errors.md").read_text()
    reasons = set(re.findall(r"^\| `([A-Z_]+)` \|", document, re.MULTILINE))
    assert len(reasons) > 40
    assert reasons == set(BY_REASON)


def test_the_reason_the_field_and_the_delay_are_kept() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    bad = error_details_pb2.BadRequest(field_violations=[{"field": "files[0].names"}])
    info = error_details_pb2.ErrorInfo(domain="potluck", reason="RATE_LIMITED")
    status = [(KEY, details(info, bad, retry))]
    error = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", status)
    assert isinstance(error, errors.LimitError)
    assert (error.reason, error.field, error.retry_after) == ("RATE_LIMITED", "files[0].names", 1.5)
    assert "too many calls" in str(error)


def test_a_reason_of_a_later_version_is_kept() -> None:
    info = error_details_pb2.ErrorInfo(domain="potluck", reason="NEW_REASON")
    error = from_status(grpc.StatusCode.UNKNOWN, "new", [(KEY, details(info))])
    assert (type(error), error.reason) == (errors.PotluckError, "NEW_REASON")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnavailableError),
        (grpc.StatusCode.NOT_FOUND, errors.NotFoundError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
    ],
)
def test_a_status_of_another_program_has_the_nearest_reason(
    code: grpc.StatusCode, kind: type
) -> None:
    other = error_details_pb2.ErrorInfo(domain="example.com", reason="NOT_FOUND")
    assert type(from_status(code, None, [])) is kind
    assert type(from_status(code, None, [(KEY, details(other))])) is kind


@given(st.binary(max_size=100))
def test_any_details_of_a_stranger_are_harmless(data: bytes) -> None:
    assert from_status(grpc.StatusCode.UNAVAILABLE, "x", [(KEY, data)]).reason


def test_a_delay_of_a_stranger_is_bounded() -> None:
    for seconds in (-5, 1 << 62):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds = seconds
        error = from_status(grpc.StatusCode.UNAVAILABLE, "x", [(KEY, details(retry))])
        assert error.retry_after is None or 0 <= error.retry_after <= 3600
