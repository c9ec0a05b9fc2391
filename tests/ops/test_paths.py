import pytest

from appssl.errors import DataError
from appssl.ops.paths import inside


def test_a_path_below_the_root_is_resolved(tmp_path):
    assert inside(tmp_path, "a/../b.csv") == tmp_path.resolve() / "b.csv"


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "\0"])
def test_a_path_that_leaves_the_root_is_refused(tmp_path, path):
    with pytest.raises(DataError, match=r"leaves the data root|not a usable path"):
        inside(tmp_path, path)


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leaves the data root"):
        inside(tmp_path / "root", "link/x")
