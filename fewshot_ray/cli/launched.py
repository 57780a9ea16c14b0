"""What `launch` runs on a cluster's head as the entry point of a Ray job: unpacks a package and checks versions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import Document, read_document

if TYPE_CHECKING:
    from rich.console import Console


def check_versions(laptops: Mapping[str, str], modules: Mapping[str, str]) -> None:
    """Raise UserError where versions differ from the laptop's, since training would."""
    from fewshot_ray.launch.versions import different

    differences = different(laptops, modules)
    if differences:
        raise UserError(
            f"versions differ ({'; '.join(differences[:4])}); the same constraints.txt and the same fewshot-ray on both "
            "are right (`ray up` again installs the laptop's there, an image built anew on Kubernetes)"
        )


def received(request: Mapping[str, Any], package: Path, *, stays: bool = False) -> tuple[Document, list[Path]]:
    """The file that was sent, with the places of its images, and the paths for `store`; with `stays` the places are those paths."""
    from fewshot_ray.launch.package import unpack
    from fewshot_ray.search.sweep_folder import SPEC
    from fewshot_ray.spec.validate import file_spec

    document = Document(read_document(package / SPEC).tree, str(request["name"]), request["lines"])
    return unpack(document, file_spec(document), package, stays=stays)


def check_here(document: Document, console: Console) -> None:
    """Check model, images and storage from a node. Raises UserError. The laptop makes the plan."""
    from fewshot_ray.cli.check import Say, say_warm_start
    from fewshot_ray.cluster.needs import check_sources
    from fewshot_ray.search.opened import planned_sweep
    from fewshot_ray.writable import check_writable

    opened = planned_sweep(document)
    check_sources(opened.document, opened.file, Say(console))
    say_warm_start(opened, Say(console))
    check_writable(opened.folder.folder)
    Say(console)("storage", f"{opened.folder.folder.url} can be written")


def request_at(path: Path) -> dict[str, Any]:
    """The request of a package. Raises UserError where the file isn't one."""
    try:
        request = json.loads(path.read_bytes())
        return {**request, "command": str(request["command"]), "versions": dict(request["versions"]), "code": dict(request.get("code", {}))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no request of `fewshot-ray launch` ({error}); it is for launched jobs, `run` is for people") from error


def ray_of_the_job() -> str:
    """The address of the Ray cluster that runs this job."""
    return os.environ.get("RAY_ADDRESS", "auto")
