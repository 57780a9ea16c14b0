"""A GAN's trial from file to pipeline, on the smallest networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.methods.gan import GanMethod
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import latest_checkpoint
from fewshot_ray.training.group import Group
from fewshot_ray.trial import evaluation as evaluation_module
from fewshot_ray.trial.compose import check_document, compose, effective_tree, expand, preset_values
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.finished import load_finished
from fewshot_ray.trial.gan_candidate import GanCandidate
from fewshot_ray.trial.source import measure_source
from fewshot_ray.trial.trial import Trial
from tests.conftest import Workers

CPU = torch.device("cpu")
STYLEGAN2 = {"stylegan2": {"resolution": 8, "channels": 1, "latent_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8}}
FASTGAN = {"fastgan": {"resolution": 64, "channels": 1, "latent_dim": 8, "width": 8}}
PIXELS = {"reconstruction": "pixels"}


def document(**sections: Any) -> Document:
    """A file whose sections are updated key by key; `method` and `source` are replaced."""
    tree: dict[str, Any] = {
        "name": "tiny-gan",
        "source": {"gan": STYLEGAN2},
        "target": {"images": "embedded://digits/shots", "shots": 8, "holdout": 4},
        "method": {"mixdl": {}},
        "train": {"steps": 4, "flip": False},
        "evaluate": {"every": 2, "samples": 6, "grid_images": 4, "paths": 2, "metrics": ["kid", "path_uniformity", "modes"]},
    }
    for name, section in sections.items():
        merge = isinstance(section, dict) and isinstance(tree.get(name), dict) and name not in ("method", "source")
        tree[name] = {**tree[name], **section} if merge else section
    return Document(tree, "tiny.yaml")


def trial(place: Path, **sections: Any) -> Trial:
    return Trial(compose(expand(document(**sections))), Folder(place) / "trial", Folder(place) / "cache", device=CPU)


CASES: dict[str, dict[str, Any]] = {
    "stylegan2": {},
    "stylegan2+ada": {"train": {"gan": {"ada": {"initial_probability": 0.5, "every_steps": 1, "length_images": 40}}}},
    "fastgan": {"source": {"gan": FASTGAN}, "train": {"gan": PIXELS, "batch_size": 4}},
    "rivals": {"method": {"n_div": {}, "ms_gan": {}, "distance_gan": {}}},
}


class Pixels:
    """Stands in for Inception, whose weights can't be had here: an image's own numbers, shrunk."""

    id, weights_hash, resize = "pixels", "none", "none"

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 8).flatten(1).cpu() / 255


@pytest.fixture(autouse=True)
def without_inception(monkeypatch: pytest.MonkeyPatch) -> None:
    load = evaluation_module.load_extractor
    monkeypatch.setattr(
        evaluation_module, "load_extractor", lambda name, **settings: Pixels() if name == "inception" else load(name, **settings)
    )


@pytest.mark.parametrize("case", CASES)
def test_resuming_is_the_uninterrupted_run_bit_for_bit(case: str, tmp_path: Path) -> None:
    """Oracle: the run in one go, to the last bit of weights, averages, optimisers, heads, running statistics and metrics."""
    whole = trial(tmp_path / "whole", **CASES[case])
    expected = [(one.step, one.metrics, one.train_loss) for one in whole.evaluations()]
    stopped = trial(tmp_path / "stopped", **CASES[case])
    assert next(stopped.evaluations()).step == 2
    torch.randn(3)
    resumed = trial(tmp_path / "stopped", **CASES[case])
    assert [(one.step, one.metrics, one.train_loss) for one in resumed.evaluations()] == expected
    one, other = (latest_checkpoint(run.checkpoints) for run in (resumed, whole))
    assert one is not None
    assert other is not None
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert set(expected[0][1]) >= {"kid", "path_uniformity", "path_mean", "path_end", "modes"}


def test_a_checkpoint_holds_every_head_and_statistic(tmp_path: Path) -> None:
    """Oracle: by name: MixDL's heads and their optimiser's state (missing in the authors' checkpoints), ADA's p, the path length's mean."""
    run = trial(tmp_path, **CASES["stylegan2+ada"])
    list(run.evaluations())
    checkpoint = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    for name in (
        "trained/mixdl_projection.weight",
        "trained/mixdl_patches.8.weight",
        "optimizer/D/mixdl_projection.weight/exp_avg_sq",
        "optimizer/D/mixdl_patches.8.weight/exp_avg_sq",
        "trained/discriminator.final_linear.1.weight",
        "buffer/ada.probability",
        "buffer/mean_path_length",
        "ema/conv1.conv.weight",
    ):
        assert f"fold0/{name}" in checkpoint.tensors, name
    assert float(checkpoint.tensors["fold0/buffer/mean_path_length"]) > 0


@pytest.mark.parametrize("case", ["stylegan2", "fastgan"])
def test_a_saved_model_is_the_one_that_was_measured(case: str, tmp_path: Path) -> None:
    """Oracle: images of the averaged weights in the trial itself; of the file by `load_finished`, and by plain diffusers."""
    run = trial(tmp_path, **CASES[case])
    last = list(run.evaluations())[-1]
    z = torch.randn((3, 8), generator=torch.Generator().manual_seed(0))
    with run.trainings[0].ema.applied():
        expected = run.materials.candidate(run.trainings[0]).images(z, range(3), run.config)
    finished = load_finished(run.spec, run.folder, last.step, cache=Folder(tmp_path) / "cache", device=CPU)
    assert isinstance(finished.candidate, GanCandidate)
    assert torch.equal(finished.candidate.images(z, range(3), run.config), expected)
    out = tmp_path / "pipeline"
    out.mkdir()
    code = finished.candidate.save(out)
    assert (out / str(code)).is_file()
    pipeline = DiffusionPipeline.from_pretrained(str(out), trust_remote_code=True)
    assert torch.equal(from_model_range(2 * pipeline(latents=z, output_type="pt").images - 1), expected)
    drawn = [pipeline(2, generator=torch.Generator().manual_seed(5)).images[1] for _ in range(2)]
    assert drawn[0].size == run.materials.size
    assert drawn[0].tobytes() == drawn[1].tobytes()
    again = trial(tmp_path / "again", **{**CASES[case], "source": {"gan": {case: {"weights": str(out)}}}})
    assert torch.equal(again.materials.source_candidate().images(z, range(3), run.config), expected)


def stage_names(cache: Path) -> list[str]:
    return [json.loads((folder / "stage.json").read_text())["name"] for folder in cache.iterdir()]


def test_rivals_that_need_a_source_train_from_one(tmp_path: Path) -> None:
    """Oracle: the loop itself, with an exported GAN as source; what EWC prepares is cached once; held layers stay as they were."""
    first = trial(tmp_path / "source")
    trained = list(first.evaluations())[-1]
    assert "drift" not in trained.metrics  # what it began from has random weights
    finished = load_finished(first.spec, first.folder, 4, cache=Folder(tmp_path) / "cache", device=CPU)
    out = tmp_path / "pipeline"
    out.mkdir()
    finished.candidate.save(out)
    run = trial(
        tmp_path,
        source={"gan": {"stylegan2": {"weights": str(out)}}},
        method={"cdc": {}, "ewc": {"fisher_samples": 2}, "freezed": {"layers": 1}},
    )
    run.materials.build_stages()
    built = stage_names(tmp_path / "cache")
    assert built.count("fisher") == 1
    measured = measure_source(run.spec, Folder(tmp_path / "measured"), Folder(tmp_path / "cache"), CPU)
    assert measured.metrics == pytest.approx({**trained.metrics, "drift": 0})
    assert (tmp_path / "measured/samples/path_000000.png").exists()
    assert [one.step for one in run.evaluations()] == [2, 4]
    assert stage_names(tmp_path / "cache").count("fisher") == 1
    method = run.trainings[0].method
    assert isinstance(method, GanMethod)
    assert isinstance(finished.candidate, GanCandidate)
    before, after = finished.candidate.gan.discriminator.state_dict(), method.gan.discriminator.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith("convs.0.") for name in changed)


def _run(place: str, sections: dict[str, Any]) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    run = trial(Path(place), **sections)
    metrics = [one.metrics | {"loss": one.train_loss} for one in run.evaluations()]
    method = run.trainings[0].method
    assert isinstance(method, GanMethod)
    return metrics, {name: tensor.detach() for name, tensor in {**method.trained(), **method.auxiliary(), **method.buffers()}.items()}


TWO = {"train": {"batch_size": 8, "gan": {"ada": {"initial_probability": 0.5, "every_steps": 1, "length_images": 80}}}}


def test_two_workers_do_as_one(workers: Workers, tmp_path: Path) -> None:
    """Oracle: one worker with the whole batch: R1, path length, stddev groups, MixDL's groups and ADA's statistic alike."""
    alone, weights = _run(str(tmp_path / "one"), TWO)
    for metrics, others in workers.run(_run, str(tmp_path / "two"), {**TWO, "resources": {"workers": 2}}):
        assert [sorted(row) for row in metrics] == [sorted(row) for row in alone]
        assert metrics[-1]["loss"] == pytest.approx(alone[-1]["loss"], rel=1e-4)
        for name, tensor in weights.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-2, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")


def _train(place: str, sections: dict[str, Any]) -> dict[str, torch.Tensor]:
    materials = materials_of(compose(expand(document(**sections))), Folder(place), CPU)
    training = materials.training(materials.folds[0], Group())
    training.advance(2)
    assert isinstance(training.method, GanMethod)
    return {name: tensor.detach() for name, tensor in {**training.method.trained(), **training.method.buffers()}.items()}


def test_fastgans_batch_statistics_are_the_workers_own(workers: Workers, tmp_path: Path) -> None:
    """Oracle: one worker's model: the workers' is another, and the same on both, with its running statistics."""
    sections: dict[str, Any] = {**CASES["fastgan"], "method": {"finetune": {}}}
    alone = _train(str(tmp_path / "one"), sections)
    first, second = workers.run(_train, str(tmp_path / "two"), {**sections, "resources": {"workers": 2}})
    assert first.keys() == second.keys() == alone.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    differ = {name for name in alone if not torch.allclose(first[name], alone[name], rtol=1e-4, atol=1e-6)}
    assert any(name.endswith("running_var") for name in differ)
    assert any(name.endswith("weight") or name.endswith("original") for name in differ)


@pytest.mark.parametrize(("source", "said"), [(FASTGAN, True), (STYLEGAN2, False)])
def test_only_fastgan_warns_of_several_workers(source: dict[str, Any], said: bool, tmp_path: Path) -> None:
    """Oracle: by hand; of one worker there is nothing to say."""
    for workers, warned in ((1, False), (2, said)):
        sections = {"source": {"gan": source}, "method": {"finetune": {}}, "train": {"batch_size": 8}, "resources": {"workers": workers}}
        lines = materials_of(compose(expand(document(**sections))), Folder(tmp_path), CPU).warnings()
        assert [line.startswith("resources.workers: FastGAN normalises over what a worker holds") for line in lines] == [True] * warned


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"source": {"gan": {"stylegan2": {"resolution": 48}}}},
            "source.gan.stylegan2.resolution.*48 is no power of two; 32 or 64 is right",
        ),
        ({"source": {"gan": {"fastgan": {"resolution": 32}}}}, "source.gan.fastgan.resolution"),
        ({"source": {"gan": {"stylegan3": {}}}}, "source.gan: 'stylegan3' isn't known; stylegan2, fastgan would be right"),
        ({"source": {"gan": {"stylegan2": {"resolution": 64, "weights": "x"}}}}, "resolution: given beside weights"),
        ({"method": {"mixdl": {"alpha": 0.0}}}, "method.mixdl.alpha"),
        ({"method": {"cdc": {}}}, "method.cdc: keeps what a source model has learned; source.gan.stylegan2.weights would be right"),
        ({"method": {"sdft": {}}}, "method.sdft: it isn't for a GAN; cdc, distance_gan, ewc, finetune"),
        ({"method": {"mixdl": {"latents": 3}}}, "train.batch_size: 4 images are no whole groups of 3.*3 or 6 is right"),
        ({"resources": {"workers": 2}}, "resources.workers: 2 workers can't share 1 groups of 4 images"),
        ({"evaluate": {"metrics": ["holdout_loss"]}}, "evaluate.metrics.0: holdout_loss isn't measured of GANs"),
        ({"evaluate": {"metrics": [["kid"]]}}, "evaluate.metrics"),
        ({"train": {"params": "lora"}}, "train.params: 'lora' given; a GAN's is 'full'"),
        ({"train": {"gan": {"r2": 1.0}}}, "train.gan.r2"),
        ({"train": {"gan": {"ada": {}, "diffaugment": {}}}}, "ada and diffaugment are both given"),
        ({"target": {"labels": "one"}}, "target.labels: 'one' given, but a GAN has no classes"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, Any], message: str) -> None:
    """Oracle: one line that names the field and what would be right."""
    with pytest.raises(UserError, match=message) as refused:
        check_document(document(**sections))
    assert "\n" not in str(refused.value)


def test_a_gans_method_needs_a_gan() -> None:
    """Oracle: one line with the methods that fit."""
    with pytest.raises(UserError, match=r"method.mixdl: it isn't for a diffusion model; ant"):
        check_document(
            document(source={"model": "embedded://digits-ddpm"}, evaluate={"metrics": ["kid"]}, search={"objectives": {"kid": "min"}})
        )


def test_an_unknown_layer_is_refused(tmp_path: Path) -> None:
    """Oracle: the names there are."""
    given = expand(document(method={"mixdl": {"layers": ["b16.conv1"]}}))
    run = Trial(compose(given), Folder(tmp_path), Folder(tmp_path), device=CPU)
    with pytest.raises(UserError, match=r"method.mixdl.layers: 'b16.conv1' is no layer of the generator; b4.conv1, b8.conv0, b8.conv1 are"):
        run.materials.check(given)


def test_fewer_images_than_latents_are_refused(tmp_path: Path) -> None:
    """Oracle: by hand: eight shots of which six are held out leave two for mixtures of four."""
    given = expand(document(target={"holdout": 6}))
    run = Trial(compose(given), Folder(tmp_path), Folder(tmp_path), device=CPU)
    with pytest.raises(UserError, match=r"method.mixdl.latents: 4 given, but a fold trains on 2 images"):
        run.materials.check(given)


def test_the_recipe_stands_where_the_file_says_nothing() -> None:
    """Oracle: StyleGAN2's and FastGAN's published settings; what the file says stays."""
    tree = effective_tree(compose(expand(document())))
    assert (tree["train"]["lr"], tree["train"]["betas"], tree["train"]["batch_size"]) == (2e-3, [0.0, 0.99], 4)
    assert tree["train"]["gradient_clip"] is None
    assert (tree["train"]["gan"]["r1"], tree["train"]["gan"]["r1_every"], tree["train"]["gan"]["style_mixing"]) == (10.0, 16, 0.9)
    fast = effective_tree(compose(expand(document(source={"gan": FASTGAN}, train={"lr": 1e-4}))))
    assert (fast["train"]["lr"], fast["train"]["betas"], fast["train"]["batch_size"]) == (1e-4, [0.5, 0.999], 8)
    assert fast["train"]["gan"]["diffaugment"]["policy"] == ["color", "translation"]


def test_the_preset_is_the_papers(tmp_path: Path) -> None:
    """Oracle: lambda_G 1000, lambda_D 1, alpha 1."""
    searched, _ = check_document(document(method={"mixdl": "search"}))
    assert preset_values(searched) == {"method.mixdl.lambda_g": 1000.0, "method.mixdl.lambda_d": 1.0, "method.mixdl.alpha": 1.0}
