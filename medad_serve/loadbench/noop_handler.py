"""A TorchServe handler that reads nothing and says the same to all: the floor of what a handler can cost."""

from __future__ import annotations

import json
from typing import Any

ANSWER = json.dumps(
    {
        "model": "no-op",
        "version": "1.0",
        "level": "slice",
        "score": 0.0123456789,
        "p_value": 0.0434782,
        "cutoff": 0.0117123456,
        "policy": "specificity=0.95",
        "anomalous": True,
        "input": {"kind": "dicom", "modality": "CT", "rows": 512, "columns": 512, "frames": 1},
        "warnings": [],
        "timing_ms": {"decode": 0.7, "prepare": 0.3, "infer": 1.2},
    }
).encode()
"""About as many bytes as an answer."""


class NoopHandler:
    """Answers every row."""

    def initialize(self, context: Any) -> None:
        """There is nothing to load."""

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer with a status and a content type for each row, as every handler with statuses of its own must."""
        for index in range(len(data)):
            context.set_response_status(200, "OK", index)
            context.set_response_content_type(index, "application/json")
        return [ANSWER] * len(data)
