"""Draw pictures that resemble dermoscopy: what sets the classes apart is in the lesion, never around it.

A `Lesion` is drawn once per lesion, a `View` once per photograph; skin, hair, light and lens know nothing of the
class. Lengths are in lesion radii unless said otherwise, colours are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

Array = np.ndarray
_WHITE, _BLUE_GREY, _BLACK = (0.93, 0.86, 0.82), (0.40, 0.43, 0.53), (0.13, 0.09, 0.09)
_DARK_RED, _VESSEL, _KERATIN = (0.42, 0.03, 0.15), (0.62, 0.12, 0.16), (0.90, 0.82, 0.64)
_VISIBLE = 0.04  # weaker signs are not worth the time to draw them
_SKIN = np.array([[0.93, 0.76, 0.70], [0.88, 0.68, 0.58], [0.82, 0.62, 0.50], [0.70, 0.50, 0.39]])
_GRID = 32  # edge of the lattice of random values behind all texture, a power of two


@dataclass(frozen=True)
class Look:
    """What a class looks like on average; strengths are between 0 and 1.

    Attributes:
        colour, second: main pigment and that of the patches in it.
        patches: how much of `second` there is.
        density: how well the pigment hides the skin.
        irregular: amplitude of the outline.
        softness: width of the border.
        network: strength of a net of brown lines; `streaks` of radial lines at the border.
        dots, cysts, vessels, lacunae, scales, scar, veil: brown globules, pale keratin dots, branching red lines, red
            lakes, white flakes, a white centre, a blue-white haze.
    """

    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    patches: float = 0.4
    density: float = 0.8
    irregular: float = 0.08
    softness: float = 0.10
    network: float = 0.0
    streaks: float = 0.0
    dots: float = 0.0
    cysts: float = 0.0
    vessels: float = 0.0
    lacunae: float = 0.0
    scales: float = 0.0
    scar: float = 0.0
    veil: float = 0.0


LOOKS = {
    "akiec": Look((0.78, 0.40, 0.36), (0.64, 0.32, 0.26), 0.5, 0.62, 0.16, 0.24, vessels=0.1, scales=0.75),
    "bcc": Look((0.80, 0.50, 0.47), (0.40, 0.33, 0.40), 0.4, 0.62, 0.14, 0.16, dots=0.1, vessels=0.8, veil=0.1),
    "bkl": Look((0.62, 0.45, 0.29), (0.45, 0.31, 0.20), 0.5, 0.78, 0.14, 0.05, dots=0.15, cysts=0.7, network=0.1),
    "df": Look((0.62, 0.39, 0.32), (0.52, 0.32, 0.27), 0.3, 0.68, 0.06, 0.20, network=0.25, scar=1.0),
    "mel": Look((0.38, 0.23, 0.17), (0.17, 0.12, 0.12), 0.7, 0.85, 0.24, 0.08, 0.25, 0.5, dots=0.3, veil=0.5),
    "nv": Look((0.53, 0.30, 0.20), (0.37, 0.20, 0.13), 0.4, 0.76, 0.08, 0.14, network=0.5, dots=0.2),
    "vasc": Look((0.70, 0.16, 0.26), (0.48, 0.08, 0.24), 0.5, 0.78, 0.10, 0.08, lacunae=0.7),
}
_FIXED = ("colour", "second")


@dataclass(frozen=True)
class Lesion:
    """One lesion, the same in all its photographs: its look, its outline, the seed of its texture, its skin."""

    look: Look
    radius: float  # of the shorter edge of the picture
    stretch: float
    amplitudes: Array  # [K], of the outline's harmonics 1..K
    phases: Array  # [K]
    texture: Array  # [4, _GRID, _GRID] in [0, 1]
    skin: Array  # [3]
    seed: int

    def rng(self, feature: int) -> np.random.Generator:
        """Where the things of one kind lie: the same in every photograph."""
        return np.random.default_rng([self.seed, feature])


def draw_lesion(label: str, rng: np.random.Generator) -> Lesion:
    """A random lesion of a class."""
    skin = _mix(_SKIN, rng) + rng.normal(0, 0.02, 3)
    look = _vary(LOOKS[label], rng)
    harmonics = np.arange(2, 9)
    amplitudes = 1.3 * look.irregular * rng.normal(0, 1, len(harmonics)) / harmonics
    return Lesion(
        look=look,
        radius=rng.uniform(0.25, 0.42),
        stretch=rng.uniform(0.82, 1.22),
        amplitudes=amplitudes,
        phases=rng.uniform(0, 2 * np.pi, len(harmonics)),
        texture=rng.random((4, _GRID, _GRID), dtype=np.float32),
        skin=np.clip(skin, 0.2, 1),
        seed=int(rng.integers(2**31)),
    )


def photograph(lesion: Lesion, rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """One photograph of a lesion.

    Args:
        lesion: what to photograph.
        rng: draws position, rotation, light, hair, noise.
        size: width and height in pixels.

    Returns:
        uint8 [H, W, 3] picture and uint8 [H, W] mask of the lesion (0 or 255).
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)  # [H, W] each
    short = min(size)
    scale = np.float32(1 / (lesion.radius * short * rng.uniform(0.85, 1.18)))
    dx = (x - np.float32(width * rng.uniform(0.42, 0.58))) * scale
    dy = (y - np.float32(height * rng.uniform(0.42, 0.58))) * scale
    angle = rng.uniform(0, 2 * np.pi)
    u = (np.cos(angle) * dx + np.sin(angle) * dy).astype(np.float32)
    v = (np.cos(angle) * dy - np.sin(angle) * dx).astype(np.float32)
    picture = _skin(lesion.skin, x / short, y / short, rng)
    picture, coverage = _paint(lesion, u, v, picture)
    picture = _hair(picture, x / short, y / short, rng)
    picture = _camera(picture, x / width - 0.5, y / height - 0.5, rng)
    mask = np.where(coverage > 0.5, 255, 0).astype(np.uint8)
    return np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask


def _vary(look: Look, rng: np.random.Generator) -> Look:
    """An individual of a class: nearly every sign is now stronger, now weaker, and some cases are atypical."""
    other = LOOKS[sorted(LOOKS)[rng.integers(len(LOOKS))]]
    atypical = rng.uniform(0.2, 0.5) if rng.random() < 0.2 else rng.uniform(0, 0.12)
    values: dict[str, object] = {}
    for item in fields(Look):
        mean = (1 - atypical) * np.array(getattr(look, item.name)) + atypical * np.array(getattr(other, item.name))
        if item.name in _FIXED:
            values[item.name] = tuple(np.clip(mean * rng.uniform(0.82, 1.2) + rng.normal(0, 0.02, 3), 0, 1))
        else:
            values[item.name] = float(np.clip(mean * rng.uniform(0.55, 1.35), 0, 1))
    return Look(**values)  # type: ignore[arg-type]


def _paint(lesion: Lesion, u: Array, v: Array, skin: Array) -> tuple[Array, Array]:
    """Lay the lesion over the skin: picture [H, W, 3] and coverage [H, W]."""
    look, texture = lesion.look, lesion.texture
    coarse, middle = _fractal(texture[0], u, v, 1.6), _fractal(texture[1], u, v, 3.5)
    outline = sum(
        a * np.cos(k * np.arctan2(v, u) + p)
        for k, (a, p) in enumerate(zip(lesion.amplitudes, lesion.phases, strict=True), start=2)
    )
    distance = np.hypot(u / lesion.stretch, v * lesion.stretch)
    ragged = 3.5 * look.irregular * (coarse - 0.5) + (0.15 + look.irregular) * (middle - 0.5)
    inward = 1 + outline + ragged - distance  # [H, W], 0 at the border
    inside = _step(inward / look.softness)
    # nothing below is a clean curve: all of it is drawn on a plane that is pulled about a little
    u, v = u + 0.25 * (coarse - 0.5), v + 0.25 * (middle - 0.5)
    picture = _pigment(lesion, u, v, coarse, middle, inward)
    picture = _over(skin, picture, look.density * inside * (0.8 + 0.5 * (middle - 0.5)))
    return _surface(lesion, u, v, picture, inside), inside


def _pigment(lesion: Lesion, u: Array, v: Array, coarse: Array, middle: Array, inward: Array) -> Array:
    """What lies in the skin: pigment, net, streaks, globules, blood, scar: [H, W, 3]."""
    look, colour = lesion.look, np.array(lesion.look.colour, dtype=np.float32)
    patches = _fractal(lesion.texture[2], u, v, 1.2)
    picture = _over(colour.reshape(1, 1, 3), look.second, _step((patches + 0.5 * look.patches - 0.72) * 8))
    picture = picture * (0.75 + 0.5 * middle)[..., None]
    if look.network > _VISIBLE:
        net = np.abs(np.sin(10 * u) * np.sin(10 * v))
        picture = _over(picture, colour * 0.5, look.network * (1 - net) ** 3)
    if look.streaks > _VISIBLE:
        rays = _step((np.cos(15 * np.arctan2(v, u) + 6 * coarse) - 0.3) * 3)
        picture = _over(picture, _BLACK, 0.8 * look.streaks * rays * _step((0.4 - np.abs(inward - 0.1)) * 8))
    if look.veil > _VISIBLE:
        haze = _fractal(lesion.texture[3], u, v, 1.4)
        picture = _over(picture, _BLUE_GREY, 0.8 * look.veil * _step((haze - 0.52) * 12))
    if look.dots > _VISIBLE:
        picture = _over(picture, colour * 0.4, look.dots * _spots(u, v, lesion.rng(0), 20, 0.06))
    if look.lacunae > _VISIBLE:
        picture = _over(picture, _DARK_RED, look.lacunae * _spots(u, v, lesion.rng(1), 10, 0.22))
    return _over(picture, _WHITE, look.scar * np.exp(-((u**2 + v**2) / 0.2) * (0.6 + 0.8 * coarse)))


def _surface(lesion: Lesion, u: Array, v: Array, picture: Array, inside: Array) -> Array:
    """What lies on top and hides the rest, however thin the pigment: keratin, flakes, vessels: [H, W, 3]."""
    look = lesion.look
    if look.cysts > _VISIBLE:
        picture = _over(picture, _KERATIN, 0.8 * inside * look.cysts * _spots(u, v, lesion.rng(2), 11, 0.08))
    if look.scales > _VISIBLE:
        flakes = _fractal(lesion.texture[3], u, v, 4.5)
        picture = _over(picture, _WHITE, 0.9 * inside * look.scales * _step((flakes - 0.58) * 10))
    if look.vessels > _VISIBLE:
        picture = _over(picture, _VESSEL, 0.8 * inside * look.vessels * _branches(u, v, lesion.rng(3)))
    return picture


def _skin(tone: Array, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Skin with blotches and furrows: [H, W, 3]."""
    blotches = _fractal(rng.random((_GRID, _GRID), dtype=np.float32), x, y, 3.0) - 0.5
    grain = _noise(rng.random((_GRID, _GRID), dtype=np.float32), x, y, 22.0) - 0.5
    flush = np.maximum(blotches + 0.05, 0)[..., None] * np.array([0.10, -0.30, -0.20]) * rng.uniform(0, 1.3)
    picture = tone + flush + (0.07 * grain + 0.12 * blotches)[..., None]
    return picture.astype(np.float32)


def _hair(picture: Array, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Lay a few bent hairs over the picture; most pictures have none."""
    count = int(rng.poisson(5)) if rng.random() < 0.25 else 0
    colour = np.array([0.20, 0.13, 0.11]) * rng.uniform(0.6, 2.0)
    for _ in range(count):
        angle, bend = rng.normal(0.6, 0.6), rng.normal(0, 0.3)
        dx, dy = x - rng.uniform(0, 1.3), y - rng.uniform(0, 1)
        along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
        width, length = rng.uniform(0.003, 0.008), rng.uniform(0.08, 0.35)
        strand = _step((width - np.abs(across - bend * along**2)) / 0.004)
        picture = _over(picture, colour, 0.8 * strand * _step((length - np.abs(along)) * 40))
    return picture


def _camera(picture: Array, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Light, white balance, vignette or the black edge of the lens, and noise."""
    slope = rng.normal(0, 0.10, 2)
    light = rng.uniform(0.85, 1.10) * (1 + slope[0] * x + slope[1] * y)
    radius = np.hypot(x, y)
    light = light * (1 - rng.uniform(0, 0.5) * radius**2)
    if rng.random() < 0.2:
        light = light * _step((rng.uniform(0.55, 0.64) - radius) * 60)
    balance = 1 + rng.normal(0, 1, 3) * (0.03, 0.02, 0.05)
    noise = rng.uniform(0.005, 0.02) * rng.standard_normal(picture.shape, dtype=np.float32)
    return picture * (balance * light[..., None]).astype(np.float32) + noise


def _spots(u: Array, v: Array, rng: np.random.Generator, count: int, radius: float) -> Array:
    """Round spots strewn over the unit disc: [H, W] in [0, 1]."""
    angle, distance = rng.uniform(0, 2 * np.pi, count), 0.9 * np.sqrt(rng.random(count))
    radii = radius * rng.uniform(0.6, 1.4, count)
    centres = zip(distance * np.cos(angle), distance * np.sin(angle), radii, strict=True)
    spots = np.zeros_like(u)
    for cx, cy, r in centres:
        np.maximum(spots, _step((r - np.hypot(u - cx, v - cy)) * 22), out=spots)
    return spots


def _branches(u: Array, v: Array, rng: np.random.Generator) -> Array:
    """Trees of thin bent lines that grow inward from the border: [H, W] in [0, 1]."""
    lines = np.zeros_like(u)
    for _ in range(4):
        start = rng.uniform(0, 2 * np.pi)
        for fork in rng.normal(0, 0.5, 3):
            angle, bend = start + np.pi + fork, rng.normal(0, 0.7)
            dx, dy = u - 0.85 * np.cos(start), v - 0.85 * np.sin(start)
            along, across = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
            inside = (along > 0) & (along < rng.uniform(0.6, 1.3))
            line = _step((0.018 * (1.3 - 0.6 * along) - np.abs(across - bend * along**2)) * 35)
            np.maximum(lines, line * inside, out=lines)
    return lines


def _fractal(grid: Array, x: Array, y: Array, frequency: float) -> Array:
    """Noise with detail on three scales, about 0.5: [H, W]."""
    detail = (_noise(grid, x, y, frequency), _noise(grid, y, x, 2.1 * frequency), _noise(grid, x, y, 4.7 * frequency))
    return 0.55 * detail[0] + 0.3 * detail[1] + 0.15 * detail[2]


def _noise(grid: Array, x: Array, y: Array, frequency: float) -> Array:
    """Smooth noise with `frequency` lattice points per unit, in [0, 1]: [H, W]."""
    x, y = x * np.float32(frequency), y * np.float32(frequency)
    left, top = np.floor(x), np.floor(y)
    fx, fy = x - left, y - top  # [H, W] float32, which integers would widen
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    column, row = left.astype(np.int32), top.astype(np.int32)
    c0, c1 = column & (_GRID - 1), (column + 1) & (_GRID - 1)
    r0, r1 = (row & (_GRID - 1)) * _GRID, ((row + 1) & (_GRID - 1)) * _GRID
    flat = grid.ravel()
    upper, lower = flat[r0 + c0], flat[r1 + c0]
    upper, lower = upper + fx * (flat[r0 + c1] - upper), lower + fx * (flat[r1 + c1] - lower)
    return upper + fy * (lower - upper)


def _step(value: Array) -> Array:
    """A smooth step from 0 to 1 around 0."""
    return 0.5 * (1 + np.tanh(value))


def _over(below: Array, colour: Sequence[float] | Array, strength: Array) -> Array:
    """`colour` over `below` [H, W, 3], as opaque as `strength` [H, W]."""
    weight = np.clip(strength, 0, 1)[..., None]
    return below + weight * (np.asarray(colour, dtype=np.float32) - below)


def _mix(colours: Array, rng: np.random.Generator) -> Array:
    """A random point between two neighbours of a scale of colours [n, 3]."""
    place = rng.uniform(0, len(colours) - 1)
    low = int(place)
    return colours[low] + (place - low) * (colours[low + 1] - colours[low])
