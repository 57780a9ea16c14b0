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
from tests.tiny_pipelines import WRITERS

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
    torch.testing.assert_close(backbone.schedule.alphas_cumprod.float(), expected, rtol=1e-4, atol=0)
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


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"down_block_types": [3, "AttnDownBlock2D"]}, "unet/config.json describes no UNet2DModel"),
        ("unet/config.json", {"block_out_channels": "wide"}, "unet/config.json describes no UNet2DModel"),
        ("unet/config.json", {"time_embedding_type": "none"}, "unet/config.json describes no UNet2DModel"),
        ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block is 1000000000, more than 64"),
        ("unet/config.json", {"block_out_channels": [2**20, 2**20]}, "billion parameters"),
        ("unet/config.json", {"block_out_channels": [4096, 4096]}, "more than its weights'"),
        ("unet/config.json", {"sample_size": "8"}, "no sample_size in pixels ('8')"),
        ("unet/config.json", {"sample_size": [8, 8, 8]}, "no sample_size in pixels"),
        ("unet/config.json", {"sample_size": 7}, "can't take the 1x7x7 images"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "scheduler_config.json can't be used (num_train_timesteps is"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "no timesteps"),
        ("scheduler/scheduler_config.json", {"beta_start": "low"}, "scheduler_config.json can't be used"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "can't be sampled from"),
        ("scheduler/scheduler_config.json", {"trained_betas": 0.1}, "no timesteps"),
    ],
)
def test_configurations_that_stand_for_nothing(save: Save, file: str, changes: dict[str, object], message: str) -> None:
    """Oracle: the rule for messages; nothing is allocated, so that it takes no time either."""
    folder = save()
    edit(folder / file, **changes)
    text = refused(str(folder))
    assert message in text
    assert text.endswith("would be right")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xfe\xff", b"3", b""])
def test_configurations_that_are_none(save: Save, content: bytes) -> None:
    """Oracle: the rule for messages."""
    folder = save()
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        assert f"{folder / name} " in refused(str(folder))
        (folder / name).write_bytes(whole)


def test_weights_that_are_no_numbers(save: Save) -> None:
    """Oracle: the name of the weight that one NaN was put into."""
    folder = save()
    weights = load_file(folder / WEIGHTS)
    weights["conv_in.bias"][0] = float("nan")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    assert "aren't all finite numbers, first conv_in.bias" in refused(str(folder))


def test_classes_by_what_is_no_number(tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    WRITERS["dit"](tmp_path)
    edit(tmp_path / "model_index.json", id2label={"cat": "0"})
    assert "id2label has keys that are no numbers" in refused(str(tmp_path))


@pytest.mark.parametrize(
    "changes", [{"scaling_factor": "x"}, {"scaling_factor": 0}, {"latent_channels": 4}, {"down_block_types": ["DownEncoderBlock2D"]}]
)
def test_autoencoders_that_stand_for_nothing(tmp_path: Path, changes: dict[str, object]) -> None:
    """Oracle: the rule for messages."""
    WRITERS["ldm-vq"](tmp_path)
    edit(tmp_path / "vqvae" / "config.json", **changes)
    refused(str(tmp_path))


@pytest.mark.parametrize(
    "settings", [{"down_block_types": [["DownBlock2D"]]}, {"layers_per_block": 10**9}, {"scheduler": {"beta_start": "x"}}]
)
def test_builds_that_stand_for_nothing(settings: dict[str, object]) -> None:
    """Oracle: the rule for messages."""
    with pytest.raises(UserError, match=r"^source\.build: [^\n]*would be right$"):
        build_backbone({**TINY_UNET, **settings}, seed=0)


@pytest.mark.parametrize("place", ["~nobody-of-that-name/model", "a" * 5000, "a\0b"])
def test_places_that_no_disk_has(place: str) -> None:
    """Oracle: the rule for messages."""
    with pytest.raises(UserError, match=r"^source\.model: "):
        locate_pipeline(place)


def test_a_pickle_in_the_weights_place_does_not_run(save: Save, tmp_path: Path) -> None:
    """Oracle: the file that it would touch."""

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "touched",)

    for number, suffix in enumerate((".bin", ".safetensors")):
        folder = save(f"pickled{number}")
        (folder / WEIGHTS).unlink()
        torch.save({"conv_in.bias": Touch()}, (folder / WEIGHTS).with_suffix(suffix))
        assert "can't be read" in refused(str(folder))
    assert not (tmp_path / "touched").exists()
