"""How the HTTP API is spoken: requests, answers, failures, events.

Decides how a ``problem+json`` body becomes an error of :mod:`tidegate.errors` again and what a
missing answer means. It must not know any verb.
"""

from __future__ import annotations

import os
import ssl
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import httpx2

from tidegate.backoff import Backoff
from tidegate.errors import (
    ConflictError,
    ExitStatus,
    InvalidArgumentError,
    SecretError,
    TidegateError,
    UnreachableNodeError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_URL: Final = "http://127.0.0.1:8470"
API_LEVEL: Final = 1
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 60.0
#: How often a request with a key is sent again, after pauses that double.
REPEATS_MAX: Final = 5
REPEATS: Final = Backoff(0.1, 3.2)
VERB_TIMEOUT_S: Final = 3600.0
"""A node answers a verb when it is done, and bounds every wait itself."""
EVENTS_SILENCE_S: Final = 30.0
"""How long a stream of events may be silent; a node says every two seconds that it is there."""

type Json = dict[str, Any]


def token_of(reference: str) -> str:
    """The token a reference names: ``env:NAME``, ``file:/path`` (its first line), or the token.

    Raises:
        SecretError: the variable is unset or the file cannot be read.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        found = os.environ.get(name)
        if found is None:
            raise SecretError(
                f"the environment variable {name} with the token is not set",
                next_step=f"export {name}, or name another place with --token",
            )
        return found
    if kind == "file":
        try:
            lines = Path(name).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise SecretError(
                f"the token file {name} cannot be read: {error.strerror}",
                next_step="check the path and who may read it, or give --token env:NAME",
            ) from None
        tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not tokens:
            raise SecretError(
                f"the token file {name} holds no token", next_step="write one token a line"
            )
        return tokens[0]
    return reference


def error_of(problem: Mapping[str, Any], status: int) -> TidegateError:
    """The error a ``problem+json`` body describes, in its own class where that is known here."""
    code = str(problem.get("code", ""))
    found = next((c for c in _tree(TidegateError) if c.code == code), None)
    message = str(problem.get("detail") or problem.get("title") or f"HTTP status {status}")
    details = problem.get("details")
    error = (found or TidegateError)(message, next_step=str(problem.get("next_step", "")))
    error.details = dict(details) if isinstance(details, dict) else {}
    if found is None:
        # The node knows an error that this program does not; its meaning travels along.
        vars(error).update(
            code=code or TidegateError.code,
            exit_status=ExitStatus(problem.get("exit_status", ExitStatus.ERROR)),
            http_status=status,
            retryable=bool(problem.get("retryable")),
            outcome_unknown=bool(problem.get("outcome_unknown")),
        )
    return error


def _tree(root: type[TidegateError]) -> Iterator[type[TidegateError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def trusting(ca_file: str) -> ssl.SSLContext:
    """A context that trusts the authorities in a file, and no others.

    Raises:
        InvalidArgumentError: the file cannot be read, or holds no certificate.
    """
    try:
        return ssl.create_default_context(cafile=Path(ca_file).expanduser())
    except OSError as error:  # ssl.SSLError is one
        raise InvalidArgumentError(
            f"the certificates to trust cannot be read from {ca_file}: {error.strerror or error}",
            next_step="name a PEM file with TIDEGATE_CA_FILE, or with `tidegate config set`",
        ) from None


def path_of(*parts: str) -> str:
    """The path of a resource; each part is quoted."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


class Transport:
    """The connection to one node, safe for several threads; close it, or use a ``with`` block."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        verify: bool | str | ssl.SSLContext = True,
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: of the node.
            token: the token, or a reference to it: ``env:NAME``, ``file:/path``.
            verify: of TLS: a file of certificates to trust, False to trust any, or a context.
        """
        headers = {"Tidegate-Api-Level": str(API_LEVEL)}
        if token:
            headers["Authorization"] = f"Bearer {token_of(token)}"
        self.url = url.rstrip("/")
        timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        if isinstance(verify, str):
            verify = trusting(verify)
        elif verify is True and self.url.startswith("http://"):
            # Reading the system's authorities takes longer than a request, and nothing needs them
            # here. This context trusts nobody.
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            self._http = httpx2.Client(
                base_url=self.url, headers=headers, timeout=timeout, verify=verify, trust_env=False
            )
        except (httpx2.InvalidURL, UnicodeError, ValueError) as error:
            raise InvalidArgumentError(
                f"{url!r} is not the URL of a node: {error}",
                next_step="write it as http://HOST:PORT",
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        version: int | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        once: bool = False,
    ) -> Json:
        """One request; its answer as JSON.

        Args:
            method: of HTTP.
            path: with the leading ``/v1``.
            body: sent as JSON.
            query: parameters; those that are None or False are left out.
            version: of the workflow the caller saw; another one is refused (``If-Match``).
            timeout_s: how long the answer may take.
            once: send a key with it, by which a node does it once however often it is sent, and
                send it again when the connection breaks before the answer.

        Raises:
            UnreachableNodeError: there was no answer.
            TidegateError: the node's refusal, in its own class.
        """
        headers = {} if version is None else {"If-Match": f'"{version}"'}
        if once:
            headers["Idempotency-Key"] = str(uuid.uuid4())
        deadline = time.monotonic() + timeout_s
        for attempt in range(REPEATS_MAX + 1):
            left = max(deadline - time.monotonic(), CONNECT_TIMEOUT_S)
            try:
                response = self._http.request(
                    method,
                    path,
                    json=body,
                    params=_query(query),
                    headers=headers,
                    timeout=httpx2.Timeout(left, connect=CONNECT_TIMEOUT_S),
                )
                return self._answer(response)
            except httpx2.HTTPError as error:
                lost = isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError)
                if not (once and lost) or isinstance(error, httpx2.ConnectError):
                    raise self._unreachable(error) from None
                failure: TidegateError = self._unreachable(error)
            except ConflictError as error:
                if not error.details.get("in_progress"):
                    raise
                failure = error
            if time.monotonic() >= deadline:
                break
            time.sleep(REPEATS.pause_s(attempt + 1))
        raise failure

    def _answer(self, response: httpx2.Response) -> Json:
        try:
            found = response.json() if response.content else {}
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UnreachableNodeError(
                f"what answers at {self.url} is not a Tidegate node",
                next_step="check --url, TIDEGATE_URL or `tidegate config show --origin`",
            )
        if response.is_success:
            return found
        raise error_of(found, response.status_code)

    def _unreachable(self, error: Exception) -> UnreachableNodeError:
        if isinstance(error, httpx2.TimeoutException) and not isinstance(
            error, httpx2.ConnectTimeout
        ):
            return UnreachableNodeError(
                f"the node at {self.url} did not answer in time; what it was asked may go on",
                next_step="look at the state before repeating: tidegate workflow list",
            )
        if "certificate verify failed" in str(error).casefold():
            return UnreachableNodeError(
                f"the certificate of the node at {self.url} is not trusted: {error}",
                next_step="name the file of its authority: TIDEGATE_CA_FILE, or"
                " `tidegate config set NAME --ca-file FILE`",
            )
        return UnreachableNodeError(
            f"no node answers at {self.url}: {error}",
            next_step="start one with `tidegate serve`, or name another with --url or TIDEGATE_URL",
        )

    @contextmanager
    def pieces(self, path: str) -> Iterator[Iterator[bytes]]:
        """The answer as bytes, piece by piece, until the block is left.

        Raises:
            UnreachableNodeError: there was no answer, or it ended early.
            TidegateError: the node's refusal, in its own class.
        """
        timeout = httpx2.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        try:
            with self._http.stream("GET", path, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    self._answer(response)
                yield response.iter_bytes()
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None

    @contextmanager
    def events(self, path: str, last_event_id: str = "") -> Iterator[Iterator[tuple[str, Json]]]:
        """Server-sent events of a watched path: (id, data), until the block is left.

        Raises:
            UnreachableNodeError: there was no answer, or the stream broke or fell silent.
            TidegateError: the node's refusal, in its own class.
        """
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        timeout = httpx2.Timeout(EVENTS_SILENCE_S, connect=CONNECT_TIMEOUT_S)
        try:
            with self._http.sse(
                path, params={"watch": "true"}, headers=headers, timeout=timeout
            ) as source:
                if not source.response.is_success:
                    source.response.read()
                    self._answer(source.response)
                yield ((event.id, event.json()) for event in source if event.data)  # type: ignore[misc]
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from None


def _query(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: "true" if value is True else value
        for key, value in (given or {}).items()
        if value is not None and value is not False
    }


class Noun:
    """A group of verbs."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._call = transport.call
