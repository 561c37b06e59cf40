"""save, load and transfer: what a method has learned, as one safetensors file, and for other classes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medvlp import __version__
from medvlp.backbone.clip import Clip, load_clip
from medvlp.backbone.sources import PLACES
from medvlp.data.cards import DataCard, list_cards, load_card
from medvlp.data.errors import brief, check_kinds, listed, unknown_name
from medvlp.data.tensor_files import read_tensors, write_tensors
from medvlp.knowledge.representations import Representations
from medvlp.methods import METHODS
from medvlp.methods.base import Method, check_named_arguments, load_own_tensors, own_tensors

KIND = "medvlp method"
SAVED = "saved"


def save(method: Method, path: str | Path, history: pd.DataFrame | None = None) -> None:
    """Write what `method` has learned to one safetensors file, whole.

    The frozen CLIP is not in it, only its name and fingerprint; the card is, with its hash (not its prose).

    Args:
        method: A `Method`.
        path: The file; one that is there is replaced.
        history: What `fit` returned; the row of its best epoch and the number of epochs are noted.

    Raises:
        TypeError: a configuration that is not plain JSON, or a constructor that takes *args alone.

    Example:
        >>> import medvlp, pathlib, tempfile
        >>> vip = medvlp.ViP(medvlp.load_clip("tiny", device="cpu"), medvlp.load_card("phantom-derm"))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "vip.safetensors"
        >>> medvlp.save(vip, path)
        >>> path.stat().st_size < 2**20
        True
    """
    check_kinds(save, locals())
    check_named_arguments(type(method))
    clip, card, name = method.clip, method.card, type(method).__name__
    try:
        json.dumps(method.config)
    except TypeError as error:
        raise TypeError(f"the config of {name} is not plain JSON, so it cannot be saved: {error}.") from error
    facts = {
        "medvlp": __version__,
        "method": name,
        "config": method.config,
        "clip": {"name": clip.name, "precision": clip.precision, "fingerprint": clip.fingerprint},
        "card": _front_matter(card),
        "card_hash": card.hash,
        "history": None,
    }
    if history is not None:
        best = history[history["best"]] if "best" in history else history[:0]
        row = json.loads(best.to_json(orient="records", double_precision=15))  # as plain JSON
        facts["history"] = {"epochs": len(history), "best": row}
    write_tensors(path, own_tensors(method), KIND, facts)


def load(
    path: str | Path,
    clip: Clip | None = None,
    card: DataCard | str | None = None,
    method: type[Method] | None = None,
    device: str | torch.device = "auto",
    representations: Representations | None = None,
    trust_clip: bool = False,
) -> Method:
    """Build a saved method again, in evaluation mode: it gives the logits it gave.

    A file from somewhere else can name any folder or hub repository as its CLIP. By itself `load` opens only
    the CLIPs of the package and the models of open_clip's own list.

    Args:
        path: A file that `save` wrote.
        clip: The CLIP it was trained on. None: it is loaded by its name, to `device`.
        card: By default the card in the file, once the packaged card of that name, where there is one, has
            proved to be the same. A card of yours must be the same, too. "saved" takes the card in the file
            whatever became of the packaged one.
        method: The class, for a method of your own that medvlp does not know.
        device: Where to load the CLIP, if none is given.
        representations: Those that CILMP was trained with, unless they ship with the package.
        trust_clip: True opens the CLIP of the file's name where that is a folder ("local-dir:...") or a hub
            repository ("hf-hub:..."), too. Code that lies there is never run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, a file that names a folder or hub repository, another CLIP, a card or
            representations that have changed, an unknown method, tensors that do not fit; the message says
            which.

    Example:
        >>> import medvlp, pathlib, tempfile
        >>> vip = medvlp.ViP(medvlp.load_clip("tiny", device="cpu"), medvlp.load_card("phantom-derm"))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "vip.safetensors"
        >>> medvlp.save(vip, path)
        >>> again = medvlp.load(path, device="cpu")
        >>> type(again).__name__, bool((again.ctx == vip.ctx).all())
        ('ViP', True)
    """
    check_kinds(load, locals())
    tensors, facts = read_tensors(path, KIND, "a method saved by medvlp")
    if method is None and facts["method"] not in METHODS:
        known = unknown_name("method", facts["method"], METHODS, str(path))
        raise ValueError(f"{known} For a class of your own pass method=.")
    kind = method or METHODS[facts["method"]]
    if kind.__name__ != facts["method"]:
        raise ValueError(f"{path} holds {facts['method']}, not {kind.__name__}.")
    card = _card(path, facts, card)
    name = facts["clip"]["name"]
    if clip is None and (name.startswith(PLACES) or "=" in name) and not trust_clip:
        raise ValueError(
            f"{path} names the clip {brief(name)}, and a file may name any folder or repository. If you know "
            f"it, load with clip=load_clip({brief(name)}), or with trust_clip=True."
        )
    clip = _clip(path, facts["clip"], clip, device)
    config = facts["config"]
    if representations is not None:
        wanted, here = config.get("representations"), representations.fingerprint
        if wanted != here:
            theirs = f"representations {wanted[:12]}" if wanted else "no representations"
            raise ValueError(f"{path} was trained with {theirs}, those given are {here[:12]}.")
        config = config | {"representations": representations}
    try:
        built = kind(clip, card, **config)
    except TypeError as error:
        raise ValueError(f"{path} does not fit this version's {kind.__name__}: {error}.") from error
    load_own_tensors(built, tensors, str(path))
    return built.eval()


def _front_matter(card: DataCard) -> dict[str, Any]:
    return card.model_dump(mode="json", exclude={"prose", "path"}, exclude_defaults=True)


def _clip(path: str | Path, wanted: dict[str, str], clip: Clip | None, device: str | torch.device) -> Clip:
    """The CLIP given or loaded, if it is the one wanted."""
    here = load_clip(wanted["name"], device, wanted["precision"]) if clip is None else clip
    if here.fingerprint != wanted["fingerprint"]:
        theirs = f"clip {brief(wanted['name'])} in {wanted['precision']} ({wanted['fingerprint'][:12]})"
        ours = f"{brief(here.name)} in {here.precision} ({here.fingerprint[:12]})"
        what = f"the one given is {ours}" if clip is not None else f"what loads by that name is now {ours}"
        raise ValueError(f"{path} was trained on {theirs}; {what}: other weights, or other preprocessing.")
    return here


def _card(path: str | Path, facts: dict[str, Any], card: DataCard | str | None) -> DataCard:
    """The card in the file, or the same one as it is now."""
    if isinstance(card, str) and card != SAVED:
        raise ValueError(
            f"card must be a DataCard, {SAVED!r} or None, got {brief(card)}; load_card reads a card."
        )
    saved = DataCard.model_validate(facts["card"])
    if saved.hash != facts["card_hash"]:
        raise ValueError(f"the card in {path} is read differently by this version of medvlp; train anew.")
    if card == SAVED or (card is None and saved.name not in list_cards()):
        return saved  # asked for, or a card of the user's own, which only the file holds
    now = load_card(saved.name) if card is None else card
    if card is None and set(saved.classnames) < set(now.classnames):
        now = now.with_classes(saved.classnames)
    if now.hash != saved.hash:
        whose = "the packaged card" if card is None else "the card given"
        old, new = _front_matter(saved), _front_matter(now)
        fields = ", ".join(name for name in old | new if old.get(name) != new.get(name))
        raise ValueError(
            f"{path} was trained with card {saved.name!r}, but {whose} {now.name!r} differs in {fields}. "
            f"Train anew, or load with card={SAVED!r} to use the card as it was."
        )
    return now


def base_and_new(card: DataCard) -> tuple[DataCard, DataCard]:
    """The first half of a card's classes, one more where they are odd, and the others.

    So CoCoOp (Zhou et al., CVPR 2022, arXiv 2203.05557) divides them into base classes, to train on, and new
    ones. ValueError for a card with fewer than four classes, since a classifier needs two of each.
    """
    names = card.classnames
    if len(names) < 4:
        raise ValueError(f"card {card.name!r} has {len(names)} classes; base and new ones need two each.")
    half = math.ceil(len(names) / 2)
    return card.with_classes(names[:half]), card.with_classes(names[half:])


def transfer(method: Method, card: DataCard, changes: Mapping[str, Any] | None = None) -> Method:
    """The same method with the same learned tensors for the classes of another card.

    The method is built again from its configuration, so that its texts are those of the new classes, and gets
    copies of the learned tensors. That has a meaning where no tensor belongs to a class, as in CoOp with a
    shared context. Whether one does is found out by building the method for another number of classes. A card
    with the same classes in the same order, such as a shifted one, takes every tensor.

    Args:
        method: A `Method`; it stays as it is.
        card: The new classes.
        changes: Arguments of the method that are others for the new classes, such as its own `symptoms`, or
            `representations` that do not ship with the package.

    Returns:
        The method for `card`, in evaluation mode, on the same CLIP.

    Raises:
        TypeError: a constructor that takes *args alone.
        ValueError: a tensor that belongs to a class, which is named; the same classes in another order;
            what the method itself raises for the card, such as classes without symptoms.
    """
    kind, old, new = type(method), method.card.classnames, card.classnames
    check_named_arguments(kind)
    config = method.config | dict(changes or {})
    if old != new and sorted(old) == sorted(new):
        raise ValueError(
            f"card {card.name!r} has the classes of {kind.__name__} in another order, {new}; "
            f"use its order, {old}: card.with_classes(method.card.classnames)."
        )
    built = kind(method.clip, card, **config)
    if old != new:
        other = built if len(old) != len(new) else _for_all_classes(method, card, changes or {})
        ours, theirs = ({n: t.shape for n, t in own_tensors(m).items()} for m in (method, other))
        bound = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        if bound:
            raise ValueError(
                f"{kind.__name__} as configured has learned {listed(bound)} for its "
                f"{len(old)} classes, and that says nothing about others, such as {brief(new[0])}. Transfer "
                "needs a method whose learned tensors all classes share, such as CoOp with csc=False."
            )
    load_own_tensors(built, own_tensors(method), f"the {kind.__name__} given")
    return built.eval()


def _for_all_classes(method: Method, card: DataCard, changes: Mapping[str, Any]) -> Method:
    """The method untrained, for its own classes and those of the card: more than either has."""
    more = [info for info in card.classes if info.name not in method.card.classnames]
    both = method.card.model_copy(update={"classes": [*method.card.classes, *more]})
    config = dict(method.config)
    for key, value in changes.items():
        per_class = isinstance(config.get(key), Mapping) and isinstance(value, Mapping)
        config[key] = config[key] | dict(value) if per_class else value
    try:
        return type(method)(method.clip, both, **config)
    except ValueError as error:
        raise ValueError(
            f"whether the tensors of {type(method).__name__} belong to classes shows only when it is built "
            f"for the old and the new ones together, which fails: {error} Let the changes cover them all."
        ) from error
