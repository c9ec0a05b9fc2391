import pytest

from appssl.errors import DataError
from appssl.ops.interactions.files import file_names, log_files


@pytest.fixture
def root(tmp_path):
    for name in ("log/b.csv", "log/a.parquet", "log/more/c.tsv", "log/_SUCCESS", "log/.a.parquet.crc", "one.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("one.csv", ["one.csv"]),
        ("missing.csv", ["missing.csv"]),
        ("log", ["log/a.parquet", "log/b.csv", "log/more/c.tsv"]),
        ("log/*.csv", ["log/b.csv"]),
        ("log/**/*.?s*", ["log/b.csv", "log/more/c.tsv"]),
        (["one.csv", "log/b.csv", "log"], ["log/a.parquet", "log/b.csv", "log/more/c.tsv", "one.csv"]),
    ],
)
def test_files_folders_patterns_and_lists_each_file_once_by_name(root, given, names):
    assert file_names(root, log_files(root, given)) == names


@pytest.mark.parametrize("given", ["nothing/*.csv", "log/more/*.csv"])
def test_a_pattern_without_a_table_is_named(root, given):
    with pytest.raises(DataError, match=r"holds no table .* Is data.root right"):
        log_files(root, given)


@pytest.mark.parametrize("given", ["../x.csv", "/etc/*.csv", "log/../../*"])
def test_what_leaves_the_root_is_refused(root, given):
    (root.parent / "x.csv").write_text("")
    with pytest.raises(DataError, match="leaves the data root"):
        log_files(root, given)
