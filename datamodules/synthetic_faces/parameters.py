"""The random parameters of one picture, without the numbers of its textures."""

from __future__ import annotations

from dataclasses import dataclass

from structseg.datamodules.drawing.geometry import Array

# Lengths are in head units: half the height of the head from crown to chin. Angles are radians.


@dataclass(frozen=True)
class Pose:
    """Where the head is: x, y, scale in picture units; positive yaw turns to the picture's right, pitch downwards."""

    x: float
    y: float
    scale: float
    yaw: float
    pitch: float
    roll: float


@dataclass(frozen=True)
class Head:
    """The shape of skull and jaw, the skin and its age; `jaw` are the superellipse powers of the lower face."""

    width: float
    jaw: tuple[float, float]
    crown: float
    tone: Array
    blush: float
    freckles: float
    age: float
    ear_size: float
    ear_tilt: float
    ear_out: float


@dataclass(frozen=True)
class Eyes:
    """Both eyes; `openness` 0 is shut; gaze is the iris's shift."""

    y: float
    apart: float
    width: float
    height: float
    tilt: float
    openness: tuple[float, float]
    iris: Array
    iris_radius: float
    gaze: tuple[float, float]
    lashes: float
    shadow: Array | None
    lid: float


@dataclass(frozen=True)
class Brows:
    """Both brows; y is above the eyes."""

    y: float
    width: float
    thickness: float
    arch: float
    tilt: float
    taper: float
    colour: Array


@dataclass(frozen=True)
class Nose:
    """The nose; y is its base."""

    y: float
    length: float
    width: float
    bridge: float
    tip: float
    nostrils: float


@dataclass(frozen=True)
class Mouth:
    """Lips and inner mouth; `open` is the gap between the lips."""

    y: float
    width: float
    upper: float
    lower: float
    bow: float
    smile: float
    open: float
    skew: float
    teeth: float
    colour: Array
    gloss: float


@dataclass(frozen=True)
class Hair:
    """The style of the head's hair.

    kind: bald, buzz, short, curly, bob, long or updo. hairline: height on the forehead (negative: above the eyes).
    part: place of the part. fall: slope of the fringe on either side of the part. inner: distance from the middle at
    the temples. drop: additional distance at the chin. end: height of the lower end. tucked: whether it is behind the
    ear on the picture's left and right.
    """

    kind: str
    colour: Array
    gloss: float
    contrast: float
    sides: float
    top: float
    hairline: float
    part: float
    fall: tuple[float, float]
    jag: float
    inner: float
    drop: tuple[float, float]
    end: float
    width: float
    tucked: tuple[bool, bool]
    wave: float
    wave_length: float
    phase: float
    bun: float
    bun_size: float


@dataclass(frozen=True)
class Beard:
    """Facial hair: stubble, moustache, goatee or full."""

    kind: str
    colour: Array
    density: float
    line: float
    moustache: float


@dataclass(frozen=True)
class Body:
    """Neck and clothes; `collar` is the height at which the clothes begin beside the neck."""

    neck: float
    shoulder: float
    slope: float
    collar: float
    shift: float
    neckline: str
    depth: float
    colour: Array
    second: Array
    pattern: str
    period: float


@dataclass(frozen=True)
class Glasses:
    """Frame and lenses; `dark` is the lenses' opacity."""

    shape: float
    width: float
    height: float
    y: float
    rim: float
    colour: Array
    lens: Array
    dark: float


@dataclass(frozen=True)
class Hat:
    """A cap, beanie or brimmed hat; `line` is the height of its lower edge."""

    kind: str
    colour: Array
    second: Array
    line: float
    height: float
    brim: float
    turn: float


@dataclass(frozen=True)
class Jewels:
    """Earrings (none, stud, hoop or drop) and necklace (none, chain or pearls)."""

    earring: str
    size: float
    metal: Array
    necklace: str
    stone: Array


@dataclass(frozen=True)
class Occluder:
    """An occluder: hand, cup, phone, mask, microphone or block; x, y in head units."""

    kind: str
    x: float
    y: float
    size: float
    angle: float
    side: float
    colour: Array
    second: Array
    spread: float


@dataclass(frozen=True)
class Light:
    """A key light from (x, y, z), z towards the viewer; `tint` multiplies the whole picture."""

    direction: tuple[float, float, float]
    ambient: float
    tint: Array
    vignette: float


@dataclass(frozen=True)
class Camera:
    """Blur (standard deviation, share of the shorter side), noise (standard deviation), contrast and exposure."""

    blur: float
    noise: float
    contrast: float
    exposure: float


@dataclass(frozen=True)
class Face:
    """All parameters of one picture."""

    pose: Pose
    head: Head
    eyes: Eyes
    brows: Brows
    nose: Nose
    mouth: Mouth
    hair: Hair
    beard: Beard | None
    body: Body
    glasses: Glasses | None
    hat: Hat | None
    jewels: Jewels
    occluder: Occluder | None
    background: str
    light: Light
    camera: Camera
