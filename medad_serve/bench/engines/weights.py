"""A run's trained weights as a function of one tensor, and how such functions are called and timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medad_serve.bench.engines.base import RUN_NEEDED, Session, Setup, Subject
from medad_serve.runtime import FloatArray, Outputs

if TYPE_CHECKING:
    from torch import Tensor

    from medad_serve.export.graph import TupleOutputs


def missing_for_torch(device: str) -> str | None:
    """Return why torch cannot use a device here."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device"
    return None


def missing_for_weights(subject: Subject, setup: Setup) -> str | None:
    """Return why the trained weights cannot run here."""
    return RUN_NEEDED if subject.run is None else missing_for_torch(setup.device)


def missing_compiler() -> str | None:
    """Return why torch's compiler cannot make code for the processor."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler was found: install g++ or clang++"
    return None


def weights_file(subject: Subject) -> Path:
    """Return the checkpoint that holds the trained weights."""
    from medad_serve.training.run import BEST

    assert subject.run is not None
    return subject.run / BEST


def trained(subject: Subject, setup: Setup) -> TupleOutputs:
    """Load the trained model onto the device, in evaluation mode; torch then uses the setup's threads."""
    from medad_serve.export.graph import TupleOutputs
    from medad_serve.training.run import open_run

    assert subject.run is not None
    use_threads(setup)
    return TupleOutputs(open_run(subject.run).trained()).eval().requires_grad_(False).to(setup.device)


def use_threads(setup: Setup) -> None:
    """Tell torch how many threads it may use, and to compute in float32 where it is asked to."""
    import torch

    torch.set_num_threads(setup.threads)
    torch.backends.cudnn.allow_tf32 = False


class TorchSession(Session):
    """Calls a function of one tensor that returns the outputs in the order of their names."""

    def __init__(self, function: Callable[[Tensor], Sequence[Tensor]], subject: Subject, setup: Setup) -> None:
        self.function, self.outputs, self.setup = function, subject.names, setup

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch, copied to the device and back."""
        import torch

        found = dict(zip(self.outputs, self._call(torch.from_numpy(batch).to(self.setup.device)), strict=True))
        return {name: found[name].cpu().numpy() for name in names}

    def resident(self, batch: FloatArray) -> Callable[[], object] | None:
        """Return a call on a batch that lies on the device, until the device has ended it."""
        import torch

        if self.setup.device == "cpu":
            return None
        x = torch.from_numpy(batch).to(self.setup.device)

        def call() -> None:
            self._call(x)
            torch.cuda.synchronize(x.device)

        return call

    def _call(self, x: Tensor) -> Sequence[Tensor]:
        import torch

        with torch.inference_mode(), self._precision():
            return self.function(x)

    def _precision(self) -> AbstractContextManager[object]:
        import torch

        if self.setup.precision == "float32":
            return nullcontext()
        return torch.autocast(self.setup.device.partition(":")[0], getattr(torch, self.setup.precision))


class FixedSession(TorchSession):
    """Calls functions that take one batch size each; a smaller batch is filled up with its last item."""

    def __init__(
        self, functions: Mapping[int, Callable[[Tensor], Sequence[Tensor]]], subject: Subject, setup: Setup
    ) -> None:
        super().__init__(lambda x: functions[len(x)](x), subject, setup)
        self.sizes = sorted(functions)

    def run(self, batch: FloatArray, names: Sequence[str]) -> Outputs:
        """Run one batch, no larger than the largest that there is a function for."""
        size = next(size for size in self.sizes if size >= len(batch))
        filled = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        return {name: found[: len(batch)] for name, found in super().run(filled, names).items()}
