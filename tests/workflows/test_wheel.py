"""The wheel alone is enough: built, installed into a fresh environment, run in an empty folder."""

import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.commands import REPOSITORY

pytestmark = pytest.mark.slow  # every test runs whole commands


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(out), str(REPOSITORY)]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


def test_it_carries_workflow_and_recipes_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "appssl/_bundle/Snakefile" in names
    assert "appssl/_bundle/workflows/rules/common.smk" in names
    assert "appssl/_bundle/pipelines/recsys/demo.yaml" in names
    assert {name.split("/")[0] for name in names if not name.startswith("appssl-")} == {"appssl"}


def test_a_demo_runs_in_an_empty_folder(wheel, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--quiet", wheel], check=True)
    # The dependencies are those of this environment: installing torch again would only test the registry.
    own = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    with open(os.path.join(own.stdout.strip(), "zz_dependencies.pth"), "w") as file:
        file.write("\n".join(sorted(others)))
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_TRACKING_URI")}
    command = [str(tmp_path / "env" / "bin" / "appssl"), "run", "recsys/demo", "--quick"]
    done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 5), done.stderr
    assert "recall@20" in done.stdout
    where = subprocess.run(
        [python, "-c", "import appssl; print(appssl.__file__)"],
        cwd=empty,
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "env") in where.stdout
