"""Crawls of a local server that misbehaves: every address has an outcome, and only what may change is asked again."""

import gzip
import hashlib
import io
import json
import shutil
import socket
import time
from itertools import pairwise

import polars as pl
import pytest
from PIL import Image

from appssl.errors import AppsslError, DataError, SettingsError
from appssl.ops.crawl import connection as crawl_connection
from appssl.ops.crawl.fetch import Limits
from appssl.ops.crawl.table import address_key
from appssl.ops.crawl.workers import Options
from appssl.stages.crawl import crawl
from appssl.version import __version__
from tests.crawl_server import drips, endless, first, picture, redirects, sends, serving, slowly, status

PNG, JPEG = picture(1), picture(2, "JPEG", side=64)


def options(*, retries=2, backoff=0.01, per_host=2, parallel=8, contact="", **limits):
    values = {"timeout_seconds": 5.0, "max_bytes": 200_000, "allow_private": True, **limits}
    return Options(per_host, parallel, retries, backoff, contact, Limits(**values))


def crawled(folder, rows, how=None, name="addresses.csv"):
    """Outcomes by address, and what `crawl` returned. rows: addresses, or dicts of columns."""
    table = pl.DataFrame([row if isinstance(row, dict) else {"url": row} for row in rows])
    folder.mkdir(exist_ok=True)
    table.write_csv(folder / name)
    made = crawl(folder / name, folder / "out", how or options())
    found = pl.read_parquet(made.outcomes)
    assert len(found) == len(table) == made.account.total
    assert pl.read_csv(made.outcomes.with_suffix(".csv"), schema=found.schema).equals(found)
    return {row["url"]: row for row in found.iter_rows(named=True)}, made


def one(tmp_path, route, how=None, path="/x.png"):
    """The outcome of a single address with this answer, and the server."""
    with serving({path: route}) as site:
        found, made = crawled(tmp_path, [site.url(path)], how)
        assert made.account.total == 1
        return found[site.url(path)], site


# What is kept


def test_images_lie_under_the_digest_of_their_address_and_the_table_is_in_the_order_of_the_input(tmp_path):
    with serving({f"/{n}": slowly(0.05 * (n == 0), sends(picture(n, kind))) for n, kind in enumerate(KINDS)}) as site:
        facts = {"split": "train", "licence": "CC0"}
        rows = [{"url": site.url(f"/{n}"), "label": "ab"[n % 2], **facts} for n in range(len(KINDS))]
        found, made = crawled(tmp_path, rows)
    table = pl.read_csv(made.images)
    assert table.columns == ["image_id", "path", "label", "split", "source_url", "licence"]
    assert table["source_url"].to_list() == [row["url"] for row in rows]
    assert table["label"].to_list() == [row["label"] for row in rows]
    for n, (kind, suffix) in enumerate(KINDS.items()):
        key = hashlib.sha256(rows[n]["url"].encode()).hexdigest()
        assert table["path"][n] == f"images/{key[:2]}/{key}.{suffix}"
        assert table["image_id"][n] == key[:16]
        content = (tmp_path / "out" / table["path"][n]).read_bytes()
        assert content == picture(n, kind)
        row = found[rows[n]["url"]]
        assert (row["outcome"], row["status"], row["bytes"]) == ("kept", 200, len(content))
        assert row["sha256"] == hashlib.sha256(content).hexdigest()
    assert made.account.plain() == {"total": 6, "kept": 6, "left_out": {}, "failed": {}}


KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


def test_the_suffix_is_that_of_the_bytes_and_not_of_the_address_or_header(tmp_path):
    row, _ = one(tmp_path, sends(JPEG, Content_Type="image/gif"), path="/x.png?size=2")
    assert row["path"].endswith(".jpg")
    assert row["content_type"] == "image/gif"


def test_a_parquet_table_with_ids_truth_and_numbers_as_labels(tmp_path):
    with serving({"/a": sends(PNG)}) as site:
        rows = {"image_id": [7], "url": [site.url("/a")], "label": [3], "true_label": [4]}
        pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
        made = crawl(tmp_path / "a.parquet", tmp_path / "out", options())
    table = pl.read_csv(made.images, infer_schema=False)
    assert table.columns == ["image_id", "path", "label", "true_label", "source_url"]
    assert table.select("image_id", "label", "true_label").row(0) == ("7", "3", "4")


def test_an_answer_that_ends_with_the_connection_is_whole(tmp_path):
    row, _ = one(tmp_path, lambda handler, number: handler.answer(PNG, length=None))
    assert row["outcome"] == "kept"


def test_what_was_compressed_unasked_is_decompressed(tmp_path):
    row, _ = one(tmp_path, sends(gzip.compress(PNG), Content_Encoding="gzip"))
    assert (row["outcome"], row["bytes"]) == ("kept", len(PNG))


def test_a_compressed_bomb_is_too_large(tmp_path):
    row, _ = one(tmp_path, sends(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"))
    assert (row["outcome"], row["reason"]) == ("left_out", "too_large")


def test_an_image_of_very_many_pixels_is_left_to_the_setting_of_the_source(tmp_path):
    stream = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(stream, "PNG")  # Pillow itself refuses to open it
    row, _ = one(tmp_path, sends(stream.getvalue()))
    assert (row["outcome"], row["path"][-4:]) == ("kept", ".png")


# What is not: an outcome, a reason, and how many requests it took


@pytest.mark.parametrize(
    ("route", "outcome", "reason", "requests"),
    [
        (status(404), "failed", "http_404", 1),
        (status(403), "failed", "http_403", 1),
        (status(500), "failed", "http_500", 3),
        (sends(b"<!DOCTYPE html><title>gone</title>"), "failed", "not_an_image", 1),
        (sends(b""), "failed", "empty_file", 1),
        (sends(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "failed", "not_an_image", 1),
        (sends(JPEG[:-200]), "failed", "truncated", 1),
        (lambda handler, number: handler.answer(PNG[:50], length=len(PNG)), "failed", "incomplete", 3),
        (lambda handler, number: handler.answer(PNG, length=10**9), "left_out", "too_large", 1),
        (endless, "left_out", "too_large", 1),
        (sends(PNG, X_Robots_Tag="noai"), "left_out", "opted_out", 1),
        (sends(PNG, X_Robots_Tag="max-snippet: 3, noimageai"), "left_out", "opted_out", 1),
        (sends(PNG, X_Robots_Tag="appssl: noindex"), "left_out", "opted_out", 1),
        (sends(PNG, X_Robots_Tag="otherbot: noindex"), "kept", None, 1),
        (sends(PNG, TDM_Reservation="1"), "left_out", "opted_out", 1),
        (sends(PNG, TDM_Reservation="0"), "kept", None, 1),
        (redirects("/x.png"), "failed", "too_many_redirects", 6),
        (redirects("ftp://127.0.0.1/x.png"), "left_out", "not_http", 1),
        (redirects("http://a:b@127.0.0.1/x.png"), "left_out", "credentials_in_address", 1),
        (redirects("http://[oops/x.png"), "failed", "bad_address", 1),
        (sends(PNG, Content_Encoding="br"), "failed", "content_encoding", 1),
        (lambda handler, number: handler.wfile.write(b"no http\r\n\r\n"), "failed", "connection", 3),
    ],
)  # fmt: skip
def test_answers_have_outcomes(tmp_path, route, outcome, reason, requests):
    row, site = one(tmp_path, route)
    assert (row["outcome"], row["reason"] or None, site.counts()["/x.png"]) == (outcome, reason, requests), row
    assert row["attempts"] == (1 if reason == "too_many_redirects" else requests)
    kept = list((tmp_path / "out").glob("images/*/*"))
    assert len(kept) == (outcome == "kept")


def test_an_endless_answer_is_cut_off_at_the_limit(tmp_path):
    row, site = one(tmp_path, endless)
    assert row["reason"] == "too_large"
    time.sleep(0.2)
    assert site.endless_bytes < 30_000_000  # what the buffers of the kernel take beyond the 200,000 of the limit


def test_a_server_that_drips_is_given_up_although_it_never_falls_silent(tmp_path):
    begun = time.monotonic()
    row, _ = one(tmp_path, drips(PNG, 0.05), options(timeout_seconds=0.4, retries=1))
    assert (row["outcome"], row["reason"], row["attempts"]) == ("failed", "timeout", 2)
    assert time.monotonic() - begun < 3


def test_headers_that_drip_are_given_up_too(tmp_path):
    def route(handler, number):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)

    begun = time.monotonic()
    row, _ = one(tmp_path, route, options(timeout_seconds=0.4, retries=0))
    assert row["reason"] == "timeout"
    assert time.monotonic() - begun < 3


def test_the_time_limit_is_one_for_an_image_and_all_its_redirects(tmp_path):
    routes = {f"/{n}": slowly(0.25, redirects(f"/{n + 1}")) for n in range(4)} | {"/4": sends(PNG)}
    with serving(routes) as site:
        found, _ = crawled(tmp_path, [site.url("/0")], options(timeout_seconds=0.6, retries=0))
        assert found[site.url("/0")]["reason"] == "timeout"
        assert "/3" not in site.asked


def test_a_port_where_nobody_listens_and_a_name_that_is_none(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        found, _ = crawled(tmp_path, [url, f"http://{'a' * 64}.invalid/x", "http://a.invalid/x"], options(retries=1))
    assert (found[url]["reason"], found[url]["attempts"]) == ("connection", 2)
    assert found["http://a.invalid/x"]["reason"] == "host_not_found"
    assert found[f"http://{'a' * 64}.invalid/x"]["reason"] == "bad_address"


def test_addresses_that_are_not_asked_for(tmp_path):
    rows = ["file:///etc/passwd", "http://me:secret@127.0.0.1/x.png", "no address", "http://127.0.0.1:99999/"]
    found, made = crawled(tmp_path, [*rows, ""])
    assert found["file:///etc/passwd"]["reason"] == "not_http"
    assert found["no address"]["reason"] == found["http://127.0.0.1:99999/"]["reason"] == "bad_address"
    assert found["http://***@127.0.0.1/x.png"]["reason"] == "credentials_in_address"
    assert found[""]["reason"] == "bad_address"
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes()
    assert made.account.plain()["left_out"] == {"credentials_in_address": 1, "not_http": 1}


# Machines that are not on the internet


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "0.0.0.0"])
def test_private_machines_are_refused_however_they_are_written(tmp_path, host):
    with serving({"/x": sends(PNG)}) as site:
        found, _ = crawled(tmp_path, [site.url("/x", host)], options(allow_private=False))
        assert site.asked == []
    (row,) = found.values()
    assert (row["outcome"], row["reason"]) in {("left_out", "private_address"), ("failed", "bad_address")}
    if host in ("127.0.0.1", "localhost"):
        assert row["reason"] == "private_address"


@pytest.fixture
def names(monkeypatch):
    """Only 127.0.0.2 counts as public. What names resolve to: addresses for each look-up; the last ones stay."""
    known, real = {}, socket.getaddrinfo

    def lookup(host, port, *arguments, **named):
        answers = known.get(host, [[host]])
        chosen = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for address in chosen for found in real(address, port, *arguments, **named)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(crawl_connection, "is_public", lambda address: address == "127.0.0.2")
    return known


PUBLIC_ONLY = options(allow_private=False)


def test_a_redirect_to_a_private_machine_is_refused(tmp_path, names):
    with serving({"/secret": sends(PNG)}) as inside, serving({}, "127.0.0.2") as site:
        site.routes |= {"/x": redirects(inside.url("/secret")), "/y": sends(PNG)}
        found, _ = crawled(tmp_path, [site.url("/x", "127.0.0.2"), site.url("/y", "127.0.0.2")], PUBLIC_ONLY)
        assert inside.asked == []
    assert [row["reason"] or "kept" for row in found.values()] == ["private_address", "kept"]


def test_a_name_that_resolves_otherwise_a_moment_later_does_not_help(tmp_path, names):
    """The name leads to a public machine when it is first looked up, and to a private one behind its redirect."""
    names["rebinds.test"] = [["127.0.0.2"], ["127.0.0.1"]]
    with serving({"/secret": sends(PNG)}) as inside, serving({}, "127.0.0.2") as site:
        site.routes["/x"] = redirects(inside.url("/secret", "rebinds.test"))
        found, _ = crawled(tmp_path, [site.url("/x", "rebinds.test")], PUBLIC_ONLY)
        assert "/x" in site.asked
        assert inside.asked == []
    assert found[site.url("/x", "rebinds.test")]["reason"] == "private_address"


def test_of_a_name_with_public_and_private_addresses_only_the_public_ones_are_used(tmp_path, names):
    names["mixed.test"] = [["127.0.0.1", "127.0.0.2"]]
    with serving({"/x": sends(PNG)}, "127.0.0.2") as site, serving({"/x": sends(PNG)}, port=site.server_port) as inside:
        found, _ = crawled(tmp_path, [site.url("/x", "mixed.test")], PUBLIC_ONLY)
        assert inside.asked == []
    assert found[site.url("/x", "mixed.test")]["outcome"] == "kept"


def test_names_that_lead_to_several_private_addresses_are_refused(tmp_path, names):
    names["inside.test"] = [["127.0.0.1", "127.0.0.3"]]
    found, _ = crawled(tmp_path, ["http://inside.test:9/x"], PUBLIC_ONLY)
    assert found["http://inside.test:9/x"]["reason"] == "private_address"


# Politeness


def test_robots_txt_is_honoured_with_wildcards_and_asked_for_once(tmp_path):
    rules = (
        b"User-agent: *\nDisallow: /private/\nDisallow: /*.gif$\nAllow: /private/open\n\nUser-agent: other\nDisallow: /"
    )
    paths = {
        "/a.png": None,
        "/private/b.png": "robots_disallowed",
        "/c.gif": "robots_disallowed",
        "/private/open.png": None,
    }
    with serving({"/robots.txt": sends(rules)} | dict.fromkeys(paths, sends(PNG))) as site:
        found, made = crawled(tmp_path, [site.url(path) for path in paths])
        assert {path: found[site.url(path)]["reason"] or None for path in paths} == paths
        assert site.asked.count("/robots.txt") == 1
        assert set(site.counts()) == {"/a.png", "/private/open.png"}
        assert made.account.left_out == {"robots_disallowed": 2}
        again, _ = crawled(tmp_path, [site.url(path) for path in paths])
        assert again == found
        assert len(site.asked) == 3
        ignoring, _ = crawled(tmp_path, [site.url(path) for path in paths], options(ignore_robots=True))
        assert {row["outcome"] for row in ignoring.values()} == {"kept"}
        assert site.asked.count("/robots.txt") == 1


def test_rules_for_this_agent_go_before_those_for_all(tmp_path):
    rules = b"User-agent: *\nDisallow:\n\nUser-agent: appssl\nDisallow: /"
    with serving({"/robots.txt": sends(rules), "/a": sends(PNG)}) as site:
        found, _ = crawled(tmp_path, [site.url("/a")])
    assert found[site.url("/a")]["reason"] == "robots_disallowed"


def test_robots_txt_counts_where_a_redirect_leads(tmp_path):
    with serving({"/robots.txt": sends(b"User-agent: *\nDisallow: /"), "/a": sends(PNG)}) as closed:
        row, _ = one(tmp_path, redirects(closed.url("/a", "localhost")))
        assert closed.asked == ["/robots.txt"]
    assert row["reason"] == "robots_disallowed"


def test_a_robots_txt_that_cannot_be_had_allows_nothing_for_now(tmp_path):
    routes = {"/robots.txt": first(*[status(503)] * 3, status(404))} | {f"/{n}": sends(picture(n)) for n in range(9)}
    with serving(routes) as site:
        rows = [site.url(f"/{n}") for n in range(9)]
        found, _ = crawled(tmp_path, rows)
        assert {(row["outcome"], row["reason"]) for row in found.values()} == {("failed", "robots_unreachable")}
        assert site.asked == ["/robots.txt"] * 3  # not three for each of the nine
        found, _ = crawled(tmp_path, rows)
        assert {row["outcome"] for row in found.values()} == {"kept"}


def test_the_delay_that_robots_txt_asks_for_is_kept_with_one_request_at_a_time(tmp_path):
    times = []

    def route(handler, number):
        times.append(time.monotonic())
        handler.answer(PNG)

    rules = sends(b"User-agent: *\nCrawl-delay: 0.3")
    with serving({"/robots.txt": rules} | {f"/{n}": route for n in range(4)}) as site:
        crawled(tmp_path, [site.url(f"/{n}") for n in range(4)])
        assert site.most_active == 1
    assert min(b - a for a, b in pairwise(times)) > 0.28


def test_a_delay_of_an_hour_is_left_out(tmp_path):
    with serving({"/robots.txt": sends(b"User-agent: *\nCrawl-delay: 3600"), "/a": sends(PNG)}) as site:
        found, _ = crawled(tmp_path, [site.url("/a")])
        assert site.asked == ["/robots.txt"]
    assert found[site.url("/a")]["reason"] == "crawl_delay"


def test_the_agent_names_program_version_and_contact(tmp_path):
    _, site = one(tmp_path, sends(PNG), options(contact="https://lab.example/crawl"))
    assert site.agents == {f"appssl/{__version__} (+https://lab.example/crawl)"}
    _, site = one(tmp_path, sends(PNG))
    assert site.agents == {f"appssl/{__version__}"}
    with pytest.raises(SettingsError, match="--contact"):
        one(tmp_path, sends(PNG), options(contact="a\r\nCookie: b"))


@pytest.mark.parametrize("per_host", [1, 3])
def test_a_host_is_never_asked_more_at_once_than_allowed(tmp_path, per_host):
    routes = {f"/{n}": slowly(0.03, sends(picture(n))) for n in range(24)}
    with serving(routes) as site:
        found, _ = crawled(tmp_path, [site.url(path) for path in routes], options(per_host=per_host, parallel=12))
        assert site.most_active == per_host
    assert {row["outcome"] for row in found.values()} == {"kept"}


def test_the_bound_holds_for_a_host_to_which_others_redirect(tmp_path):
    names = [f"127.0.0.{n}" for n in range(2, 10)]
    with serving({"/x": slowly(0.03, sends(PNG))}) as target, serving({}, "0.0.0.0") as others:
        others.routes["/x"] = slowly(0.1, redirects(target.url("/x")))
        rows = [others.url("/x", name) for name in names]
        found, _ = crawled(tmp_path, rows, options(per_host=2, parallel=8))
        assert target.most_active <= 2
        assert others.most_active > 2
    assert {row["outcome"] for row in found.values()} == {"kept"}


def test_all_requests_together_are_bounded(tmp_path):
    with serving({"/x": slowly(0.03, sends(PNG))}, "0.0.0.0") as site:
        crawled(tmp_path, [site.url("/x", f"127.0.0.{n}") for n in range(1, 13)], options(parallel=3))
        assert site.most_active == 3


def test_retry_after_pauses_the_host(tmp_path):
    routes = {"/a": first(status(429, Retry_After="1"), sends(PNG)), "/b": sends(PNG)}
    with serving(routes) as site:
        begun = time.monotonic()
        found, _ = crawled(tmp_path, [site.url("/a"), site.url("/b")], options(per_host=1))
        assert 1.0 < time.monotonic() - begun < 4
        assert site.counts() == {"/a": 2, "/b": 1}
        assert next(path for path in site.asked if path != "/robots.txt") == "/a"
    assert [row["attempts"] for row in found.values()] == [2, 1]


def test_a_host_that_asks_to_wait_an_hour_is_left_for_the_next_run(tmp_path):
    routes = {"/a": first(status(503, Retry_After="3600"), sends(PNG)), "/b": sends(PNG), "/c": sends(PNG)}
    with serving(routes) as site:
        rows = [site.url(path) for path in routes]
        begun = time.monotonic()
        found, _ = crawled(tmp_path, rows, options(per_host=1))
        assert time.monotonic() - begun < 4
        assert site.counts() == {"/a": 1}
        assert {(row["reason"], "in the next run" in row["message"]) for row in found.values()} >= {("http_503", True)}
        found, made = crawled(tmp_path, rows, options(per_host=1))
        assert made.account.kept == 3


def test_a_dead_host_costs_few_attempts(tmp_path):
    with socket.socket() as closed, serving({"/a": sends(PNG)}) as site:
        closed.bind(("127.0.0.1", 0))
        rows = [f"http://localhost:{closed.getsockname()[1]}/{n}" for n in range(200)]
        found, made = crawled(tmp_path, [*rows, site.url("/a")], options(ignore_robots=True))
    assert made.account.plain() == {"total": 201, "kept": 1, "left_out": {}, "failed": {"connection": 200}}
    assert sum(row["attempts"] for row in found.values()) < 12


def test_an_address_that_hangs_does_not_make_its_host_look_dead(tmp_path):
    with serving({"/0": slowly(1, status(404)), "/1": sends(PNG), "/2": sends(JPEG)}) as site:
        found, _ = crawled(tmp_path, [site.url(f"/{n}") for n in range(3)], options(timeout_seconds=0.3, retries=1))
    assert [row["reason"] or row["outcome"] for row in found.values()] == ["timeout", "kept", "kept"]


def test_a_robots_txt_that_leads_nowhere_allows_nothing_for_now(tmp_path):
    for target in ("ftp://127.0.0.1/robots.txt", "http://127.0.0.1:9/robots.txt"):
        with serving({"/robots.txt": redirects(target), "/a": sends(PNG)}) as site:
            found, _ = crawled(tmp_path, [site.url("/a")], options(retries=1))
            assert found[site.url("/a")]["outcome"] == "failed"
            assert site.counts() == {}
            assert crawled(tmp_path, [site.url("/a")], options(retries=0))[1].num_asked == 1


# Going on


def test_only_what_failed_in_passing_is_asked_again(tmp_path):
    routes = {
        "/good": sends(PNG), "/gone": status(404), "/html": sends(b"<html>"),
        "/robots": sends(PNG, X_Robots_Tag="noai"),
        "/later": first(*[status(500)] * 3, sends(JPEG)), "/large": sends(bytes(300_000)),
    }  # fmt: skip
    with serving(routes) as site:
        rows = [site.url(path) for path in routes]
        _, made = crawled(tmp_path, rows)
        assert made.account.failed == {"http_404": 1, "http_500": 1, "not_an_image": 1}
        before = site.counts()
        _, made = crawled(tmp_path, rows)
        assert site.counts() - before == {"/later": 1}
        assert (made.account.kept, made.num_asked) == (2, 1)
        files = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
        before = site.counts()
        _, made = crawled(tmp_path, rows)
        assert (site.counts(), made.num_asked) == (before, 0)
        assert {path: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == files


def test_a_kept_file_that_changed_or_went_is_fetched_again(tmp_path):
    with serving({f"/{n}": sends(picture(n)) for n in range(3)}) as site:
        rows = [site.url(f"/{n}") for n in range(3)]
        found, _ = crawled(tmp_path, rows)
        places = [tmp_path / "out" / found[url]["path"] for url in rows]
        places[0].unlink()
        places[1].write_bytes(b"changed")
        again, made = crawled(tmp_path, rows)
        assert (made.num_asked, again) == (2, found)
        assert [place.read_bytes() for place in places] == [picture(n) for n in range(3)]
        assert site.counts() == {"/0": 2, "/1": 2, "/2": 1}


def test_a_larger_limit_opens_what_was_too_large(tmp_path):
    with serving({"/a": sends(PNG)}) as site:
        found, _ = crawled(tmp_path, [site.url("/a")], options(max_bytes=50))
        assert found[site.url("/a")]["reason"] == "too_large"
        _, made = crawled(tmp_path, [site.url("/a")], options(max_bytes=40))
        assert made.num_asked == 0
        _, made = crawled(tmp_path, [site.url("/a")])
        assert (made.num_asked, made.account.kept) == (1, 1)


def test_allowing_private_machines_opens_what_was_refused(tmp_path):
    with serving({"/a": sends(PNG)}) as site:
        crawled(tmp_path, [site.url("/a")], options(allow_private=False))
        _, made = crawled(tmp_path, [site.url("/a")])
    assert made.account.kept == 1


def test_a_longer_table_fetches_what_is_new(tmp_path):
    with serving({f"/{n}": sends(picture(n)) for n in range(4)}) as site:
        crawled(tmp_path, [site.url("/2"), site.url("/0")])
        _, made = crawled(tmp_path, [site.url(f"/{n}") for n in (3, 0, 2)])
        assert made.num_asked == 1
    assert pl.read_csv(made.images)["source_url"].to_list() == [site.url(f"/{n}") for n in (3, 0, 2)]


def test_a_half_written_line_of_the_journal_is_dropped(tmp_path):
    with serving({f"/{n}": sends(picture(n)) for n in range(2)}) as site:
        rows = [site.url("/0"), site.url("/1")]
        found, _ = crawled(tmp_path, rows)
        journal = tmp_path / "out" / "journal.jsonl"
        journal.write_bytes(journal.read_bytes()[:-30])
        last = json.loads(journal.read_text().splitlines()[0])["key"]
        (tmp_path / "out/images" / last[:2] / f".{last}.png.123.part").write_bytes(b"half")
        again, made = crawled(tmp_path, rows)
        assert (made.num_asked, again) == (1, found)
        assert list((tmp_path / "out").glob("images/*/.*")) == []
        assert crawled(tmp_path, rows)[1].num_asked == 0


def test_a_folder_that_cannot_be_written_is_one_message_and_the_next_run_goes_on(tmp_path):
    with serving({"/a": sends(PNG)}) as site:
        key = address_key(site.url("/a"))
        in_the_way = tmp_path / f"out/images/{key[:2]}/{key}.png/x"
        in_the_way.mkdir(parents=True)
        with pytest.raises(AppsslError, match=r"cannot be written"):
            crawled(tmp_path, [site.url("/a")])
        shutil.rmtree(in_the_way.parent)
        assert crawled(tmp_path, [site.url("/a")])[1].account.kept == 1


# The table


def test_an_address_that_is_there_twice_is_fetched_once(tmp_path):
    with serving({"/a": sends(PNG)}) as site:
        url = site.url("/a")
        with_ids = [{"url": url, "image_id": "x", "label": "a"}, {"url": url, "image_id": "y", "label": "b"}]
        _, made = crawled(tmp_path, with_ids)
        assert pl.read_csv(made.images)["image_id"].to_list() == ["x", "y"]
        assert pl.read_csv(made.images)["path"].n_unique() == 1
        made = crawled(tmp_path / "b", [{"url": url, "label": "a"}, {"url": url, "label": "b"}])[1]
        assert made.account.plain() == {"total": 2, "kept": 1, "left_out": {"repeated_address": 1}, "failed": {}}
        assert pl.read_parquet(made.outcomes)["message"].to_list()[1] == "as row 1"
        assert site.counts() == {"/a": 2}


def test_tables_that_cannot_be_used_are_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(DataError, match="has no column 'url'"):
        crawled(tmp_path, [{"urll": "http://a/b"}])
    with pytest.raises(DataError, match=r"row 2: image_id 'x' is there already"):
        crawled(tmp_path, [{"url": "http://a/b", "image_id": "x"}, {"url": "http://a/c", "image_id": "x"}])
    with pytest.raises(DataError, match="split 'dev' is not one of train, val, test"):
        crawled(tmp_path, [{"url": "http://a/b", "split": "dev"}])
    with pytest.raises(DataError, match="there is no such table"):
        crawl(tmp_path / "none.csv", tmp_path / "out", options())
    assert not (tmp_path / "out").exists()
