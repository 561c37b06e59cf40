"""Other looks of the same image: how it lies, its scale, its stain, its colours, its focus.

A CLIP that has read one laboratory's images has read that laboratory's colours. During pre-training each
image is seen in a new look each time, so that what its caption says must be found in what does not change.
Changes of stain are made where dyes add up (Tellez et al. 2019, arXiv:1902.06543): the light that passes a
dyed slide is x = exp(-c M), with c the amounts of haematoxylin, eosin and a third dye in each pixel, and
M (3, 3) what each absorbs of red, green and blue (Ruifrok and Johnston 2001).
"""

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from medvlp.data.errors import frozen_config

ABSORBED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])  # M
GREY = 1 / 3  # the weight of a channel in grey


@frozen_config
class Looks:
    """How far each property of an image may change; 0 leaves it as it is.

    Attributes:
        scale, stain, saturation, brightness, contrast: Factors from exp(-x) to exp(x): 0.22 is 0.8 to 1.25.
        hue: Degrees, to both sides.
        blur: Pixels: the largest standard deviation of a Gaussian, for four in ten images.
        shift: Share of the image's side, to each side.
        turned: Whether images are turned by any angle and mirrored.
        untouched: The share of images that keep their colours.
    """

    scale: NonNegativeFloat = 0.34
    stain: NonNegativeFloat = 0.25
    hue: NonNegativeFloat = 30.0
    saturation: NonNegativeFloat = 0.4
    brightness: NonNegativeFloat = 0.35
    contrast: NonNegativeFloat = 0.35
    blur: NonNegativeFloat = 1.2
    shift: NonNegativeFloat = 0.1
    turned: bool = True
    untouched: NonNegativeFloat = 0.15

    def draw(self, images: Tensor, size: int, draws: torch.Generator) -> Tensor:
        """One look of each image: (B, 3, R, R) floats from 0 to 1 in, (B, 3, size, size) out."""
        posed = self._pose(images, size, draws)
        coloured = self._colours(posed, draws)
        keep = torch.rand(len(images), 1, 1, 1, generator=draws) < self.untouched
        return self._focus(torch.where(keep, posed, coloured), draws)

    def _pose(self, images: Tensor, size: int, draws: torch.Generator) -> Tensor:
        n = len(images)
        angle = _even(n, math.pi * self.turned, draws)
        mirror = torch.where(torch.rand(n, generator=draws) < 0.5 * self.turned, -1.0, 1.0)
        zoom = torch.exp(_even(n, self.scale, draws))
        cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
        x, y = _even(n, 2 * self.shift, draws), _even(n, 2 * self.shift, draws)  # the image is 2 wide
        rows = [torch.stack([cos * mirror, -sin, x], 1), torch.stack([sin * mirror, cos, y], 1)]
        grid = F.affine_grid(torch.stack(rows, 1), [n, 3, size, size], align_corners=False)
        return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)

    def _colours(self, x: Tensor, draws: torch.Generator) -> Tensor:
        n = len(x)
        dyes = torch.einsum("bihw,ij->bjhw", -torch.log(x.clamp(min=1e-3)), torch.linalg.inv(ABSORBED))
        dyes = dyes * torch.exp(_even((n, 3, 1, 1), self.stain, draws))
        dyes = dyes + _even((n, 3, 1, 1), 0.12 * self.stain, draws)
        x = torch.exp(-torch.einsum("bihw,ij->bjhw", dyes, ABSORBED)).clamp(0, 1)
        x = turn_hue(x, _even(n, math.radians(self.hue), draws))
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * torch.exp(_even((n, 1, 1, 1), self.saturation, draws))
        x = x * torch.exp(_even((n, 1, 1, 1), self.brightness, draws))
        middle = x.mean((1, 2, 3), keepdim=True)
        x = middle + (x - middle) * torch.exp(_even((n, 1, 1, 1), self.contrast, draws))
        return x.clamp(0, 1)

    def _focus(self, x: Tensor, draws: torch.Generator) -> Tensor:
        n, reach = len(x), 3
        sigma = torch.rand(n, 1, generator=draws) * self.blur
        sigma = torch.where(torch.rand(n, 1, generator=draws) < 0.4, sigma, 0).clamp(min=0.05)  # 0.05: sharp
        kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))  # (B, 7)
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3B, 7)
        flat = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1).unsqueeze(0)  # (1, 3B, H + 6, W + 6)
        flat = F.conv2d(flat, kernel[:, None, :, None], groups=3 * n)
        return F.conv2d(flat, kernel[:, None, None, :], groups=3 * n).view_as(x)


def turn_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Colours (B, 3, H, W) turned about the grey axis by `angle` (B,) radians."""
    cos, sin = torch.cos(angle), torch.sin(angle) * math.sqrt(GREY)
    same = cos + (1 - cos) * GREY
    up, down = GREY * (1 - cos) + sin, GREY * (1 - cos) - sin
    rows = [[same, down, up], [up, same, down], [down, up, same]]
    turn = torch.stack([torch.stack(row, 1) for row in rows], 1)  # (B, 3, 3)
    return torch.einsum("bij,bjhw->bihw", turn, x)


def _even(shape: int | tuple[int, ...], reach: float, draws: torch.Generator) -> Tensor:
    """Even draws from -reach to reach."""
    return (torch.rand(shape, generator=draws) * 2 - 1) * reach
