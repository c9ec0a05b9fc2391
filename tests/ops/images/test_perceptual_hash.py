import cv2
import numpy as np
import pytest

from appssl.ops.images.perceptual_hash import near_pairs, perceptual_hash


def picture(seed=0, width=160, height=120):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def bits(one, other):
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_a_hash_equals_a_literal_cosine_transform():
    image = picture()
    grey = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA).astype(float)
    place = np.arange(32)
    waves = np.cos((2 * place[None] + 1) * np.arange(1, 9)[:, None] * np.pi / 64)
    coefficients = waves @ grey @ waves.T
    above = (coefficients > np.median(coefficients)).ravel()
    assert perceptual_hash(image) == sum(1 << int(k) for k in np.flatnonzero(above))
    assert above.sum() == 32


@pytest.mark.parametrize(
    "change",
    [
        lambda x: cv2.resize(x, (80, 60), interpolation=cv2.INTER_AREA),
        lambda x: cv2.imdecode(cv2.imencode(".jpg", x, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR),
        lambda x: np.clip(x * 0.7 + 40, 0, 255).astype(np.uint8),
        lambda x: np.repeat(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2),
    ],
    ids=["half the size", "compressed", "paler", "grey"],
)
def test_a_changed_copy_is_near_and_another_picture_is_not(change):
    assert max(bits(picture(seed), change(picture(seed))) for seed in range(5)) <= 4
    assert min(bits(picture(seed), picture(seed + 100)) for seed in range(20)) >= 16


@pytest.mark.parametrize("shade", [np.zeros((32, 1)), np.linspace(0, 200, 32)[:, None]], ids=["flat", "gradual"])
def test_an_image_that_shows_nothing_has_no_hash(shade):
    assert perceptual_hash(np.broadcast_to(shade[:, :, None], (32, 32, 3)).astype(np.uint8)) is None


@pytest.mark.parametrize("distance", [0, 1, 4, 7])
def test_pairs_are_those_that_every_pair_compared_gives(distance):
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 200, dtype=np.uint64)
    for copy in range(200):  # up to eight bits turned
        turned = sum(1 << int(k) for k in rng.choice(64, rng.integers(1, 9), replace=False))
        hashes = np.append(hashes, hashes[copy] ^ np.uint64(turned))
    hashes = rng.permutation(np.unique(hashes))
    difference = np.bitwise_count(hashes[:, None] ^ hashes[None])
    i, j = np.nonzero(np.triu(difference <= distance, 1))
    found = near_pairs(hashes, distance=distance)
    assert np.array_equal(found[0], i)
    assert np.array_equal(found[1], j)
    assert len(i) >= 10 or distance == 0


def test_no_hashes_and_one_hash_have_no_pairs():
    for hashes in (np.zeros(0, np.uint64), np.array([7], np.uint64)):
        assert [len(part) for part in near_pairs(hashes, distance=4)] == [0, 0]
