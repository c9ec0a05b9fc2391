"""Jobs of Kubernetes: valid by its published schema, and run in their order by stand-ins for kubectl and the API.

No real cluster is here: kubectl and the API server are stand-ins that run each Job's command on this machine.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
import yaml

from appssl import bundle, kubernetes_jobs
from appssl.batch_jobs import Job
from appssl.errors import AppsslError, SettingsError
from appssl.kubernetes_jobs import Cluster, manifest, options, read_cluster, write_manifests
from appssl.plan import complete, make_plan
from tests.commands import appssl, environment

VERSIONS = ("1.31", "1.34")  # the pod failure policy is stable since 1.31
CHAIN = """\
description: a short chain
domain: wearable
data:
  make: {size: tiny}
  source: {name: wearable, table: recordings.csv, labels: labels.csv, split: {test: 0.4}}
  shards: 3
  budget: 1
pretrain: {backbone: cnn1d, views: signal, fit: {epochs: 1, batch_size: 32, threads: 1}}
finetune: {finetuner: linear_probe, fit: {epochs: 1, batch_size: 16, threads: 1}}
evaluate: {evaluators: [classification]}
needs:
  prepare: {mem_gb: 0.5, minutes: 5}
  pretrain: {gpus: 0, cpus: 1, mem_gb: 1.5, minutes: 240}
"""
STAGES = ("pretrain", "finetune", "evaluate", "report")
JOB = Job("wearable/My.Recipe@lr-0.1/s0/pretrain", "appssl pretrain --out x", Path("results/logs/x.log"), ("data/k",),
          {"cpus": 8, "gpus": 2, "mem_gb": 32, "minutes": 240})  # fmt: skip


def check(found, version):
    """Raises if a manifest is not valid, strictly: an unknown or misspelt field is an error too."""
    import kubernetes_validate

    kubernetes_validate.validate(found, version, strict=True)


def cluster(**changes):
    return Cluster(**{"image": "registry.example/appssl:0.1", "claim": "volume", **changes})


def written(here, monkeypatch, text=CHAIN, **changes):
    """The manifests of a recipe by their stage, and the folder in which they and submit.sh are."""
    here.mkdir(parents=True, exist_ok=True)
    (here / "chain.yaml").write_text(text)
    monkeypatch.chdir(here)
    plan = make_plan(["chain.yaml"], seeds=[0], overrides={}, results=Path("results"), quick=False)
    write_manifests(complete(plan), Path("jobs"), cluster(**{"mount": str(here.parent), **changes}))
    found = [yaml.safe_load(path.read_text()) for path in sorted(Path("jobs").glob("*.yaml"))]
    return {re.sub(r"wearable-\w{12}", "KEY", one["metadata"]["annotations"]["appssl/stage"]): one for one in found}


def test_the_schema_refuses_what_is_wrong():
    import kubernetes_validate

    good = manifest(JOB, cluster(), "/project/x", "m", "")
    for wrong in ({"backofLimit": 1}, {"backoffLimit": "many"}):
        with pytest.raises(kubernetes_validate.ValidationError):
            check({**good, "spec": {**good["spec"], **wrong}}, VERSIONS[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(tmp_path, monkeypatch, version):
    found = written(
        tmp_path / "p", monkeypatch, queue="team", service_account="robot", node_selector={"a.b/c": "d"}, secret="keys"
    )
    assert set(found) == {
        "synthetic/wearable-tiny-0", "KEY-shards", "data/KEY", *(f"wearable/chain/s0/{stage}" for stage in STAGES)
    }  # fmt: skip
    for one in found.values():
        check(one, version)
        check(manifest(JOB, cluster(), "/project/x", "m", ""), version)


def test_shards_are_one_indexed_job(tmp_path, monkeypatch):
    spec = written(tmp_path / "p", monkeypatch, parallelism=2)["KEY-shards"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 2)
    command = spec["template"]["spec"]["containers"][0]["command"][-1]
    assert "--shard $JOB_COMPLETION_INDEX" in command
    assert 'shard-"$JOB_COMPLETION_INDEX".log' in command


def test_needs_become_requests_and_limits():
    pod = manifest(JOB, cluster(gpu="amd.com/gpu"), "/project/x", "m", "")["spec"]["template"]["spec"]
    asked = pod["containers"][0]["resources"]
    assert asked["requests"] == {"cpu": "8", "memory": "32768Mi", "amd.com/gpu": "2"}
    assert asked["limits"] == {"memory": "32768Mi", "amd.com/gpu": "2"}  # a GPU needs a limit; CPUs may be borrowed
    assert pod["activeDeadlineSeconds"] == 240 * 60
    without = Job(**{**vars(JOB), "needs": {**JOB.needs, "gpus": 0}})
    resources = manifest(without, cluster(), "/p", "m", "")["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert set(resources["limits"]) == {"memory"}


def test_names_are_allowed_and_tell_settings_apart():
    names = [manifest(JOB, cluster(), "/p", "m", settings)["metadata"]["name"] for settings in ("a", "b", "a")]
    assert names[0] == names[2] != names[1]  # Kubernetes does not change a Job that is there
    assert all(re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name) and len(name) < 58 for name in names)
    other = manifest(JOB, cluster(image="x:2"), "/p", "m", "a")["metadata"]["name"]
    assert other != names[0]


def test_what_repeating_cannot_mend_ends_the_job_and_preemption_does_not_count():
    rules = manifest(JOB, cluster(), "/p", "m", "")["spec"]["podFailurePolicy"]["rules"]
    assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert rules[1]["onExitCodes"]["values"] == [2, 3, 4]
    assert rules[1]["onExitCodes"]["containerName"] == "appssl"


def test_secrets_are_named_and_never_written(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:planted-password@host")
    found = written(tmp_path / "p", monkeypatch, secret="keys")
    for one in found.values():
        container = one["spec"]["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "keys", "optional": True}}]
        assert "env" not in container
    assert not any(b"planted" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_folder_that_is_not_on_the_volume_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="is not on the volume, which Jobs see at /project"):
        written(tmp_path / "p", monkeypatch, mount="/project")
    found = written(tmp_path / "p", monkeypatch, mount="/project", folder="/project/mine")
    for one in found.values():
        assert one["spec"]["template"]["spec"]["containers"][0]["workingDir"] == "/project/mine"


def test_a_wrong_cluster_is_told_with_its_field(tmp_path):
    with pytest.raises(SettingsError, match=r"has no jobs\.yaml"):
        read_cluster(tmp_path)
    (tmp_path / "jobs.yaml").write_text("image: a\nclam: b\n")
    with pytest.raises(SettingsError, match=r"clam is not a setting of jobs\.yaml\. Did you mean claim"):
        read_cluster(tmp_path)
    assert read_cluster(bundle.profile("kubernetes")).claim == "appssl"


def test_other_profiles_need_nothing(tmp_path):
    assert options(bundle.profile("local")) == options(bundle.profile("slurm")) == options(tmp_path) == []


def test_without_the_plugin_it_is_said_what_to_do(monkeypatch):
    monkeypatch.setattr(kubernetes_jobs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AppsslError, match=r"pip install 'appssl\[kubernetes\]'"):
        options(bundle.profile("kubernetes"))


def own_profile(folder):
    """A copy of the profile, as a user makes it, for a volume that is mounted at a folder."""
    profile = folder / "profile"
    profile.mkdir()
    for file in bundle.profile("kubernetes").iterdir():
        (profile / file.name).write_text(file.read_text().replace("/project", str(folder)))
    return profile


# A stand-in for kubectl: `apply` runs the Job's command here for every index, `get` says how it ended.
KUBECTL = """\
#!{python}
import json, os, pathlib, subprocess, sys, yaml
state = pathlib.Path(os.environ["FAKE_KUBECTL"])
words = [word for word in sys.argv[1:] if not word.startswith("-")]
assert sys.argv[1] == "--namespace", sys.argv
verb, rest = words[1], words[2:]
with (state / "calls").open("a") as calls:
    calls.write(" ".join([verb, *rest]) + "\\n")
if verb == "apply":
    job = yaml.safe_load(open(rest[0]))
    file = state / job["metadata"]["name"]
    if file.exists():
        sys.exit(0)
    container = job["spec"]["template"]["spec"]["containers"][0]
    codes = set()
    for index in range(job["spec"].get("completions", 1)):
        env = {{**os.environ, "JOB_COMPLETION_INDEX": str(index)}}
        codes.add(subprocess.run(container["command"], cwd=container["workingDir"], env=env).returncode)
    file.write_text("Failed" if codes - {{0}} else "SuccessCriteriaMet Complete")
elif verb == "get":
    file = state / rest[1]
    print(file.read_text() if file.exists() else "", end="")
    sys.exit(0 if file.exists() else 1)
elif verb == "delete":
    (state / rest[1]).unlink()
"""


def submit(folder, state):
    state.mkdir(exist_ok=True)
    (state / "kubectl").write_text(KUBECTL.format(python=sys.executable))
    (state / "kubectl").chmod(0o755)
    path = os.pathsep.join([str(state), environment()["PATH"]])
    env = {**environment(FAKE_KUBECTL=str(state), APPSSL_POLL_SECONDS="0.1", OMP_NUM_THREADS="1"), "PATH": path}
    return subprocess.run(["bash", folder / "submit.sh"], env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_submitted_jobs_give_the_bytes_of_a_run(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    (there / "chain.yaml").write_text(CHAIN)
    made = appssl("run", "chain.yaml", "--profile", own_profile(tmp_path), "--script", "jobs", cwd=there)
    assert made.out.strip() == "jobs/submit.sh written; 'bash jobs/submit.sh' submits it", made.err
    done = submit(there / "jobs", tmp_path / "state")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "7 jobs done" in done.stdout
    again = submit(there / "jobs", tmp_path / "state")  # stopped and started again: what is done is not done again
    assert again.returncode == 0
    here.mkdir()
    (here / "chain.yaml").write_text(CHAIN)
    assert appssl("run", "chain.yaml", cwd=here, OMP_NUM_THREADS="1").code in (0, 5)
    for stage in STAGES:
        place = f"results/wearable/chain/s0/{stage}/manifest.json"
        assert (there / place).read_text() == (here / place).read_text()
        assert (there / "results/logs/wearable/chain/s0" / f"{stage}.log").is_file()


@pytest.mark.slow
def test_a_failed_job_ends_the_submission_and_is_tried_again_by_the_next(tmp_path, monkeypatch):
    there = tmp_path / "there"
    written(there, monkeypatch, CHAIN.replace("labels.csv", "none.csv"))
    done = submit(there / "jobs", tmp_path / "state")
    assert done.returncode == 4
    assert "failed: kubectl --namespace default logs job/appssl-wearable-" in done.stderr
    assert not list((there / "results/data").glob("*/manifest.json"))
    submit(there / "jobs", tmp_path / "state")
    assert "delete job appssl-wearable-" in (tmp_path / "state" / "calls").read_text()


class Api(BaseHTTPRequestHandler):
    """A stand-in for the API server: keeps Jobs, and runs their command here as a node would."""

    jobs: ClassVar[dict] = {}
    place = ""

    def _answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.endswith("/jobs"):
            job = {"apiVersion": "batch/v1", "kind": "Job", **body}
            self.jobs[body["metadata"]["name"]] = {"body": job, "process": self._start(job)}
            self._answer({**job, "status": {}}, 201)
        else:
            self._answer({"apiVersion": "v1", "kind": "Secret", **body}, 201)

    def _start(self, job):
        container = job["spec"]["template"]["spec"]["containers"][0]
        Path(self.place, "workdir").mkdir(exist_ok=True)  # an empty folder, as the plugin mounts it at /workdir
        log = open(Path(self.place, f"{job['metadata']['name']}.log"), "wb")  # noqa: SIM115  # the process writes on
        command = [*container["command"], *container["args"]]
        return subprocess.Popen(command, cwd=Path(self.place, "workdir"), env=environment(), stdout=log, stderr=log)

    def do_GET(self):
        name = self.path.partition("?")[0].split("/jobs/")[-1].partition("/")[0]
        if "/jobs/" in self.path:
            code = self.jobs[name]["process"].poll()
            status = {} if code is None else {"failed": 1} if code else {"succeeded": 1}
            self._answer({**self.jobs[name]["body"], "status": status})
        else:
            self._answer({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []})

    def do_DELETE(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"})

    def log_message(self, *args):
        pass


@contextmanager
def api(place):
    Api.jobs, Api.place = {}, str(place)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    Thread(target=server.serve_forever, daemon=True).start()
    context = {"cluster": "fake", "user": "me"}
    (place / "kubeconfig").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "fake",
                "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
                "users": [{"name": "me", "user": {}}], "contexts": [{"name": "fake", "context": context}],
            }
        )
    )  # fmt: skip
    try:
        yield place / "kubeconfig"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_the_profile_runs_a_recipe_through_the_api(tmp_path):
    project, profile = tmp_path / "project", own_profile(tmp_path)
    project.mkdir()
    (project / "chain.yaml").write_text(CHAIN)
    with api(tmp_path) as config:
        done = appssl("run", "chain.yaml", "--profile", profile, cwd=project, KUBECONFIG=str(config), timeout=900)
        logs = (project / "results/.appssl/snakemake.log").read_text()
        assert done.code in (0, 5), done.err + logs + "".join(p.read_text()[-3000:] for p in tmp_path.glob("*.log"))
        bodies = {json.dumps(entry["body"]["metadata"]["name"]): entry["body"] for entry in Api.jobs.values()}
    assert len(bodies) >= 8  # three shards, their merge, and four stages
    text = {name: shlex.join(b["spec"]["template"]["spec"]["containers"][0]["args"]) for name, b in bodies.items()}
    pretrain = next(bodies[name] for name in bodies if "rules pretrain" in text[name])
    for body in bodies.values():
        plain = {**body, "spec": {key: value for key, value in body["spec"].items() if key != "containers"}}
        check(plain, VERSIONS[0])
        volumes = body["spec"]["template"]["spec"]["volumes"]
        assert {"name": "appssl", "persistentVolumeClaim": {"claimName": "appssl"}} in volumes
    asked = pretrain["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert asked["limits"]["memory"] == "1536M"
    assert asked["requests"]["cpu"] == "950m"
