"""Snakemake on SLURM that soon sees when a job has ended, where its plugin looks ever more seldom.

The plugin waits ten seconds longer after every look at which nothing had ended, up to three minutes. Here the wait is a
share of the time since anything changed, so that it adds little to a job however long that takes. One look asks for all
jobs at once.
"""

import sys
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

SHARE, MOST = 0.05, 60.0  # of the time since a job was submitted or ended; seconds


def wait(quiet: float, least: float) -> float:
    """Seconds until the next look when nothing has changed for `quiet` seconds.

    Args:
        least: `slurm-init-seconds-before-status-checks` of the profile.
    """
    return max(least, min(MOST, SHARE * quiet))


class Changes:
    """When the jobs that are waited for last became others."""

    def __init__(self) -> None:
        self._jobs: frozenset[str] = frozenset()
        self._since = time.monotonic()

    def seconds(self, *looks: Collection[str]) -> float:
        """Since the last change, with the jobs before and after a look."""
        for look in map(frozenset, looks):
            if look != self._jobs:
                self._jobs, self._since = look, time.monotonic()
        return time.monotonic() - self._since


def main() -> None:
    """`snakemake ARGUMENTS`, with the plugin's own looks and other waits between them."""
    import snakemake_executor_plugin_slurm as plugin

    class Executor(plugin.Executor):
        async def check_active_jobs(self, active_jobs: list[Any]) -> AsyncIterator[Any]:
            if not hasattr(self, "_changes"):
                self._changes = Changes()
            asked, left = {job.external_jobid for job in active_jobs}, set()
            async for job in super().check_active_jobs(active_jobs):
                left.add(job.external_jobid)
                yield job
            least = float(self.workflow.executor_settings.init_seconds_before_status_checks)
            self.next_seconds_between_status_checks = wait(self._changes.seconds(asked, left), least)

    plugin.Executor = Executor
    from snakemake.cli import main as snakemake  # it looks for plugins while it is imported

    snakemake(sys.argv[1:])


if __name__ == "__main__":
    main()
