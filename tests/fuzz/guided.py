"""Fuzzing that looks for inputs which reach new lines of the readers: libFuzzer, by atheris.

python -m tests.fuzz.guided READER CORPUS [--seconds 60]

READER is one of `READERS`. Ends with code 0, or with another one and the input that is not survived, which is left in
the current folder. `APPSSL_FUZZ_SEED=7` tries others than those of seed 0.
CORPUS is a folder for the inputs that reached something new, from which a later run goes on.
"""

import argparse
import sys
from pathlib import Path

import atheris

_INSTRUMENTED = ["appssl", "yaml"]
_SECONDS, _MEMORY_MB, _LENGTH = 10, 4096, 1 << 16  # of one input

with atheris.instrument_imports(include=_INSTRUMENTED):
    from appssl.artifact import MANIFEST
    from appssl.plan import read_config
    from appssl.recipe import read
    from appssl.sweep import read_sweep
    from tests.fuzz import test_masks_and_shards as shards
    from tests.fuzz import test_results as results
    from tests.fuzz import test_settings as settings
    from tests.fuzz import test_tables as tables
    from tests.fuzz.damage import SEED, parquet, survives
    from tests.workflows.conftest import CHAIN


def recipes(content: bytes) -> None:
    survives(lambda folder, name: read(str(folder / name), overrides={}, quick=False), content, "r.yaml")


def sweeps(content: bytes) -> None:
    survives(lambda folder, name: read_sweep(folder / name), content, "s.yaml")


def stages(content: bytes) -> None:
    survives(lambda folder, name: read_config(folder / name, "report"), content, "config.yaml")


def manifests(content: bytes) -> None:
    survives(results.open_artifact, content, MANIFEST)


def masks(content: bytes) -> None:
    survives(
        lambda folder, name: shards.read_mask(folder / name, shards.SIZE, shards.SHAPE), content, "m.geojson",
        shards.BadMask,
    )  # fmt: skip


def table(what: str, name: str):
    read_table = tables.READERS[what][1]
    return lambda content: survives(read_table, content, name, tables.BadRecording)


READERS = {
    "recipes": (recipes, CHAIN.encode()),
    "sweeps": (sweeps, settings.SWEEP),
    "stages": (stages, settings.STAGE),
    "manifests": (manifests, results.MANIFEST_BYTES),
    "masks": (masks, shards.GEOJSON),
    "shards": (shards.read_shard, shards.SHARD),
    **{
        f"{what} csv": (table(what, "t.csv"), frame.write_csv().encode()) for what, (frame, _) in tables.READERS.items()
    },
    **{f"{what} parquet": (table(what, "t.parquet"), parquet(frame)) for what, (frame, _) in tables.READERS.items()},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    given = parser.parse_args()
    survived, valid = READERS[given.reader]
    given.corpus.mkdir(parents=True, exist_ok=True)
    (given.corpus / "valid").write_bytes(valid)
    with atheris.instrument_imports(include=_INSTRUMENTED):
        survived(valid)  # what is imported when it is needed takes seconds
    limits = [f"-seed={SEED + 1}", f"-timeout={_SECONDS}", f"-rss_limit_mb={_MEMORY_MB}", f"-max_len={_LENGTH}"]
    atheris.Setup([sys.argv[0], f"-max_total_time={given.seconds}", *limits, str(given.corpus)], survived)
    atheris.Fuzz()  # ends the process


if __name__ == "__main__":
    main()
