"""The Open Inference Protocol (KServe V2) for prepared tensors: an infer request read, an answer written.

What is left out of it: outputs come as JSON also where binary ones are asked for, which its clients read alike.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from medad_serve.errors import InputError
from medad_serve.io import Limits
from medad_serve.predictor import ItemResult, Result

DATATYPE = "FP32"
OUTPUTS = {"score": "FP64", "p_value": "FP64", "anomalous": "BOOL", "probability": "FP64", "severity": "FP64"}
"""What an answer can hold, in its order; the last two where the model has them."""
_SHAPE = 'Send {"inputs": [{"name": "x", "shape": [N, C, H, W], "datatype": "FP32", "data": [...]}]}'
_Text = Annotated[str, Field(min_length=1, max_length=256)]


class OipError(InputError):
    """An error in the protocol's own form."""

    def to_json(self) -> dict[str, object]:
        """Return the body of the error answer: one text."""
        return {"error": str(self)}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Input(_Strict):
    name: _Text
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(_Strict):
    name: _Text
    parameters: dict[str, Any] = {}


class _Infer(_Strict):
    id: _Text | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[_Input], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[_Output], Field(max_length=len(OUTPUTS))] | None = None


class Inference(NamedTuple):
    """One infer request."""

    tensor: NDArray[np.float32]
    """In the shape it states."""
    id: str | None
    outputs: tuple[str, ...]
    """Names asked for, empty for all."""


def read_inference(body: bytes | dict[str, Any], json_bytes: int | None, limits: Limits) -> Inference:
    """Read an infer request: JSON, or JSON of ``json_bytes`` bytes before the tensor's own (binary extension).

    Raises:
        InputError: 400, no JSON, or JSON that is no infer request.
        OipError: 400 an infer request that is not valid, or whose values do not fill its shape; 413 over the
            limits, 415 another datatype than FP32, 422 values that are not finite, an output that there is not.
    """
    raw = None
    if not isinstance(body, dict):
        head = body if json_bytes is None else body[:json_bytes]
        if len(head) > limits.max_json_bytes:
            fault = f"the JSON is larger than {limits.max_json_bytes} bytes"
            raise OipError(413, fault, "Send the tensor by the binary extension, or fewer items")
        raw = None if json_bytes is None else body[len(head) :]
        body = _parsed(head)
    if "inputs" not in body:  # then nothing says that the protocol is meant
        raise InputError(400, "the JSON is no infer request: it has no inputs", _SHAPE)
    infer = _checked(body)
    [tensor] = infer.inputs
    if tensor.datatype != DATATYPE:
        raise OipError(415, f"the input's datatype is not {DATATYPE}", f"Convert it to {DATATYPE}")
    if math.prod(tensor.shape) > limits.max_values:
        raise OipError(413, f"the input has more than {limits.max_values} values", "Send fewer items")
    values = _from_bytes(tensor, raw) if tensor.data is None else _from_list(tensor.data)
    if values.size != math.prod(tensor.shape):
        raise OipError(400, "the input's data do not fill its shape", "Send as many values as the shape says")
    if not np.isfinite(values).all():
        raise OipError(422, "the input's data are not all finite", "Send values within float32")
    return Inference(values.reshape(tensor.shape), infer.id, _names(infer.outputs or []))


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        found = from_json(text)
    except ValueError:  # its own text quotes the body
        raise InputError(400, "the body is no valid JSON", _SHAPE) from None
    return found if isinstance(found, dict) else {}


def _checked(body: dict[str, Any]) -> _Infer:
    try:
        return _Infer.model_validate(body)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        unknown = fault["type"] == "extra_forbidden"  # whose name may be anything
        where = ".".join(str(part) for part in (fault["loc"][:-1] if unknown else fault["loc"])) or "the object"
        why = "a field that the protocol does not know" if unknown else fault["msg"]
        raise OipError(400, f"the infer request is not valid ({where}: {why})", _SHAPE) from None


def _from_bytes(tensor: _Input, raw: bytes | None) -> NDArray[np.float32]:
    """Read the binary extension: little-endian, rows in C order."""
    size = tensor.parameters.get("binary_data_size")
    if raw is None or size is None:
        raise OipError(400, "the input has no data", _SHAPE)
    if size != len(raw) or len(raw) != 4 * math.prod(tensor.shape):
        fault = "the bytes after the JSON are not those that binary_data_size and shape say"
        raise OipError(400, fault, "Send 4 bytes a value, and Inference-Header-Content-Length: the JSON's length")
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _from_list(data: list[Any]) -> NDArray[np.float32]:
    """Return numbers, flat or nested in row-major order as the protocol allows."""
    fault = OipError(400, "the input's data are not all numbers", _SHAPE)
    while data and set(map(type, data)) == {list}:
        data = list(chain.from_iterable(data))
    if not set(map(type, data)) <= {int, float}:  # true is no number here, nor is "1"
        raise fault
    try:
        with np.errstate(over="ignore"):
            return np.array(data, np.float64).astype(np.float32)
    except OverflowError:  # an integer of hundreds of digits
        raise fault from None


def _names(asked: list[_Output]) -> tuple[str, ...]:
    names = tuple(output.name for output in asked)
    if not set(names) <= OUTPUTS.keys():
        raise OipError(422, "there is no output of a name asked for", f"Choose among: {', '.join(OUTPUTS)}")
    return names


def inference_answer(result: Result, id: str | None, outputs: tuple[str, ...]) -> dict[str, Any]:
    """Return the answer to an infer request: one value an item in each output.

    Several items are answered each for itself; what they make together, as slices of one patient, stands among
    the parameters, with the policy and the warnings.
    """
    items: tuple[Result | ItemResult, ...] = result.slices or (result,)
    found = {name: [getattr(item, name) for item in items] for name in outputs or OUTPUTS}
    parameters: dict[str, Any] = {"policy": result.policy, "level": result.level}
    if result.slices:
        names = ("score", "p_value", "cutoff", "anomalous")
        parameters |= {f"{result.level}_{name}": getattr(result, name) for name in names}
    else:
        parameters["cutoff"] = result.cutoff
    if result.warnings:
        parameters["warnings"] = "; ".join(result.warnings)
    answer = {
        "model_name": result.model,
        "model_version": result.version,
        "parameters": parameters,
        "outputs": [
            {"name": name, "shape": [len(items)], "datatype": OUTPUTS[name], "data": values}
            for name, values in found.items()
            if None not in values
        ],
    }
    return answer if id is None else {**answer, "id": id}
