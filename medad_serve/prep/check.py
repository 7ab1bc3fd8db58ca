"""Whether an input is one that the model was made for."""

from __future__ import annotations

from collections.abc import Sequence

from medad_serve.errors import InputError
from medad_serve.io import Pixels
from medad_serve.spec import InputSpec, PrepSpec, Window


def by_region(pixels: Pixels, prep: PrepSpec) -> bool:
    """Whether a scan is cut into its labelled structures: it has a label mask and the model knows how."""
    return pixels.labels is not None and prep.regions is not None


def check_input(pixels: Pixels, spec: InputSpec, prep: PrepSpec) -> None:
    """Refuse, with 422 and the reason, pixels that the model was not made for."""
    facts = pixels.facts
    if pixels.is_color:
        raise InputError(422, "the image is in colour", "Send a grayscale image")
    if facts.localizer:
        fault = "by (0008,0008) Image Type this is a localiser (scout view)"
        raise InputError(422, fault, "Send the images that were planned on it")
    stated = facts.modality or not spec.plain_images
    if spec.modalities and stated and facts.modality not in spec.modalities:
        found = f"modality {facts.modality}" if facts.modality else f"file without a modality ({pixels.kind})"
        wanted = " or ".join(spec.modalities)
        raise InputError(422, f"the model reads {wanted}, this is a {found}", f"Send {wanted} as DICOM")
    if spec.body_parts and facts.body_part and facts.body_part not in spec.body_parts:
        raise InputError(
            422,
            "(0018,0015) Body Part Examined is not one that the model was made for",
            f"Send one of {', '.join(spec.body_parts)}",
        )
    if facts.modality == "CT" and not facts.rescaled and facts.stored_range[0] >= 0 and _is_in_units(prep):
        fault = "the CT states no (0028,1052) Rescale Intercept: its values are no HU, which are negative for air"
        raise InputError(422, fault, "Send the CT as it was acquired, with its rescale")
    _check_acquisition(pixels, spec)
    _check_size(pixels, spec, prep)
    if spec.values and not by_region(pixels, prep):
        low, high = spec.values
        if (pixels.array < low).any() or (pixels.array > high).any():
            raise InputError(422, f"the values lie outside {low:g} to {high:g}, which the model reads", spec.hint)


def _is_in_units(prep: PrepSpec) -> bool:
    """Whether values are windowed in their units, rather than by what the file proposes."""
    return isinstance(prep.window, Window) or prep.regions is not None


def _check_acquisition(pixels: Pixels, spec: InputSpec) -> None:
    """Refuse other bit depths and pixel distances than the model's, where the file states its own."""
    bits = pixels.facts.bits if pixels.facts.modality else None  # who admits plain pictures knows what they are
    if spec.bits and bits is not None and not spec.bits[0] <= bits <= spec.bits[1]:
        fault = f"the image holds {bits}-bit values, the model reads {spec.bits[0]} to {spec.bits[1]} bits"
        raise InputError(422, fault, "Send the image as it was acquired, not a picture of it")
    if spec.spacing_mm and pixels.spacing_mm:
        low, high = spec.spacing_mm
        if not low <= min(pixels.spacing_mm) <= max(pixels.spacing_mm) <= high:
            found = "x".join(f"{distance:.3g}" for distance in pixels.spacing_mm)
            fault = f"pixels lie {found} mm apart, the model reads {low:g} to {high:g} mm"
            raise InputError(422, fault, "Send the image as it was acquired, neither magnified nor reduced")


def check_tensor(shape: Sequence[int], expected: Sequence[int]) -> None:
    """Refuse, with 422, a prepared tensor whose ``shape`` is not (N, C, *S), ``expected`` being (C, *S)."""
    if len(shape) != len(expected) + 1 or tuple(shape[1:]) != tuple(expected) or shape[0] < 1:
        found, wanted = ("x".join(map(str, each)) for each in (shape, expected))
        raise InputError(422, f"the tensor is {found}, the model reads Nx{wanted}", "Prepare it to that shape")


def _check_size(pixels: Pixels, spec: InputSpec, prep: PrepSpec) -> None:
    shape = pixels.array.shape[:3] if prep.is_volume else pixels.array.shape[1:3]
    found = "x".join(map(str, shape))
    if prep.is_volume and pixels.frames == 1:
        raise InputError(422, "the model reads volumes, this is a single image", "Send a volume: .npy, NIfTI or a ZIP")
    if prep.is_volume and pixels.facts.uneven:
        why = "; ".join(dict.fromkeys((*pixels.facts.notes, pixels.facts.uneven)))
        fault = f"the model reads volumes, the slices make none: {why}"
        raise InputError(422, fault, "Send every slice of one series, each once")
    if min(pixels.array.shape[1:3]) < spec.min_size:
        raise InputError(422, f"the image is {found} pixels", f"Send at least {spec.min_size}x{spec.min_size}")
    if spec.size and shape != spec.size and not by_region(pixels, prep):
        wanted = "x".join(map(str, spec.size))
        raise InputError(422, f"the {prep.unit} is {found}, the model reads {wanted}", spec.hint)
