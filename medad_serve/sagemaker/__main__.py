"""Entry point of a SageMaker container: ``python -m medad_serve.sagemaker [train | serve]``.

As the entry point of an image it takes the argument that SageMaker gives (train, serve). As the program of the
training toolkit (script mode) it is called with the hyperparameters as arguments, which ``SM_HPS`` holds too.
Exit code 0 at the end of the training, 1 with the reason in ``/opt/ml/output/failure``, 143 where it was stopped.
"""

from __future__ import annotations

import os
import sys
import traceback

from medad_serve.errors import MedadError
from medad_serve.sagemaker.container import read_container, root_of

DEBUG = "MEDAD_DEBUG"


def _say(text: str) -> None:
    print(text, flush=True)


def _train() -> int:
    from medad_serve.sagemaker.job import STOPPED, StoppedJob, train_job

    try:
        train_job(read_container(os.environ), _say)
    except StoppedJob as stopped:
        _say(str(stopped))
        return STOPPED
    return 0


def _reason(error: Exception) -> str:
    if isinstance(error, MedadError):
        return str(error)
    if isinstance(error, OSError | MemoryError):
        told = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return f"{told}. Check the volume's size and the memory of the instance"
    return f"internal fault ({type(error).__name__}). Set {DEBUG}=1 in the job's environment to see where"


def main(arguments: list[str]) -> int:
    """Train, or with the argument ``serve`` serve; return the exit code."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    serving = arguments[:1] == ["serve"]
    try:
        if serving:
            from medad_serve.sagemaker.hosting import serve

            serve(os.environ)
            return 0
        return _train()
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        print(f"Error: {_reason(error)}", file=sys.stderr, flush=True)
        if not serving:
            _leave_reason(_reason(error))
        return 1


def _leave_reason(reason: str) -> None:
    """Write the line that SageMaker shows as the FailureReason of the job; it keeps 1,024 characters."""
    path = root_of(os.environ) / "output/failure"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason[:1024], encoding="utf-8")
    except OSError as error:
        print(f"Error: {path} cannot be written ({type(error).__name__})", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
