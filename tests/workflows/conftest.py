import pytest

from tests.commands import appssl

# Small enough for tests, with every stage of the chain.
CHAIN = """\
description: every stage on tiny synthetic recordings
domain: wearable
data:
  make: {size: tiny}
  shards: 2
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.5}}
pretrain:
  backbone: {name: cnn1d}
  views: {name: signal}
  fit: {steps: 12, batch_size: 16, log_every: 2, checkpoint_steps: 4}
pseudolabel:
  labeler: {name: self_training}
finetune:
  finetuner: linear_probe
  label_fraction: 0.5
  fit: {steps: 12, batch_size: 8, log_every: 2, checkpoint_steps: 4}
evaluate:
  evaluators: [classification, knn]
  num_bootstrap: 100
"""


@pytest.fixture(scope="package")
def finished(tmp_path_factory):
    """A folder in which `chain.yaml` was run to the end."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "chain.yaml").write_text(CHAIN)
    done = appssl("run", "chain.yaml", cwd=folder)
    assert done.code in (0, 5), done.err
    return folder
