"""Failures as exceptions, with the stable reasons of docs/errors.md."""

from __future__ import annotations

from datetime import timedelta
from typing import Dict, Optional, Sequence, Tuple, Type

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "potluck"
_DETAILS_KEY = "grpc-status-details-bin"


class PotluckError(Exception):
    """A failure. Catch a subclass, or compare `reason`."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        field: Optional[str] = None,
        retry_after: Optional[float] = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        """Stable reason in UPPER_SNAKE_CASE."""
        self.message = message
        """For people; may change."""
        self.field = field
        """The invalid field of the request, if there is one."""
        self.retry_after = retry_after
        """Seconds to wait before a retry, if a retry can help."""

    def __str__(self) -> str:
        return f"{self.message} ({self.reason})"


class InvalidRequestError(PotluckError):
    """An argument is invalid."""


class NotFoundError(PotluckError):
    """No such file, name, piece or transfer, or nobody has it now."""


class AmbiguousNameError(PotluckError):
    """Several files have the name: choose an id."""


class VerificationError(PotluckError):
    """Bytes do not match what their id commits to."""


class AccessError(PotluckError):
    """The caller may not do this, or is not a member of the network."""


class TargetError(PotluckError):
    """The download cannot be stored at its target."""


class RefusedError(PotluckError):
    """The state of the service or file does not allow the call."""


class LimitError(PotluckError):
    """A limit is reached. `retry_after` says when to try again, if that helps."""


class UnavailableError(PotluckError):
    """The service does not answer, or cannot serve now."""


class CancelledError(PotluckError):
    """The owner stopped the call or transfer."""


class InternalError(PotluckError):
    """A defect, or a failure of the machine that no other reason describes."""


_CLASSES: Dict[Type[PotluckError], str] = {
    InvalidRequestError: """INVALID_ARGUMENT INVALID_ID INVALID_NAME INVALID_TOKEN INVALID_ADDRESS
        INVALID_QUERY INVALID_PAGE_TOKEN INVALID_SIGNING_REQUEST ID_MISMATCH OUT_OF_RANGE
        UNSAFE_PATH""",
    NotFoundError: "NOT_FOUND NO_PROVIDERS PIECE_NOT_AVAILABLE LEASE_UNKNOWN",
    AmbiguousNameError: "AMBIGUOUS_NAME",
    VerificationError: "VERIFICATION_FAILED",
    AccessError: """ADDRESS_REFUSED UNAUTHENTICATED NOT_A_MEMBER CERTIFICATE_EXPIRED REVOKED
        ROLE_REQUIRED INVALID_CODE PERMISSION_DENIED ORIGIN_DENIED""",
    TargetError: "TARGET_EXISTS TARGET_NOT_WRITABLE TARGET_UNSUITABLE EXPANSION_REFUSED DISK_FULL",
    RefusedError: """UNSIZED_FILE DOWNLOAD_ONLY FILE_CHANGED IDENTITY_IN_USE HOME_LOCKED
        ADDRESS_IN_USE ALREADY_ENDED INDEXES_DIFFER ORIGIN_REFUSED ORIGIN_CHANGED
        ORIGIN_INVALID""",
    LimitError: "TOO_MANY_OPEN_FILES QUOTA_EXCEEDED RATE_LIMITED BUSY",
    UnavailableError: "UNREACHABLE NOT_POTLUCK TIMED_OUT STORE_UNAVAILABLE SHUTTING_DOWN",
    CancelledError: "CANCELLED",
    InternalError: "INTERNAL",
}

BY_REASON: Dict[str, Type[PotluckError]] = {
    reason: kind for kind, reasons in _CLASSES.items() for reason in reasons.split()
}
"""The exception of each reason. Other reasons, of newer services, are plain `PotluckError`s."""

# For a status without details, which does not come from Potluck.
_NEAREST: Dict[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID_ARGUMENT",
    grpc.StatusCode.OUT_OF_RANGE: "OUT_OF_RANGE",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.UNAUTHENTICATED: "UNAUTHENTICATED",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "BUSY",
    grpc.StatusCode.UNAVAILABLE: "UNREACHABLE",
    grpc.StatusCode.DEADLINE_EXCEEDED: "TIMED_OUT",
    grpc.StatusCode.UNIMPLEMENTED: "NOT_POTLUCK",
    grpc.StatusCode.CANCELLED: "CANCELLED",
    grpc.StatusCode.DATA_LOSS: "VERIFICATION_FAILED",
}


def error(
    reason: str,
    message: str,
    *,
    field: Optional[str] = None,
    retry_after: Optional[float] = None,
) -> PotluckError:
    """The exception for a reason."""
    kind = BY_REASON.get(reason, PotluckError)
    return kind(reason, message, field=field, retry_after=retry_after)


def from_status(
    code: grpc.StatusCode, message: Optional[str], metadata: Sequence[Tuple[str, object]]
) -> PotluckError:
    """The exception for a gRPC status. Anything may be in it: a stranger may have sent it."""
    reason = field = retry_after = None
    for key, value in metadata:
        if key != _DETAILS_KEY or not isinstance(value, bytes):
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                bad = error_details_pb2.BadRequest()
                retry = error_details_pb2.RetryInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    reason = info.reason
                elif detail.Unpack(bad) and bad.field_violations:
                    field = bad.field_violations[0].field
                elif detail.Unpack(retry):
                    delay: timedelta = retry.retry_delay.ToTimedelta()
                    retry_after = min(max(delay.total_seconds(), 0.0), 3600.0)
        except (DecodeError, ValueError, OverflowError):
            continue
    if not reason:
        reason = _NEAREST.get(code, "INTERNAL")
    return error(reason, message or code.name, field=field, retry_after=retry_after)


def from_rpc(failure: grpc.aio.AioRpcError) -> PotluckError:
    """The exception for a failed call."""
    metadata = [(str(key), value) for key, value in failure.trailing_metadata() or ()]
    return from_status(failure.code(), failure.details(), metadata)
