"""Secrets in addresses are found wherever they stand, and nothing else is taken for one."""

import time

import pytest

from appssl.addresses import credentials, masked, with_secrets
from appssl.errors import SettingsError
from appssl.recipe import parse_overrides
from appssl.settings import parse_yaml


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@h/a@b", "https://***@h/a@b"), ("HTTPS://me@h", "HTTPS://***@h"), ("//me:pw@h/", "//***@h/"),
        ("http://me:p@w@h/a", "http://***@h/a"), ("http:\\\\me:pw@h", "http:\\\\***@h"),
        ("https://me:p w@h:x/", "https://***@h:x/"), ("postgresql://me:@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql://me:se/cr:et@host:5432/db", "postgresql://***@host:5432/db"),
        ("postgresql://me:s@cret@host:5432/db", "postgresql://***@host:5432/db"),
        ("cannot parse 'mysql://u:se/cr:et@h'.", "cannot parse 'mysql://***@h'."),
        ("from http://a:b@h to s3://K:S@bucket/x", "from http://***@h to s3://***@bucket/x"),
        ("postgresql://h/db?user=me&password=pw&x=1", "postgresql://h/db?user=me&password=***&x=1"),
        ("https://b/o?X-Amz-Signature=abc&n=2", "https://b/o?X-Amz-Signature=***&n=2"),
        ("https://b/o?AWSAccessKeyId=AK&Signature=x", "https://b/o?AWSAccessKeyId=***&Signature=***"),
    ],
)  # fmt: skip
def test_secrets_are_not_shown(text, shown):
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////tmp/a:b@c.db", "http://127.0.0.1:5000", "http://host:8080/x@y", "postgresql://host/db",
        "https://h/a@b?c=d@e", "https://host, mail a@b", "see https://host:80 and a@b", "a@b.c", "me:pw@h",
        "https://h/?page=2&monkey=3&token_type=x&design=4", "results/a@b/c", "",
    ],
)  # fmt: skip
def test_what_holds_no_secret_is_shown_as_it_is(text):
    assert masked(text) == text


@pytest.mark.parametrize(
    "text", ["a" * 10**6 + "@", "http://a:" * 5000 + "@ x", "?" * 10**6 + "=", "?a_" * 10**5 + "="]
)
def test_a_long_text_takes_no_long_time(text):
    start = time.process_time()
    masked(text)
    assert time.process_time() - start < 2  # 0.1 to 0.3 s; without bounds in the expressions, minutes


def test_user_and_password_are_taken_out_of_the_address_of_a_server():
    assert credentials("http://me:p%40w@h:5000/x") == ("http://h:5000/x", "me", "p@w")
    assert credentials("https://me:pw@[::1]:5000") == ("https://[::1]:5000", "me", "pw")
    for other in ("http://h:5000", "https://token@h", "postgresql://a:b@h/d", "sqlite:////tmp/a:b@c.db", "http://[::1"):
        assert credentials(other) == (other, None, None)


def test_places_of_secrets_in_settings_are_named_and_the_secrets_are_not():
    values = {"a": [{"b": "x"}, {"b": "s3://K:S@c"}], "http://u:pw@h": 1, "c": 2}
    assert list(with_secrets(values)) == [("a.1.b", "s3://***@c"), ("http://***@h", "http://***@h")]


@pytest.mark.parametrize("secret", ["s3://KEY:hunter2@bucket/data", "https://host/data?token=hunter2"])
def test_settings_with_a_secret_are_refused_and_say_where_it_belongs(secret):
    with pytest.raises(SettingsError, match=r"r.yaml: data.root holds a password .* in the environment") as refused:
        parse_yaml(f"data:\n  root: {secret}\n", "r.yaml")
    assert "hunter2" not in str(refused.value)
    with pytest.raises(SettingsError, match=r"--set data\.root"):
        parse_overrides([f"data.root={secret}"])
