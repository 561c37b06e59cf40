"""What a CLIP needs from the Hugging Face hub, and what to say when it cannot be had."""

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
CONFIG = ("open_clip_config.json",)
TOWER_CONFIG = ("config.json",)
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def check_at_hand(name: str, repo: str, files: Sequence[str], timeout: float = 5.0) -> None:
    """Return if one of `files` of `repo` is in the local cache or the hub answers.

    Args:
        name: the clip that was asked for, for the message.
        repo: a hub repository, or a local folder (always at hand).
        files: names of which one is enough.
        timeout: seconds that the hub has to answer in.

    Raises:
        ConnectionError: neither; it says what was wanted and the ways on.
    """
    if Path(repo).is_dir():
        return
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str) for file in files):
        return
    if not huggingface_hub.constants.HF_HUB_OFFLINE and _answers(huggingface_hub.constants.ENDPOINT, timeout):
        return
    raise ConnectionError(f"clip {name!r} needs {' or '.join(files)} of {repo!r}. {ways_on(repo)}")


def ways_on(repo: str) -> str:
    """Say where a copy of `repo` was looked for and how to go on without a network."""
    return (
        "The Hugging Face hub cannot be reached, or gave no such file, and there is no copy in its cache "
        f"({huggingface_hub.constants.HF_HUB_CACHE}). "
        "Ways on: load_clip('tiny') comes with the package; or, where there is a network, run "
        f"`hf download {repo} --local-dir FOLDER`, copy FOLDER here and use load_clip('local-dir:FOLDER')."
    )


def _answers(address: str, timeout: float) -> bool:
    """Whether `address` answers at all; an error page or an unknown certificate is an answer."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except OSError:
        return False


def has_local_tower(folder: Path) -> bool:
    """Whether a `local-dir:` folder holds its Hugging Face text tower's own `config.json`."""
    return os.path.isfile(folder / TOWER_CONFIG[0])
