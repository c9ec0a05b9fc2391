"""Wrong data, domain by domain: exit code 3 when it cannot be used, and otherwise a reason for every part left out."""

import os
import subprocess

import numpy as np
import polars as pl
import pytest

from appssl.artifact import Artifact
from appssl.remote.mirror import mirror
from tests.ops.images.test_decoding import claiming_png
from tests.ops.slides.test_slide import header_only, write

SLIDES = {"table": "slides.csv", "spacing_um": 1.0, "tile_px": 64, "group_by": "slide", "split": {"test": 0}}
RECORDINGS = {"table": "recordings.csv", "window_seconds": 2.0, "split": {"test": 0}}
EVENTS = {"interactions": "interactions.csv", "items": "items.csv", "categorical": ["category"]}
IMAGES = {"table": "table.csv", "size": 16}


def rewrite(path, change):
    path.write_text(change(path.read_text()))


def change(path, how):
    """A table of samples, changed in place."""
    if path.suffix == ".parquet":
        how(pl.read_parquet(path)).write_parquet(path)
    else:
        how(pl.read_csv(path)).write_csv(path)


# Tables of any domain


@pytest.mark.parametrize(
    ("domain", "source", "table"),
    [
        ("wsi", SLIDES, "slides.csv"),
        ("wearable", RECORDINGS, "recordings.csv"),
        ("webnoisy", IMAGES, "table.csv"),
        ("recsys", EVENTS, "interactions.csv"),
        ("recsys", EVENTS, "items.csv"),
    ],
)
def test_an_empty_table_a_lost_column_and_a_lost_table_are_named(own, prepare, domain, source, table):
    path = own(domain) / table
    whole = path.read_text()
    head, _, rest = whole.partition("\n")
    names = head.split(",")
    path.write_text(f"{head}\n")
    said = prepare(path.parent, domain, **source)
    assert said.code == 3, said
    assert table in said.err
    path.write_text(",".join(["zzz", *names[1:]]) + "\n" + rest)
    said = prepare(path.parent, domain, **source)
    assert said.code == 3, said
    assert table in said.err
    assert names[0] in said.err
    path.unlink()
    said = prepare(path.parent, domain, **source)
    assert said.code == 3, said
    assert table in said.err


@pytest.mark.parametrize(
    ("domain", "source", "table"),
    [
        ("wsi", SLIDES, "slides.csv"),
        ("wearable", RECORDINGS, "recordings.csv"),
        ("webnoisy", IMAGES, "table.csv"),
        ("recsys", EVENTS, "items.csv"),
    ],
)
def test_an_id_that_is_there_twice_is_named(own, prepare, domain, source, table):
    path = own(domain) / table
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1]]) + "\n")
    said = prepare(path.parent, domain, **source)
    assert said.code == 3, said
    assert table in said.err
    assert lines[1].split(",")[0] in said.err


# Whole-slide images


def test_slides_that_cannot_be_used_are_explained_and_stop_no_other(own, prepare, explained):
    root = own("wsi")
    folder = root / "slides"
    write(folder / "no_spacing.tif", mpp=None)
    write(folder / "blank.tif", np.full((512, 512, 3), 245, np.uint8))
    header_only(folder / "huge.tif", 100_000 // 16 * 16)
    (folder / "text.svs").write_text("no slide")
    names = {"no_spacing": "tif", "blank": "tif", "huge": "tif", "text": "svs"}
    rows = [{"slide_id": name, "path": f"slides/{name}.{kind}"} for name, kind in names.items()]
    table = pl.read_csv(root / "slides.csv").select("slide_id", "path").filter(pl.col("slide_id") == "slide00")
    pl.concat([table, pl.DataFrame(rows)]).write_csv(root / "slides.csv")
    said = prepare(root, "wsi", **SLIDES)
    assert said.code == 3
    assert "3 of 5 slides failed; budget 0.005 allows 1" in said.err
    assert "no_spacing" in said.err
    assert "column mpp" in said.err
    assert prepare(root, "wsi", budget=0.6, **SLIDES).code == 0
    assert {(item, outcome, reason) for item, outcome, reason in explained() if item in names} == {
        ("no_spacing", "failed", "no_spacing"),
        ("blank", "left_out", "zero_tissue"),
        ("huge", "failed", "implausible_size"),
        ("text", "failed", "not_a_slide"),
    }


# Wearables


def test_recordings_with_faults_are_explained_and_stop_no_other(own, prepare, explained):
    root = own("wearable")
    table = pl.read_csv(root / "recordings.csv")
    backwards, gap, empty = (root / path for path in table["path"][:3])
    change(backwards, lambda frame: frame.reverse())
    change(gap, lambda frame: frame.filter(~pl.int_range(pl.len()).is_between(200, 400)))
    change(empty, lambda frame: frame.with_columns(pl.when(pl.int_range(pl.len()) != 50).then(pl.last())))
    assert prepare(root, "wearable", **RECORDINGS).code == 0  # one failed recording is within the budget
    found = explained()
    assert (table["recording_id"][0], "failed", "time_goes_back") in found
    assert (table["recording_id"][2], "left_out", "nan") in found
    assert {reason for _, outcome, reason in found if outcome == "left_out"} >= {"missing_device", "gap", "nan"}


def test_one_subject_only_cannot_be_divided(own, prepare):
    root = own("wearable")
    table = pl.read_csv(root / "recordings.csv")
    table.filter(pl.col("subject_id") == table["subject_id"][0]).write_csv(root / "recordings.csv")
    said = prepare(root, "wearable", table="recordings.csv")
    assert said.code == 3
    assert "cannot be divided" in said.err
    assert "split" in said.err


def test_a_label_in_no_class_list_is_named_with_its_row(own, prepare):
    root = own("wearable")
    classes = pl.read_csv(root / "labels.csv")["activity"].unique().sort().to_list()
    said = prepare(root, "wearable", **RECORDINGS, labels="labels.csv", classes=classes[1:])
    assert said.code == 3
    assert f"label {classes[0]!r} is not in classes" in said.err
    assert "labels.csv row(s)" in said.err


# Crawled images


def test_images_that_cannot_be_used_are_explained_and_stop_no_other(own, prepare, explained):
    root = own("webnoisy")
    table = pl.read_csv(root / "table.csv")
    assert prepare(root, "webnoisy", budget=0.5, **IMAGES).code == 0
    already = {item for item, _, _ in explained()}
    ids = [name for name in table["id"] if name not in already][:2]
    paths = dict(table.select("id", "path").iter_rows())
    (root / paths[ids[0]]).write_bytes((root / paths[ids[0]]).read_bytes()[:-30])
    (root / paths[ids[1]]).write_bytes(claiming_png(100_000, 100_000))
    said = prepare(root, "webnoisy", budget=0.0, **IMAGES)
    assert said.code == 3
    assert "failed; budget 0 allows 1. Repair them or raise data.budget" in said.err
    assert prepare(root, "webnoisy", budget=0.5, **IMAGES).code == 0
    found = explained()
    assert {(ids[0], "failed", "truncated"), (ids[1], "failed", "too_many_pixels")} <= found


def test_a_path_in_a_table_that_leaves_the_root_is_refused(own, prepare):
    root = own("webnoisy")
    table = pl.read_csv(root / "table.csv")
    outside = pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("../../etc/passwd")).otherwise("path")
    table.with_columns(path=outside).write_csv(root / "table.csv")
    said = prepare(root, "webnoisy", budget=0.5, **IMAGES)
    assert said.code == 3
    assert "../../etc/passwd" in said.err
    assert "leaves the data root" in said.err


def test_a_label_outside_the_class_names_is_named(own, prepare):
    root = own("webnoisy")
    labels = pl.read_csv(root / "table.csv")["label"].drop_nulls().unique().sort().to_list()
    said = prepare(root, "webnoisy", budget=0.5, **IMAGES, class_names=labels[1:])
    assert said.code == 3
    assert f"label '{labels[0]}' is in no class list" in said.err


# Recommendation


def test_events_of_unknown_items_are_left_out_with_their_number(own, prepare, tmp_path):
    root = own("recsys")
    items = pl.read_csv(root / "items.csv")
    items.head(len(items) // 2).write_csv(root / "items.csv")
    assert prepare(root, "recsys", budget=0.5, **EVENTS).code == 0
    account = Artifact.open(tmp_path / "data", "data").accounts()["events"]
    account.check("events")
    assert account.left_out["item not in the item table"] > 100


def test_a_time_far_in_the_future_is_a_fault_of_its_row(own, prepare, explained):
    root = own("recsys")
    lines = (root / "interactions.csv").read_text().splitlines()
    cells = lines[5].split(",")
    lines[5] = ",".join([*cells[:2], "99999999999999", *cells[3:]])
    (root / "interactions.csv").write_text("\n".join(lines) + "\n")
    assert prepare(root, "recsys", budget=0.5, **EVENTS).code == 0
    assert ("5", "failed", "timestamp in another unit") in explained()


def test_a_single_user_cannot_be_ranked(own, prepare):
    root = own("recsys")
    rows = "".join(f"u1,i{n:05d},{1_600_000_000 + n}\n" for n in range(60))
    (root / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows)
    said = prepare(root, "recsys", **EVENTS)
    assert said.code == 3
    assert "a single user" in said.err


# Between the stages


def test_an_input_that_changes_between_shards_and_merge_is_refused(own, prepare, cli, tmp_path):
    root = own("recsys")
    assert prepare(root, "recsys", budget=0.5, shards=2, **EVENTS).code == 0
    (tmp_path / "data" / "manifest.json").unlink()
    rewrite(root / "items.csv", lambda text: text + "i99999,late,c1,t1,2.0\n")
    said = cli("prepare", "--config", tmp_path / "config.yaml", "--merge", "--out", tmp_path / "data")
    assert said.code == 3
    assert "items.csv: changed since the shards were prepared" in said.err


def test_a_damaged_file_of_a_result_is_found(own, prepare, cli, tmp_path):
    assert prepare(own("recsys"), "recsys", budget=0.5, **EVENTS).code == 0
    for name in ("samples.parquet", "manifest.json"):
        path = tmp_path / "data" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        said = cli("verify", tmp_path / "data")
        assert said.code == 3
        assert name in said.err + said.out
        path.write_bytes(whole)
    assert cli("verify", tmp_path / "data").code == 0


def test_a_manifest_of_the_users_own_in_a_copy_of_remote_data_is_no_damaged_result(own, prepare, cli, tmp_path):
    assert prepare(own("recsys"), "recsys", budget=0.5, **EVENTS).code == 0
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "manifest.json").write_text('{"theirs": 1}')
    mirror(f"file://{tmp_path}/store", tmp_path / "data" / "remote" / "copy")
    assert (tmp_path / "data" / "remote" / "copy" / "files" / "manifest.json").exists()
    assert cli("verify", tmp_path / "data").code == 0
    (tmp_path / "data" / "manifest.json").write_text('{"theirs": 1}')
    assert cli("verify", tmp_path / "data").code == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="FULL DISK NOT TESTED: needs root to mount a small tmpfs")
def test_a_full_disk_is_told_and_the_same_command_succeeds_after_freeing_room(own, prepare, cli, tmp_path):
    root, small = own("recsys"), tmp_path / "data"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], check=False).returncode != 0:
        pytest.skip("FULL DISK NOT TESTED: this container may not mount a tmpfs")
    try:
        (small / "ballast").write_bytes(bytes(290_000))
        said = prepare(root, "recsys", budget=0.5, **EVENTS)
        assert said.code == 1, said
        assert "No space left" in said.err
        assert not (small / "manifest.json").exists()
        (small / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=30m", small], check=True)
        command = ("prepare", "--config", tmp_path / "config.yaml", "--out", small)
        assert cli(*command).code == 0
        assert cli("verify", small).code == 0
    finally:
        subprocess.run(["umount", small], check=True)
