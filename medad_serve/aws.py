"""What AWS and other remote storage refuse, each as one line: read off the error's name, so that no SDK is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medad_serve.errors import MedadError

EXTRA = "Run: pip install 'medad-serve[aws]'"
_CREDENTIALS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in AWS_PROFILE"
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "NoAuthTokenError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
}
_UNKNOWN_KEY = {
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_DENIED = {"403", "AccessDenied", "AccessDeniedException", "AllAccessDisabled", "Forbidden", "UnauthorizedOperation"}
_ABSENT = {"404", "NoSuchBucket", "NoSuchKey", "NotFound"}
_UNREACHABLE = {
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "ConnectionRefusedError",
    "ConnectionResetError",
    "ConnectionTimeoutError",
    "EndpointConnectionError",
    "ReadTimeoutError",
    "ServerDisconnectedError",
    "ServerTimeoutError",
    "TimeoutError",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was made from."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        yield found
        seen.add(id(found))
        found = found.__cause__ or found.__context__


def code_of(error: BaseException) -> str:
    """Return the code that a service answered with, empty where none did."""
    for found in _chain(error):
        response: Any = getattr(found, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
    return ""


def message_of(error: BaseException) -> str:
    """Return what a service said, on one line, empty where it said nothing."""
    for found in _chain(error):
        response: Any = getattr(found, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return " ".join(str(response["Error"].get("Message", "")).split())
    return ""


def refusal(error: BaseException, what: str) -> MedadError:
    """Return the one line that tells why ``what`` (a URL, or a service) cannot be used, and what to do."""
    names = {type(found).__name__ for found in _chain(error)}
    code = code_of(error)
    if names & _NO_CREDENTIALS:
        return MedadError(f"there are no usable AWS credentials for {what}", _CREDENTIALS)
    if "NoRegionError" in names:
        return MedadError("no AWS region is set", "Set AWS_DEFAULT_REGION, or give --region")
    if code in _UNKNOWN_KEY:
        return MedadError(f"the credentials for {what} are not accepted ({code})", _CREDENTIALS)
    if code in _DENIED or "PermissionError" in names:
        return MedadError(f"access to {what} is denied", "Ask for the right to list and read it")
    if code in _ABSENT or "FileNotFoundError" in names:
        return MedadError(f"there is nothing at {what}", "Check the bucket and the path")
    if names & _UNREACHABLE:
        return MedadError(f"{what} cannot be reached", "Check the network, the region and AWS_ENDPOINT_URL")
    reason = code or type(error).__name__
    said = message_of(error)
    return MedadError(f"{what} refuses: {reason}{f': {said}' if said else ''}", "Correct what it names")
