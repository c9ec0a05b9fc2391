import time
from email.utils import formatdate

import pytest

from appssl.ops.crawl.rules import Refused, is_public, opted_out, parsed, retry_after


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "0.1.2.3", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808",
        "2001:0:7f00:1::", "", "localhost", "8.8.8", "1.2.3.4.5",
    ],
)  # fmt: skip
def test_addresses_that_are_not_of_the_public_internet(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("http://h/a", "http://h/a"),
        (" https://h:8443/a#part ", "https://h:8443/a"),
        ("https://h/%7e/%2F?sig=a%3Ab+c&d=%20", "https://h/%7e/%2F?sig=a%3Ab+c&d=%20"),  # signed: not one byte changed
        ("https://h/a b/ü.png?ä=1", "https://h/a%20b/%C3%BC.png?%C3%A4=1"),
        ("https://münchen.de/x", "https://xn--mnchen-3ya.de/x"),
        ("http://[2606:4700::1111]/x", "http://[2606:4700::1111]/x"),
    ],
)
def test_addresses_are_sent_as_they_are_written(text, sent):
    assert str(parsed(text)) == sent


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "bad_address"), ("h/a.png", "bad_address"), ("//h/a", "bad_address"), ("http:///a", "bad_address"),
        ("http://h:0/", "bad_address"), ("http://h:99999/", "bad_address"), ("http://[::1/", "bad_address"),
        ("http://a b/", "bad_address"), ("http://a\r\nb/", "bad_address"), ("http://h/" + "a" * 9000, "bad_address"),
        ("ftp://h/a", "not_http"), ("file:///etc/passwd", "not_http"), ("data:image/png;base64,AA", "not_http"),
        ("javascript:alert(1)", "not_http"), ("https://me:pw@h/a", "credentials_in_address"),
        ("https://me@h/a", "credentials_in_address"),
    ],
)  # fmt: skip
def test_what_is_no_address_to_ask(text, reason):
    with pytest.raises(Refused) as refused:
        parsed(text)
    assert refused.value.reason == reason
    assert "pw" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "is_out"),
    [
        ("noai", True), ("NoImageAI", True), ("noindex", True), ("none", True), ("nofollow, noai", True),
        ("index, follow", False), ("", False), ("noarchive", False), ("noaim", False),
        ("appssl: noai", True), ("AppSSL : noindex, nofollow", True), ("*: noai", True),
        ("googlebot: noindex", False), ("googlebot: nofollow, noindex", False),
        ("googlebot: noindex, appssl: noai", True), ("appssl: nofollow, googlebot: noai", False),
        ("max-snippet: 20, noai", True), ("unavailable_after: 25 Jun 2030 15:00:00 PST, noindex", True),
        ("max-image-preview: none", False), ("max-image-preview: large", False),
    ],
)  # fmt: skip
def test_robots_tags(value, is_out):
    assert bool(opted_out([("x-robots-TAG", value)])) is is_out


def test_any_line_counts_by_itself():
    lines = [("X-Robots-Tag", "googlebot: nofollow"), ("X-Robots-Tag", "noai")]
    assert opted_out(lines) == "X-Robots-Tag: noai"
    assert opted_out([("TDM-Reservation", " 1 ")]) == "TDM-Reservation: 1"
    assert opted_out([("TDM-Reservation", "0"), ("Content-Type", "noai")]) == ""


def test_retry_after_in_seconds_or_as_a_date():
    assert retry_after("120") == 120
    assert retry_after(formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=3)
    assert retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    assert [retry_after(value) for value in (None, "", "soon", "-1", "1.5", "²")] == [None] * 6
