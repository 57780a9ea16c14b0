"""The commands. Slow imports are inside them, so that --help answers at once."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fewshot_ray.cli.arguments import expanded_argument
from fewshot_ray.cli.remote import ClusterOption, board_there, check_cluster, is_server, leaderboard_there, register, resume_there
from fewshot_ray.errors import UserError

app = typer.Typer(
    help="Regularised few-shot fine-tuning of pre-trained generators, searched with Ray and Optuna.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[Path, typer.Argument(callback=expanded_argument, help="A run's YAML file (see sweeps/).")]
SweepArgument = Annotated[str, typer.Argument(callback=expanded_argument, help="A sweep's folder or URL, <storage>/<name>.")]
AddressOption = Annotated[str | None, typer.Option(envvar="RAY_ADDRESS", help="A running Ray cluster; a local Ray of its own otherwise.")]
NO_RESULT = 1
"""Exit code of a sweep that has run to its end without anything to export."""


@app.command()
def run(file: FileArgument, address: AddressOption = None) -> None:
    """Run a file: one training, or a sweep where values are ranges. The same file again resumes it."""
    from fewshot_ray.report.terminal import plain_console
    from fewshot_ray.trial.fields import read_run_file

    _joined(address)
    document = read_run_file(file)  # before the imports that take seconds
    with plain_console().status("loading"):  # PyTorch
        from fewshot_ray.cluster import light_imports  # noqa: F401 (first)
        from fewshot_ray.search.opened import planned_sweep

        opened = planned_sweep(document)
    _run(opened, address)


@app.command()
def resume(
    sweep: SweepArgument,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster (RAY_ADDRESS), or a dashboard's http://... .")] = None,
    extend: Annotated[
        list[str] | None, typer.Option(metavar="LIMIT=N", help="A larger limit: of trials, hours, gpu_hours, cost or patience.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Workers a trial, from now on.")] = None,
    cluster: ClusterOption = None,
) -> None:
    """Resume an interrupted sweep by its folder; with --cluster on the cluster, as a job like `launch`'s."""
    from fewshot_ray.cli.show import read_sweep
    from fewshot_ray.report.terminal import plain_console
    from fewshot_ray.spec.extension import larger_limits
    from fewshot_ray.storage import Folder

    limits = larger_limits(extend or ())
    if cluster is not None or is_server(address):
        raise typer.Exit(resume_there(sweep, cluster, address, limits=limits, workers=workers))
    address = _joined(address or os.environ.get("RAY_ADDRESS"))
    read_sweep(sweep)  # before the imports that take seconds
    with plain_console().status("loading"):  # PyTorch
        from fewshot_ray.cluster import light_imports  # noqa: F401 (first)
        from fewshot_ray.search.opened import changed, existing_sweep

        opened = changed(existing_sweep(Folder(sweep)), limits=limits, workers=workers)
    _run(opened, address)


@app.command(hidden=True)
def launched(request: Annotated[Path, typer.Argument()]) -> None:
    """Run `run`, `resume` or `check` on the cluster's head, as the entry point of a launched job."""
    from fewshot_ray.cli import launched as job

    asked = job.request_at(request)
    job.check_versions(asked["versions"], asked["code"])
    from fewshot_ray.cluster import light_imports  # noqa: F401 (first)
    from fewshot_ray.search.opened import changed, existing_sweep, planned_sweep
    from fewshot_ray.storage import Folder

    if asked["command"] == "check":
        from fewshot_ray.report.terminal import plain_console

        job.check_here(job.received(asked, request.parent, stays=True)[0], plain_console())
        return
    if asked["command"] == "resume":
        opened = changed(existing_sweep(Folder(asked["sweep"])), limits=asked["limits"], workers=asked["workers"])
    else:
        from fewshot_ray.launch.package import store
        from fewshot_ray.patience import LONG_PATIENCE_SEC, patience

        document, arrived = job.received(asked, request.parent)
        opened = planned_sweep(document)  # refused before anything is stored
        with patience(LONG_PATIENCE_SEC):
            store(arrived, opened.file)
    _run(opened, job.ray_of_the_job(), nodes=asked["nodes"], there=asked["there"])


def _joined(address: str | None) -> str | None:
    """The address of the Ray cluster to join. Raises UserError for a dashboard's."""
    if is_server(address):
        raise UserError(
            f"--address {address} (or RAY_ADDRESS): is a dashboard, which `fewshot-ray launch` submits to; "
            "auto, or HOST:6379, would be right"
        )
    return address


def _preflight(opened: object, address: str | None) -> None:
    """The checks of `check` before Ray starts and the sweep's folder is made: raises UserError, or prints remarks and warnings."""
    from fewshot_ray.cluster.needs import check_needs
    from fewshot_ray.search.opened import Opened

    assert isinstance(opened, Opened)
    said: list[tuple[str, str]] = []
    check_needs(opened, lambda topic, text: said.append((topic, text)), own_ray=address is None)
    for topic, text in said:
        if topic in ("image", "warning"):
            typer.echo(f"{topic}: {text}", err=True)


def _run(opened: object, address: str | None, *, nodes: Any = None, there: str = "") -> None:
    """Run a sweep and show its results. `nodes`: limits that the cluster may grow to; `there`: the option of its address, for messages."""
    from fewshot_ray.cli.show import show_sweep
    from fewshot_ray.cluster.driver import Interrupted, run_sweep
    from fewshot_ray.report.terminal import doing, plain_console
    from fewshot_ray.search.opened import Opened
    from fewshot_ray.search.winner import exported_trial

    assert isinstance(opened, Opened)
    console = plain_console()
    console.print(f"sweep {opened.folder.folder.url}", soft_wrap=True)
    with doing(console, "checking model and images"):
        _preflight(opened, address)
    try:
        run_sweep(opened, address=address, console=console, nodes=nodes)
    except KeyboardInterrupt as interrupt:
        console.print(f"interrupted; go on with: fewshot-ray resume {opened.folder.folder.url}{there}", soft_wrap=True)
        raise typer.Exit(interrupt.exit_code if isinstance(interrupt, Interrupted) else 130) from None
    show_sweep(opened.folder, opened.file, console)
    try:
        exported_trial(opened.folder, opened.file)
    except UserError as error:
        say(error)
        raise typer.Exit(NO_RESULT) from None
    url = opened.folder.folder.url  # `fetch` goes by SSH, which a dashboard's address alone doesn't give
    bring = f"fetch {url} OUT{there}" if there.startswith(" --cluster") and " --address " not in there else f"export {url} OUT"
    console.print(f"export the winner with: fewshot-ray {bring}", soft_wrap=True)


@app.command()
def check(
    file: FileArgument,
    cluster: ClusterOption = None,
    price: Annotated[list[str] | None, typer.Option(metavar="TYPE=USD", help="An hour of a node type of the cluster file.")] = None,
    address: AddressOption = None,
) -> None:
    """Validate a file, its images, model and storage without training, and print the plan; with --cluster for a cluster."""
    from fewshot_ray.report.terminal import plain_console
    from fewshot_ray.trial.fields import read_run_file

    document = read_run_file(file)  # before the imports that take seconds
    if cluster is None and price:
        raise UserError("--price: is for --cluster FILE, whose node types cost money")
    if cluster is not None:
        from fewshot_ray.spec.validate import file_spec

        found = check_cluster(cluster, file_spec(document))  # before them as well
        from fewshot_ray.cli.cluster_check import check_on_cluster

        raise typer.Exit(check_on_cluster(document, found, price or [], plain_console()))
    from fewshot_ray.cluster import light_imports  # noqa: F401 (first)
    from fewshot_ray.cli.check import check_file  # isort: skip

    check_file(document, _joined(address), plain_console())


@app.command()
def leaderboard(sweep: SweepArgument, cluster: ClusterOption = None) -> None:
    """Show a sweep's trials in order of merit, running or finished; with --cluster as its head reads them."""
    from fewshot_ray.cli.show import read_sweep, show_sweep
    from fewshot_ray.report.terminal import plain_console

    if cluster is not None:
        raise typer.Exit(leaderboard_there(sweep, cluster))
    folder, file = read_sweep(sweep)
    show_sweep(folder, file, plain_console())


@app.command()
def board(
    sweep: SweepArgument,
    cluster: ClusterOption = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On the loopback interface.")] = 6006,
) -> None:
    """TensorBoard on a sweep, running or finished, on disk or at a URL; with --cluster as its head reads it."""
    from fewshot_ray.cli.board import show_board
    from fewshot_ray.report.terminal import plain_console

    if cluster is not None:
        raise typer.Exit(board_there(sweep, cluster, port))
    raise typer.Exit(show_board(sweep, port=port, console=plain_console()))


@app.command()
def study(
    sweep: SweepArgument,
    out: Annotated[Path, typer.Argument(callback=expanded_argument, help="A folder for the copy; an earlier copy there is replaced.")],
) -> None:
    """Copy a sweep's Optuna study, running or finished, with its samples as artifacts, for optuna-dashboard."""
    from fewshot_ray.cli.show import read_sweep
    from fewshot_ray.report.study_copy import ARTIFACTS, copy_study
    from fewshot_ray.search.journal import JOURNAL

    folder, file = read_sweep(sweep)
    images = copy_study(folder, file, out)
    typer.echo(f"{out}: the study with {images} images; where optuna-dashboard is installed:")
    typer.echo(f"optuna-dashboard {shlex.quote(str(out / JOURNAL))} --artifact-dir {shlex.quote(str(out / ARTIFACTS))}")


@app.command()
def export(
    sweep: SweepArgument,
    out: Annotated[Path, typer.Argument(callback=expanded_argument, help="Where the pipeline's folder is to be.")],
    trial: Annotated[str | None, typer.Option(help="A trial's id; the sweep's result otherwise.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
) -> None:
    """Write the sweep's result as a diffusers pipeline with a model card."""
    from fewshot_ray.cli.results import chosen_trial, inputs_for_export
    from fewshot_ray.cli.show import read_sweep
    from fewshot_ray.report.export import export_trial

    folder, file = read_sweep(sweep)
    record = chosen_trial(folder, file, trial)
    for line in inputs_for_export(folder):
        typer.echo(f"warning: {line}", err=True)
    export_trial(folder, file, record, out.resolve(), overwrite=overwrite)
    typer.echo(f"{record.id}, step {record.best_step}: {out}")


@app.command()
def evaluate(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PLACE", callback=expanded_argument, help="A sweep; generated images (folder, zip, Parquet, URL); or a pipeline."
        ),
    ],
    trial: Annotated[str | None, typer.Option(help="Of a sweep: a trial's id; the sweep's result otherwise.")] = None,
    target: Annotated[str | None, typer.Option(callback=expanded_argument, help="The images trained on.")] = None,
    holdout: Annotated[str | None, typer.Option(callback=expanded_argument, help="Real images never trained on.")] = None,
    metrics: Annotated[str | None, typer.Option(metavar="A,B,...", help="Metrics; those that mean something otherwise.")] = None,
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="Images to draw (1000), or the first so many given.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side that given images are scaled and cropped to.")] = None,
    protocol: Annotated[str | None, typer.Option(help="clean (default), fsig, fsig-100 or adm: docs/metrics.md.")] = None,
    extractor: Annotated[str | None, typer.Option(help="Network whose features the metrics use, as evaluate.extractor.")] = None,
    extractor_weights: Annotated[str | None, typer.Option(callback=expanded_argument, help="A file with its weights.")] = None,
    inception_weights: Annotated[str | None, typer.Option(callback=expanded_argument, help="Those of sfid and inception_score.")] = None,
    dinov2_weights: Annotated[str | None, typer.Option(callback=expanded_argument, help="Of fd_dinov2: a folder or hub id.")] = None,
    clip_weights: Annotated[str | None, typer.Option(callback=expanded_argument, help="Of cmmd: a folder or hub id.")] = None,
    lpips_network: Annotated[str | None, typer.Option(help="vgg (default), alex or squeeze.")] = None,
    lpips_weights: Annotated[str | None, typer.Option(callback=expanded_argument, help="A file with those of LPIPS's network.")] = None,
    sampler: Annotated[str | None, typer.Option(help="Of a pipeline: ddim (default) or dpm++.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a pipeline: network evaluations an image (50).")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=1.0, help="Of a class-conditional pipeline.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of a pipeline's noise (0).")] = None,
    copies: Annotated[
        Path | None, typer.Option(metavar="FILE.png", callback=expanded_argument, help="The nearest copies, each over its training image.")
    ] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", callback=expanded_argument, help="All values with their stamps; - for stdout.")
    ] = None,
) -> None:
    """Measure a sweep's result on images nothing was chosen on, or any images or pipeline against those given."""
    from fewshot_ray.cluster import light_imports  # noqa: F401 (first)
    from fewshot_ray.cli.evaluate import Options, check_options, evaluate_finished, evaluate_place, kind_of  # isort: skip

    kind = kind_of(place)
    options = Options(
        trial=trial,
        target=target,
        holdout=holdout,
        metrics=metrics,
        number=number,
        size=size,
        protocol=protocol,
        extractor=extractor,
        extractor_weights=extractor_weights,
        inception_weights=inception_weights,
        dinov2_weights=dinov2_weights,
        clip_weights=clip_weights,
        lpips_network=lpips_network,
        lpips_weights=lpips_weights,
        sampler=sampler,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        copies=copies,
        json=json,
    )
    check_options(kind, options)
    if kind != "sweep":
        evaluate_place(place, kind, options)
        return
    evaluate_finished(place, options)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(callback=expanded_argument, help="An exported pipeline's folder, a hub id or a URL.")],
    out: Annotated[Path, typer.Argument(callback=expanded_argument, help="A folder for the PNG files; made where it isn't there.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Images.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    sampler: Annotated[str, typer.Option(help="ddim or dpm++.")] = "ddim",
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations an image.")] = 50,
    guidance_scale: Annotated[float, typer.Option(min=1.0, help="Classifier-free guidance; class-conditional models only.")] = 1.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace earlier samples and files of the same names; others stay.")
    ] = False,
) -> None:
    """Draw images from a pipeline."""
    from fewshot_ray.cli.results import sample_images

    sample_images(model, out, number=number, seed=seed, sampler=sampler, steps=steps, guidance_scale=guidance_scale, overwrite=overwrite)
    typer.echo(f"{number} images and grid.png: {out}")


register(app)


def main() -> None:
    """The entry point: errors that the user can correct are lines on standard error, with exit code 2 (docs/resuming.md has all codes)."""
    # File names may be no valid text, and a terminal's encoding may lack characters: neither may end a command.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    hush_clients()
    try:
        app()
    except UserError as error:
        say(error)
        sys.exit(2)


def say(error: UserError) -> None:
    """Print each message as a line on standard error."""
    for line in error.lines:
        print(f"error: {one_line(line)}", file=sys.stderr)


def hush_clients() -> None:
    """Drop what places' clients write where Python clears them away: connections left open, and one that was never made (FTP's)."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "of_others":  # by an earlier call in this process
        return

    def of_others(found: sys.UnraisableHookArgs) -> None:
        if not str(getattr(found.object, "__module__", "")).startswith("fsspec."):
            before(found)

    sys.unraisablehook = of_others


def one_line(text: str) -> str:
    """`text` with line ends and control characters, which a file's name may have, as escapes."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], text)
