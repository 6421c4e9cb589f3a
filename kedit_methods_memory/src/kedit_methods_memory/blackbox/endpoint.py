"""A model behind an OpenAI-compatible endpoint: texts in, texts out. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from attrs import field, frozen, validators

from kedit_core.errors import InputError, KeditError
from kedit_core.evaluation import StopRule
from kedit_core.extras import needed

Api: TypeAlias = Literal["chat", "completions"]
APIS: tuple[Api, ...] = get_args(Api)

_INSTALL = "kedit-methods-memory[endpoint]"
_KEY, _URL = "OPENAI_API_KEY", "OPENAI_BASE_URL"
_NO_KEY = "none"  # what servers that ask for no key are sent
_SHOWN = 300  # characters of what a server says


class EndpointError(KeditError):
    """The endpoint gave no usable answer; what it said is in the message."""


@frozen(kw_only=True, slots=False)
class Endpoint:
    """How a model behind an endpoint is asked.

    Attributes:
        base_url: up to and with its version, ``http://127.0.0.1:8000/v1`` say; ``OPENAI_BASE_URL`` when not given.
        model: the name that the endpoint knows it by.
        api_key: ``OPENAI_API_KEY`` when not given; servers that ask for none need none. Never shown.
        api: ``completions`` continues a text; ``chat`` sends it as one message of the user.
        system: message of the system before it (``chat`` only).
        timeout: seconds that one try may take.
        retries: further tries after time-outs, lost connections, 408, 409, 429 and 5xx; a Retry-After of up to a minute
            is kept to, else waits double from half a second.
        concurrency: requests under way at once, at most.
        temperature: 0 for the likeliest text; None leaves it to the server.
        extra: further fields of the request's body.

    Raises InputError for a URL that is none, and for settings out of range; nothing is sent then.
    """

    model: str = field(validator=validators.min_len(1))
    base_url: str = field(factory=lambda: os.environ.get(_URL, ""), repr=False)
    api_key: str | None = field(factory=lambda: os.environ.get(_KEY) or None, repr=False)
    api: Api = "chat"
    system: str | None = None
    timeout: float = 60.0
    retries: int = 3
    concurrency: int = 8
    temperature: float | None = 0.0
    extra: Mapping[str, Any] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        if not self.base_url:
            raise InputError(f"no endpoint was named; give its base URL (--base-url URL), or set {_URL}")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise InputError(f"{self.address!r} is no URL of an endpoint; write for example http://127.0.0.1:8000/v1")
        if self.api_key and not all("!" <= character <= "~" for character in self.api_key):
            raise InputError(
                "the key holds characters that no key has (white space, or others than ASCII); copy it anew, into "
                f"{_KEY} or where it was given"
            )
        if self.api not in APIS:
            raise InputError(f"there is no API {self.api!r}; it is {' or '.join(APIS)}")
        if self.system is not None and self.api != "chat":
            raise InputError("a system message goes with the chat API; leave it out, or take api='chat'")
        if not self.timeout > 0 or self.retries < 0 or self.concurrency < 1:
            raise InputError(
                f"timeout {self.timeout}, retries {self.retries} and concurrency {self.concurrency} cannot be; give "
                "more than 0 seconds, 0 or more retries, and 1 or more requests at once"
            )

    def generate(self, texts: Sequence[str], max_tokens: int = 50, stop: Sequence[str] | None = None) -> list[str]:
        """What the model writes after each text, in order; equal texts are asked once.

        Args:
            max_tokens: length of an answer.
            stop: strings before which the server ends an answer.

        Raises:
            MissingExtraError: openai is not installed.
            EndpointError: a text got no answer after all tries; requests that have not begun are not sent then.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return []
        ask = self._asking(max_tokens, stop)
        with ThreadPoolExecutor(min(self.concurrency, len(distinct))) as pool:
            under_way = [pool.submit(ask, text) for text in distinct]
            try:
                found = {text: each.result() for text, each in zip(distinct, under_way, strict=True)}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [found[text] for text in texts]

    def cut(self, rule: StopRule, text: str) -> str:
        """The answer in what was written; a chat model's may begin with white space, which ends no answer."""
        return rule.cut(text.lstrip() if self.api == "chat" else text)

    @cached_property
    def _client(self) -> Any:
        library = needed("openai", "asking an endpoint", _INSTALL)
        return library.OpenAI(
            base_url=self.base_url, api_key=self.api_key or _NO_KEY, timeout=self.timeout, max_retries=self.retries
        )

    def _asking(self, max_tokens: int, stop: Sequence[str] | None) -> Callable[[str], str]:
        client = self._client
        settings: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens}
        if self.temperature is not None:
            settings["temperature"] = self.temperature
        if stop:
            settings["stop"] = list(stop)
        if self.extra:
            settings["extra_body"] = dict(self.extra)

        def ask(text: str) -> str:
            try:
                if self.api == "completions":
                    return _text_of(client.completions.create(prompt=text, **settings), "completions")
                messages = [{"role": "user", "content": text}]
                if self.system is not None:
                    messages.insert(0, {"role": "system", "content": self.system})
                return _text_of(client.chat.completions.create(messages=messages, **settings), "chat")
            except KeditError as error:
                raise EndpointError(f"{self._named} answered, but {error}") from error
            except Exception as error:  # the client's errors, and those of what it stands on
                raise EndpointError(self._told(error)) from error

        return ask

    @property
    def _named(self) -> str:
        return f"the endpoint {self.address} (model {self.model})"

    @property
    def address(self) -> str:
        """The base URL without a user's name and password."""
        url = urlsplit(self.base_url)
        return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()

    def _told(self, error: Exception) -> str:
        """A sentence about an error of the client."""
        library = needed("openai", "asking an endpoint", _INSTALL)
        tries = "1 try" if self.retries == 0 else f"{self.retries + 1} tries"
        if isinstance(error, library.APITimeoutError):
            return (
                f"{self._named} gave no answer within {self.timeout:g} s in {tries}; raise the timeout, or look there"
            )
        if isinstance(error, library.APIConnectionError):
            cause = self._shown(str(error.__cause__ or error))
            return f"{self._named} cannot be reached ({cause}); check the URL, and whether the server runs"
        status = getattr(error, "status_code", None)
        said = self._shown(_said(error))
        if isinstance(error, library.APIResponseValidationError) or status is None:
            return (
                f"{self._named} sent something that is no answer ({type(error).__name__}: {said}); check that the URL "
                f"is that of an OpenAI-compatible API, and the API ({self.api})"
            )
        if status in (401, 403):
            return f"{self._named} refused the key ({status}: {said}); set {_KEY}, or give the right one"
        if status == 404:
            return f"{self._named} was not found there (404: {said}); check the model's name, the URL and the API"
        if status == 429 or status >= 500:
            return f"{self._named} failed {tries} ({status}: {said}); try later, or with less concurrency"
        return f"{self._named} refused the request ({status}: {said}); shorten the prompt, or change what is asked"

    def _shown(self, text: str) -> str:
        """What may be told of a text: cut only when the key is out, so that no part of it is left."""
        return _short(text.replace(self.api_key, "***") if self.api_key else text)


def _text_of(answer: Any, api: Api) -> str:
    """The text in a parsed answer; a server may send any JSON, so nothing about it is believed."""
    choices = getattr(answer, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    holder = getattr(first, "message", None) if api == "chat" else first
    text = getattr(holder, "content" if api == "chat" else "text", None)
    if not isinstance(text, str):
        raise InputError(
            f"there is no text in it (choices[0].{'message.content' if api == 'chat' else 'text'}); check that the URL "
            f"is that of an OpenAI-compatible API, and the API ({api})"
        )
    return text


def _said(error: Exception) -> str:
    """What a server says of a failure; the client's message leaves out bodies of a form that it does not know."""
    message = str(getattr(error, "message", None) or error or type(error).__name__)
    body = str(getattr(getattr(error, "response", None), "text", ""))
    return body if body and message == f"Error code: {getattr(error, 'status_code', None)}" else message


def _short(text: str) -> str:
    """One line of at most some characters."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
