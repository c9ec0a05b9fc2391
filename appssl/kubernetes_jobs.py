"""A plan as plain Jobs of Kubernetes, and what Snakemake's plugin has to be told of the cluster.

Every stage is a Job, the shards of a data set are one indexed Job. All of them see one volume, on which the project
lies. Kubernetes itself knows no order among Jobs: `submit.sh` applies one level after the other and waits for it with
kubectl. It can be stopped and started again; what is done is not done again.
"""

import importlib.util
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from appssl.artifact import write_bytes
from appssl.batch_jobs import Job, Writing, batch_jobs, write_configs
from appssl.errors import AppsslError, SettingsError
from appssl.settings import Settings, digest_of, read_yaml, validate
from appssl.slurm import read

CLUSTER = "jobs.yaml"
_LONGEST_SLUG = 40  # a name has at most 63 characters; prefix, digest and the number of a task are added
_HOPELESS = (2, 3, 4)  # exit codes for settings, data and divergence: the same again ends the same
_ATTEMPTS = 3
_GRACE_SECONDS = 120  # for a checkpoint after the notice of an eviction
_TASK = "$JOB_COMPLETION_INDEX"  # which Kubernetes sets in the tasks of an indexed Job
_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"

_SCRIPT = """\
#!/usr/bin/env bash
# Made by `appssl run --script`: applies the Jobs of a plan level by level and waits for each level. Kubernetes has no
# order among Jobs, so this must run until the end; stopped, it goes on when it is started again.
# `kubectl delete jobs -l appssl/plan={plan}` ends everything.
set -euo pipefail
cd "$(dirname "$0")"
k() {{ kubectl --namespace {namespace} "$@"; }}

state() {{ k get job "$1" -o 'jsonpath={{.status.conditions[?(@.status=="True")].type}}' 2>/dev/null || true; }}

level() {{  # names of Jobs: applies them, waits for all, ends at a failure
    local job found waiting=1
    for job in "$@"; do
        case "$(state "$job")" in *Failed*) k delete job "$job" ;; esac
        k apply -f "$job.yaml"
    done
    while [ "$waiting" = 1 ]; do
        waiting=0
        for job in "$@"; do
            found=$(state "$job")
            case "$found" in
                *Failed*) echo "$job failed: kubectl --namespace {namespace} logs job/$job" >&2; exit 4 ;;
                *Complete*) ;;
                *) waiting=1 ;;
            esac
        done
        [ "$waiting" = 0 ] || sleep "${{APPSSL_POLL_SECONDS:-5}}"
    done
}}

"""


class Cluster(Settings):
    """`jobs.yaml` of a profile: what is the same for all Jobs."""

    image: str = Field(min_length=1, description="image that has appssl, with its tag or digest")
    claim: str = Field(pattern=f"^{_NAME}$", description="PersistentVolumeClaim that all Jobs mount")
    mount: str = Field("/project", pattern="^/.+", description="where it is mounted")
    folder: str | None = Field(
        None, pattern="^/.+", description="the project's folder in the Jobs; null: the one this is run in"
    )
    namespace: str = Field("default", pattern=f"^{_NAME}$", description="namespace of the Jobs")
    secret: str | None = Field(
        "appssl", pattern=f"^{_NAME}$", description="Secret whose keys become environment variables, if it exists"
    )
    service_account: str | None = Field(None, pattern=f"^{_NAME}$", description="service account of the Jobs")
    gpu: str = Field("nvidia.com/gpu", description="resource that is a GPU")
    node_selector: dict[str, str] = Field({}, description="labels that nodes must have")
    queue: str | None = Field(None, description="LocalQueue of Kueue, as the label kueue.x-k8s.io/queue-name")
    parallelism: int = Field(100, ge=1, description="tasks of a data set that run at once")


def read_cluster(profile: Path) -> Cluster:
    """
    Raises:
        SettingsError: if the profile has no `jobs.yaml`, or a wrong one.
    """
    file = profile / CLUSTER
    if not file.is_file():
        raise SettingsError(f"{profile}: has no {CLUSTER}, which names image and volume. Copy that of kubernetes.")
    return validate(Cluster, read_yaml(file), file=str(file), owner=CLUSTER)


def options(profile: Path) -> list[str]:
    """Options of Snakemake's plugin for a profile folder whose executor is kubernetes; none for other profiles.

    Raises:
        AppsslError: if the plugin is not installed, or this folder is not on the volume.
    """
    if read(profile).get("executor") != "kubernetes":
        return []
    if importlib.util.find_spec("snakemake_executor_plugin_kubernetes") is None:
        raise AppsslError("--profile kubernetes needs a plugin: pip install 'appssl[kubernetes]', or use --script.")
    cluster = read_cluster(profile)
    found = ["--container-image", cluster.image, "--kubernetes-namespace", cluster.namespace]
    found += ["--precommand", f"cd {shlex.quote(_place(cluster))}"]  # the plugin starts jobs in an empty folder
    found += ["--kubernetes-persistent-volumes", f"{cluster.claim}:{cluster.mount}"]
    return found + (["--kubernetes-service-account-name", cluster.service_account] if cluster.service_account else [])


def write_manifests(plan: Mapping[str, Any], folder: Path, cluster: Cluster) -> Path:
    """Writes a manifest for each Job and `submit.sh` into a folder, and `config.yaml` of every stage into the results.

    Args:
        plan: complete, as of `plan.complete`.
    Raises:
        SettingsError: if this folder is not on the volume, and `folder` does not say where the project lies there.
    """
    place = _place(cluster)
    write_configs(plan)
    jobs = batch_jobs(plan, Writing("appssl", _TASK, _TASK))
    mark = digest_of([plan["results"], place])[:10]
    manifests = {job.name: manifest(job, cluster, place, mark, _settings_of(job, plan)) for job in jobs}
    names = {name: found["metadata"]["name"] for name, found in manifests.items()}
    lines = [" ".join(["level", *(names[job.name] for job in level)]) for level in _levels(jobs)]
    head = _SCRIPT.format(plan=mark, namespace=cluster.namespace)
    for found in manifests.values():
        text = yaml.safe_dump(found, sort_keys=False, width=1000)
        write_bytes(folder / f"{found['metadata']['name']}.yaml", text.encode())
    file = folder / "submit.sh"
    write_bytes(file, "\n".join([head, *lines, f'echo "{len(jobs)} jobs done"', ""]).encode())
    file.chmod(0o755)
    return file


def _place(cluster: Cluster) -> str:
    """The project's folder in the Jobs."""
    here = Path(cluster.folder or os.getcwd())
    if not here.is_relative_to(cluster.mount):
        raise SettingsError(
            f"{here} is not on the volume, which Jobs see at {cluster.mount}. Run this where the volume is mounted at "
            f"the same place, or give `folder` in {CLUSTER}, and copy the results folder there before submitting."
        )
    return str(here)


def _settings_of(job: Job, plan: Mapping[str, Any]) -> str:
    """A changed setting is another Job: Kubernetes does not change one that is there."""
    place = f"data/{job.name.removesuffix('-shards')}" if job.shards else job.name
    return str(plan["configs"].get(place, ""))


def _levels(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs that may run together, one level after the other."""
    depth: dict[str, int] = {}
    for job in jobs:  # each behind those that it waits for
        depth[job.name] = 1 + max((depth[name] for name in job.after), default=-1)
    return [[job for job in jobs if depth[job.name] == level] for level in range(1 + max(depth.values()))]


def manifest(job: Job, cluster: Cluster, place: str, mark: str, settings: str) -> dict[str, Any]:
    """A Job (batch/v1) that runs a batch job in the project's folder.

    Args:
        place: that folder. mark: label of all Jobs of the plan. settings: what makes another Job when it changes.
    """
    labels = {"app.kubernetes.io/name": "appssl", "appssl/plan": mark}
    spec: dict[str, Any] = {
        "backoffLimit": _ATTEMPTS,
        "podFailurePolicy": {"rules": [_IGNORED, _REFUSED]},
        "template": {"metadata": {"labels": dict(labels)}, "spec": _pod(job, cluster, place)},
    }
    if job.shards:
        many = {"completions": job.shards, "parallelism": min(job.shards, cluster.parallelism)}
        spec = {"completionMode": "Indexed", **many, **spec, "backoffLimit": _ATTEMPTS * job.shards}
    if cluster.queue:
        labels = {**labels, "kueue.x-k8s.io/queue-name": cluster.queue}
    text = digest_of([spec, settings])[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", job.name.lower())[-_LONGEST_SLUG:].strip("-")
    name = f"appssl-{slug}-{text}"
    about = {"name": name, "namespace": cluster.namespace, "labels": labels, "annotations": {"appssl/stage": job.name}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": about, "spec": spec}


# Preemption and a lost node are no fault of the stage; wrong settings and data do not get better.
_IGNORED = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
_REFUSED = {
    "action": "FailJob",
    "onExitCodes": {"containerName": "appssl", "operator": "In", "values": list(_HOPELESS)},
}


def _pod(job: Job, cluster: Cluster, place: str) -> dict[str, Any]:
    volumes = [
        {"name": "project", "persistentVolumeClaim": {"claimName": cluster.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},  # batches are handed over there; it counts as memory
    ]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": job.needs["minutes"] * 60,  # of one attempt: a training goes on where it was
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "shareProcessNamespace": True,  # as process 1 Python would not hear the notice of an eviction
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(job, cluster, place)],
        "volumes": volumes,
    }
    if cluster.service_account:
        pod["serviceAccountName"] = cluster.service_account
    if cluster.node_selector:
        pod["nodeSelector"] = dict(cluster.node_selector)
    return pod


def _container(job: Job, cluster: Cluster, place: str) -> dict[str, Any]:
    needs = job.needs
    amounts = {"cpu": str(needs["cpus"]), "memory": f"{int(needs['mem_gb'] * 1024)}Mi"}
    gpus = {cluster.gpu: str(needs["gpus"])} if needs["gpus"] else {}
    log = _quoted(str(job.log))
    # The log lies beside the results, as in every other way to run, and is what `kubectl logs` shows.
    text = f"mkdir -p {_quoted(str(job.log.parent))}\nexec {job.command} > >(tee -a {log}) 2>&1"
    container: dict[str, Any] = {
        "name": "appssl",
        "image": cluster.image,
        "command": ["bash", "-c", text],
        "workingDir": place,
        "resources": {"requests": {**amounts, **gpus}, "limits": {"memory": amounts["memory"], **gpus}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "project", "mountPath": cluster.mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if cluster.secret:
        container["envFrom"] = [{"secretRef": {"name": cluster.secret, "optional": True}}]
    return container


def _quoted(path: str) -> str:
    """A path as a shell word, in which the number of a task stays a variable."""
    return f'"{_TASK}"'.join(shlex.quote(part) if part else "" for part in path.split(_TASK))
