"""A run killed with SIGKILL at a random moment and started again: does it end with the same bytes?

python benchmarks/kills.py [trials] [seed]

Every trial is a fresh folder: the wearable demo, which has every stage, is started on tiny data, its whole process
group is killed at a moment drawn from the time that an undisturbed run takes, and the same command is given again. The
digests of all results are compared with those of the undisturbed run.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    "data.make.size": "tiny", "data.source.split.test": 0.5, "finetune.label_fraction": 0.5,
    "pretrain.fit.batch_size": 16, "pretrain.fit.checkpoint_steps": 2, "pretrain.fit.log_every": 2,
    "finetune.fit.batch_size": 8,
}  # fmt: skip
COMMAND = [sys.executable, "-m", "appssl", "run", "wearable/demo", "--quick"]
COMMAND += [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]


def run(folder: Path, kill_after: float | None = None) -> bool:
    """Gives the command; returns whether it came to its end."""
    process = subprocess.Popen(
        COMMAND, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode not in (0, 5):
        sys.exit(f"exit code {process.returncode}:\n{said.decode()}")
    return True


def digests(folder: Path) -> dict[str, bytes]:
    """Manifests of all results, which hold the digests of all their files."""
    results = folder / "results"
    return {path.relative_to(results).as_posix(): path.read_bytes() for path in results.rglob("manifest.json")}


def stage_of(folder: Path) -> str:
    """The last result that was complete."""
    found = sorted((folder / "results").rglob("manifest.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent.name if found else "nothing"


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    moments = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name) / "whole"
        whole.mkdir()
        begun = time.perf_counter()
        run(whole)
        seconds = time.perf_counter() - begun
        wanted, equal, killed = digests(whole), 0, 0
        print(f"undisturbed: {seconds:.0f} s, {len(wanted)} results", flush=True)
        for trial in range(trials):
            folder = Path(name) / str(trial)
            folder.mkdir()
            moment = moments.uniform(0, seconds)
            ended = run(folder, kill_after=moment)
            after = stage_of(folder)
            if not ended:
                killed += 1
                run(folder)
            same = digests(folder) == wanted
            equal += same
            how = "ended before the kill" if ended else f"killed after {moment:.1f} s, {after} was complete"
            print(f"trial {trial + 1}: {how}: {'equal' if same else 'DIFFERENT'}", flush=True)
    print(f"{equal} of {trials} trials ended with equal digests; {killed} were killed")
    sys.exit(equal != trials)


if __name__ == "__main__":
    main()
