import polars as pl
import pytest

from appssl.ops.bag_assembly import Assembly, Regions, assembled, in_regions


def images(counts, split="train", group="g"):
    """counts: class -> number of images."""
    rows = [(f"{split}{group}{name}{n:04}", split, group, name) for name, count in counts.items() for n in range(count)]
    return pl.DataFrame(rows, schema=["id", "split", "group", "label"], orient="row")


def how(**values):
    return Assembly(**{"positive": ("truck",), "length": 10, "positive_ratio": 0.2, **values})


def in_bags(table):
    return table.filter(pl.col("bag").is_not_null())


def test_bags_have_their_length_and_share_of_positive_images():
    found = in_bags(assembled(images({"truck": 30, "cat": 200, "dog": 50}), how()))
    sizes = found.group_by("bag", "label").agg(pl.len(), (pl.col("true_label") == "positive").sum().alias("own"))
    assert (sizes["len"] == 10).all()
    assert set(sizes.filter(label="positive")["own"]) == {2}
    assert set(sizes.filter(label="negative")["own"]) == {0}


def test_as_many_pairs_as_the_images_allow_and_no_image_twice():
    """A pair takes 2 trucks and 18 others: 30 trucks give 15, 250 others 13."""
    found = in_bags(assembled(images({"truck": 30, "cat": 200, "dog": 50}), how()))
    assert found.filter(label="positive")["bag"].n_unique() == 13
    assert found.filter(label="negative")["bag"].n_unique() == 13
    assert found["id"].is_unique().all()


@pytest.mark.parametrize(
    ("ratio", "train", "test"), [(0.05, 230, 46), (0.1, 236, 47), (0.2, 250, 50), (0.5, 100, 20), (0.7, 71, 14)]
)
def test_the_number_of_bags_of_cifar_mil(ratio, train, test):
    """The published numbers for 100 images a bag; at 5 % its rounding gave one bag less."""
    for scale, expected in ((5000, train), (1000, test)):
        table = images({"truck": scale, "other": 9 * scale})
        found = in_bags(assembled(table, how(length=100, positive_ratio=ratio)))
        assert found.filter(label="positive")["bag"].n_unique() == expected


def test_true_labels_are_of_the_images_and_labels_of_the_bags():
    found = in_bags(assembled(images({"truck": 4, "cat": 40}), how()))
    assert set(found.filter(pl.col("id").str.contains("truck"))["true_label"]) == {"positive"}
    cats = found.filter(pl.col("id").str.contains("cat"))
    assert set(cats["true_label"]) == {"negative"}
    assert set(cats["label"]) == {"negative", "positive"}


def test_parts_and_groups_are_never_mixed():
    parts = [images({"truck": 8, "cat": 80}, split, group) for split in ("train", "test") for group in ("p1", "p2")]
    found = in_bags(assembled(pl.concat(parts), how(within_groups=True)))
    assert (
        (found.group_by("bag").agg(pl.col("split", "group").n_unique()).select("split", "group") == 1).to_numpy().all()
    )
    assert found["bag"].str.split("/").list.first().unique().sort().to_list() == ["test", "train"]


def test_the_order_of_the_table_does_not_matter_and_the_seed_does():
    table = images({"truck": 30, "cat": 250})
    one = assembled(table, how()).sort("id")
    assert one.equals(assembled(table.sample(fraction=1.0, shuffle=True, seed=2), how()).sort("id"))
    assert not one.equals(assembled(table, how(seed=1)).sort("id"))


def test_images_that_are_left_over_or_have_no_class_get_no_bag():
    table = pl.concat([images({"truck": 3, "cat": 20}), images({"?": 2}).with_columns(label=pl.lit(None, pl.String))])
    found = assembled(table, how())
    assert found["bag"].null_count() == 5  # one truck, two cats, two without class
    assert found.filter(pl.col("bag").is_null())["label"].null_count() == 5


def test_the_number_of_bags_can_be_limited():
    found = in_bags(assembled(images({"truck": 30, "cat": 250}), how(most=6)))
    assert found["bag"].n_unique() == 6


def points(rows):
    """rows: slide, kind, label, x, y."""
    return pl.DataFrame(rows, schema=["slide_id", "kind", "label", "x", "y"], orient="row").with_columns(
        true_label=pl.lit(None, pl.String)
    )


def test_regions_are_squares_in_micrometres_and_positive_if_one_point_is():
    """At 0.5 um/px a region of 100 um is 200 px wide; the slide of 0.25 um/px has regions of 400 px."""
    slides = pl.DataFrame({"slide_id": ["a", "b"], "mpp_x": [0.5, 0.25], "mpp_y": [0.5, 0.25]})
    found = in_regions(
        points(
            [
                ("a", "point", "tumour", 10, 10),
                ("a", "point", "stroma", 199, 10),
                ("a", "point", "stroma", 201, 10),
                ("a", "point", None, 10, 10),
                ("a", "grid", None, 10, 10),
                ("b", "point", "stroma", 201, 399),
                ("b", "point", "stroma", 201, 401),
            ]
        ),
        slides,
        Regions(size_um=100, positive=("tumour",)),
    )
    one, beside = "a/row0/column0", "a/row0/column1"
    assert found["region"].to_list() == [one, one, beside, None, None, "b/row0/column0", "b/row1/column0"]
    assert found["label"].to_list() == ["positive", "positive", "negative", None, None, "negative", "negative"]
    assert found["true_label"].to_list() == ["positive", "negative", "negative", None, None, "negative", "negative"]
