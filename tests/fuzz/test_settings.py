"""Recipes, sweeps and stages' settings: any bytes are read or refused with an error of appssl, and soon."""

import time
from itertools import pairwise

import pytest

from appssl.errors import SettingsError
from appssl.plan import read_config
from appssl.recipe import read
from appssl.settings import MAX_BYTES, nearest, parse_yaml, read_yaml
from appssl.sweep import read_sweep
from tests.fuzz.damage import fuzz, survives
from tests.workflows.conftest import CHAIN

SWEEP = b"description: two values\ngrid:\n  pretrain.fit.lr: [1e-3, 1e-2]\n  pretrain.backbone: [cnn1d, {name: timm}]\n"
STAGE = b"stage: report\ndomain: wearable\nrecipe: chain\nseed: 0\nsettings: {max_quarantine_rows: 50}\n"


@fuzz(CHAIN.encode(), examples=60)
def test_recipes(content):
    survives(lambda folder, name: read(str(folder / name), overrides={}, quick=False), content, "r.yaml")


@fuzz(CHAIN.encode(), SWEEP, STAGE)
def test_yaml(content):
    found = survives(lambda folder, name: read_yaml(folder / name), content, "r.yaml")
    assert found is None or all(isinstance(key, str) for key in found)


@fuzz(SWEEP)
def test_sweeps(content):
    survives(lambda folder, name: read_sweep(folder / name), content, "s.yaml")


@fuzz(STAGE)
def test_settings_of_a_stage(content):
    survives(lambda folder, name: read_config(folder / name, "report"), content, "config.yaml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("settings: {max_quarantine_rows: 50}", "settings: text", "settings must be a group of settings, is 'text'"),
        ("seed: 0", "seed: x", "seed must be a whole number, is 'x'"),
        ("seed: 0", "", "seed must be a whole number, is None"),
        ("recipe: chain", "recipe: [a]", r"recipe must be text, is \['a'\]"),
    ],
)
def test_what_a_stage_needs_to_know_is_named_where_it_is_wrong(tmp_path, old, new, said):
    (tmp_path / "config.yaml").write_text(STAGE.decode().replace(old, new))
    with pytest.raises(SettingsError, match=said):
        read_config(tmp_path / "config.yaml", "report")


def bomb(how: str) -> str:
    names = "abcdefgh"
    lines = ["a: &a {x: 1, y: 2}" if how == "merge" else "a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in pairwise(names):
        many = ", ".join([f"*{before}"] * 9)
        lines.append(f"{name}: &{name} {{<<: [{many}]}}" if how == "merge" else f"{name}: &{name} [{many}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb("alias"), "holds more than 100,000 values"),
        (bomb("merge"), "<< is not read"),
        ("a: &a [*a]", "holds more than 100,000 values"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 100_000, "nested too deeply"),
        ("- " * 100_000, "nested too deeply"),
        ("a: " + "9" * 5000, "is too long a number"),
        ("a: 2001-99-99", "cannot be understood"),
        ("a: !!timestamp x", "cannot be understood"),
        ("a: !!bool x", "cannot be understood"),
        ("a: 1" + ":59" * 20_000, "is too long a number"),
        ("a: !!int x", "cannot be understood"),
    ],
    ids=lambda value: value[:20],
)
def test_what_would_take_all_memory_or_time_is_refused(text, said):
    start = time.process_time()
    with pytest.raises(SettingsError, match=said):
        parse_yaml(text, "r.yaml")
    assert time.process_time() - start < 5


def test_a_large_file_is_not_read_at_all(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"a: 1\n" * (MAX_BYTES // 5 + 1))
    with pytest.raises(SettingsError, match="is larger than 1 MiB"):
        read_yaml(tmp_path / "r.yaml")


def test_the_nearest_name_of_a_very_long_one_takes_no_long_time():
    start = time.process_time()
    assert nearest("ab" * 10**6, ["abab"] * 1000).startswith(" Known")
    assert time.process_time() - start < 2
