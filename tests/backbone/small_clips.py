"""Small CLIPs with random weights, written as folders for `local-dir:`.

Each function writes one kind into `folder` and returns the name for `load_clip`.
"""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.coca_model import CoCa
from safetensors.torch import save_file
from timm.models import register_model
from timm.models.eva import Eva, _create_eva
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertTokenizerFast, MT5Config, PreTrainedTokenizerFast

GOLDEN = Path(__file__).parents[1] / "golden" / "vip_csc0.npz"
FAMILY = Path(__file__).parents[1] / "golden" / "family"
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]
VISION = {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 2, "layers": 3}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "-", "a", "an", "of", "the", "with"]
WORDS += ["image", "dermoscopy", "lesion", "dark", "round", "irregular", "border", "pneumonia", "opacity"]
WORDS += ["lung", "clear", "pleural", "effusion", *LETTERS, *[f"##{letter}" for letter in LETTERS]]


def write_clip(
    folder: Path, model_cfg: dict, seed: int = 0, preprocess: dict | None = None, weights: dict | None = None
) -> str:
    """Write configuration and weights (random from `seed` unless given)."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": MEAN, "std": STD} | (preprocess or {})}
    (folder / "open_clip_config.json").write_text(json.dumps(cfg))
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            build = CoCa if "multimodal_cfg" in model_cfg else open_clip.CustomTextCLIP
            weights = build(**{k: v for k, v in model_cfg.items() if k != "custom_text"}).state_dict()
    save_file(
        {key: value.contiguous() for key, value in weights.items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def open_clip_kind(folder: Path, seed: int = 0) -> str:
    """GELU, embed_dim 40 unlike the text width 48."""
    return write_clip(folder, {"embed_dim": 40, "vision_cfg": VISION, "text_cfg": TEXT}, seed)


def openai_kind(folder: Path, seed: int = 0) -> str:
    """QuickGELU."""
    cfg = {"embed_dim": 40, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    return write_clip(folder, cfg, seed)


def siglip_kind(folder: Path) -> str:
    """A text tower without causal mask that reads its last position: padding matters."""
    text = TEXT | {"no_causal_mask": True, "pool_type": "last", "context_length": 32}
    return write_clip(folder, {"embed_dim": 40, "vision_cfg": VISION, "text_cfg": text})


def eos_kind(folder: Path) -> str:
    """Causal, read out at the end-of-text token by its id."""
    text = TEXT | {"pool_type": "eos", "eos_id": 49407}
    return write_clip(folder, {"embed_dim": 40, "vision_cfg": VISION, "text_cfg": text})


def coca_kind(folder: Path) -> str:
    """CoCa: a class token after the last text token, at a position of its own."""
    text = TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True}
    vision = VISION | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
    decoder = {"context_length": 76, "vocab_size": 49408, "width": 40, "heads": 2, "layers": 1}
    return write_clip(
        folder, {"embed_dim": 40, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder}
    )


def write_bert(folder: Path) -> None:
    """The configuration and the tokenizer of a BERT."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    bert = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **bert).save_pretrained(folder)


def biomedclip_kind(folder: Path, pooler: str = "cls_last_hidden_state_pooler") -> str:
    """A Hugging Face BERT text tower and a timm image tower, tokenizer and tower config in the folder."""
    write_bert(folder)
    text = {
        "hf_model_name": str(folder),
        "hf_model_pretrained": False,
        "hf_tokenizer_name": "some/bert",
        "hf_proj_type": "mlp",
        "hf_pooler_type": pooler,
        "context_length": 40,
    }
    vision = {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    }
    cfg = {"embed_dim": 40, "vision_cfg": vision, "text_cfg": text}
    name = write_clip(folder, cfg, preprocess={"interpolation": "bilinear", "resize_mode": "squash"})
    moved = cfg | {
        "text_cfg": text | {"hf_model_name": "some/bert"}
    }  # another repository's name, as on the hub
    stored = json.loads((folder / "open_clip_config.json").read_text())
    (folder / "open_clip_config.json").write_text(json.dumps(stored | {"model_cfg": moved}))
    return name


def _small_eva(name: str, **own: object) -> None:
    def build(pretrained: bool = False, **given: object) -> Eva:
        size = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2}
        return _create_eva(name, pretrained, **size | {"ref_feat_shape": (4, 4)} | own | given)

    build.__name__ = name
    register_model(build)


_small_eva("test_eva01")
_small_eva("test_eva02", use_rot_pos_emb=True, qkv_fused=False, swiglu_mlp=True)
PE = {"attn_type": "rope", "attn_pool_num_heads": 2, "use_pre_transformer_norm": True}
_small_eva("test_pe", use_rot_pos_emb=True, **PE)


def eva_kind(folder: Path, trunk: str = "test_eva02") -> str:
    """A tower of EVA's kind: EVA01 has positions, EVA02 and PE turn queries and keys by them, too."""
    pool = "map" if trunk == "test_pe" else "token"
    vision = {"timm_model_name": trunk, "image_size": 32, "timm_pool": pool, "timm_proj": None}
    return write_clip(folder, {"embed_dim": 40, "vision_cfg": vision, "text_cfg": TEXT})


def write_sentence_tokenizer(folder: Path, pad: str = "<pad>", start: str = "") -> int:
    """A tokenizer as T5's and SigLIP's: a word is one piece with the space before it, or falls into letters.

    There is no start of text unless given, and "X" is two pieces: the space and the letter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [f"\u2581{word}" for word in ["photo", "in", "and", *WORDS[8:26]]]
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *words, *letters, *filter(None, [start])]
    tokenizer = Tokenizer(models.Unigram([(p, -(len(p) ** 0.5)) for p in pieces], unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A </s>".strip(),
        special_tokens=[("</s>", 1), *([(start, len(pieces) - 1)] if start else [])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return len(pieces)


def sigmoid_kind(folder: Path) -> str:
    """Like open_clip's SigLIP: sentence pieces, no causal mask, padded with ends of text, a logit bias."""
    size = write_sentence_tokenizer(folder, pad="</s>")
    text = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "context_length": 32}
    text = TEXT | text | {"vocab_size": size, "hf_tokenizer_name": "some/siglip"}
    cfg = {"embed_dim": 40, "vision_cfg": VISION, "text_cfg": text, "init_logit_bias": -10}
    return write_clip(folder, cfg)


def t5_kind(folder: Path) -> str:
    """A Hugging Face mT5 text tower."""
    size = write_sentence_tokenizer(folder)
    t5 = {"d_model": 48, "d_kv": 24, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1, "d_ff": 96}
    MT5Config(vocab_size=size, **t5).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_tokenizer_name": "some/t5", "hf_model_pretrained": False}
    text |= {"hf_pooler_type": "mean_pooler", "context_length": 40}
    return write_clip(folder, {"embed_dim": 40, "vision_cfg": VISION, "text_cfg": text})


def golden_kind(folder: Path, file: Path = GOLDEN) -> str:
    """The CLIP that the golden numbers of ViP and CILMP were made on."""
    cfg = {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 3, "width": 64, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
    }
    return write_clip(folder, cfg, weights=_golden_weights(file))


def family_kind(folder: Path) -> str:
    """The CLIP that the golden numbers of all other methods were made on: two heads a tower."""
    cfg = {
        "embed_dim": 80,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 3, "width": 128, "head_width": 64},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
    }
    return write_clip(folder, cfg, weights=_golden_weights(FAMILY / "clip.npz"))


def family_bert_kind(folder: Path) -> str:
    """The CLIP with a BERT tower that BiomedCoOp's golden numbers were made on; its image tower is unused."""
    golden = np.load(FAMILY / "bert_text.npz")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text(str(golden["vocab"]))
    (folder / "config.json").write_text(str(golden["bert_config"]))
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    cfg = json.loads(str(golden["open_clip_config"]))["model_cfg"]
    cfg["text_cfg"] |= {"hf_model_name": str(folder), "hf_tokenizer_name": "some/bert"}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        weights = open_clip.CustomTextCLIP(**cfg).state_dict()
    weights |= {key: as_float32(golden[key]) for key in golden.files if key == "logit_scale"}
    text = [key for key in golden.files if key.startswith("text/")]
    weights |= {key.replace("/", "."): as_float32(golden[key]) for key in text}
    return write_clip(folder, cfg, weights=weights)


def as_float32(numbers: np.ndarray) -> torch.Tensor:
    """Numbers of a golden file as a tensor; what is kept in float16 was float32 that float16 holds."""
    return torch.from_numpy(numbers.astype(np.float32) if numbers.dtype == np.float16 else numbers.copy())


def _golden_weights(file: Path) -> dict[str, torch.Tensor]:
    """The CLIP's weights in a golden file; token embeddings that no text there uses are 0."""
    golden = np.load(file)
    named = {key.removeprefix("clip/"): as_float32(golden[key]) for key in golden.files if "clip/" in key}
    ids, rows = (named.pop(f"token_embedding.{part}") for part in ("ids", "rows"))
    tokens = torch.zeros(49408, rows.shape[1])
    tokens[ids.long()] = rows
    return named | {"token_embedding.weight": tokens}
