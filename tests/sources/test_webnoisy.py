"""Web images: every input is accounted for, copies never cross the split, any number of shards gives the same bytes."""

import io
import json
import re
import tarfile

import numpy as np
import polars as pl
import pytest
from PIL import Image

from appssl.artifact import ArtifactWriter
from appssl.errors import DataError, SettingsError
from appssl.ops.images.index import OOD
from appssl.settings import validate
from appssl.sources.webnoisy import Config, build, draft, for_new_data
from appssl.synthetic import webnoisy as crawl
from tests.real_data import DATA, on_real_data

CRAWL = {"table": "table.csv", "columns": {"split": "split", "true_label": "true_label"}}


def config(**values):
    return validate(Config, values, file="recipe", owner="sources/webnoisy")


def prepared(settings, root, out, num_shards=1, build=build):
    source = build(settings)
    shards = []
    for shard in range(num_shards):
        writer = ArtifactWriter(out / f"shard{shard}", "shard", settings_digest="", inputs={})
        source.prepare(root, shard, num_shards, writer)
        shards.append(writer.finish())
    writer = ArtifactWriter(out / "data", "data", settings_digest="", inputs={})
    source.merge(root, shards[::-1], writer)
    artifact = writer.finish()
    artifact.check()
    return artifact, source.open(artifact)


def picture(number, side=40):
    coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def content(number, kind="PNG", **options):
    stream = io.BytesIO()
    picture(number, **options).save(stream, kind)
    return stream.getvalue()


def write_table(root, rows, name="table.csv"):
    """Rows (id, label, split) with one picture each; the number of a picture is its row."""
    (root / "images").mkdir(exist_ok=True)
    table = []
    for number, (name_of, label, split) in enumerate(rows):
        (root / f"images/{number}.png").write_bytes(content(number))
        table.append({"id": name_of, "path": f"images/{number}.png", "label": label, "split": split})
    pl.DataFrame(table, schema=dict.fromkeys(("id", "path", "label", "split"), pl.String)).write_csv(root / name)


def rejected(artifact):
    table = artifact.table("quarantine.parquet").select("item", "outcome", "reason", "detail")
    return {item: rest for item, *rest in map(list, table.iter_rows())}


@pytest.fixture(scope="module")
def crawled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crawl")
    crawl.make(folder, size="tiny", seed=0)
    return folder


def test_the_account_of_a_crawl_is_what_was_planted(crawled, tmp_path):
    artifact, data = prepared(config(**CRAWL), crawled, tmp_path)
    truth = pl.read_csv(crawled / "truth/truth.csv", infer_schema=False)
    account = artifact.accounts()["images"]
    account.check("images")
    assert account.total == len(truth)
    assert account.failed == {"truncated": 1, "html": 1, "empty_file": 1, "too_many_pixels": 1}
    copies = truth["fault"].str.starts_with("copy").sum()
    assert account.left_out["uniform"] == 1
    assert account.left_out["duplicate"] + account.left_out["duplicate_across_splits"] == copies
    assert len(data.samples) == account.kept
    found = rejected(artifact)
    assert len(found) == account.total - account.kept
    for row in truth.filter(pl.col("fault").is_in(["truncated", "html", "uniform"])).to_dicts():
        assert found[row["id"]][1] == row["fault"]


def test_any_number_of_shards_gives_the_same_bytes(crawled, tmp_path):
    digests = {n: prepared(config(**CRAWL), crawled, tmp_path / str(n), n)[0].digest for n in (1, 3, 100)}
    assert len(set(digests.values())) == 1


def test_no_picture_is_in_two_parts(crawled, tmp_path):
    artifact, data = prepared(config(**CRAWL), crawled, tmp_path)
    seen = {}
    for row in range(len(data.samples)):
        seen.setdefault(data.read(row).tobytes(), []).append(data.samples["id"][row])
    assert all(len(ids) == 1 for ids in seen.values())
    splits = dict(pl.read_csv(crawled / "table.csv").select("id", "split").iter_rows())
    found = rejected(artifact)
    across = {item: detail for item, (_, reason, detail) in found.items() if reason == "duplicate_across_splits"}
    assert across
    for item, detail in across.items():
        kept = detail.removeprefix("duplicate of ").split(" ")[0]
        assert (splits[item], splits[kept]) == ("train", "test")


def test_samples_meta_and_images_fit_together(crawled, tmp_path):
    _, data = prepared(config(**CRAWL, size=24), crawled, tmp_path)
    samples = data.samples
    assert samples["index"].to_list() == list(range(len(samples)))
    assert samples["id"].to_list() == sorted(samples["id"])
    assert data.meta.classes == crawl.CLASSES
    assert data.read(0).shape == (24, 24, 3)
    train = np.stack([data.read(i) for i in samples.filter(split="train")["index"]]).reshape(-1, 3) / 255
    np.testing.assert_allclose(data.meta.facts["rgb_mean"], train.mean(axis=0))
    np.testing.assert_allclose(data.meta.facts["rgb_std"], train.std(axis=0))
    assert data.meta.facts["has_truth"]


def test_true_kind_says_what_the_label_is(crawled, tmp_path):
    _, data = prepared(config(**CRAWL), crawled, tmp_path)
    for row in data.samples.to_dicts():
        known = "clean" if row["label"] == row["true_label"] else "id_noise"
        assert row["true_kind"] == ("ood_noise" if row["true_label"] == OOD else known)


def test_figures_are_listed_and_there(crawled, tmp_path):
    artifact, _ = prepared(config(**CRAWL), crawled, tmp_path)
    listed = artifact.json("figures.json")
    assert [f["file"] for f in listed] == ["figures/kept.png", "figures/rejected.png", "figures/duplicates.png"]
    assert all(Image.open(artifact.path(f["file"])).size[0] > 100 for f in listed)


def test_a_split_by_hash_does_not_depend_on_the_order_of_rows(tmp_path):
    rows = [(f"i{n}", "ab"[n % 2], "train") for n in range(20)]
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, order in ((first, rows), (second, rows[::-1])):
        folder.mkdir()
        write_table(folder, order)
    parts = [
        dict(prepared(config(table="table.csv"), folder, folder / "out")[1].samples.select("id", "split").iter_rows())
        for folder in (first, second)
    ]
    assert parts[0] == parts[1]
    assert list(parts[0].values()).count("test") == 4


def test_a_folder_gives_labels_by_subfolder(tmp_path):
    for number, name in enumerate(("cat/1.png", "cat/deep/2.png", "dog/3.png", "loose.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(number))
    (tmp_path / "photos/cat/notes.txt").write_text("no image")
    artifact, data = prepared(config(folder="photos", split={"test": 0}), tmp_path, tmp_path / "out")
    labels = dict(data.samples.select("id", "label").iter_rows())
    assert labels == {"cat/1.png": "cat", "cat/deep/2.png": "cat", "dog/3.png": "dog", "loose.png": None}
    assert rejected(artifact)["cat/notes.txt"][:2] == ["left_out", "not_an_image_file"]


def add(tar, name, data, **changes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in changes.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def test_tar_shards_are_read_in_place_and_unsafe_members_refused(tmp_path):
    with tarfile.open(tmp_path / "s-0.tar", "w") as tar:
        add(tar, "a.png", content(0))
        add(tar, "a.cls", b"1\n")
        add(tar, "b.png", content(1))
        add(tar, "b.json", json.dumps({"label": "dog", "split": "test"}).encode())
        add(tar, "../evil.png", content(2))
        add(tar, "/abs.png", content(3))
        add(tar, "link.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", b"", type=tarfile.LNKTYPE, linkname="a.png")
        add(tar, "device.png", b"", type=tarfile.CHRTYPE)
        add(tar, "c.json", b"{broken")
        add(tar, "c.png", content(4))
        add(tar, "lonely.cls", b"0")
    settings = config(shards=["s-*.tar"], class_names=["cat", "dog"], columns={"split": "split"}, split={"test": 0})
    artifact, data = prepared(settings, tmp_path, tmp_path / "out", 2)
    assert data.samples.select("id", "label", "split").rows() == [("s-0/a", "dog", "train"), ("s-0/b", "dog", "test")]
    assert (data.read(0) == np.asarray(picture(0).resize((32, 32), Image.Resampling.LANCZOS))).all()
    reasons = {item: reason for item, (_, reason, _) in rejected(artifact).items()}
    unsafe = ("s-0/../evil.png", "s-0//abs.png", "s-0/link.png", "s-0/hard.png", "s-0/device.png")
    assert all(reasons[item] == "unsafe_member" for item in unsafe)
    assert reasons["s-0/c.json"] == "bad_label_file"
    assert reasons["s-0/lonely"] == "no_image"
    account = artifact.accounts()["images"]
    assert (account.kept, account.num_failed) == (2, 7)
    assert not (tmp_path.parent / "evil.png").exists()


def test_a_tar_that_breaks_off_gives_what_came_before(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for number in range(3):
            add(tar, f"{number}.png", content(number))
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: whole.rfind(b"2.png") + 1000])
    artifact, data = prepared(config(shards=["s.tar"], split={"test": 0}), tmp_path, tmp_path / "out")
    assert data.samples["id"].to_list() == ["s/0", "s/1"]
    assert {reason for _, reason, _ in rejected(artifact).values()} <= {"truncated", "damaged_shard"}
    assert artifact.accounts()["images"].num_failed >= 1


def test_parquet_with_bytes_integer_labels_test_table_and_mix(tmp_path):
    def table(name, numbers, **columns):
        frame = pl.DataFrame({"index": list(range(len(numbers))), "image": [content(n) for n in numbers], **columns})
        frame.write_parquet(tmp_path / name, row_group_size=3)

    table("train.parquet", range(12), noisy=[0, 1] * 6, clean=[0, 1] * 5 + [1, 0])
    table("test.parquet", range(100, 104), clean=[0, 1, 0, 1])
    table("other.parquet", range(200, 210))
    settings = config(
        table="train.parquet",
        columns={"id": "index", "label": "noisy", "true_label": "clean"},
        class_names=["cat", "dog"],
        test_table="test.parquet",
        test_columns={"id": "index", "label": None, "true_label": "clean"},
        mix={"table": "other.parquet", "columns": {"id": "index"}, "share": 0.25},
    )
    artifact, data = prepared(settings, tmp_path, tmp_path / "out", 2)
    samples = data.samples
    assert samples.group_by("origin", "split").len().sort("origin").rows() == [
        ("input", "train", 12), ("mix", "train", 4), ("test", "test", 4),
    ]  # fmt: skip
    mixed = samples.filter(origin="mix")
    assert set(mixed["true_kind"]) == {"ood_noise"}
    assert set(mixed["true_label"]) == {OOD}
    assert set(mixed["label"]) <= {"cat", "dog"}
    assert samples.filter(origin="test").select("id", "label", "true_label").row(1) == ("test/1", None, "dog")
    assert samples.filter(id="11")["true_kind"].item() == "id_noise"
    for row in samples.to_dicts():
        number = int(row["id"].split("/")[-1]) + {"input": 0, "test": 100, "mix": 200}[row["origin"]]
        assert (data.read(row["index"]) == np.asarray(picture(number).resize((32, 32), Image.Resampling.LANCZOS))).all()
    assert artifact.accounts()["listed images"].left_out == {"not chosen by mix": 6}


def test_a_smaller_limit_is_part_of_a_larger_one_and_keeps_proportions(tmp_path):
    write_table(tmp_path, [(f"i{n}", "a" if n % 4 else "b", "train") for n in range(40)])
    chosen = {}
    for limit in (8, 20):
        settings = config(table="table.csv", limit=limit, split={"test": 0})
        artifact, data = prepared(settings, tmp_path, tmp_path / str(limit))
        chosen[limit] = dict(data.samples.select("id", "label").iter_rows())
        assert artifact.accounts()["listed images"].left_out == {"not chosen by limit": 40 - limit}
    assert len(chosen[8]) == 8
    assert list(chosen[8].values()).count("b") == 2
    assert chosen[8].items() <= chosen[20].items()


def test_small_and_animated_images_are_left_out_with_the_value(tmp_path):
    write_table(tmp_path, [("a", "x", ""), ("tiny", "x", ""), ("film", "y", "")])
    (tmp_path / "images/1.png").write_bytes(content(1, side=9))
    picture(2).save(tmp_path / "images/2.png", "GIF", save_all=True, append_images=[picture(3)])
    artifact, _ = prepared(config(table="table.csv", split={"test": 0}), tmp_path, tmp_path / "out")
    assert rejected(artifact)["tiny"] == ["left_out", "too_small", "9 x 9, min_side 16"]
    assert rejected(artifact)["film"][1] == "animation"


def test_equal_pixels_in_another_file_format_are_a_copy(tmp_path):
    write_table(tmp_path, [("a", "x", ""), ("b", "y", "")])
    picture(0).save(tmp_path / "images/1.png", "BMP")
    artifact, data = prepared(config(table="table.csv", split={"test": 0}), tmp_path, tmp_path / "out")
    assert data.samples["id"].to_list() == ["a"]
    detail = "duplicate of a (same pixels; train and train, labels y and x)"
    assert rejected(artifact)["b"] == ["left_out", "duplicate", detail]


def with_a_pale_copy_in_test(tmp_path, **settings):
    rows = [("a", "x", ""), ("b", "y", ""), ("c", "x", "")]
    write_table(tmp_path, rows)
    coarse = np.random.default_rng(5).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "images/0.png", "PNG")
    Image.blend(smooth, Image.new("RGB", (64, 64), "white"), 0.3).save(tmp_path / "images/1.png", "PNG")
    table = pl.read_csv(tmp_path / "table.csv").with_columns(split=pl.Series(["train", "test", "train"]))
    table.write_csv(tmp_path / "table.csv")
    columns = {**config(table="table.csv").columns.model_dump(), "split": "split"}
    return prepared(config(table="table.csv", columns=columns, **settings), tmp_path, tmp_path / "out")


def test_a_near_duplicate_in_another_part_is_left_out_of_training_and_listed(tmp_path):
    artifact, data = with_a_pale_copy_in_test(tmp_path)
    assert data.samples["id"].to_list() == ["b", "c"]
    assert rejected(artifact)["a"][1] == "near_duplicate_across_splits"
    assert re.fullmatch(
        r"near-duplicate of b \([0-4] of 64 bits.*train and test, labels x and y\)", rejected(artifact)["a"][2]
    )
    assert artifact.table("near_duplicates.parquet")["id"].to_list() == ["a", "b"]


def test_near_duplicates_across_parts_can_be_kept_or_refused(tmp_path):
    (tmp_path / "kept").mkdir()
    assert len(with_a_pale_copy_in_test(tmp_path / "kept", near_duplicates="keep")[1].samples) == 3
    (tmp_path / "refused").mkdir()
    with pytest.raises(DataError, match=r"a \([0-4] bits from b, test\)"):
        with_a_pale_copy_in_test(tmp_path / "refused", near_duplicates="refuse")


def test_missing_files_and_links_out_of_the_root_fail_alone(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    write_table(root, [("a", "x", ""), ("gone", "x", ""), ("link", "x", "")])
    (root / "images/1.png").unlink()
    (root / "images/2.png").unlink()
    (tmp_path / "secret.png").write_bytes(content(9))
    (root / "images/2.png").symlink_to(tmp_path / "secret.png")
    artifact, data = prepared(config(table="table.csv", split={"test": 0}), root, tmp_path / "out")
    assert data.samples["id"].to_list() == ["a"]
    assert rejected(artifact)["gone"][:2] == ["failed", "missing_file"]
    assert rejected(artifact)["link"][:2] == ["failed", "outside_root"]


ROWS = [("a", "cat", "train"), ("b", "dog", "train"), ("c", "cat", "test")]


@pytest.mark.parametrize(
    ("rows", "settings", "messages"),
    [
        (ROWS, {"table": "nosuch.csv"}, ["nosuch.csv", "there is no such table", "data.root"]),
        ([], {}, ["table.csv: the table is empty"]),
        (ROWS, {"columns": {"label": "lable"}}, ["no column 'lable' (columns.label)", "Did you mean label?"]),
        (ROWS, {"columns": {"path": "f", "id": "key"}}, ["no column 'key'", "has neither", "Its columns: id"]),
        ([("a", "x", ""), ("a", "y", "")], {}, ["id 'a' is used 2 times", "row 1", "row 2"]),
        (ROWS, {"class_names": ["cats", "dog"]}, ["label 'cat' is in no class list", "mean cats?", "row 1", "row 3"]),
        (ROWS, {"columns": {"split": "label"}}, ["split 'cat' is not one of train, val, test"]),
        (ROWS, {"columns": {"path": "label"}, "table": "../table.csv"}, ["leaves the data root"]),
        ([("", "x", "")], {}, ["row 1: the id is empty"]),
        (ROWS, {"columns": {"split": "split", "group": "label"}}, ["the split leaks", "cat in test, train"]),
        (ROWS, {"mix": {"table": "table.csv", "share": 0.9}}, ["mix.share 0.9", "needs 18 images", "has 3"]),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused_with_what_to_do(tmp_path, rows, settings, messages):
    write_table(tmp_path, rows)
    source = build(config(**{"table": "table.csv", **settings}))
    with pytest.raises(DataError) as caught:
        source.index(tmp_path)
    for message in messages:
        assert message in str(caught.value)


def test_paths_that_leave_the_root_are_listed_by_row(tmp_path):
    table = {"id": ["a", "b", "c"], "path": ["../x.png", "/etc/passwd", "ok.png"], "label": ["x"] * 3}
    pl.DataFrame(table).write_csv(tmp_path / "table.csv")
    with pytest.raises(DataError) as caught:
        build(config(table="table.csv")).index(tmp_path)
    assert "2 problem(s)" in str(caught.value)
    assert "row 1" in str(caught.value)
    assert "row 2" in str(caught.value)


def test_all_problems_come_in_one_message_of_bounded_length(tmp_path):
    write_table(tmp_path, [(f"i{n}", f"bad{n}", "") for n in range(30)])
    with pytest.raises(DataError, match=r"(?s)30 problem.*bad0.*and 10 more"):
        build(config(table="table.csv", class_names=["x", "y"])).index(tmp_path)


def test_a_table_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a.parquet: cannot be read as a table"):
        build(config(table="a.parquet")).index(tmp_path)
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"is .csv or .parquet, this is .xlsx"):
        build(config(table="a.xlsx")).index(tmp_path)


def test_a_damaged_column_of_images_is_named(tmp_path):
    images = pl.DataFrame({"id": list(range(50)), "image": [content(n) for n in range(50)], "label": ["x"] * 50})
    images.write_parquet(tmp_path / "t.parquet", compression="zstd")
    whole = bytearray((tmp_path / "t.parquet").read_bytes())
    whole[4:2000] = bytes(1996)
    (tmp_path / "t.parquet").write_bytes(bytes(whole))
    writer = ArtifactWriter(tmp_path / "out", "shard", settings_digest="", inputs={})
    with pytest.raises(DataError, match=r"t.parquet: .*cannot be read"):
        build(config(table="t.parquet")).prepare(tmp_path, 0, 1, writer)


def test_nothing_left_to_train_on_says_why(tmp_path):
    write_table(tmp_path, [("a", "x", ""), ("b", "x", "")])
    for number in range(2):
        (tmp_path / f"images/{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match="no training image is left of 2: 2 empty_file"):
        prepared(config(table="table.csv", split={"test": 0}), tmp_path, tmp_path / "out")


def test_shards_of_different_inputs_are_not_joined(tmp_path):
    write_table(tmp_path, ROWS)
    source, shards = build(config(table="table.csv")), []
    for shard in range(2):
        writer = ArtifactWriter(tmp_path / f"s{shard}", "shard", settings_digest="", inputs={})
        source.prepare(tmp_path, shard, 2, writer)
        shards.append(writer.finish())
        write_table(tmp_path, [*ROWS, ("d", "dog", "train")])
    writer = ArtifactWriter(tmp_path / "data", "data", settings_digest="", inputs={})
    with pytest.raises(DataError, match="the input changed"):
        source.merge(tmp_path, shards, writer)


REVIEWED = [
    ("a", "cat", "train"), ("b", "cat", "train"), ("c", "dog", "train"), ("d", "dog", "train"), ("e", "", "train"),
    ("t", "dog", "test"),
]  # fmt: skip


def decide(root, *rows):
    """`review/decisions.csv` with rows (id, decision, label)."""
    (root / "review").mkdir(exist_ok=True)
    frame = pl.DataFrame(list(rows), schema=dict.fromkeys(("id", "decision", "label"), pl.String), orient="row")
    frame.write_csv(root / "review/decisions.csv")


def reviewed(root, out, num_shards=1, **values):
    stated = {"table": "table.csv", "columns": {"split": "split"}, "decisions": "review/decisions.csv", **values}
    return prepared(config(**stated), root, out, num_shards)


def test_decisions_of_reviewers_are_truth_and_the_account_sums(tmp_path):
    write_table(tmp_path, REVIEWED)
    rows = [("a", "keep", ""), ("b", "relabel", "dog"), ("c", "irrelevant", ""), ("d", "duplicate", ""),
            ("e", "relabel", "cat"), ("t", "relabel", "cat")]  # fmt: skip
    decide(tmp_path, *rows)
    artifact, data = reviewed(tmp_path, tmp_path / "out")
    assert data.samples.select("id", "label", "true_label", "true_kind", "reviewed").rows() == [
        (name, label, label, "clean", True) for name, label in (("a", "cat"), ("b", "dog"), ("e", "cat"), ("t", "cat"))
    ]
    account = artifact.accounts()["images"]
    account.check("images")
    assert account.left_out == {"reviewed_irrelevant": 1, "reviewed_duplicate": 1}
    assert rejected(artifact)["c"] == ["left_out", "reviewed_irrelevant", "decided in review/decisions.csv"]
    assert "table:decisions" in artifact_inputs(tmp_path)


def artifact_inputs(folder):
    return json.loads((folder / "out/shard0/manifest.json").read_text())["inputs"]


def test_what_nobody_decided_stays_as_it_was(tmp_path):
    write_table(tmp_path, REVIEWED)
    decide(tmp_path, ("a", "relabel", "dog"))
    _, data = reviewed(tmp_path, tmp_path / "out")
    _, plain = prepared(config(table="table.csv", columns={"split": "split"}), tmp_path, tmp_path / "plain")
    assert data.samples["reviewed"].to_list() == [True] + [False] * 5
    others = data.samples.filter(pl.col("id") != "a").drop("reviewed")
    assert others.equals(plain.samples.filter(pl.col("id") != "a"))
    assert "reviewed" not in plain.samples.columns


def test_decisions_do_not_change_which_images_a_limit_takes(tmp_path):
    write_table(tmp_path, [(f"i{n:02}", "cat" if n % 3 else "dog", "train") for n in range(30)])
    taken = {}
    for name, rows in (("before", []), ("after", [(f"i{n:02}", "relabel", "dog") for n in range(30)])):
        decide(tmp_path, *rows)
        _, data = reviewed(tmp_path, tmp_path / name, limit=12)
        taken[name] = data.samples["id"].to_list()
        assert name == "before" or set(data.samples["label"]) == {"dog"}
    assert taken["before"] == taken["after"]


def test_any_number_of_shards_takes_the_same_decisions(tmp_path):
    write_table(tmp_path, REVIEWED)
    decide(tmp_path, ("a", "irrelevant", ""), ("b", "relabel", "dog"))
    assert len({reviewed(tmp_path, tmp_path / str(n), n)[0].digest for n in (1, 4)}) == 1


def test_an_irrelevant_image_does_not_come_back_by_its_copy(tmp_path):
    write_table(tmp_path, [("b", "cat", "train"), ("c", "dog", "train")])
    decide(tmp_path, ("b", "irrelevant", ""))
    (tmp_path / "images/2.png").write_bytes(content(0))  # found again later, under a smaller id
    with (tmp_path / "table.csv").open("a") as table:
        table.write("a,images/2.png,cat,train\n")
    artifact, data = reviewed(tmp_path, tmp_path / "out")
    assert data.samples["id"].to_list() == ["c"]
    assert {item: reason for item, (_, reason, _) in rejected(artifact).items()} == {
        "a": "duplicate", "b": "reviewed_irrelevant",
    }  # fmt: skip


def test_of_equal_images_the_reviewed_one_stays_but_not_one_that_is_a_duplicate(tmp_path):
    write_table(tmp_path, [("a", "cat", "train"), ("b", "cat", "train"), ("c", "cat", "train")])
    for number in (1, 2):
        (tmp_path / f"images/{number}.png").write_bytes(content(0))
    for rows, stays in (
        ([("b", "relabel", "cat")], ["b"]), ([("a", "duplicate", "")], ["b"]), ([("c", "duplicate", "")], ["a"]),
    ):  # fmt: skip
        decide(tmp_path, *rows)
        _, data = reviewed(tmp_path, tmp_path / "-".join(rows[0]))
        assert data.samples["id"].to_list() == stays


def test_wrong_decisions_are_refused_with_file_and_row(tmp_path):
    write_table(tmp_path, REVIEWED)
    decide(tmp_path, ("a", "keep", ""), ("zz", "irrelevant", ""), ("b", "relabel", "cow"), ("a", "duplicate", ""))
    with pytest.raises(DataError) as caught:
        reviewed(tmp_path, tmp_path / "out")
    for message in (
        "3 problem(s)",
        "review/decisions.csv row 2: id 'zz' is none of the images",
        "review/decisions.csv row 3: label 'cow' is in no class list",
        "review/decisions.csv row 4: id 'a' is decided in row 1 already",
    ):
        assert message in str(caught.value)
    with pytest.raises(DataError, match="leaves the data root"):
        reviewed(tmp_path, tmp_path / "out", decisions="../decisions.csv")


def test_decisions_are_an_input_that_the_workflow_watches(tmp_path):
    source = build(config(table="table.csv", decisions="review/decisions.csv"))
    assert source.inputs(tmp_path) == [tmp_path / "table.csv", tmp_path / "review/decisions.csv"]


def test_the_address_of_an_image_is_kept_where_it_is_known(tmp_path):
    write_table(tmp_path, ROWS)
    table = pl.read_csv(tmp_path / "table.csv").with_columns(
        page=pl.Series(["https://e.org/1", None, "https://e.org/3"])
    )
    table.write_csv(tmp_path / "table.csv")
    _, data = prepared(config(table="table.csv", columns={"split": "split", "url": "page"}), tmp_path, tmp_path / "out")
    assert dict(data.samples.select("id", "url").iter_rows()) == {
        "a": "https://e.org/1",
        "b": None,
        "c": "https://e.org/3",
    }


def test_the_address_comes_from_the_json_of_a_tar_too(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        add(tar, "a.png", content(0))
        add(tar, "a.json", json.dumps({"label": "cat", "url": "https://e.org/a"}).encode())
    settings = config(shards=["s.tar"], columns={"url": "url"}, split={"test": 0})
    _, data = prepared(settings, tmp_path, tmp_path / "out")
    assert data.samples.select("id", "url").rows() == [("s/a", "https://e.org/a")]


def test_planted_wrong_labels_keep_the_truth_apart_and_reviewed_labels_are_right(tmp_path):
    write_table(
        tmp_path, [(f"i{n:03}", ("cat", "dog", "owl")[n % 3], "test" if n % 5 == 0 else "train") for n in range(60)]
    )
    decide(tmp_path, ("i001", "relabel", "dog"))
    noise = {"kind": "symmetric", "rate": 1.0}
    _, data = reviewed(tmp_path, tmp_path / "out", noise=noise)
    given = {f"i{n:03}": ("cat", "dog", "owl")[n % 3] for n in range(60)}
    for row in data.samples.to_dicts():
        if row["split"] == "test":
            assert (row["label"], row["true_label"]) == (given[row["id"]], None)
        elif row["id"] == "i001":
            assert (row["label"], row["true_kind"]) == ("dog", "clean")
        else:
            assert row["true_label"] == given[row["id"]] != row["label"]
            assert row["true_kind"] == "id_noise"


def test_irrelevant_images_are_mixed_in_at_a_share_of_every_class(tmp_path):
    def table(name, numbers, **columns):
        images = [content(n) for n in numbers]
        pl.DataFrame({"id": list(range(len(images))), "image": images, **columns}).write_parquet(tmp_path / name)

    table("train.parquet", range(30), label=["cat"] * 12 + ["dog"] * 18)
    table("other.parquet", range(100, 140))
    mix = {"table": "other.parquet", "share": 0.1, "shares": {"cat": 0.5}}
    settings = {"table": "train.parquet", "split": {"test": 0}}
    _, data = prepared(config(**settings, mix=mix), tmp_path, tmp_path / "out")
    mixed = data.samples.filter(origin="mix")
    assert dict(mixed.group_by("label").len().iter_rows()) == {"cat": 12, "dog": 2}  # 12 / 24 and 2 / 20
    assert set(mixed["true_label"]) == {OOD}
    with pytest.raises(DataError, match=r"mix.shares names 'cow', which is no class"):
        build(config(**settings, mix={**mix, "shares": {"cow": 0.5}})).index(tmp_path)
    _, none = prepared(config(**settings, mix={"table": "other.parquet", "share": 0.0}), tmp_path, tmp_path / "none")
    assert len(none.samples) == 30  # the lower end of a sweep
    for wrong in ({"share": -0.1}, {"share": 0.1, "shares": {"cat": 1.0}}):
        with pytest.raises(SettingsError, match="share"):
            config(**settings, mix={"table": "other.parquet", **wrong})


@pytest.mark.parametrize("values", [{}, {"table": "a.csv", "folder": "b"}, {"table": "a.csv", "shards": ["c.tar"]}])
def test_exactly_one_input(values):
    with pytest.raises(SettingsError, match="exactly one of folder, table and shards"):
        config(**values)


def test_new_data_needs_no_labels_and_keeps_everything_readable(tmp_path):
    write_table(tmp_path, [(f"i{n}", "x", "test") for n in range(4)])
    (tmp_path / "images/3.png").write_bytes(content(0))
    pl.read_csv(tmp_path / "table.csv").select("id", "path").write_csv(tmp_path / "new.csv")
    trained = config(**{**CRAWL, "size": 24, "class_names": ["x", "y"]})
    artifact, data = prepared(for_new_data(trained, "new.csv"), tmp_path, tmp_path / "out")
    assert data.samples.select("id", "split", "label").rows() == [(f"i{n}", "train", None) for n in range(4)]
    assert data.read(0).shape == (24, 24, 3)
    assert artifact.accounts()["images"].left_out == {}


def test_a_draft_is_a_recipe_for_the_columns_that_are_there(tmp_path):
    from appssl.recipe import Recipe

    pl.DataFrame({"file": ["a.jpg"], "query": ["x"], "image": [b"1"]}).write_parquet(tmp_path / "t.parquet")
    values = draft(tmp_path / "t.parquet")
    validated = config(**{k: v for k, v in values["data"]["source"].items() if k != "name"})
    assert (validated.table, validated.columns.label, validated.columns.id) == ("t.parquet", "query", None)
    assert set(values) <= set(Recipe.model_fields)


@on_real_data
def test_real_photos_in_folders(tmp_path):
    root = DATA
    settings = config(folder="images/flower-photos/originals", size=64)
    artifact, data = prepared(settings, root, tmp_path, 2)
    assert artifact.accounts()["images"].plain() == {"total": 30, "kept": 30, "left_out": {}, "failed": {}}
    assert data.meta.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


@on_real_data
def test_real_noisy_labels_with_irrelevant_images(tmp_path):
    root = DATA
    settings = config(
        table="images/cifar10n/train_00000_29999.parquet",
        columns={"id": "index", "label": "worse_label", "true_label": "clean_label"},
        class_names=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        test_table="images/cifar10n/test_0000_4999.parquet",
        test_columns={"id": "index", "label": None, "true_label": "clean_label"},
        mix={"table": "images/tiny-imagenet-ood/tiny_imagenet_30x100.parquet", "columns": {"id": "file"}, "share": 0.2},
        limit=800,
        test_limit=200,
    )
    _, data = prepared(settings, root, tmp_path, 2)
    kinds = dict(data.samples.filter(split="train").group_by("true_kind").len().iter_rows())
    assert kinds["ood_noise"] == 200
    assert kinds["id_noise"] / 800 == pytest.approx(0.406, abs=0.06)  # the share its README states
