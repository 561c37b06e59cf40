"""generate_symptoms: visual symptoms for the classes of a card, asked of any OpenAI-compatible LLM.

As ViP describes it (arXiv 2409.00341), for each class:

    1  text      which visual features help to recognise it?
    2  images    optional: which features do 16 training images of it share?
    3  agree     with 2: the phrases of 1 that 2 bears out, by cosine in CLIP's text space or by the LLM

How ViP's authors intersect the two lists is not published; both ways here are our own. Every phrase is
checked (`medvlp.knowledge.symptoms.phrases`), what was rejected keeps its reason, and a class with too few is
asked again.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.data.cards import DataCard
from medvlp.data.datasets import ImageSet
from medvlp.data.errors import exact_kinds, listed
from medvlp.data.files import cache_folder, check_writable, sha256
from medvlp.knowledge.symptoms import questions
from medvlp.knowledge.symptoms.one_class import OneClass, Run
from medvlp.knowledge.symptoms.phrases import PhraseChecker
from medvlp.knowledge.symptoms.questions import ROWS, TILE, SymptomPrompts, check_shown, contact_sheet
from medvlp.knowledge.symptoms.server import Server, SymptomError
from medvlp.knowledge.symptoms.sets import ClassRecord, SymptomRecord, SymptomSet, now

__all__ = ["SymptomError", "generate_symptoms"]


@exact_kinds
def generate_symptoms(
    card: DataCard,
    client: Any,
    model: str,
    n: PositiveInt = 4,
    images: ImageSet | None = None,
    *,
    send_images: bool = False,
    agree: Literal["similarity", "llm"] = "similarity",
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.7,
    clip: Clip | None = None,
    prompts: SymptomPrompts | None = None,
    max_asks: PositiveInt = 3,
    on_too_few: Literal["raise", "skip"] = "raise",
    temperature: float = 0.0,
    seed: int = 1,
    max_tokens: PositiveInt = 400,
    max_words: PositiveInt = 12,
    store: str | Path | None = None,
    progress: bool = True,
) -> SymptomSet:
    """Ask an LLM for `n` visual symptoms of every class, check them, and keep the whole story.

    The set is stored after each class. The same inputs give it back without a call; a run that was stopped
    goes on at the first class that is not finished, from the replies that it had. To ask
    anew, change the seed or the store.

    Args:
        card: whose classes.
        client: `openai.OpenAI()`, with `base_url=` for any other server. Its key comes from the environment;
            it is never stored or shown. Its `timeout` and `max_retries` hold; a whole reply may take twice
            the timeout and 16 MB, and nothing is sent on to another server.
        model: the name that the server knows the model by.
        n: symptoms a class; ViP's lists have 4.
        images: training images (`data.train`) for stage 2. They leave this machine, so it takes send_images.
        send_images: agree that one JPEG sheet of up to 16 images a class goes to the server, without
            metadata. What is burnt into the pixels goes with them.
        agree: with images: "similarity" (needs `clip`) keeps phrases of stage 1 whose best cosine with a
            phrase of stage 2 reaches `threshold`; "llm" asks the model which ones agree.
        threshold: cosine of text features, -1 to 1, after the mean of known visual terms is taken away:
            without that, unrelated phrases have cosines near 1 in many CLIPs. In the embedded CLIP 0.7 keeps
            9 of 20 paraphrases and takes one in thirty pairs of unrelated phrases for agreeing. What suits
            another CLIP is unknown; `candidates()` shows the cosines.
        clip: adds the checks that need a CLIP, and compares phrases.
        prompts: the questions; `print(prompts)` shows them. None: `questions.DEFAULT`.
        max_asks: how often a class is asked at most, the first time included; where that was not enough, the
            same call made once more asks as often again.
        on_too_few: after that, "raise" an error, or "skip" it and take what passed, at least one phrase. A
            class without any is an error once all others were asked.
        temperature: of sampling; 0 is greedy.
        seed: of sampling (sent to the server, plus one for each further question) and of the images shown.
        max_tokens: the longest answer.
        max_words: the longest phrase.
        store: folder of stored sets; default: symptoms in MEDVLP_CACHE or ~/.cache/medvlp. A set is found
            again by its inputs, the model's name and the server's address with its port. The client of a
            `local_llm` is known by its LLM's hash instead (a hub LLM by name), as its port changes.
        progress: show a bar with calls, tokens and seconds.

    Raises:
        SymptomError: too few phrases passed, or the server failed; the message shows what came back.
        ValueError: a setting of another type or out of range, settings that do not go together, or a damaged
            file in the store.
        OSError: a store that cannot be written; nothing was asked.
        ImportError: without the package openai.

    Example:
        A client that answers from a list stands for a server here:

        >>> import json, tempfile
        >>> import httpx, medvlp, openai
        >>> lists = [["a blue veil", "a ragged border"], ["one even brown", "a round shape"]]
        >>> def answer(request):
        ...     message = {"role": "assistant", "content": json.dumps({"symptoms": lists.pop(0)})}
        ...     return httpx.Response(200, json={"choices": [{"message": message}]})
        >>> http = httpx.Client(transport=httpx.MockTransport(answer))
        >>> client = openai.OpenAI(api_key="none", base_url="http://127.0.0.1/v1", http_client=http)
        >>> card = medvlp.load_card("phantom-derm")
        >>> with tempfile.TemporaryDirectory() as store:
        ...     symptoms = medvlp.generate_symptoms(card, client, "some-model", n=2, store=store)
        >>> symptoms["nevus"]
        ['one even brown', 'a round shape']
    """
    _check_images(card, images, send_images, agree, clip)
    server = Server(client, model, temperature, max_tokens)
    checker = PhraseChecker(card, clip, max_words=max_words)
    prompts = prompts or questions.DEFAULT
    settings = {
        "n": n,
        "agree": agree if images is not None else None,
        "threshold": threshold if images is not None and agree == "similarity" else None,
        "images": images.fingerprint if images is not None else None,
        "clip": clip.name if clip is not None else None,
        "clip_fingerprint": clip.fingerprint if clip is not None else None,
        "temperature": temperature,
        "seed": seed,
        "max_tokens": max_tokens,
        "max_words": max_words,
    }
    record = SymptomRecord(
        card=card.name,
        card_hash=card.hash,
        model=server.clean(model),
        server=server.address,
        prompts=prompts.facts,
        settings=settings,
        checks=checker.facts,
        created=now(),
        classes={name: ClassRecord() for name in card.classnames},
    )
    inputs = record.model_dump(mode="json", include={"card_hash", "model", "prompts", "settings", "checks"})
    key = sha256(json.dumps({**inputs, "server": server.place, "version": record.version}, sort_keys=True))
    # these two say when to stop asking, not what was asked: a class that is done stays done
    record.settings |= {"max_asks": max_asks, "on_too_few": on_too_few, "inputs": key}
    folder = Path(store) if store is not None else cache_folder() / "symptoms"
    path = folder.expanduser() / f"{card.name}-{key[:16]}.json"
    if os.path.exists(path):
        stored = _stored(path, key, card)
        if all(_is_done(entry, record) for entry in stored.classes.values()):
            return SymptomSet(stored, new_calls=0)
        record.created, record.classes, record.changed = stored.created, stored.classes, stored.changed
    check_writable(path.parent, "nothing was asked: the store")

    pending = [name for name, entry in record.classes.items() if not _is_done(entry, record)]
    if images is not None:
        tqdm.write(
            f"Leaving this machine for {server.address}: one JPEG sheet ({ROWS * TILE} x {ROWS * TILE}, no "
            f"metadata) of up to {ROWS * ROWS} training images for each of {listed(pending)}."
        )
    with tqdm(
        total=len(record.classes),
        initial=len(record.classes) - len(pending),
        desc="symptoms",
        unit="class",
        delay=2,
        disable=not progress,
    ) as bar:
        run = Run(card, record, server, checker, prompts, clip, path, bar)
        without: list[SymptomError] = []  # of classes without any phrase: they stop no other
        for name in pending:
            sheet = contact_sheet(images, name, seed) if images is not None else None
            one = OneClass(run, name, sheet, record.classes[name])
            try:
                record.classes[name] = one.generate()
            except BaseException as error:  # KeyboardInterrupt, too: replies are paid for
                if one.calls:
                    record.classes[name] = one.so_far()
                if on_too_few == "raise" or getattr(error, "kind", None) != "too few":
                    raise
                without.append(error)
            finally:
                SymptomSet(record).save(path)
            bar.update()
    if without:
        first, *more = without
        also = f"\n  No phrase passed for {listed(e.classname for e in more)} either." if more else ""
        raise SymptomError(f"{first}{also}", first.kind, first.classname)
    return SymptomSet(record, new_calls=len(run.calls))


def _check_images(
    card: DataCard, images: ImageSet | None, send_images: bool, agree: str, clip: Clip | None
) -> None:
    """ValueError unless the images may leave this machine, are the card's training images and usable."""
    if send_images and images is None:
        raise ValueError("send_images=True needs images: pass the training images, images=data.train.")
    if images is None:
        return
    if not send_images:
        raise ValueError(
            "images would leave this machine for the server: pass send_images=True if they may, or leave "
            "images out."
        )
    images.check(card, f"card {card.name!r}")
    check_shown(images, card.classnames)
    if agree == "similarity" and clip is None:
        raise ValueError("agree='similarity' compares phrases with a CLIP: pass clip=, or agree='llm'.")


def _stored(path: Path, key: str, card: DataCard) -> SymptomRecord:
    """The record of a stored set, whose inputs must be these."""
    stored = SymptomSet.load(path).record
    if stored.settings.get("inputs") != key or list(stored.classes) != card.classnames:
        raise ValueError(f"{path} holds symptoms of other inputs; delete it and generate them again.")
    return stored


def _is_done(entry: ClassRecord, record: SymptomRecord) -> bool:
    """Whether a class need not be asked about, or not again."""
    if not entry.finished or len(entry.phrases) >= record.settings["n"]:
        return entry.finished
    asks = max((call.attempt for call in entry.calls), default=0)
    return record.settings["on_too_few"] == "skip" and asks >= record.settings["max_asks"]
