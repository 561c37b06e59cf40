"""Phantom images drawn from attributes: dermoscopy, chest X-ray and fundus, many at a time.

Coordinates run from -1 to 1 (x to the right, y down), so an image looks the same at any size.
Shapes: n images of S x S pixels; a mask is (n, S, S), x is (n, 1, S) and y (n, S, 1), a colour (n, 3, S, S),
and what is one number an image is (n, 1, 1). Attributes come as a dict of such numbers, 0 or 1.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWING = 1  # raised with every change after which the same latents give other images
N_UNIFORMS = 160  # random numbers an image for position, size, colour and light
N_FIELDS = 6  # smooth random fields an image
USED_FIELDS = 4  # the most that a drawing asks for
FIELD_CELLS = 8
GRAIN = 64


class Draws:
    """The random numbers of n images, each image from its own seed, handed out in a fixed order.

    The order does not depend on the attributes: an image drawn again with one attribute
    flipped keeps everything else.
    """

    def __init__(self, seeds: Tensor, size: int):
        uniforms, fields, grains = [], [], []
        for seed in seeds.tolist():
            generator = torch.Generator().manual_seed(seed)
            uniforms.append(torch.rand(N_UNIFORMS, generator=generator))
            fields.append(torch.randn(N_FIELDS, FIELD_CELLS, FIELD_CELLS, generator=generator))
            grains.append(torch.randn(1, GRAIN, GRAIN, generator=generator))
        self.uniforms = torch.stack(uniforms)  # (n, N_UNIFORMS)
        self.fields = _resize(torch.stack(fields)[:, :USED_FIELDS], size, "bicubic")  # (n, USED_FIELDS, S, S)
        self.grain = _resize(torch.stack(grains), size, "bilinear")[:, 0]  # (n, S, S)
        axis = (torch.arange(size) + 0.5) * (2 / size) - 1
        self.y, self.x = axis[None, :, None], axis[None, None, :]  # (1, S, 1) and (1, 1, S)
        self._next_uniform = self._next_field = 0

    def uniform(self, low: float, high: float) -> Tensor:
        """One number an image, (n, 1, 1), even between `low` and `high`."""
        values = self.uniforms[:, self._next_uniform, None, None]
        self._next_uniform += 1
        return low + (high - low) * values

    def chance(self, probability: float) -> Tensor:
        """1 with this probability, else 0: (n, 1, 1)."""
        return (self.uniform(0, 1) < probability).float()

    def field(self) -> Tensor:
        """A smooth random field of mean 0 and deviation about 1: (n, S, S)."""
        self._next_field += 1
        return self.fields[:, self._next_field - 1]


def _resize(maps: Tensor, size: int, mode: str) -> Tensor:
    if maps.shape[-1] == size:
        return maps
    return F.interpolate(maps, size=(size, size), mode=mode, align_corners=False)


def _soft(distance: Tensor, width: float | Tensor = 0.03) -> Tensor:
    """1 where `distance` is negative, 0 where it is positive, with an edge of this width."""
    return (0.5 - distance / (4 * width)).clamp(0, 1)


def _rgb(red: float | Tensor, green: float | Tensor, blue: float | Tensor, n: int) -> Tensor:
    """A colour an image, (n, 3, 1, 1)."""
    parts = [torch.as_tensor(part).float().expand(n, 1, 1) for part in (red, green, blue)]
    return torch.stack(parts, dim=1)


def _paint(image: Tensor, mask: Tensor, colour: Tensor) -> Tensor:
    """`colour` over `image` (n, 3, S, S) where `mask` (n, S, S) is 1."""
    return torch.lerp(image, colour.expand_as(image), mask[:, None])


def _spots(
    draws: Draws, count: int, radius: tuple[float, float], spread: float, cx: Tensor, cy: Tensor
) -> Tensor:
    """`count` soft round spots within `spread` of (cx, cy): (n, S, S)."""
    mask = torch.zeros(1)
    for _ in range(count):
        angle, reach = draws.uniform(0, 2 * math.pi), spread * draws.uniform(0.04, 1).sqrt()
        dx, dy = draws.x - cx - reach * angle.cos(), draws.y - cy - reach * angle.sin()
        size = draws.uniform(*radius)
        mask = torch.maximum(mask, _soft((dx * dx + dy * dy) / size - size, 0.4 * size))
    return mask


def _finish(image: Tensor, draws: Draws, noise: float) -> Tensor:
    """Uneven light and grain, then bytes: (n, 3, S, S) uint8."""
    light = 1 + draws.uniform(-0.15, 0.15) * draws.x + draws.uniform(-0.15, 0.15) * draws.y
    light = light * draws.uniform(0.88, 1.1)
    grain = draws.uniform(0.3, 1) * noise * draws.grain
    return ((image * light[:, None] + grain[:, None]) * 255).clamp(0, 255).round().to(torch.uint8)


def draw_derm(on: dict[str, Tensor], draws: Draws) -> Tensor:
    """A pigmented lesion under the dermatoscope."""
    x, y, n = draws.x, draws.y, len(draws.uniforms)
    tone = draws.uniform(0, 1)
    skin = _rgb(0.93 - 0.18 * tone, 0.75 - 0.22 * tone, 0.66 - 0.24 * tone, n)
    image = skin * (1 + 0.025 * draws.field()[:, None])

    cx, cy = draws.uniform(-0.15, 0.15), draws.uniform(-0.15, 0.15)
    turn = draws.uniform(0, 2 * math.pi)
    dx, dy = x - cx, y - cy
    theta = torch.atan2(dy, dx) - turn  # (n, S, S)
    reach = (dx * dx + dy * dy).sqrt()
    lopsided = 0.24 * theta.cos() + 0.2 * (2 * theta + 1).cos() + 0.16 * (3 * theta).sin()
    oval = draws.uniform(0.02, 0.08) * (2 * theta).cos()
    notches = 0.11 * (7 * theta + draws.uniform(0, 6)).sin() + 0.09 * (11 * theta + draws.uniform(0, 6)).sin()
    radius = 0.42 + 0.2 * on["large"] + draws.uniform(-0.03, 0.03)
    edge = radius * (1 + torch.lerp(oval, lopsided, on["asymmetry"]) + on["border"] * notches)
    lesion = _soft(reach - edge, 0.035)

    dark = draws.uniform(0, 1)
    brown = _rgb(0.55 - 0.17 * dark, 0.36 - 0.14 * dark, 0.24 - 0.1 * dark, n)
    patches = draws.field()
    varied = _paint(brown * 1.0, _soft(0.25 - patches, 0.1), _rgb(0.78, 0.36, 0.3, n))
    varied = _paint(varied, _soft(0.35 + patches, 0.1), _rgb(0.16, 0.1, 0.08, n))
    body = torch.lerp(brown * (1 + 0.04 * draws.field()[:, None]), varied, on["colors"][:, None])
    image = _paint(image, lesion, body)

    streaks = _soft(0.7 - (20 * theta).sin(), 0.15) * _soft((reach - 1.12 * edge).abs() - 0.14, 0.03)
    image = _paint(image, 0.9 * streaks * on["streaks"], brown * 0.6)
    sx, sy = cx + 0.35 * radius * turn.cos(), cy + 0.35 * radius * turn.sin()
    veil = _soft(((x - sx) ** 2 + (y - sy) ** 2).sqrt() - 0.5 * radius - 0.05 * draws.field(), 0.05)
    image = _paint(image, 0.8 * veil * lesion * on["veil"], _rgb(0.45, 0.52, 0.72, n))
    wx, wy = cx - 0.4 * radius * turn.cos(), cy - 0.4 * radius * turn.sin()
    scar = _soft(((x - wx) ** 2 + 2 * (y - wy) ** 2).sqrt() - 0.38 * radius, 0.04)
    image = _paint(image, 0.85 * scar * on["scar"], _rgb(0.92, 0.84, 0.8, n))
    dots = _spots(draws, 9, (0.045, 0.065), 0.85 * radius, cx, cy)
    image = _paint(image, dots * on["dots"], _rgb(0.05, 0.04, 0.05, n))

    for _ in range(3):  # hairs
        angle, offset, bend = draws.uniform(0, math.pi), draws.uniform(-0.8, 0.8), draws.uniform(-0.25, 0.25)
        along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
        hair = _soft((across - offset - bend * along * along).abs() - 0.012, 0.01)
        image = _paint(image, 0.7 * hair * draws.chance(0.25), _rgb(0.2, 0.14, 0.1, n))
    tube = _soft((x * x + y * y).sqrt() - draws.uniform(1.15, 1.5), 0.04)  # dark corners of the round lens
    return _finish(image * tube[:, None], draws, 0.03)


def draw_cxr(on: dict[str, Tensor], draws: Draws) -> Tensor:
    """A frontal chest radiograph: air is dark; bone, heart and fluid are bright."""
    x, y = draws.x - draws.uniform(-0.06, 0.06), draws.y - draws.uniform(-0.06, 0.06)
    wide, tall = draws.uniform(0.92, 1.08), draws.uniform(0.92, 1.08)
    x, y = x / wide, y / tall
    body = _soft(x.abs() - 0.9 - 0.08 * y, 0.05)
    picture = 0.62 * body + 0.03 * draws.field()

    # one dome may be raised, the one on the image's left
    floor = 0.52 + draws.uniform(-0.03, 0.03) - 0.26 * on["diaphragm"] * _soft(x, 0.05)
    dome = y - floor + 0.1 * (1 - ((x.abs() - 0.42) / 0.4) ** 2)
    taper = 0.34 + 0.1 * (y + 0.6).clamp(0, 1)
    shape = (((x.abs() - 0.42) / taper).abs() ** 2.5 + (((y + 0.1) / 0.75).abs()) ** 2.5) - 1
    lungs = _soft(shape, 0.12) * _soft(dome, 0.02)
    air = draws.uniform(0.12, 0.2)
    picture = torch.lerp(picture, air + 0.02 * draws.field(), lungs)

    ribs = (torch.sin(15 * (y - 0.35 * (x.abs() - 0.4) ** 2 + draws.uniform(0, 0.4))) - 0.6).clamp(min=0)
    picture = picture + draws.uniform(0.1, 0.25) * ribs * lungs
    spine = _soft(x.abs() - 0.09, 0.03)
    picture = picture + 0.1 * spine * body
    heart_width = 0.3 + 0.17 * on["heart"] + draws.uniform(-0.015, 0.015)
    heart = _soft((((x - 0.1) / heart_width) ** 2 + ((y - 0.27) / 0.32) ** 2).sqrt() - 1, 0.07)
    picture = torch.maximum(picture, 0.72 * heart)
    bulk = 0.07 + 0.07 * on["hila"]
    for side in (-1.0, 1.0):
        root = (((x - 0.19 * side) / bulk) ** 2 + ((y + 0.08) / (1.5 * bulk)) ** 2).sqrt()
        picture = torch.maximum(picture, (0.4 + 0.3 * on["hila"]) * _soft(root - 1, 0.25))

    side = draws.uniform(0, 1).sub(0.5).sign()
    net = (torch.sin(24 * (x + 0.5 * y) + draws.field()) * torch.sin(24 * (y - 0.5 * x))).abs()
    picture = picture + 0.2 * _soft(net - 0.22, 0.1) * lungs * (1 - heart) * on["interstitial"]
    px, py = 0.45 * side + draws.uniform(-0.08, 0.08), draws.uniform(-0.45, 0.15)
    patch = _soft((((x - px) / 0.25) ** 2 + ((y - py) / 0.25) ** 2).sqrt() - 1 - 0.3 * draws.field(), 0.2)
    picture = torch.maximum(picture, 0.72 * patch * lungs * on["consolidation"])
    ux, uy = x + 0.42 * side, y + 0.2 - draws.uniform(-0.1, 0.1)  # bronchi in the other lung's upper half
    tubes = torch.minimum((ux - 0.35 * uy).abs(), (ux + 0.5 * uy).abs())
    near = _soft(ux * ux + uy * uy - 0.06, 0.02)
    picture = picture + on["bronchogram"] * near * (0.35 - 0.55 * _soft(tubes - 0.02, 0.012))
    level = y - floor + 0.16 + 0.5 * (x.abs() - 0.42) * 0.4
    fluid = _soft(-level, 0.02) * _soft(-(x * side), 0.02) * body
    chest = _soft(x.abs() - 0.8, 0.03) * _soft(y - 0.7, 0.03)
    picture = torch.maximum(picture, 0.85 * fluid * chest * on["effusion"])

    wire = _soft((x - 0.04 - 0.06 * (4 * y).sin()).abs() - 0.03, 0.012) * _soft(y - 0.3, 0.03)
    picture = torch.maximum(picture, 0.98 * wire * on["tube"])
    collar = (y + 0.72 + 0.25 * (x.abs() - 0.4)).abs()
    picture = picture + 0.12 * _soft(collar - 0.035, 0.015) * body
    picture = picture.clamp(0, 1) ** draws.uniform(0.8, 1.25)
    return _finish(picture[:, None].expand(-1, 3, -1, -1), draws, 0.035)


def draw_fundus(on: dict[str, Tensor], draws: Draws) -> Tensor:
    """A retina with its disc, vessels and macula."""
    x, y, n = draws.x, draws.y, len(draws.uniforms)
    tint = draws.uniform(0, 1)
    dim = 1 - 0.45 * on["pigment"]
    retina = _rgb((0.86 - 0.1 * tint) * dim, (0.42 - 0.1 * tint) * dim, (0.2 - 0.06 * tint) * dim, n)
    image = retina * (1 + 0.05 * draws.field()[:, None])
    flip = draws.uniform(0, 1).sub(0.5).sign()
    x = x * flip  # the other eye
    cx, cy = -0.48 + draws.uniform(-0.06, 0.06), draws.uniform(-0.08, 0.08)
    dx, dy = x - cx, y - cy
    macula = torch.exp(-(((x - 0.3) ** 2 + (y - cy) ** 2) / 0.03))
    image = image * (1 - 0.35 * macula[:, None])

    reach = (dx * dx + dy * dy).sqrt()
    disc = _soft(reach - 0.17, 0.02)
    image = _paint(image, disc, _rgb(0.95, 0.74, 0.42, n))
    cup = _soft(reach - 0.06 - 0.065 * on["cup"], 0.015)
    image = _paint(image, cup, _rgb(1.0, 0.95, 0.8, n))

    width = 0.012 + 0.028 * on["beading"] * (0.5 + 0.5 * (26 * dx).sin())
    for bend in (0.75, 0.42):
        course = bend * dx.clamp(min=0).pow(0.55) + 0.03 * draws.uniform(0, 1) * (6 * dx).sin()
        vessel = _soft((dy.abs() - course).abs() - width, 0.012) * _soft(-dx, 0.01)
        image = _paint(image, 0.75 * vessel, retina * _rgb(0.58, 0.32, 0.4, n))
    nasal = _soft((dy.abs() - 0.9 * (-dx).clamp(min=0).pow(0.7)).abs() - width, 0.012) * _soft(dx, 0.01)
    image = _paint(image, 0.6 * nasal, retina * _rgb(0.6, 0.35, 0.4, n))

    exudates = _spots(draws, 7, (0.03, 0.06), 0.32, draws.uniform(0.15, 0.4), draws.uniform(-0.3, 0.3))
    image = _paint(image, exudates * on["exudates"], _rgb(1.0, 0.92, 0.35, n))
    wool = _spots(draws, 4, (0.1, 0.15), 0.6, draws.uniform(-0.1, 0.3), draws.uniform(-0.2, 0.2))
    image = _paint(image, 0.75 * wool * on["wool"], _rgb(0.95, 0.9, 0.86, n))
    blots = _spots(draws, 6, (0.08, 0.12), 0.7, draws.uniform(0, 0.2), draws.uniform(-0.2, 0.2))
    image = _paint(image, 0.85 * blots * on["blots"], _rgb(0.35, 0.03, 0.04, n) * dim[:, None])
    dots = _spots(draws, 12, (0.028, 0.036), 0.55, draws.uniform(0.1, 0.3), draws.uniform(-0.1, 0.1))
    image = _paint(image, 0.9 * dots * on["dots"], _rgb(0.5, 0.02, 0.06, n) * dim[:, None])
    tangle = ((14 * dx + 2 * draws.field()).sin() * (14 * dy + 2).sin()).abs()
    fronds = _soft(tangle - 0.16, 0.05) * _soft(reach - 0.33, 0.05)
    image = _paint(image, 0.85 * fronds * on["fronds"], _rgb(0.6, 0.02, 0.1, n))
    cloud = _soft(0.32 - y + 0.12 * draws.field() - 0.3 * on["cloud"], 0.08)
    image = _paint(image, 0.8 * cloud * on["cloud"], _rgb(0.2, 0.02, 0.02, n))
    image = image * _soft((draws.x**2 + draws.y**2).sqrt() - draws.uniform(0.92, 1.0), 0.015)[:, None]
    return _finish(image, draws, 0.02)
