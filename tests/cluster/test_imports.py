"""What a process of a sweep imports before it trains, since every process pays for it."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys
import fewshot_ray.cluster.actors, fewshot_ray.trial.families
print(*sorted({"peft", "transformers", "scipy", "optuna", "sklearn"} & {name.partition(".")[0] for name in sys.modules}))
import diffusers, peft, torchvision, transformers
from scipy import stats
print(gc.isenabled(), "UNet2DModel" in dir(diffusers), callable(stats.norm.cdf), callable(peft.get_peft_model))
"""


def test_a_trial_imports_nothing_that_plain_training_does_without() -> None:
    """Oracle: a fresh interpreter's own list; what diffusers was kept from importing can be imported afterwards."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["", "True True True True"]


def test_a_library_user_gets_diffusers_as_it_is() -> None:
    """Oracle: what diffusers says that it can use, in a fresh interpreter that reads a model first."""
    program = "import fewshot_ray.trial.trial\nfrom diffusers.utils import is_peft_available\nprint(is_peft_available())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
