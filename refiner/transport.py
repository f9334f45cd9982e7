"""One bounded HTTP POST: of time, of bytes, to one host, and given up within a moment when the user cancels.

The request runs in a thread of its own, because a socket that waits cannot be asked to stop. The caller polls; when it
gives up, the sockets are shut, which ends the thread. Nothing that comes back or goes wrong here is put into words by
the server or by requests: their messages hold addresses, and some servers repeat the key.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import requests
from requests.adapters import HTTPAdapter

_POLL = 0.1  # seconds between two looks at the user's cancel
_CONNECT = 10.0  # seconds; a server that does not even accept in that time is down
_PIECE = 1 << 14

Check = Callable[[], None]  # raises when the user has cancelled


@dataclass(frozen=True)
class Reply:
    """status, headers in lower case, and the body where the status is 200."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """No reply, in words that are safe to show. again: whether another attempt may do better."""

    def __init__(self, message: str, again: bool = False):
        super().__init__(message)
        self.again = again


class _Session(requests.Session):
    def __init__(self):
        super().__init__()
        self.trust_env = False  # no proxies, no netrc, no certificates from the environment

    def get_redirect_target(self, resp):
        """None: a redirect is an answer like any other. With allow_redirects=False alone, requests still reads the
        whole body of one, however long, to prepare the next request."""


class _Adapter(HTTPAdapter):
    """Keeps the connections that it makes, so that they can be cut off."""

    def __init__(self):
        super().__init__()
        self.connections = []

    def get_connection_with_tls_context(self, *args, **kwargs):
        pool = super().get_connection_with_tls_context(*args, **kwargs)
        make = pool.ConnectionCls

        def make_and_keep(*positional, **named):
            self.connections.append(make(*positional, **named))
            return self.connections[-1]

        pool.ConnectionCls = make_and_keep
        return pool

    def cut(self) -> None:
        for connection in self.connections:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except (AttributeError, OSError):  # not connected yet, or closed already
                continue


class _Call(threading.Thread):
    def __init__(
        self, url: str, body: bytes, headers: Mapping[str, str], seconds: float, most: int, verify: bool | str
    ):
        super().__init__(name="foresight-refiner", daemon=True)
        self.request = {"url": url, "data": body, "headers": headers, "verify": verify}
        self.seconds, self.most = seconds, most
        self.given_up = threading.Event()
        self.adapter = _Adapter()
        self.reply: Reply | None = None
        self.error: TransportError | None = None

    def run(self) -> None:
        try:
            self.reply = self._post()
        except TransportError as error:
            self.error = error
        except requests.exceptions.SSLError:
            self.error = TransportError("the server's certificate is not trusted")
        except requests.exceptions.ConnectTimeout:
            self.error = TransportError("the server did not accept a connection in time", again=True)
        except requests.exceptions.Timeout:
            self.error = TransportError("the server did not answer in time", again=True)
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
            self.error = TransportError("the connection to the server failed", again=True)
        except Exception as error:  # whatever else a hostile answer breaks; the message could hold the key
            self.error = TransportError(f"the request failed ({type(error).__name__})")

    def _post(self) -> Reply:
        with _Session() as session:
            session.mount("http://", self.adapter)
            session.mount("https://", self.adapter)
            timeout = (min(_CONNECT, self.seconds), self.seconds)
            with session.post(**self.request, stream=True, timeout=timeout, allow_redirects=False) as response:
                headers = {name.lower(): value for name, value in response.headers.items()}
                if 300 <= response.status_code < 400:
                    raise TransportError("the server redirects, which is refused: correct the profile's base_url")
                if response.status_code != 200:
                    return Reply(response.status_code, headers, b"")  # the body of an error is never read
                if headers.get("content-encoding", "identity") != "identity":  # a small answer may unpack to a huge one
                    raise TransportError("the server sends a packed answer, though it was asked not to")
                return Reply(200, headers, self._read(response))

    def _read(self, response: requests.Response) -> bytes:
        body = bytearray()
        for piece in response.iter_content(_PIECE):
            body += piece
            if len(body) > self.most:
                raise TransportError(f"the answer is longer than {self.most} bytes")
            if self.given_up.is_set():
                break
        return bytes(body)

    def give_up(self) -> None:
        self.given_up.set()
        self.adapter.cut()


def post(
    url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, most: int, verify: bool | str = True,
    check: Check = lambda: None,
) -> Reply:  # fmt: skip
    """POSTs in at most `seconds`, reads at most `most` bytes, follows no redirect. check() is called all the while and
    ends it by raising. TransportError: no reply came."""
    call = _Call(url, body, {**headers, "Accept-Encoding": "identity"}, seconds, most, verify)
    until = time.monotonic() + seconds
    call.start()
    try:
        while call.is_alive():
            call.join(_POLL)
            check()
            if call.is_alive() and time.monotonic() >= until:
                raise TransportError("the server did not answer in time", again=True)
    finally:
        call.give_up()
    if call.error:
        raise call.error
    return call.reply


def pause(seconds: float, check: Check) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(_POLL, left))


def backoff(attempt: int, base: float = 0.5, most: float = 20.0) -> float:
    """Seconds before the next attempt: doubling, and half of it by chance, so that many clients do not come at once."""
    full = min(most, base * 2**attempt)
    return full * (0.5 + secrets.randbelow(1000) / 2000)
