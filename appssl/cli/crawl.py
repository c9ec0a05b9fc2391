"""`appssl data crawl`: a list of addresses becomes images and the table that `webnoisy` reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from appssl.cli.options import Json

if TYPE_CHECKING:
    from appssl.contracts import Account


def command(
    table: Annotated[
        Path, typer.Argument(help="CSV or Parquet with a column url, and any of image_id, label, split ...")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the images; the same again goes on.")],
    per_host: Annotated[int, typer.Option("--per-host", min=1, help="Requests at once to a host.")] = 2,
    parallel: Annotated[int, typer.Option("--parallel", min=1, help="Requests at once in all.")] = 16,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Seconds for one image, redirects included.")
    ] = 30,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0.001, help="Largest file, megabytes.")] = 20,
    retries: Annotated[int, typer.Option("--retries", min=0, help="Further attempts of what failed in passing.")] = 3,
    contact: Annotated[str, typer.Option("--contact", help="Page or e-mail that the user agent names.")] = "",
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Also machines that are not on the public internet.")
    ] = False,
    ignore_robots: Annotated[
        bool, typer.Option("--ignore-robots", help="Do not ask for robots.txt; for your own servers.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch images from a list of addresses. Example: appssl data crawl addresses.csv --out crawl"""
    import json
    import sys

    from appssl.ops.crawl.fetch import Limits
    from appssl.ops.crawl.workers import Options
    from appssl.stages.crawl import crawl

    limits = Limits(timeout, round(max_mb * 1e6), allow_private, ignore_robots)
    options = Options(per_host, parallel, retries, contact=contact, limits=limits)
    made = crawl(table, out, options, *([_show] if sys.stderr.isatty() else []))
    if as_json:
        paths = {"images": str(made.images), "outcomes": str(made.outcomes)}
        typer.echo(json.dumps({**paths, "asked": made.num_asked, **made.account.plain()}))
    else:
        typer.echo(
            f"{made.images}   ({made.account.kept:,} images of {made.account.total:,} addresses, "
            f"of which {made.num_asked:,} were looked at now)"
        )
        typer.echo(f"{made.outcomes}   (a row per address, with the reason)")
    _refuse_rest(made.account, made.outcomes)


def _refuse_rest(account: "Account", listed: Path) -> None:
    """Raises LeftOutError unless every address became an image."""
    from appssl.errors import LeftOutError

    if account.kept == account.total:
        return
    counts = [*account.left_out.items(), *account.failed.items()]
    shown = ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts, key=lambda c: (-c[1], c[0])))
    raise LeftOutError(
        f"done, but {account.total - account.kept:,} address(es) gave no image ({shown}), all in {listed}. "
        "The same command asks again for those that failed in passing."
    )


def _show(done: int, total: int, kept: int) -> None:
    import sys

    if done % 10 == 0 or done == total:
        end = "\n" if done == total else ""
        print(f"\r{done:,} of {total:,} addresses, {kept:,} images", end=end, file=sys.stderr, flush=True)
