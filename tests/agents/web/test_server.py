"""The server answers the browser of this machine, and nobody else."""

import contextlib
import json
import os
import re
import socket

import pytest

from agents.web.server import LARGEST_CALL, LocalServer
from tests.helpers.requests import ask, call
from text_gym.errors import DataError, OptionError

HOSTILE = "</script><script>alert(1)</script>"


def fail(asked):
    raise DataError("the file is damaged; write it again")


def break_down(asked):
    raise ZeroDivisionError("a secret of line 7")


def miss(asked):
    raise FileNotFoundError(2, "No such file or directory", "scores.json")


CALLS = {
    "/double": lambda asked: {"twice": 2 * asked["number"], "text": HOSTILE},
    "/fail": fail,
    "/break": break_down,
    "/miss": miss,
}


@pytest.fixture(scope="module")
def server():
    with LocalServer(lambda nonce, token: f'<script nonce="{nonce}">"{token}"</script>', CALLS, port=0) as running:
        yield running


@pytest.fixture(scope="module")
def token(server):
    return re.search('>"(.*)"<', ask(server)[2])[1]


def test_the_page_is_served_on_127_0_0_1_alone(server):
    status, headers, text = ask(server)
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert server.address == f"http://127.0.0.1:{server.port}/"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", server.port), 5).close()
    assert ask(server, host=f"localhost:{server.port}")[0] == ask(server, host=f"LOCALHOST:{server.port}")[0] == 200
    assert ask(server, "/?again")[2] == text


def test_a_page_may_load_nothing_from_elsewhere_and_run_no_other_script(server):
    _, headers, text = ask(server)
    policy = headers["Content-Security-Policy"]
    nonce = re.search('nonce="(.*?)"', text)[1]
    assert "default-src 'none'" in policy
    assert f"script-src 'nonce-{nonce}';" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert "*" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1.evil.example:{port}",
     "", [], ["127.0.0.1:{port}", "evil.example"]],
    ids=str,
)  # fmt: skip
def test_a_request_to_another_host_is_refused(server, token, method, host):
    hosts = [one.format(port=server.port) for one in ([host] if isinstance(host, str) else host)]
    sent = {"body": {"number": 1}, "Content_Type": "application/json", "X_Text_Gym_Token": token}
    status, headers, text = ask(server, "/double" if method == "POST" else "/", method, host=hosts, **sent)
    assert status == 403
    assert json.loads(text)["error"] == f"this server answers to {server.address} alone"
    assert "Access-Control-Allow-Origin" not in headers


def test_a_call_is_answered(server, token):
    assert call(server, token, "/double", {"number": 2.5}) == (200, {"twice": 5.0, "text": HOSTILE})
    own = {"Origin": server.address.rstrip("/")}
    assert call(server, token, "/double", {"number": 1e308}, **own)[1]["twice"] == "inf"


@pytest.mark.parametrize(
    ("changed", "body", "status", "said"),
    [
        (
            {"X_Text_Gym_Token": None},
            {"number": 1},
            403,
            "the token of the page is missing or old; load the page again",
        ),
        ({"X_Text_Gym_Token": "guess"}, {"number": 1}, 403, "the token of the page is missing"),
        ({"X_Text_Gym_Token": "g\xfcess"}, {"number": 1}, 403, "the token of the page is missing"),
        ({"Origin": "http://evil.example"}, {"number": 1}, 403, "another site may not call this one"),
        ({"Origin": "null"}, {"number": 1}, 403, "another site may not call this one"),
        ({"Content_Type": "text/plain"}, {"number": 1}, 415, "a call is application/json"),
        ({"Content_Type": None}, {"number": 1}, 415, "a call is application/json"),
        ({"Content_Length": None}, b"", 411, "a call says its Content-Length"),
        ({"Content_Length": "-1"}, b"", 411, "a call says its Content-Length"),
        ({"Content_Length": "9" * 30}, b"", 413, "a call has at most 65536 bytes"),
        ({}, b" " * (LARGEST_CALL + 1), 413, "a call has at most 65536 bytes"),
        ({}, b"{", 400, "a call is a JSON object"),
        ({}, b"\xff", 400, "a call is a JSON object"),
        ({}, [1], 400, "a call is a JSON object"),
        ({}, b'{"number": NaN}', 400, "a call is a JSON object"),
        ({}, b'{"number": ' + b"[" * 30000, 400, "a call is a JSON object"),
    ],
)
def test_a_call_that_is_not_the_pages_is_refused(server, token, changed, body, status, said):
    got, answer = call(server, token, "/double", body, **changed)
    assert (got, list(answer)) == (status, ["error"])
    assert answer["error"].startswith(said)


@pytest.mark.parametrize(
    "path", ["/double", "/report.html", "/../../etc/passwd", "//etc/passwd", "/%2e%2e/setup.cfg", "x"]
)
def test_there_are_no_files(server, token, path):
    status, _, text = ask(server, path)
    assert (status, json.loads(text)) == (404, {"error": "there is nothing here; the page is at /"})
    assert call(server, token, path + "x", {})[0] == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "<b>"])
def test_other_methods_are_refused(server, method):
    status, headers, text = ask(server, method=method)
    assert (status, json.loads(text)) == (405, {"error": "Method Not Allowed"})
    assert headers["Content-Type"].startswith("application/json")


def test_what_fails_says_so_without_a_traceback(server, token, capsys):
    assert call(server, token, "/fail", {}) == (400, {"error": "the file is damaged; write it again"})
    status, answer = call(server, token, "/break", {})
    assert (status, answer["error"]) == (500, "ZeroDivisionError: a secret of line 7 (the terminal says more)")
    assert "Traceback" in capsys.readouterr().err


def test_a_function_that_misses_a_file_is_answered_too(server, token):
    said = "FileNotFoundError: [Errno 2] No such file or directory: 'scores.json'"
    assert call(server, token, "/miss", {}) == (400, {"error": said})

    def page(nonce, token):
        raise PermissionError(13, "Permission denied", "runs")

    with LocalServer(page, port=0) as other:
        status, _, text = ask(other)
    assert (status, json.loads(text)) == (400, {"error": "PermissionError: [Errno 13] Permission denied: 'runs'"})


def test_a_page_may_name_a_file_whose_name_is_no_utf8():
    with LocalServer(lambda nonce, token: os.fsdecode(b"runs/\xff"), port=0) as other:
        assert ask(other)[::2] == (200, "runs/?")


def test_a_page_that_has_not_changed_is_not_sent_again(server):
    _, headers, text = ask(server)
    status, again, nothing = ask(server, If_None_Match=headers["ETag"])
    assert (status, again["ETag"], nothing) == (304, headers["ETag"], "")
    assert ask(server, If_None_Match='"other"')[::2] == (200, text)
    assert ask(server, method="HEAD")[::2] == (200, "")


def test_someone_who_sends_nothing_keeps_nobody_waiting(server):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            silent = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
            silent.sendall(b"GET / HT")
        assert ask(server)[0] == 200


def test_garbage_is_refused(server):
    for sent in (
        b"\x16\x03\x01\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"A" * 70000 + b"\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 5) as other:
            other.sendall(sent)
            with contextlib.suppress(ConnectionError):
                assert b"Traceback" not in other.recv(1 << 16)
    assert ask(server)[0] == 200


def test_a_port_that_is_taken_is_refused_in_a_line(server):
    with pytest.raises(OptionError, match=f"cannot listen on port {server.port} .*; leave --port out to take a free"):
        LocalServer(lambda nonce, token: "", port=server.port)
    with pytest.raises(OptionError, match=r"port=70000 must lie in 0\.\.65535"):
        LocalServer(lambda nonce, token: "", port=70000)
    with LocalServer(lambda nonce, token: "") as one, LocalServer(lambda nonce, token: "") as other:
        assert one.port != other.port
