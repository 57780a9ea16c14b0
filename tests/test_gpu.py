"""bench/gpu.py: what is kept of a part, however it ends."""

from __future__ import annotations

from pathlib import Path

from bench import gpu


def test_a_part_is_recorded_however_it_ends(tmp_path: Path) -> None:
    """Oracle: a program's own code and last lines; one that would never end is stopped."""
    ends, stays = tmp_path / "ends.py", tmp_path / "stays.py"
    ends.write_text("import sys\nprint('measured', *sys.argv[1:])\nsys.exit(3)\n")
    stays.write_text("import time\nwhile True:\n    time.sleep(1)\n")
    ended = gpu.run_part(str(ends), "--quick", most_sec=300.0)
    stopped = gpu.run_part(str(stays), most_sec=0.2)
    assert (ended["code"], ended["output"]) == (3, ["measured --quick"])
    assert stopped["code"] is None


def test_all_parts_fit_into_twelve_minutes() -> None:
    """Oracle: each is stopped after 100 seconds."""
    assert len(gpu.GPU) * gpu.MOST_SEC <= 12 * 60
    assert all((gpu.BENCH / script).is_file() for script, *_ in (*gpu.GPU, *gpu.CPU))
