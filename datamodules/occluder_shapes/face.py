"""The places of the parts of a face, from its label."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from structseg.datamodules.drawing.geometry import Array, Frame
from structseg.datamodules.drawing.grid import Grid
from structseg.datamodules.label_spaces import CELEBAMASK_HQ

_EARS = ("l_ear", "r_ear")
_ON_FACE = ("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "mouth", "u_lip", "l_lip")
_ON_HEAD = (*_ON_FACE, *_EARS, "hair", "hat")
_FINEST = 96  # the shorter side of the label in pixels: larger ones are subsampled, down to what eyes need
_FEWEST = 12  # pixels of a face; fewer are an error of the label or too small to cover

Point = tuple[float, float]


@dataclass(frozen=True)
class FacePlace:
    """A face in the coordinates of its own frame: the origin between the eyes, u along them to the picture's right.

    The unit is the distance from the eyes to the mouth; v runs down the face. An average face has its eyes at u = -0.5
    and 0.5, its sides at about -1.05 and 1.05, its chin at 1.7 and its crown at -1.7.

    Attributes:
        frame: in the picture's coordinates (`Grid`).
        eyes: (u, v) of the eyes, the picture's left one first.
        nose, mouth: (u, v) of their centres.
        left, right: u of the face's sides, between the eyes and the mouth.
        chin: v of its lower end.
        brow: u of the sides of the head above the eyes, with hair close to it.
        top: v of the upper end of the head, with hair and hat.
        area: of the face, in squared units.
        worn: classes of CELEBAMASK_HQ that it already wears: eye_g, hat.
    """

    frame: Frame
    eyes: tuple[Point, Point]
    nose: Point
    mouth: Point
    left: float
    right: float
    chin: float
    brow: Point
    top: float
    area: float
    worn: frozenset[str]


class _Points:
    """The pixels of each class of a subsampled label."""

    def __init__(self, mask: NDArray[np.integer]) -> None:
        step = max(1, min(mask.shape) // _FINEST)
        grid = Grid((mask.shape[0], mask.shape[1]))
        self.cell = (grid.pixel * step) ** 2
        self.x, self.y = grid.x[step // 2 :: step], grid.y[step // 2 :: step]
        self.label = mask[step // 2 :: step, step // 2 :: step]

    def of(self, *names: str) -> tuple[Array, Array]:
        table = np.zeros(256, np.bool_)
        table[[CELEBAMASK_HQ.classes.index(name) for name in names]] = True
        rows, columns = np.nonzero(table[self.label])
        return self.x[columns], self.y[rows]

    def middle(self, *names: str) -> Point | None:
        x, y = self.of(*names)
        return (float(x.mean()), float(y.mean())) if x.size else None


def find_face(mask: NDArray[np.integer]) -> FacePlace | None:
    """The face in a label (H, W) of CELEBAMASK_HQ, values to 255; None if the label has no face.

    Missing parts are placed as in an average face, relative to the other parts or to the bounding box of the skin.
    """
    points = _Points(mask)
    x, y = points.of(*_ON_FACE)
    if x.size < _FEWEST:
        return None
    (low_x, high_x), (low_y, high_y) = np.percentile(x, (1, 99)), np.percentile(y, (1, 99))
    # One cell more, so that no side is 0.
    width, height = float(high_x - low_x) + math.sqrt(points.cell), float(high_y - low_y) + math.sqrt(points.cell)
    box_x, box_top = float(low_x + high_x) / 2, float(low_y)
    nose, mouth = points.middle("nose"), points.middle("mouth", "u_lip", "l_lip")
    eyes = [e for e in (points.middle("l_eye"), points.middle("r_eye")) if e is not None]
    brows = [b for b in (points.middle("l_brow"), points.middle("r_brow")) if b is not None]
    angle = _tilt(eyes, width) or _tilt(brows, width)
    if len(eyes) == 2:
        origin = ((eyes[0][0] + eyes[1][0]) / 2, (eyes[0][1] + eyes[1][1]) / 2)
    elif eyes:
        # The other eye is beyond the nose, at most as far away as the eyes of a face of this width.
        away = (nose[0] if nose else box_x) - eyes[0][0]
        origin = (eyes[0][0] + min(max(away, -0.23 * width), 0.23 * width), eyes[0][1])
    elif glasses := points.middle("eye_g"):
        origin = glasses
    elif brows:
        origin = (sum(b[0] for b in brows) / len(brows), sum(b[1] for b in brows) / len(brows) + 0.09 * height)
    elif mouth:
        origin = (box_x, mouth[1] - 0.36 * height)
    else:
        origin = (box_x, box_top + 0.4 * height)
    unit = 0.36 * height
    if mouth is not None:
        down = (mouth[1] - origin[1]) * math.cos(angle) - (mouth[0] - origin[0]) * math.sin(angle)
        unit = min(max(down, 0.25 * height), 0.7 * height)
    elif len(eyes) == 2:
        unit = min(max(math.dist(*eyes), 0.25 * height), 0.7 * height)
    frame = Frame.upright(origin, 1.0).turned(0.0, 0.0, angle, unit)
    return _measure(points, frame, eyes, nose, mouth)


def _tilt(pair: list[Point], width: float) -> float:
    """The angle of the line through a pair of parts; 0 without a pair, or in a face seen from the side."""
    if len(pair) < 2:
        return 0.0
    (x0, y0), (x1, y1) = sorted(pair)
    return math.atan2(y1 - y0, x1 - x0) if x1 - x0 > 0.15 * width else 0.0


def _local(frame: Frame, x: Array, y: Array) -> tuple[Array, Array]:
    dx, dy, square = x - frame.x, y - frame.y, frame.scale**2
    return (dx * frame.ux + dy * frame.uy) / square, (dx * frame.vx + dy * frame.vy) / square


def _measure(points: _Points, frame: Frame, eyes: list[Point], nose: Point | None, mouth: Point | None) -> FacePlace:
    def local(point: Point) -> Point:
        u, v = _local(frame, np.array([point[0]]), np.array([point[1]]))
        return float(u[0]), float(v[0])

    u, v = _local(frame, *points.of(*_ON_FACE))
    head_u, head_v = _local(frame, *points.of(*_ON_HEAD))
    left, right = _sides(u, v, 0.0, 1.0) or _sides(u, v, -9.0, 9.0) or (-1.0, 1.0)
    brow_left, brow_right = _sides(u, v, -0.9, -0.2) or (left, right)
    middle, half = (brow_left + brow_right) / 2, max((brow_right - brow_left) / 2, 0.7 * (right - left) / 2)
    hair_left, hair_right = _sides(head_u, head_v, -0.9, -0.2) or (middle - half, middle + half)
    brow = (max(hair_left, middle - 1.35 * half), min(hair_right, middle + 1.35 * half))
    seen = sorted(local(eye) for eye in eyes)
    spread = min(max(0.46 * (right - left), 0.5), 1.1)
    place = local(nose) if nose is not None else ((seen[0][0] + seen[-1][0]) / 2 if seen else (left + right) / 2, 0.5)
    if len(seen) == 1:
        seen = sorted((seen[0], (-seen[0][0], seen[0][1])))
    elif not seen:
        seen = [(-spread / 2, 0.0), (spread / 2, 0.0)]
    return FacePlace(
        frame=frame,
        eyes=(seen[0], seen[1]),
        nose=place,
        mouth=local(mouth) if mouth is not None else (0.7 * place[0] + 0.15 * (left + right), 1.0),
        left=left,
        right=right,
        chin=float(np.percentile(v, 99.5)),
        brow=brow,
        top=float(np.percentile(head_v, 0.5)),
        area=u.size * points.cell / frame.scale**2,
        worn=frozenset(name for name in ("eye_g", "hat") if points.of(name)[0].size),
    )


def _sides(u: Array, v: Array, low: float, high: float) -> Point | None:
    """The range of u of the points with v in low..high; None if there are too few or it is too narrow."""
    row = u[(v > low) & (v < high)]
    if not row.size:
        return None
    left, right = (float(side) for side in np.percentile(row, (2, 98)))
    return (left, right) if right - left > 0.2 else None
