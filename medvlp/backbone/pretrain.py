"""Contrastive pre-training of the embedded CLIP on phantoms and their captions.

An ordinary open_clip model, only small, learns with open_clip's own loss (Radford et al. 2021): of the
B images and B captions of a batch, each image must find its caption and each caption its image,

    loss = ( CE(s I T^T, 1..B) + CE(s T I^T, 1..B) ) / 2        I, T (B, D) normalised, s = exp(logit_scale)

A batch holds one kind of image, so that the other captions are hard to tell from the right one. Captions
are plain at first and varied later: an attribute is learned only once the texts differ by it clearly, and
with many wordings from the start the towers wait for each other. So CLIP's authors train; the weights that
ship with the package were helped besides, see `pretrain_annotated`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip import CustomTextCLIP
from open_clip.loss import ClipLoss
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from safetensors.torch import save_file
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip, native_bfloat16
from medvlp.backbone.sources import byte_pairs, random_turn
from medvlp.data.errors import check_kinds, frozen_config
from medvlp.data.files import atomic_write
from medvlp.data.phantoms.worlds import Latents, World, captions, get_world

TINY = {  # open_clip's model_cfg: two towers of four layers; embed_dim differs from the text width
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "head_width": 32, "layers": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
}
PREPROCESS = asdict(PreprocessCfg(size=TINY["vision_cfg"]["image_size"]))
Share = Annotated[float, Field(ge=0, le=1)]
STREAM = 0x9E3779B9  # keeps the images of pre-training apart from those of every data set


@frozen_config
class PretrainConfig:
    """What a pre-training run depends on.

    Example:
        >>> import medvlp
        >>> medvlp.PretrainConfig(worlds=("derm",), steps=240).batch_size
        128
    """

    worlds: tuple[str, ...] = ("derm", "cxr", "fundus")
    n_images: PositiveInt = 24_000  # images of each world, captioned anew each time they are seen
    steps: PositiveInt = 4_200
    batch_size: PositiveInt = 128
    plain: Share = 0.4  # the first share of the steps, with captions in plain words
    lr: PositiveFloat = 2e-3  # cosine to zero
    warmup: PositiveInt = 100  # steps
    weight_decay: NonNegativeFloat = 0.1  # on matrices; not on embeddings, gains and biases
    name_rate: Share = 1e-4  # how often a caption names a disease,
    wrong_rate: Share = 0.2  # and how often that name is wrong
    seed: NonNegativeInt = 0
    # matrix products in bfloat16, weights in float32; by default where the processor has such products
    bf16: bool = field(default_factory=native_bfloat16)


def new_clip(seed: int = 0, model_cfg: dict = TINY) -> Clip:
    """An embedded CLIP before any training: random weights from `seed`, gradients on."""
    with random_turn(seed):
        model = CustomTextCLIP(**model_cfg)
    set_model_preprocess_cfg(model, PREPROCESS | {"size": model_cfg["vision_cfg"]["image_size"]})
    clip = Clip("tiny (in training)", model, byte_pairs(77), model_cfg)
    clip.model.requires_grad_(True)
    return clip


def pretrain(
    config: PretrainConfig, callback: Callable[[int, Clip], None] | None = None, progress: bool = True
) -> tuple[Clip, pd.DataFrame]:
    """Train the embedded CLIP on phantoms.

    Args:
        config: everything that the run depends on.
        callback: called as `callback(step, clip)` after each step, counted from 1.
        progress: show a progress bar.

    Returns:
        the trained clip, frozen, and a table with step, loss, accuracy (share of the batch's images that
        find their own caption) and logit_scale, one row a step.

    Raises:
        FloatingPointError: the loss is no longer a number.

    Example:
        >>> import medvlp
        >>> config = medvlp.PretrainConfig(worlds=("derm",), n_images=8, steps=2, batch_size=4)
        >>> clip, history = medvlp.pretrain(config, progress=False)
        >>> history.columns.tolist()
        ['step', 'loss', 'accuracy', 'logit_scale']
    """
    check_kinds(pretrain, locals())
    clip = new_clip(config.seed)
    draws = torch.Generator().manual_seed(config.seed)
    worlds = [get_world(name) for name in config.worlds]
    corpora = []
    for number, world in enumerate(tqdm(worlds, desc="drawing phantoms", disable=not progress)):
        latents = corpus_latents(world, config, number)
        corpora.append((world, latents, world.render(latents, PREPROCESS["size"])))
    criterion = ClipLoss()

    def loss_of(step: int) -> tuple[Tensor, float]:
        world, latents, images = corpora[int(torch.randint(len(corpora), (), generator=draws))]
        chosen = torch.randint(len(latents), (config.batch_size,), generator=draws)  # (B,)
        words = captions(
            world,
            latents[chosen],
            seed=config.seed * 1_000_003 + step,
            name_rate=config.name_rate,
            wrong_rate=config.wrong_rate,
            plain=step <= config.plain * config.steps,
        )
        scale = clip.model.logit_scale.exp()
        image_features, text_features = _features(clip, images[chosen], words, config.bf16)  # (B, D) each
        with torch.no_grad():
            nearest = (image_features @ text_features.T).argmax(dim=1)  # (B,)
        right = (nearest == torch.arange(len(nearest))).float().mean().item()
        return criterion(image_features, text_features, scale), right

    return clip, optimise(clip, config, loss_of, callback, progress)


def optimise(
    clip: Clip,
    config: Any,
    loss_of: Callable[[int], tuple[Tensor, float]],
    callback: Callable[[int, Clip], None] | None = None,
    progress: bool = True,
    others: Sequence[nn.Parameter] = (),
) -> pd.DataFrame:
    """Take `config.steps` steps; then the clip is frozen.

    Args:
        clip: what is trained, gradients on.
        config: steps, lr, warmup, weight_decay and bf16.
        loss_of: gives the loss of a step, counted from 1, and the share of images that were read right.
        callback: called as `callback(step, clip)` after each step.
        progress: show a progress bar.
        others: what is trained beside the clip.

    Returns:
        step, loss, accuracy and logit_scale, one row a step.

    Raises:
        FloatingPointError: the loss is no longer a number.
    """
    optimisers, rows = _optimisers(clip.model, config, others), []
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(each, lambda step: _warm_cosine(step, config))
        for each in optimisers
    ]
    bar = tqdm(range(1, config.steps + 1), desc="pre-training", disable=not progress)
    for step in bar:
        loss, right = loss_of(step)
        if not loss.isfinite():
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}; try a lower lr.")
        scale = clip.model.logit_scale.exp().item()
        for each in optimisers:
            each.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(clip.model.parameters(), 1.0)
        for each in [*optimisers, *schedules]:
            each.step()
        with torch.no_grad():
            clip.model.logit_scale.clamp_(0, math.log(100))
        rows.append({"step": step, "loss": loss.item(), "accuracy": right, "logit_scale": scale})
        bar.set_postfix(loss=f"{loss.item():.2f}")
        if callback is not None:
            callback(step, clip)
    clip.model.requires_grad_(False)
    return pd.DataFrame(rows)


def corpus_latents(world: World, config: PretrainConfig, number: int) -> Latents:
    """What the run's images of its world `number` are made of; no data set draws the same ones."""
    state = np.random.SeedSequence([STREAM, config.seed, number]).generate_state(1, np.uint32)
    return world.sample(config.n_images, seed=int(state[0]))


def normalise(images: Tensor) -> Tensor:
    """Bytes, or floats from 0 to 1, (B, 3, S, S) to what `clip.preprocess` makes of the same picture."""
    mean = torch.tensor(PREPROCESS["mean"]).view(3, 1, 1)
    std = torch.tensor(PREPROCESS["std"]).view(3, 1, 1)
    return ((images if images.is_floating_point() else images.float() / 255) - mean) / std


def save_clip(clip: Clip, folder: str | Path, record: dict) -> None:
    """Write a folder that `load_clip("local-dir:FOLDER")` reads: half-precision weights, configuration.

    `record` (how it was made) goes into training.json.
    """
    folder = Path(folder)
    weights = {key: value.detach().half().contiguous() for key, value in clip.model.state_dict().items()}
    with atomic_write(folder / "open_clip_model.safetensors") as part:
        save_file(weights, part, metadata={"format": "pt"})
    preprocess = {key: PREPROCESS[key] for key in ("mean", "std", "interpolation", "resize_mode")}
    for name, content in {
        "open_clip_config.json": {"model_cfg": clip.model_cfg, "preprocess_cfg": preprocess},
        "training.json": record,
    }.items():
        with atomic_write(folder / name) as part:
            part.write_text(json.dumps(content, indent=2) + "\n")


def _features(clip: Clip, images: Tensor, words: list[str], bf16: bool) -> tuple[Tensor, Tensor]:
    """Normalised image and text features, (B, D) each, float32."""
    # On a CPU the plain attention is faster than the fused one at these lengths.
    with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image_features = clip.model.encode_image(normalise(images))
        text_features = clip.model.encode_text(clip.tokenize(words))
    return F.normalize(image_features.float(), dim=-1), F.normalize(text_features.float(), dim=-1)


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), with the step's size as AdamW has it (Liu et al. 2025, arXiv:2502.16982).

        M <- mu M + (1 - mu) G
        W <- (1 - lr wd) W - lr 0.2 sqrt(max(out, in)) orth( (1 - mu) G + mu M )

    G, M and W are (out, in), and orth(U S V^T) is about U V^T, by five steps of Newton and Schulz: a matrix
    is changed by as much in each of its directions. With AdamW alone the few directions that the first
    attributes need take all steps, and the towers wait for each other with the rest. `torch.optim.Muon` gives
    the same numbers; but it takes its products in bfloat16 on every processor, which without such products
    makes a step of pre-training four times as long (bench_pretrain), and one matrix after the other.
    """

    MU = 0.95
    NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients by Jordan et al.

    def __init__(
        self, params: list[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        shapes = dict.fromkeys(p.shape for p in params)
        groups = [{"params": [p for p in params if p.shape == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype  # of the products; weights and momentum keep their own

    @torch.no_grad()
    def step(self) -> None:
        """Change every matrix once."""
        for group in self.param_groups:
            W, lr = group["params"], group["lr"]
            G = torch.stack([w.grad for w in W])  # (n, out, in), all matrices of a shape
            M = self.state[W[0]].setdefault("M", torch.zeros_like(G))
            M.lerp_(G, 1 - self.MU)
            seen = G.lerp(M, self.MU)
            orth = zeropower_via_newtonschulz(seen, 5, [self.NEWTON_SCHULZ], eps=1e-7, dtype=self.dtype)
            for w, change in zip(W, orth, strict=True):
                w.mul_(1 - lr * group["weight_decay"])
                w.add_(change, alpha=-lr * 0.2 * math.sqrt(max(w.shape)))


def _optimisers(model: nn.Module, config: Any, others: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else."""
    matrices = {name for name, p in model.named_parameters() if p.ndim == 2 and ".resblocks." in name}
    parts: dict[str, list[nn.Parameter]] = {"blocks": [], "others": [], "kept": []}
    for name, p in model.named_parameters():
        part = "others" if p.ndim >= 2 and "embedding" not in name else "kept"  # not decayed
        parts["blocks" if name in matrices else part].append(p)
    groups = [
        {"params": parts["others"], "weight_decay": config.weight_decay},
        {"params": [*parts["kept"], *others], "weight_decay": 0.0},
    ]
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    return [
        Muon(parts["blocks"], config.lr, config.weight_decay, dtype),
        torch.optim.AdamW(groups, config.lr, (0.9, 0.98)),
    ]


def _warm_cosine(step: int, config: Any) -> float:
    """Factor on the learning rate: up in a line, down in a half cosine."""
    up = min(1.0, (step + 1) / config.warmup)
    return up * 0.5 * (1 + math.cos(math.pi * step / config.steps))
