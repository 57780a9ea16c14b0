"""The other end of `launch`: what a cluster's head does with a package that a laptop sent, as the entry point of a Ray job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import Document, read_document


def check_versions(laptops: Mapping[str, str]) -> None:
    """Raise UserError where this cluster has not what the laptop has; a training elsewhere would be another one."""
    from fewshot_ray.cluster.versions import different

    differences = different(laptops)
    if differences:
        raise UserError(
            f"versions differ ({'; '.join(differences[:4])}); the same constraints.txt and the same fewshot-ray on both "
            "are right (`ray up` again installs the laptop's there)"
        )


def received(request: Mapping[str, Any], package: Path, *, store: bool = True) -> Document:
    """The file that was sent, under its own name, its images where every node can read them; without `store` where this one can."""
    from fewshot_ray.cluster.package import unpack
    from fewshot_ray.patience import LONG_PATIENCE_SEC, patience
    from fewshot_ray.report.sweep_folder import SPEC
    from fewshot_ray.spec.validate import file_spec

    document = Document(read_document(package / SPEC).tree, str(request["name"]), request["lines"])
    with patience(LONG_PATIENCE_SEC):
        return unpack(document, file_spec(document), package, store=store)


def request_at(path: Path) -> dict[str, Any]:
    """What a package asks for. Raises UserError where it is none."""
    try:
        request = json.loads(path.read_bytes())
        return {**request, "command": str(request["command"]), "versions": dict(request["versions"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no request of `fewshot-ray launch` ({error}); it is for launched jobs, `run` is for people") from error


def ray_of_the_job() -> str:
    """The address of the cluster whose job this is."""
    return os.environ.get("RAY_ADDRESS", "auto")
