"""Programs that have diffusers and can't import this package: forks of one process that has imported it, which takes seconds each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LIMIT_SEC = 120
SERVER = f"""
import json, os, signal, sys
sys.modules["fewshot_ray"] = None  # any import of it fails
import numpy, torch
from diffusers import DDPMPipeline, DiTPipeline, LDMPipeline
for line in sys.stdin:
    program, sys.argv[1:], out, err = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm({LIMIT_SEC})
        for number, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        exec(program, {{"__name__": "__main__"}})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class PlainDiffusers:
    """The process that is forked; it imports and computes nothing else, so every program finds it the same."""

    def __init__(self, folder: Path) -> None:
        self.out, self.err = folder / "out.txt", folder / "err.txt"
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")

    def run(self, program: str, *arguments: object) -> list[str]:
        """The words that it prints, with `arguments` as its command line's; it must end well within `LIMIT_SEC`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([program, [*map(str, arguments)], str(self.out), str(self.err)]), file=self.process.stdin, flush=True)
        code = self.process.stdout.readline().strip()
        assert code == "0", f"exit code {code}\n{self.err.read_text()}"
        return self.out.read_text().split()

    def stop(self) -> None:
        """No more programs."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(LIMIT_SEC)
