"""`appssl review`: suspicious labels as a table, and a page on which people decide."""

from pathlib import Path
from typing import Annotated, Any

import typer

from appssl.cli.options import Json


def command(
    result: Annotated[Path, typer.Argument(help="Folder of a run that judged labels, or of that stage.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the review; decisions.csv is kept there.")] = Path(
        "review"
    ),
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of the prepared data, if it is not among the results.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Undecided images on the page, at most.")] = 1000,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port; the next free one is taken.")] = 8321,
    no_serve: Annotated[bool, typer.Option("--no-serve", help="Only write; the page offers its decisions.")] = False,
    as_json: Json = False,
) -> None:
    """Review suspicious labels, by keyboard. Example: appssl review results/webnoisy/demo/s0 --out review"""
    from appssl.stages.frame import locked
    from appssl.stages.review import review

    with locked(out):
        made = review(result, out, data_dir=data, limit=limit)
        if no_serve:
            _say(made, None, as_json=as_json)
            return
        _serve(made, port, as_json=as_json)


def _serve(made: Any, port: int, *, as_json: bool) -> None:
    """Answers until Ctrl-C; every decision is on the disk before it is answered, so any end is a good one."""
    import sys

    from appssl.cli.ui import free_port
    from appssl.reports.review_server import HOST, ReviewServer

    with ReviewServer(made.page.read_bytes(), made.decisions, port=free_port(HOST, port)) as server:
        _say(made, server.address, as_json=as_json)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"{len(made.decisions)} decision(s) in {made.decisions.path}", file=sys.stderr)


def _say(made: Any, address: str | None, *, as_json: bool) -> None:
    import json
    import sys

    paths = {"triage": str(made.triage), "page": str(made.page), "decisions": str(made.decisions.path)}
    if as_json:
        typer.echo(json.dumps({**paths, "rows": made.num_rows, "shown": made.num_shown, "address": address}))
    else:
        typer.echo(f"{made.triage}   ({made.num_rows:,} judged images; {made.num_shown:,} of them on the page)")
        typer.echo(f"{made.page}   ({address or 'open it in a browser; it offers its decisions as decisions.csv'})")
        typer.echo(_how_to_use(made))
    sys.stdout.flush()


def _how_to_use(made: Any) -> str:
    """Which setting takes the decisions as truth."""
    path, root = made.decisions.path.resolve(), Path(made.root).resolve()
    setting = "a later run takes decisions.csv as truth with data.source.decisions"
    if made.root and path.is_relative_to(root):
        return f"{setting}={path.relative_to(root).as_posix()}"
    return f"{setting}, once it lies below data.root" + (f" ({made.root})" if made.root else "")
