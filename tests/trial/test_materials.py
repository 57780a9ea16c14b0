"""What trials share: stages computed once, folds that share no picture, one source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_ray.errors import UserError
from fewshot_ray.methods import ant
from fewshot_ray.storage import Folder
from fewshot_ray.trial import diffusion as materials_module
from fewshot_ray.trial.diffusion import DiffusionMaterials, FoldIngredients
from fewshot_ray.trial.materials import images_hash, pick_device
from tests.trial.tiny import ANT, CPU, spec, trial

CROSSFIT = {"target": {"holdout": {"crossfit": 2}}}


def materials(place: Path, **sections: Any) -> DiffusionMaterials:
    return DiffusionMaterials(spec(**sections), Folder(place / "cache"), CPU)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what is computed, in order."""
    calls: list[str] = []
    train_classifier, sample = ant.train_classifier, materials_module.sample
    monkeypatch.setattr(
        ant, "train_classifier", lambda *args, **options: (calls.append("classifier"), train_classifier(*args, **options))[1]
    )
    monkeypatch.setattr(materials_module, "sample", lambda *args, **options: (calls.append("samples"), sample(*args, **options))[1])
    return iter([calls]).__next__()


def test_a_second_trial_computes_nothing_again(counted: list[str], tmp_path: Path) -> None:
    """Oracle: the number of classifiers trained: one a fold and one for the refit, none for other knobs of ANT or another training seed."""
    materials(tmp_path, method={"ant": ANT}, **CROSSFIT).build_stages()
    assert counted == ["classifier"] * 3
    materials(tmp_path, method={"ant": ANT}, **CROSSFIT).build_stages()
    trial(tmp_path, method={"ant": {**ANT, "guidance": 3.0, "noise_steps": 2}}, train={"lr": 1e-4}, **CROSSFIT)
    trial(tmp_path, seed=9, method={"ant": ANT, "sdft": {}}, **CROSSFIT)
    trial(tmp_path, method={"ant": ANT}, refit_steps=2, **CROSSFIT)
    assert counted == ["classifier"] * 3
    trial(tmp_path, method={"ant": {**ANT, "guidance": 0.0}}, target={"shots": 3})
    assert len(counted) == 3
    trial(tmp_path, method={"ant": {**ANT, "classifier_steps": 3}}, **CROSSFIT)
    assert len(counted) == 5


def test_a_classifier_is_never_of_another_folds_pictures(counted: list[str], tmp_path: Path) -> None:
    """Oracle: the folds' keys differ, and each depends on its own training pictures."""
    parts = materials(tmp_path, method={"ant": ANT}, **CROSSFIT)
    ingredients = [FoldIngredients(parts, fold, parts.student_backbone()) for fold in parts.folds]
    stages = [ant.classifier_stage(parts.spec.methods["ant"], one) for one in ingredients]
    assert stages[0].key != stages[1].key
    hashes = [parts.images_hash(fold.train) for fold in parts.folds]
    assert [stage.depends_on["target"] for stage in stages] == hashes


def test_source_samples_are_drawn_once_for_all_folds(counted: list[str], tmp_path: Path) -> None:
    """Oracle: one call; another scheduler or seed draws anew."""
    build = spec().file.source.build or {}
    source = {"images": None, "generated_images": 3}
    materials(tmp_path, source=source, method={"ant": ANT}, **CROSSFIT).build_stages()
    assert counted == ["samples", "classifier", "classifier", "classifier"]
    parts = materials(tmp_path, source=source)
    images, _ = parts.source_images
    assert (images.shape, images.dtype) == ((3, 1, 8, 8), torch.uint8)
    assert len(counted) == 4
    keys = {parts.source_samples_stage().key}
    keys.add(materials(tmp_path, source={**source, "build": {**build, "scheduler": {"beta_end": 0.01}}}).source_samples_stage().key)
    keys.add(materials(tmp_path, source={**source, "generated_images": 4}).source_samples_stage().key)
    keys.add(materials(tmp_path, source=source, seed=1).source_samples_stage().key)
    assert len(keys) == 4


def test_given_source_images_are_used(counted: list[str], tmp_path: Path) -> None:
    """Oracle: the ten of the place, and nothing sampled."""
    images, _ = materials(tmp_path).source_images
    assert len(images) == 10
    assert counted == []


def test_a_holdout_folder_is_freed_of_the_shots(tmp_path: Path) -> None:
    """Oracle: contents; the place holds the shots too."""
    parts = materials(tmp_path, target={"holdout": "embedded://digits/shots"})
    [fold] = parts.folds
    assert (len(fold.train), len(fold.holdout)) == (4, 6)
    assert not set(fold.train.hashes) & set(fold.holdout.hashes)


def test_folds_partition_the_shots_and_a_refit_takes_all(tmp_path: Path) -> None:
    """Oracle: contents; training seeds don't move the split."""
    parts = materials(tmp_path, **CROSSFIT)
    shots = set(parts.shots.hashes)
    assert len(shots) == 4
    held_out = [set(fold.holdout.hashes) for fold in parts.folds]
    assert held_out[0] | held_out[1] == shots
    assert not held_out[0] & held_out[1]
    for fold in parts.folds:
        assert set(fold.train.hashes) == shots - set(fold.holdout.hashes)
    other = DiffusionMaterials(spec(seed=5, **CROSSFIT), Folder(tmp_path), CPU)
    assert [fold.holdout.hashes for fold in other.folds] == [fold.holdout.hashes for fold in parts.folds]
    [refit] = DiffusionMaterials(spec(refit_steps=2, **CROSSFIT), Folder(tmp_path), CPU).folds
    assert set(refit.train.hashes) == shots
    assert len(refit.holdout) == 0


def test_students_are_copies(tmp_path: Path) -> None:
    """Oracle: the source after a student was changed; the teacher asks for no gradient."""
    parts = materials(tmp_path)
    before = {name: tensor.clone() for name, tensor in parts.source_backbone.network.state_dict().items()}
    student = parts.student_backbone()
    for parameter in student.network.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.source_backbone.network.state_dict().items())
    teacher = FoldIngredients(parts, parts.folds[0], student).source_network()
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training


def test_images_hash_follows_content_order_and_size(tmp_path: Path) -> None:
    """Oracle: three that must differ."""
    parts = materials(tmp_path)
    shots = parts.shots
    hashes = {parts.images_hash(part) for part in (shots, shots.select([1, 0, 2, 3]), shots.select([0]))}
    assert len(hashes) == 3
    assert images_hash(shots, (16, 16), 1) not in hashes


def test_devices() -> None:
    """Oracle: 0 is the CPU; a GPU that is not there is refused in one line."""
    assert pick_device(0) == CPU
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"gpus_per_worker: 0.5 given, .* no GPU"):
            pick_device(0.5)


def warned(**sections: Any) -> list[str]:
    return DiffusionMaterials(spec(**sections), Folder("unused"), CPU).warnings()


def test_ants_own_norm_is_warned_of_at_few_pixels() -> None:
    """Oracle: one line for 'sample' at 8 pixels where noise is ascended, none else."""
    [line] = warned(method={"ant": {"guidance": 0.0}})
    assert "method.ant.noise_norm" in line
    for method in ({"ant": {"guidance": 0.0, "noise_norm": "moments"}}, {"ant": {"guidance": 0.0, "noise_steps": 0}}, {"finetune": {}}):
        assert warned(method=method) == []


def test_what_is_left_out_without_a_word_is_said() -> None:
    """Oracle: by hand: a warm-up longer than the run, and a teacher that knows nothing."""
    [line] = warned(method={"sadm": {}})
    assert "method.sadm.warmup_steps: 24000 is beyond train.steps (4)" in line
    for settings in ({"warmup_steps": 3}, {"psi_steps": 0}, {"eta": 0.0}):
        assert warned(method={"sadm": settings}) == []
    [line] = warned(method={"sdft": {}})
    assert "source.build: a model from scratch has nothing to teach" in line


def test_guidance_ordered_by_the_held_out_loss_is_warned_of() -> None:
    """Oracle: one line where both meet, none where the objective is another."""
    method = {"ant": {"noise_norm": "moments", "guidance": 1.0}}
    [line] = warned(method=method)
    assert "kid" in line
    evaluate = {"metrics": ["kid"], "samples": 8}
    assert warned(method=method, evaluate=evaluate, search={"objectives": {"kid": "min"}}) == []
