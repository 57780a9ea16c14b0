"""Commit by manifest, falling back past damage, and going on as if nothing had happened."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from fewshot_ray.errors import UserError
from fewshot_ray.patience import patience
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import (
    MANIFEST,
    checkpoint_name,
    latest_checkpoint,
    pack,
    read_checkpoint,
    restore_training,
    saved_steps,
    trained_weights,
    training_state,
    write_checkpoint,
)
from fewshot_ray.training.loop import Training
from tests.training.test_loop import Adversaries
from tests.training.toys import Toy, grey, squares, training

FOLD = {"ema_updates": 3, "micro_batch": 4, "recent_losses": [0.5], "last_finite": {"denoiser": 0.5}}
MEASURED = {
    "step": 3,
    "metrics": {"holdout_loss": 1.0},
    "train_loss": 1.0,
    "lr": 1e-4,
    "images_per_sec": 9.0,
    "trained_share": 1,
    "image_losses": [0.5],
}


def files(step: int, **changes: object) -> dict[str, bytes]:
    info = {"step": step, "training": {"one/": FOLD}, "history": [MEASURED], **changes}
    return pack({"a": torch.full((300,), float(step)), "b": torch.tensor(step)}, info)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """Checkpoints of steps 10 and 20."""
    folder = Folder(tmp_path / "checkpoints") if request.param == "disk" else Folder(f"memory://{uuid4().hex}/checkpoints")
    for step in (10, 20):
        write_checkpoint(folder, step, files(step))
    return folder


def test_the_latest_comes_back(folder: Folder) -> None:
    """Oracle: what was written."""
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert (latest.step, latest.info) == (20, {"step": 20, "training": {"one/": FOLD}, "history": [MEASURED]})
    assert torch.equal(latest.tensors["a"], torch.full((300,), 20.0))
    assert saved_steps(folder) == [10, 20]
    assert (checkpoint_name(20), checkpoint_name(1_234_567)) == ("step_000020", "step_1234567")


def test_the_manifest_is_written_last(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the order of the writes, the old manifest gone before the first of them."""
    written = []
    write_bytes = Folder.write_bytes

    def recording(self: Folder, name: str, content: bytes) -> None:
        if name != MANIFEST:
            assert not self.exists(MANIFEST)
        written.append(name)
        write_bytes(self, name, content)

    monkeypatch.setattr(Folder, "write_bytes", recording)
    write_checkpoint(folder, 20, files(21))
    assert written == ["state.safetensors", "state.json", MANIFEST]


Damage = Callable[[Folder], None]
DAMAGES: dict[str, Damage] = {
    "truncated": lambda step: step.write_bytes("state.safetensors", step.read_bytes("state.safetensors")[:-7]),
    "one bit": lambda step: step.write_bytes("state.safetensors", _flipped(step.read_bytes("state.safetensors"))),
    "empty": lambda step: step.write_bytes("state.json", b""),
    "missing": lambda step: step.remove("state.safetensors"),
    "no manifest": lambda step: step.remove(MANIFEST),
    "manifest cut off": lambda step: step.write_bytes(MANIFEST, step.read_bytes(MANIFEST)[:30]),
    "manifest not text": lambda step: step.write_bytes(MANIFEST, b"\xff\xfe\x00"),
    "manifest of nothing": lambda step: step.write_text(MANIFEST, json.dumps({"step": 20, "sha256": {}})),
    "manifest a list": lambda step: step.write_text(MANIFEST, "[1]"),
    "manifest of text": lambda step: step.write_text(MANIFEST, json.dumps({"sha256": "all"})),
}


def _flipped(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_one_is_named_and_passed_over(folder: Folder, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: the checkpoint before, and one line that names the damaged one."""
    DAMAGES[kind](folder / "step_000020")
    with caplog.at_level(logging.WARNING):
        latest = latest_checkpoint(folder)
    assert latest is not None
    assert latest.step == 10
    [line] = caplog.messages
    assert "step_000020" in line
    assert "\n" not in line


def test_none_is_left_where_all_are_damaged(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: both are named."""
    for step in ("step_000010", "step_000020"):
        (folder / step).remove("state.json")
    assert latest_checkpoint(folder) is None
    assert [step in line for step, line in zip(("step_000020", "step_000010"), caplog.messages, strict=True)] == [True, True]
    assert latest_checkpoint(folder / "nowhere") is None


def test_a_crash_while_writing_leaves_the_one_before(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: step 10, whichever write of step 20's second time is the last to get through."""
    write_bytes = Folder.write_bytes
    for writes in range(3):
        left = iter([True] * writes + [False])

        def failing(self: Folder, name: str, content: bytes, left: object = left) -> None:
            if not next(left):  # type: ignore[call-overload]
                raise KeyboardInterrupt
            write_bytes(self, name, content)

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "write_bytes", failing)
            with pytest.raises(KeyboardInterrupt):
                write_checkpoint(folder, 20, files(21))
        latest = latest_checkpoint(folder)
        assert latest is not None
        assert latest.step == 10
        write_checkpoint(folder, 20, files(20))


def test_a_place_out_of_reach_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the error goes up; falling back, or starting anew, would write over whole checkpoints."""
    folder = Folder(tmp_path)
    write_checkpoint(folder, 10, files(10))

    def unreachable(*args: object) -> bytes:
        raise TimeoutError("timed out")

    monkeypatch.setattr("fewshot_ray.storage._read", unreachable)
    with patience(0), pytest.raises(UserError, match="timed out"):
        latest_checkpoint(folder)


def toy() -> Training:
    return training(Toy([0.5, -0.25], squares, torch.optim.AdamW), grey(0, 60, 200, 255, 7), batch_size=3, lr=0.1, lr_schedule="cosine")


def adversaries() -> Training:
    return training(Adversaries(), grey(0, 60, 200, 255), seed=3, lr=0.1)


@pytest.mark.parametrize("make", [toy, adversaries])
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_resuming_is_the_uninterrupted_run_bit_for_bit(make: Callable[[], Training], stop: int, tmp_path: Path) -> None:
    """Oracle: seven steps in one go; weights, averages, both optimisers' state (of lazy phases too) and the losses."""
    whole, first, second = make(), make(), make()
    whole.advance(stop)
    rest = whole.advance(7)
    first.advance(stop)
    tensors, info = training_state(first, "one/")
    write_checkpoint(Folder(tmp_path), stop, pack(tensors, {"training": {"one/": info}}))
    first.advance(7)  # what was written must not follow the run
    restore_training(second, read_checkpoint(Folder(tmp_path), stop), "one/")
    assert second.step == stop
    assert second.advance(7) == rest
    expected, got = training_state(whole, ""), training_state(second, "")
    assert expected[1] == got[1]
    assert expected[0].keys() == got[0].keys()
    assert all(torch.equal(got[0][name], tensor) for name, tensor in expected[0].items())


def test_the_exported_weights_are_the_averages(tmp_path: Path) -> None:
    """Oracle: the EMA's state, by parameter name."""
    run = toy()
    run.advance(3)
    tensors, info = training_state(run, "one/")
    write_checkpoint(Folder(tmp_path), 3, pack(tensors, {"training": {"one/": info}}))
    weights = trained_weights(read_checkpoint(Folder(tmp_path), 3), "one/")
    assert weights.keys() == {"w"}
    assert torch.equal(weights["w"], run.ema.state()["w"])
    assert not torch.equal(weights["w"], run.method.trained()["w"])


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    """Oracle: one line that names the checkpoint and what is missing."""
    run = toy()
    tensors, info = training_state(run, "one/")
    write_checkpoint(Folder(tmp_path), 3, pack(tensors, {"training": {"one/": info}}))
    with pytest.raises(UserError, match=r"^[^\n]*step_000003: the checkpoint is of another model \('one/trained/g' doesn't fit\)[^\n]*$"):
        restore_training(adversaries(), read_checkpoint(Folder(tmp_path), 3), "one/")


DAMAGED_INFO: dict[str, dict[str, object]] = {
    "no training": {"training": {}},
    "training is a number": {"training": 3},
    "a fold is a list": {"training": {"one/": []}},
    "a fold lacks a key": {"training": {"one/": {"ema_updates": 3, "micro_batch": 4, "recent_losses": []}}},
    "a count is text": {"training": {"one/": {**FOLD, "ema_updates": "3"}}},
    "losses are texts": {"training": {"one/": {**FOLD, "recent_losses": ["x"]}}},
    "history is a mapping": {"history": {}},
    "an evaluation lacks its metrics": {"history": [{key: value for key, value in MEASURED.items() if key != "metrics"}]},
    "an evaluation has a key too many": {"history": [{**MEASURED, "extra": 1}]},
}


@pytest.mark.parametrize("case", DAMAGED_INFO)
def test_a_state_that_cannot_be_gone_on_from_is_named_and_passed_over(case: str, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Oracle: the checkpoint before, though the manifest's sums are right."""
    write_checkpoint(folder, 20, files(20, **DAMAGED_INFO[case]))
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert latest.step == 10
    assert "step_000020/state.json is damaged" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.safetensors", b"\xff" * 40),
        ("state.safetensors", b""),
        ("state.json", b"[]"),
        ("state.json", b"{"),
        ("state.json", b"[" * 100_000),
    ],
)
def test_a_file_of_another_kind_is_named_and_passed_over(
    name: str, content: bytes, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    """Oracle: the checkpoint before, though the manifest's sums are right."""
    write_checkpoint(folder, 20, {**files(20), name: content})
    latest = latest_checkpoint(folder)
    assert latest is not None
    assert latest.step == 10
    assert f"step_000020/{name} is damaged" in caplog.text
    with pytest.raises(ValueError, match=rf"step_000020/{name} is damaged"):
        read_checkpoint(folder, 20)
