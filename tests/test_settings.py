import pytest
from pydantic import Field

from appssl.errors import SettingsError
from appssl.settings import Settings, digest_of, flatten, parse_yaml, read_yaml, set_dotted, validate


class Inner(Settings):
    temperature: float = Field(0.1, gt=0)


class Outer(Settings):
    inner: Inner = Inner()
    steps: int = Field(ge=1)


def problems(values):
    with pytest.raises(SettingsError) as caught:
        validate(Outer, values, file="my.yaml", owner="objectives/ntxent", prefix="pretrain")
    return str(caught.value)


def test_all_problems_are_in_one_report():
    text = problems({"inner": {"temperature": -1, "temprature": 2}, "stepps": 3})
    assert text.count("my.yaml: ") == 4
    assert "pretrain.inner.temprature is not a setting of objectives/ntxent. Did you mean temperature?" in text
    assert "pretrain.inner.temperature is not valid: Input should be greater than 0 (got -1)" in text
    assert "pretrain.stepps is not a setting of objectives/ntxent. Did you mean steps?" in text
    assert "pretrain.steps is missing" in text


def test_a_number_in_quotes_is_not_a_number():
    assert "steps is not valid" in problems({"steps": "3"})


def test_text_that_yaml_takes_for_something_else_is_to_be_quoted():
    class Named(Settings):
        label: str

    for value, message in ((False, "reads no, yes, on and off as true or false"), (7, "reads digits as a number")):
        with pytest.raises(SettingsError, match=f"{message}: put the text in quotes"):
            validate(Named, {"label": value}, file="my.yaml", owner="recipe")


def test_true_is_not_a_number():
    assert "steps is not valid" in problems({"steps": True})


def test_scientific_notation_without_a_dot_is_a_number():
    assert parse_yaml("lr: 1e-3\nn: 5e4", "x") == {"lr": 0.001, "n": 50000.0}


def test_yaml_with_a_python_tag_is_refused():
    with pytest.raises(SettingsError, match="could not determine a constructor"):
        parse_yaml("a: !!python/object/apply:os.system ['true']", "bad.yaml")


def test_a_key_given_twice_is_refused_with_its_line():
    with pytest.raises(SettingsError, match="line 2, column 1: the key 'a' is given twice"):
        parse_yaml("a: 1\na: 2", "bad.yaml")


def test_a_file_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(SettingsError, match="holds a list"):
        read_yaml(tmp_path / "r.yaml")


def test_flatten_and_set_dotted_are_inverse():
    nested = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}
    rebuilt: dict = {}
    for key, value in flatten(nested).items():
        set_dotted(rebuilt, key, value)
    assert rebuilt == nested


def test_set_dotted_reaches_into_a_method_given_by_its_bare_name():
    values = {"learner": {"objective": "ntxent"}}
    set_dotted(values, "learner.objective.temperature", 0.5)
    assert values == {"learner": {"objective": {"name": "ntxent", "temperature": 0.5}}}


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})
