"""Chat completions of an OpenAI-compatible server: a question goes out, its answer comes back or it fails by name.

Knows URLs, statuses, JSON and waiting; never what is asked. `infer/endpoint/queue.py` sends many at once. The key is
read from an environment variable at every request: it stands in no object, no file, no log line and no error.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from infer.endpoint.completions import Completion, read_completion

PATH = "/chat/completions"
RETRIED = (408, 425, 429)  # and every 5xx: the next attempt may succeed
HOPELESS = (401, 402, 404, 405, 407)  # what is wrong is not this row: no other row would fare better
FIRST_WAIT_S, LONGEST_BACKOFF_S = 1.0, 30.0
BYTES_AT_ONCE, MOST_BYTES = 1 << 16, 1 << 26
SHOWN_OF_A_BODY = 300  # characters
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class RequestFailed(ValueError):
    """This one request has no answer: the server refused what it asks, or every attempt failed."""


class NoAnswer(RequestFailed):
    """Every attempt at this one request failed: it is too much for the server, or the server is gone."""


class EndpointRefused(ValueError):
    """No request would be answered now: a wrong key, URL or model, a spent quota, a server that is gone."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, whom, and how patiently.

    url: up to and with the version (https://api.openai.com/v1). key_variable: the name of the environment variable that
    holds the key; None for a server that wants none. timeout_s: for one attempt, from its start to its last byte.
    longest_wait_s: a server that asks to wait longer (Retry-After) is left alone.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout_s: float = 60.0
    attempts: int = 6
    longest_wait_s: float = 120.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/").removesuffix(PATH))
        _check_url(self.url)
        if not (math.isfinite(self.timeout_s) and self.timeout_s > 0 and self.attempts >= 1):
            raise ValueError(
                f"timeout_s is {self.timeout_s} and attempts is {self.attempts}, expected seconds above 0, and 1 or "
                "more attempts."
            )
        self.read_key()

    def read_key(self) -> str | None:
        """The key, as the environment holds it now. Refuses an absent one without repeating what was given."""
        if self.key_variable is None:
            return None
        # Someone who gives the key itself for its variable's name must not find it in a log.
        shown = self.key_variable if re.fullmatch(r"[A-Z][A-Z0-9_]{0,40}", self.key_variable) else "given (not shown)"
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ValueError(
                f"The environment variable {shown} is not set or empty, expected the endpoint's key in it. "
                "Run `export NAME=...` with the key first, and give NAME here."
            )
        if not key.isascii() or not key.isprintable():
            raise ValueError(
                f"The key in the environment variable {shown} holds a line break or a character no key has."
            )
        return key


class EndpointClient:
    """Asks one endpoint; any number of threads may share it, and all wait together when the server says so."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.stopping = threading.Event()  # set: nobody waits or tries again
        self._lock, self._random = threading.Lock(), random.Random()  # the program's own numbers stay as they are
        self._open_at = 0.0  # time.monotonic() before which the server wants no request
        self._opener = urllib.request.build_opener(_NoRedirects, *_proxies(endpoint.url))

    def complete(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Completion:
        """The server's answer to these messages ({"role": ..., "content": ...}).

        options go into the request as they are (temperature, max_tokens, logprobs, top_logprobs, ...); None leaves one
        out. Tried again, with growing waits: 408, 425, 429, 5xx, time-outs, broken connections, answers that are no
        whole JSON. Raises RequestFailed for this request, EndpointRefused where no other would fare better.
        """
        asked = {"model": self.endpoint.model, "messages": [dict(message) for message in messages], **options}
        body = json.dumps({name: value for name, value in asked.items() if value is not None}).encode()
        trouble = ""
        for attempt in range(1, self.endpoint.attempts + 1):
            self._wait_for_turn()
            wait_s: float | None = None
            try:
                status, headers, text = self._post(body)
                if status == 200:
                    return read_completion(text)
                self._refuse_the_hopeless(status, headers, text)
                trouble, wait_s = f"HTTP {status}: {_said(text)}", _retry_after_s(headers.get("retry-after"))
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, RequestFailed | EndpointRefused):
                    raise
                trouble = self._trouble(error)
            if attempt < self.endpoint.attempts:
                self._hold(attempt, wait_s)
        raise NoAnswer(f"{self.endpoint.url} gave no answer in {self.endpoint.attempts} attempts. Last: {trouble}")

    def _post(self, body: bytes) -> tuple[int, Mapping[str, str], str]:
        """(status, headers, body) of one attempt; the key is blotted out wherever the server repeats it."""
        deadline = time.monotonic() + self.endpoint.timeout_s
        key = self.endpoint.read_key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.endpoint.url + PATH, data=body, headers=headers, method="POST")
        try:
            response = self._opener.open(request, timeout=self.endpoint.timeout_s)
        except urllib.error.HTTPError as error:  # any status but 2xx; it is the response
            response = error
        with response:
            text = _read_until(response, deadline).decode("utf-8", "replace")
            status = 200 if 200 <= response.status < 300 else response.status
            told = {name.lower(): _without(key, value) for name, value in response.headers.items()}
            return status, told, _without(key, text)

    def _refuse_the_hopeless(self, status: int, headers: Mapping[str, str], text: str) -> None:
        if status in RETRIED or status >= 500:
            if "insufficient_quota" in text:  # OpenAI's 429 that no waiting mends
                raise EndpointRefused(f"{self.endpoint.url}: HTTP {status}: {_said(text)}. Top up, or ask another one.")
            return
        if 300 <= status < 400:
            place = headers.get("location", "another place").split("?")[0]
            raise EndpointRefused(f"{self.endpoint.url} has moved to {place} (HTTP {status}). Give that URL if right.")
        if status in HOPELESS:
            raise EndpointRefused(
                f"{self.endpoint.url} refuses (HTTP {status}): {_said(text)}. Check the URL (most end in /v1), "
                f"the model '{self.endpoint.model}' and the key."
            )
        raise RequestFailed(f"{self.endpoint.url} refuses this request (HTTP {status}): {_said(text)}")

    def _trouble(self, error: Exception) -> str:
        """What went wrong, for the last line of an error. Raises where another attempt would end the same."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise EndpointRefused(f"{self.endpoint.url} shows a certificate that is not trusted: {reason}") from None
        if isinstance(reason, TimeoutError):
            return f"no whole answer within {self.endpoint.timeout_s:g} s"
        by_name = isinstance(reason, OSError | http.client.HTTPException)
        return f"{type(reason).__name__}: {reason}" if by_name else str(reason)

    def _hold(self, attempt: int, wait_s: float | None) -> None:
        """Before the next attempt: as long as the server asks, and then no thread sends; else a random growing time."""
        if wait_s is None:
            longest = min(LONGEST_BACKOFF_S, FIRST_WAIT_S * 2 ** (attempt - 1))
            self._pause(self._random.uniform(longest / 2, longest))
            return
        if wait_s > self.endpoint.longest_wait_s:
            raise EndpointRefused(
                f"{self.endpoint.url} asks to wait {wait_s:.0f} s (Retry-After), longer than the "
                f"{self.endpoint.longest_wait_s:g} s allowed. Run the same command again later."
            )
        with self._lock:
            self._open_at = max(self._open_at, time.monotonic() + wait_s)

    def _wait_for_turn(self) -> None:
        while (left := self._open_at - time.monotonic()) > 0:
            self._pause(left)

    def _pause(self, seconds: float) -> None:
        if self.stopping.wait(seconds):
            raise RequestFailed("Stopped before it was answered.")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would go along to whatever host it names."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _proxies(url: str) -> list[urllib.request.BaseHandler]:
    """The environment's proxies, but none for a server on this machine."""
    return [urllib.request.ProxyHandler({})] if urlsplit(url).hostname in LOOPBACK else []


def _read_until(response: Any, deadline: float) -> bytes:
    """The body. A socket's own time-out starts anew at every byte; this one does not."""
    pieces: list[bytes] = []
    while piece := response.read1(BYTES_AT_ONCE):
        pieces.append(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(pieces) * BYTES_AT_ONCE > MOST_BYTES and sum(map(len, pieces)) > MOST_BYTES:
            raise ValueError(f"an answer of more than {MOST_BYTES >> 20} MiB")
    return b"".join(pieces)


def _without(key: str | None, text: str) -> str:
    return text if key is None else text.replace(key, "[key]")


def _said(text: str) -> str:
    """The server's own words from an error's body, on one short line."""
    try:
        content = json.loads(text)
        error = content.get("error", content) if isinstance(content, dict) else content
        text = str(error.get("message") or error.get("detail") or error) if isinstance(error, dict) else str(error)
    except (ValueError, RecursionError):
        pass
    line = " ".join(text.split()) or "(nothing said)"
    return line if len(line) <= SHOWN_OF_A_BODY else line[:SHOWN_OF_A_BODY] + "..."


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from now that a Retry-After header asks for (a number or a date); None where it says nothing."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _check_url(url: str) -> None:
    """Refuses what is no http URL, and a URL that carries a secret: it would stand in files and logs."""
    expected = "expected http:// or https://, a host and a path, such as http://localhost:8000/v1."
    if not re.match(r"https?://[^\s/]", url):
        raise ValueError(f"The endpoint's URL (not shown: it may be a key) begins with no http://host, {expected}")
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("The endpoint's URL (not shown) holds a user or a password. Put the key into a variable.")
    if any(re.search("key|token|secret|sig|pass", name, re.I) for name, _ in parse_qsl(parts.query, True)):
        raise ValueError("The endpoint's URL (not shown) holds a key behind its '?'. Put it into a variable.")
    if not parts.hostname or parts.query or parts.fragment or re.search(r"\s", url):
        raise ValueError(f"The endpoint's URL is {url!r}, {expected}")
    try:
        parts.port  # noqa: B018  # read to be checked
    except ValueError as error:
        raise ValueError(f"The endpoint's URL is {url!r}: {error}.") from error
