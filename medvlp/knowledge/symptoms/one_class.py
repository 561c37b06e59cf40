"""One class's visual symptoms: asked for, checked, compared with what its images show, asked for again."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from medvlp.backbone.clip import Clip
from medvlp.data.card_parts import plain_name
from medvlp.data.cards import DataCard
from medvlp.data.errors import brief
from medvlp.data.html import data_uri
from medvlp.knowledge.symptoms.phrases import PhraseChecker, phrase_features, words_of
from medvlp.knowledge.symptoms.questions import JSON_KEY, ContactSheet, SymptomPrompts
from medvlp.knowledge.symptoms.replies import REPLY_KINDS, ReplyError, parse_reply
from medvlp.knowledge.symptoms.server import RESUME, SHOWN, Server, SymptomError
from medvlp.knowledge.symptoms.sets import Call, Candidate, ClassRecord, SymptomRecord

SURPLUS = 2  # phrases asked for, for each one wanted: the checks reject some
IMAGE_READ = 1.3  # an image costs tokens: a question that costs less than this, times its text, came without
MOST_REASONS = 20  # that an error shows of phrases that were rejected


def centred_cosines(clip: Clip, ours: list[str], theirs: list[str], centre: Tensor) -> Tensor:
    """Cosines (A, B) between two lists of phrases, of text features (D,) from which `centre` is taken away.

    Texts of a CLIP all lie close together: without it, unrelated phrases have cosines near 1, too.
    """
    ours_, theirs_ = (normalize(phrase_features(clip, texts) - centre, dim=-1) for texts in (ours, theirs))
    return ours_ @ theirs_.T


@dataclass
class Run:
    """What the classes of one run share, and the answers that it got."""

    card: DataCard
    record: SymptomRecord
    server: Server
    checker: PhraseChecker
    prompts: SymptomPrompts
    clip: Clip | None
    path: Path
    bar: tqdm
    calls: list[Call] = field(default_factory=list)

    @cached_property
    def centre(self) -> Tensor:
        """The mean text feature of the known visual terms, (D,)."""
        return phrase_features(self.clip, self.checker.terms["visual"]).mean(dim=0)

    def count(self, call: Call) -> None:
        """Note an answer and show what all have cost."""
        self.calls.append(call)
        tokens, seconds = sum(one.tokens for one in self.calls), sum(one.seconds for one in self.calls)
        self.bar.set_postfix(calls=len(self.calls), tokens=tokens, seconds=f"{seconds:.1f}")


class OneClass:
    """One class while it is being asked about.

    Args:
        run: what it shares with the other classes; `run.record.settings` says what is wanted.
        name: the class.
        sheet: images of it for stage 2, or None for the text question alone.
        before: what earlier runs were told about it and could not finish; asking goes on from there.
    """

    def __init__(self, run: Run, name: str, sheet: ContactSheet | None, before: ClassRecord) -> None:
        self.run, self.name, self.sheet, self.settings = run, name, sheet, run.record.settings
        if before.finished and sheet:  # its marks no longer tell what passed from what was not seen
            before = ClassRecord()
        self.candidates, self.calls = list(before.candidates), list(before.calls)
        self.passed: dict[str, list[str]] = {
            stage: [one.text for one in self.candidates if one.stage == stage and one.kept]
            for stage in (("text", "images") if sheet else ("text",))
        }
        self.unconfirmed: dict[str, str] = {}  # phrases of stage 1 that passed, and why they do not count

    def generate(self) -> ClassRecord:
        """Ask until there are n phrases; SymptomError where there are not.

        First asks what is missing of an earlier run's last question. Where that asked `max_asks` times in
        vain, this one may ask as often again.
        """
        n, most, phrases = self.settings["n"], self.settings["max_asks"], []
        keep = self.settings["on_too_few"] == "skip"
        begun = max((call.attempt for call in self.calls), default=0)
        for attempt in range(begun or 1, (most if begun < most else begun + most) + 1):
            again = [] if attempt == begun else list(self.passed)
            for stage in [s for s in self.passed if len(self.passed[s]) < n] or again:
                if self._call(stage, attempt) is None:
                    self._ask_stage(stage, attempt)
            phrases = self._agreed(attempt) if self.sheet else self.passed["text"]
            if len(phrases) >= n or (keep and phrases and attempt >= most):
                break
        if not phrases or (len(phrases) < n and not keep):
            raise SymptomError(self._too_few(phrases), "too few", self.name)
        phrases = phrases[:n]
        for one in self.candidates:
            if one.kept and (one.stage != "text" or one.text not in phrases):
                one.kept, one.reason = False, self._why_not(one)
        return ClassRecord(phrases=phrases, candidates=self.candidates, calls=self.calls, finished=True)

    def so_far(self) -> ClassRecord:
        """What was paid for and is not finished, to go on from."""
        phrases = [] if self.sheet else list(self.passed["text"])
        return ClassRecord(phrases=phrases, candidates=self.candidates, calls=self.calls)

    def _call(self, stage: str, attempt: int) -> Call | None:
        return next((call for call in self.calls if (call.stage, call.attempt) == (stage, attempt)), None)

    def _ask_stage(self, stage: str, attempt: int) -> None:
        """Ask once, and check what came back."""
        have = self.passed[stage]
        messages = self._messages(stage, attempt)
        answer = self._ask(stage, attempt, messages)
        if stage == "images":
            self._warn_if_unread()
        known = {name: entry.phrases for name, entry in self.run.record.classes.items()}
        question = f" {words_of(self._fill(stage))} "
        lines = {words_of(line) for line in _text(messages[-1]).splitlines()}
        for verdict in self.run.checker.check(self.name, answer, known | {self.name: list(have)}):
            phrase, reason = verdict.phrase, verdict.reason
            words = words_of(phrase)
            if reason is None and (words in lines or f" {words} " in question):
                reason = "copied from the question"
            facts = {"text": phrase, "stage": stage, "attempt": attempt, "reason": reason}
            self.candidates.append(Candidate(**facts, kept=reason is None))
            if reason is None:
                have.append(phrase)

    def _ask(self, stage: str, attempt: int, messages: list[dict]) -> list[str]:
        sheet = self.sheet if stage == "images" else None
        seed, structured = self.settings["seed"] + attempt - 1, JSON_KEY in _text(messages[-1])
        answer = self.run.server.ask(messages, seed, self.name, bool(sheet), structured)
        kept = [_without_image(message, sheet) for message in messages]
        call = Call(stage=stage, attempt=attempt, messages=kept, **answer)
        self.calls.append(call)
        self.run.count(call)
        phrases = self._read(call)
        if call.finish_reason == "length" and not call.reply.strip():
            raise SymptomError(
                f"class {brief(self.name)}: {self.run.record.model} at {self.run.record.server} spent all of "
                f"max_tokens={self.settings['max_tokens']} before its answer began, as LLMs do that think "
                f"first. Give it more: max_tokens=4000. {RESUME}",
                "max_tokens",
                self.name,
            )
        return phrases

    def _read(self, call: Call) -> list[str]:
        """The phrases of an answer; none where it cannot be used, which the call notes."""
        cut = call.finish_reason == "length"
        try:
            return [] if call.problem else parse_reply(call.reply, cut, self.run.checker.names)
        except ReplyError as error:
            call.problem = error.kind
            return []

    def _fill(self, question: str, **values: str | int) -> str:
        """A question about this class; `values` are what only this question may ask for."""
        card = self.run.card
        common = {
            "classname": plain_name(self.name),
            "modality": card.modality,
            "others": ", ".join(plain_name(name) for name in card.classnames if name != self.name),
            "count": SURPLUS * self.settings["n"],
            "shown": self.sheet.shown if self.sheet else 0,
        }
        return self.run.prompts.fill(question, **common | values)

    def _messages(self, stage: str, attempt: int) -> list[dict]:
        """The first question, or that one with the last reply and what is wrong with it."""
        question = self._fill(stage)
        asked = [call for call in self.calls if call.stage == stage]
        if not asked:
            return [self._user(stage, question)]
        last = asked[-1]
        rejected = [f"- {one.text} ({why})" for one, why in self._rejected() if one.stage == stage]
        if last.problem:
            rejected.append(f"(your last answer could not be used: {REPLY_KINDS[last.problem]})")
        again = self._fill(
            "again",
            kept=_bullets(p for p in self.passed[stage] if p not in self.unconfirmed) or "(none yet)",
            rejected="\n".join(rejected[-SURPLUS * self.settings["n"] :]) or "(none)",
        )
        if last.problem:  # nothing worth going on from, and some servers mind
            return [self._user(stage, f"{question}\n\n{again}")]
        return [
            self._user(stage, question),
            {"role": "assistant", "content": last.reply},
            {"role": "user", "content": again},
        ]

    def _rejected(self) -> list[tuple[Candidate, str]]:
        """Every candidate that does not count so far, and why."""
        reasons = [(one, one.reason or self.unconfirmed.get(one.text)) for one in self.candidates]
        return [(one, why) for one, why in reasons if why]

    def _user(self, stage: str, text: str) -> dict:
        if stage != "images":
            return {"role": "user", "content": text}
        image = {"type": "image_url", "image_url": {"url": data_uri("image/jpeg", self.sheet.jpeg)}}
        return {"role": "user", "content": [{"type": "text", "text": text}, image]}

    def _agreed(self, attempt: int) -> list[str]:
        """Stage 3: the phrases of stage 1 that stage 2 bears out, the surest first."""
        texts, seen = self.passed["text"], self.passed["images"]
        self.unconfirmed = {}
        if not texts or not seen:
            self.unconfirmed = dict.fromkeys(texts, "nothing came from the images to compare with")
            return []
        if self.settings["agree"] == "llm":
            return self._agreed_by_llm(attempt)
        cosines = centred_cosines(self.run.clip, texts, seen, self.run.centre)  # (A, B)
        best, nearest = cosines.max(dim=1)  # (A,)
        highest = {
            "text": dict(zip(texts, best.tolist(), strict=True)),
            "images": dict(zip(seen, cosines.amax(dim=0).tolist(), strict=True)),
        }
        for one in self.candidates:
            one.similarity = round(highest[one.stage][one.text], 4) if one.kept else None
        limit, by_phrase = self.settings["threshold"], highest["text"]
        for phrase, i in zip(texts, nearest.tolist(), strict=True):
            cosine = by_phrase[phrase]
            if cosine < limit:
                why = f"not seen in the images: nearest there is {brief(seen[i])}, {cosine:.2f} < {limit:.2f}"
                self.unconfirmed[phrase] = why
        agreed = [phrase for phrase in texts if phrase not in self.unconfirmed]
        return sorted(agreed, key=by_phrase.get, reverse=True)

    def _agreed_by_llm(self, attempt: int) -> list[str]:
        texts, seen = self.passed["text"], self.passed["images"]
        before = self._call("agree", attempt)
        if before:
            answer = self._read(before)
        else:
            lists = {"from_text": _bullets(texts), "from_images": _bullets(seen)}
            question = self._fill("agree", count=len(texts), **lists)
            answer = self._ask("agree", attempt, [{"role": "user", "content": question}])
        known = {words_of(phrase): phrase for phrase in texts}  # what is in neither list is none of them
        agreed = dict.fromkeys(known[words] for words in map(words_of, answer) if words in known)
        why = "not seen in the images, as the LLM compares the lists"
        self.unconfirmed = {phrase: why for phrase in texts if phrase not in agreed}
        return list(agreed)

    def _why_not(self, one: Candidate) -> str:
        if one.stage == "images":
            return "from the images: it serves to bear out the phrases of the text question"
        return self.unconfirmed.get(one.text) or f"not needed: {self.settings['n']} came before it"

    def _warn_if_unread(self) -> None:
        """A server of a model that reads no images may drop them without a word; tokens tell."""
        text = next((call for call in self.calls if call.stage == "text"), None)
        image = self.calls[-1]
        if text is None or not text.prompt_tokens or not image.prompt_tokens:
            return
        of_text = text.prompt_tokens * _letters(image.messages) / _letters(text.messages)
        if image.prompt_tokens < IMAGE_READ * of_text:
            warnings.warn(
                f"class {self.name!r}: the question with the image cost {image.prompt_tokens} tokens, hardly "
                "more than its text. The server may have dropped the image: does the model read images?",
                RuntimeWarning,
                stacklevel=2,
            )

    def _too_few(self, phrases: list[str]) -> str:
        asked = self.calls[-1].attempt
        times = "once" if asked == 1 else f"{asked} times"
        problems = [f"reply {i} ({c.stage}): {c.problem}" for i, c in enumerate(self.calls, 1) if c.problem]
        rejected = [f"{brief(one.text)} ({one.stage}): {why}" for one, why in self._rejected()]
        reasons = list(dict.fromkeys(rejected))
        more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
        skip = " or on_too_few='skip' to go on with what passed;" if phrases else ""
        first = (
            f"class {brief(self.name)}: {len(phrases)} of {self.settings['n']} symptoms passed, with "
            f"{self.run.record.model} at {self.run.record.server} asked {times}."
        )
        last = f"The last reply was: {brief(self.calls[-1].reply, SHOWN)}"
        advice = (
            f"Try another model, other prompts, more max_asks or a smaller n;{skip} what came back is kept "
            f"in {self.run.path}, and the same call goes on from it."
        )
        return "\n  ".join([first, *problems, *reasons[:MOST_REASONS], *more, last, advice])


def _without_image(message: dict, sheet: ContactSheet | None) -> dict:
    """A message as it is kept: hash and size in place of the image."""
    if sheet is None or isinstance(message["content"], str):
        return message
    text, image = message["content"]
    return {**message, "content": [text, {**image, "image_url": sheet.facts}]}


def _letters(messages: list[dict]) -> int:
    return sum(len(_text(message)) for message in messages)


def _text(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else content[0]["text"]


def _bullets(phrases: Iterable[str]) -> str:
    return "\n".join(f"- {phrase}" for phrase in phrases)
