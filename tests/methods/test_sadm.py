import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.data.images import from_model_range
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import Draw
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.registry import Part
from fewshot_ray.methods.sadm import PSI, Challenge, Sadm, SadmConfig, affinity, encoder_name, make_sadm
from fewshot_ray.models.parameters import FullConfig, tune
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import pack, read_checkpoint, restore_training, training_state, write_checkpoint
from fewshot_ray.training.loop import Training
from tests.conftest import Workers
from tests.methods.conftest import ToyIngredients
from tests.tiny_diffusion import Calls, Formula, batch, draw, images, tiny_backbone
from tests.training.toys import training


class Linear(nn.Module):
    """Psi as a matrix."""

    def __init__(self, features: int = 5) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn((64, features), generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix


def sadm(psi: nn.Module | None = None, **settings: object) -> Sadm:
    return Sadm(SadmConfig(**settings), psi or Linear(), tiny_backbone())  # type: ignore[arg-type]


def adversarial(warmup_steps: int = 0, **settings: object) -> DiffusionMethod:
    """On the bundled digit network."""
    torch.set_num_threads(1)
    backbone = tiny_backbone()
    part = make_sadm(SadmConfig(eta=10.0, warmup_steps=warmup_steps, **settings), ToyIngredients(Folder("unused"), backbone))  # type: ignore[arg-type]
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    return DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values(), momentum=0.9), [part])


def running(method: DiffusionMethod, **settings: object) -> Training:
    return training(method, from_model_range(images(4)), lr=0.01, **settings)


def test_the_term_against_numpy() -> None:
    """Oracle: Eq. 7 to 9 in NumPy float64, pair by pair: mean over B^2 of (cos - cos)^2 with weights 1 / sqrt(t_i t_j)."""
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    weight = rng.uniform(1, 9, size=4)
    rows = {name: torch.from_numpy(value) for name, value in (("real", real), ("generated", generated), ("time_weight", weight))}
    objective = sadm(eta=3.0).terms(rows)
    assert objective.weight == {"structure": 3.0}

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    total = 0.0
    for i in range(4):
        row = 0.0
        for j in range(4):
            row += np.sqrt(weight[i] * weight[j]) * (cosine(real[i], real[j]) - cosine(generated[i], generated[j])) ** 2
        assert objective.per_sample["structure"][i].item() == pytest.approx(row / 4, rel=1e-12)
        total += row
    assert objective.per_sample["structure"].mean().item() == pytest.approx(total / 16, rel=1e-12)


def test_rows_are_features_of_both_sides() -> None:
    """Oracle: Psi of the training images and of the clamped x_0_hat by hand; 1 / t with t = (t + 1) / T, at most 10."""
    it, term = draw(tiny_backbone(), network=Formula(lambda x, t: 0.1 * x)), sadm()
    rows = term.rows(it)
    torch.testing.assert_close(rows["real"], term.psi(it.x_0))
    torch.testing.assert_close(rows["generated"], term.psi(it.x_0_hat.clamp(-1, 1)))
    assert not rows["real"].requires_grad
    expected = np.minimum(1000 / (it.t.numpy() + 1), 10)
    np.testing.assert_allclose(rows["time_weight"], expected, rtol=1e-6)
    assert expected.min() < 10


def test_a_perfect_denoiser_has_no_loss() -> None:
    """Oracle: theory: the affinities are the same where x_0_hat is x_0."""
    features = torch.randn(5, 3)
    rows = {"real": features, "generated": features.clone(), "time_weight": torch.ones(5)}
    assert float(sadm().terms(rows).per_sample["structure"].sum()) == 0.0


def test_psi_cannot_win_by_scaling() -> None:
    """Oracle: the cosine's invariance."""
    features = torch.randn(5, 3)
    torch.testing.assert_close(affinity(features), affinity(100 * features))
    torch.testing.assert_close(affinity(features).diagonal(), torch.ones(5))


def test_the_papers_norm() -> None:
    """Oracle: eta beside a sum over 1 x 8 x 8 numbers is eta / 64 beside their mean."""
    assert sadm(eta=6.4, norm="sum").eta == pytest.approx(0.1)
    assert sadm(eta=6.4).eta == 6.4


def test_one_timestep_a_batch_unless_told_otherwise(ingredients: ToyIngredients) -> None:
    """Oracle: Algorithm 1 draws t once; the switch restores a t for each image."""
    for timestep, distinct in (("batch", 1), ("image", 8)):
        part = make_sadm(SadmConfig(timestep=timestep), ingredients)
        backbone = tiny_backbone()
        tuned = tune(backbone.network, "full", FullConfig(), seed=0)
        method = DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values()), [part])
        seen = {int(t) for t in method.context(batch(8), Randomness(0)).t}
        assert len(seen) == distinct


def test_no_eta_is_no_psi(ingredients: ToyIngredients) -> None:
    """Oracle: an empty part."""
    assert make_sadm(SadmConfig(eta=0.0), ingredients) == Part()


def test_gradient_against_finite_differences() -> None:
    """Oracle: for a student b x the derivative of the whole term in b, by central differences in float64."""
    term = sadm(Linear().double(), eta=2.0)

    def value(b: Tensor) -> Tensor:
        it = draw(tiny_backbone(), network=Formula(lambda x, t: b * x.abs()))
        it.t = torch.tensor([20, 30, 40, 50])  # low noise: nothing is clamped away altogether
        it.x_0 = 0.5 * it.x_0
        it.__dict__["x_t"] = it.backbone.schedule.add_noise(it.x_0, it.eps, it.t)
        rows = {name: row.double() for name, row in double_rows(term, it).items()}
        return term.terms(rows).per_sample["structure"].mean()

    b = torch.tensor(0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(b), b)
    difference = (value(torch.tensor(0.41)) - value(torch.tensor(0.39))) / 0.02
    assert abs(float(gradient)) > 1e-4
    torch.testing.assert_close(gradient.double(), difference, rtol=2e-2, atol=1e-6)


def double_rows(term: Sadm, it: Draw) -> dict[str, Tensor]:
    with torch.no_grad():
        real = term.psi(it.x_0.double())
    return {"real": real, "generated": term.psi(it.x_0_hat.double().clamp(-1, 1)), "time_weight": term.time_weight(it)}


def test_each_side_trains_itself_alone() -> None:
    """Oracle: autograd: in Psi's phase the denoiser receives nothing and isn't asked a second time; in its own, Psi receives nothing."""
    method = adversarial()
    calls = Calls(method.tuned.network)
    it = Draw(method.backbone, calls, batch(4), Randomness(0), None)
    psi, denoiser = method.phases()
    assert (psi.name, psi.gradient_scale, psi.gradient_clip, denoiser.name) == (PSI, -1.0, 1.0, "denoiser")
    (challenge,), (structure,) = psi.relations, denoiser.relations
    challenge.terms(challenge.rows(it)).per_sample["structure"].sum().backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in denoiser.parameters)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in psi.parameters[:2])
    for parameter in psi.parameters:
        parameter.grad = None
    rows = structure.rows(it)
    own = list(denoiser.parameters)
    torch.autograd.backward(structure.terms(rows).per_sample["structure"].sum(), inputs=own)
    assert calls.count == 1
    assert any(parameter.grad.abs().sum() > 0 for parameter in own if parameter.grad is not None)
    assert all(parameter.grad is None for parameter in psi.parameters)


def test_psi_ascends_and_the_denoiser_descends() -> None:
    """Oracle: the term on one fixed draw before and after each side's own step."""
    method = adversarial()
    (term,) = method.adversaries[PSI].phase.relations
    assert isinstance(term, Challenge)

    def value() -> float:
        with torch.no_grad():
            it = method.context(batch(4), Randomness(0))
            return float(term.terms(term.rows(it)).per_sample["structure"].mean())

    before = value()
    it = method.context(batch(4), Randomness(0))
    for phase, sign in zip(method.phases(), (1, -1), strict=True):
        (relation,) = phase.relations
        loss = relation.terms(relation.rows(it)).per_sample["structure"].mean() * phase.gradient_scale
        gradients = torch.autograd.grad(loss, list(phase.parameters), retain_graph=True, allow_unused=True)
        norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
        old = [parameter.detach().clone() for parameter in phase.parameters]
        with torch.no_grad():
            for parameter, gradient in zip(phase.parameters, gradients, strict=True):
                if gradient is not None:
                    parameter -= 1e-3 * gradient / norm
        assert sign * (value() - before) > 0
        for parameter, content in zip(phase.parameters, old, strict=True):
            parameter.data.copy_(content)


def test_warm_up_and_rounds() -> None:
    """Oracle: by hand: frozen for 3 steps, then in the first 2 of every 5."""
    config = SadmConfig(warmup_steps=3, round_steps=5, psi_steps=2)
    assert [step for step in range(15) if config.adversarial(step)] == [3, 4, 8, 9, 13, 14]
    assert not any(SadmConfig(psi_steps=0, warmup_steps=0).adversarial(step) for step in range(9))
    assert [SadmConfig().adversarial(step) for step in (23_999, 24_000, 24_001)] == [False, True, True]


def test_psi_moves_after_the_warm_up_only_and_slower() -> None:
    """Oracle: the schedule; Adam's first step moves a number by its learning rate: a tenth of train.lr at most."""
    method = adversarial(warmup_steps=2)
    before = {name: parameter.detach().clone() for name, parameter in method.auxiliary().items()}
    run = running(method)
    run.advance(2)
    assert all(torch.equal(parameter, before[name]) for name, parameter in method.auxiliary().items())
    run.advance(3)
    moved = max(float((parameter - before[name]).detach().abs().max()) for name, parameter in method.auxiliary().items())
    assert moved == pytest.approx(0.001, rel=0.01)


def _steps(micro_batch: int | str) -> tuple[float, dict[str, Tensor]]:
    method = adversarial(warmup_steps=1)
    loss = running(method, micro_batch=micro_batch).advance(3)
    return loss, {name: parameter.detach() for name, parameter in {**method.trained(), **method.auxiliary()}.items()}


@pytest.mark.parametrize("micro_batch", ["auto", 1])
def test_two_workers_take_one_workers_steps(workers: Workers, micro_batch: int | str) -> None:
    """Oracle: one worker with the whole batch: loss, denoiser and Psi after a frozen step and two adversarial ones."""
    loss, weights = _steps("auto")
    for other_loss, others in workers.run(_steps, micro_batch):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        for name, parameter in weights.items():
            of_adam = name.startswith(PSI)  # which makes rounding errors of gradients near 0 steps of their own
            torch.testing.assert_close(others[name], parameter, atol=1e-4 if of_adam else 1e-5, rtol=1e-4)


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resuming_within_a_round_is_the_uninterrupted_run(stop: int, tmp_path: object) -> None:
    """Oracle: six steps in one go, bit for bit: Psi, its optimiser and its place in the round come from the checkpoint and the step."""
    whole, first, second = (running(adversarial(warmup_steps=2, round_steps=3, psi_steps=2)) for _ in range(3))
    whole.advance(6)
    first.advance(stop)
    tensors, info = training_state(first, "one/")
    folder = Folder(str(tmp_path))
    write_checkpoint(folder, stop, pack(tensors, {"training": {"one/": info}}))
    restore_training(second, read_checkpoint(folder, stop), "one/")
    second.advance(6)
    for method in (whole.method, second.method):
        assert method.auxiliary()
    for name, parameter in {**whole.method.trained(), **whole.method.auxiliary()}.items():
        assert torch.equal(parameter, {**second.method.trained(), **second.method.auxiliary()}[name]), name
    assert not any(PSI in name for name in whole.ema.state())


def test_which_psi() -> None:
    """Oracle: the digit network where it fits, else the paper's; what is named is taken."""
    assert encoder_name(SadmConfig(), tiny_backbone()) == "digits"
    assert encoder_name(SadmConfig(encoder="dinov2"), tiny_backbone()) == "dinov2"
