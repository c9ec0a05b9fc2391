"""Snakemake on SLURM that adds little to a job: its plugin starts Snakemake twice in each, and sees late that it ended.

Here a job of a mere command runs it at once (`slurm_job.py`). And where the plugin waits ten seconds longer after every
look at which nothing had ended, up to three minutes, the wait is a share of the time since anything changed, so that it
adds little to a job however long that takes. One look asks for all jobs at once.
"""

import sys
import time
from collections.abc import AsyncIterator, Collection
from typing import Any

from appssl import slurm_job

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


def is_mere_command(workflow: Any, job: Any) -> bool:
    """Whether the job is a shell command on files that every node sees, for which Snakemake has nothing else to do."""
    whole = job.is_group() or not job.rule.shellcmd or job.is_shadow or job.benchmark is not None
    flagged = any(file.flags for file in (*job.input, *job.output))
    elsewhere = workflow.storage_settings.default_storage_provider or workflow.remote_execution_settings.precommand
    return not (whole or flagged or elsewhere or workflow.deployment_settings.deployment_method)


def packed(workflow: Any, job: Any, python: str) -> str:
    """The command line of a mere command."""
    places = {name: list(map(str, getattr(job, kind))) for name, kind in _PLACES.items()}
    patience = workflow.execution_settings.latency_wait
    return slurm_job.words(python, {"command": job.shellcmd, "threads": job.threads, "patience": patience, **places})


_PLACES = {"inputs": "input", "outputs": "output", "logs": "log"}


def main() -> None:
    """`snakemake ARGUMENTS`, with the plugin's own looks and other waits between them."""
    import snakemake_executor_plugin_slurm as plugin

    class Executor(plugin.Executor):
        def format_job_exec(self, job: Any) -> str:
            if is_mere_command(self.workflow, job):
                return packed(self.workflow, job, self.get_python_executable())
            return str(super().format_job_exec(job))

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
