"""Runs a plan with Snakemake, and says how it ended."""

import ctypes
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import yaml

from appssl import bundle, kubernetes_jobs, outcome, slurm
from appssl.artifact import write_bytes, write_json
from appssl.batch_script import write_script
from appssl.errors import AppsslError, LeftOutError, SettingsError
from appssl.progress import Progress
from appssl.settings import nearest
from appssl.tracking import store_uri
from appssl.upload import Uploader


def run(
    plan: dict[str, Any],
    *,
    results: Path,
    profile: str,
    cores: int | None,
    dry_run: bool,
    summary: Path | None,
    as_json: bool,
) -> None:
    """Does every job of the plan that is not done.

    Raises:
        AppsslError: of the kind of the first stage that failed.
        LeftOutError: if all is done, but some inputs could not be read.
    """
    folder = profile_folder(profile)
    with only_run(results):
        hidden = results / ".appssl"
        write_json(hidden / "plan.json", plan)
        config = {"plan": str(hidden / "plan.json"), "pathvars": {"results": plan["results"]}}
        write_bytes(hidden / "config.yaml", yaml.safe_dump(config).encode())
        for_cluster = [*slurm.options(folder), *kubernetes_jobs.options(folder)]
        command = [*snakemake_command(hidden / "config.yaml", folder, cores), *for_cluster]
        if dry_run:
            shown = subprocess.run([*command, "--dry-run", "--quiet", "host"], env=environment(), check=False)
            raise_for(shown.returncode, plan)
            return
        describe(plan)
        date_back(plan)
        uri = store_uri(Path.cwd())
        log = hidden / "snakemake.log"
        with Uploader(Path(plan["results"]), uri, Path.cwd()), Progress(plan), log.open("wb") as file:
            code = until_ended(command, file)
        if "sweep" in plan:
            _write_sweep(plan, summary)
        elif summary is not None and code == 0:
            write_summaries(plan, summary)
        finish(plan, results, code, log, as_json=as_json)


def date_back(plan: Mapping[str, Any]) -> None:
    """Dates results from the future now: they were written before the clock was set back, and Snakemake refuses what is
    made of them today as older than its input."""
    now = time.time_ns()
    made = [Path(plan["results"]) / data["synthetic"] for data in plan["data"].values() if data["synthetic"]]
    for folder in (*made, *(folder for _, folder in outcome.folders(plan))):
        for path in (folder / "config.yaml", folder / "manifest.json"):
            if path.exists() and path.stat().st_mtime_ns > now:
                os.utime(path, ns=(now, now))


def describe(plan: Mapping[str, Any]) -> None:
    """`about.json` beside the stages of each run, for reports: what is not a setting and re-runs nothing."""
    for domain, recipes in plan["runs"].items():
        for recipe, seeds in recipes.items():
            for seed, run in seeds.items():
                folder = Path(plan["results"]) / domain / recipe / seed
                write_json(folder / "about.json", {"description": run["description"]})


def write_jobs(plan: Mapping[str, Any], profile: str, folder: Path) -> Path:
    """Writes `submit.sh` and plain jobs of the profile's cluster into a folder; nothing runs.

    Raises:
        SettingsError: for a profile without a cluster, or one of Kubernetes that is wrong.
    """
    place = profile_folder(profile)
    executor = slurm.read(place).get("executor")
    if executor == "slurm":
        return write_script(plan, folder)
    if executor == "kubernetes":
        return kubernetes_jobs.write_manifests(plan, folder, kubernetes_jobs.read_cluster(place))
    raise SettingsError("--script writes jobs for SLURM or Kubernetes: give --profile slurm or kubernetes with it.")


_PROGRAMS = {"kubernetes": "appssl.shared_volume", "slurm": "appssl.slurm_workflow"}  # for other executors Snakemake's


def snakemake_command(config: Path, profile: Path, cores: int | None) -> list[str]:
    program = _PROGRAMS.get(slurm.read(profile).get("executor", ""), "snakemake")
    command = [sys.executable, "-m", program, "--snakefile", str(bundle.snakefile()), "--directory", "."]
    command += ["--configfile", str(config), "--workflow-profile", str(profile)]
    command += ["--rerun-incomplete", "--nolock", "--keep-going"]  # the lock is ours: it does not survive its process
    return [*command, "--cores", str(cores or len(os.sched_getaffinity(0)))]


def profile_folder(profile: str) -> Path:
    """Folder of a profile; unlike Snakemake itself, an unknown one is an error."""
    if profile in bundle.profiles():
        return bundle.profile(profile)
    if (Path(profile) / "config.yaml").is_file() or any(Path(profile).glob("config.v*.yaml")):
        return Path(profile)
    raise SettingsError(
        f"--profile {profile}: no such profile.{nearest(profile, bundle.profiles())} Or give a profile folder."
    )


def environment() -> dict[str, str]:
    """Jobs find this installation's `appssl` first."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"}


@contextmanager
def only_run(results: Path) -> Iterator[None]:
    """One `appssl run` per results folder; the lock is freed by the kernel when the process ends, however it ends."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        handle = os.open(results / ".run", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise AppsslError(f"{results}: cannot be written: {error.strerror}. Choose another --out.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(handle, 20).decode().strip()
        os.close(handle)
        raise AppsslError(
            f"{results}: another 'appssl run' (process {pid}) works here. Wait for it, or give another --out."
        ) from None
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(handle)


def die_with_parent() -> None:
    """For `preexec_fn`, on Linux: a child gets SIGTERM when this process is killed, however it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def until_ended(command: list[str], log: BinaryIO) -> int:
    """Runs Snakemake, and returns how it ended. Ctrl-C and SIGTERM stop it, and the stages that run on this machine."""

    def stop(number: int, frame: Any) -> None:
        process.send_signal(signal.SIGINT)
        _stop_stages(process.pid)

    def begin() -> None:
        die_with_parent()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    # Ctrl-C waits until the process is there: Python swallows what is raised in its hooks of a fork.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    process = subprocess.Popen(command, env=environment(), stdout=log, stderr=log, preexec_fn=begin)
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stop_stages(snakemake: int) -> None:
    """Stages on this machine save and end, as Ctrl-C makes them; Snakemake alone would wait for their last step."""
    below: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(snakemake).children(recursive=True)
    ours = set()
    for process in below:
        with suppress(psutil.NoSuchProcess):
            if any(Path(word).name == "appssl" for word in process.cmdline()):
                ours.add(process.pid)
                if process.ppid() not in ours:  # else it makes batches for a stage, which ends it
                    process.terminate()


def finish(plan: Mapping[str, Any], results: Path, code: int, log: Path, *, as_json: bool) -> None:
    """Prints the table of results and raises what the exit code should say."""
    from appssl.reports.index import write_index

    rows = outcome.rows(plan)
    index = write_index(Path(plan["results"]))
    if as_json:
        print(json.dumps({"runs": rows, "index": str(index), "left_out": outcome.failed_inputs(plan)}, indent=1))
    else:
        print(outcome.table(rows))
        print(f"\nreports: {index}\nMLflow:  appssl ui --out {results}")
    if code != 0:
        raise_for(code, plan, log)
    failed = outcome.failed_inputs(plan)
    if failed:
        shown = "\n  ".join(failed[:20])
        more = f"\n  and {len(failed) - 20} more, see quarantine.parquet" if len(failed) > 20 else ""
        raise LeftOutError(f"done, but {len(failed)} input(s) could not be read:\n  {shown}{more}")


def write_summaries(plan: Mapping[str, Any], folder: Path) -> None:
    """One Markdown file per recipe that was asked for, over its seeds."""
    from appssl.reports.summary import summarize

    seeds: dict[tuple[str, str], list[Path]] = {}
    for domain, recipe, seed in plan["targets"]:
        run_dir = Path(plan["results"]) / domain / recipe / f"s{seed}"
        if (run_dir / "evaluate" / "metrics.json").exists():
            seeds.setdefault((domain, recipe), []).append(run_dir)
    for (domain, recipe), run_dirs in seeds.items():
        text = summarize(run_dirs, command=_typed())
        write_bytes(folder / f"{domain}-{recipe}.md", text.encode())


def _write_sweep(plan: Mapping[str, Any], summary: Path | None) -> None:
    from appssl.reports.sweep import write_sweep

    for page in write_sweep(plan, summary=summary, command=_typed()):
        print(f"sweep: {page}", file=sys.stderr)


def _typed() -> str:
    """What was typed, without the place of the data on this machine."""
    words = [re.sub(r"^data\.root=.*", "data.root=DATA", word) for word in sys.argv[1:]]
    return "appssl " + shlex.join(words)


def raise_for(code: int, plan: Mapping[str, Any], log: Path | None = None) -> None:
    """Turns the workflow's failure into the error of the stage that failed."""
    if code == 0:
        return
    failures = outcome.failures(plan)
    if not failures:
        where = f" {log} has the details." if log else ""
        raise AppsslError(f"the workflow stopped (exit {code}).{where} The same command goes on from here.")
    lines = [f"{f['folder']}: {f['message']}" for f in failures]
    error = AppsslError("\n".join(lines))
    error.exit_code = failures[0]["exit_code"]
    raise error
