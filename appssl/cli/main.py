"""The command `appssl`. Commands import what is heavy inside their bodies, so that --help answers at once."""

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from appssl.addresses import masked
from appssl.cli import (
    bench,
    check,
    crawl,
    data,
    doctor,
    duplicates,
    embed,
    list_,
    new,
    predict,
    reproduce,
    review,
    run,
    stages,
    status,
    trace,
    ui,
    verify,
)
from appssl.errors import AppsslError
from appssl.version import __version__


class _Commands(TyperGroup):
    """Ctrl-C ends a command with a message of ours; typer's own says only that it was aborted."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(130)


app = typer.Typer(
    name="appssl",
    cls=_Commands,
    help="From raw applied data to an encoder, cleaned labels, a fine-tuned model and an honest evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RUNS, _STAGES, _RESULTS, _KNOW = "Runs", "One stage (what the workflow calls)", "Results", "What there is"

app.command("run", rich_help_panel=_RUNS)(run.command)
app.command("new", rich_help_panel=_RUNS)(new.command)
app.command("check", rich_help_panel=_RUNS)(check.command)
app.command("status", rich_help_panel=_RUNS)(status.command)
app.command("logs", rich_help_panel=_RUNS)(status.logs)
app.command("cancel", rich_help_panel=_RUNS)(status.cancel)
app.command("resolve", rich_help_panel=_STAGES)(stages.resolve)
app.command("prepare", rich_help_panel=_STAGES)(stages.prepare)
app.command("pretrain", rich_help_panel=_STAGES)(stages.pretrain)
app.command("pseudolabel", rich_help_panel=_STAGES)(stages.pseudolabel)
app.command("finetune", rich_help_panel=_STAGES)(stages.finetune)
app.command("evaluate", rich_help_panel=_STAGES)(stages.evaluate)
app.command("report", rich_help_panel=_STAGES)(stages.report)
app.command("predict", rich_help_panel=_RESULTS)(predict.command)
app.command("embed", rich_help_panel=_RESULTS)(embed.command)
app.command("review", rich_help_panel=_RESULTS)(review.command)
app.command("duplicates", rich_help_panel=_RESULTS)(duplicates.command)
app.command("verify", rich_help_panel=_RESULTS)(verify.command)
app.command("trace", rich_help_panel=_RESULTS)(trace.command)
app.command("reproduce", rich_help_panel=_RESULTS)(reproduce.command)
app.command("ui", rich_help_panel=_RESULTS)(ui.command)
app.command("list", rich_help_panel=_KNOW)(list_.command)
app.command("show", rich_help_panel=_KNOW)(list_.show)
app.command("doctor", rich_help_panel=_KNOW)(doctor.command)

_data = typer.Typer(
    help="Public data sets (with checksum and licence) and synthetic data of any domain.", no_args_is_help=True
)
_data.command("list")(data.list_)
_data.command("get")(data.get)
_data.command("mirror")(data.mirror)
_data.command("make")(data.make)
_data.command("crawl")(crawl.command)
app.add_typer(_data, name="data", rich_help_panel=_KNOW)

_bench = typer.Typer(help="Claims of recipes: run them, and keep a table of what was shown.", no_args_is_help=True)
_bench.command("list")(bench.list_)
_bench.command("run")(bench.run)
app.add_typer(_bench, name="bench", rich_help_panel=_RUNS)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"appssl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    if debug:
        os.environ["APPSSL_DEBUG"] = "1"


def main() -> None:
    """Entry point: errors become one message and an exit code; tracebacks only with --debug."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        app()  # ends with SystemExit; wrong usage has exit code 2
    except AppsslError as error:
        _explain(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        _explain(error)
        sys.exit(1)


def _explain(error: Exception) -> None:
    if os.environ.get("APPSSL_DEBUG"):
        text = "".join(traceback.format_exception(error))
    elif isinstance(error, AppsslError):
        text = f"appssl: {error}"
    else:
        text = f"appssl: unexpected {type(error).__name__}: {error}. 'appssl --debug ...' shows where."
    print(masked(text), file=sys.stderr)  # a library's message may repeat the address of a mirror or proxy
