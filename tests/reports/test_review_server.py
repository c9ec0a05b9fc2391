"""The server of a review page: who may ask, what it takes, and that it gives nothing else away."""

import http.client
import json
import threading

import pytest

from appssl.errors import AppsslError
from appssl.reports.review_decisions import Decisions
from appssl.reports.review_server import LARGEST_REQUEST, ReviewServer

GIVEN = {"a": "cat", "b": "dog"}


class Asked:
    def __init__(self, server: ReviewServer) -> None:
        self.server, self.port = server, server.server_address[1]
        self.base = f"/{server.token}/"

    def __call__(self, method="GET", path=None, body=None, **headers):
        """(status, headers, content); headers that are None are not sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        own = {"Host": f"127.0.0.1:{self.port}"}
        if method == "POST":
            own |= {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/json"}
            own["Content-Length"] = str(len(body or b""))
        own |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.putrequest(method, self.base if path is None else path, skip_host=True, skip_accept_encoding=True)
        for name, value in own.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def decide(self, name="a", decision="keep", label=None, **headers):
        body = json.dumps({"id": name, "decision": decision, "label": label}).encode()
        status, _, content = self("POST", f"{self.base}decisions", body, **headers)
        return status, json.loads(content)


@pytest.fixture
def asked(tmp_path):
    decisions = Decisions(tmp_path / "decisions.csv", given=GIVEN, classes=("cat", "dog"))
    with ReviewServer(b"<p>page</p>", decisions, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Asked(server)
        server.shutdown()
        thread.join()


def test_the_page_and_its_decisions_are_served_with_strict_headers(asked):
    status, headers, content = asked()
    assert (status, content) == (200, b"<p>page</p>")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Server"].strip() == "appssl"
    assert asked.decide("b", "relabel", "cat") == (200, {"decided": 1})
    assert json.loads(asked(path=f"{asked.base}decisions")[2]) == {"decisions": [["b", "relabel", "cat"]]}
    assert asked.server.decisions.path.read_text() == "id,decision,label\nb,relabel,cat\n"
    assert asked.decide("b", None) == (200, {"decided": 0})
    assert asked.server.decisions.path.read_text() == "id,decision,label\n"


def test_it_listens_on_this_machine_only(asked):
    assert asked.server.server_address[0] == "127.0.0.1"
    assert asked.server.address == f"http://127.0.0.1:{asked.port}/{asked.server.token}/"


@pytest.mark.parametrize("path", ["/", "/decisions", "/wrong/", "/wrong/decisions", "/%2e%2e/", "//"])
def test_without_the_token_nothing_is_told(asked, path):
    for method in ("GET", "POST"):
        status, _, content = asked(method, path, b"{}")
        assert status == 403
        assert b"page" not in content.replace(b"this page", b"").replace(b"review page", b"")


def test_tokens_are_long_and_differ(asked, tmp_path):
    decisions = Decisions(tmp_path / "other.csv", given=GIVEN, classes=("cat",))
    with ReviewServer(b"", decisions, port=0) as other:
        assert other.token != asked.server.token
        assert len(other.token) >= 32


@pytest.mark.parametrize("path", ["../decisions.csv", "decisions.csv", "../../etc/passwd", "decisions/", "x", "?a=1"])
def test_no_other_file_can_be_reached(asked, path):
    assert asked(path=asked.base + path)[0] == 404
    assert asked(path=asked.base.rstrip("/"))[0] == 404


@pytest.mark.parametrize(
    "origin", [None, "null", "https://evil.example", "http://127.0.0.1:1", "http://localhost:8321", "http://127.0.0.1"]
)
def test_a_decision_from_another_page_is_refused(asked, origin):
    status, answer = asked.decide(Origin=origin)
    assert status == 403
    assert "from the review page only" in answer["problem"]
    assert not asked.server.decisions.path.exists()


@pytest.mark.parametrize("host", [None, "evil.example", "127.0.0.1.evil.example:80", "[::1", "192.168.0.1:8321"])
def test_a_name_from_elsewhere_that_points_here_is_refused(asked, host):
    origin = None if host is None else f"http://{host}"
    assert asked.decide(Host=host, Origin=origin)[0] == 403
    assert asked(Host=host)[0] == 403


def test_a_forwarded_port_works(asked):
    assert asked.decide(Host="localhost:9000", Origin="http://localhost:9000")[0] == 200


def test_a_form_of_another_page_cannot_be_a_decision(asked):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None):
        assert asked.decide(Content_Type=kind)[0] == 415


def test_a_request_has_a_stated_and_limited_length(asked):
    body = b" " * (LARGEST_REQUEST + 1)
    assert asked("POST", f"{asked.base}decisions", body)[0] == 413
    assert asked("POST", f"{asked.base}decisions", b"", Content_Length="9" * 30)[0] == 413
    for length in (None, "-1", "1e3", "٣"):
        value = length if length is None else length.encode()
        assert asked("POST", f"{asked.base}decisions", b"", Content_Length=value)[0] == 411


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"{broken", b'{"id": "a", "decision": "keep"}', b'{"id": 1, "decision": "keep", "label": null}',
     b'{"id": "a", "decision": ["keep"], "label": null}', b'{"id": "a", "decision": null, "label": null, "x": 1}',
     b"[" * 60000, b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_decision_is_refused(asked, body):
    assert asked("POST", f"{asked.base}decisions", body)[0] == 400
    assert not asked.server.decisions.path.exists()


@pytest.mark.parametrize(("words", "message"), [(("x", "keep"), "no image"), (("a", "relabel", "cow"), "no class")])
def test_a_wrong_decision_is_told(asked, words, message):
    status, answer = asked.decide(*words)
    assert status == 400
    assert message in answer["problem"]


def test_a_full_disk_is_told_and_the_server_lives_on(asked, monkeypatch):
    def full(*arguments):
        raise AppsslError("decisions.csv: cannot be written: no space left")

    with monkeypatch.context() as broken:
        broken.setattr(asked.server.decisions, "_write", full)
        status, answer = asked.decide()
    assert (status, "no space left" in answer["problem"]) == (507, True)
    assert asked.decide()[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "HEAD"])
def test_other_methods_do_nothing(asked, method):
    assert asked(method)[0] == 501
