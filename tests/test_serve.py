"""The local page: whom it answers, what it takes, what it says, and that nothing stays."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from urllib.parse import quote

import numpy as np
import pytest
import torch
from builders import architecture, lively_model
from fastapi.testclient import TestClient
from PIL import Image
from scipy.stats import skew
from timm.models.swin_transformer import window_reverse
from typer.testing import CliRunner

import fedskew
from fedskew.cli.main import app
from fedskew.data.preprocessing import training_preprocessing
from fedskew.errors import ExitCode
from fedskew.model.groups import ATTENTION, SublayerKey
from fedskew.tools import serve as serving
from fedskew.tools.norm_maps import head_maps, page_maps, painted
from fedskew.tools.serve import MAX_BYTES, Page, is_loopback, make_app

HOST = "http://127.0.0.1:8808"
NASTY = '<img src=x onerror="document.title=1">'


def jpeg(width=80, height=60, seed=0, **options):
    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((width, height)).save(out, "JPEG", **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def model(finished_run):
    return fedskew.load(finished_run.path)


def client_of(model, *, exposed=False, maps=None):
    page = Page("a <model>", "this machine", exposed=exposed, maps=maps)
    return TestClient(make_app(model, page), base_url=HOST)


@pytest.fixture(scope="module")
def client(model):
    return client_of(model, maps=partial(page_maps, model))


def ask(client, content, metadata=None, *, kind="image/jpeg", **headers):
    said = {serving.METADATA_HEADER: quote(json.dumps(metadata or {})), "content-type": kind} | headers
    return client.post("/predict", content=content, headers=said)


def test_the_page_loads_nothing_from_elsewhere_and_every_answer_says_so(client):
    page = client.get("/")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(links) == {"data:,", "/serve.css", "/serve.js"}
    assert "a &lt;model&gt;" in page.text
    for answer in (page, *(client.get(path) for path in ("/serve.css", "/serve.js", "/nowhere", "/predict", "/docs"))):
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
    assert [client.get(path).status_code for path in ("/nowhere", "/predict", "/docs", "/openapi.json")] == [
        404,
        405,
        404,
        404,
    ]


def test_it_says_what_python_says(client, model):
    content = jpeg()
    answer = ask(client, content, {"age": "61", "sex": "female"}).json()
    said = model.predict(content, age=61, sex="female")
    assert answer["probabilities"] == pytest.approx(dict(said.probabilities))
    assert (answer["decision"], answer["unknown"], answer["notes"]) == (said.decision, ["Body site"], [])
    assert answer["maps_note"] == ""


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "", "[::1", "x@y"]
)
def test_another_name_for_this_machine_is_not_answered(client, host):
    for path in ("/", "/serve.js"):
        assert client.get(path, headers={"host": host}).status_code == 421
    assert ask(client, jpeg(), host=host).status_code == 421


def test_its_own_names_are_answered(client, model):
    for host in ("localhost:8808", "127.0.0.1", "[::1]:1", "LOCALHOST"):
        assert client.get("/", headers={"host": host}).status_code == 200
    exposed = client_of(model, exposed=True)
    for host, code in (("10.0.0.1:8808", 200), (socket.gethostname(), 200), ("evil.example", 421)):
        assert exposed.get("/", headers={"host": host}).status_code == code, host


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://127.0.0.1:8808"},
        {"origin": "http://127.0.0.1:8809"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_pictures_from_another_page_are_refused(client, headers):
    answer = ask(client, jpeg(), **headers)
    assert (answer.status_code, answer.json()["error"]) == (403, "only this page itself may send pictures")


def test_a_form_of_another_page_cannot_send_what_is_asked_for(client):
    assert client.post("/predict", content=jpeg(), headers={"content-type": "image/jpeg"}).status_code == 403
    assert ask(client, jpeg(), origin=HOST, **{"sec-fetch-site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("kind", ["", "image/svg+xml", "text/html", "multipart/form-data", "image/tiff"])
def test_other_types_are_refused(client, kind):
    assert ask(client, jpeg(), kind=kind).status_code == 415


def test_an_upload_above_the_limit_is_refused_whatever_it_says_of_its_length(client):
    assert ask(client, bytes(MAX_BYTES + 1)).status_code == 413
    parts = iter([bytes(2**20)] * 26)  # without a length
    answer = ask(client, parts)
    assert (answer.status_code, answer.json()["error"]) == (413, "a picture may have 25 MiB")
    assert ask(client, jpeg(), **{"content-length": "-1"}).status_code == 413


@pytest.mark.parametrize(
    ("content", "metadata", "told"),
    [
        (b"", {}, "empty file"),
        (b"<svg/>", {}, "no JPEG or PNG"),
        (jpeg(300, 200)[:4000], {}, "truncated"),
        (jpeg(), {"age": "200"}, "age is 200, expected years from 0 to 130"),
        (jpeg(), {"sex": "femal"}, "did you mean 'female'?"),
        (jpeg(), {"fur": "long"}, "this model has no metadata 'fur'"),
    ],
)
def test_what_cannot_be_answered_is_one_line(client, content, metadata, told):
    answer = ask(client, content, metadata)
    assert answer.status_code == 422
    assert told in answer.json()["error"]


@pytest.mark.parametrize("said", ["", "%", "[1]", "%7B%22age%22%3A3%7D", "null"])
def test_metadata_that_are_no_texts_are_refused(client, said):
    headers = {serving.METADATA_HEADER: said, "content-type": "image/jpeg"}
    assert client.post("/predict", content=jpeg(), headers=headers).status_code == 400


def test_nothing_is_written(client):
    """Every opening of a file for writing, as the interpreter sees it."""
    written, watching = [], [True]

    def watch(event, details):
        if watching and event == "open" and (details[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(details[0])

    sys.addaudithook(watch)
    assert ask(client, jpeg(300, 200)).status_code == 200
    assert ask(client, b"no picture").status_code == 422
    watching.clear()
    assert written == []


@pytest.mark.parametrize(("fit", "size"), [("squash", (400, 300)), ("crop", (400, 300)), ("crop", (300, 400))])
def test_the_frame_is_what_the_model_sees(fit, size):
    """A picture that is white outside of the frame looks to the model as one that is black there."""
    model = fedskew.FedskewModel(lively_model(architecture()), training_preprocessing(64, fit))
    black, white = Image.new("RGB", size, "black"), Image.new("RGB", size, "white")
    found = ask(client_of(model), png(black), kind="image/png").json()["view"]
    left, top = found["left"] * size[0], found["top"] * size[1]
    width, height = found["width"] * size[0], found["height"] * size[1]
    assert left == pytest.approx((size[0] - width) / 2)
    assert top == pytest.approx((size[1] - height) / 2)
    inside = (round(left), round(top), round(left + width), round(top + height))
    white.paste("black", inside)
    seen = np.asarray(model.preprocess(white) - model.preprocess(black))[0, 0]
    assert seen[3:-3, 3:-3].max() < 0.05, "the frame is not too small"
    smaller = Image.new("RGB", size, "white")
    smaller.paste("black", (inside[0] + 12, inside[1] + 12, inside[2] - 12, inside[3] - 12))
    edges = np.asarray(model.preprocess(smaller) - model.preprocess(black))[0, 0]
    assert min(edges[0, 32], edges[-1, 32], edges[32, 0], edges[32, -1]) > 1, "nor too large"


def png(picture):
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_the_most_skewed_head_of_a_stage_by_scipy():
    """Norms from a hook of the test's own on the input of `proj`; windows put together by timm's function."""
    arch = architecture(image_size=64, stages=2, width=8, window=4)  # pictures of 16 and 8 tokens a side
    model = lively_model(arch)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(5)).cumsum(-1) / 5
    best: dict[int, tuple] = {}
    for stage, layer in enumerate(model.encoder.layers):
        side = 16 >> stage
        for number, block in enumerate(layer.blocks):
            seen = []
            handle = block.attn.proj.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
            with torch.no_grad():
                model.encoder(image)
            handle.remove()
            heads = seen[0].shape[-1] // 4
            tokens = window_reverse(seen[0].unflatten(1, (4, 4)), (4, 4), side, side)
            shift = 2 if number % 2 and side > 4 else 0
            tokens = torch.roll(tokens, (shift, shift), (1, 2))[0]
            norms = tokens.unflatten(-1, (heads, 4)).norm(dim=-1)  # [side, side, heads]
            for head in range(heads):
                value = skew(norms[..., head].double().numpy().ravel())
                if stage not in best or value > best[stage][0]:
                    best[stage] = value, number, head, norms[..., head].numpy()
    found = head_maps(model, image)
    assert sorted(one.key.stage for one in found) == [0, 1]
    assert [one.skewness for one in found] == sorted((one.skewness for one in found), reverse=True)
    for one in found:
        value, number, head, norms = best[one.key.stage]
        assert (one.key, one.head) == (SublayerKey(one.key.stage, number, ATTENTION), head)
        assert one.skewness == pytest.approx(value, abs=1e-4)
        assert np.allclose(one.norms, norms, atol=1e-5)


def test_heads_keep_the_numbers_of_the_dense_model_and_small_stages_have_no_map():
    arch = architecture(image_size=32, stages=3, width=8, window=2)  # 8, 4 and 2 tokens a side: 4 are too few
    keys = [key for key in arch.groups if key.kind == ATTENTION]
    pruned = arch.with_left({key: (1,) for key in keys if key.stage == 0} | {key: () for key in keys if key.stage == 1})
    found = head_maps(lively_model(pruned), torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert [(one.key.stage, one.head) for one in found] == [(0, 1)]


def test_a_map_is_bright_where_norms_are_large_and_lies_as_the_picture_does():
    norms = np.zeros((4, 4), dtype=np.float32)
    norms[0, 3] = 2.0  # the upper right corner
    pixels = np.asarray(Image.open(io.BytesIO(painted(norms)))).astype(int)
    assert pixels.shape == (256, 256, 3)
    bright = pixels.sum(-1)
    assert np.unravel_index(bright.argmax(), bright.shape)[0] < 64
    assert np.unravel_index(bright.argmax(), bright.shape)[1] >= 192
    assert np.asarray(Image.open(io.BytesIO(painted(np.full((2, 2), 3.0, np.float32))))).std((0, 1)).max() == 0


def test_maps_have_captions_and_pictures(client, model):
    content = jpeg()
    found = ask(client, content).json()["maps"]
    expected = head_maps(model.module, model.preprocess(content))
    assert len(found) == len(expected) > 0
    for said, one in zip(found, expected, strict=True):
        key = one.key
        assert said["caption"] == f"stage {key.stage}, block {key.block}, head {one.head}: skewness {one.skewness:+.2f}"
        assert base64.b64decode(said["image"].removeprefix("data:image/png;base64,")) == painted(one.norms)


def test_a_model_that_cannot_be_looked_into_says_so(model):
    found = ask(client_of(model), jpeg()).json()
    assert (found["maps"], found["maps_note"]) == (
        [],
        "maps of attention heads need the torch model (a run or model.safetensors)",
    )


@contextmanager
def served(model):
    """The page on a real socket, in a thread; gives its port."""
    listening = serving.bind("127.0.0.1", 0)
    page = Page("model", "this machine", exposed=False, maps=None)
    answering = threading.Thread(target=serving.serve, args=(make_app(model, page), listening), daemon=True)
    answering.start()
    yield listening.getsockname()[1]


def request_of(port, content, *, length=None):
    return (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
        f"{serving.METADATA_HEADER}: %7B%7D\r\nContent-Length: {length or len(content)}\r\n\r\n"
    ).encode() + content


def test_a_slow_client_blocks_nobody_and_is_sent_away(model, monkeypatch):
    monkeypatch.setattr(serving, "UPLOAD_SECONDS", 3.0)
    content = jpeg()
    with served(model) as port:
        slow = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(3)]
        slow[0].sendall(request_of(port, content[:10], length=5000))
        slow[1].sendall(b"POST /predict HTTP/1.1\r\nHost: ")
        with socket.create_connection(("127.0.0.1", port), 30) as quick:
            start = time.monotonic()
            quick.sendall(request_of(port, content))
            assert quick.recv(15) == b"HTTP/1.1 200 OK"
            assert time.monotonic() - start < 3
        assert slow[0].recv(12) == b"HTTP/1.1 408"
        for one in slow:
            one.close()


def test_more_than_a_few_at_once_are_asked_to_come_again(model, monkeypatch):
    monkeypatch.setattr(serving, "MAX_WAITING", 2)
    content = jpeg()
    with served(model) as port:
        waiting = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(2)]
        for one in waiting:
            one.sendall(request_of(port, b"", length=len(content)))
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", port), 30) as third:
            third.sendall(request_of(port, content))
            assert b"503 Service Unavailable" in third.recv(200)
        for one in waiting:
            one.sendall(content)
            assert one.recv(15) == b"HTTP/1.1 200 OK"
            one.close()


def test_predictions_are_made_one_at_a_time(model):
    running, most = [0], [0]
    real = type(model).predict_decoded

    class Counting(type(model)):
        def predict_decoded(self, *words):
            running[0] += 1
            most[0] = max(most[0], running[0])
            time.sleep(0.05)
            running[0] -= 1
            return real(self, *words)

    counting = Counting(model.module, model.preprocessing)
    content = jpeg()
    with served(counting) as port:
        clients = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(5)]
        for one in clients:
            one.sendall(request_of(port, content))
        for one in clients:
            assert one.recv(15) == b"HTTP/1.1 200 OK"
            one.close()
    assert most == [1]


def test_only_loopback_unless_it_is_asked_for(finished_run):
    own, others = ("127.0.0.1", "127.9.9.9", "::1", "localhost"), ("0.0.0.0", "192.168.1.2", "::", "example.org")
    for host, expected in (*((host, True) for host in own), *((host, False) for host in others)):
        assert is_loopback(host) is expected
    done = CliRunner().invoke(app, ["serve", str(finished_run.path), "--host", "0.0.0.0"])
    assert done.exit_code == ExitCode.USER
    assert "--host 0.0.0.0 lets every machine that reaches it send pictures" in done.stderr
    assert "Add --expose if that is meant" in done.stderr


def test_a_port_in_use_is_one_line(finished_run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", str(finished_run.path), "--port", str(port)])
    assert done.exit_code == ExitCode.USER
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"fedskew: 127.0.0.1, port {port}: Address already in use; another program may use it. Give --port"
    )


CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `dev`, is not installed")
    path = next((place for place in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if os.path.exists(place)), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(finished_run):
    """Of `fedskew serve` as a process of its own on a free port."""
    process = subprocess.Popen([sys.executable, "-m", "fedskew", "serve", finished_run.path, "--port", "0"],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (375, "dark")])
def test_in_a_browser(browser, address, finished_run, generated, tmp_path, width, scheme):
    """A picture lying on its side by its EXIF; the answer, the maps and the notes; no message in the console."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = sorted(generated.rglob("*.jpg"))[0]
    Image.open(picture).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    (tmp_path / "large.jpg").write_bytes(bytes(MAX_BYTES + 1))
    (tmp_path / "text.txt").write_text("x")
    with browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme) as context:
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address)
        assert page.locator("button[type=submit]").is_disabled()
        for name, told in (("large.jpg", "more than the 25 that are taken"), ("text.txt", "is no JPEG or PNG")):
            page.set_input_files("#file", tmp_path / name)
            assert told in page.inner_text("#error")
        page.set_input_files("#file", tmp_path / "a.jpg")
        page.get_by_label("Age in years").fill("61")
        page.get_by_label("Sex").select_option("female")
        page.get_by_role("button", name="Ask the model").click()
        page.wait_for_selector("#answer:not([hidden])")
        expected = fedskew.load(finished_run.path).predict(tmp_path / "a.jpg", age=61, sex="female")
        assert (
            page.inner_text("#decision")
            == f"{expected.decision}, {100 * expected.probabilities[expected.decision]:.1f} %"
        )
        rows = [row.split("\t")[:2] for row in page.inner_text("#shares tbody").splitlines() if "%" in row]
        assert rows == [[name, f"{100 * share:.1f} %"] for name, share in expected.probabilities.items()]
        assert "taken as unknown: Body site" in page.inner_text("#notes")
        size = page.evaluate("[shown.naturalWidth, shown.naturalHeight]")
        assert size == list(Image.open(picture).size), "upright"
        frame, whole = (page.locator(name).bounding_box() for name in ("#map", "#shown"))
        for side, length in (("x", "width"), ("y", "height")):
            assert frame[length] == pytest.approx(whole[length] * 32 / 36, abs=1)
            assert frame[side] == pytest.approx(whole[side] + whole[length] * 2 / 36, abs=1)
        assert page.locator("#choices input").count() > 1
        page.get_by_label("none").check()
        assert page.locator("#map").is_hidden()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert said == []
        page.get_by_label("Age in years").fill("old")
        page.get_by_role("button", name="Ask the model").click()
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error") == "age 'old' is no number; leave out what is not known"
        assert len(said) == 1, "what the browser itself notes of a refused request"


def test_a_class_that_looks_like_html_is_text(browser, model):
    """And so are the words of the metadata."""
    arch = replace(model.architecture, classes=(NASTY, *model.classes[1:]))
    sex = (arch.vocabularies[0][0], ("unknown", NASTY, "male"))
    arch = replace(arch, vocabularies=(sex, *arch.vocabularies[1:]))
    module = fedskew.model.fusion.build(arch, model.module.state_dict()).eval()
    with torch.no_grad():
        module.classifier.bias[0] += 100
    with served(replace(model, module=module)) as port, browser.new_context() as context:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.set_input_files("#file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": jpeg()})
        page.get_by_role("button", name="Ask the model").click()
        page.wait_for_selector("#answer:not([hidden])")
        assert page.inner_text("#decision").startswith(NASTY)
        assert page.locator("img[src=x]").count() == 0
        assert page.locator("option", has_text=NASTY).count() == 1
