import json

from appssl.ops.crawl.journal import CrawlJournal, Result


def test_the_last_line_of_an_address_counts(tmp_path):
    with CrawlJournal(tmp_path / "j.jsonl") as journal:
        assert len(journal.latest()) == 0
        journal.add("a", Result("failed", "timeout", passing=True, attempts=3))
        journal.add("b", Result("left_out", "too_large", max_bytes=5))
        journal.add("a", Result("kept", path="images/a.png", bytes=3, sha256="d", status=200))
        rows = {row["key"]: row for row in journal.latest().iter_rows(named=True)}
    assert set(rows) == {"a", "b"}
    assert (rows["a"]["outcome"], rows["a"]["passing"], rows["a"]["bytes"]) == ("kept", False, 3)
    assert (rows["b"]["reason"], rows["b"]["max_bytes"], rows["b"]["status"]) == ("too_large", 5, None)


def test_a_crash_costs_one_line_at_most(tmp_path):
    path = tmp_path / "j.jsonl"
    with CrawlJournal(path) as journal:
        for key in "abc":
            journal.add(key, Result("failed", "http_404"))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with CrawlJournal(path) as journal:
            journal.add("z", Result("kept"))
            found = set(journal.latest()["key"])
        assert found - {"z"} in ({*"abc"[: whole[:cut].count(b"\n")]}, {*"abc"[: whole[: cut + 1].count(b"\n")]}), cut
        assert "z" in found, cut


def test_lines_hold_no_address(tmp_path):
    with CrawlJournal(tmp_path / "j.jsonl") as journal:
        journal.add("k", Result("kept"))
    assert "url" not in json.loads((tmp_path / "j.jsonl").read_text())
