"""CLIP-Adapter: a small network beside the image feature, mixed with it."""

from math import sqrt
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medvlp.backbone.clip import Clip
from medvlp.data.cards import DataCard
from medvlp.methods.base import Method
from medvlp.methods.prompt_tuning.coop import TRAINER
from medvlp.methods.zero_shot import ZeroShot


class CLIPAdapter(Method):
    r"""A bottleneck on the image feature, mixed with the feature itself.

        A(f) = ReLU(W_2 ReLU(W_1 f)),    f' = ratio A(f) + (1 - ratio) f                   (D,)
        logits[b, c] = exp(logit_scale) * f'_b . t_c / |f'_b|

    with f_b the image feature and t_c the zero-shot feature of class c: Gao et al., "CLIP-Adapter: Better
    Vision-Language Models with Feature Adapters", IJCV 2024, arXiv 2110.04544. Learned are W_1 (D / r, D) and
    W_2 (D, D / r), without bias: 131,072 numbers for D = 512 and r = 4, 524,288 for ResNet-50 (D = 1024). The
    second ReLU is in the authors' code. A(s f) = s A(f) for s > 0, so it makes no difference that f is
    normalised here before A and not there.

    The recipe's steps are small: with 16 images of each of two classes an epoch is one step, and 50 of them
    leave it near zero-shot. `optimizer="adamw"` with `lr=0.01` learns from as few.

    The adapter of the text features that the paper also tries, and a ratio learned or chosen for each data
    set, are not here; the authors' code has neither.

    Notes:
        The authors read one template a data set, "a photo of a {}." for ImageNet: knowledge="classnames" is
        this one text, the first template of the card. By default all templates of the card are read, as
        `TipAdapter` and `TextProbe` do.

        The authors see a new random view of each image in every epoch: `views="fresh"` in the recipe, which
        encodes every image in every epoch. By default four views of each are encoded once.

    Args:
        clip: The frozen image and text towers.
        card: Gives the classes in label order, and their texts.
        ratio: Part of A(f) in f', from 0 to 1.
        reduction: r, how many times narrower the bottleneck is than the feature.
        knowledge: The texts of t_c, as `ZeroShot` has it.
        logit_scale: The factor on cosines, exp(logit_scale) above; by default the CLIP's own.
        seed: Of the start of W_1 and W_2, which is that of torch's `nn.Linear`.

    Attributes:
        W1: (D // r, D).
        W2: (D, D // r).
        config: the arguments by name, fit for JSON; `CLIPAdapter(clip, card, **config)` builds the same.

    Raises:
        ValueError: a ratio outside 0 to 1, a reduction that leaves no bottleneck, unknown knowledge.

    Example:
        >>> import medvlp
        >>> clip, card = medvlp.load_clip("tiny"), medvlp.load_card("phantom-derm")
        >>> adapter = medvlp.CLIPAdapter(clip, card, reduction=4)
        >>> tuple(adapter.W1.shape) == (clip.embed_dim // 4, clip.embed_dim)
        True
    """

    # The authors' code (github.com/gaopengcuhk/CLIP-Adapter) has no configuration: it asks for CoOp's command
    # for ImageNet, whose rn50_ep50.yaml this is, with Dassl's momentum and weight decay and the last epoch.
    recipe: ClassVar[dict[str, Any]] = TRAINER | {"epochs": 50, "batch_size": 32, "lr": 0.002}

    text_features: Tensor  # (n_cls, D), t_c

    def __init__(
        self,
        clip: Clip,
        card: DataCard,
        *,
        ratio: float = 0.2,
        reduction: int = 4,
        knowledge: str = "templates",
        logit_scale: float | None = None,
        seed: int = 1,
    ) -> None:
        """Encode the texts and draw the adapter; see the class."""
        super().__init__(clip, card, locals())
        D, self.ratio = clip.embed_dim, ratio
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio must be from 0 to 1, got {ratio}.")
        if not 1 <= reduction <= D:
            raise ValueError(f"reduction must be from 1 to {D}, the length of a feature, got {reduction}.")
        self.constant("text_features", ZeroShot(clip, card, knowledge).text_features)
        random = torch.Generator().manual_seed(seed)
        shapes = (D // reduction, D), (D, D // reduction)
        W1, W2 = (nn.init.kaiming_uniform_(torch.empty(s), a=sqrt(5), generator=random) for s in shapes)
        self.W1, self.W2 = nn.Parameter(W1.to(clip.device)), nn.Parameter(W2.to(clip.device))

    def logits_from_features(self, image_features: Tensor) -> Tensor:
        """Logits of normalised image features: (B, D) -> (B, n_cls)."""
        return super().logits_from_features(self.adapted(image_features))

    def adapted(self, image_features: Tensor) -> Tensor:
        """f', normalised: (B, D) -> (B, D)."""
        f = image_features.to(self.W1)
        A = F.relu(F.relu(f @ self.W1.T) @ self.W2.T)  # (B, D)
        return F.normalize(self.ratio * A + (1 - self.ratio) * f, dim=-1)
