"""Stage prepare: raw inputs to prepared data, in shards that are merged. Every input is accounted for."""

from pathlib import Path
from typing import Any

from appssl import registry
from appssl.artifact import Artifact, ArtifactWriter
from appssl.contracts import Account, Quarantined
from appssl.errors import DataError
from appssl.ops.journal import Journal
from appssl.plan import StageConfig
from appssl.stages.frame import Inputs, failure_noted, locked, run_stage


def prepare_shard(config: StageConfig, shard: int, out: Path) -> Artifact:
    """Prepares one shard of the inputs into `out`.

    Raises:
        DataError: if the input tables are wrong.
    """
    settings = config.settings
    if not 0 <= shard < settings.shards:
        raise DataError(f"--shard {shard}: the settings divide the data into {settings.shards}, numbered from 0.")
    source = registry.build("sources", settings.source)
    with locked(out), failure_noted(out, "prepare"):
        writer = ArtifactWriter(out, "shard", settings_digest=config.digest, inputs={})
        source.prepare(Path(settings.root), shard, settings.shards, writer)
        return writer.finish()


def prepare(config: StageConfig, out: Path, shards: list[Path]) -> Artifact:
    """Merges all shards into the data artifact `out`.

    Raises:
        DataError: if nothing is left, or more failed than `budget` allows.
    """
    settings = config.settings
    if len(shards) != settings.shards:
        raise DataError(f"{len(shards)} shard(s) given, the settings divide the data into {settings.shards}.")

    def work(inputs: Inputs, writer: ArtifactWriter, journal: Journal) -> dict[str, Any]:
        opened = [Artifact.open(folder, "shard") for folder in shards]
        _note_inputs(opened, writer)
        source = registry.build("sources", settings.source)
        source.merge(Path(settings.root), opened, writer)
        writer.json("source.json", settings.source.plain())
        _check_budget(writer.accounts, writer.quarantine, settings.budget)
        journal.metrics(1, _counts(writer.accounts))
        return {"shards": settings.shards}

    # What the shards were is not part of the result: any number of shards gives the same bytes.
    return run_stage(config, out, {}, work, method=settings.source.name)


def _note_inputs(shards: list[Artifact], writer: ArtifactWriter) -> None:
    """Hands on the digests of the raw inputs; shards that read different bytes cannot be merged."""
    seen: dict[str, str] = {}
    for shard in shards:
        for name, digest in shard.manifest["inputs"].items():
            if seen.setdefault(name, digest) != digest:
                raise DataError(
                    f"{name} changed while the shards were prepared. Delete {shard.folder.parent} and run again."
                )
            writer.input(name, digest)


def _check_budget(accounts: dict[str, Account], quarantine: list[Quarantined], budget: float) -> None:
    for what, account in accounts.items():
        allowed = max(1, int(budget * account.total))
        if account.num_failed > allowed:
            shown = [f"{q.item} ({q.where}): {q.reason}: {q.detail}" for q in quarantine if q.outcome == "failed"][:10]
            raise DataError(
                f"{account.num_failed} of {account.total} {what} failed; budget {budget:g} allows {allowed}. "
                f"Repair them or raise data.budget.\n  " + "\n  ".join(shown)
            )
        if account.total and account.kept == 0:
            reasons = ", ".join(f"{n} {reason}" for reason, n in {**account.left_out, **account.failed}.items())
            examples = {q.reason: f"{q.item} ({q.where}): {q.reason}: {q.detail}" for q in reversed(quarantine)}
            shown = [examples[reason] for reason in (*account.left_out, *account.failed) if reason in examples]
            raise DataError(
                f"none of the {account.total} {what} is left: {reasons}. The quarantine says why for each, for example:"
                f"\n  " + "\n  ".join(shown)
            )


def _counts(accounts: dict[str, Account]) -> dict[str, float]:
    values: dict[str, float] = {}
    for what, account in accounts.items():
        values |= {
            f"account/{what}_total": account.total,
            f"account/{what}_kept": account.kept,
            f"account/{what}_left_out": sum(account.left_out.values()),
            f"account/{what}_failed": account.num_failed,
        }
    return values
