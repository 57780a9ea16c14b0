"""Which schedulers' models are trained, and with which betas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from fewshot_ray.errors import UserError
from fewshot_ray.models.scheduler import SCHEDULERS, read_scheduler
from fewshot_ray.models.source import build_backbone, load_backbone
from tests.tiny_diffusion import TINY_UNET
from tests.tiny_pipelines import WRITERS

CONFIG = Path("scheduler") / "scheduler_config.json"


def written(folder: Path, config: dict[str, Any] | None = None, named: Any = ("diffusers", "DDPMScheduler"), kind: str = "pixel") -> str:
    """A tiny pipeline whose scheduler's file is `config`, and whose model_index.json names `named`."""
    WRITERS[kind](folder)
    if config is not None:
        (folder / CONFIG).write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": named}))
    return str(folder)


def refused(place: str) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(place)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("source.model: ")
    assert message.endswith("would be right")
    return message


@pytest.mark.parametrize("kind", ["pixel", "ldm-vq", "dit"])
def test_a_flow_matching_model_is_refused(kind: str, tmp_path: Path) -> None:
    """Oracle: the rule for messages, for what diffusers itself writes."""
    name = "FlowMatchEulerDiscreteScheduler"
    place = written(tmp_path, named=["diffusers", name], kind=kind)
    FlowMatchEulerDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    assert f"{tmp_path / CONFIG} is of a {name}, which isn't supported" in refused(place)


@pytest.mark.parametrize(
    ("config", "named", "message"),
    [
        ({"_class_name": "KarrasVeScheduler"}, ["diffusers", "DDPMScheduler"], "is of a KarrasVeScheduler"),
        ({"_class_name": "DDPMScheduler"}, ["diffusers", "LCMScheduler"], "is of a LCMScheduler"),
        ({"_class_name": "DDPMScheduler"}, ["my_scheduler", "MyScheduler"], "is of a MyScheduler"),
        ({"_class_name": ["DDPMScheduler"]}, ["diffusers", "DDPMScheduler"], "is of a ['DDPMScheduler']"),
        ({}, [None, None], "is of a scheduler without a _class_name"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, None, "use_flow_sigmas is true"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, None, "prediction_type 'flow_prediction'"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, None, "timestep_type is 'continuous'"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, None, "zero terminal SNR"),
    ],
)
def test_other_theories_are_refused_by_name(config: dict[str, Any], named: Any, message: str, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    assert message in refused(written(tmp_path, config, named))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_silent_file_means_its_own_class_s_defaults(name: str, tmp_path: Path) -> None:
    """Oracle: alpha_bar and prediction type of diffusers' own class without any setting."""
    own = getattr(diffusers, name)()
    for number, (config, named) in enumerate([({"_class_name": name}, None), ({}, ["diffusers", name])]):
        backbone = load_backbone(written(tmp_path / str(number), config, named))
        torch.testing.assert_close(backbone.schedule.alphas_cumprod.float(), own.alphas_cumprod, rtol=2e-4, atol=1e-7)
        assert backbone.prediction_type == own.config.prediction_type


def test_the_file_s_own_values_come_first() -> None:
    """Oracle: by hand; what the class lacks is DDPM's default."""
    given = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.3,
        "num_train_timesteps": 20,
        "prediction_type": "v_prediction",
        "skip_prk_steps": 1,
    }
    config = read_scheduler(given, "PNDMScheduler", Path("here")).config
    assert (config.beta_end, config.num_train_timesteps, config.prediction_type, config.clip_sample) == (0.3, 20, "v_prediction", True)
    assert "skip_prk_steps" not in config
    assert "_use_default_values" not in config  # which diffusers puts back to another class's defaults


@pytest.mark.parametrize(
    ("settings", "t"),
    [({"time_embedding_type": "fourier"}, 0), ({"time_embedding_type": "learned", "num_train_timesteps": 300}, 500)],
)
def test_a_network_that_fails_at_some_t_is_refused(settings: dict[str, Any], t: int) -> None:
    """Oracle: the network itself at that t: log(0), and a table of fewer rows; the rule for messages."""
    with pytest.raises(UserError, match=rf"^source\.model: [^\n]* at t = {t}[ ;][^\n]*would be right$"):
        build_backbone({**TINY_UNET, **settings}, seed=0)


def test_a_network_of_one_timestep_is_taken() -> None:
    """Oracle: the schedule's length."""
    assert build_backbone({**TINY_UNET, "scheduler": {"num_train_timesteps": 1}}, seed=0).schedule.timesteps == 1
