"""The model card of an exported pipeline."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from huggingface_hub import ModelCard as HubCard
from ruamel.yaml import YAML

from fewshot_ray.report.model_card import ModelCard, model_card
from fewshot_ray.search.confirmation import PairedComparison
from fewshot_ray.search.paired import Interval

SPEC = "name: quickstart\nmethod:\n  ant: {noise_steps: 3, guidance: 0.5}\ntrain: {lr: 5.715184877559369e-05}\n"
CARD = ModelCard(
    name="quickstart",
    source_model="google/ddpm-cifar10-32",
    trial_id="refit-t0007",
    methods=["ant", "sdft"],
    spec_yaml=SPEC,
    seed=3,
    steps=120,
    shot_hashes=["ab" * 32, "cd" * 32],
    metrics={"holdout_loss": 1 / 6, "kid": 0.02},
    directions={"holdout_loss": "min", "kid": "min"},
    protocol={"extractor": "digits", "extractor_hash": "0123456789ab", "N_real": 200, "N_gen": 1000},
    confirmation=[PairedComparison("t0007", "kid", "min", (1, 2, 3), 0.02, 0.05, Interval(-0.03, -0.04, -0.02, 3)).describe()],
    version="0.1.0",
    source_is_on_hub=True,
)


def test_the_card_has_the_source_beside_the_model() -> None:
    """Oracle: the table by hand; without a source there is no column."""
    text = model_card(
        replace(CARD, source_metrics={"kid": 0.5}, against_source=["t0007, kid: 0.02 against the source model's 0.5: better"])
    )
    assert "| metric | value | source model | better |" in text
    assert "| holdout_loss | 0.1667 |  | lower |\n| kid | 0.02 | 0.5 | lower |" in text
    assert "against the source model's 0.5: better." in text
    assert "source model" not in model_card(CARD)


def test_the_hub_reads_the_front_matter() -> None:
    """Oracle: huggingface_hub's own card reader."""
    data = HubCard(model_card(CARD), ignore_metadata_errors=False).data.to_dict()  # type: ignore[no-untyped-call]
    assert data["library_name"] == "diffusers"
    assert data["base_model"] == "google/ddpm-cifar10-32"
    assert "license" not in data
    assert {"few-shot", "ant", "sdft"} <= set(data["tags"])


def test_the_card_holds_every_value_that_made_the_model() -> None:
    text = model_card(CARD)
    block = text.split("```yaml\n")[1].split("```")[0]
    assert YAML(typ="safe", pure=True).load(block)["train"]["lr"] == 5.715184877559369e-05
    for part in (
        "seed 3",
        "120 steps",
        "ab" * 32,
        "cd" * 32,
        "2 images",
        "| kid | 0.02 | lower |",
        "extractor_hash: 0123456789ab",
        "from_pretrained",
    ):
        assert part in text
    assert "95 % interval -0.04 .. -0.02 (3 seeds): better" in text


def test_a_source_that_is_a_folder_is_no_base_model() -> None:
    text = model_card(replace(CARD, source_model="models/ddpm", source_is_on_hub=False))
    assert "base_model" not in text
    assert "huggingface.co" not in text
    assert "`models/ddpm`, fine-tuned" in text


def test_plain_fine_tuning_is_called_so() -> None:
    text = model_card(replace(CARD, methods=[], own_code="unet/adaptor.py", picture="samples.png", shot_hashes=["ef" * 32]))
    assert "fine-tuned on 1 image with plain fine-tuning" in text
    assert "The code of its network is shipped beside the weights as unet/adaptor.py." in text
    assert "![samples](samples.png)" in text


def test_of_many_images_one_hash_stands_for_all() -> None:
    """Oracle: hashlib over the documented text."""
    hashes = [hashlib.sha256(bytes([number])).hexdigest() for number in range(101)]
    text = model_card(replace(CARD, shot_hashes=hashes))
    assert hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest() in text
    assert "101 images" in text
    assert not any(digest in text for digest in hashes)
    assert all(digest in model_card(replace(CARD, shot_hashes=hashes[:100])) for digest in hashes[:100])
