"""Features of items as tokens: every field has its own range of numbers, 0 is missing.

Words of texts are hashed into the range of their field (Weinberger et al., Feature hashing for large scale multitask
learning, ICML 2009, without the sign, which sums of tokens need and embeddings do not).
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

_LONGEST_MULTI = 32  # values of one item in a multi-valued field that are kept, in order
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class FieldValues:
    """A field as lists of values per item; `borders` of the bins of a numeric field; `buckets` of a hashed one."""

    name: str
    values: list[list[str]]
    length: int
    borders: tuple[float, ...] = ()
    buckets: int = 0


def multi(name: str, column: pl.Series, separator: str) -> FieldValues:
    values = [_split(text, separator) for text in column.cast(pl.String).to_list()]
    return FieldValues(name, values, max(1, *(len(v) for v in values)) if values else 1)


def _split(text: str | None, separator: str) -> list[str]:
    parts = [part.strip() for part in (text or "").split(separator)]
    return list(dict.fromkeys(part for part in parts if part))[:_LONGEST_MULTI]


def categorical(name: str, column: pl.Series) -> FieldValues:
    return FieldValues(name, [[text] if text else [] for text in column.cast(pl.String).to_list()], 1)


def words(name: str, column: pl.Series, buckets: int, most: int) -> FieldValues:
    """The first `most` different words of a text, in lower case, to be hashed into `buckets`."""
    texts = column.cast(pl.String).fill_null("").to_list()
    values = [list(dict.fromkeys(_WORD.findall(text.lower())))[:most] for text in texts]
    return FieldValues(name, values, most, buckets=buckets)


def bucket(word: str, buckets: int) -> int:
    """Number of a word's bucket, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little") % buckets


def collisions(field: FieldValues, known: np.ndarray) -> dict[str, Any]:
    """What hashing loses of the words of the `known` items (N,) bool: words, used buckets, words that share theirs with
    another word, the share of all occurrences that are of such words, and the expected share of words.

    Of w words in m buckets a word is expected to share its bucket with probability 1 - (1 - 1/m)^(w - 1).
    """
    counts = Counter(word for values, k in zip(field.values, known, strict=True) if k for word in values)
    place = {word: bucket(word, field.buckets) for word in counts}
    in_bucket = Counter(place.values())
    sharing = [word for word in counts if in_bucket[place[word]] > 1]
    total = sum(counts.values())
    return {
        "field": field.name,
        "buckets": field.buckets,
        "words": len(counts),
        "used_buckets": len(in_bucket),
        "words_sharing": len(sharing),
        "share_of_occurrences": sum(counts[word] for word in sharing) / total if total else 0.0,
        "expected_share_of_words": 1 - (1 - 1 / field.buckets) ** max(0, len(counts) - 1),
    }


def pattern(name: str, column: pl.Series, regex: str) -> FieldValues:
    """First group (or the whole match) of a regular expression in a text column."""
    compiled = re.compile(regex)
    values = []
    for text in column.cast(pl.String).to_list():
        found = compiled.search(text or "")
        values.append([found.group(1) if compiled.groups else found.group(0)] if found else [])
    return FieldValues(name, values, 1)


def borders_of(column: pl.Series, known: np.ndarray, bins: int) -> tuple[float, ...]:
    """Borders of quantile bins, from the `known` items (N,) bool only."""
    numbers = column.cast(pl.Float64, strict=False).to_numpy()
    used = numbers[known & np.isfinite(numbers)]
    return tuple(np.unique(np.quantile(used, np.linspace(0, 1, bins + 1)[1:-1])).tolist()) if len(used) else ()


def numeric(name: str, column: pl.Series, borders: tuple[float, ...]) -> FieldValues:
    """Number of the bin that a value lies in."""
    numbers = column.cast(pl.Float64, strict=False).to_numpy()
    bins = np.searchsorted(np.array(borders), numbers, "right")
    values = [[str(n)] if ok else [] for n, ok in zip(bins.tolist(), np.isfinite(numbers).tolist(), strict=True)]
    return FieldValues(name, values, 1, borders)


def tokens(fields: list[FieldValues], known: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]], int]:
    """Token numbers (N, L) int64, the fields (name, start, length, first, size, vocabulary, borders; a hashed one has
    `buckets` and no vocabulary), and the size of the whole vocabulary.

    The vocabulary is that of the `known` items (N,) bool: a value that only later items have is missing (0).
    """
    about: list[dict[str, Any]] = []
    first, start = 1, 0
    for field in fields:
        seen = (value for values, k in zip(field.values, known, strict=True) if k for value in values)
        vocabulary = [] if field.buckets else sorted(set(seen))
        size = field.buckets or len(vocabulary)
        about.append(
            {
                "name": field.name,
                "start": start,
                "length": field.length,
                "first": first,
                "size": size,
                "vocabulary": vocabulary,
                "borders": list(field.borders),
                **({"buckets": field.buckets} if field.buckets else {}),
            }
        )
        first, start = first + size, start + field.length
    return encoded(fields, about), about, first - 1


def encoded(fields: list[FieldValues], about: list[dict[str, Any]]) -> np.ndarray:
    """Token numbers (N, L) int64 by the vocabulary of `about`; 0 for other values, those past the length are cut."""
    columns = []
    for field, known in zip(fields, about, strict=True):
        number = {value: known["first"] + position for position, value in enumerate(known["vocabulary"])}
        if buckets := known.get("buckets"):
            texts = {word for values in field.values for word in values}
            number = {word: known["first"] + bucket(word, buckets) for word in texts}
        block = np.zeros((len(field.values), known["length"]), dtype=np.int64)
        for row, values in enumerate(field.values):
            found = list(dict.fromkeys(number[value] for value in values if value in number))[: known["length"]]
            block[row, : len(found)] = found
        columns.append(block)
    return np.concatenate(columns, axis=1)
