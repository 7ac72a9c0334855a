"""Drawing a picture's parameters: the distribution of the faces."""

from __future__ import annotations

import numpy as np

from structseg.datamodules.drawing.dice import Dice
from structseg.datamodules.drawing.geometry import Array
from structseg.datamodules.synthetic_faces import parameters as p

_TONES = (
    (0.93, 0.76, 0.67), (0.91, 0.72, 0.61), (0.88, 0.67, 0.54), (0.84, 0.62, 0.48), (0.77, 0.55, 0.41),
    (0.66, 0.45, 0.33), (0.55, 0.37, 0.27), (0.44, 0.29, 0.22),
)  # fmt: skip
_HAIR = (
    (0.08, 0.06, 0.06), (0.13, 0.09, 0.07), (0.22, 0.14, 0.09), (0.33, 0.21, 0.13), (0.47, 0.31, 0.18),
    (0.68, 0.50, 0.29), (0.86, 0.71, 0.46), (0.50, 0.22, 0.11), (0.34, 0.12, 0.09),
)  # fmt: skip
_GREY = ((0.50, 0.49, 0.48), (0.83, 0.82, 0.80))
_IRIS = (
    (0.24, 0.14, 0.08), (0.33, 0.20, 0.10), (0.17, 0.11, 0.08), (0.36, 0.50, 0.66), (0.45, 0.60, 0.72),
    (0.36, 0.47, 0.30), (0.46, 0.40, 0.22), (0.44, 0.48, 0.50),
)  # fmt: skip


def sample_face(dice: Dice) -> p.Face:
    """Draws all parameters of one picture."""
    feminine = dice.uniform()
    age = max(dice.near(0.35, 0.22), 0.0)
    pose = p.Pose(
        x=dice.near(0.0, 0.05),
        y=dice.near(-0.05, 0.05),
        scale=dice.between(0.76, 0.96) if dice.chance(0.8) else dice.between(0.55, 1.05),
        yaw=dice.near(0.0, 0.25),
        pitch=dice.near(0.0, 0.09),
        roll=dice.near(0.0, 0.09),
    )
    tone = dice.uniform() * (len(_TONES) - 1.001)
    lighter, darker = _TONES[int(tone)], _TONES[int(tone) + 1]
    skin = np.array(lighter, np.float32) + np.float32(tone % 1.0) * (np.subtract(darker, lighter).astype(np.float32))
    skin = skin * np.array([dice.near(1.0, 0.015) for _ in range(3)], np.float32)
    hair_colour = _hair_colour(dice, tone, age)
    occluder = _occluder(dice, skin) if dice.chance(0.18) else None
    hat = _hat(dice) if dice.chance(0.08) else None
    face_height = dice.near(0.0, 0.02)
    eyes = _eyes(dice, feminine, face_height)
    nose_y = 0.41 + face_height + dice.near(0.0, 0.02)
    return p.Face(
        pose=pose,
        head=p.Head(
            width=dice.near(0.672, 0.018) - 0.012 * feminine,
            jaw=(dice.near(2.15 - 0.15 * feminine, 0.12), dice.near(2.5 - 0.45 * feminine, 0.22)),
            crown=dice.between(0.98, 1.04),
            tone=skin,
            blush=dice.between(0.05, 0.3),
            freckles=dice.between(0.2, 0.6) if tone < 2.5 and dice.chance(0.15) else 0.0,
            age=age,
            ear_size=dice.near(1.0, 0.06),
            ear_tilt=dice.near(0.12, 0.05),
            ear_out=dice.near(0.035, 0.015),
        ),
        eyes=eyes,
        brows=p.Brows(
            y=dice.near(0.195, 0.018),
            width=dice.near(0.195, 0.012),
            thickness=dice.near(0.046 - 0.016 * feminine, 0.005),
            arch=dice.near(0.035 + 0.02 * feminine, 0.012),
            tilt=dice.near(-0.015, 0.02),
            taper=dice.between(0.45, 0.9),
            colour=(hair_colour * np.float32(0.55) + skin * np.float32(0.1)).astype(np.float32),
        ),
        nose=p.Nose(
            y=nose_y,
            length=nose_y - eyes.y + dice.between(0.0, 0.05),
            width=dice.near(0.178 - 0.02 * feminine, 0.013),
            bridge=dice.near(0.076, 0.007),
            tip=dice.near(0.092, 0.008),
            nostrils=dice.between(0.5, 1.0),
        ),
        mouth=_mouth(dice, feminine, skin, nose_y),
        hair=_hair(dice, feminine, age, hair_colour, hat is not None),
        beard=_beard(dice, hair_colour) if feminine < 0.45 and dice.chance(0.5) else None,
        body=_body(dice, feminine),
        glasses=_glasses(dice, eyes) if dice.chance(0.10) else None,
        hat=hat,
        jewels=p.Jewels(
            earring=dice.weighted(stud=1, hoop=1, drop=1.4) if dice.chance(0.05 + 0.6 * feminine) else "none",
            size=dice.between(0.7, 1.3),
            metal=dice.mix((0.95, 0.80, 0.42), (0.86, 0.87, 0.90)),
            necklace=dice.weighted(chain=1, pearls=1) if dice.chance(0.02 + 0.14 * feminine) else "none",
            stone=dice.colour(0.5, 1.0, 0.9),
        ),
        occluder=occluder,
        background=dice.weighted(gradient=2, blobs=2, bokeh=2, stripes=1, shelves=1, wall=1, outdoors=1.5),
        light=_light(dice),
        camera=p.Camera(
            blur=dice.between(0.002, 0.008) if dice.chance(0.25) else 0.0,
            noise=dice.between(0.004, 0.025) if dice.chance(0.75) else 0.0,
            contrast=dice.between(0.92, 1.18),
            exposure=dice.between(0.9, 1.1),
        ),
    )


def _hair_colour(dice: Dice, tone: float, age: float) -> Array:
    if dice.chance(0.04):
        return dice.colour(0.4, 0.9, 0.9)
    if age > 0.6 and dice.chance(0.6):
        return dice.mix(*_GREY)
    common = _HAIR[:4] if tone > 4 else _HAIR
    return np.clip(np.array(dice.choose(common), np.float32) * np.float32(dice.near(1.0, 0.12)), 0.02, 1.0)


def _eyes(dice: Dice, feminine: float, face_height: float) -> p.Eyes:
    state = dice.uniform()
    if state < 0.06:
        openness = (0.0, 0.0)
    elif state < 0.08:
        openness = (0.0, 1.0) if dice.chance(0.5) else (1.0, 0.0)
    else:
        level = dice.between(0.55, 1.0)
        openness = (level, level * dice.near(1.0, 0.02))
    painted = feminine > 0.5 and dice.chance(0.4)
    return p.Eyes(
        y=0.01 + face_height,
        apart=dice.near(0.287, 0.01),
        width=dice.near(0.150 + 0.008 * feminine, 0.008),
        height=dice.near(0.068 + 0.012 * feminine, 0.006),
        tilt=dice.near(-0.05, 0.05),
        openness=openness,
        iris=np.array(dice.choose(_IRIS), np.float32),
        iris_radius=dice.near(0.075, 0.003),
        gaze=(dice.near(0.0, 0.015), dice.near(0.0, 0.006)),
        lashes=dice.between(0.010, 0.016) + 0.008 * feminine,
        shadow=dice.mix((0.35, 0.25, 0.30), (0.55, 0.35, 0.30)) if painted else None,
        lid=dice.between(0.2, 0.6),
    )


def _mouth(dice: Dice, feminine: float, skin: Array, nose_y: float) -> p.Mouth:
    smile = dice.near(0.025, 0.022)
    opened = dice.chance(0.58)
    gap = dice.between(0.035, 0.10) if dice.chance(0.75) else dice.between(0.10, 0.22)
    lipstick = feminine > 0.45 and dice.chance(0.6)
    natural = skin * np.array([0.88, 0.62, 0.62], np.float32)
    colour = dice.mix((0.72, 0.12, 0.18), (0.85, 0.42, 0.45)) * (0.4 + 0.6 * skin) if lipstick else natural
    return p.Mouth(
        y=nose_y + dice.near(0.225, 0.013),
        width=dice.near(0.225, 0.015) + (0.05 if opened and gap < 0.12 else 0.0),
        upper=dice.near(0.062 + 0.016 * feminine, 0.008),
        lower=dice.near(0.086 + 0.018 * feminine, 0.010),
        bow=dice.between(0.15, 0.45),
        smile=smile + (0.025 if opened and gap < 0.12 else 0.0),
        open=gap if opened else 0.0,
        skew=dice.near(0.0, 0.03),
        teeth=dice.between(0.5, 1.0) if gap < 0.12 else dice.between(0.15, 0.45),
        colour=colour.astype(np.float32),
        gloss=dice.between(0.05, 0.3) if lipstick else dice.between(0.0, 0.12),
    )


def _hair(dice: Dice, feminine: float, age: float, colour: Array, under_hat: bool) -> p.Hair:
    if feminine > 0.4:
        kind = dice.weighted(long=6.5, bob=2, updo=1.2, curly=1, short=0.5)
    else:
        kind = dice.weighted(short=5, buzz=1, curly=0.8, bald=0.5 + age, long=0.6, bob=0.3)
    front = dice.weighted(open=3.0, side=3.0, middle=1.4, fringe=1.6)
    if front == "fringe":
        hairline, fall = dice.between(-0.42, -0.24), (dice.between(0.0, 0.3), dice.between(0.0, 0.3))
        part = dice.near(0.0, 0.1)
    elif front == "middle":
        hairline, fall = dice.between(-0.74, -0.62), (dice.between(0.9, 1.8), dice.between(0.9, 1.8))
        part = dice.near(0.0, 0.05)
    elif front == "side":
        side = dice.sign()
        steep, shallow = dice.between(0.35, 0.65), dice.between(0.9, 1.6)
        hairline = dice.between(-0.70, -0.56)
        fall, part = ((steep, shallow) if side > 0 else (shallow, steep)), side * dice.between(0.15, 0.38)
    else:
        hairline, fall = dice.between(-0.74, -0.55) - 0.08 * age, (dice.between(0.5, 1.2), dice.between(0.5, 1.2))
        part = dice.near(0.0, 0.15)
    if kind not in ("long", "bob") and (front == "middle" or (front == "fringe" and kind != "short")):
        hairline, fall = dice.between(-0.72, -0.55), (dice.between(0.2, 0.6), dice.between(0.2, 0.6))
    full = {"long": 1.15, "bob": 1.2, "curly": 1.7, "short": 0.8, "buzz": 0.15, "bald": 0.0, "updo": 0.35}[kind]
    thick = dice.between(0.10, 0.27) * full * (0.4 if under_hat else 1.0)
    drop = dice.between(-0.16, 0.10)
    return p.Hair(
        kind=kind,
        colour=colour,
        gloss=dice.between(0.1, 0.5),
        contrast=dice.between(0.35, 0.75),
        sides=0.03 + thick * (0.5 if kind == "short" else 1.0),
        top=0.03 + thick * dice.between(0.8, 1.4),
        hairline=hairline,
        part=part,
        fall=fall,
        jag=dice.between(0.01, 0.05),
        inner=dice.between(0.60, 0.66) if kind in ("short", "buzz", "updo") else dice.between(0.53, 0.63),
        drop=(drop + dice.near(0, 0.03), drop + dice.near(0, 0.03)),
        end=_hair_end(dice, kind),
        width=dice.between(0.15, 0.7) if kind == "long" else dice.between(0.02, 0.2),
        tucked=(dice.chance(0.35), dice.chance(0.35)),
        wave=dice.between(0.02, 0.07) if dice.chance(0.5) else dice.between(0.0, 0.015),
        wave_length=dice.between(0.35, 0.8),
        phase=dice.between(0.0, 6.3),
        bun=dice.near(0.0, 0.25),
        bun_size=dice.between(0.25, 0.42) if kind == "updo" and dice.chance(0.6) else 0.0,
    )


def _hair_end(dice: Dice, kind: str) -> float:
    if kind == "long":
        return dice.between(1.2, 2.4)
    if kind == "bob":
        return dice.between(0.55, 1.0)
    if kind == "curly":
        return dice.between(0.35, 1.0)
    return dice.between(0.02, 0.22)


def _beard(dice: Dice, colour: Array) -> p.Beard:
    kind = dice.weighted(stubble=2, full=2, goatee=1, moustache=0.7)
    return p.Beard(
        kind=kind,
        colour=colour * np.float32(0.8),
        density=dice.between(0.25, 0.5) if kind == "stubble" else dice.between(0.8, 0.95),
        line=dice.between(0.30, 0.46),
        moustache=dice.between(0.04, 0.08),
    )


def _body(dice: Dice, feminine: float) -> p.Body:
    return p.Body(
        neck=dice.near(0.46 - 0.08 * feminine, 0.025),
        shoulder=dice.between(1.3, 1.75),
        slope=dice.between(0.22, 0.38),
        collar=dice.between(1.0, 1.24),
        shift=dice.near(0.0, 0.04),
        neckline=dice.weighted(crew=3, vee=2.5, shirt=2, suit=1.5, turtleneck=0.8, bare=0.7),
        depth=dice.between(0.3, 0.9),
        colour=dice.colour(0.1, 0.95, 0.6),
        second=dice.colour(0.1, 1.0, 0.6),
        pattern=dice.weighted(plain=4, stripes=1, bars=1, plaid=1, dots=1, knit=1),
        period=dice.between(0.10, 0.3),
    )


def _glasses(dice: Dice, eyes: p.Eyes) -> p.Glasses:
    dark = dice.chance(0.3)
    return p.Glasses(
        shape=dice.between(0.25, 1.0),
        width=dice.between(0.21, 0.255),
        height=dice.between(0.14, 0.20),
        y=eyes.y + dice.between(0.0, 0.04),
        rim=dice.between(0.012, 0.036),
        colour=dice.colour(0.05, 0.25, 0.4) if dice.chance(0.7) else dice.colour(0.4, 0.9, 0.5),
        lens=dice.colour(0.05, 0.25, 0.6) if dark else np.array([0.85, 0.92, 0.98], np.float32),
        dark=dice.between(0.75, 0.95) if dark else dice.between(0.08, 0.2),
    )


def _hat(dice: Dice) -> p.Hat:
    return p.Hat(
        kind=dice.weighted(cap=1, beanie=1, brim=1),
        colour=dice.colour(0.15, 0.95, 0.8),
        second=dice.colour(0.1, 0.95, 0.8),
        line=dice.between(-0.56, -0.42),
        height=dice.between(0.12, 0.3),
        brim=dice.between(0.3, 0.6),
        turn=dice.near(0.0, 0.2),
    )


def _occluder(dice: Dice, skin: Array) -> p.Occluder:
    kind = dice.weighted(hand=4, cup=1, phone=1, mask=1, microphone=1, block=1.2)
    side = dice.sign()
    if kind == "hand":
        x, y = side * dice.between(0.15, 0.7), dice.between(0.35, 1.05)
    elif kind == "microphone":
        x, y = side * dice.between(0.05, 0.35), dice.between(0.85, 1.1)
    else:
        x, y = side * dice.between(0.1, 0.6), dice.between(-0.1, 0.9)
    return p.Occluder(
        kind=kind,
        x=x,
        y=y,
        size=dice.between(0.85, 1.15),
        angle=dice.near(0.0, 0.25),
        side=side,
        colour=skin * np.float32(dice.near(1.0, 0.04)) if kind == "hand" else dice.colour(0.15, 0.95, 0.8),
        second=dice.colour(0.05, 1.0, 0.8),
        spread=dice.between(0.03, 0.16),
    )


def _light(dice: Dice) -> p.Light:
    x, y, z = dice.near(0.0, 0.4), dice.between(-0.7, 0.0), dice.between(0.5, 1.0)
    length = (x * x + y * y + z * z) ** 0.5
    warmth = dice.near(0.0, 0.05)
    return p.Light(
        direction=(x / length, y / length, z / length),
        ambient=dice.between(0.45, 0.82),
        tint=np.array([1 + warmth, 1 + dice.near(0.0, 0.015), 1 - warmth], np.float32),
        vignette=dice.between(0.0, 0.25),
    )
