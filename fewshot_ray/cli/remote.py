"""Commands for a cluster: a sweep runs there as a Ray job, independent of this machine. Imports no training library."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewshot_ray.cli.arguments import expanded_argument
from fewshot_ray.errors import UserError

if TYPE_CHECKING:
    from fewshot_ray.launch.cluster_file import ClusterFile
    from fewshot_ray.spec.document import Document
    from fewshot_ray.spec.sections import FileSpec

ClusterOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", callback=expanded_argument, help="The cluster file that `ray up` was given, or KubeRay's manifest."),
]
ServerOption = Annotated[
    str | None, typer.Option(help="A dashboard's address, http://127.0.0.1:8265 say: instead of a cluster file, or with KubeRay's.")
]
SweepName = Annotated[str, typer.Argument(help="A sweep's name, or its URL, <storage>/<name>.")]
SAID_AT_A_TIME = 5


def is_server(address: str | None) -> bool:
    """Whether an address is a dashboard's, for jobs, rather than a Ray cluster's that this process would join."""
    return bool(address and address.startswith(("http://", "https://")))


def launch(
    file: Annotated[Path, typer.Argument(callback=expanded_argument, help="A run's YAML file (see sweeps/).")],
    cluster: ClusterOption = None,
    address: ServerOption = None,
    detach: Annotated[bool, typer.Option("--detach", help="Don't follow what it prints.")] = False,
) -> None:
    """Run a file on a cluster as a Ray job, which continues when this machine is closed, and follow it. The same file again resumes it."""
    from fewshot_ray.launch.package import check_storage, pack
    from fewshot_ray.spec.validate import file_spec
    from fewshot_ray.storage import Folder
    from fewshot_ray.trial.fields import read_run_file

    document = read_run_file(file)
    spec = file_spec(document)
    check_storage(document, spec)
    if cluster is not None:
        check_cluster(cluster, spec)
    with tempfile.TemporaryDirectory(prefix="fewshot-ray-launch-") as scratch:
        packed = pack(document, Path(scratch), _say_image)
        sweep = (Folder(spec.storage) / spec.name).url
        request = {"command": "run"}
        raise typer.Exit(_submit(request, sweep, cluster, address, detach=detach, package=Path(scratch), document=packed))


def check_cluster(path: Path, file: FileSpec) -> ClusterFile:
    """The cluster file at `path`, checked for a run of `file`. Raises UserError, at once and without a network."""
    from fewshot_ray.launch.capacity import workers_at_once
    from fewshot_ray.launch.cluster_file import check_file_mounts, check_ssh_key, read_cluster_file

    cluster = read_cluster_file(path)
    check_ssh_key(cluster)
    check_file_mounts(cluster)
    workers_at_once(cluster, file.resources)
    return cluster


def resume_there(sweep: str, cluster: Path | None, address: str | None, *, limits: Mapping[str, float], workers: int | None) -> int:
    """Run `resume` on a cluster; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="fewshot-ray-launch-") as scratch:
        request = {"command": "resume", "limits": dict(limits), "workers": workers}
        return _submit(request, sweep, cluster, address, detach=False, package=Path(scratch))


def check_there(document: Document, file: FileSpec, cluster: Path) -> int:
    """Run `check` on a cluster's head, for what it reaches of storage, hub and images; returns the exit code."""
    from fewshot_ray.launch.package import pack
    from fewshot_ray.launch.submission import CHECK, job_server

    with tempfile.TemporaryDirectory(prefix="fewshot-ray-launch-") as scratch, job_server(cluster, None) as server:
        _write(Path(scratch), {"command": CHECK}, _there(cluster, None), pack(document, Path(scratch), _say_image))
        return _follow(server, server.submit(Path(scratch), sweep=file.name, command=CHECK), cluster, None)


def _say_image(line: str) -> None:
    typer.echo(f"image: {line}", err=True)


def status(
    sweep: Annotated[str | None, typer.Argument(help="A sweep's name or URL; all of them otherwise.")] = None,
    cluster: ClusterOption = None,
    address: ServerOption = None,
) -> None:
    """List the sweeps launched on a cluster, with their state; for one sweep also its latest output."""
    from rich.table import Table

    from fewshot_ray.launch.submission import job_server
    from fewshot_ray.report.terminal import plain_console

    with job_server(cluster, address) as server:
        jobs = server.jobs() if sweep is None else server.of_sweep(server.latest(sweep).sweep)
        table = Table("sweep", "state", "command", "started", "for", "at", box=None, pad_edge=False)
        for job in jobs:
            lasted = (job.ended_sec or time.time()) - job.started_sec
            started = time.strftime("%m-%d %H:%M", time.localtime(job.started_sec)) if job.started_sec else ""
            table.add_row(job.name, job.state.lower(), job.command, started, _duration(lasted) if job.started_sec else "", job.sweep)
        console = plain_console()
        if not jobs:
            console.print("nothing was launched there")
            return
        console.print(table, soft_wrap=True)
        if sweep is not None:
            for line in server.output(jobs[0]).splitlines()[-SAID_AT_A_TIME:]:
                console.print(line, soft_wrap=True)


def logs(
    sweep: SweepName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what it prints until it ends.")] = False,
    cluster: ClusterOption = None,
    address: ServerOption = None,
) -> None:
    """Print a launched sweep's output; with -f until it ends, with its exit code."""
    from fewshot_ray.launch.submission import job_server

    with job_server(cluster, address) as server:
        job = server.latest(sweep)
        if not follow:
            sys.stdout.write(server.output(job))
            return
        raise typer.Exit(_follow(server, job, cluster, address))


def stop(sweep: SweepName, cluster: ClusterOption = None, address: ServerOption = None) -> None:
    """End a launched sweep: its trials save their state, and `resume` continues from there."""
    from fewshot_ray.launch.submission import STOP_SEC, job_server

    with job_server(cluster, address) as server:
        job = server.latest(sweep)
        if job.ended:
            typer.echo(f"{job.name} has ended already ({job.state.lower()})")
            return
        server.stop(job)
        typer.echo(f"{job.name}: the trials save where they are")
        job = server.ended(job, wait_sec=STOP_SEC + 10)
        if not job.ended:
            raise UserError(
                f"{job.name} has not ended within {STOP_SEC} s; `fewshot-ray logs {sweep}{_there(cluster, address)}` may say why"
            )
        typer.echo(f"{job.state.lower()}; go on with: fewshot-ray resume {job.sweep}{_there(cluster, address)}")


def fetch(
    sweep: SweepName,
    out: Annotated[Path, typer.Argument(callback=expanded_argument, help="Where the pipeline's folder is to be, on this machine.")],
    cluster: ClusterOption = None,
    trial: Annotated[str | None, typer.Option(help="A trial's id; the sweep's result otherwise.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
) -> None:
    """Export a sweep's result on the cluster's head and copy it here: a diffusers pipeline with a model card."""
    from fewshot_ray.report.export_folder import export_folder

    out = out.resolve()
    with export_folder(out, overwrite=overwrite) as arriving:
        head, url = _on_head(sweep, cluster, "fetch")
        head.check_can_copy()  # before the export, which takes a while
        made = head.run("mktemp", "-d", capture=True)
        folder = made.stdout.strip()
        if made.returncode != 0 or not folder.startswith("/"):
            raise UserError(f"{head.address}: no temporary folder could be made there ({made.stderr.strip()})")
        try:
            exported = head.run("fewshot-ray", "export", url, f"{folder}/model", *(["--trial", trial] if trial else []), capture=True)
            if exported.returncode != 0:
                lines = [line for line in exported.stderr.splitlines() if line.strip()]
                said = lines[-1].removeprefix("error: ") if lines else f"`fewshot-ray export` ended with {exported.returncode} there"
                raise UserError(said)
            head.copy_from(f"{folder}/model", arriving)
        finally:
            with suppress(UserError):
                head.run("rm", "-rf", folder, capture=True)
    typer.echo(f"{exported.stdout.strip().rsplit(':', 1)[0]}: {out}")


def leaderboard_there(sweep: str, cluster: Path) -> int:
    """Run `leaderboard` on the cluster's head, which has the storage's credentials; returns the exit code."""
    head, url = _on_head(sweep, cluster, "leaderboard")
    return int(head.run("fewshot-ray", "leaderboard", url, terminal=sys.stdin.isatty() and sys.stdout.isatty()).returncode)


def board_there(sweep: str, cluster: Path, port: int) -> int:
    """Run `board` on the cluster's head, through a tunnel; returns the exit code."""
    from fewshot_ray.cli.board import check_port

    check_port("127.0.0.1", port)
    head, url = _on_head(sweep, cluster, "board")
    return int(head.board(url, port))


def _on_head(sweep: str, cluster: Path | None, command: str) -> tuple[Any, str]:
    """The head and the sweep's URL; a bare name is looked up among the launched sweeps."""
    from fewshot_ray.launch.cluster_file import read_cluster_file
    from fewshot_ray.launch.head import DASHBOARD_PORT, Head
    from fewshot_ray.launch.submission import JobServer

    if cluster is None:
        raise UserError(f"{command} goes through a cluster's head: --cluster FILE (as for `ray up`) would be right")
    head = Head(read_cluster_file(cluster))
    if "/" in sweep:
        return head, sweep
    with head.tunnel(DASHBOARD_PORT) as port:
        return head, JobServer(f"http://127.0.0.1:{port}", f"`ray up {cluster}` starts it").latest(sweep).sweep


def _submit(
    request: dict[str, Any],
    sweep: str,
    cluster: Path | None,
    address: str | None,
    *,
    detach: bool,
    package: Path,
    document: Document | None = None,
) -> int:
    """Submit a request as a job, and follow it unless `detach`; returns the exit code."""
    from fewshot_ray.launch.submission import job_server

    with job_server(cluster, address) as server:
        if request["command"] == "resume":
            sweep = sweep if "/" in sweep else server.latest(sweep).sweep
            request["sweep"] = sweep
        for job in server.of_sweep(sweep):
            if not job.ended:
                there = _there(cluster, address)
                raise UserError(
                    f"{job.name} runs there already; `fewshot-ray logs -f {job.name}{there}` follows it, `stop {job.name}{there}` ends it"
                )
        nodes = _growth(cluster) if cluster is not None else next((job.nodes for job in server.of_sweep(sweep) if job.nodes), "")
        request["nodes"] = json.loads(nodes) if nodes else None
        _write(package, request, _there(cluster, address), document)
        job = server.submit(package, sweep=sweep, command=request["command"], nodes=nodes)
        shutil.rmtree(package, ignore_errors=True)  # printed now, since the terminal may be closed while this follows
        typer.echo(f"submitted as {job.id}", err=True)
        if detach:
            typer.echo(f"follow it with: fewshot-ray logs -f {job.name}{_there(cluster, address)}", err=True)
            return 0
        return _follow(server, job, cluster, address)


def _growth(cluster: Path) -> str:
    """Limits that a cluster may grow to (`capacity.Growth`), as JSON; "" where its file doesn't say what its nodes have."""
    from fewshot_ray.launch.capacity import most_nodes
    from fewshot_ray.launch.cluster_file import read_cluster_file

    nodes = most_nodes(read_cluster_file(cluster))
    return json.dumps(nodes) if nodes else ""


def _write(package: Path, request: dict[str, Any], there: str, document: Document | None) -> None:
    """Write the request with the versions that the cluster should have, and the run's file for the cluster."""
    from fewshot_ray.launch.submission import write_request
    from fewshot_ray.launch.versions import code, versions
    from fewshot_ray.search.sweep_folder import SPEC
    from fewshot_ray.spec.document import to_yaml

    if document is not None:
        (package / SPEC).write_text(to_yaml(document.tree))
        request |= {"name": document.name, "lines": dict(document.lines)}
    write_request(package, {**request, "versions": versions(), "code": code(), "there": there})


def _follow(server: Any, job: Any, cluster: Path | None = None, address: str | None = None) -> int:
    """Print a job's output until it ends; returns its exit code. Ctrl-C leaves the job running."""
    from fewshot_ray.launch.submission import CHECK

    there = _there(cluster, address)
    try:
        for piece in server.follow(job):
            sys.stdout.write(piece)
            sys.stdout.flush()
        job = server.ended(job, wait_sec=30)
    except KeyboardInterrupt:
        if job.command == CHECK:
            server.stop(job)
            return 130
        typer.echo(
            f"\nit goes on there; `fewshot-ray logs -f {job.name}{there}` follows it, `fewshot-ray stop {job.name}{there}` ends it",
            err=True,
        )
        return 130
    except UserError as error:
        raise UserError(f"{error}; it may well go on there: `fewshot-ray status {job.name}{there}` says") from error
    if job.state == "SUCCEEDED":
        return 0
    if job.exit_code is None:  # the job never ran, or was stopped
        raise UserError(f"{job.name}: {job.state.lower()} ({' '.join(job.message.split())[:300] or 'no reason given'})")
    return int(job.exit_code)


def _there(cluster: Path | None, address: str | None) -> str:
    """The option that names the cluster, as it was given, for commands in messages."""
    options = [*(("--cluster", str(cluster)) if cluster else ()), *(("--address", address) if address else ())]
    return "".join(f" {shlex.quote(word)}" for word in options)


def _duration(seconds: float) -> str:
    from datetime import timedelta

    return str(timedelta(seconds=int(seconds)))


def register(app: typer.Typer) -> None:
    """Add the commands that exist only for clusters."""
    for command in (launch, status, logs, stop, fetch):
        app.command()(command)


__all__ = ["board_there", "check_cluster", "check_there", "is_server", "leaderboard_there", "register", "resume_there"]
