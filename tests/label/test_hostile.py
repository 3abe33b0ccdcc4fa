"""Two hundred requests that are malformed or mean harm: what each gets, and that nothing comes of them."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest

pytestmark = pytest.mark.label
FIRST = "hippocampus_001"
CANARY = "canary-of-a-file-outside-91c2"


def nifti(shape: tuple[int, ...] = (8, 8, 8), value: float = 1) -> bytes:
    return gzip.compress(nib.Nifti1Image(np.full(shape, value, np.float32), np.eye(4)).to_bytes())


def nrrd(line: str, size: int = 8) -> bytes:
    """A header with a line of its own, and a voxel."""
    return f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {size} {size} {size}\nencoding: raw\n{line}\n\n\1".encode()


def header_of_100_gb() -> bytes:
    """A small file that says it holds 3000 x 3000 x 3000 voxels."""
    header = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.float32), np.eye(4)).to_bytes())
    header[40:56] = struct.pack("<8h", 3, 3000, 3000, 3000, 1, 1, 1, 1)
    return gzip.compress(bytes(header))


class Harm:
    """A pickle that would write a file."""

    def __reduce__(self):
        return os.system, ("touch /tmp/decathlete_pickle_ran",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    pickle.dump(Harm(), buffer)
    return buffer.getvalue()


TEXT, IMAGE = b"no image at all", nifti()
CLOSED = 0  # the connection, without an answer
# {outside} is the absolute path of a folder beside the studies that holds real files
NAMES = ["../x", "../../../etc/passwd", "/etc/passwd", "{outside}/secret.nii.gz", "a/b", "..", ".", "..\\x", "x\0y",
         "x" * 300, ".datastore", "a\r\nSet-Cookie: b=c", "file:///etc/passwd", "a..b"]  # fmt: skip
TAGS = ["..", "../../outside", "/tmp/x", "{outside}", "a/b", "a b", ".hidden", "x" * 100]

Request = dict[str, Any]
Row = tuple[str, str, int | tuple[int, ...], Request]  # kind, method and path, status, what goes along


def table() -> Iterator[Row]:
    """Every request with the status that it gets."""
    yield from names_that_lead_elsewhere()
    yield from wrong_words()
    yield from uploads()
    yield from odd_addresses()


def names_that_lead_elsewhere() -> Iterator[Row]:
    for name in NAMES:
        word = name if name.startswith("{") else quote(name, safe="")
        yield "name", f"POST /infer/hippocampus?image={word}", 400, {}
        yield "name", f"PUT /datastore/image?image={word}", 400, {"files": {"file": ("x.nii.gz", IMAGE)}}
        yield "name", f"PUT /datastore/label?image={word}", 400, {"files": {"label": ("x.nii.gz", IMAGE)}}
        yield "name", f"DELETE /datastore/image?id={word}", 400, {}
        yield "name", f"GET /datastore/image?image={word}", 400, {}
        yield "name", f"GET /datastore/label?label={word}&tag=final", 400, {}
        yield "name", f"GET /datastore/image/info?image={word}", 400, {}
    for tag in TAGS:
        word = tag if tag.startswith("{") else quote(tag, safe="")
        yield "tag", f"PUT /datastore/label?image={FIRST}&tag={word}", 400, {"files": {"label": ("x.nii.gz", IMAGE)}}
        yield "tag", f"GET /datastore/label?label={FIRST}&tag={word}", 400, {}
        yield "tag", f"DELETE /datastore/label?id={FIRST}&tag={word}", 400, {}


def wrong_words() -> Iterator[Row]:
    deep = "[" * 50_000
    for params in ['{"image": "/etc/passwd"}', '{"label_tag": "../..", "save_label": true}', '{"device": "tpu"}',
                   '{"model_filename": "../../../outside/secret.pt"}', '{"result_extension": ".sh"}',
                   '{"result_dtype": "object"}', '{"tta": "maybe"}', '{"save_label": []}', "[]", "{", "null",
                   '{"a": NaN}', deep, '{"device": {"a": 1}}', '{"foreground": [[1, 2, 3]]}',
                   '{"anterior": [[1, 2, 3]]}']:  # fmt: skip
        yield "parameters", f"POST /infer/hippocampus?image={FIRST}", 422, {"fields": {"params": params}}
    yield "parameters", f"POST /infer/hippocampus?image={FIRST}&output=exe", 422, {}
    yield "parameters", "POST /infer/hippocampus", 422, {}
    huge = {"fields": {"params": json.dumps({"a": "x" * 3_000_000})}}
    yield "huge", f"POST /infer/hippocampus?image={FIRST}", 400, huge
    for value in ["three", -1, 0, 1e9, None, [], {}, "1; rm -rf /", "NaN", 10**400]:
        yield "parameters", "POST /train/hippocampus", 422, {"data": {"max_epochs": value}}
    for body in [{"val_split": "x"}, {"val_split": 5}, {"device": "/dev/sda"}, {"pretrained": "maybe"}]:
        yield "parameters", "POST /train/hippocampus", 422, {"data": body}
    yield "parameters", "POST /train/hippocampus?run_sync=true", 422, {}
    for raw in [b"[]", b"7", b'"x"', b"{"]:
        yield "body", "POST /train/hippocampus", 422, {"body": raw, "headers": {"Content-Type": "application/json"}}
    yield (
        "body",
        "POST /train/hippocampus",
        (400, 422),
        {"body": deep.encode(), "headers": {"Content-Type": "application/json"}},
    )
    yield "huge", "POST /train/hippocampus", 413, {"data": {"a": "x" * 3_000_000}}
    yield "no labels", "POST /train/hippocampus", 422, {"data": {"max_epochs": 1}}
    yield "parameters", "POST /batch/infer/hippocampus?images=everything", 422, {}
    for body in [{"device": "tpu"}, {"label_tag": "../.."}, {"max_workers": 10**9}, {"model_filename": "../x.pt"}]:
        yield "parameters", "POST /batch/infer/hippocampus", 422, {"data": body}
    for body in [{"y": "../x"}, {"max_samples": -1}, {"max_samples": "x"}]:
        yield "parameters", "POST /scoring/dice", 422, {"data": body}
    for place in ["infer/nope", "train/nope", "batch/infer/nope", "scoring/nope", "activelearning/nope"]:
        yield "unknown", f"POST /{place}?image={FIRST}", 404, {}
    yield "unknown", "POST /infer/hippocampus?image=nope", 404, {}
    yield "unknown", "POST /infer/hippocampus?session_id=nope", 404, {}
    yield "unknown", "PUT /datastore/label?image=nope", 404, {"files": {"label": ("x.nii.gz", IMAGE)}}
    yield "unknown", "DELETE /datastore/image?id=nope", 404, {}
    yield "unknown", "GET /datastore/image?image=nope", 404, {}
    yield "unknown", f"GET /datastore/label?label={FIRST}&tag=nope", 404, {}
    yield "unknown", "PUT /datastore/image/info?image=nope", 404, {"fields": {"info": "{}"}}
    yield "unknown", f"PUT /datastore/label/info?label={FIRST}&tag=nope", 404, {"fields": {"info": "{}"}}
    for method, path in [("GET", "model"), ("DELETE", "model"), ("GET", "model/info")]:
        yield "unknown", f"{method} /{path}/nope", 404, {}
    yield "unknown", "PUT /model/nope", 404, {"files": {"file": ("x.pt", TEXT)}}
    for info in ["[]", '{"strategy": 1}', '{"ts": "x"}', "{"]:
        yield "parameters", f"PUT /datastore/image/info?image={FIRST}", 422, {"fields": {"info": info}}


def uploads() -> Iterator[Row]:
    cut = IMAGE[: len(IMAGE) // 2]
    for name, content in [("a.nii.gz", TEXT), ("a.nii.gz", b""), ("a.nii.gz", cut), ("a.nii.gz", header_of_100_gb()),
                          ("a.nii.gz", gzip.compress(bytes(10**7))), ("a.nii", IMAGE), ("a.sh", IMAGE),
                          ("a.nii.gz/../../x", IMAGE), ("..", IMAGE), ("a", IMAGE), ("a.nii.gz", nifti((8, 8, 8, 3))),
                          ("a.nii.gz", nifti(value=float("nan")))]:  # fmt: skip
        yield "no image", "PUT /datastore/image?image=evil", 422, {"files": {"file": (name, content)}}
        yield "no image", "POST /infer/hippocampus", 422, {"files": {"file": (name, content)}}
    for name, content in [("a.nii.gz", TEXT), ("a.nii.gz", IMAGE), ("a.nii.gz", nifti(value=0.5)), ("a.sh", IMAGE)]:
        yield "no label", f"PUT /datastore/label?image={FIRST}", 422, {"files": {"label": (name, content)}}
    for name, content in [("a.nrrd", TEXT), ("a.seg.nrrd", b""), ("a.nrrd", nrrd("data file: {outside}/secret.txt")),
                          ("a.nrrd", nrrd("", 3000)), ("a.dcm", TEXT), ("a.bin", TEXT)]:  # fmt: skip
        yield "no label", f"PUT /datastore/label?image={FIRST}", 422, {"files": {"label": (name, content)}}
        yield "no image", "PUT /datastore/image?image=evil", 422, {"files": {"file": (name, content)}}
    for params in ['{"label_info": 3}', '{"label_info": [1]}', '{"model": "../x"}', '{"model": ["hippocampus"]}']:
        request = {"files": {"label": ("a.bin", bytes(8))}, "fields": {"params": params}}
        yield "parameters", f"PUT /datastore/label?image={FIRST}", 422, request
    for name, content in [("a.nii.gz", TEXT), ("../../a.sh", IMAGE)]:
        yield "no image", "PUT /session/", 422, {"files": {"files": (name, content)}}
    yield "archive", "PUT /session/?uncompress=true", 422, {"files": {"files": ("a.nii.gz", IMAGE)}}
    yield "name", "PUT /datastore/image", 422, {"files": {"file": ("...nii.gz", IMAGE)}}
    for name, content, status in [
        ("a.pt", TEXT, 409),
        ("a.pt", pickled(), 409),
        ("a.pt", b"", 422),
        ("a.sh", TEXT, 422),
    ]:
        yield "no weights", "PUT /model/hippocampus", status, {"files": {"file": (name, content)}}
    yield "no file", "PUT /datastore/image?image=x", 422, {"fields": {"file": "text"}}
    yield "no file", f"PUT /datastore/label?image={FIRST}", 422, {}
    yield "form", f"POST /infer/hippocampus?image={FIRST}", 400, {
        "body": b"no form", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}  # fmt: skip


def odd_addresses() -> Iterator[Row]:
    for path in ["/static/../app.py", "/static/..%2f..%2fapp.py", "/static/%2e%2e/app.py", "/ohif/..%2f..%2fapp.py",
                 "//etc/passwd", "/ohif//etc/passwd", "/ohif/%2Fetc%2Fpasswd", "/model/..%2f..%2fsecret", "/./info/",
                 "/static/..%5capp.py", "/session/..%2f..%2foutside"]:  # fmt: skip
        yield "path", f"GET {path}", 400, {}
    yield "path", "DELETE /session/..%2f..%2foutside", 400, {}
    for line in ["POST /reload", "POST /infer/wsi/hippocampus", "POST /infer/wsi_v2/hippocampus",
                 "GET /proxy/dicom/studies", "POST /proxy/dicom/stow/studies", "GET /none", "GET /.env"]:  # fmt: skip
        yield "closed", line, 404, {}
    yield "no labels", "GET /datastore/dataset", 422, {}
    for lines in ["-1", "0", "abc", "1" + "0" * 30]:
        yield "parameters", f"GET /logs/?lines={lines}", 422, {}
    yield "no labels", "POST /train/", 422, {}
    yield "no labels", "POST /train/", 422, {"data": {"hippocampus": {"max_epochs": "x"}}}
    yield "closed", "POST /scoring/", 422, {}
    yield "method", "PATCH /info/", 405, {}
    yield "method", "TRACE /info/", 405, {}
    yield "host", "GET /info/", 421, {"headers": {"Host": "example.org"}}
    yield "host", "GET /info/", 421, {"headers": {"Host": "127.0.0.1.example.org"}}
    yield "origin", "POST /train/hippocampus", 403, {"headers": {"Origin": "http://example.org"}}
    yield "origin", f"DELETE /datastore/image?id={FIRST}", 403, {"headers": {"Origin": "null"}}
    yield "huge", f"GET /info/?{'a' * 200_000}", (CLOSED, 400, 414, 431), {}
    yield "huge", "GET /info/", (CLOSED, 400, 431), {"headers": {"X-Long": "a" * 200_000}}
    yield "huge", "PUT /datastore/image?image=x", 413, {"headers": {"Content-Length": str(10**12)}, "body": b""}


TABLE = list(table())


@pytest.fixture(scope="module")
def outside(server) -> Path:
    """Files beside the studies, which no request may reach."""
    folder = server.studies.parent / "outside"
    folder.mkdir()
    for name, content in [("secret.nii.gz", IMAGE), ("secret.pt", b"weights"), ("secret.txt", CANARY.encode())]:
        (folder / name).write_bytes(content)
    return folder


def state_of(root: Path) -> dict[str, bytes | None]:
    """Every file under a folder and what it holds, but for logs and what the server notes about the studies."""
    moving = {"datastore_v2.json", ".lock", "app.log", "torchinductor_root"}
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None
        for p in sorted(root.rglob("*"))
        if not moving & set(p.parts) and "tmp" not in p.parts
    }


def test_there_are_two_hundred():
    assert len(TABLE) >= 200


@pytest.fixture(scope="module")
def answers(server, outside) -> dict[int, tuple[int, str]]:
    """All requests, one after the other: number to status and text; the server's folders are looked at around them."""
    before, said = state_of(server.studies.parent), {}
    for number, (_, line, _, request) in enumerate(TABLE):
        method, path = line.replace("{outside}", str(outside)).split(" ", 1)
        files = {n: (f, c.replace(b"{outside}", bytes(outside))) for n, (f, c) in request.get("files", {}).items()}
        request = request | ({"files": files} if files else {})
        try:
            answer = server.ask(method, path.replace(" ", "%20"), **request, timeout=60)
            said[number] = (answer.status, answer.text)
        except (http.client.HTTPException, ConnectionError) as error:
            said[number] = (CLOSED, f"{type(error).__name__}: {error}")
        if number % 20 == 0:
            assert server.ask("GET", "/info/").status == 200
    assert state_of(server.studies.parent) == before
    return said


@pytest.mark.parametrize(
    ("number", "status"),
    [pytest.param(n, row[2], id=f"{row[0]}-{n}-{row[1].split('?')[0][:40]}") for n, row in enumerate(TABLE)],
)
def test_request_gets_its_status(answers, number, status):
    found, text = answers[number]
    assert found in (status if isinstance(status, tuple) else (status,)), (
        f"{TABLE[number][1][:100]}: {found} {text[:300]}"
    )


def test_answers_show_nothing_of_what_is_outside(answers, server):
    from_log = server.ask("GET", "/logs/?lines=10000").text
    for text in [*(text for _, text in answers.values()), from_log]:
        assert CANARY not in text
        assert "not-for-any-answer" not in text
        assert "root:x:0" not in text
    assert not any("Traceback" in text for _, text in answers.values())


def test_nothing_was_run_and_no_upload_stays(answers, server):
    assert not Path("/tmp/decathlete_pickle_ran").exists()
    assert not list((server.folder / "tmp").glob("upload_*"))


def test_server_still_predicts_and_lists_the_same_studies(answers, server):
    assert server.infer("hippocampus", FIRST).status == 200
    assert server.get("/datastore/")["total"] == 8
