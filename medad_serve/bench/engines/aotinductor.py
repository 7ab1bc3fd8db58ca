"""AOTInductor: the trained model compiled in advance into a shared library, one for each batch size.

Shapes are fixed and weights not frozen: with a batch axis left open, or with ``freezing``, torch 2.14 compiled an
autoencoder whose reconstructions were off by 3e-3; so they agree to rounding.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from medad_serve.bench.engines.base import Engine, Session, Setup, Subject, register
from medad_serve.bench.engines.weights import (
    FixedSession,
    missing_compiler,
    missing_for_weights,
    trained,
    use_threads,
)


@register
class AotInductor(Engine):
    """``torch._inductor.aoti_compile_and_package``; the package alone is loaded, without the model's code."""

    name = "AOTInductor"
    key = "run"
    devices = ("cpu", "cuda")

    def missing(self, subject: Subject, setup: Setup) -> str | None:
        """Return what is not here."""
        return missing_for_weights(subject, setup) or missing_compiler()

    def build(self, subject: Subject, setup: Setup) -> None:
        """Compile for each batch size; how many threads the code will use is settled by it."""
        import torch
        from torch._inductor import aoti_compile_and_package

        from medad_serve.export.graph import example

        module = trained(subject, setup)
        logging.getLogger("torch._inductor").setLevel(logging.ERROR)
        for batch, package in self._packages(subject, setup).items():
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(module, (example(subject.shape, batch).to(setup.device),))
                aoti_compile_and_package(program, package_path=str(package))

    def open(self, subject: Subject, setup: Setup) -> Session:
        """Load the packages."""
        from torch._inductor import aoti_load_package

        use_threads(setup)
        packages = self._packages(subject, setup)
        return FixedSession({size: aoti_load_package(str(file)) for size, file in packages.items()}, subject, setup)

    def files(self, subject: Subject, setup: Setup) -> tuple[Path, ...]:
        """Return the package of the smallest batch: whoever serves fixed batches needs one."""
        packages = self._packages(subject, setup)
        return (packages[min(packages)],)

    def _packages(self, subject: Subject, setup: Setup) -> dict[int, Path]:
        where = f"{setup.device.replace(':', '')}-{setup.threads}"
        return {size: subject.scratch / f"aot-{where}-{size}.pt2" for size in setup.batches}
