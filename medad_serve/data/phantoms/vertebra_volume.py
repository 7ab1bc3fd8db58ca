"""A vertebra as cropped from CT through a bone window: its neighbours, muscle, fat and vessels, then noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter1d

from medad_serve.data.phantoms.drawing import Floats, Mask, floats, opacity, over, wave
from medad_serve.data.phantoms.vertebra_shape import Fracture, Point, Rod, Shape

SIDE_MM = 128.0
"""Of a crop; a bone window of -450 to 1050 HU makes 0..1 of it."""
_BEFORE = 25.0  # mm from the crop's middle forward to that of the vertebral body: the arch takes the rest
_NEIGHBOURS = 2  # above and below; of the outer two a crop holds an edge


@dataclass(frozen=True)
class Patient:
    """What a patient's vertebrae share; brightness in 0..1 of the bone window, lengths in mm."""

    scale: float
    cancellous: float
    """Differs widely: young bone is dense. It does not follow the fractures, or brightness would tell them."""
    cortex: float
    shell: float
    """Thickness of the cortex."""
    muscle: float
    fat: float
    bulk: float
    """Size of the muscles, relative."""
    disc: float
    """Height of a disc."""
    curve: float
    """Degrees by which one vertebra is tilted against the next: lordosis."""
    noise: float
    trabeculae: float
    """Spread of cancellous bone."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Patient:
        """Draw a patient."""
        return cls(
            scale=float(np.clip(rng.normal(1, 0.05), 0.88, 1.12)),
            cancellous=rng.uniform(0.43, 0.58),
            cortex=rng.uniform(0.88, 1.0),
            shell=rng.uniform(0.9, 1.5),
            muscle=rng.uniform(0.315, 0.345),
            fat=rng.uniform(0.215, 0.245),
            bulk=rng.uniform(0.8, 1.15),
            disc=rng.uniform(7.0, 11.0),
            curve=rng.uniform(2.0, 8.0),
            noise=rng.uniform(0.012, 0.035),
            trabeculae=rng.uniform(0.015, 0.04),
        )


@dataclass(frozen=True)
class Pose:
    """Where a vertebra stands in the crop: mm up, back and left of its middle; degrees."""

    z: float
    y: float
    x: float
    tilt: float
    """Of the upper endplate, forward and down."""
    lean: float
    """To the left."""
    turn: float
    """About the axis of the spine."""


class Drawn(NamedTuple):
    """A crop and its truth, (size, size, size) each: slice upward, row backward, column leftward."""

    values: Floats
    body: Mask
    """The vertebral body in the middle."""
    changed: Mask
    """What the fracture changed: the room that the body lost, and the denser bone; empty without one."""


def vertebra_volume(
    rng: np.random.Generator, patient: Patient, level: int, fracture: Fracture | None = None, *, size: int = 128
) -> Drawn:
    """Draw the crop around ``LEVELS[level]``: float32 in 0..1, ``SIDE_MM / size`` mm a voxel."""
    shapes = [Shape.draw(rng, level + below, patient.scale) for below in range(-_NEIGHBOURS, _NEIGHBOURS + 1)]
    middle = shapes[_NEIGHBOURS]
    poses = _poses(rng, patient, shapes, fracture)
    values = _surroundings(rng, patient, middle, poses[_NEIGHBOURS], size)
    canvas = _Canvas(rng, patient, values)
    for shape, pose in zip(shapes, poses, strict=True):
        canvas.lay_disc(shape, pose)
    for shape, pose in zip(shapes, poses, strict=True):
        canvas.lay_arch(shape, pose)
        if shape is not middle:
            canvas.lay_body(shape, pose, None)
    body, changed = canvas.lay_body(middle, poses[_NEIGHBOURS], fracture)
    values += _noise(rng, patient.noise, size)
    return Drawn(np.clip(values, 0, 1, out=values), body, changed)


def _poses(rng: np.random.Generator, patient: Patient, shapes: list[Shape], fracture: Fracture | None) -> list[Pose]:
    """Return where every vertebra stands, from above downward: on an arc, closer to a fracture and bent by it."""
    here = Pose(
        z=rng.normal(0, 1.5),
        y=-_BEFORE + rng.normal(0, 1.5),
        x=rng.normal(0, 1),
        tilt=rng.normal(0, 3),
        lean=rng.normal(0, 1.2),
        turn=rng.normal(0, 1.5),
    )
    lowered, raised, kink = _collapse(shapes[_NEIGHBOURS], fracture)
    poses = [here]
    for upward, lost, bend in ((1, lowered, kink), (-1, raised, 0.0)):
        pose = here
        for step in range(_NEIGHBOURS):
            last, following = (shapes[_NEIGHBOURS - upward * s] for s in (step, step + 1))
            apart = upward * ((last.height + following.height) / 2 + patient.disc - (0 if step else lost))
            arc = np.radians(pose.tilt)
            pose = replace(
                pose,
                z=pose.z + apart * np.cos(arc),
                y=pose.y - apart * np.sin(arc),
                tilt=pose.tilt - upward * patient.curve + (0 if step else bend),
            )
            poses.insert(0 if upward > 0 else len(poses), pose)
    return poses


def _collapse(shape: Shape, fracture: Fracture | None) -> tuple[float, float, float]:
    """Return the mm by which the upper plate sinks and the lower one rises, and the degrees they bend the spine."""
    if fracture is None:
        return 0.0, 0.0, 0.0
    ends = floats([-0.9 * shape.half_depth, 0.9 * shape.half_depth])
    at = Point(floats([0, 0]), ends, floats([0, 0]))
    low, top = shape.plates(at, None)
    low_now, top_now = shape.plates(at, fracture)
    wedge = float(np.diff(top_now - low_now)[0] - np.diff(top - low)[0])
    # Discs take up part of the wedge; the rest bends the spine forward.
    kink = 0.6 * float(np.degrees(np.arctan2(wedge, 1.8 * shape.half_depth)))
    return float((top - top_now).mean()), float((low_now - low).mean()), kink


class _Canvas:
    """The crop being painted."""

    def __init__(self, rng: np.random.Generator, patient: Patient, values: Floats) -> None:
        self._rng, self._patient, self._values = rng, patient, values
        self._size = values.shape[0]
        self._voxel = SIDE_MM / self._size
        self._edge = max(1.1, self._voxel)  # of the scanner's kernel, and of the voxels

    def lay_disc(self, shape: Shape, pose: Pose) -> None:
        """Paint the discs on both sides of a vertebra, to be covered by the bones."""
        box, at = self._frame(pose, _reach_of_body(shape, self._patient.disc))
        depth = shape.disc(at, self._patient.disc / 2 + 1)
        self._values[box] = over(self._values[box], depth, np.float32(0.345), self._edge)

    def lay_arch(self, shape: Shape, pose: Pose) -> None:
        """Paint the posterior elements of a vertebra, grown together to one bone."""
        halves = list(shape.posterior())
        rods = [*halves, *(_mirrored(rod) for rod in halves)]
        reaches = [rod.reach() for rod in rods]
        whole = tuple((min(r[k][0] for r in reaches), max(r[k][1] for r in reaches)) for k in range(3))
        box, at = self._frame(pose, whole)
        if not at.z.size:
            return
        depth = np.full(at.z.shape, -9.0, dtype=np.float32)
        for rod, reach in zip(rods, reaches, strict=True):
            part, near = self._frame(pose, reach)
            inner = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            depth[inner] = np.maximum(depth[inner], rod.depth(near))
        spongy = np.float32(self._patient.cancellous + 0.06)
        shell = opacity(1.4 * self._patient.shell - depth, self._edge)
        bone = spongy + shell * np.float32(self._patient.cortex - spongy)
        self._values[box] = over(self._values[box], depth, bone, self._edge)

    def lay_body(self, shape: Shape, pose: Pose, fracture: Fracture | None) -> tuple[Mask, Mask]:
        """Paint a vertebral body; return where it is and what the fracture changed."""
        body, changed = np.zeros((2, *self._values.shape), dtype=np.bool_)
        box, at = self._frame(pose, _reach_of_body(shape, 0))
        if not at.z.size:
            return body, changed
        depth = shape.body(at, fracture)
        inside = self._spongy(at, shape)
        if fracture is not None:
            low, top = shape.plates(at, fracture)
            felt = fracture.profile(at.y / np.float32(shape.half_depth), _radius(shape, at))
            plate = np.minimum(top - at.z, at.z - low)  # impacted from the plates inward
            band = opacity(fracture.band - plate, 2.0) * np.clip(1.5 * felt, 0, 1)
            inside = floats(inside + fracture.density * band)
            changed[box] = ((shape.body(at) > 0) & (depth <= 0)) | ((depth > 0) & (band > 0.5))
        shell = opacity(self._patient.shell - depth, self._edge)
        bone = inside + shell * (self._patient.cortex - inside)
        self._values[box] = over(self._values[box], depth, bone, self._edge)
        body[box] = depth > 0
        return body, changed

    def _spongy(self, at: Point, shape: Shape) -> Floats:
        """Return cancellous bone: mostly upright trabeculae, and the vein that enters from behind."""
        grain = self._rng.standard_normal(at.z.shape, dtype=np.float32)
        grain = floats(gaussian_filter1d(grain, 1.2 / self._voxel, axis=0))
        v = np.clip(at.y / shape.half_depth, 0, 1)
        vein = np.exp(-((at.z / 2.5) ** 2) - (at.x / (4 + 5 * v)) ** 2) * np.minimum(1.6 * v, 1)
        spread = np.float32(self._patient.trabeculae / max(float(grain.std()), 1e-6))
        return floats(self._patient.cancellous + spread * grain - 0.13 * vein)

    def _frame(self, pose: Pose, reach: tuple[tuple[float, float], ...]) -> tuple[tuple[slice, slice, slice], Point]:
        """Return the part of the crop that ``reach`` (z, y, x in the vertebra's frame) may touch, and its points."""
        turned = _rotation(pose)
        corners = np.array(np.meshgrid(*reach, indexing="ij")).reshape(3, -1)
        around = turned.T @ corners + np.array([[pose.z], [pose.y], [pose.x]])
        middle = (self._size - 1) / 2
        first = np.floor(around.min(axis=1) / self._voxel + middle).astype(int)
        last = np.ceil(around.max(axis=1) / self._voxel + middle).astype(int) + 1
        cut = [slice(max(a, 0), max(b, 0)) for a, b in zip(first, last, strict=True)]
        box = (cut[0], cut[1], cut[2])
        z, y, x = (
            floats((np.arange(self._size)[part] - middle) * self._voxel - origin)
            for part, origin in zip(box, (pose.z, pose.y, pose.x), strict=True)
        )
        turned = turned.astype(np.float32)
        axes = [
            floats(row[0] * z[:, None, None] + row[1] * y[None, :, None] + row[2] * x[None, None, :]) for row in turned
        ]
        return box, Point(*axes)


def _rotation(pose: Pose) -> npt.NDArray[np.float64]:
    """Return the matrix that takes offsets (z, y, x) in the crop into the vertebra's frame."""
    tilt, lean, turn = np.radians([pose.tilt, pose.lean, pose.turn])
    about_x = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    about_y = np.array([[np.cos(lean), 0, -np.sin(lean)], [0, 1, 0], [np.sin(lean), 0, np.cos(lean)]])
    about_z = np.array([[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]])
    return np.asarray(about_z @ about_y @ about_x, dtype=np.float64)


def _reach_of_body(shape: Shape, gap: float) -> tuple[tuple[float, float], ...]:
    high, deep, wide = 0.56 * shape.height + gap, 1.25 * shape.half_depth + 2, 1.15 * shape.half_width + 2
    return (-high, high), (-deep, deep), (-wide, wide)


def _radius(shape: Shape, at: Point) -> Floats:
    return floats(np.minimum(np.hypot(at.x / shape.half_width, at.y / shape.half_depth), 1))


def _mirrored(rod: Rod) -> Rod:
    (z0, y0, x0), (z1, y1, x1) = rod.start, rod.end
    return rod._replace(start=(z0, y0, -x0), end=(z1, y1, -x1))


class _Blob(NamedTuple):
    """An organ's cross-section: mm behind and left of the vertebral body's middle, half axes, brightness."""

    y: float
    x: float
    high: float
    wide: float
    level: float


def _organs(rng: np.random.Generator, patient: Patient, shape: Shape) -> list[_Blob]:
    """Return what lies around a vertebra: vessels, muscles, dural sac, loops of bowel, in one in three some gas."""
    wall, half, bulk, muscle = shape.half_depth, shape.half_width, patient.bulk, patient.muscle
    blobs = [
        _Blob(-wall - 11, 9, 9, 9, muscle + 0.01),  # aorta
        _Blob(-wall - 10, -13, 8, 10, muscle + 0.01),  # vena cava
        _Blob(wall + 10, 0, 8.5, 0.5 * half, 0.325),  # dural sac
    ]
    for side in (-1, 1):
        blobs += [
            _Blob(2, side * (half + 15 * bulk), 19 * bulk, 15 * bulk, muscle),  # psoas
            _Blob(wall + 34, side * 25, 25 * bulk, 25 * bulk, muscle),  # erector spinae
            _Blob(wall + 14, side * 54, 17, 24 * bulk, muscle),  # quadratus lumborum
        ]
    for _ in range(5):
        place = rng.uniform(-70, -wall - 24), rng.uniform(-55, 55)
        blobs.append(_Blob(*place, rng.uniform(8, 18), rng.uniform(8, 24), muscle))
    if rng.random() < 0.3:
        blobs.append(_Blob(rng.uniform(-42, -36), rng.uniform(-40, 40), rng.uniform(3, 8), rng.uniform(4, 12), 0.0))
    return blobs


def _surroundings(rng: np.random.Generator, patient: Patient, shape: Shape, pose: Pose, size: int) -> Floats:
    """Return the soft tissue around the spine: a few cross-sections, faded into each other from below upward."""
    sections = 6
    across = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(SIDE_MM / size)
    maps = np.full((sections, size, size), patient.fat, dtype=np.float32)
    for blob in _organs(rng, patient, shape):
        y = across - np.float32(pose.y + blob.y)
        x = across - np.float32(pose.x + blob.x)
        rows, columns = (np.flatnonzero(np.abs(a) < r + 8) for a, r in ((y, blob.high), (x, blob.wide)))
        if not len(rows) or not len(columns):
            continue
        part = np.s_[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        drift = [1.5 * np.clip(wave(rng, sections, 3), -3, 3)[:, None, None] for _ in range(2)]
        down = (y[rows][:, None] - drift[0]) / np.float32(blob.high)
        left = (x[columns][None, :] - drift[1]) / np.float32(blob.wide)
        inside = (1 - np.hypot(down, left)) * np.float32(min(blob.high, blob.wide))
        maps[part] = over(maps[part], inside, np.float32(blob.level), 3.0)
    streaks = rng.standard_normal((size // 4, size // 4), dtype=np.float32)
    maps += np.float32(0.008) * cv2.resize(streaks, (size, size), interpolation=cv2.INTER_CUBIC)
    place = np.linspace(0, sections - 1, size)
    weights = floats(np.maximum(1 - np.abs(place[:, None] - np.arange(sections)), 0))
    return floats((weights @ maps.reshape(sections, -1)).reshape(size, size, size))


def _noise(rng: np.random.Generator, sigma: float, size: int) -> Floats:
    """Return CT noise, a little correlated within a slice by the reconstruction."""
    noise = rng.standard_normal((size, size, size), dtype=np.float32)
    taps = np.array([0.18, 0.64, 0.18])
    gain = sigma / float((taps**2).sum())
    for plane in noise:
        cv2.sepFilter2D(plane, -1, taps, taps * gain, dst=plane)
    return noise
