"""A way from containers to a port that the same engine publishes, without Docker's own relay.

From a container's network such a port is reached through a `docker-proxy` process; others take the firewall's way. Old
engines (20.10) can lose that process without a word in their log, and every site of a test then finds nobody, while all
containers stay healthy. Real sites are on other machines: they never need it, so neither do the tests.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def relay(address: str, port: int) -> Iterator[int]:
    """Pass connections to a free port of `address` on to `port` there; the free port."""
    with socket.create_server((address, 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener was closed
                while True:
                    threading.Thread(target=_pass_on, args=(listener.accept()[0], address, port), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)


def _pass_on(client: socket.socket, address: str, port: int) -> None:
    with client, contextlib.suppress(OSError), socket.create_connection((address, port), 10) as server:
        server.settimeout(None)
        back = threading.Thread(target=_copy, args=(server, client), daemon=True)
        back.start()
        _copy(client, server)
        back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until one side ends; the other is told so."""
    with contextlib.suppress(OSError):
        while part := source.recv(1 << 16):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
