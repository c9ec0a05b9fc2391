import hashlib
from collections import Counter

import numpy as np
import polars as pl
import pytest

from appssl.ops.interactions import item_tokens

TITLES = pl.Series("title", ["The Red, red House", None, "a house of cards (1995)", "¡Été!"])


def literal_bucket(word, buckets):
    """The first 64 bits of BLAKE2b as a little-endian number, modulo the buckets."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return sum(byte * 256**place for place, byte in enumerate(digest)) % buckets


def test_words_are_the_first_different_ones_in_lower_case():
    field = item_tokens.words("title", TITLES, 64, 3)
    assert field.values == [["the", "red", "house"], [], ["a", "house", "of"], ["été"]]
    assert (field.length, field.buckets) == (3, 64)


def test_a_word_has_the_bucket_of_its_hash_and_the_field_a_range_of_its_own():
    kinds = item_tokens.categorical("kind", pl.Series(["a", "b", "a", "b"]))
    field = item_tokens.words("title", TITLES, 1000, 3)
    numbers, about, size = item_tokens.tokens([kinds, field], np.ones(4, dtype=bool))
    assert (about[1]["first"], about[1]["size"], size) == (3, 1000, 1002)
    assert numbers[2, 1:].tolist() == [3 + literal_bucket(word, 1000) for word in ("a", "house", "of")]
    assert numbers[1, 1:].tolist() == [0, 0, 0]


def test_words_that_training_never_saw_have_their_bucket_too():
    field = item_tokens.words("title", TITLES, 64, 3)
    _, about, _ = item_tokens.tokens([field], np.array([True, False, False, False]))
    new = item_tokens.words("title", pl.Series(["cards"]), 64, 3)
    assert item_tokens.encoded([new], about)[0].tolist() == [1 + literal_bucket("cards", 64), 0, 0]


def test_two_words_of_one_item_in_one_bucket_are_one_token():
    field = item_tokens.words("title", pl.Series(["one two three four five"]), 2, 5)
    numbers, _, _ = item_tokens.tokens([field], np.ones(1, dtype=bool))
    assert sorted(numbers[0].tolist()) == [0, 0, 0, 1, 2]


def test_collisions_equal_counting_pairs():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 60, 6)) for _ in range(40)]
    field = item_tokens.words("text", pl.Series(texts), 64, 6)
    known = rng.random(40) < 0.8
    found = item_tokens.collisions(field, known)
    counts = Counter(word for values, k in zip(field.values, known, strict=True) if k for word in values)
    sharing = [
        word
        for word in counts
        if any(other != word and literal_bucket(other, 64) == literal_bucket(word, 64) for other in counts)
    ]
    assert (found["words"], found["words_sharing"]) == (len(counts), len(sharing))
    assert found["used_buckets"] == len({literal_bucket(word, 64) for word in counts})
    share = sum(counts[word] for word in sharing) / sum(counts.values())
    assert found["share_of_occurrences"] == pytest.approx(share)


def test_the_share_of_words_that_collide_is_as_expected_of_a_good_hash():
    many = item_tokens.words("text", pl.Series([f"word{n}" for n in range(3000)]), 4096, 1)
    found = item_tokens.collisions(many, np.ones(3000, dtype=bool))
    expected = 1 - (1 - 1 / 4096) ** 2999
    assert found["expected_share_of_words"] == pytest.approx(expected)
    assert found["words_sharing"] / 3000 == pytest.approx(expected, abs=0.03)  # standard error below 0.01


def test_without_words_nothing_collides():
    field = item_tokens.words("text", pl.Series(["", None], dtype=pl.String), 8, 2)
    found = item_tokens.collisions(field, np.ones(2, dtype=bool))
    assert (found["words"], found["words_sharing"], found["share_of_occurrences"]) == (0, 0, 0.0)
