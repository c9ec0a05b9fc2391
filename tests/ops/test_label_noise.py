import hashlib

import polars as pl
import pytest

from appssl.errors import DataError
from appssl.ops.label_noise import LabelNoise, with_wrong_labels

CLASSES = ("cat", "dog", "owl", "pig")


def units(num=4000, **columns):
    made = {
        "id": [f"i{n}" for n in range(num)],
        "split": "train",
        "label": [CLASSES[n % 4] for n in range(num)],
        "true_label": pl.Series([None] * num, dtype=pl.String),
    }
    return pl.DataFrame({**made, **columns})


def wrong_by_class(found):
    rows = found.with_columns(wrong=pl.col("label") != pl.col("true_label"))
    return dict(rows.group_by("true_label").agg(pl.col("wrong").mean()).iter_rows())


def literally(name, label, noise):
    """The rule, written out anew."""

    def uniform(what):
        digest = hashlib.sha256(f"{noise.seed}/{what}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") // 2**11 / 2**53

    rate = noise.rates.get(label, noise.rate)
    if not uniform("wrong") < rate:
        return label
    if noise.kind == "symmetric":
        return [c for c in CLASSES if c != label][int(3 * uniform("into"))]
    if noise.taken_for:
        return noise.taken_for.get(label, label)
    return dict(zip(CLASSES, CLASSES[1:] + CLASSES[:1], strict=True))[label]


@pytest.mark.parametrize(
    "noise",
    [
        LabelNoise(rate=0.4, seed=3),
        LabelNoise(kind="asymmetric", rate=0.3, rates={"cat": 1.0}),
        LabelNoise(kind="asymmetric", rate=0.5, taken_for={"cat": "dog", "dog": "cat"}),
    ],
)
def test_equals_the_rule_for_every_image(noise):
    found = with_wrong_labels(units(200), noise, CLASSES)
    assert found["label"].to_list() == [literally(f"i{n}", CLASSES[n % 4], noise) for n in range(200)]
    assert found["true_label"].to_list() == units(200)["label"].to_list()


def test_symmetric_noise_has_the_stated_rate_and_draws_the_others_evenly():
    found = with_wrong_labels(units(), LabelNoise(rate=0.4), CLASSES)
    assert wrong_by_class(found) == pytest.approx(dict.fromkeys(CLASSES, 0.4), abs=0.05)  # 3 deviations of 1,000 draws
    wrong = found.filter(pl.col("label") != pl.col("true_label"))
    into = dict(wrong.filter(true_label="cat").group_by("label").len().iter_rows())
    assert set(into) == {"dog", "owl", "pig"}
    assert max(into.values()) - min(into.values()) < 50  # of about 133 each


def test_every_class_has_its_own_rate():
    found = with_wrong_labels(units(), LabelNoise(rate=0.1, rates={"dog": 0.7, "pig": 0.0}), CLASSES)
    rates = wrong_by_class(found)
    assert rates == pytest.approx({"cat": 0.1, "dog": 0.7, "owl": 0.1, "pig": 0.0}, abs=0.05)
    assert rates["pig"] == 0


def test_asymmetric_noise_goes_one_way():
    taken_for = {"cat": "dog", "owl": "pig"}
    found = with_wrong_labels(units(), LabelNoise(kind="asymmetric", rate=0.3, taken_for=taken_for), CLASSES)
    wrong = found.filter(pl.col("label") != pl.col("true_label"))
    assert set(wrong.select("true_label", "label").iter_rows()) == set(taken_for.items())
    assert wrong_by_class(found) == pytest.approx({"cat": 0.3, "dog": 0, "owl": 0.3, "pig": 0}, abs=0.05)


def test_a_higher_rate_only_adds_and_order_and_company_do_not_matter():
    few, many = (with_wrong_labels(units(500), LabelNoise(rate=r), CLASSES) for r in (0.2, 0.5))
    changed = few["label"] != few["true_label"]
    assert (few.filter(changed)["label"] == many.filter(changed)["label"]).all()
    part = units(500)[::-3]
    alone = with_wrong_labels(part, LabelNoise(rate=0.2), CLASSES)
    assert alone["label"].to_list() == few[::-3]["label"].to_list()


def test_a_known_truth_stays_and_other_parts_and_unlabelled_rows_are_not_touched():
    split = ["train", "val", "test", "train"] * 10
    label = ["cat", "cat", "cat", None] * 10
    before = units(40, split=split, label=label, true_label=["owl"] * 20 + [None] * 20)
    found = with_wrong_labels(before, LabelNoise(rate=1.0), CLASSES)
    for old, new in zip(before.iter_rows(named=True), found.iter_rows(named=True), strict=True):
        if old["split"] != "train" or old["label"] is None:
            assert old == new
        else:
            assert new["label"] in ("dog", "owl", "pig")
            assert new["true_label"] == (old["true_label"] or "cat")


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (LabelNoise(rates={"cta": 0.5}), "names 'cta', which is no class. Did you mean cat?"),
        (LabelNoise(kind="asymmetric", rate=0.1, taken_for={"cat": "cow"}), "names 'cow'"),
    ],
)
def test_unknown_classes_are_refused(noise, message):
    with pytest.raises(DataError) as caught:
        with_wrong_labels(units(8), noise, CLASSES)
    assert message in str(caught.value)


def test_one_class_cannot_be_wrong():
    with pytest.raises(DataError, match="fewer than two classes"):
        with_wrong_labels(units(8, label="cat"), LabelNoise(rate=0.1), ("cat",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rates": {"cat": 1.5}}, "rates lie in 0..1; see cat"),
        ({"rate": 0.1, "taken_for": {"cat": "dog"}}, "set kind: asymmetric"),
        ({"kind": "asymmetric", "rate": 0.1, "taken_for": {"cat": "cat"}}, "takes a class for itself: cat"),
        ({}, "nothing would be wrong"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LabelNoise(**values)
