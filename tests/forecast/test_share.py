import pytest

from appssl.forecast.share import Units, count_units, prepare_share


class Numbers:
    """A source of `count` units, divided as sources do; `notes` goes into every shard."""

    def __init__(self, count, notes="same"):
        self.count, self.notes = count, notes

    def prepare(self, root, shard, num_shards, out):
        out.bytes("units.bin", bytes(number % 251 for number in range(self.count)[shard::num_shards]))
        out.bytes("notes.txt", self.notes.encode())
        out.json("shard.json", {"shard": shard, "num_shards": num_shards, "notes": self.notes})


@pytest.mark.parametrize("count", [1, 2, 3, 7, 15, 16])
def test_few_units_are_counted_exactly(tmp_path, count):
    assert count_units(Numbers(count), tmp_path, tmp_path / "s").number == count


@pytest.mark.parametrize("count", [17, 100, 1000, 12345, 65536, 300_000])
def test_many_units_are_counted_within_an_eighth(tmp_path, count):
    assert count <= count_units(Numbers(count), tmp_path, tmp_path / "s").number <= count * 9 / 8 + 1


def test_a_share_says_of_itself_that_it_is_all(tmp_path):
    made = prepare_share(Numbers(10), tmp_path, 3, 4, tmp_path / "s")
    assert made.json("shard.json") == {"shard": 0, "num_shards": 1, "notes": "same"}
    assert made.path("units.bin").read_bytes() == bytes([3, 7])
    assert made.kind == "shard"


@pytest.mark.parametrize(("number", "wanted", "shards", "share"), [(8, 1, 8, 1 / 8), (8, 3, 3, 3 / 8), (8, 99, 1, 1.0)])
def test_a_share_is_that_of_the_first_shard(number, wanted, shards, share):
    units = Units(number, 1.0)
    assert (units.shards(wanted), units.share(wanted)) == (shards, share)
