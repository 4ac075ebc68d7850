"""`kzoo train RECIPE`."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import Annotated

import typer


def train(
    recipe: Annotated[pathlib.Path, typer.Argument(help="YAML file, such as those in recipes/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.SUB=VALUE", help="The same.")
    ] = None,
    run_dir: Annotated[
        pathlib.Path | None, typer.Option(help="Where the run writes. Default: runs/<name>.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint of the run.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show recipe, model and memory, and train nothing.")
    ] = False,
    devices: Annotated[
        str | None, typer.Option(help="cpu:N splits the CPU into N logical devices.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=2, help="Start N worker processes on this machine.")
    ] = None,
    export_to: Annotated[pathlib.Path, typer.Option(help="Folder of the exports.")] = pathlib.Path(
        "saved_models"
    ),
):
    """Train a model from a recipe.

    A run that was interrupted goes on with --resume and ends with the same weights.

    Examples:

      kzoo train recipes/digits_densenet.yaml

      kzoo train recipes/digits_densenet.yaml epochs=3 method='{SAM: {rho: 0.05}}'

      kzoo train recipes/digits_densenet.yaml distribution.strategy=mirrored --devices cpu:2
    """
    from kzoo.training.recipe import load_recipe, to_yaml

    plan = load_recipe(recipe, [*(overrides or ()), *(set_ or ())])
    run_dir = run_dir or pathlib.Path("runs") / plan.name
    if workers is not None:
        raise typer.Exit(_start_workers(workers, run_dir))
    if devices is not None:
        split_cpu(devices)

    from kzoo.training.run import Run

    run = Run(plan, None if dry_run else run_dir, resume)
    if dry_run:
        print(to_yaml(plan))
        run.model.summary(expand_nested=False)
        print(f"{run.total_steps} optimizer steps; memory: {_memory(run)}")
        return
    last = run.train()
    if run.loop.interrupted:
        print(f"Interrupted at step {run.loop.step}; its state is saved. Go on with --resume.")
        return
    print(json.dumps(last))
    print(f"The run is in {run_dir}.")
    if plan.export is not None and run.is_chief:
        print(f"Exported to {export_run(run, export_to)}.")


def export_run(run, folder):
    """Exports what a finished run has trained, as its recipe's `export` section says."""
    from kzoo.papers import components
    from kzoo.serving.export import export
    from kzoo.serving.samples import samples_of
    from kzoo.training.parts import make

    plan, model, held_out = run.recipe, run.served_model, run.validation_data
    explainers = [
        make("explainer", part, f"export.explainers.{number}", model=model)
        for number, part in enumerate(plan.export.explainers)
    ]
    parts = (plan.model, plan.method, plan.optimizer, plan.loss, *plan.stem, *plan.head)
    named = {part.name for part in parts if part is not None}
    papers = [paper for part in components() if part.name in named for paper in part.papers]
    return export(
        model,
        folder / (plan.export.name or plan.name),
        explainers,
        class_names=run.class_names or None,
        rescale=plan.export.rescale,
        overlays=plan.export.overlays,
        recipe=plan.model_dump(mode="json"),
        papers=papers,
        samples=samples_of(held_out.source if held_out else run.source),
    )


def split_cpu(devices):
    """Makes N logical CPUs of the one there is: `cpu:N`."""
    kind, _, number = devices.partition(":")
    if kind.lower() != "cpu" or not number.isdigit() or int(number) < 1:
        raise ValueError(f"--devices must be cpu:N with N of at least 1. Received: {devices}")
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * int(number),
    )


def _start_workers(count, run_dir):
    """Runs this command once for each worker, connected by TF_CONFIG; returns the exit code."""
    command = [sys.executable, "-m", "kzoo", *_without_workers(sys.argv[1:])]
    ports = free_ports(count)
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    processes, logs = [], []
    run_dir.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        # The first worker speaks; the others write beside the run.
        log = None if index == 0 else open(run_dir / f"worker-{index}.log", "w")  # noqa: SIM115
        logs.append(log)
        environment = {**os.environ, "TF_CONFIG": json.dumps(config)}
        processes.append(
            subprocess.Popen(
                [*command, "--set", "distribution.strategy=multi_worker"],
                env=environment,
                stdout=log,
                stderr=log and subprocess.STDOUT,
            )
        )
    codes = [process.wait() for process in processes]
    for log in filter(None, logs):
        log.close()
    return next((code for code in codes if code), 0)


def _without_workers(arguments):
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--workers="):
            skip = False
        elif argument == "--workers":
            skip = True
        else:
            kept.append(argument)
    return kept


def free_ports(count):
    """Numbers of `count` ports of this machine that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _memory(run):
    """An estimate of what training holds: weights, gradients, slots, activations of a batch."""
    weights = sum(_bytes(variable) for variable in run.model.variables)
    slots = sum(_bytes(variable) for variable in run.model.optimizer.variables)
    gradients = sum(_bytes(variable) for variable in run.model.trainable_variables)
    batch = run.train_data.batch_size
    activations = batch * sum(_outputs(layer) for layer in run.model._flatten_layers())
    parts = {
        "weights": weights, "gradients": gradients, "optimizer": slots,
        f"activations of {batch} examples": activations,
    }  # fmt: skip
    text = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in parts.items())
    return f"about {sum(parts.values()) / 2**20:.0f} MiB ({text})"


def _bytes(variable):
    size = 1
    for length in variable.shape:
        size *= length
    return size * (8 if "64" in str(variable.dtype) else 4)


def _outputs(layer):
    """Bytes of a layer's output for one example; 0 where its shape is not known."""
    try:
        shape = layer.output.shape
    except AttributeError:
        return 0
    size = 4 if "32" in str(layer.compute_dtype) else 2
    for length in shape[1:]:
        size *= length or 1
    return size
