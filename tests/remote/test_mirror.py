"""Copies of what lies on a real S3-compatible server: complete, checked, gone on with; and what is refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import fsspec
import pytest

from appssl.errors import AppsslError, DataError, SettingsError
from appssl.remote import mirror as mirroring
from appssl.remote import store as stores
from appssl.remote.mirror import mirror
from appssl.remote.store import Listed, Store, is_address, shown
from tests.commands import appssl, environment
from tests.object_store import KEYS, object_store

FILES = {"set/table.csv": b"id\n1\n", "set/deep/a.bin": os.urandom(3000), "set/deep/b.bin": b"", "other/x": b"x"}


@pytest.fixture(scope="module")
def server():
    with object_store() as both:
        yield both


@pytest.fixture
def store(server, monkeypatch):
    """A store with the bucket `data`, nothing else in it, and the environment that leads there."""
    store, endpoint = server
    for bucket in store.client.list_buckets()["Buckets"]:
        for item in store.client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
            store.client.delete_object(Bucket=bucket["Name"], Key=item["Key"])
    store.gets.clear()
    store.fail, store.cut_after, store.on_get = 0, None, lambda path: None
    store.put("data", **FILES)
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stores, "_WAIT_SECONDS", 0.01)
    return store


def content(folder: Path) -> dict[str, bytes]:
    files = folder / "files"
    return {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}


def notes(folder: Path) -> dict:
    return json.loads((folder / "fetched.json").read_text())


WANTED = {name.removeprefix("set/"): value for name, value in FILES.items() if name.startswith("set/")}


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_copy_is_the_bytes_of_the_store_and_notes_say_what_came(store, tmp_path, slash):
    done = mirror(f"s3://data/set{slash}", tmp_path / "copy")
    assert content(tmp_path / "copy") == WANTED
    assert (done.files, done.bytes, done.fetched, done.kept) == (3, 3005, 3, 0)
    said = notes(tmp_path / "copy")
    assert (said["address"], said["complete"]) == ("s3://data/set", True)
    for name, value in WANTED.items():
        assert said["files"][name] == {
            "size": len(value),
            "sha256": hashlib.sha256(value).hexdigest(),
            "store": hashlib.md5(value).hexdigest(),
        }


def test_the_second_call_reads_nothing_and_keeps_dates(store, tmp_path):
    mirror("s3://data/set", tmp_path)
    before, dates = len(store.gets), {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*in")}
    done = mirror("s3://data/set", tmp_path)
    assert (done.fetched, done.kept, len(store.gets)) == (0, 3, before)
    assert {p: p.stat().st_mtime_ns for p in dates} == dates


def test_only_what_changed_in_the_store_or_here_or_is_missing_is_fetched_again(store, tmp_path):
    files = {f"set/{name}": name.encode() for name in ("kept", "new-there", "bytes-here", "size-here", "missing")}
    store.put("data", **files)
    mirror("s3://data/set", tmp_path)
    store.put("data", **{"set/new-there": b"other"})
    (tmp_path / "files/bytes-here").write_bytes(b"bytes-her3")
    (tmp_path / "files/size-here").write_bytes(b"")
    (tmp_path / "files/missing").unlink()
    store.gets.clear()
    done = mirror("s3://data/set", tmp_path)
    assert sorted(path.rpartition("/")[2] for path, _ in store.gets) == [
        "bytes-here",
        "missing",
        "new-there",
        "size-here",
    ]
    assert done.fetched == 4
    assert content(tmp_path) == {
        **WANTED,
        **{name.removeprefix("set/"): value for name, value in files.items()},
        "new-there": b"other",
    }


def test_a_file_that_vanished_from_the_store_is_named_and_nothing_deleted(store, tmp_path):
    mirror("s3://data/set", tmp_path)
    store.client.delete_object(Bucket="data", Key="set/deep/a.bin")
    store.put("data", **{"set/new": b"new"})
    with pytest.raises(DataError, match=r"not in the store any more: 'deep/a.bin'\. Nothing was changed"):
        mirror("s3://data/set", tmp_path)
    assert content(tmp_path) == WANTED
    mirror("s3://data/set", tmp_path, match=["*.csv"])  # of which nothing is lost
    (tmp_path / "files/deep/a.bin").unlink()
    assert mirror("s3://data/set", tmp_path).files == 3
    assert "deep/a.bin" not in notes(tmp_path)["files"]


def test_patterns_choose_files_and_one_that_fits_none_is_an_error(store, tmp_path):
    assert mirror("s3://data/set", tmp_path / "a", match=["*.csv", "deep/b*"]).files == 2
    assert set(content(tmp_path / "a")) == {"table.csv", "deep/b.bin"}
    with pytest.raises(DataError, match=r"no file below it fits \*\.svs or \*\.tif"):
        mirror("s3://data/set", tmp_path / "b", match=["*.svs", "*.tif"])


def test_large_files_come_in_blocks(store, tmp_path, monkeypatch):
    monkeypatch.setattr(mirroring, "_BLOCK", 1000)
    mirror("s3://data/set", tmp_path, match=["*a.bin"])
    assert (tmp_path / "files/deep/a.bin").read_bytes() == FILES["set/deep/a.bin"]
    assert [wanted for _, wanted in store.gets] == ["bytes=0-999", "bytes=1000-1999", "bytes=2000-2999"]


def test_never_more_files_at_once_than_jobs(store, tmp_path):
    store.put("many", **{f"{number}": b"x" for number in range(24)})
    running, most, lock = 0, [0], threading.Lock()

    def slow(path):
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        time.sleep(0.05)
        with lock:
            running -= 1

    store.on_get = slow
    mirror("s3://many", tmp_path, jobs=3)
    assert max(most) == 3


def test_failures_that_pass_are_tried_again_and_others_end_it(store, tmp_path):
    store.fail = 3
    assert mirror("s3://data/set", tmp_path / "a").fetched == 3
    assert store.fail == 0
    store.fail = 10**6
    with pytest.raises(DataError, match=r"reading .*no usable answer in 4 attempts .*the same command goes on"):
        mirror("s3://data/set", tmp_path / "b")
    assert content(tmp_path / "b") == {"deep/b.bin": b""}  # nothing is to be read of it
    assert notes(tmp_path / "b")["complete"] is False


def test_a_store_that_goes_away_leaves_what_came_and_the_same_command_goes_on(store, tmp_path):
    store.put("many", **{f"{number:02}": b"x" * number for number in range(1, 21)})
    store.cut_after = 8
    with pytest.raises(DataError, match="What was fetched is kept"):
        mirror("s3://many", tmp_path, jobs=2)
    came = content(tmp_path)
    assert 6 <= len(came) <= 8
    assert set(notes(tmp_path)["files"]) == set(came)
    store.cut_after = None
    done = mirror("s3://many", tmp_path)
    assert (done.fetched, done.kept) == (20 - len(came), len(came))


def test_a_killed_command_leaves_no_half_file_under_its_name_and_goes_on(store, tmp_path):
    store.put("big", **{f"{number}": os.urandom(9 << 20) for number in range(4)})  # two blocks each
    store.on_get = lambda path: time.sleep(0.4)
    command = [sys.executable, "-m", "appssl", "data", "mirror", "s3://big", str(tmp_path / "copy"), "--jobs", "2"]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(store.gets) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    store.on_get = lambda path: None
    whole = {n: v for n, v in content(tmp_path / "copy").items() if not n.endswith(".part")}
    assert 0 < len(whole) < 4
    assert all(len(value) == 9 << 20 for value in whole.values())
    done = appssl("data", "mirror", "s3://big", tmp_path / "copy", cwd=tmp_path)
    assert (done.code, "4 files, 37.7 MB" in done.out) == (0, True), done.err
    assert set(content(tmp_path / "copy")) == {"0", "1", "2", "3"}


def test_bytes_that_are_not_those_of_the_etag_are_fetched_once_more_and_then_refused(store, tmp_path):
    """Another user replaces the file, of the same size, between listing and reading."""
    versions = iter([b"second", b"third!", b"fourth"])

    def replaced_once(path):
        if path.startswith("/race/"):
            store.client.put_object(Bucket="race", Key="a", Body=b"second")

    def replaced_always(path):
        if path.startswith("/race/"):
            store.client.put_object(Bucket="race", Key="a", Body=next(versions))

    store.put("race", a=b"first!")
    store.on_get = replaced_once
    mirror("s3://race", tmp_path / "a")
    assert content(tmp_path / "a") == {"a": b"second"}
    assert notes(tmp_path / "a")["files"]["a"]["store"] == hashlib.md5(b"second").hexdigest()
    store.put("race", a=b"first!")
    store.on_get = replaced_always
    with pytest.raises(DataError, match=r"s3://race/a: the bytes differ from their MD5 in the store, twice"):
        mirror("s3://race", tmp_path / "b")
    assert content(tmp_path / "b") == {}


def test_a_large_file_that_changes_between_its_blocks_is_fetched_once_more(store, tmp_path, monkeypatch):
    """Also where the ETag is no MD5, as that of several parts."""
    monkeypatch.setattr(mirroring, "_BLOCK", 6 << 20)
    in_parts(store, "parts", "a", [b"1" * (5 << 20), b"2" * (4 << 20)])
    reads = []

    def replaced(path):
        reads.append(path)
        if len(reads) == 2:
            in_parts(store, "parts", "a", [b"3" * (5 << 20), b"4" * (4 << 20)])

    store.on_get = replaced
    mirror("s3://parts", tmp_path)
    assert (tmp_path / "files/a").read_bytes() == b"3" * (5 << 20) + b"4" * (4 << 20)
    assert len(reads) == 4


def in_parts(store, bucket, key, parts):
    store.client.create_bucket(Bucket=bucket)
    upload = store.client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    where = {"Bucket": bucket, "Key": key, "UploadId": upload}
    sent = [
        {"PartNumber": i, "ETag": store.client.upload_part(**where, PartNumber=i, Body=part)["ETag"]}
        for i, part in enumerate(parts, 1)
    ]
    store.client.complete_multipart_upload(**where, MultipartUpload={"Parts": sent})


def test_the_etag_of_several_parts_is_no_md5_and_is_noted(store, tmp_path):
    in_parts(store, "parts", "b", [b"1" * (5 << 20), b"2"])
    listed = {file.name: file for file in Store("s3://parts").files()}["b"]
    assert listed.identity.endswith("-2")
    assert listed.md5 is None
    mirror("s3://parts", tmp_path, match=["b"])
    assert notes(tmp_path)["files"]["b"]["store"] == listed.identity


def test_encryption_with_a_key_of_kms_is_told_from_wrong_bytes(store, tmp_path):
    """The server's ETag is the MD5 here too, so a listing with another one stands for that of KMS."""
    store.put("kms")
    store.client.put_object(Bucket="kms", Key="secret", Body=b"abc", ServerSideEncryption="aws:kms", SSEKMSKeyId="k")
    store.client.put_object(Bucket="kms", Key="plain", Body=b"abc")
    opened = Store("s3://kms")
    assert [opened.has_other_etag(name) for name in ("secret", "plain")] == [True, False]
    other = "0" * 32
    stop = threading.Event()
    found = mirroring._fetch_once(opened, Listed("secret", 3, other, other), tmp_path / "secret", stop)
    assert found == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(mirroring._ChangedError, match="MD5"):
        mirroring._fetch_once(opened, Listed("plain", 3, other, other), tmp_path / "plain", stop)
    assert not (tmp_path / "plain").exists()


def test_more_than_the_limit_or_the_disk_is_refused_before_anything_is_fetched(store, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"3 files of 0\.00 GB are more than 1e-06 GB"):
        mirror("s3://data/set", tmp_path / "a", max_gb=1e-6)
    monkeypatch.setattr(mirroring.shutil, "disk_usage", lambda folder: Free())
    with pytest.raises(AppsslError, match=r"0\.00 GB are free"):
        mirror("s3://data/set", tmp_path / "b")
    assert store.gets == []
    assert content(tmp_path / "a") == content(tmp_path / "b") == {}


class Free:
    free = 3004


@pytest.mark.parametrize("name", ["../out", "a/../../out", "a//b", "a/./b", "x" * 231, "/abs"])
def test_names_that_cannot_be_files_of_a_folder_are_refused(store, tmp_path, name):
    store.put("names", **{"good": b"x", f"p/{name}": b"evil"})
    with pytest.raises(DataError, match=r"holds names that cannot be files of a folder: '.*'\. Nothing was fetched"):
        mirror("s3://names/p", tmp_path / "in" / "copy")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [".fetched.lock"]


def test_names_with_line_breaks_or_other_marks_are_refused(tmp_path):
    fsspec.filesystem("memory").pipe({"/marks/a\nb": b"x", "/marks/ok": b"x"})
    with pytest.raises(DataError, match=r"cannot be files of a folder: 'a\\nb'\."):
        mirror("memory://marks", tmp_path)


def test_a_file_and_a_folder_of_one_name_are_refused_and_folder_marks_are_no_files(store, tmp_path):
    store.put("names", **{"m/": b"", "m/sub/": b"", "m/sub/a": b"a"})
    mirror("s3://names/m", tmp_path / "m")
    assert content(tmp_path / "m") == {"sub/a": b"a"}
    store.put("names", **{"n/sub": b"file", "n/sub/a": b"a"})
    with pytest.raises(DataError, match="cannot be files of a folder: 'sub/a'"):
        mirror("s3://names/n", tmp_path / "n")


def test_nothing_of_ours_lies_among_the_files(store, tmp_path):
    store.put("again", **{"fetched.json": b"theirs", "a": b"a"})
    assert mirror("s3://again", tmp_path).root == tmp_path / "files"
    assert content(tmp_path) == {"fetched.json": b"theirs", "a": b"a"}


def test_links_in_the_folder_are_not_followed_and_those_of_a_store_refused(store, tmp_path):
    (tmp_path / "outside").mkdir()
    mirror("s3://data/set", tmp_path / "a")
    (tmp_path / "a/files/deep/a.bin").unlink()
    (tmp_path / "a/files/deep/a.bin").symlink_to(tmp_path / "outside/new")
    with pytest.raises(DataError, match="leaves the data root"):
        mirror("s3://data/set", tmp_path / "a")
    (tmp_path / "a/files/deep/a.bin").unlink()
    (tmp_path / "a/files/deep/a.bin").symlink_to(tmp_path / "a/files/table.csv")
    mirror("s3://data/set", tmp_path / "a")
    assert not (tmp_path / "a/files/deep/a.bin").is_symlink()
    assert content(tmp_path / "a") == WANTED
    (tmp_path / "b").mkdir()
    (tmp_path / "b/link").symlink_to("/etc/hostname")
    with pytest.raises(DataError, match=r"holds links, which are not followed: .*link"):
        mirror(f"file://{tmp_path}/b", tmp_path / "c")


def test_a_folder_that_holds_something_else_is_left_alone(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/table.csv").write_text("mine")
    with pytest.raises(AppsslError, match="is not empty, and was not fetched"):
        mirror("s3://data/set", tmp_path / "mine")
    assert (tmp_path / "mine/table.csv").read_text() == "mine"
    mirror("s3://data/set", tmp_path / "a")
    with pytest.raises(AppsslError, match=r"was fetched from s3://data/set, not from s3://data/other"):
        mirror("s3://data/other", tmp_path / "a")
    (tmp_path / "a/fetched.json").write_text('{"files": 3')
    with pytest.raises(AppsslError, match="is damaged"):
        mirror("s3://data/set", tmp_path / "a")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://no-such-bucket/x", "no such bucket"),
        ("s3://data/none", "nothing lies below"),
        ("s3://data/set/table.csv", "is a file. Give the address of the folder"),
    ],
)
def test_an_address_with_nothing_below_it_says_which(store, tmp_path, address, message):
    with pytest.raises(DataError, match=message):
        mirror(address, tmp_path)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gs://bucket/x", r"needs a package that is missing: .*gcsfs"),
        ("nope://bucket", "Protocol not known: nope"),
        ("s3://", "is not the address of a store"),
        ("data/folder", "is not the address of a store"),
        ("zip://a::s3://data/x.zip", "is not the address of a store"),
        ("s3://key:planted-secret@data/set", r"s3://\*\*\*@data/set: holds a user name, password or token"),
    ],
)
def test_an_address_that_cannot_be_used_says_why(tmp_path, address, message):
    with pytest.raises(SettingsError, match=message) as error:
        mirror(address, tmp_path / "copy")
    assert "planted" not in str(error.value)
    assert not (tmp_path / "copy").exists()


def test_missing_keys_are_said_without_asking_long(store, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"no credentials were found.*AWS_ACCESS_KEY_ID"):
        mirror("s3://data/set", tmp_path / "copy")


def test_denied_access_is_said_and_nothing_of_a_key_is_written_or_said(store, tmp_path):
    host, port = store.behind
    count = urllib.request.Request(
        f"http://{host}:{port}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(count).close()  # from now on the server checks keys
    try:
        done = appssl("--debug", "data", "mirror", "s3://data/set", tmp_path / "copy", cwd=tmp_path)
    finally:
        count.data = b"1000000000"
        urllib.request.urlopen(count).close()
    assert (done.code, "access is denied" in done.err) == (3, True), done.err
    assert "planted" not in done.out + done.err
    assert not any(b"planted" in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_messages_of_a_library_lose_secrets_of_the_environment_and_of_addresses(monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_KEY", "planted/1+2=")
    said = shown(OSError("no key planted/1+2=\n at https://me:planted@host/x?sig=planted&a=1 ..."))
    assert "planted" not in said
    assert said.startswith("no key *** at https://***@host")


def test_other_stores_of_fsspec_are_copied_alike(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/shelf/a": b"a", "/shelf/b/c": b"c"})
    (tmp_path / "disk/b").mkdir(parents=True)
    (tmp_path / "disk/a").write_bytes(b"a")
    (tmp_path / "disk/b/c").write_bytes(b"c")
    for number, address in enumerate(["memory://shelf", f"file://{tmp_path}/disk"]):
        folder = tmp_path / str(number)
        assert mirror(address, folder).fetched == 2
        assert content(folder) == {"a": b"a", "b/c": b"c"}
        assert mirror(address, folder).fetched == 0
    memory.pipe({"/shelf/a": b"A"})
    (tmp_path / "disk/a").write_bytes(b"AA")
    assert mirror("memory://shelf", tmp_path / "0").fetched == 1
    assert mirror(f"file://{tmp_path}/disk", tmp_path / "1").fetched == 1


def test_the_command_ends_with_one_line_that_says_what_to_give_next(store, tmp_path):
    done = appssl("data", "mirror", "s3://data/set", "copy", "--match", "*.csv", "--jobs", "2", cwd=tmp_path)
    assert (done.code, done.out) == (0, "1 files, 0.0 MB: 1 fetched, 0 kept. --set data.root=copy/files\n"), done.err
    done = appssl("data", "mirror", "s3://data/set", "c2", "--max-gb", "0.000001", cwd=tmp_path)
    assert (done.code, "more than 1e-06 GB" in done.err) == (3, True)


def test_what_is_an_address():
    assert all(map(is_address, ["s3://b/x", "gs://b", "abfs://c/x", "memory://a", "file:///a"]))
    assert not any(map(is_address, [".", "/data", "data/s3:/x", "C:\\data", "s3://", "a b://c"]))
