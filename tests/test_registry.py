import textwrap

import pytest

from appssl import registry
from appssl.errors import SettingsError
from appssl.registry import Method, build, load, names
from appssl.settings import Settings, validate


class Holder(Settings):
    objective: Method("objectives") = "ntxent"
    schedules: tuple[Method("schedules"), ...] = ("cosine",)
    backbone: Method("backbones") | None = None


def hold(**values):
    return validate(Holder, values, file="my.yaml", owner="pretrain")


def wrong(**values):
    with pytest.raises(SettingsError) as caught:
        hold(**values)
    return str(caught.value)


def test_the_directory_is_the_registry():
    found = names("schedules")
    assert {"constant", "cosine"} <= set(found)
    assert found == tuple(sorted(found))
    assert "__init__" not in found
    assert load("schedules", "cosine").Config().name == "cosine"


def test_an_unknown_kind_or_name_is_refused_with_the_nearest():
    with pytest.raises(SettingsError, match=r"objective is not a kind of method\. Did you mean objectives\?"):
        names("objective")
    with pytest.raises(
        SettingsError, match=r"'ntxnt' is not one of the objectives\. Did you mean ntxent\? 'appssl list"
    ):
        load("objectives", "ntxnt")


def test_a_method_is_given_by_name_by_mapping_or_not_at_all():
    assert hold().objective.temperature == 0.1
    assert hold(objective="ntxent").objective.temperature == 0.1
    assert hold(objective={"name": "ntxent", "temperature": 0.5}).objective.temperature == 0.5


def test_settings_without_a_name_are_those_of_the_default_method():
    assert hold(objective={"temperature": 0.5}).objective.temperature == 0.5


def test_complete_settings_round_trip_through_json():
    config = hold(objective={"temperature": 0.5}, schedules=["constant", {"name": "cosine", "final": 0.1}])
    assert hold(**config.plain()) == config
    assert config.plain()["schedules"][1] == {"name": "cosine", "warmup": 0.05, "final": 0.1}


def test_problems_inside_methods_carry_their_whole_path_and_owner():
    text = wrong(objective={"name": "ntxent", "temperature": 0}, schedules=["cosine", {"name": "cosine", "fnal": 1}])
    assert "my.yaml: objective.temperature is not valid: Input should be greater than 0 (got 0)" in text
    assert "my.yaml: schedules.1.fnal is not a setting of schedules/cosine. Did you mean final?" in text
    assert "at least 1 item" not in text  # wrong members are reported themselves


def test_an_unknown_method_is_named_once_with_the_nearest_and_where_to_look():
    assert wrong(objective="ntxnt") == (
        "my.yaml: objective is wrong: 'ntxnt' is not one of the objectives. Did you mean ntxent? "
        "'appssl list objectives' lists them."
    )


@pytest.mark.parametrize(
    ("value", "seen"), [(3, "3"), (["ntxent"], "a list of 1"), ({"name": 1}, "a group of settings"), (None, "None")]
)
def test_other_types_say_what_is_wanted(value, seen):
    assert wrong(objective=value) == (
        "my.yaml: objective must be a name that 'appssl list objectives' lists, "
        f"or `{{name: ..., its settings}}`; is {seen}."
    )


PLUGIN = """
    from typing import Literal
    from pydantic import Field
    from appssl.settings import Settings

    class Config(Settings):
        name: str = "mylab.mine"
        strength: float = Field(1.0, ge=0)

    def build(config, *args):
        return ("built", config.strength, args)
"""
BROKEN = {
    "syntax": ("def (", "does not import: SyntaxError"),
    "raises": ("1 / 0", "does not import: ZeroDivisionError: division by zero"),
    "needs": ("import nothing_of_this_name", "No module named 'nothing_of_this_name'. Install it, or put"),
    "config": ("def build(config): pass", "offers no `class Config(appssl.settings.Settings)`"),
    "plain": ("class Config: pass\ndef build(config): pass", "offers no `class Config(appssl.settings.Settings)`"),
    "unnamed": (
        "from appssl.settings import Settings\nclass Config(Settings): pass\ndef build(config): pass",
        "offers a Config without a field `name: str = 'mylab.unnamed'`",
    ),
    "build": (
        "from appssl.settings import Settings\nclass Config(Settings):\n    name: str = 'x'",
        "offers no function `build`",
    ),
}


@pytest.fixture(scope="module")
def mylab(tmp_path_factory):
    """A package of plug-ins on the path."""
    folder = tmp_path_factory.mktemp("plugins")
    (folder / "mylab").mkdir()
    (folder / "mylab" / "__init__.py").write_text("")
    for name, text in {"mine": textwrap.dedent(PLUGIN), **{k: v[0] for k, v in BROKEN.items()}}.items():
        (folder / "mylab" / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.mark.usefixtures("mylab")
def test_a_plug_in_is_a_method_like_others():
    config = hold(objective={"name": "mylab.mine", "strength": 2.5}).objective
    assert build("objectives", config, 1) == ("built", 2.5, (1,))
    assert "objective.strngth is not a setting of objectives/mylab.mine. Did you mean strength?" in wrong(
        objective={"name": "mylab.mine", "strngth": 1}
    )


@pytest.mark.usefixtures("mylab")
@pytest.mark.parametrize("name", BROKEN)
def test_a_plug_in_that_cannot_be_used_says_why_and_nothing_crashes(name):
    text = wrong(objective=f"mylab.{name}")
    assert text.startswith(f"my.yaml: objective is wrong: the plug-in 'mylab.{name}' of objectives ")
    assert BROKEN[name][1] in text


@pytest.mark.parametrize("name", [".mine", "mylab..mine", "mylab.", "../mine.py", "my-lab.mine"])
def test_a_name_that_is_no_module_is_refused(name):
    assert f"the plug-in {name!r} of objectives is not the name of a module, such as mylab.losses.mine" in wrong(
        objective=name
    )


def test_a_plug_in_that_is_not_there_says_where_python_looks():
    text = wrong(objective="nolab.losses.mine")
    assert "does not import: No module named 'nolab'. Install it, or put the folder it lies in into PYTHONPATH." in text


def test_kinds_are_folders_of_the_package():
    for kind in registry.KINDS:
        names(kind)
