"""What may be named in a request."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from decathlete.errors import UsageError
from decathlete.label.guard import Guard, check_info, check_name, check_tag, choice, number, switch


@pytest.mark.parametrize("name", ["la_007", "BRATS_001", "1.2.840.10008.5", "a b", "Müller-2", "x" * 200])
def test_plain_names_pass(name):
    assert check_name(name, "image") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:\\x", "a..b", ".lock", "a\0b", "a\nb",
     "a\u202eb", "a\u2028b", "\ufeffa", "x" * 201, "ü" * 101, "\ud800", None, 7, ["a"]],
)  # fmt: skip
def test_what_leads_elsewhere_is_no_name(name):
    with pytest.raises(UsageError, match=r"^image: "):
        check_name(name, "image")


@pytest.mark.parametrize("tag", ["final", "original", "v2_a-b"])
def test_plain_tags_pass(tag):
    assert check_tag(tag) == tag


@pytest.mark.parametrize("tag", ["", "..", "a/b", "/x", "a.b", "-a", "a b", "x" * 65, None, 3])
def test_a_tag_is_the_name_of_a_folder(tag):
    with pytest.raises(UsageError, match=r"^tag: "):
        check_tag(tag)


@pytest.mark.parametrize(("value", "found"), [(3, 3), ("3", 3), (0.5, 0.5), (" 2 ", 2)])
def test_numbers_come_as_numbers_or_text(value, found):
    assert number({"n": value}, "n", 1, 0, 10) == found


@pytest.mark.parametrize("value", ["three", None, True, [3], {}, math.nan, math.inf, -1, 11, "1e999", 10**400])
def test_what_is_no_number_in_range_is_refused(value):
    with pytest.raises(UsageError, match=r"^n: expected a number from 0 to 10 "):
        number({"n": value}, "n", 1, 0, 10)


def test_a_missing_number_is_the_default():
    assert number({}, "n", 4, 0, 10) == 4


def test_switches_come_as_booleans_or_text():
    assert [switch({"s": v}, "s", False) for v in (True, "true", "1", False, "No")] == [True, True, True, False, False]
    with pytest.raises(UsageError, match="s: expected true or false"):
        switch({"s": "maybe"}, "s", False)


def test_a_choice_is_a_known_word_or_the_first_of_a_list():
    assert choice({"d": ["cpu", "cuda"]}, "d", {"cpu"}, "x") == "cpu"
    assert choice({"d": []}, "d", {"cpu"}, "x") == choice({}, "d", {"cpu"}, "x") == "x"
    with pytest.raises(UsageError, match=r"d: expected one of cpu.*\('tpu'"):
        choice({"d": "tpu"}, "d", {"cpu"}, "x")


@pytest.mark.parametrize("text", ["[1]", "{", "NaN", '{"a": Infinity}', "[" * 100_000, "7", "null"])
def test_remarks_are_a_json_object(text):
    with pytest.raises(UsageError, match="params: expected a JSON object"):
        check_info(text, "params")


def test_remarks_leave_the_servers_own_alone():
    assert check_info('{"by": "me"}', "params", ("strategy",)) == {"by": "me"}
    with pytest.raises(UsageError, match="\\(strategy"):
        check_info('{"strategy": 1}', "params", ("strategy",))


def answer_to(guard: Guard, path: str, query: str = "", sent: bytes = b"", **headers: str) -> tuple[int, str]:
    """Status and sentence of a request to a guard before an application that says 200 to all, and reads the body."""
    said = []

    async def receive():
        return {"type": "http.request", "body": sent, "more_body": False}

    async def send(message):
        said.append(message)

    lines = {"host": "127.0.0.1:8000"} | headers
    scope = {"type": "http", "path": path, "query_string": query.encode(),
             "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in lines.items()]}  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    status, body = said[0]["status"], said[1]["body"]
    return status, json.loads(body).get("detail", "") if body else ""


async def everything(scope, receive, send):
    message = await receive()
    status = 200 if message["type"] == "http.request" else 499
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/info/", "", 200),
        ("/datastore/label", "image=la_007&tag=final", 200),
        ("/datastore/label", "image=la_007&tag=", 200),
        ("/infer/heart", "image=/etc/hostname.nii.gz", 400),
        ("/infer/heart", "image=%2e%2e%2fx", 400),
        ("/datastore/image", "image=good&image=../bad", 400),
        ("/datastore/label", "image=a&tag=../../x", 400),
        ("/datastore/label", "label=..%5Cx", 400),
        ("/ohif/../x", "", 400),
        ("/ohif//etc/passwd", "", 400),
        ("/static/..\\x", "", 400),
        ("/reload", "", 404),
        ("/infer/wsi/heart", "", 404),
        ("/infer/wsi_v2/heart", "", 404),
        ("/proxy/dicom/studies", "", 404),
    ],
)
def test_guard_answers_what_leads_elsewhere(path, query, status):
    assert answer_to(Guard(everything), path, query)[0] == status


def test_proxy_is_open_before_a_dicomweb_server_but_not_upwards():
    guard = Guard(everything, proxy=True)
    assert answer_to(guard, "/proxy/dicom/studies")[0] == 200
    assert answer_to(guard, "/proxy/dicom/../tools/execute-script")[0] == 400


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000"])
def test_own_names_reach_a_local_server(host):
    assert answer_to(Guard(everything), "/info/", host=host)[0] == 200


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "a@127.0.0.1", "[", ""])
def test_other_names_do_not_reach_a_local_server(host):
    assert answer_to(Guard(everything), "/info/", host=host)[0] == 421
    assert answer_to(Guard(everything, local=False), "/info/", host=host)[0] == 200


def test_pages_of_other_servers_are_refused():
    assert answer_to(Guard(everything), "/info/", origin="http://127.0.0.1:8000")[0] == 200
    assert answer_to(Guard(everything), "/info/", origin="http://example.org")[0] == 403
    assert answer_to(Guard(everything), "/info/", origin="null")[0] == 403


def test_a_body_that_is_no_upload_is_small():
    guard = Guard(everything)
    assert answer_to(guard, "/train/heart", content_length="2000000")[0] == 413
    assert answer_to(guard, "/train/heart", sent=b" " * 2_000_000)[0] == 499  # of unknown length: cut off
    assert answer_to(guard, "/x", content_length="2000000", content_type="multipart/form-data; boundary=x")[0] == 200
