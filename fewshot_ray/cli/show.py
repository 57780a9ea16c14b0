"""Shows a sweep's results in the terminal."""

from __future__ import annotations

from rich.console import Console

from fewshot_ray.errors import UserError
from fewshot_ray.report.importance import importances, searched_ranges
from fewshot_ray.report.stamps import sweep_stamps
from fewshot_ray.report.tables import leaderboard_view
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.lease import is_driven
from fewshot_ray.search.sweep_folder import SPEC, SweepFolder, read_spec
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.validate import file_spec
from fewshot_ray.storage import Folder


def read_sweep(place: str) -> tuple[SweepFolder, FileSpec]:
    """A sweep's folder and file. Raises UserError where there is none."""
    folder = Folder(place)
    if not folder.exists(SPEC):
        raise UserError(f"{place}: no sweep there ({SPEC} is missing); the folder that `fewshot-ray run` printed would be right")
    return SweepFolder(folder), file_spec(read_spec(folder))


def show_sweep(folder: SweepFolder, file: FileSpec, console: Console) -> None:
    """The leaderboard, the winner, what its reruns say, what values are measured with, and which searched values mattered."""
    rows = leaderboard(folder, file.search, driven=is_driven(folder.folder))
    console.print(leaderboard_view(rows, file.search, width=console.width))
    if stamps := sweep_stamps(folder, rows):
        console.print("\nmeasured with " + "\n".join(stamps), style="dim")
    for importance in importances(rows, searched_ranges(folder), file.search.objectives):
        console.print(f"\n{importance.describe()}", highlight=False)
    if any(row.interrupted for row in rows):
        console.print(f"\ninterrupted; go on with: fewshot-ray resume {folder.folder.url}", soft_wrap=True)
