"""Rendering a face from a seed: its layers from back to front, then the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array
from structseg.datamodules.synthetic_faces.background import paint_background
from structseg.datamodules.synthetic_faces.canvas import FaceCanvas
from structseg.datamodules.synthetic_faces.clothes import paint_clothes, paint_necklace
from structseg.datamodules.synthetic_faces.features import paint_brow, paint_eye, paint_mouth, paint_nose
from structseg.datamodules.synthetic_faces.hair import HairPainter
from structseg.datamodules.synthetic_faces.head import (
    Rig,
    cast_light,
    model_face,
    paint_beard,
    paint_ear,
    paint_neck,
    paint_skin,
)
from structseg.datamodules.synthetic_faces.occluders import paint_occluder
from structseg.datamodules.synthetic_faces.parameters import Camera, Face, Light
from structseg.datamodules.synthetic_faces.sampling import sample_face
from structseg.datamodules.synthetic_faces.wear import ear_shows, paint_earring, paint_glasses, paint_hat

SMALLEST, LARGEST = 32, 1024


@dataclass(frozen=True, eq=False)
class Rendering:
    """One rendered face.

    Attributes:
        image: (H, W, 3) uint8.
        label: (H, W) uint8, classes of CELEBAMASK_HQ: a pixel has the class of the topmost shape that covers its
            centre; light, blur and noise do not change it. Beards are skin and lenses eye_g, as in CelebAMask-HQ; hands
            and other occluders are background.
        occluder: (H, W) bool, pixels of hands and other occluders.
    """

    image: NDArray[np.uint8]
    label: NDArray[np.uint8]
    occluder: NDArray[np.bool_]


def render_face(seed: int, index: int, size: tuple[int, int] = (128, 128), split: int = 0) -> Rendering:
    """The face number `index` of a seed's split, as (H, W) pixels: the same face at every size.

    Args:
        seed: of the whole data set, at least 0.
        index: of the sample within its split, at least 0.
        size: (H, W), each 32..1024; the shorter side spans the scene, the longer one shows more of the background.
        split: number of the split; splits have different samples.

    Raises:
        ValueError: a side is not within 32..1024.
    """
    check_size(size)
    choices, texture, grain = (np.random.default_rng([seed, split, index, stream]) for stream in range(3))
    return render(sample_face(Dice(choices)), texture, grain, size)


def check_size(size: tuple[int, int]) -> None:
    """Raise a ValueError unless size is (H, W) with both within 32..1024."""
    if len(size) != 2 or not all(SMALLEST <= side <= LARGEST for side in size):
        raise ValueError(f"size {tuple(size)}; expected (H, W), each {SMALLEST}..{LARGEST}: choose a size within that")


def render(face: Face, texture: np.random.Generator, grain: np.random.Generator, size: tuple[int, int]) -> Rendering:
    """Paints a face; `texture` is the randomness of strands, cloth and background, `grain` of the camera's noise."""
    canvas = FaceCanvas(size)
    rig = Rig(face)
    dice = Dice(texture)
    numbers = dice.field(32, 32)
    painter = HairPainter(rig, texture)
    paint_background(canvas, face.background, dice)
    cast_light(canvas, rig, face.light)
    painter.behind(canvas)
    paint_neck(canvas, rig)
    paint_clothes(canvas, rig, numbers)
    if face.jewels.necklace != "none":
        paint_necklace(canvas, rig)
    # The ear that the turn brings forward is in front of the cheek, the other one behind it.
    ears = [side for side in (-1.0, 1.0) if ear_shows(rig, side)]
    before = [side for side in ears if -side * rig.turn > 0.12]
    for side in ears:
        if side not in before:
            paint_ear(canvas, rig, side)
    paint_skin(canvas, rig, numbers)
    for side in before:
        paint_ear(canvas, rig, side)
    model_face(canvas, rig, numbers)
    if face.beard is not None:
        paint_beard(canvas, rig, face.beard, numbers)
    for side in (-1.0, 1.0):
        paint_eye(canvas, rig, side)
    for side in (-1.0, 1.0):
        paint_brow(canvas, rig, side, numbers)
    paint_mouth(canvas, rig)
    paint_nose(canvas, rig)
    if face.glasses is not None:
        paint_glasses(canvas, rig, face.glasses)
    if face.jewels.earring != "none":
        for side in ears:
            paint_earring(canvas, rig, side)
    painter.before(canvas)
    if face.hat is not None:
        paint_hat(canvas, rig, face.hat, numbers)
    if face.occluder is not None:
        paint_occluder(canvas, rig, face.occluder, numbers)
    return Rendering(_photograph(canvas, face.light, face.camera, grain), canvas.label, canvas.occluder)


def _photograph(canvas: FaceCanvas, light: Light, camera: Camera, grain: np.random.Generator) -> NDArray[np.uint8]:
    """Applies tint, vignette, blur, contrast and noise to the image, not to the labels."""
    image = canvas.image
    if camera.blur:
        sigma = camera.blur * 2.0 / canvas.pixel
        image = ndimage.gaussian_filter(image, (0.0, sigma, sigma), truncate=2.5)
    fall = 1.0 - np.float32(0.5 * light.vignette) * (np.square(canvas.x) + np.square(canvas.y)[:, None])
    image = image * (fall * np.float32(camera.contrast))
    image *= (light.tint * np.float32(camera.exposure * 255.0))[:, None, None]
    image += np.float32(127.0 * (1.0 - camera.contrast))
    # Highlights are compressed before they clip, as on film: slope 0.5 above 85 %.
    np.minimum(image, image * 0.5 + np.float32(0.425 * 255.0), out=image)
    if camera.noise:
        image += _grain(grain, image.shape, camera.noise * 255.0)
    image += np.float32(0.5)
    np.clip(image, 0.0, 255.0, out=image)
    return np.ascontiguousarray(image.astype(np.uint8).transpose(1, 2, 0))


def _grain(rng: np.random.Generator, shape: tuple[int, ...], deviation: float) -> Array:
    # The difference of two uniform numbers is nearly normal, and faster to draw.
    grain = rng.random(shape, dtype=np.float32)
    grain -= rng.random(shape, dtype=np.float32)
    grain *= np.float32(deviation * 6.0**0.5)
    return grain
