"""Where the real data lie: the folder that APPSSL_DATA names, which holds wsi/, imu/, images/ and rec/."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("APPSSL_DATA") or "not set")
_needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"REAL DATA NOT TESTED: set APPSSL_DATA to their folder; now it is {DATA}"
)
real_data = [pytest.mark.data, _needs_data]


def on_real_data(test):
    """A test that is skipped, loudly, where there are none."""
    return pytest.mark.data(_needs_data(test))
