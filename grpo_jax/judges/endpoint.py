"""A judge behind an OpenAI-compatible endpoint: many answers at once, with time limits, retries and a cache on disk.

What goes wrong with one answer leaves that answer without a verdict. What would go wrong with all of them (a wrong key,
an address that knows no such model, or too many answers in a row without a verdict) ends the run with a sentence.
"""

import asyncio
import json
import logging
import re
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlsplit

import httpx2

from grpo_jax.devices.folders import cache_folder
from grpo_jax.judges.replies import Replies
from grpo_jax.judges.verdicts import messages, verdicts
from grpo_jax.ranges import WHOLE, check_range
from grpo_jax.redaction import redact, revealed
from grpo_jax.rewards.event_loop import gathered, wait_for
from grpo_jax.rewards.failures import UnusableError
from grpo_jax.rewards.rubrics import Judge, Sheet

LARGEST_REPLY = 4_000_000  # bytes
LONGEST_WAIT = 60.0  # seconds that a server may ask to wait with Retry-After
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # status codes after which the same request may succeed
FIRST = 8  # answers without a verdict that end the run if there was none before: something is wrong for all
LONGEST_SAID = 200  # characters of what a server says of an error
REFUSED = {
    401: "Check judge.key, which names the environment variable with the key.",
    403: "Check what the key in judge.key is allowed to do.",
    404: "Check judge.url, which ends before /chat/completions, and judge.model.",
    405: "Check judge.url, which ends before /chat/completions.",
}


class _NoReplyError(Exception):
    """One answer stays without a verdict. `again` is whether another attempt may help, after so many seconds."""

    def __init__(self, reason: str, again: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again, self.wait = again, wait


def endpoint(
    url: str,  # of the server, up to and without /chat/completions, such as https://api.openai.com/v1
    model: str,  # as the server calls it
    key: str | None = None,  # env:NAME, the environment variable that has the key; null sends none
    at_once: int = 64,  # requests
    seconds: float = 60.0,  # for a reply, after which the attempt counts as failed
    attempts: int = 4,  # for each answer
    wait: float = 0.5,  # seconds before the second attempt, twice as many before each further one
    failures: int = 100,  # answers in a row without a verdict, with which the run ends
    cache: str | None = "auto",  # folder of replies; auto: verdicts in the cache folder; null keeps none
    options: dict[str, Any] | None = None,  # of the request, such as {max_tokens: 500}; null: {temperature: 0}
) -> Judge:
    """A model on a server. One request asks all criteria about one answer."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
        raise ValueError(
            "judge.url must begin with http:// or https:// and a host, and a port is at most 65535; got"
            f" {_shown(url)!r}."
        )
    if parts.username is not None or parts.query:
        raise ValueError(f"judge.url holds no key or user; write {_shown(url)!r}, and name the key in judge.key.")
    for name, number in {"at_once": at_once, "attempts": attempts, "failures": failures}.items():
        check_range(f"judge.{name}", number, least=1, most=WHOLE)
    check_range("judge.seconds", seconds, above=0, most=WHOLE)
    check_range("judge.wait", wait, least=0, most=LONGEST_WAIT)
    folder = cache_folder() / "verdicts" if cache == "auto" else None if cache is None else Path(cache).expanduser()
    sent = {"temperature": 0} if options is None else options
    secret = None if key is None else str(revealed("key", key))
    limits = _Limits(at_once, seconds, attempts, wait, failures)
    return Endpoint(url.rstrip("/"), model, limits, sent, Replies(folder), secret)


@dataclass(frozen=True)
class _Limits:
    """How much is asked at once, how long, and how often."""

    at_once: int
    seconds: float
    attempts: int
    wait: float
    failures: int


@dataclass
class _Count:
    """What happened so far: answers without a verdict, and the last reason; those in a row, in the order of asking."""

    failed: int = 0
    reason: str = ""
    asked: int = 0
    settled: int = 0  # how many are settled with all that were asked before
    in_a_row: int = 0  # without a verdict, the last of these
    given: bool = False  # whether there was any verdict
    early: dict[int, bool | None] = field(default_factory=dict)  # settled before others that were asked earlier

    def settle(self, number: int, given: bool | None) -> None:
        """Notes whether there is a verdict on an answer; None if nobody waited for it.

        Answers count in the order in which they were asked, as a failure may be quicker than a verdict.
        """
        self.given |= bool(given)
        self.early[number] = given
        while self.settled in self.early:
            given = self.early.pop(self.settled)
            self.in_a_row = self.in_a_row if given is None else 0 if given else self.in_a_row + 1
            self.settled += 1


@dataclass
class _Session:
    """What the requests of one event loop share, and how many answers are being judged there now."""

    client: httpx2.AsyncClient
    free: asyncio.Semaphore
    now: int = 0
    asked: int = 0  # since none was being judged
    failed: int = 0  # of these
    ended: str | None = None  # why none of these is asked any more


@dataclass(frozen=True, eq=False)
class Endpoint:
    """Asks a server about each answer; see `endpoint`. All requests are made in the event loop of the process."""

    url: str
    model: str
    limits: _Limits
    options: dict[str, Any]
    replies: Replies
    key: str | None = field(default=None, repr=False)
    count: _Count = field(default_factory=_Count, init=False, repr=False)
    sessions: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Session] = field(
        default_factory=weakref.WeakKeyDictionary, init=False, repr=False
    )

    def check(self, sheet: Sheet) -> None:
        """Nothing is known of what a server can be asked until it is asked."""

    def judge(self, sheets: Sequence[Sheet]) -> list[list[float | None]]:
        """The value of each criterion of each answer; None where the server gave no verdict."""
        return wait_for(gathered(map(self.verdict, sheets)))

    async def verdict(self, sheet: Sheet) -> list[float | None]:
        """The value of each criterion of one answer, from the disk or from the server; None where there is none."""
        body = {**self.options, "model": self.model, "messages": messages(sheet)}
        kept = self.replies.read(self.url, body)
        if kept is not None:
            return verdicts(kept, sheet.criteria)
        session = self._session()
        session.now, session.asked = session.now + 1, session.asked + 1
        try:
            async with session.free:
                if session.ended is not None:
                    raise UnusableError(session.ended)
                return await self._ask(session, body, sheet)
        except UnusableError as error:
            session.ended = str(error)
            raise
        finally:
            session.now -= 1
            if session.now == 0:
                self._close(session)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a judge behind an endpoint stays in its process, as it holds a key: leave out workers")

    def _session(self) -> _Session:
        """The session of the running event loop. It lasts as long as the loop, so that connections are kept."""
        loop, most = asyncio.get_running_loop(), self.limits.at_once
        if loop not in self.sessions:
            headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
            pool = httpx2.Limits(max_connections=most, max_keepalive_connections=most)
            client = httpx2.AsyncClient(headers=headers, timeout=self.limits.seconds, limits=pool)
            self.sessions[loop] = _Session(client, asyncio.Semaphore(most))
        return self.sessions[loop]

    def _close(self, session: _Session) -> None:
        """Says how many answers have no verdict, once none is being judged."""
        if session.failed:
            said = "the judge at %s gave no verdict on %d of %d answers; the last reason: %s"
            shown, reason = _shown(self.url), self.count.reason
            logging.getLogger("grpo_jax").warning(said, shown, session.failed, session.asked, reason)
        session.asked, session.failed, session.ended = 0, 0, None

    async def _ask(self, session: _Session, body: dict[str, Any], sheet: Sheet) -> list[float | None]:
        """The verdicts of the server on one answer."""
        number, given = self.count.asked, None
        self.count.asked += 1
        try:
            reply = await self._reply(session.client, body)
            found = verdicts(reply, sheet.criteria)
            given = any_of(found)
            if None in found:
                self._failed(session, f"it has no verdict in the form that was asked for: {reply[:80]!r}")
            else:
                self.replies.write(self.url, body, redact(reply))
        except _NoReplyError as error:
            found, given = [None] * len(sheet.criteria), False
            self._failed(session, str(error))
        finally:
            self.count.settle(number, given)
        self._check_failures()
        return found

    async def _reply(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> str:
        """What the model says, after as many attempts as are allowed."""
        for attempt in range(self.limits.attempts):
            try:
                async with asyncio.timeout(self.limits.seconds):
                    return await self._attempt(client, body)
            except TimeoutError:
                failure = _NoReplyError(f"no reply within {self.limits.seconds:g} s", again=True)
            except httpx2.HTTPError as error:
                failure = _NoReplyError(f"{type(error).__name__}: {error}".rstrip(": "), again=True)
            except _NoReplyError as error:
                failure = error
            wait = self.limits.wait * 2**attempt if failure.wait is None else failure.wait
            if not failure.again or attempt + 1 == self.limits.attempts or wait > LONGEST_WAIT:
                raise failure
            await asyncio.sleep(wait)
        raise AssertionError("there is at least one attempt")

    async def _attempt(self, client: httpx2.AsyncClient, body: dict[str, Any]) -> str:
        sent, headers = json.dumps(body), {"Content-Type": "application/json"}  # half of a pair of UTF-16 is escaped
        async with client.stream("POST", f"{self.url}/chat/completions", content=sent, headers=headers) as response:
            if response.status_code in REFUSED or response.is_redirect:
                raise UnusableError(
                    f"The judge at {_shown(self.url)} answers with status {response.status_code} for model"
                    f" {self.model}. {REFUSED.get(response.status_code, REFUSED[404])}"
                )
            if not response.is_success:
                again = response.status_code in AGAIN
                wait = _wait(response.headers.get("retry-after")) if again else None
                told = _error(await _received(response))
                raise _NoReplyError(f"status {response.status_code}{told}", again, wait)
            return _content(await _received(response))

    def _failed(self, session: _Session, reason: str) -> None:
        """Counts an answer without a verdict, or with a part of them."""
        session.failed += 1
        self.count.failed, self.count.reason = self.count.failed + 1, redact(reason)

    def _check_failures(self) -> None:
        """Ends the run if too many answers in a row have no verdict, or the first ones."""
        count, limit, shown = self.count, self.limits.failures, _shown(self.url)
        if not count.given and count.in_a_row >= min(FIRST, limit):
            raise UnusableError(
                f"The judge at {shown} gave no verdict on the first {count.in_a_row} answers; the last reason:"
                f" {count.reason}. Check judge.url, judge.model and judge.options, and whether the server is up."
            )
        if count.in_a_row >= limit:
            raise UnusableError(
                f"The judge at {shown} gave no verdict on {count.in_a_row} answers in a row, and judge.failures is"
                f" {limit}; the last reason: {count.reason}. Look whether the server is up and what it replies, and go"
                " on with --resume; verdicts that it gave are kept."
            )


def any_of(values: Sequence[float | None]) -> bool:
    """Whether there is any verdict."""
    return any(value is not None for value in values)


async def _received(response: httpx2.Response) -> bytes:
    """What a server sends."""
    received = bytearray()
    async for piece in response.aiter_bytes():
        received += piece
        if len(received) > LARGEST_REPLY:
            raise _NoReplyError(f"a reply of more than {LARGEST_REPLY:,} bytes")
    return bytes(received)


def _error(received: bytes) -> str:
    """What a server says of an error, as a part of a sentence; nothing if it says nothing."""
    text = received.decode("utf-8", "replace")
    try:
        text = str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    text = " ".join(text.split())
    return f": {text[:LONGEST_SAID]}" if text else ""


def _has_port(parts: SplitResult) -> bool:
    """Whether an address has a port that there can be, or none."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def _content(received: bytes) -> str:
    """The text of the model in a server's reply."""
    try:
        content = json.loads(received)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise _NoReplyError(f"a reply that is not that of a chat: {received[:80]!r}", again=True) from error
    if not isinstance(content, str):
        raise _NoReplyError("a reply without text")
    return content


def _wait(header: str | None) -> float | None:
    """The seconds that Retry-After asks for, as a number or as a date; None if it asks for nothing that can be read."""
    if header is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]*)?", header):
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time(), 0.0)


def _shown(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
