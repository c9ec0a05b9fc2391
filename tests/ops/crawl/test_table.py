import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.crawl.journal import Result
from appssl.ops.crawl.table import address_key, images, joined, outcomes, read_addresses


def table(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    return read_addresses(tmp_path / "t.csv")


def journal(**results):
    rows = [{"key": address_key(f"http://h/{name}"), **vars(result)} for name, result in results.items()]
    return pl.DataFrame(rows, infer_schema_length=None)


def test_missing_ids_are_the_digest_of_the_address_and_given_ones_stay(tmp_path):
    found = table(tmp_path, "url,image_id\nhttp://h/a,\nhttp://h/b,mine\n")
    assert found["image_id"].to_list() == [address_key("http://h/a")[:16], "mine"]
    assert table(tmp_path, "url\nhttp://h/a\n")["image_id"].to_list() == [address_key("http://h/a")[:16]]


def test_a_repeat_is_told_apart_by_its_id_only(tmp_path):
    rows = "http://h/a,\nhttp://h/a,x\nhttp://h/b,\nhttp://h/a,\nhttp://h/a,y\n http://h/a ,\n"
    found = table(tmp_path, "url,image_id\n" + rows)
    assert found["same_as"].to_list() == [None, None, None, 1, None, 1]


def test_both_tables_are_in_the_order_of_the_input_and_hold_no_credentials(tmp_path):
    found = table(tmp_path, "url,label\nhttp://h/b,x\nhttp://u:secret@h/c,y\nhttp://h/a,z\nhttp://h/b,x\n")
    kept = {"outcome": "kept", "bytes": 3, "status": 200}
    latest = journal(a=Result(path="images/a.png", **kept), b=Result(path="images/b.png", **kept))
    refused = journal(x=Result("left_out", "credentials_in_address"))
    refused = refused.with_columns(key=pl.lit(address_key("http://u:secret@h/c")))
    whole = joined(found, pl.concat([latest, refused], how="vertical_relaxed"))
    shown = outcomes(whole)
    assert shown["url"].to_list() == ["http://h/b", "http://***@h/c", "http://h/a", "http://h/b"]
    assert shown["outcome"].to_list() == ["kept", "left_out", "kept", "left_out"]
    assert shown["reason"].to_list() == ["", "credentials_in_address", "", "repeated_address"]
    assert shown["bytes"].to_list() == [3, None, 3, None]
    assert images(whole).rows() == [
        (address_key("http://h/b")[:16], "images/b.png", "x", "http://h/b"),
        (address_key("http://h/a")[:16], "images/a.png", "z", "http://h/a"),
    ]


def test_wrong_tables_name_file_and_row(tmp_path):
    with pytest.raises(DataError, match=r"t.csv row 3: image_id 'x' is there already"):
        table(tmp_path, "url,image_id\na,x\nb,y\nc,x\n")
    with pytest.raises(DataError, match="has no column 'url'"):
        table(tmp_path, "address\na\n")
    with pytest.raises(DataError, match=r"row 1: split 'dev'"):
        table(tmp_path, "url,split\na,dev\n")
