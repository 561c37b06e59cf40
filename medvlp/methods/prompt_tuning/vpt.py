"""VPT: learned prompts in the image tower, classified by the texts of the class names.

`PromptedTower` is what all methods share that have such prompts, `DEEP_TRAINER` what their recipes share.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.backbone.prompts.hooks import image_blocks, image_width
from medvlp.backbone.prompts.slots import STD
from medvlp.backbone.prompts.walks import encode_image_prompts
from medvlp.data.cards import DataCard
from medvlp.methods.base import Method
from medvlp.methods.prompt_tuning.coop import TRAINER
from medvlp.methods.zero_shot import template_features

DEEP_TRAINER = TRAINER | {"batch_size": 4, "views": "fresh"}  # of prompts in the towers' blocks


class PromptedTower(Method):
    """A method that may have learned prompts in the image tower.

    Attributes:
        image_prompts: (depth, n, width of the image tower); None leaves the tower as it is.
    """

    image_prompts: Tensor | None

    @property
    def keeps_image_tower(self) -> bool:
        """True without prompts."""
        return self.image_prompts is None

    def image_features(self, images: Tensor) -> Tensor:
        """f: features of preprocessed images as the prompted tower sees them, (B, D), L2-normalised."""
        if self.image_prompts is None:
            return super().image_features(images)
        f = encode_image_prompts(self.clip, images, self.image_prompts)  # (B, D)
        return F.normalize(f.to(self.image_prompts), dim=-1)


def drawn(shape: Sequence[int], generator: torch.Generator, first: Tensor | None = None) -> Tensor:
    """Prompts (depth, n, width) of standard deviation 0.02; those before block 0 are `first`, if given."""
    prompts = nn.init.normal_(torch.empty(*shape), std=STD, generator=generator)
    if first is not None:
        prompts[0] = first
    return prompts


def depth_in(
    blocks: Sequence[nn.Module], name: str, depth: int | None, least: int, default: int | None = None
) -> int:
    """`depth`; if it is None, `default`, or all blocks where there are fewer or there is no default.

    Raises:
        ValueError: a depth, called `name`, that is below `least` or more than the tower has blocks.
    """
    if depth is None:
        return min(default or len(blocks), len(blocks))
    if not least <= depth <= len(blocks):
        raise ValueError(f"{name} must be from {least} to {len(blocks)}, the tower's blocks, got {depth}.")
    return depth


class VPT(PromptedTower):
    r"""Visual prompt tuning.

        [x_i, E_i, _] = V_i([x_{i-1}, E_{i-1}, P_{i-1}])        i = 1..depth: VPT-deep
        [x_i, E_i, Z] = V_i([x_{i-1}, E_{i-1}, Z])              after that; from i = 2 on: VPT-shallow
        logits[b, c]  = exp(logit_scale) * f_b . t_c            f_b, t_c normalised

    with V_i the image tower's blocks, x the class token and E the patches: Jia et al., "Visual Prompt
    Tuning", ECCV 2022, arXiv 2203.12119. Learned is P (`image_prompts`). In place of their linear head the
    frozen text features t_c of the class names classify, as where MaPLe's authors compare with it (CVPR 2023,
    arXiv 2210.03117), in the template "a photo of a {}." for all data sets. Sizes, start and recipe are
    theirs too; Jia et al. search learning rate and weight decay anew for each data set, and draw P uniformly.
    Where among the tokens P stands makes no difference.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order.
        n_ctx: Vectors before a block.
        depth: Blocks with vectors of their own: None for all (deep), 1 for the first alone (shallow), 0 for
            none, which is zero-shot.
        templates: Each with a `{}` for the class name, in which an underscore is read as a space; of several
            the mean of the features. None: the card's first.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the learned tensors' start, drawn with standard deviation 0.02.

    Attributes:
        image_prompts: (depth, n_ctx, width of the image tower), P, or None.
        text_features: (n_cls, D), t_c.
        config: the arguments by name, fit for JSON; `VPT(clip, card, **config)` builds the same again.

    Raises:
        ValueError: a number out of its range, a template without `{}`, an image tower without tokens.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> vpt = medvlp.VPT(clip, card, n_ctx=8, depth=1)
        >>> vpt.image_prompts.shape[:2], vpt.keeps_image_tower
        (torch.Size([1, 8]), False)
    """

    # configs/trainers/VPT/vit_b16_c2_ep5_batch4_4.yaml of muzairkhattak/multimodal-prompt-learning
    recipe: ClassVar[dict[str, Any]] = DEEP_TRAINER | {"epochs": 5, "lr": 0.0025}
    text_features: Tensor  # (n_cls, D)

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        n_ctx: int = 8,
        depth: int | None = None,
        templates: list[str] | None = None,
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Encode the class names and draw the prompts; see the class."""
        super().__init__(clip, card, locals())
        if n_ctx < 1:
            raise ValueError(f"n_ctx must be at least 1, got {n_ctx}; depth=0 has none.")
        self.constant("text_features", template_features(clip, card, templates))  # (n_cls, D)
        self.image_prompts = None
        if depth != 0:
            blocks = image_blocks(clip)
            shape = (depth_in(blocks, "depth", depth, 0), n_ctx, image_width(clip))
            self.image_prompts = nn.Parameter(drawn(shape, torch.Generator().manual_seed(seed)))
        self.to(clip.device)
