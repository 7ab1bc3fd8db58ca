"""Calls to AWS through boto3: requests checked against the service's own model, refusals in one line."""

from __future__ import annotations

import json
import re
from typing import Any

from medad_serve.aws import EXTRA, code_of, message_of, refusal
from medad_serve.errors import MedadError

_HINTS = {
    "ResourceInUse": "Give another --name",
    "ResourceLimitExceeded": "Ask AWS for a higher quota, or choose another --instance",
}


def client(service: str, region: str | None) -> Any:
    """Return a client; raises MedadError without boto3, region or profile."""
    try:
        import boto3
    except ImportError:
        raise MedadError("boto3 is not installed", EXTRA) from None
    try:
        return boto3.Session(region_name=region).client(service)
    except Exception as error:  # a profile that is not there, no region
        raise refusal(error, service) from None


def call(made: Any, method: str, **request: Any) -> dict[str, Any]:
    """Call one method of a client; raises MedadError with what the service said."""
    try:
        answer: dict[str, Any] = getattr(made, method)(**request)
    except Exception as error:  # the SDK raises kinds of its own
        raise explained(error, f"AWS {method.replace('_', ' ')}") from None
    return answer


def explained(error: BaseException, what: str) -> MedadError:
    """Return what a refusal means for whoever asked."""
    said = message_of(error)
    if "assume" in said.lower() and "role" in said.lower():
        return MedadError(f"{what}: {said.rstrip('.')}", "Create the --role and let sagemaker.amazonaws.com assume it")
    if (code := code_of(error)) in _HINTS:
        return MedadError(f"{what}: {said.rstrip('.') or code}", _HINTS[code])
    return refusal(error, what)


def check_request(operation: str, request: dict[str, Any]) -> None:
    """Check a request of SageMaker against botocore's model of it: names, types, lengths and patterns.

    Instance types are not: a new one may be missing in an older botocore. Raises MedadError for the first fault.
    """
    try:
        import botocore.session
        import botocore.validate
    except ImportError:
        raise MedadError("boto3 is not installed", EXTRA) from None
    shape = botocore.session.get_session().get_service_model("sagemaker").operation_model(operation).input_shape
    _check(shape, request, operation)
    report = botocore.validate.ParamValidator().validate(request, shape)
    if report.has_errors():
        first = report.generate_report().splitlines()[0]
        raise MedadError(f"{operation}: {first}", "Correct what it names")


def _check(shape: Any, value: Any, where: str) -> None:
    """Check patterns and largest sizes, which botocore leaves to the service."""
    if shape.type_name == "structure":
        for name, part in value.items():
            _check(shape.members[name], part, f"{where} {name}")
    elif shape.type_name == "list":
        _fits(shape, len(value), where, "has too many entries")
        for part in value:
            _check(shape.member, part, where)
    elif shape.type_name == "map":
        _fits(shape, len(value), where, "has too many entries")
        for name, part in value.items():
            _check(shape.key, name, where)
            _check(shape.value, part, f"{where} {name}")
    elif shape.type_name == "string":
        _fits(shape, len(value), where, "is too long")
        pattern = shape.metadata.get("pattern")
        if pattern and not re.fullmatch(pattern, value):
            raise MedadError(f"{where} cannot be {json.dumps(value)}", f"It must match {pattern}")
    elif shape.type_name in ("integer", "long"):
        _fits(shape, value, where, "is too large")


def _fits(shape: Any, size: int, where: str, why: str) -> None:
    largest = shape.metadata.get("max")
    if largest is not None and size > largest:
        raise MedadError(f"{where} {why}: {size}", f"At most {largest}")
