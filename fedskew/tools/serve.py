"""A small page on this machine that asks a model about a picture. Pictures are looked at in memory and never stored.

What reaches it may come from any page that a browser has open. So it answers only under names of its own (another
site's name may lead to 127.0.0.1), takes pictures only from its own page, and lets that load nothing from elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import unquote, urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from jinja2 import Environment
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from fedskew.data.decode import Decoded
from fedskew.data.preprocessing import Preprocessing, central
from fedskew.data.samples import lower_ends
from fedskew.errors import FedskewError
from fedskew.tools.metadata import AGE, BODY_SITE, Metadata, check_learned, named
from fedskew.tools.predict import Predictor

MAX_BYTES = 25 * 2**20  # of a picture: a phone's has a fifth of it
UPLOAD_SECONDS = 30.0
MAX_WAITING = 8  # pictures in memory
TYPES = ("image/jpeg", "image/png")
OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
METADATA_HEADER = "x-fedskew-metadata"  # only a page of this origin may send it
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
LABELS = {AGE: "Age in years", "sex": "Sex", BODY_SITE: "Body site"}
Maps = Callable[[Decoded], list[dict[str, str]]]


class ServeError(FedskewError, RuntimeError):
    """An address that the page cannot have; the message names the remedy."""


@dataclass(frozen=True)
class Page:
    """What the page is for.

    Attributes:
        name: of the model, for people.
        place: where pictures go, for people.
        exposed: whether other machines may ask: then every address of this machine is a name of its own.
        maps: norm maps of a picture; None where the model cannot be looked into.
    """

    name: str
    place: str
    exposed: bool
    maps: Maps | None


def make_app(model: Predictor, page: Page) -> FastAPI:
    """The page of a model, and what answers it."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    turn, waiting = asyncio.Lock(), asyncio.Semaphore(MAX_WAITING)
    shown = _rendered(model, page)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refusal(request, exposed=page.exposed)
        response = _error(*refused) if refused else await go_on(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(HTTPException)
    async def explain(_: Request, error: HTTPException) -> Response:
        return _error(error.status_code, str(error.detail))

    for path, kind in (("/", "text/html"), ("/serve.css", "text/css"), ("/serve.js", "text/javascript")):
        content = shown if path == "/" else _file(path[1:])
        app.get(path)(_always(content, kind))

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        if waiting.locked():
            raise HTTPException(503, f"{MAX_WAITING} pictures are waiting already; try again in a moment")
        async with waiting:
            metadata = _metadata(request)
            content = await _picture(request)
            async with turn:  # one after the other: each takes all cores
                return await run_in_threadpool(_answer, model, page, content, metadata)

    return app


def _always(content: str, kind: str) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer


def _refusal(request: Request, *, exposed: bool) -> tuple[int, str] | None:
    """Why a request is not taken; None if it is."""
    host = request.headers.get("host", "")
    if not _is_own_name(host, exposed=exposed):
        return 421, "this page does not answer under that name"
    if request.method == "POST":
        origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
        if METADATA_HEADER not in request.headers or site != "same-origin" or origin not in (None, f"http://{host}"):
            return 403, "only this page itself may send pictures"
    return None


def _is_own_name(host: str, *, exposed: bool) -> bool:
    """Whether a request's `Host` is a name of this machine that no other site can take for itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in OWN_NAMES:
        return True
    return exposed and (name == socket.gethostname().lower() or _address(name) is not None)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _metadata(request: Request) -> dict[str, Metadata]:
    try:
        value = json.loads(unquote(request.headers[METADATA_HEADER]))
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise HTTPException(400, f"{METADATA_HEADER} must be a JSON object of texts, percent-encoded")
    return value


async def _picture(request: Request) -> bytes:
    """The body of a request, which is a picture of a size and type that is taken, and does not take for ever."""
    if request.headers.get("content-type", "") not in TYPES:
        raise HTTPException(415, f"a picture must be {' or '.join(TYPES)}")
    too_large = HTTPException(413, f"a picture may have {MAX_BYTES >> 20} MiB")
    length = request.headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BYTES:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for part in request.stream():
                content += part
                if len(content) > MAX_BYTES:
                    raise too_large
    except TimeoutError:
        raise HTTPException(408, f"the picture did not come within {UPLOAD_SECONDS:.0f} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the picture broke off") from None  # to nobody: no traceback in the terminal
    return bytes(content)


def _answer(model: Predictor, page: Page, content: bytes, metadata: Mapping[str, Metadata]) -> Response:
    try:
        given = named(model.vocabularies, metadata, {})
        check_learned(model.vocabularies, given)
        picture = model.decoded(content)
        found = model.predict_decoded(picture, given)
    except FedskewError as error:
        return _error(422, str(error))
    return JSONResponse({
        "decision": found.decision,
        "probabilities": dict(found.probabilities),
        "unknown": [LABELS.get(name, name) for name in found.unknown],
        "notes": list(found.notes),
        "view": _view(model.preprocessing, picture),
        "maps": page.maps(picture) if page.maps else [],
        "maps_note": "" if page.maps else "maps of attention heads need the torch model (a run or model.safetensors)",
    })  # fmt: skip


def _view(prepared: Preprocessing, picture: Decoded) -> dict[str, float]:
    """What of the upright picture the model sees, in shares of its width and height."""
    start, size = central(prepared.edge, prepared.image_size) / prepared.edge, prepared.image_size / prepared.edge
    square = min(picture.width, picture.height)
    found: dict[str, float] = {}
    for side, length, whole in (("left", "width", picture.width), ("top", "height", picture.height)):
        part = square / whole if prepared.fit == "crop" else 1.0
        found |= {side: (1 - part) / 2 + start * part, length: size * part}
    return found


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status)


def _rendered(model: Predictor, page: Page) -> str:
    fields: list[dict[str, Any]] = [
        {"name": name, "label": LABELS.get(name, name), "words": None if lower_ends(words) else words[1:]}
        for name, words in model.vocabularies
    ]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(_file("serve.html")).render(
        name=page.name, place=page.place, max_bytes=MAX_BYTES, fields=fields
    )


def _file(name: str) -> str:
    return (files("fedskew.tools") / "page" / name).read_text(encoding="utf-8")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ServeError: the address is none of this machine's, or another program has the port.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        number = error.errno or 0  # below 0 where a name is not found
        why = os.strerror(number) if number > 0 else error.strerror
        raise ServeError(
            f"{host}, port {port}: {why}; another program may use it. Give --port another number, "
            "or 0 for any that is free"
        ) from error


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Answer until somebody stops it."""
    settings = uvicorn.Config(
        app, http="h11", loop="asyncio", ws="none", lifespan="off", access_log=False, log_level="warning",
        server_header=False, proxy_headers=False, timeout_keep_alive=5, timeout_graceful_shutdown=3,
    )  # fmt: skip
    uvicorn.Server(settings).run(sockets=[listening])
