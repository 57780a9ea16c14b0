import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from fewshot_ray.errors import UserError
from fewshot_ray.models.parameters import AdaptorConfig, tune
from fewshot_ray.models.source import build_backbone, load_backbone, locate_pipeline, weights_hash
from tests.tiny_diffusion import TINY_UNET, normal, tiny_unet

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Save:
    """A tiny pipeline on disk; downloads go to a folder of the test's own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def save(name: str = "pipeline", *, seed: int = 0, scheduler: dict[str, object] | None = None, **changes: object) -> Path:
        DDPMPipeline(tiny_unet(seed, **changes), DDPMScheduler(**(scheduler or {}))).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def refused(place: str, revision: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_backbone(place, revision)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(("source.model: ", "source.revision: "))
    return message


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder(save: Save, prefix: str) -> None:
    """Oracle: what was saved: weights, schedule, prediction space; in eval mode and float32."""
    folder = save(scheduler={"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 60})
    backbone = load_backbone(f"{prefix}{folder}")
    assert same_weights(backbone.network, tiny_unet())
    assert backbone.prediction_type == "v_prediction"
    expected = DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=60).alphas_cumprod
    assert torch.equal(backbone.schedule.alphas_cumprod, expected)
    assert not backbone.network.training
    assert backbone.network.dtype == torch.float32


def test_half_precision_weights_and_ddim_pipelines(save: Save, tmp_path: Path) -> None:
    """Oracle: the weights rounded to float16 by hand; a DDIMPipeline's own schedule."""
    DDIMPipeline(tiny_unet().half(), DDIMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "half")
    backbone = load_backbone(str(tmp_path / "half"))
    assert same_weights(backbone.network, tiny_unet().half().float())
    assert backbone.schedule.timesteps == 50


def flatten(folder: Path) -> None:
    """The layout of google/ddpm-cat-256 and its kin: every file beside model_index.json."""
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            shutil.move(file, folder / file.name)
        (folder / part).rmdir()


def test_the_flat_layout_of_early_pipelines(save: Save) -> None:
    """Oracle: diffusers, whose DDPMPipeline.from_pretrained reads the same folder, and the saved weights."""
    folder = save()
    flatten(folder)
    assert same_weights(DDPMPipeline.from_pretrained(folder).unet, tiny_unet())
    assert same_weights(load_backbone(str(folder)).network, tiny_unet())


def test_early_attention_names_and_unknown_settings(save: Save) -> None:
    """Oracle: the saved weights: early files call the attention query, key, value, proj_attn, and configurations outlive versions."""
    folder = save()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    early = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        early[key] = tensor.clone()
    save_file(early, folder / WEIGHTS, metadata={"format": "pt"})
    edit(folder / "unet/config.json", some_setting_of_another_version=3)
    backbone = load_backbone(str(folder))
    assert same_weights(backbone.network, tiny_unet())
    adapted = tune(backbone.network, "adaptor", AdaptorConfig(), seed=0).network
    t = torch.tensor([5, 6])
    torch.testing.assert_close(adapted.eval()(normal(2), t).sample, tiny_unet()(normal(2), t).sample, atol=1e-5, rtol=1e-5)


def test_missing_places() -> None:
    """Oracle: the rule for messages: one line, what was given, what would be right."""
    assert "no folder '/nowhere/at/all'" in refused("/nowhere/at/all")
    assert "hub id" in refused("nowhere")
    assert "embedded://digits-ddpm" in refused("embedded://faces")
    assert "no hub id" in refused("my folder/my model")
    assert "foo://a/b can't be read" in refused("foo://a/b")


def test_a_folder_that_is_no_pipeline(save: Save, tmp_path: Path) -> None:
    """Oracle: as above; each missing or damaged piece is named."""
    (tmp_path / "empty").mkdir()
    assert "has no model_index.json" in refused(str(tmp_path / "empty"))
    folder = save()
    edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    supported = "one of DDPMPipeline, DDIMPipeline, LDMPipeline, DiTPipeline is"
    assert f"is a StableDiffusionPipeline, which isn't supported; {supported}" in refused(str(folder))
    (folder / "model_index.json").write_text("{not json")
    assert "isn't JSON" in refused(str(folder))
    (folder / "model_index.json").write_text("[]")
    assert "holds no JSON object" in refused(str(folder))
    folder = save("conditional")
    edit(folder / "unet/config.json", _class_name="UNet2DConditionModel")
    assert "has a UNet2DConditionModel" in refused(str(folder))
    folder = save("unscheduled")
    edit(folder / "scheduler/scheduler_config.json", beta_schedule="mystery")
    assert "scheduler_config.json can't be used" in refused(str(folder))
    (folder / "scheduler/scheduler_config.json").unlink()
    assert "has no scheduler_config.json" in refused(str(folder))


def test_weights_that_do_not_fit(save: Save) -> None:
    """Oracle: the key that was taken away, added or reshaped by hand; damaged and missing files."""
    weights = load_file(save() / WEIGHTS)
    cases = {
        "missing keys, first conv_in.bias": {key: tensor for key, tensor in weights.items() if key != "conv_in.bias"},
        "unexpected keys, first extra.weight": {**weights, "extra.weight": torch.zeros(3)},
        "conv_in.bias": {**weights, "conv_in.bias": torch.zeros(3)},
    }
    for number, (message, changed) in enumerate(cases.items()):
        folder = save(f"case{number}")
        save_file(changed, folder / WEIGHTS, metadata={"format": "pt"})
        assert message in refused(str(folder))
    folder = save("cut")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])
    assert "can't be read" in refused(str(folder))
    (folder / WEIGHTS).unlink()
    assert "can't be read" in refused(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_channels": 3}, "1 channels in and 3 out"),
        ({"num_class_embeds": 10}, "class-conditional"),
        ({"sample_size": None}, "no sample_size"),
        ({"scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}}, "zero terminal SNR"),
    ],
)
def test_kinds_that_are_not_supported_yet(save: Save, changes: dict[str, object], message: str) -> None:
    """Oracle: the rule for messages."""
    text = refused(str(save(**changes)))
    assert message in text
    assert text.endswith("would be right")


@pytest.fixture
def remote(save: Save) -> Iterator[str]:
    """A folder at memory:// holding a tiny pipeline."""
    url = f"memory://{uuid4().hex}/model"
    put(save(), url)
    yield url
    fsspec.filesystem("memory").rm(url.rsplit("/", 1)[0], recursive=True)


def put(folder: Path, url: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with fsspec.open(f"{url}/{file.relative_to(folder).as_posix()}", "wb") as out:
                out.write(file.read_bytes())


def test_a_remote_place(save: Save, remote: str) -> None:
    """Oracle: the saved weights, through fsspec's memory filesystem; a second look downloads nothing, other weights of equal size do."""
    assert same_weights(load_backbone(remote).network, tiny_unet())
    first = locate_pipeline(remote)
    stamp = (first / WEIGHTS).stat().st_mtime_ns
    assert locate_pipeline(f"{remote}/") is not None
    assert (locate_pipeline(remote) / WEIGHTS).stat().st_mtime_ns == stamp
    put(save("other", seed=1), remote)
    assert same_weights(load_backbone(remote).network, tiny_unet(1))
    with fsspec.open(f"{remote}/images/huge.png", "wb") as out:
        out.write(b"no part of the model")
    assert not (locate_pipeline(remote) / "images").exists()


def test_a_remote_place_without_a_pipeline(remote: str) -> None:
    """Oracle: the rule for messages."""
    assert f"no model_index.json at {remote}/unet" in refused(f"{remote}/unet")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: huggingface_hub's own offline mode, and the rule for messages."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "'google/ddpm-cat-256' is no folder here and the hub can't be reached" in refused("google/ddpm-cat-256")
    assert "the hub can't be reached" in refused("google/ddpm-cat-256", "main")


def test_built_from_scratch() -> None:
    """Oracle: UNet2DModel built by hand under the same seed; the caller's random state stays; mistakes are one line."""
    before = torch.random.get_rng_state()
    backbone = build_backbone({**TINY_UNET, "scheduler": {"num_train_timesteps": 30, "prediction_type": "sample"}}, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert same_weights(backbone.network, tiny_unet(4))
    assert (backbone.schedule.timesteps, backbone.prediction_type) == (30, "sample")
    for settings in (
        {**TINY_UNET, "chanels": 3},
        {**TINY_UNET, "block_out_channels": (6, 6)},
        {**TINY_UNET, "scheduler": {"beta_schedule": "mystery"}},
        {**TINY_UNET, "scheduler": None},
    ):
        with pytest.raises(UserError, match=r"^source\.build: [^\n]*would be right$"):
            build_backbone(settings, seed=0)


def test_weights_hash() -> None:
    """Oracle: equality of the weights: one changed number or name changes it, a copy and a device don't."""
    assert weights_hash(tiny_unet()) == weights_hash(tiny_unet())
    assert len(weights_hash(tiny_unet())) == 16
    changed = tiny_unet()
    changed.conv_in.bias.data[0] += 1e-6
    assert len({weights_hash(network) for network in (tiny_unet(), tiny_unet(1), changed)}) == 3
    assert weights_hash(UNet2DModel(**TINY_UNET).half()) != weights_hash(UNet2DModel(**TINY_UNET))
