"""A site's contact with the coordinator: kept over short faults, known to who asks, and never lost without a word.

Flower 1.41 takes a TLS handshake that ends early for a wrong certificate and gives up. Its main thread then ends, but
the SuperNode's process lives on behind the thread of its API, which still calls itself healthy: no restart, no alarm,
and a finished answer is lost. `run_in_contact` runs Flower's SuperNode so that

- a handshake that is cut off or times out is tried again like any lost connection; anything else that TLS objects to is
  final only where nothing was ever in contact, or not for ten minutes;
- `/health` of the SuperNode's own API answers 503 if the coordinator has not answered for a minute;
- whenever the SuperNode's work ends other than by a signal from outside, so does the process, with an error: whoever
  watches it (systemd, Docker) starts it anew.

This is put into places of Flower's own code, by name; a version of Flower that lacks one is not started.
"""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NoReturn

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fedskew.flower import (
    FORCE_EXIT_TIMEOUT_SECONDS,
    HEARTBEAT_DEFAULT_INTERVAL,
    HEARTBEAT_PATIENCE,
    ExitCode,
    add_exit_handler,
    fleet_connection,
    flwr_exit,
    lacking,
    supernode_api,
)

CONTACT_SECONDS = float(HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL)  # then the SuperLink takes a node for gone
OBJECTION_SECONDS = 600.0  # how long after the last answer a server that TLS objects to may still turn out right
HEALTH_KEY = "seconds-since-contact"
CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


class Contact:
    """When the coordinator last answered, and why the SuperNode has to end, if it has. Any thread may call.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._last: float | None = None
        self._troubles: set[str] = set()  # since the last answer
        self.fault = ""

    @property
    def age(self) -> float | None:
        """Seconds since the coordinator's last answer; None before the first."""
        return None if self._last is None else self._clock() - self._last

    @property
    def is_kept(self) -> bool:
        """Whether the SuperLink still counts on this node, by its own rule."""
        return self.age is not None and self.age < CONTACT_SECONDS

    def made(self) -> None:
        """The coordinator answered a request of this node as it should."""
        with self._lock:
            news, self._last = self._last is None or bool(self._troubles), self._clock()
            self._troubles.clear()
        if news:
            tell_systemd("in contact with the coordinator")

    def missed(self, error: Exception) -> None:
        """It did not; every reason is printed once, until it answers again."""
        trouble = f"{type(error).__name__}: {error}"
        with self._lock:
            news = trouble not in self._troubles
            self._troubles.add(trouble)
        if news:
            print(f"fedskew site: no contact with the coordinator: {trouble}", flush=True)
            tell_systemd(f"no contact with the coordinator since {time.strftime('%Y-%m-%d %H:%M:%S')}: {trouble}")

    def may_come_back(self, error: Exception) -> bool:
        """Whether a failed request is to be tried again: the network failed, or TLS objects to a server that was right.

        A certificate that is not trusted means wrong settings at the start; later it may be somebody between, for a
        while. After ten minutes the process ends, so that the next one reads the settings anew.
        """
        if not isinstance(error, httpx.TransportError):
            return False
        objections = [cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)]
        recent = self.age is not None and self.age < OBJECTION_SECONDS
        return recent or all(isinstance(cause, CUT_OFF) for cause in objections)

    def blame(self, fault: str) -> None:
        """Say why the process is about to end, and that it is an error."""
        if not self.fault:
            self.fault = fault
            print(f"fedskew site: this SuperNode ends: {fault}", flush=True)

    def end(self, fault: str) -> None:
        """Let the process end as Flower ends it, but with an error."""
        self.blame(fault)
        os.kill(os.getpid(), signal.SIGTERM)  # flwr_exit is for the main thread only


def run_in_contact(supernode: Callable[[], None]) -> NoReturn:
    """Run Flower's SuperNode; when it ends the process ends, with 0 only if a signal from outside asked for it.

    Raises:
        FlowerError: this release of Flower cannot be watched.
        SystemExit: always, else.
    """
    contact = Contact()
    with watching(contact):
        add_exit_handler(lambda: _insist(contact), run_before_force_exit=True)
        try:
            supernode()
        except SystemExit as end:
            if contact.fault and not end.code:
                raise SystemExit(1) from end
            raise
        except Exception:  # noqa: BLE001  # whatever it is, the thread of the API would keep the process
            traceback.print_exc()
        flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The SuperNode stopped working; the reason is printed above.")
        raise SystemExit(1)  # it does not come to that: flwr_exit ends the process


@contextmanager
def watching(contact: Contact) -> Iterator[None]:
    """Put a `Contact` into Flower's SuperNode for the time being.

    Raises:
        FlowerError: this release of Flower has no such places.
    """
    places: tuple[tuple[ModuleType, str, Callable[[Any, Contact], Any]], ...] = (
        (fleet_connection, "FleetHttpClient", _recording),
        (fleet_connection, "HeartbeatSender", _ending_aloud),
        (fleet_connection, "make_simple_http_retry_invoker", _patient),
        (supernode_api, "create_app", _honest),
    )
    found = [(module, name, getattr(module, name, None), wrap) for module, name, wrap in places]
    missing = [f"{module.__name__}.{name}" for module, name, original, _ in found if original is None]
    if missing:
        raise lacking(", ".join(missing))
    for module, name, original, wrap in found:
        setattr(module, name, wrap(original, contact))
    try:
        yield
    finally:
        for module, name, original, _ in found:
            setattr(module, name, original)


def tell_systemd(status: str) -> None:
    """The line that `systemctl status` shows; nothing where systemd did not start this."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        # decoration: a SuperNode works without it
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.connect("\0" + address[1:] if address.startswith("@") else address)
            line.send(f"STATUS={' '.join(status.split())}".encode())


def _recording(client: Any, contact: Contact) -> Any:
    """Flower's client of the fleet routes, telling `contact` what came of each request."""

    class RecordingClient(client):  # type: ignore[misc]  # the class is looked up at run time
        def _unary_unary(self, **request: Any) -> Any:
            try:
                answer = super()._unary_unary(**request)
            except httpx.HTTPError as error:
                contact.missed(error)
                if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
                    # Flower ends by a signal to itself, with 0 as if somebody had asked for it
                    contact.blame("the SuperLink refuses its key or signature (401): not registered, or a wrong clock")
                raise
            contact.made()
            return answer

    return RecordingClient


def _ending_aloud(sender: Any, contact: Contact) -> Any:
    """Flower's heartbeats: without them the SuperLink sends no more tasks, whatever else works."""

    class LoudSender(sender):  # type: ignore[misc]  # the class is looked up at run time
        def _run(self) -> None:
            try:
                super()._run()
            except Exception as error:  # noqa: BLE001  # a thread's exceptions reach nobody else
                contact.end(f"its heartbeats stopped: {type(error).__name__}: {error}")

    return LoudSender


def _patient(make_invoker: Callable[[], Any], contact: Contact) -> Callable[[], Any]:
    """Flower's retries, asking `contact` before they give up."""

    def make() -> Any:
        invoker = make_invoker()
        is_final = invoker.should_giveup
        invoker.should_giveup = lambda error: not contact.may_come_back(error) and is_final(error)
        return invoker

    return make


def _honest(create_app: Callable[..., Any], contact: Contact) -> Callable[..., Any]:
    """The SuperNode's own API, with a `/health` that means the SuperNode, not the API."""

    def health(_: Request) -> JSONResponse:
        age = contact.age
        seconds = None if age is None else round(age, 1)
        return JSONResponse({HEALTH_KEY: seconds}, status_code=200 if contact.is_kept else 503)

    def create(*args: Any, **kwargs: Any) -> Any:
        app = create_app(*args, **kwargs)
        app.router.routes.insert(0, Route("/health", health))
        return app

    return create


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _insist(contact: Contact) -> None:
    """End with 1 even where cleaning up hangs: Flower would then end with 0."""
    if contact.fault:
        timer = threading.Timer(FORCE_EXIT_TIMEOUT_SECONDS - 0.5, os._exit, (1,))
        timer.daemon = True
        timer.start()
