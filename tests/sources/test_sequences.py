import json

import pytest

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError, SettingsError
from appssl.settings import validate
from appssl.sources import recsys
from appssl.sources.sequences import Config, build, read_attributes, read_sequences

LINES = "u1 a b c d e\nu2 b c a\n\nu3 d\nu4 e d c b\n"
ATTRIBUTES = {"a": [7, 1], "b": [1, 2], "c": [1], "d": [9, 1, 3], "e": []}
FEATURES = {
    "multi": [{"column": "attributes"}],
    "patterns": [{"name": "last", "column": "attributes", "regex": r"(\d+)$"}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sequences.txt").write_text(LINES)
    (tmp_path / "attributes.json").write_text(json.dumps(ATTRIBUTES))
    return tmp_path


def prepared(root, out, shards=1, **values):
    source = build(validate(Config, {**FEATURES, "min_user": 3, **values}, file="r.yaml", owner="sources/sequences"))
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recsys, "figures", lambda *_: [])
        for shard in range(shards):
            writer = ArtifactWriter(out / f"shard{shard}", "shard", settings_digest="", inputs={})
            source.prepare(root, shard, shards, writer)
            parts.append(writer.finish())
        writer = ArtifactWriter(out / "data", "data", settings_digest="", inputs={})
        source.merge(root, parts, writer)
        artifact = writer.finish()
    return artifact, source.open(artifact), parts[0]


def named(data, split):
    users, items = (dict(enumerate(table["id"].to_list())) for table in (data.users, data.samples))
    user, item, _ = data.interactions(split)
    return {(users[int(u)], items[int(i)]) for u, i in zip(user, item, strict=True)}


def test_the_last_event_of_each_user_is_the_test_and_the_one_before_validation(folder, tmp_path):
    _, data, _ = prepared(folder, tmp_path / "out")
    assert named(data, "test") == {("u1", "e"), ("u2", "a"), ("u4", "b")}
    assert named(data, "val") == {("u1", "d"), ("u2", "c"), ("u4", "c")}
    assert named(data, "train") == {("u1", "a"), ("u1", "b"), ("u1", "c"), ("u2", "b"), ("u4", "e"), ("u4", "d")}


def test_attributes_are_features_of_items(folder, tmp_path):
    _, data, _ = prepared(folder, tmp_path / "out")
    rows = dict(zip(data.samples["id"].to_list(), range(5), strict=True))
    attributes, last = data.meta.facts["fields"]
    assert (attributes["name"], last["name"]) == ("attributes", "last")
    assert attributes["vocabulary"] == ["1", "2", "3", "7", "9"]
    words = dict(enumerate(attributes["vocabulary"], start=attributes["first"]))
    shown = {item: {words[t] for t in data.tokens[row][: attributes["length"]] if t} for item, row in rows.items()}
    assert shown == {"a": {"7", "1"}, "b": {"1", "2"}, "c": {"1"}, "d": {"9", "1", "3"}, "e": set()}
    assert data.tokens[rows["e"]].any() == 0


def test_what_is_left_out_is_accounted_for_and_both_files_are_inputs(folder, tmp_path):
    artifact, data, shard = prepared(folder, tmp_path / "out")
    account = artifact.json("account.json")["events"]
    assert account["total"] == 13
    assert account["kept"] == 12
    assert account["left_out"] == {"too few events (k-core)": 1}
    assert data.num_users == 3
    assert {"table:sequences", "table:attributes"} <= set(shard.manifest["inputs"])


def test_any_number_of_shards_gives_the_same_bytes(folder, tmp_path):
    assert prepared(folder, tmp_path / "1")[0].digest == prepared(folder, tmp_path / "3", shards=3)[0].digest


def test_a_user_without_items_is_a_fault_of_the_log(folder, tmp_path):
    (folder / "sequences.txt").write_text(LINES + "u9\n")
    account = prepared(folder, tmp_path / "out")[0].json("account.json")["events"]
    assert account["failed"] == {"no item": 1}


def test_long_sequences_look_like_no_other_unit_of_time(folder, tmp_path):
    long = " ".join(f"x{n}" for n in range(3000))
    (folder / "sequences.txt").write_text("\n".join([f"s{n} a b c" for n in range(2000)] + [f"long {long}"]))
    account = prepared(folder, tmp_path / "out", unknown_items="keep")[0].json("account.json")["events"]
    assert account["kept"] == account["total"] == 9000


def test_damaged_files_say_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt: cannot be read as text.*Is data\.root right"):
        read_sequences(tmp_path / "none.txt")
    file = tmp_path / "file"
    file.write_text(" \n")
    with pytest.raises(DataError, match="holds no sequences"):
        read_sequences(file)
    file.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DataError, match="cannot be read as text"):
        read_sequences(file)
    for text, message in (("{", "cannot be read as JSON"), ("[1]", "must be a JSON object"), ("{}", "must be a JSON")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_attributes(file)
    file.write_text('{"a": [1], "b": 3}')
    with pytest.raises(DataError, match=r"attributes of 1 item\(s\) are no list, such as 'b'"):
        read_attributes(file)


def test_a_split_in_time_is_refused():
    with pytest.raises(SettingsError, match=r"no times to divide them by; split\.kind must be last"):
        validate(Config, {**FEATURES, "split": {"kind": "time"}}, file="r.yaml", owner="sources/sequences")
