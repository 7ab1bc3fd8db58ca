"""What differs between eyes, and where their retinal layers lie in a B-scan through the macula."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from medad_serve.data.phantoms.drawing import Floats, floats, wave

HEIGHT, WIDTH = 496, 512
AXIAL_UM, LATERAL_UM = 3.87, 11.5
"""Micrometres a pixel: the usual depth sampling, and 512 A-scans over 5.9 mm."""

LAYERS = ("nfl", "gcl", "ipl", "inl", "opl", "onl", "is", "ez", "iz", "rpe")
"""From the vitreous to Bruch's membrane; ``is`` holds the inner segments, ``ez`` the ellipsoid zone."""
_AWAY_UM = {"opl": 28, "onl": 62, "is": 24, "ez": 18, "iz": 18, "rpe": 28}
"""Thickness away from the fovea, of those layers that vary little over the macula."""


@dataclass(frozen=True)
class Eye:
    """One eye in one scan: lengths in px unless named, displayed brightness in 0..1.

    Brightness, noise and place in the image differ between patients more than any disease changes them, as
    they do between scanners, operators and cloudy lenses.
    """

    row: float
    """Of Bruch's membrane under the middle of the scan."""
    tilt: float
    """Rows it descends over the scan's width."""
    sag: float
    """Rows by which the middle lies beneath the ends."""
    undulation: Floats
    """(512,) rows of its own slow ups and downs."""
    fovea: float
    """Column of the foveal centre."""
    pit: float
    """How much of the pit the scan meets: 1 through its centre, 0 far from it."""
    pit_um: float
    """Half width of the pit."""
    nasal: int
    """1 where the optic disc lies to the right, -1 to the left: nerve fibres thicken that way."""
    thickness: tuple[float, ...]
    """Of each layer, relative to the mean eye."""
    choroid: float
    """Thickness of the choroid."""
    levels: tuple[float, ...]
    """Brightness of each layer, added to that of the mean eye."""
    gain: float
    """Of the display."""
    floor: float
    """Brightness of the noise where no light comes back."""
    black: float
    """Share of the noise's mean that the display takes off."""
    looks: float
    """Independent speckle patterns averaged (frames of the scan)."""
    cut: float
    """Rows without a signal at the upper edge, where a registered scan was shifted down; 0 in most."""
    hyaloid: float
    """Rows between retina and posterior hyaloid, 0 where it is not seen."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Eye:
        """Draw a patient's eye."""
        common = rng.normal(1.0, 0.05)
        return cls(
            row=rng.uniform(235, 330),
            tilt=rng.normal(0, 14),
            sag=rng.uniform(-4, 30),
            undulation=floats(1.2 * wave(rng, WIDTH, 4)),
            fovea=rng.uniform(0.38, 0.62) * WIDTH,
            pit=rng.uniform(0.35, 1.0),
            pit_um=rng.uniform(380, 560),
            nasal=int(rng.choice([-1, 1])),
            thickness=tuple(np.clip(rng.normal(common, 0.05, len(LAYERS)), 0.8, 1.2).tolist()),
            choroid=rng.uniform(40, 85),
            levels=tuple(rng.normal(0, 0.012, len(LAYERS)).tolist()),
            gain=rng.uniform(0.78, 1.18),
            floor=rng.uniform(0.08, 0.3),
            black=rng.uniform(0.9, 1.15),
            looks=rng.uniform(1.0, 3.5),
            cut=float(rng.integers(2, 26)) if rng.random() < 0.25 else 0.0,
            hyaloid=rng.uniform(6, 40) if rng.random() < 0.35 else 0.0,
        )

    def neighbour(self, rng: np.random.Generator) -> Eye:
        """Return the eye as another scan of the same volume meets it: another height, more or less of the pit."""
        return replace(
            self,
            row=self.row + rng.normal(0, 4),
            tilt=self.tilt + rng.normal(0, 2),
            sag=self.sag + rng.normal(0, 1),
            undulation=floats(self.undulation + 0.4 * wave(rng, WIDTH, 4)),
            pit=float(np.clip(self.pit + rng.normal(0, 0.15), 0.35, 1)),
            cut=max(0.0, self.cut + rng.normal(0, 3)) if self.cut else 0.0,
        )

    def bruch(self) -> Floats:
        """Return the row of Bruch's membrane in every column, (512,)."""
        u = np.linspace(-1, 1, WIDTH)
        return floats(self.row + self.tilt * u / 2 - self.sag * u**2 + self.undulation)

    def pit_profile(self) -> Floats:
        """Return how much of the inner retina the pit takes in every column, 0..1."""
        return floats(self.pit * np.exp(-((self._from_fovea() / self.pit_um) ** 2)))

    def thicknesses(self) -> dict[str, Floats]:
        """Return the thickness of every layer in every column, (512,) px each, none of it swollen or lost."""
        x = self._from_fovea()
        pit = self.pit_profile()
        rim = np.exp(-(((np.abs(x) - 950) / 900) ** 2))
        nerve = 12 + 34 / (1 + np.exp(-(self.nasal * x - 1900) / 500))
        um = {
            "nfl": nerve * (1 - 0.95 * pit),
            "gcl": (20 + 30 * rim) * (1 - pit),
            "ipl": (22 + 24 * rim) * (1 - 0.97 * pit),
            "inl": (29 + 12 * rim) * (1 - 0.95 * pit),
            **{name: np.full(WIDTH, float(value)) for name, value in _AWAY_UM.items()},
        }
        um["opl"] *= 1 - 0.55 * pit
        um["onl"] += 42 * pit  # cones stand closest at the fovea, their axons fan outward
        um["iz"] += 8 * pit
        return {name: floats(um[name] * factor / AXIAL_UM) for name, factor in zip(LAYERS, self.thickness, strict=True)}

    def _from_fovea(self) -> Floats:
        return floats((np.arange(WIDTH) - self.fovea) * LATERAL_UM)
