"""Contrastive pre-training of an embedded CLIP on images that experts described, or that were drawn.

A statement is a phrase and what it claims of the card's attributes ("pink granules": granule colour is pink).
A caption makes some of them, and it is true of every image of which all its statements are, so an image has
many right captions in a batch, and a caption many right images (UniCL, Yang et al. 2022, arXiv:2204.03610).
Three losses are added. With s = exp(logit_scale) and normalised features I (B, D) and T (., D),

    questions    mean over the attributes a of  CE(s I T_a^T, value of a),       T_a: a phrase for each value
    vectors      the same, but T_a is a learned vector for each value, thrown away in the end
    captions     ( CE(s I T^T, P) + CE(s T I^T, P^T) ) / 2,       P: the true pairs, each row with sum 1

The vectors push the image tower to each attribute from the first step, and the questions the text tower to
what is seen; with captions alone the towers wait for each other. So captions, which leave much unsaid, teach
the text tower only. Rare values weigh more, as 1 / sqrt(how often). Class names are never read: statements
come from a card's attributes and from its symptoms, which name no class, or from a phantom world's wordings.
Of a world half of the images show an attribute, whatever the class, so that no attribute gives another away.
The weights that ship with the package are made by `python -m medvlp.backbone.pretrain_annotated`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import typer
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.transforms.v2 import functional as pictures
from tqdm.auto import tqdm

from medvlp.backbone.appearance import Looks
from medvlp.backbone.clip import Clip, native_bfloat16
from medvlp.backbone.pretrain import PREPROCESS, corpus_latents, new_clip, normalise, optimise, save_clip
from medvlp.data.datasets import load_dataset
from medvlp.data.errors import check_kinds, frozen_config
from medvlp.data.image_sets import ImageSet
from medvlp.data.phantoms.worlds import DRAWINGS, World, get_world

JOINTS = (", ", " and ", "; ")
STATEMENTS = (1, 1, 2, 3, 4, 5)  # how many a caption makes, drawn from these
STORED = 1.25  # images are kept this much larger than the clip reads them, for looks at another scale


@frozen_config
class AnnotatedConfig:
    """What a run of `pretrain_annotated` depends on.

    Example:
        >>> import medvlp
        >>> medvlp.AnnotatedConfig(steps=300).batch_size
        64
    """

    steps: PositiveInt = 2_700
    batch_size: PositiveInt = 64
    lr: PositiveFloat = 2e-3  # cosine to zero
    warmup: PositiveInt = 100  # steps
    weight_decay: NonNegativeFloat = 0.1  # on matrices; not on embeddings, gains and biases
    seed: NonNegativeInt = 0
    looks: Looks = field(default_factory=Looks)  # of photographs; drawings are seen as they are
    n_images: PositiveInt = 16_000  # drawn of each world
    # Muon's products in bfloat16, all else in float32; by default where the processor has such products
    bf16: bool = field(default_factory=native_bfloat16)


@dataclass
class Statements:
    """What can be said of described images, and of which images it is true."""

    openings: Sequence[str]  # of captions and questions
    questions: list[list[Sequence[str]]]  # for each attribute, for each value, its phrases
    values: Tensor  # (N, A) int64, the place of each image's value; -1 where nobody looked
    phrases: list[str]
    speaks_of: list[set[str]]  # attributes, for each phrase
    true: Tensor  # (phrases, N) bool

    @classmethod
    def of(cls, images: ImageSet) -> "Statements":
        """Statements of the images' card: phrases of its attributes' values, and symptoms with claims."""
        card, table = images.card, images.attributes
        claims = {
            text: {a.name: [value]}
            for a in card.attributes
            for value, texts in a.values.items()
            for text in texts
        }
        claims = card.claims | claims
        true = [
            np.logical_and.reduce([table[name].isin(values) for name, values in claim.items()])
            for claim in claims.values()
        ]
        places = {a.name: list(a.values) for a in card.attributes}
        codes = [table[name].astype(pd.CategoricalDtype(order)).cat.codes for name, order in places.items()]
        return cls(
            ("", "", f"{card.modality} with", f"{card.modality} showing"),
            [list(attribute.values.values()) for attribute in card.attributes],
            torch.from_numpy(np.stack(codes, axis=1).astype(np.int64)),
            list(claims),
            [set(claim) for claim in claims.values()],
            torch.from_numpy(np.stack(true)),
        )

    @classmethod
    def of_world(cls, world: World, attributes: Tensor) -> "Statements":
        """Statements of drawings that show these attributes, (N, K) bool: each wording of each attribute."""
        said = [
            (text, attribute.name, attributes[:, k] == there)
            for k, attribute in enumerate(world.attributes)
            for there, texts in ((False, attribute.absent), (True, attribute.present))
            for text in texts
        ]
        phrases, names, true = zip(*said, strict=True)
        questions = [[attribute.absent, attribute.present] for attribute in world.attributes]
        about, true = [{n} for n in names], torch.stack(true)
        return cls(world.openings, questions, attributes.long(), list(phrases), about, true)

    def weights(self) -> list[Tensor]:
        """What each value of each attribute weighs: 1 / sqrt(how often it is there)."""
        return [
            torch.bincount(values[values >= 0], minlength=len(asked)).clamp(min=1).float().rsqrt()
            for values, asked in zip(self.values.T, self.questions, strict=True)
        ]

    def ask(self, words: random.Random) -> list[list[str]]:
        """One phrase for each value of each attribute."""
        asked = []
        for of_attribute in self.questions:
            opening = words.choice(self.openings)
            asked.append([f"{opening} {words.choice(phrases)}".strip() for phrases in of_attribute])
        return asked

    def caption(self, image: int, words: random.Random) -> tuple[str, list[int]]:
        """A caption that is true of the image, and which statements it makes, no attribute twice."""
        possible = self.true[:, image].nonzero().flatten().tolist()
        words.shuffle(possible)
        most, made, spoken = words.choice(STATEMENTS), [], set()
        for phrase in possible:
            if len(made) < most and not spoken & self.speaks_of[phrase]:
                made.append(phrase)
                spoken |= self.speaks_of[phrase]
        said = words.choice(JOINTS).join(self.phrases[phrase] for phrase in made)
        return f"{words.choice(self.openings)} {said}".strip(), made


def pretrain_annotated(
    images: ImageSet | Sequence[World],
    config: AnnotatedConfig,
    callback: Callable[[int, Clip], None] | None = None,
    progress: bool = True,
) -> tuple[Clip, pd.DataFrame]:
    """Train a clip of the embedded architecture on described images.

    Args:
        images: a training split whose card has attributes, or phantom worlds, whose images are drawn for it.
        config: everything that the run depends on.
        callback: called as `callback(step, clip)` after each step, counted from 1.
        progress: show a progress bar.

    Returns:
        the trained clip, frozen, and a table with step, loss, accuracy (mean over the attributes: share of
        the batch's images whose value was read right) and logit_scale, one row a step.

    Raises:
        ValueError: images without attributes.
        FloatingPointError: the loss is no longer a number.

    Example:
        >>> import medvlp
        >>> config = medvlp.AnnotatedConfig(steps=2, batch_size=4, n_images=8)
        >>> clip, history = medvlp.pretrain_annotated([medvlp.get_world("derm")], config, progress=False)
        >>> len(history), clip.embed_dim
        (2, 128)
    """
    check_kinds(pretrain_annotated, locals())
    clip = new_clip(config.seed)
    draws, words = torch.Generator().manual_seed(config.seed), random.Random(config.seed)
    if isinstance(images, ImageSet):
        corpora, looks = [photographed(images, round(STORED * clip.image_size), progress)], config.looks
    else:
        drawing = tqdm(images, desc="drawing phantoms", disable=not progress)
        corpora, looks = [drawn(world, config, number) for number, world in enumerate(drawing)], None
    weights = [statements.weights() for _, statements in corpora]
    vectors = [
        nn.Parameter(torch.randn(sum(map(len, statements.questions)), clip.embed_dim, generator=draws))
        for _, statements in corpora
    ]

    def loss_of(step: int) -> tuple[Tensor, float]:
        number = step % len(corpora)  # one kind of image a batch
        stored, statements = corpora[number]
        rows = torch.randint(len(stored), (config.batch_size,), generator=draws)  # (B,)
        seen = stored[rows].float() / 255  # (B, 3, R, R)
        if looks is not None:
            seen = looks.draw(seen, clip.image_size, draws)  # (B, 3, S, S)
        asked = statements.ask(words)
        captions, made = zip(*(statements.caption(row, words) for row in rows.tolist()), strict=True)
        texts = [text for of_attribute in asked for text in of_attribute] + list(captions)
        with sdpa_kernel(SDPBackend.MATH):  # on a CPU faster than the fused one at these lengths
            image_features = F.normalize(clip.model.encode_image(normalise(seen)), dim=-1)  # (B, D)
            text_features = F.normalize(clip.model.encode_text(clip.tokenize(texts)), dim=-1)  # (texts, D)
        scale, n_asked = clip.model.logit_scale.exp(), len(texts) - len(captions)
        directions = torch.cat([F.normalize(vectors[number], dim=-1), text_features[:n_asked]])
        answers = (scale * image_features @ directions.T).split([*map(len, asked * 2)], dim=1)  # (B, values)
        captions_logits = scale * image_features.detach() @ text_features[n_asked:].T  # (B, B)
        values = statements.values[rows].T  # (A, B)
        questions = [
            F.cross_entropy(answer, value, weight, ignore_index=-1)
            for answer, value, weight in zip(answers, [*values] * 2, weights[number] * 2, strict=True)
            if bool((value >= 0).any())
        ]
        true = torch.stack([statements.true[of_one][:, rows].all(0) for of_one in made], dim=1)  # (B, B)
        read = answers[len(values) :]
        right = [(answer.argmax(1) == value).float() for answer, value in zip(read, values, strict=True)]
        loss = 2 * torch.stack(questions).mean() + true_pairs_loss(captions_logits, true)
        return loss, torch.cat(right).mean().item()

    return clip, optimise(clip, config, loss_of, callback, progress, vectors)


def photographed(images: ImageSet, size: int, progress: bool) -> tuple[Tensor, Statements]:
    """Small copies of the images, (N, 3, size, size) bytes, and what experts noted of them."""
    if not images.card.attributes:
        raise ValueError(
            f"card {images.card.name!r} has no attributes; name there what experts noted and where."
        )
    return small_copies(images, size, progress), Statements.of(images)


def drawn(world: World, config: AnnotatedConfig, number: int) -> tuple[Tensor, Statements]:
    """The run's images of its world `number`, (N, 3, S, S) bytes, and what is seen: an attribute in half."""
    latents, coins = corpus_latents(world, config, number), torch.Generator()
    coins.manual_seed(config.seed + number)
    shown = torch.rand(latents.attributes.shape, generator=coins) < 0.5
    images = world.render(replace(latents, attributes=shown), PREPROCESS["size"])
    return images, Statements.of_world(world, shown)


def true_pairs_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Contrastive loss with several right captions for an image, and several right images for a caption.

    Args:
        logits: (images, captions).
        true: the same shape, bool; at least one in each row and column.
    """
    pairs = true.float()
    to_captions = F.cross_entropy(logits, pairs / pairs.sum(dim=1, keepdim=True))
    to_images = F.cross_entropy(logits.T, pairs.T / pairs.T.sum(dim=1, keepdim=True))
    return (to_captions + to_images) / 2


def small_copies(images: ImageSet, size: int, progress: bool = True) -> Tensor:
    """The middle of every image, scaled to `size` pixels a side, (N, 3, size, size) bytes."""

    def copy(image: object) -> Tensor:
        side = pictures.resize(image, [size], interpolation=pictures.InterpolationMode.BICUBIC)
        return pictures.pil_to_tensor(pictures.center_crop(side, [size]))

    reading = tqdm(range(len(images)), desc="reading images", delay=2, disable=not progress)
    return torch.stack([copy(images.image(i)) for i in reading])


def main(
    out: Annotated[Path, typer.Option(help="folder to write, as medvlp/assets/tiny")],
    card: Annotated[str | None, typer.Option(help="a card with attributes; without it, phantoms")] = None,
    root: Annotated[Path | None, typer.Option(help="the folder of data sets; default: MEDVLP_DATA")] = None,
    steps: int = AnnotatedConfig.steps,
    seed: int = AnnotatedConfig.seed,
) -> None:
    """Make the weights of an embedded CLIP from phantoms, or from a card's training images."""
    config = AnnotatedConfig(steps=steps, seed=seed)
    images = load_dataset(card, root=root).train if card else [get_world(name) for name in DRAWINGS]
    clip, history = pretrain_annotated(images, config)
    loss = float(history["loss"].tail(100).mean())
    record = {
        "images": card or list(DRAWINGS),
        "config": asdict(config),
        "loss_last_100_steps": round(loss, 4),
    }
    save_clip(clip, out, record)
    print(f"loss over the last 100 steps {loss:.3f}; written to {out}")


if __name__ == "__main__":
    typer.run(main)
