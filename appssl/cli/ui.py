"""`appssl ui`: the MLflow UI on this project's store."""

from typing import Annotated

import typer

from appssl.cli.options import Results


def command(
    out: Results = "results",  # type: ignore[assignment]
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port; the next free one is taken.")] = 5000,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Send what is pending to MLflow and open its UI. Example: appssl ui"""
    import subprocess
    import sys
    from pathlib import Path

    from appssl.runner import environment
    from appssl.tracking import masked, store_uri, upload

    uri = store_uri(Path.cwd())
    for results in (out, out / "quick"):
        report = upload(results, uri, Path.cwd())
        if report.problem:
            print(f"warning: {masked(uri)} cannot be reached: {report.problem}", file=sys.stderr)
    port = free_port(host, port)
    typer.echo(f"MLflow UI of {masked(uri)}: http://{host}:{port}  (stop it with Ctrl-C)")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", host, "--port", str(port)]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # no idle job workers
    subprocess.run([*command, "--workers", "1"], env={**environment(), **quiet}, check=False)


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
