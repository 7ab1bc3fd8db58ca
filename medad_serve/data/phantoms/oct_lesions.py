"""Three diseases of the macula as they deform and fill a B-scan: drusen, neovascularisation, macular oedema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from medad_serve.data.phantoms.drawing import Floats, floats, wave
from medad_serve.data.phantoms.oct_eye import WIDTH, Eye


@dataclass(frozen=True)
class Bump:
    """A dome: its middle column, full width and height in px."""

    col: float
    width: float
    height: float

    def profile(self) -> Floats:
        """Return its height in every column, (512,)."""
        u = (np.arange(WIDTH) - self.col) / (self.width / 2)
        return floats(self.height * np.clip(1 - u**2, 0, 1) ** 1.3)


@dataclass(frozen=True)
class Pocket:
    """An ellipse within the retina: a cyst, dark, or a bright focus."""

    col: float
    depth: float
    """Where its middle lies between the inner surface of its layers (0) and their outer one (1)."""
    layers: tuple[str, str]
    """First and last of them."""
    width: float
    height: float
    """px, full."""
    level: float
    """Brightness."""


@dataclass(frozen=True)
class Disease:
    """What a disease adds to an eye; a healthy one has none of it. Heights in px."""

    kind: str
    detachment: tuple[Bump, ...] = ()
    """Under the pigment epithelium: it stands that far above Bruch's membrane."""
    roughness: Floats | None = None
    """(512,) by which detachment differs from its domes, relatively."""
    material: tuple[Bump, ...] = ()
    """Hyperreflective tissue between pigment epithelium and neuroretina."""
    fluid: tuple[Bump, ...] = ()
    """Above it, dark."""
    swelling: tuple[Bump, ...] = ()
    """Thickening of the neuroretina's middle layers."""
    pockets: tuple[Pocket, ...] = ()
    content: float = 0.45
    """Brightness of what lies in a detachment."""

    def neighbour(self, rng: np.random.Generator) -> Disease:
        """Return it as another scan of the same volume cuts it: bumps higher or lower, cysts wider or narrower."""

        def bumps(those: tuple[Bump, ...]) -> tuple[Bump, ...]:
            return tuple(
                replace(b, col=b.col + rng.normal(0, 2), height=b.height * rng.uniform(0.8, 1.15)) for b in those
            )

        return replace(
            self,
            detachment=bumps(self.detachment),
            material=bumps(self.material),
            fluid=bumps(self.fluid),
            swelling=bumps(self.swelling),
            pockets=tuple(replace(p, width=p.width * rng.uniform(0.85, 1.15)) for p in self.pockets),
        )

    def detached(self) -> Floats:
        """Return the height of the pigment epithelium above Bruch's membrane, (512,)."""
        high = highest(self.detachment)
        return high if self.roughness is None else floats(np.maximum(high * (1 + self.roughness), 0))


HEALTHY = Disease("")


def highest(bumps: tuple[Bump, ...]) -> Floats:
    """Return the outline of all of them together, (512,)."""
    return floats(np.max([b.profile() for b in bumps], axis=0)) if bumps else np.zeros(WIDTH, dtype=np.float32)


def _drusen(rng: np.random.Generator, eye: Eye) -> Disease:
    """Deposits under the pigment epithelium: domes 200 to 570 um wide and 30 to 110 um high, in a loose group."""
    middle = eye.fovea + rng.normal(0, 60)
    domes = tuple(
        Bump(
            col=float(np.clip(rng.normal(middle, 75), 20, WIDTH - 20)),
            width=rng.uniform(18, 50),
            height=rng.uniform(8, 26),
        )
        for _ in range(int(rng.integers(4, 11)))
    )
    rough = floats(0.12 * wave(rng, WIDTH, 60))
    return Disease("DRUSEN", detachment=domes, roughness=rough, content=rng.uniform(0.38, 0.6))


def _cnv(rng: np.random.Generator, eye: Eye) -> Disease:
    """A neovascular membrane: ragged detachment, hyperreflective material upon it, fluid under the neuroretina."""
    middle = float(np.clip(eye.fovea + rng.normal(0, 35), 130, WIDTH - 130))
    width = rng.uniform(90, 190)
    detachment = (
        Bump(middle, width, rng.uniform(12, 30)),
        Bump(middle + rng.uniform(-0.4, 0.4) * width, width * rng.uniform(0.3, 0.5), rng.uniform(16, 38)),
    )
    aside = middle + rng.uniform(-0.15, 0.15) * width
    material = (Bump(aside, width * rng.uniform(0.5, 0.85), rng.uniform(10, 24)),)
    wide = Bump(middle + rng.uniform(-0.3, 0.3) * width, width * rng.uniform(1.1, 1.5), rng.uniform(8, 26))
    rough = floats(0.2 * wave(rng, WIDTH, 45))
    cysts = tuple(
        Pocket(
            col=middle + rng.normal(0, 0.25) * width,
            depth=rng.uniform(0.3, 0.7),
            layers=("inl", "onl"),
            width=rng.uniform(8, 20),
            height=rng.uniform(6, 14),
            level=0.14,
        )
        for _ in range(int(rng.integers(0, 4)))
    )
    return Disease(
        "CNV", detachment, rough, material, (wide,), pockets=cysts, content=rng.uniform(0.36, 0.52)
    )  # intraretinal cysts are late, and few


def _dme(rng: np.random.Generator, eye: Eye) -> Disease:
    """Macular oedema: cysts in the inner nuclear and Henle's layers, a thickened retina, hard exudates."""
    middle = float(np.clip(eye.fovea + rng.normal(0, 25), 120, WIDTH - 120))
    width, height = rng.uniform(170, 320), rng.uniform(18, 48)
    spread = width / 5
    outer = [
        Pocket(
            col=rng.normal(middle, spread * 0.7),
            depth=rng.uniform(0.4, 0.6),
            layers=("opl", "onl"),
            width=rng.uniform(14, 34),
            height=rng.uniform(0.7, 1.0) * (16 + 0.6 * height),
            level=rng.uniform(0.1, 0.18),
        )
        for _ in range(int(rng.integers(2, 6)))
    ]
    inner = [
        Pocket(
            col=rng.normal(middle, spread),
            depth=rng.uniform(0.35, 0.65),
            layers=("inl", "inl"),
            width=rng.uniform(8, 20),
            height=rng.uniform(6, 10 + 0.15 * height),
            level=rng.uniform(0.1, 0.2),
        )
        for _ in range(int(rng.integers(3, 9)))
    ]
    exudates = [
        Pocket(
            col=rng.normal(middle, spread * 1.4),
            depth=rng.uniform(0, 1),
            layers=("opl", "opl"),
            width=rng.uniform(4, 10),
            height=rng.uniform(3, 6),
            level=rng.uniform(0.85, 1.0),
        )
        for _ in range(int(rng.integers(0, 7)))
    ]
    swelling = (Bump(middle, width, height),)
    return Disease("DME", swelling=swelling, pockets=(*outer, *inner, *exudates))


DISEASES: dict[str, Callable[[np.random.Generator, Eye], Disease]] = {"DRUSEN": _drusen, "CNV": _cnv, "DME": _dme}
"""How each is drawn, by the name of its class."""
