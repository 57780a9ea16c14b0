import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from fewshot_ray.models.class_table import for_pipeline, new_tables, with_class_table, without_label_dropping
from tests.tiny_diffusion import TINY_DIT, normal

SOURCE_CLASSES = TINY_DIT["num_embeds_ada_norm"]
T = torch.tensor([3, 700])


def tiny_dit(seed: int = 0) -> DiTTransformer2DModel:
    """diffusers initialises no layer at zero, so every block and every label moves the output."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DiTTransformer2DModel(**TINY_DIT).eval()


@torch.no_grad()
def output(transformer: DiTTransformer2DModel, *labels: int) -> Tensor:
    return transformer.eval()(normal(2, channels=4), T, class_labels=torch.tensor(labels)).sample


def embedders(transformer: DiTTransformer2DModel) -> Iterator[LabelEmbedding]:
    return (block.norm1.emb.class_embedder for block in transformer.transformer_blocks)


def with_learned_table(classes: int) -> DiTTransformer2DModel:
    """A transformer whose new rows have moved apart, as training would leave it."""
    transformer = with_class_table(tiny_dit(), classes)
    for number, table in enumerate(new_tables(transformer)):
        table.data += torch.randn(table.shape, generator=torch.Generator().manual_seed(number))
    return transformer


@pytest.mark.parametrize("classes", [1, 3, 12])
def test_every_class_begins_as_the_sources_null_class(classes: int) -> None:
    """Oracle: the source itself at its null label, 10, which differs from its other labels."""
    source = tiny_dit()
    null = output(source, SOURCE_CLASSES, SOURCE_CLASSES)
    assert (output(source, 0, 4) - null).abs().max() > 1e-2
    transformer = with_class_table(source, classes)
    for label in range(classes + 1):
        assert torch.equal(output(transformer, label, classes - label), null)
    with pytest.raises(IndexError):
        output(transformer, 0, classes + 1)
    assert transformer.config.num_embeds_ada_norm == classes
    assert all(embedder.num_classes == classes for embedder in embedders(transformer))


def test_only_the_tables_are_new() -> None:
    """Oracle: the source's weights, of which nothing changes; the tables' shapes by hand; the random numbers drawn: none."""
    source = tiny_dit()
    before, state = copy.deepcopy(source.state_dict()), torch.get_rng_state()
    transformer = with_class_table(source, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert [tuple(table.shape) for table in new_tables(transformer)] == [(4, 8), (4, 8)]
    assert all(table.requires_grad for table in new_tables(transformer))
    assert len(new_tables(copy.deepcopy(transformer))) == 2
    assert new_tables(source) == []
    assert source.config.num_embeds_ada_norm == SOURCE_CLASSES
    tables = {id(table) for table in new_tables(transformer)}
    for (name, parameter), (key, weight) in zip(transformer.named_parameters(), source.named_parameters(), strict=True):
        assert name == key
        assert torch.equal(weight, before[key])
        assert id(parameter) in tables or torch.equal(parameter, weight)
    for table in new_tables(transformer):
        table.data.zero_()
    assert all(torch.equal(weight, before[key]) for key, weight in source.state_dict().items())


def test_a_new_table_goes_through_diffusers_own_files(tmp_path: Path) -> None:
    """Oracle: diffusers' `save_pretrained` and `from_pretrained`: the output at every label; what is loaded is no longer new."""
    transformer = with_learned_table(3)
    transformer.save_pretrained(tmp_path)
    loaded = DiTTransformer2DModel.from_pretrained(tmp_path)
    for label in range(4):
        torch.testing.assert_close(output(loaded, label, 0), output(transformer, label, 0))
    assert new_tables(loaded) == []


@pytest.mark.parametrize("classes", [0, -1])
def test_fewer_than_one_class_is_refused(classes: int) -> None:
    """Oracle: the rule for messages: the value and what would be right."""
    with pytest.raises(ValueError, match=rf"^classes={classes}: at least 1 is right$"):
        with_class_table(tiny_dit(), classes)


def test_without_label_dropping() -> None:
    """Oracle: the network in evaluation, where diffusers drops nothing; before, some of 64 labels are dropped in training."""
    transformer = with_learned_table(3).train()
    x, labels = normal(64, channels=4), torch.arange(64) % 3
    t = torch.full((64,), 5)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        kept = transformer.eval()(x, t, class_labels=labels).sample
        assert not torch.equal(transformer.train()(x, t, class_labels=labels).sample, kept)
        assert without_label_dropping(transformer) is transformer
        assert torch.equal(transformer.train()(x, t, class_labels=labels).sample, kept)
    assert all(len(embedder.embedding_table.weight) == 4 for embedder in embedders(transformer))
    assert torch.equal(output(with_class_table(transformer, 2), 0, 1), output(transformer, 3, 3))


def test_for_pipeline_keeps_the_classes_and_fills_up_with_the_null_class() -> None:
    """Oracle: the output of the transformer that was given, at its own labels, and at its null label for all others."""
    transformer = with_learned_table(3)
    padded = for_pipeline(transformer)
    assert padded.config.num_embeds_ada_norm == 1000
    assert all(tuple(embedder.embedding_table.weight.shape) == (1001, 8) for embedder in embedders(padded))
    for label in range(3):
        torch.testing.assert_close(output(padded, label, 0), output(transformer, label, 0))
    for label in (3, 517, 999, 1000):
        torch.testing.assert_close(output(padded, label, label), output(transformer, 3, 3))
    assert new_tables(padded) == []
    assert transformer.config.num_embeds_ada_norm == 3
    assert list(padded.state_dict()) == list(transformer.state_dict())
    again = for_pipeline(padded).state_dict()
    assert all(torch.equal(weight, again[key]) for key, weight in padded.state_dict().items())


def test_more_classes_than_the_pipeline_has_are_refused() -> None:
    """Oracle: the rule for messages: the value and what would be right."""
    with pytest.raises(ValueError, match=r"^classes=2: the transformer has 3 classes, so at least 3 is right$"):
        for_pipeline(with_class_table(tiny_dit(), 3), 2)


def tiny_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4).eval()


def by_hand(transformer: DiTTransformer2DModel, vae: AutoencoderKL, labels: Tensor, null: Tensor, steps: int) -> Tensor:
    """Classifier-free guidance at 4 and DDIM, written out for `transformer`'s own null label; images in [0, 1]."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(steps)
    x_t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    for t in scheduler.timesteps:
        given, free = (transformer(x_t, t.expand(2), class_labels=one).sample[:, :4] for one in (labels, null))
        x_t = scheduler.step(free + 4 * (given - free), t, x_t).prev_sample
    return (vae.decode(x_t / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def test_the_pipeline_samples_with_guidance(tmp_path: Path) -> None:
    """Oracle: guidance and DDIM written out with the unpadded transformer; the pipeline comes from its own saved files."""
    transformer, vae = with_learned_table(3).eval(), tiny_autoencoder()
    pipeline = DiTPipeline(for_pipeline(transformer), vae, DDIMScheduler(), id2label={0: "cat", 1: "dog", 2: "fox"})
    assert pipeline.get_label_ids(["fox", "cat"]) == [2, 0]
    pipeline.save_pretrained(tmp_path)
    loaded = DiTPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.transformer) is DiTTransformer2DModel
    generator = torch.Generator().manual_seed(7)
    made = loaded([2, 0], guidance_scale=4.0, num_inference_steps=3, generator=generator, output_type="pt").images
    expected = by_hand(transformer, vae, torch.tensor([2, 0]), torch.tensor([3, 3]), steps=3)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    other = by_hand(transformer, vae, torch.tensor([2, 0]), torch.tensor([1, 1]), steps=3)
    assert (made - other).abs().max() > 1e-2
