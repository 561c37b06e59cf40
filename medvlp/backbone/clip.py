"""Any open_clip model behind one small class.

Every model is loaded with `force_custom_text=True`, so that `.text` and `.visual` exist everywhere,
with its own preprocessing and its own tokenizer, frozen and in eval mode.
"""

import json
import re
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from medvlp.backbone.sources import load_source
from medvlp.data.errors import brief, check_choice, check_kinds, unknown_name
from medvlp.data.files import sha256

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16")  # x86 with vectors, with tiles; ARM
PROFILES = {"clip": "ViT-B-16-quickgelu/openai", "large": "ViT-L-14-336-quickgelu/openai"}  # as ViP uses
NO_FEATURE = ("_name_or_path", "transformers_version", "dtype", "architectures")  # of a tower's config.json
TEXTS_AT_ONCE = 256  # texts encoded in one go
PROBE = [  # the fingerprint knows a tokenizer by what it makes of these
    "a dermoscopy image of an asymmetric lesion with irregular dots, 3 colours & a blue-white veil.",
    "Consolidation in the LEFT lower lobe; pleural effusion (2.5 cm), air bronchograms?",
]


def native_bfloat16() -> bool:
    """Whether this machine's processor has products in bfloat16.

    Without them torch converts every number there and back: a step of pre-training then takes 8 times as long
    as in float32. A torch too old to tell (`torch.cpu.get_capabilities` is missing) counts as no, and so does
    one that is told to leave them alone (`ATEN_CPU_CAPABILITY=avx2`).
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    return any(capabilities.get(name, False) for name in BFLOAT16_PRODUCTS)


class Clip(nn.Module):
    """A frozen open_clip model with its preprocessing and tokenizer.

    Attributes:
        name: what `load_clip` was given.
        model: the open_clip model (`CustomTextCLIP`, or `CoCa`), frozen, always in eval mode.
        preprocess: PIL image -> (3, S, S) float tensor, as this model was trained.
        preprocess_cfg: size, mean, std, interpolation and resize mode of `preprocess`.
        image_size: S, the side of an image in pixels.
        context_length: the most tokens a text may have, start and end of text included.
        embed_dim: D, length of an image or text feature.
        text_width: w, length of a token embedding.
        precision: "fp32", "bf16" or "fp16", as `load_clip` was given it.
        dtype: type of the weights; features are always float32.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> clip.encode_texts(["black dots.", "a smooth border."]).shape
        torch.Size([2, 128])
    """

    def __init__(
        self, name: str, model: nn.Module, tokenizer: Any, model_cfg: dict, precision: str = "fp32"
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.model_cfg = model_cfg
        self.preprocess_cfg = dict(model.visual.preprocess_cfg)
        self.preprocess = image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=False)
        size = self.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
        if height != width:
            raise ValueError(f"clip {name!r} wants {height} x {width} images; only square ones will do.")
        self.image_size = int(height)
        self.context_length = int(tokenizer.context_length)
        self.embed_dim = int(model_cfg["embed_dim"])
        self.precision, self.dtype = precision, PRECISIONS[precision]
        for tower in (model.visual, model.text):  # the scale of logits stays exact
            tower.to(self.dtype)
        if isinstance(model.text, TextTransformer):
            model.text.transformer.register_forward_pre_hook(_cut_mask, with_kwargs=True)
        self.eval()

    def __repr__(self) -> str:
        millions = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        trained_size = self.model_cfg.get("trained_size")
        resized = f" (positions resized from {trained_size})" if trained_size else ""
        return (
            f"Clip({self.name!r}: images of {self.image_size} pixels{resized}, "
            f"texts of up to {self.context_length} tokens, embed_dim {self.embed_dim}, "
            f"{millions:.1f} M frozen weights, {self.dtype} on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.logit_scale.device

    @property
    def logit_scale(self) -> float:
        """The factor on cosines: exp of the learned scale, about 100 in a trained CLIP."""
        return float(self.model.logit_scale.exp())

    @property
    def logit_bias(self) -> float:
        """What is added to scaled cosines: about -10 in CLIPs trained by sigmoids (SigLIP), in others 0.

        It changes no softmax. `method(images).sigmoid()` are then the probabilities that each class's text
        fits, each by itself: they need not add up to 1.
        """
        return float(getattr(self.model, "logit_bias", None) or 0.0)

    @property
    def token_embedding(self) -> nn.Embedding:
        """The text tower's token embedding, (vocabulary, w)."""
        text = self.model.text
        if isinstance(text, HFTextEncoder):
            return text.transformer.get_input_embeddings()
        return text.token_embedding

    @property
    def text_width(self) -> int:
        """Length of a token embedding, w."""
        return self.token_embedding.embedding_dim

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, architecture, preprocessing and tokenizer, the same in every process.

        Weights count as they are held: the same model in bf16 has another fingerprint.
        Computed at the first use (about a second for ViT-B/16) and kept.
        """
        tower = getattr(self.model.text, "config", None)  # a Hugging Face tower: what its weights do not tell
        rules = getattr(getattr(self.tokenizer, "tokenizer", None), "backend_tokenizer", None)
        settings = {
            "model": _without_paths(self.model_cfg),
            "tower": dict.fromkeys(("model_type", "num_attention_heads", "hidden_act")),
            "preprocess": self.preprocess_cfg,
            "context_length": self.context_length,
            "probe": self.tokenizer(PROBE).tolist(),
        }
        if tower is not None:
            settings["tower"] = {k: v for k, v in tower.to_dict().items() if k not in NO_FEATURE}
        if rules is not None:  # to which the probe's call has given padding and truncation
            settings["tokenizer"] = rules.to_str()
        digests = [sha256(json.dumps(settings, sort_keys=True, default=list))]
        for key, tensor in sorted(self.model.state_dict().items()):
            raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digests.append(sha256(key, str(tensor.dtype), str(tuple(tensor.shape)), raw))
        return sha256(*digests)

    def train(self, mode: bool = True) -> "Clip":
        """Stay in eval mode: a frozen CLIP has no dropout, also inside a method that is training."""
        return super().train(False)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Token ids (N, L), cut to the longest of these texts where that changes nothing.

        L <= context_length. Towers in which padding matters keep their full length.

        Raises:
            ValueError: no text, or one with more tokens than the tower takes.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a list of strings, got one string; write [text].")
        texts = list(texts)
        if not texts:
            raise ValueError("there is no text to encode: the list of texts is empty.")
        tokens = self.tokenizer(texts)  # (N, context_length)
        self._check_length(texts, tokens)
        return tokens[:, : self._needed_length(tokens)]  # (N, L)

    def encode_texts(self, texts: list[str], normalize: bool = True) -> Tensor:
        """Text features (N, D), float32, L2-normalised unless `normalize` is False."""
        tokens = self.tokenize(texts).to(self.device)  # (N, L)
        features = [self.model.encode_text(chunk) for chunk in tokens.split(TEXTS_AT_ONCE)]
        t = torch.cat(features).float()  # (N, D)
        return F.normalize(t, dim=-1) if normalize else t

    def encode_images(self, images: Tensor) -> Tensor:
        """Image features (B, D), float32, L2-normalised, of preprocessed images (B, 3, S, S).

        Raises:
            ValueError: images of another shape or type than `preprocess` makes.
        """
        features = self.model.encode_image(self.checked(images))  # (B, D)
        return F.normalize(features.float(), dim=-1)

    def checked(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, S, S) on the model's device and of its type.

        Raises:
            ValueError: images of another shape or type than `preprocess` makes.
        """
        size = self.image_size
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or not images.is_floating_point():
            got = f"{' x '.join(map(str, images.shape))} of {images.dtype}"
            raise ValueError(
                f"clip {self.name!r} wants floats of B x 3 x {size} x {size}, got {got}; use clip.preprocess."
            )
        return images.to(self.device, self.dtype)

    def _needed_length(self, tokens: Tensor) -> int:
        """How many columns of `tokens` (N, context_length) the text features depend on."""
        text, full = self.model.text, tokens.shape[1]
        if isinstance(text, HFTextEncoder):  # the attention mask hides the padding
            used = tokens != text.config.pad_token_id  # (N, L)
            left_padded = not bool(used[:, 0].all())
            return full if left_padded else int(used.any(dim=0).nonzero().max()) + 1
        causal = isinstance(text, TextTransformer) and text.attn_mask is not None and text.cls_emb is None
        if causal and text.pool_type == "argmax":  # nothing after the end-of-text token is seen by it
            return int(tokens.argmax(dim=1).max()) + 1
        if causal and text.pool_type == "eos":
            ends = tokens == text.eos_id  # (N, L)
            return int(ends.int().argmax(dim=1).max()) + 1 if bool(ends.any(dim=1).all()) else full
        return full

    def _check_length(self, texts: list[str], tokens: Tensor) -> None:
        """Raise if the tokenizer cut a text: tokenizers of open_clip do so without a word."""
        hf = getattr(self.tokenizer, "tokenizer", None)  # a Hugging Face tokenizer, where there is one
        pad = 0 if hf is None else hf.pad_token_id
        full = (tokens[:, -3:] != pad).any(dim=1)  # (N,)
        for i in full.nonzero().flatten().tolist():
            room = max(4 * len(texts[i]) + 16, self.context_length)  # at most one token a byte
            count = int((self.tokenizer([texts[i]], context_length=room) != pad).sum())
            if count > int((tokens[i] != pad).sum()):
                raise ValueError(
                    f"text {brief(texts[i])} has {count} tokens; clip {self.name!r} takes at most "
                    f"{self.context_length}, start and end of text included. Shorten it."
                )


def load_clip(name: str = "tiny", device: str | torch.device = "auto", precision: str = "fp32") -> Clip:
    """Load an open_clip model, frozen, with its own preprocessing and tokenizer.

    Args:
        name: one of
            `tiny`, `tiny-cells`: small CLIPs that come with the package; the first has read of drawings, the
            second of real blood cells;
            `clip`, `large`: OpenAI's ViT-B/16 and ViT-L/14 at 336 pixels (see `PROFILES`);
            `ARCH/TAG`: an architecture and a pretrained tag of open_clip, as "ViT-B-16-quickgelu/openai"
            (`open_clip.list_pretrained()` lists them);
            `ARCH=FILE`: an architecture of open_clip and a file of weights (.pt, .pth, .bin, .safetensors; as
            they are, or under "state_dict" as a training run saves them), as "ViT-B-16-quickgelu=epoch_5.pt".
            With ARCH-quickgelu or ARCH-gelu you say which activation they were trained with. Of UniMed-CLIP
            and its kind the BERT's config.json and vocab.txt may lie beside the file;
            `ARCH/random`: random weights from a fixed seed, for benchmarks;
            `hf-hub:OWNER/REPO`: a model on the Hugging Face hub, of open_clip or, as a CLIPModel or a
            SiglipModel, of transformers;
            `local-dir:FOLDER`: a folder with the files of such a repository. A folder that holds the
            config.json of its Hugging Face text tower needs no hub;
            `NAME@SIZE`: one of these for images of another size, as "clip@448", where the image tower is a
            vision transformer: its positions are resized, bicubic. The clip's `repr` says so.
        device: "auto" (CUDA, else MPS, else CPU) or a torch device.
        precision: "fp32", "bf16" or "fp16".

    Raises:
        ValueError: an unknown name, tag, device or precision, or weights that do not fit.
        FileNotFoundError: a local folder that lacks a file; the message names it.
        ConnectionError: no network and no local copy; the message says what to do.

    Example:
        >>> import medvlp
        >>> clip = medvlp.load_clip("tiny", device="cpu")
        >>> clip
        Clip('tiny': images of 64 pixels, texts of up to 77 tokens, embed_dim 128, ... frozen weights, ...)
    """
    check_kinds(load_clip, locals())
    check_choice("precision", precision, PRECISIONS)
    where = find_device(device)
    name, at, size = re.fullmatch("(.*?)(?:(@)([0-9]+))?", name, re.DOTALL).groups("")
    name = PROFILES.get(name, name)
    model, tokenizer, model_cfg = load_source(name)
    name += at + size
    if at:
        model_cfg |= _resize_images(name, model, int(size))
    return Clip(name, model, tokenizer, model_cfg, precision).to(where)


def image_transformer(model: nn.Module) -> nn.Module | None:
    """The image tower where it is a vision transformer, of open_clip or timm; None where it is not."""
    tower = getattr(model.visual, "trunk", model.visual)
    return tower if isinstance(tower, VisionTransformer | TimmVisionTransformer | Eva) else None


def _resize_images(name: str, model: nn.Module, size: int) -> dict[str, int]:
    """Let the image tower read images of `size` pixels: {"trained_size": size before}, {} if it is the same.

    Raises:
        ValueError: a tower whose positions cannot be resized, or a size that it cannot cut into squares.
    """
    visual, tower = model.visual, image_transformer(model)
    if tower is None:
        raise ValueError(
            f"clip {brief(name)}: only the positions of a vision transformer can be resized, and its image "
            f"tower is {type(getattr(visual, 'trunk', visual)).__name__}; leave out @{size}."
        )
    native, before = tower is visual, visual.image_size[0]
    side = visual.patch_size[0] if native else tower.patch_embed.feat_ratio()
    if not size or size % side:
        raise ValueError(f"clip {brief(name)}: its images must be a multiple of {side} pixels, not {size}.")
    if size == before:
        return {}
    if native:
        visual.image_size, visual.grid_size = (size, size), (size // side, size // side)
        old = visual.positional_embedding.detach()[None]  # (1, 1 + squares, width)
        visual.positional_embedding = nn.Parameter(resample_abs_pos_embed(old, [*visual.grid_size])[0])
    else:
        visual.set_input_size(size)
    set_model_preprocess_cfg(model, visual.preprocess_cfg | {"size": size})
    return {"trained_size": before}


def find_device(device: str | torch.device, mps: bool = True) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU, else MPS (unless `mps` is False), else the CPU."""
    if device == "auto":
        best = "mps" if mps and torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else best)
    try:
        where = torch.device(device)
    except RuntimeError:
        raise ValueError(unknown_name("device", device, ["auto", "cpu", "cuda", "mps"])) from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: torch sees no CUDA GPU; use 'auto' or 'cpu'.")
    return where


def _without_paths(cfg: dict) -> dict:
    """The model configuration without names of places, so that a moved folder keeps its fingerprint."""
    text_cfg = {key: value for key, value in cfg["text_cfg"].items() if not key.startswith("hf_model_")}
    text_cfg.pop("hf_tokenizer_name", None)
    return cfg | {"text_cfg": text_cfg}


def _cut_mask(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Pre-hook of open_clip's text transformer: cut the causal mask to the tokens that are there.

    open_clip builds the mask for `context_length` tokens and cuts positions, not the mask.
    """
    x, mask = args[0], kwargs.get("attn_mask")  # x (N, L, w), mask (context_length, context_length)
    if mask is None or mask.shape[-1] <= x.shape[1]:
        return args, kwargs
    return args, kwargs | {"attn_mask": mask[..., : x.shape[1], : x.shape[1]]}
