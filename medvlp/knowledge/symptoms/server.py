"""One question to an OpenAI-compatible server: what it can do is learned, what goes wrong is said clearly.

The key sits in the caller's client. Whatever comes back from the server is searched for it before it is kept,
and errors are raised without the request that they belong to.
"""

import logging
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from medvlp.data.errors import brief
from medvlp.knowledge.symptoms.bounds import HIDDEN, PLAIN, ReplyBounds, ReplyEnded, address
from medvlp.knowledge.symptoms.questions import SCHEMA
from medvlp.knowledge.symptoms.sets import now

if TYPE_CHECKING:  # it takes a second to import
    from openai import OpenAI, OpenAIError

INSTALL = 'pip install "medvlp[llm]"'
REJECTED = (400, 422, 501)  # what servers answer to an option that they do not have
SHOWN = 500  # characters of a server's text that an error shows
SAYS_WHICH = "X-Medvlp-LLM"  # header of the client of a local_llm: the hash or hub name of its LLM
RESUME = "Finished classes are kept: the same call goes on at this one."
SECRET_NAME = re.compile(r"(?i)(key|token|secret|password|passwd|credentials?|authorization|cookie)$")
KEY_FORMS = re.compile(  # keys of the usual makes, whole or with stars in them, and what follows Bearer
    r"\b(?:sk|pk|rk|hf|gsk|xai|ghp|AIza)[-_][\w*.-]{8,}|(?<=Bearer )\S+|(?<=Basic )\S{8,}"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SURROGATES = re.compile("[\ud800-\udfff]")  # halves of a character, which no file can hold


class SymptomError(RuntimeError):
    """Symptoms could not be generated; classes finished before are in the store.

    Attributes:
        kind: "too few", "max_tokens", "timeout", "connection", "rate limit", "key refused", "no such model",
            "images refused" or "server".
        classname: the class that was being asked about.
    """

    def __init__(self, message: str, kind: str = "", classname: str | None = None) -> None:
        super().__init__(message)
        self.kind, self.classname = kind, classname


class Server:
    """An OpenAI-compatible server behind the caller's client, and the options that it takes.

    A question for JSON is sent with its schema (`response_format`). A server that rejects an option (400, 422
    or 501), or breaks over the schema (500), is asked without it from then on. Retries and timeouts are the
    client's.

    Args:
        client: an `openai.OpenAI`, with its own key, base_url, timeout and max_retries.
        model: the name that the server knows the model by.
        temperature: of sampling.
        max_tokens: the longest answer.

    Raises:
        ImportError: without the package openai.
        TypeError: a client of another kind.
        ValueError: a base_url with a password or key in it, which the HTTP library would log.
        SymptomError: a key or header that no request can hold, which it would log, too.
    """

    def __init__(self, client: "OpenAI", model: str, temperature: float, max_tokens: int) -> None:
        try:
            import openai
        except ImportError:
            raise ImportError(f"asking an LLM needs the package openai: {INSTALL}") from None
        if not isinstance(client, openai.OpenAI):
            raise TypeError(f"client must be an openai.OpenAI(...), not {type(client).__name__}.")
        if not isinstance(model, str) or not model.strip():
            raise TypeError("model must be the name of a model on the server, such as 'gpt-4o-mini'.")
        url = urlsplit(str(client.base_url))
        parameters = [*dict(parse_qsl(url.query)), *client.default_query]
        if url.password or any(SECRET_NAME.search(name) for name in parameters):
            raise ValueError(
                "the client's URL holds a password or key, and URLs are logged: give it as api_key, from the "
                "environment, or in default_headers."
            )
        self.client, self.model = client, model
        self._bounds = ReplyBounds(client)
        self._check_headers()
        self._options: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "symptoms", "schema": SCHEMA, "strict": True},
            },
            "seed": None,  # set for each question
        }

    @property
    def address(self) -> str:
        """The base URL as it may be shown: what could be a key in its path is hidden."""
        return address(self.client.base_url)

    @property
    def place(self) -> str:
        """What tells servers apart, to be hashed: the LLM of a `local_llm`, on any port, else the address."""
        which = self.client.default_headers.get(SAYS_WHICH)
        return f"local_llm {which}" if isinstance(which, str) else address(self.client.base_url, whole=True)

    def clean(self, text: str) -> str:
        """The text with every secret at hand replaced by ***, and without half characters."""
        text = SURROGATES.sub("\ufffd", text)
        whole, shown = (
            urlsplit(one).path for one in (address(self.client.base_url, whole=True), self.address)
        )
        text = text.replace(whole, shown) if whole != shown else text
        for secret in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return KEY_FORMS.sub(HIDDEN, text)

    def ask(
        self, messages: list[dict], seed: int, classname: str, sheet: bool = False, structured: bool = True
    ) -> dict[str, Any]:
        """One answer without secrets, and what it cost: fields of a `Call`.

        Raises a SymptomError that names the class, the server and what is wrong.

        Args:
            messages: the question.
            seed: of sampling.
            classname: whom it is about.
            sheet: it comes with an image.
            structured: it asks for JSON, so that its schema goes with it.
        """
        import openai

        started = time.perf_counter()
        while True:
            options = {**self._options, **({"seed": seed} if "seed" in self._options else {})}
            if not structured:
                options.pop("response_format", None)
            try:
                ask = self.client.chat.completions.create
                with self._guarded():
                    completion = ask(model=self.model, messages=messages, **options)
                break
            except (openai.OpenAIError, ValueError, RecursionError, ReplyEnded) as error:
                if self._bounds.why is None and self._learn(error, options):
                    continue
                kind, problem = self._bounds.why or self._problem(error, sheet)
                problem = self.clean(problem)
            # outside of the except block: the error above holds the request, and so the key
            raise self._error(kind, problem, classname)
        answer = _parts(completion)
        if answer is None:
            shown = self._shown(str(completion))
            problem = f"answered with no chat completion: {shown}. Is its base_url right? Most end in /v1."
            raise self._error("server", problem, classname)
        content, refusal, finish_reason, usage = answer
        refused = (refusal and not content) or finish_reason == "content_filter"
        return {
            "reply": self.clean(content or refusal),
            "problem": "refusal" if refused else None,
            "finish_reason": finish_reason,
            "prompt_tokens": _count(usage, "prompt_tokens"),
            "completion_tokens": _count(usage, "completion_tokens"),
            "seconds": round(time.perf_counter() - started, 3),
            "time": now(),
            "options": options,
        }

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Bounds for a reply, and no secret in what the HTTP library logs."""
        loggers = [logging.getLogger(name) for name in ("httpx", "httpx2")]
        for logger in loggers:
            logger.addFilter(self._clean_log)
        try:
            with self._bounds:
                yield
        finally:
            for logger in loggers:
                logger.removeFilter(self._clean_log)

    def _clean_log(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.clean(record.getMessage()), ()
        return True

    def _check_headers(self) -> None:
        """SymptomError for a value that the HTTP library would refuse, and show in its log."""
        headers = {**self.client.default_headers, **self.client.auth_headers}
        named = {f"the header {brief(name)}": value for name, value in headers.items()}
        for what, value in {"the key": self.client.api_key, **named}.items():
            if isinstance(value, str) and (CONTROL.search(value) or value != value.strip()):
                raise SymptomError(
                    f"{self._at()} was not asked: {what} has a line break, another control character, or a "
                    "space at an end, as when it is read from a file. Take it away: key.strip().",
                    "key refused",
                )

    def _error(self, kind: str, problem: str, classname: str) -> SymptomError:
        return SymptomError(f"class {brief(classname)}: {self._at()} {problem} {RESUME}", kind, classname)

    def _at(self) -> str:
        return f"the server {self.address} (model {brief(self.clean(self.model))})"

    def _shown(self, text: str) -> str:
        """A server's text for an error: clean, short, on one line."""
        return brief(self.clean(text), SHOWN)

    def _learn(self, error: Exception, options: dict[str, Any]) -> bool:
        """Do without an option that the server rejects; False where there is nothing left to do without."""
        code = getattr(error, "status_code", None)
        if code == 500:  # some servers break over a schema
            return "response_format" in options and bool(self._options.pop("response_format"))
        if code not in REJECTED:
            return False
        said = f"{error.param or ''} {_said(error)}"
        named = [name for name in options if re.search(rf"\b{name}\b", said)]
        if "max_tokens" in named and "max_completion_tokens" in said:  # what newer models call it
            self._options["max_completion_tokens"] = self._options.pop("max_tokens")
            return True
        named = [name for name in named if name in ("temperature", "seed", "response_format")]
        if "response_format" in options and ("json_schema" in said or not named):
            named.append("response_format")
        for name in set(named):
            del self._options[name]
        lost = [name for name in named if name != "response_format"]
        if lost:
            said = f"{self._at()} does not take {' and '.join(lost)}: asked without."
            warnings.warn(said, RuntimeWarning, stacklevel=2)
        return bool(named)

    def _problem(self, error: Exception, sheet: bool) -> tuple[str, str]:
        """The kind of an error, and what is wrong and what to do in words."""
        import openai

        if isinstance(error, UnicodeEncodeError):
            return "key refused", "was not asked: the key or a header has letters beyond ASCII."
        if not isinstance(error, openai.OpenAIError):
            return "server", f"sent JSON that cannot be read ({type(error).__name__})."
        said = self._shown(_said(error))
        tries = f"after {self.client.max_retries + 1} tries"
        code = getattr(error, "status_code", None)
        if isinstance(error, openai.APITimeoutError):
            return "timeout", (
                f"did not answer in time, {tries}. Give the client a longer timeout: OpenAI(timeout=...)."
            )
        if isinstance(error, openai.APIConnectionError):
            return "connection", f"cannot be reached, {tries}. Is it running, and is its base_url right?"
        if code == 429:
            return "rate limit", (
                f"refuses more for now (429), {tries}: {said}. Wait, or let the client try longer: "
                "OpenAI(max_retries=...)."
            )
        if code in (401, 403):
            return "key refused", (
                f"refused the key ({code}): {said}. The client reads it from the environment, OPENAI_API_KEY."
            )
        models = self._models() if code in (400, 404, 422) else []
        if code == 404 or (models and self.model not in models):  # some servers say 400
            listed = self._shown(", ".join(map(self.clean, models))) if models else "it does not say which"
            return "no such model", (
                f"does not know that model, or not that address ({code}): {said}. Models it has: {listed}."
            )
        if sheet and code in (*REJECTED, 413, 415):
            return "images refused", (
                f"refused the question with an image ({code}): {said}. Does the model read images? If not, "
                "leave images and send_images out."
            )
        return "server", f"answered with an error ({code}), {said}." if code else f"cannot be asked: {said}."

    def _models(self) -> list[str]:
        """The models that the server says it has, as far as it does."""
        import openai

        try:
            with self._guarded():
                return sorted(str(model.id) for model in self.client.models.list())
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, ReplyEnded):
            return []
        finally:
            self._bounds.why = None  # this was not what was asked

    def _secrets(self) -> set[str]:
        """Every secret that the client or the environment holds, in the forms that it could come back in."""
        headers = [*self.client.default_headers.items(), *self.client.auth_headers.items()]
        long = [(name, value) for name, value in os.environ.items() if len(value) > 11]
        secrets = [str(value) for name, value in [*headers, *long] if SECRET_NAME.search(name)]
        secrets.append(self.client.api_key or "")
        secrets += [part for value in secrets for part in value.split()]  # "Bearer" and the key apart
        for part in urlsplit(str(self.client.base_url)).path.split("/"):
            if not part.isalpha() and not PLAIN.fullmatch(part):  # one word may stand in a phrase, too
                secrets += [part, unquote(part)]
        return {value for value in secrets if _is_secret(value)}


def _parts(completion: Any) -> tuple[str, str, str | None, Any] | None:
    """Content, refusal, finish_reason and usage; None for anything that is no chat completion."""
    choices = getattr(completion, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    content, refusal = getattr(message, "content", None), getattr(message, "refusal", None)
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):  # thoughts, too
        texts = [part.get("text") for part in content if part.get("type") in ("text", "output_text")]
        content = "".join(text for text in texts if isinstance(text, str))
    if message is None or not isinstance(content, str | None):
        return None
    reason = getattr(choices[0], "finish_reason", None)
    refusal = refusal if isinstance(refusal, str) else ""
    return content or "", refusal, reason if isinstance(reason, str) else None, completion.usage


def _said(error: "OpenAIError") -> str:
    """What the server said, also where it does not say it in OpenAI's form."""
    body = getattr(error, "body", None)
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return body["message"]
    response = getattr(error, "response", None)
    return response.text if response is not None and response.text else str(error)


def _count(usage: Any, name: str) -> int | None:
    number = getattr(usage, name, None)
    return number if isinstance(number, int) else None


def _is_secret(value: str) -> bool:
    """Whether a value is worth hiding: stand-ins such as "none" and "EMPTY" are ordinary words."""
    return len(value) >= 8 or (len(value) >= 4 and not value.isalpha())
