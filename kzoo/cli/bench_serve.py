"""`kzoo bench-serve ADDRESS`."""

import pathlib
from typing import Annotated

import typer


def bench_serve(
    address: Annotated[
        str,
        typer.Argument(help="host:port for gRPC, http://host:port for REST.", show_default=False),
    ],
    model: Annotated[str, typer.Option(help="Name of the model.")] = "default",
    signature: Annotated[
        list[str] | None, typer.Option(help="Signature; several are measured in turn.")
    ] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows of a request, 1 and 32.")] = None,
    clients: Annotated[
        list[int] | None, typer.Option(help="Requests at the same time, 1, 8 and 32.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests per second, whether answered or not, over 32 connections."),
    ] = None,
    inputs: Annotated[
        pathlib.Path | None,
        typer.Option(help="An .npz of the inputs' rows; random numbers unless given."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds of each measurement.", min=0.1)] = 5.0,
):
    """Measure any server that speaks TensorFlow Serving's API: throughput and latencies.

    Run it on another machine than the server's, or what it needs itself is part of the result.

    Examples:

      kzoo bench-serve localhost:8500 --model digits

      kzoo bench-serve http://localhost:8501 --model digits --signature explain_saliency --batch 8

      kzoo bench-serve localhost:8500 --model digits --batch 1 --rate 500
    """
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    from kzoo.client import Client
    from kzoo.client.load import closed_loop, open_loop, rows_for

    columns = (
        "signature",
        "batch",
        "clients",
        "requests/s",
        "rows/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
    )
    table = Table(*columns, "errors", title=f"{model} at {address}")
    with Client(address, model) as client, Live(table, console=Console()):
        known = client.metadata()
        for name in signature or ["serving_default"]:
            if name not in known:
                raise typer.BadParameter(
                    f"{name!r} is none of {', '.join(known)}", param_hint="--signature"
                )
            for rows in batch or [1, 32]:
                values = rows_for(known[name], rows, inputs)
                for count in [32] if rate else clients or [1, 8, 32]:
                    load = (
                        open_loop(client, values, rate, name, count, seconds)
                        if rate
                        else closed_loop(client, values, name, count, seconds)
                    )
                    table.add_row(
                        name,
                        str(rows),
                        str(count),
                        f"{load.rate:.1f}",
                        f"{rows * load.rate:.1f}",
                        *(f"{1e3 * load.percentile(q):.2f}" for q in (50, 95, 99)),
                        ", ".join(f"{code}: {n}" for code, n in load.errors.items()) or "none",
                    )
