"""A dry run over 100,000 slides in 1,000 shards: time and peak memory of planning, without reading a slide.

python benchmarks/plan.py [SLIDES [SHARDS]]
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """\
description: many slides
domain: wsi
data: {{source: {{name: wsi, table: slides.csv, spacing_um: 0.5, tile_px: 256}}, shards: {shards}}}
pretrain: {{backbone: small_cnn, views: histology}}
finetune: {{finetuner: linear_probe}}
evaluate: {{evaluators: [classification]}}
"""


def main() -> None:
    slides, shards = (int(word) for word in (*sys.argv[1:], "100000", "1000")[:2])
    with tempfile.TemporaryDirectory() as folder:
        rows = (f"s{n},slides/s{n}.svs,p{n // 3},{'tumour' if n % 2 else 'normal'}" for n in range(slides))
        table = "\n".join(["slide_id,path,patient_id,label", *rows, ""])
        (Path(folder) / "slides.csv").write_text(table)
        (Path(folder) / "many.yaml").write_text(RECIPE.format(shards=shards))
        begun = time.perf_counter()
        command = [sys.executable, "-m", "appssl", "run", "many.yaml", "--dry-run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - begun
    jobs = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("total"))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{slides:,} slides in {shards:,} shards, {jobs} jobs: planned in {seconds:.1f} s, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
