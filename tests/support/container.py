"""A SageMaker container: its hyperparameters and its entry point as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HYPERPARAMETERS = {
    "model": "ae",
    "name": "heads-ae",
    "train.max_epochs": "60",
    "train.checkpoint_seconds": "600",
    "settings.hidden_dim": "16",
    "calibration.policy": "specificity=0.8",
    "calibration.method": "held_out",
}


def start_job(root: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start the entry point as a container of ``root`` would."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SM_", "MEDAD_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "medad_serve.sagemaker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**own, "MEDAD_SAGEMAKER_ROOT": str(root), **environ},
    )


def write_hyperparameters(root: Path, values: dict[str, Any]) -> None:
    """Write what the job was asked for, as SageMaker does."""
    (root / "input/config").mkdir(parents=True, exist_ok=True)
    (root / "input/config/hyperparameters.json").write_text(json.dumps(values))
