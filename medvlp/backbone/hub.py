"""What a model's folder or its repository on the Hugging Face hub holds, and whether it is at hand.

Python code that lies beside a model is never run, whatever the model's configuration asks for.
"""

import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from transformers.utils import cached_file

from medvlp.data.errors import brief

CONFIG, TOWER_CONFIG = ("open_clip_config.json",), ("config.json",)
NO_CODE = "Python code that comes with a model is never run here"


def first_file(place: str, files: Sequence[str], revision: str | None = None) -> str | None:
    """Where the first of these files is that a folder or a repository has."""
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    return next(filter(None, (cached_file(place, file, revision=revision, **quiet) for file in files)), None)


def check_at_hand(name: str, repo: str, files: Sequence[str], way_on: str, timeout: float = 5.0) -> None:
    """Return if one of `files` of `repo` is in the local cache or the hub answers.

    Args:
        name: the clip that was asked for, for the message.
        repo: a hub repository, or a local folder (always at hand).
        files: names of which one is enough.
        way_on: what to do without them, a sentence.
        timeout: seconds that the hub has to answer in.

    Raises:
        ValueError: `repo` can be neither.
        ConnectionError: neither; it says what was wanted, where a copy was looked for and the ways on.
    """
    if os.path.isdir(repo):  # which a name of any length may be asked
        return
    try:
        if any(isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str) for file in files):
            return
    except HFValidationError:
        raise ValueError(
            f"clip {brief(name)}: {brief(repo)} is no folder here, and no name of a repository on the hub."
        ) from None
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        answers: list[bool] = []  # from a thread: a timeout is for each byte, and a server may drip
        ask = Thread(
            target=lambda: answers.append(_answers(huggingface_hub.constants.ENDPOINT, timeout)), daemon=True
        )
        ask.start()
        ask.join(2 * timeout)
        if any(answers):
            return
    raise ConnectionError(
        f"clip {brief(name)} needs {' or '.join(files)} of {brief(repo)}. The Hugging Face hub cannot be "
        f"reached, and its cache ({huggingface_hub.constants.HF_HUB_CACHE}) holds no copy. {way_on} "
        "load_clip('tiny') comes with the package and needs no network."
    )


def take_along(repo: str) -> str:
    """What to do without a network: bring the repository as a folder."""
    return (
        f"Without a network: run `hf download {repo} --local-dir FOLDER` elsewhere, copy FOLDER here and use "
        "load_clip('local-dir:FOLDER')."
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
    except (OSError, HTTPException):
        return False


def refuse_code(who: str, place: str, revision: str | None = None) -> None:
    """Look whether the configurations of a model ask for code of its own.

    Whoever loads the model passes `trust_remote_code=False`, too: then transformers takes its own class where
    it has one, and refuses where it has none.

    Args:
        who: the model that was asked for, for the message.
        place: a folder, or a repository on the hub.
        revision: branch, tag or commit there.

    Raises:
        ValueError: one of them does, or is no JSON; the message names the file.
    """
    for file in (*CONFIG, *TOWER_CONFIG, "tokenizer_config.json"):
        path = first_file(place, [file], revision)
        if path is None:
            continue
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{who}: {path} is damaged ({error}).") from None
        # transformers ignores this word in files of its own: without code beside it, it was left over there
        trusts = any(_values(config, "trust_remote_code"))
        if trusts and (file in CONFIG or any(_values(config, "auto_map"))):
            raise ValueError(f"{who}: {path} asks for trust_remote_code. {NO_CODE}; take the entry away.")
        kernels = [*_values(config, "attn_implementation"), *_values(config, "_attn_implementation")]
        if any("/" in str(kernel) for kernel in kernels):
            raise ValueError(f"{who}: {path} asks for attn_implementation {kernels[0]!r}. {NO_CODE}.")


def why_not(error: Exception) -> str:
    """What transformers says of a model that it does not load, without its advice to run the model's code."""
    return f"it needs code of its own. {NO_CODE}." if "trust_remote_code" in str(error) else str(error)


def _values(config: Any, key: str) -> Iterator[Any]:
    """Every value that stands under `key`, however deep."""
    if isinstance(config, dict):
        yield from (value for name, value in config.items() if name == key)
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _values(part, key)
