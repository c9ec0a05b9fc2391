"""`appssl ui`: the MLflow UI on this project's store."""

from typing import Annotated

import typer

from appssl.cli.options import Json, Results


def command(
    out: Results = "results",  # type: ignore[assignment]
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port; the next free one is taken.")] = 5000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    as_json: Json = False,
) -> None:
    """Send what is pending to MLflow and open its UI. Example: appssl ui"""
    import os
    import sys
    from pathlib import Path

    from appssl.addresses import credentials, masked
    from appssl.runner import environment
    from appssl.tracking import store_uri
    from appssl.upload import upload

    uri = store_uri(Path.cwd())
    report = upload(out, uri, Path.cwd())
    if report.problem:
        print(f"warning: not everything was sent to {masked(uri)}: {report.problem}", file=sys.stderr)
    if uri.startswith(("http://", "https://")):  # a server has its own UI
        _say(masked(credentials(uri)[0]), uri=masked(uri), as_json=as_json)
        return
    port = free_port(host, port)
    _say(f"http://{host}:{port}", uri=masked(uri), as_json=as_json)
    # The address of the store is not an argument: others could read a password in it from the list of processes.
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no idle job workers
    os.execve(sys.executable, command, {**environment(), **quiet, "MLFLOW_BACKEND_STORE_URI": uri})


def _say(address: str, *, uri: str, as_json: bool) -> None:
    import json
    import sys

    if as_json:
        typer.echo(json.dumps({"address": address, "store": uri}))
    else:
        # MLflow 3 opens its pages for language models unless told otherwise.
        page = f"{address}/#/experiments?workflowType=machine_learning"
        typer.echo(f"MLflow UI of {uri}: {page}  (Ctrl-C stops one that was started here)")
    sys.stdout.flush()


def free_port(host: str, first: int) -> int:
    """The first port from `first` on that nothing listens on.

    Raises:
        AppsslError: if a hundred are taken, or the address is not one of this machine.
    """
    import socket

    from appssl.errors import AppsslError

    for port in range(first, min(first + 100, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise AppsslError(f"no free port from {first} on at {host}. Choose another --port or --host.")
