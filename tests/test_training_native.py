"""Training on the compiled kernel gives the loss and the gradients that torch gives on sums over neighbours."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from timings.without_kernels import switched_off

from snnp import Structure
from snnp.data import Frame
from snnp.errors import InputError
from snnp.kernels.cpu.library import MAX_LAYERS, instruction_set, library
from snnp.models.config import RepulsionConfig
from snnp.models.spline.config import AngularConfig, EmbeddingConfig, NetworkConfig, RadialConfig, SplineNNPConfig
from snnp.models.spline.model import SplineNNP
from snnp.training.backends import Batch, choose_backend
from snnp.training.backends.compiled import CompiledBackend
from snnp.training.batches import Batches, prepare
from snnp.training.config import LossConfig
from snnp.training.loop import Loss
from snnp.training.problem import features_of

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler built the kernels here, or SNNP_KERNELS=off")

FORMS = {
    "one element": (("Cu",), {}),
    "repulsion": (("Cu",), {"repulsion": RepulsionConfig(inner=2.2, outer=2.9)}),
    "pairs of elements": (
        ("Cu", "Mo", "Si"),
        {"filters": "pair", "angular": AngularConfig(n_filters=5, degree=3, elements="pair", cutoff=4.0)},
    ),
    "shared filters, linear": (("Cu", "Mo"), {"filters": "shared", "network": None}),
    "radial, embeddings": (("Cu", "Mo"), {"angular": AngularConfig(n_filters=0), "embedding": EmbeddingConfig()}),
    "one embedding, free ends": (
        ("Cu", "Mo"),
        {"embedding": EmbeddingConfig(of="sum"), "network": None, "skip": False, "ends": "free"},
    ),
    "tanh, shared network": (
        ("Cu", "Mo"),
        {"network": NetworkConfig(hidden=(7, 20, 5), activation="tanh", elements="shared"), "skip": False},
    ),
    "convex softplus": (
        ("Cu",),
        {
            "network": NetworkConfig(hidden=(17,), activation="softplus", constraint="convex"),
            "embedding": EmbeddingConfig(),
        },
    ),
    "angular": (("Cu", "Mo"), {"radial": RadialConfig(n_filters=0), "angular": AngularConfig(n_filters=33, degree=6)}),
    "degree 0, few knots": (
        ("Cu", "Mo"),
        {
            "radial": RadialConfig(n_filters=1, intervals=4),
            "angular": AngularConfig(n_filters=1, degree=0, intervals=4),
        },
    ),
    "degree 8, many knots": (
        ("Cu", "Mo", "Si"),
        {
            "filters": "pair",
            "radial": RadialConfig(n_filters=100, intervals=70),
            "angular": AngularConfig(n_filters=65, degree=8, intervals=61, elements="pair"),
        },
    ),
}
LOSS = Loss(LossConfig(), 1.0, 1.0, 0.0)
TARGETS = ("avx512", "avx2", "portable")


def frames(elements: tuple[str, ...]) -> list[Frame]:
    rng, made = np.random.default_rng(0), []
    for k in range(5):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True).repeat(1 + k % 2)
        atoms.set_chemical_symbols(rng.choice(elements, len(atoms)))
        atoms.positions += rng.normal(0.0, 0.2, atoms.positions.shape)
        forces = None if k == 3 else rng.normal(0.0, 1.0, atoms.positions.shape)
        stress = rng.normal(0.0, 0.01, (3, 3))
        structure = Structure.from_ase(atoms)
        made.append(
            Frame(
                structure, float(rng.normal()), forces, stress, "g", str(k), rng.normal(size=len(atoms)) if k else None
            )
        )
    return made


def prepared(model: SplineNNP, found: list[Frame], dtype: torch.dtype = torch.float64) -> Batches:
    return prepare(choose_backend(model, dtype), model, found)


def compiled(model: SplineNNP, found: list[Frame], chosen: list[int]) -> tuple[CompiledBackend, Batch]:
    data = prepared(model, found)
    assert isinstance(data.backend, CompiledBackend)
    return data.backend, data.batch(chosen)


def step(
    form: str,
    dtype: torch.dtype,
    *,
    native: bool,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 5.0, 2.0),
    shape: Literal["mse", "huber"] = "mse",
) -> tuple[float, list[torch.Tensor]]:
    """Loss of a batch that skips frames and changes their order, and the gradients of all parameters."""
    elements, keys = FORMS[form]
    model = SplineNNP(SplineNNPConfig(elements=elements, **keys), seed=1)
    model.isolated_atoms = elements[:1]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    with nullcontext() if native else switched_off():
        # In double: scaling into an embedding's range is ill-conditioned, and not what is compared.
        model.standardise(lambda: features_of(model, prepared(model, frames(elements))))
        data = prepared(model, frames(elements), dtype)
        model.to(dtype)
        # Nothing of the parameters may stay from when the data were prepared.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        assert isinstance(data.backend, CompiledBackend) == native
        loss = Loss(LossConfig(shape=shape), *weights)
        value = data.backend.backward(model, data.batch([3, 0, 4]), loss, forces=loss.needs_forces)
    gradients = [p.grad for p in model.parameters() if p.numel()]
    assert all(g is not None for g in gradients)
    return float(value), [g for g in gradients if g is not None]


def _rounding(gradients: list[torch.Tensor]) -> float:
    """A gradient this small is rounding: that of a bias is zero where energies are counted from atoms alone."""
    return 1e-2 * max(float(gradient.abs().max()) for gradient in gradients)


@pytest.fixture
def targets() -> Iterator[tuple[str, ...]]:
    """The instruction sets of this machine; the one in use before is in use again afterwards."""
    lib, before = library(), instruction_set()
    assert lib is not None
    assert before is not None
    yield tuple(name for name in TARGETS if lib.snnp_set_target(name.encode()))
    lib.snnp_set_target(before.encode())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_gradients_are_torchs(form: str, dtype: torch.dtype, tolerance: float, targets: tuple[str, ...]) -> None:
    lib, expected = library(), step(form, dtype, native=False)
    assert lib is not None
    for target in targets:
        assert lib.snnp_set_target(target.encode())
        found = step(form, dtype, native=True)
        assert found[0] == pytest.approx(expected[0], rel=tolerance), target
        for a, b in zip(expected[1], found[1], strict=True):
            assert float((a - b).abs().max()) <= tolerance * float(a.abs().max().clamp_min(_rounding(expected[1]))), (
                target
            )


@pytest.mark.parametrize(
    "weights", [(1.0, 0.0, 0.0, 0.0), (0.5, 0.0, 3.0, 0.0), (0.0, 2.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)]
)
@pytest.mark.parametrize("shape", ["mse", "huber"])
def test_parts_of_the_loss(weights: tuple[float, float, float, float], shape: Literal["mse", "huber"]) -> None:
    """Without forces or stresses in the loss the derivatives along them are not needed."""
    expected, found = (
        step("repulsion", torch.float64, native=native, weights=weights, shape=shape) for native in (False, True)
    )
    assert found[0] == pytest.approx(expected[0], rel=1e-11)
    for a, b in zip(expected[1], found[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12 * float(a.abs().max().clamp_min(_rounding(expected[1]))))


def test_gradients_add_up() -> None:
    """As those of `backward` do: two calls give twice the gradient."""
    model = SplineNNP(SplineNNPConfig(elements=("Cu",)), seed=1)
    backend, batch = compiled(model, frames(("Cu",)), [1, 2])
    gradients = []
    for _ in range(2):
        backend.backward(model, batch, LOSS)
        assert model.f.free.grad is not None
        gradients.append(model.f.free.grad.clone())
    assert torch.allclose(gradients[1], 2.0 * gradients[0], rtol=1e-12)


def test_two_models_may_share_the_data() -> None:
    """As a teacher and a student do: each pass takes the parameters of the model that it is given."""
    models = [SplineNNP(SplineNNPConfig(elements=("Cu",)), seed=seed) for seed in (1, 2)]
    backend, batch = compiled(models[0], frames(("Cu",)), [1, 2])
    found = []
    for each, same in ((backend, batch), copy.deepcopy((backend, batch))):
        for model in models:
            model.zero_grad()
            prediction = each.predict(model, same)
            each.backward(model, same, LOSS)
            assert model.f.free.grad is not None
            found.append((prediction.forces, model.f.free.grad))
    for first, second in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.allclose(found[0][0], found[1][0])
    energies = backend.predict(models[0], batch, forces=False)
    assert torch.equal(energies.energy, backend.predict(models[0], batch).energy)
    assert bool(energies.forces.isnan().all())


def test_torch_keeps_one_thread_beside_the_kernels() -> None:
    """Those of the passes were counted when the backend was made."""
    model = SplineNNP(SplineNNPConfig(elements=("Cu",)), seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        backend = choose_backend(model, torch.float64)
        assert isinstance(backend, CompiledBackend)
        with backend.alone():
            assert torch.get_num_threads() == 1
            assert backend.n_threads == 2
        with choose_backend(model, torch.float64, displacement=0.1).alone():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_very_deep_networks_are_left_to_torch() -> None:
    network = NetworkConfig(hidden=(4,) * MAX_LAYERS)
    model = SplineNNP(SplineNNPConfig(elements=("Cu",), network=network), seed=1)
    data = prepared(model, frames(("Cu",)))
    assert not isinstance(data.backend, CompiledBackend)
    # Of these forces nothing depends on the one parameter that is trained.
    model.requires_grad_(False)
    assert model.readout.network is not None
    bias = model.readout.network.biases[-1].requires_grad_()
    data.backend.backward(model, data.batch([1, 2]), LOSS)
    assert bias.grad is not None
    assert float(bias.grad.abs().max()) > 0.0


def test_frozen_parameters_stay_without_gradient() -> None:
    model = SplineNNP(SplineNNPConfig(elements=("Cu",)), seed=1)
    model.rho.free.requires_grad_(False)
    backend, batch = compiled(model, frames(("Cu",)), [1, 2])
    backend.backward(model, batch, LOSS)
    assert model.rho.free.grad is None
    assert model.f.free.grad is not None


def test_a_prediction_that_is_not_a_number_is_seen() -> None:
    model = SplineNNP(SplineNNPConfig(elements=("Cu",)), seed=1)
    backend, batch = compiled(model, frames(("Cu",)), [1, 2])
    with torch.no_grad():
        model.f.free[0, 0, 3] = torch.nan
    assert bool(backend.backward(model, batch, LOSS).isnan())


def test_pairs_out_of_order_are_refused() -> None:
    """Runs of pairs that share their functions must stand together; sums of the others would be wrong."""
    model = SplineNNP(SplineNNPConfig(elements=("Cu", "Mo")), seed=1)
    backend, batch = compiled(model, frames(("Cu", "Mo")), [1])
    stored = batch.geometry.pairs
    elements = stored.species[stored.neighbour[stored.first[8] : stored.first[9]]]
    assert np.count_nonzero(np.diff(elements)) == 1
    columns = [stored.neighbour, stored.x, stored.y, stored.z, stored.r]
    order = np.random.default_rng(0).permutation(len(stored.r))
    for column in columns:
        column[...] = column[order]
    with pytest.raises(InputError, match="not sorted by radial functions"):
        backend.backward(model, batch, LOSS)


def test_atoms_without_neighbours() -> None:
    """Alone, beside others in a batch, and with an element that no neighbour has."""
    model = SplineNNP(SplineNNPConfig(elements=("Cu", "Mo", "Si"), filters="pair"), seed=1)
    box = [20.0, 20.0, 20.0]
    lone = [Atoms("Mo", [[1.0, 2.0, 3.0]], cell=box, pbc=True), Atoms("CuCu", [[0.0] * 3, [0.0, 0.0, 9.0]], cell=box)]
    made = [
        Frame(
            Structure.from_ase(atoms),
            energy=0.3,
            forces=np.ones_like(atoms.positions),
            stress=None,
            source=str(k),
            group="g",
        )
        for k, atoms in enumerate(lone)
    ]
    for chosen in ([0], [1, 0], [1, 2, 0, 3]):
        found = []
        for native in (False, True):
            with nullcontext() if native else switched_off():
                data = prepared(model, [*made, *frames(("Cu", "Mo"))[:2]])
                model.zero_grad()
                loss = Loss(LossConfig(), 1.0, 1.0, 5.0)
                value = float(data.backend.backward(model, data.batch(chosen), loss))
                assert isinstance(data.backend, CompiledBackend) == native
            assert model.readout.linear is not None
            kept = [model.rho.free.grad, model.f.free.grad, model.g.free.grad, model.readout.linear.grad]
            found.append((value, [torch.zeros(1) if gradient is None else gradient.clone() for gradient in kept]))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-12)
        for a, b in zip(found[0][1], found[1][1], strict=True):
            assert float((a - b).abs().max()) <= 1e-11 * max(1.0, float(a.abs().max()))


def test_threads_change_nothing_but_rounding() -> None:
    """Also more of them than there are parts of eight atoms; and no atoms at all."""
    model = SplineNNP(SplineNNPConfig(elements=("Cu", "Mo"), filters="element"), seed=1)
    data = prepared(model, frames(("Cu", "Mo")))
    assert isinstance(data.backend, CompiledBackend)
    data.backend.write(model)
    kernel, batch = data.backend.kernel, data.everything.geometry
    rng, n = np.random.default_rng(0), len(batch.rows)
    e, p, s = rng.normal(size=n), rng.normal(size=(n, 3)), rng.normal(size=(batch.n_structures, 3, 3))
    runs = [(kernel.predict(batch, k), kernel.learn(batch, k, e, p, s)) for k in (1, 3, 3, 1000)]
    for predicted, learned in runs[1:]:
        for a, b in zip(runs[0][0], predicted, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-13)
        for name in ("rho", "f", "legendre", "at_one", "linear"):
            a, b = getattr(runs[0][1], name), getattr(learned, name)
            np.testing.assert_allclose(b, a, rtol=0.0, atol=1e-12 * np.abs(a).max())
    # The same number of threads: the same bits.
    assert all(np.array_equal(a, b) for a, b in zip(runs[1][0], runs[2][0], strict=True))
    assert np.array_equal(runs[1][1].f, runs[2][1].f)
    none = replace(batch, rows=batch.rows[:0], shift=batch.shift[:0], owner=batch.owner[:0])
    assert [array.shape for array in kernel.predict(none, 2)] == [(0,), (0, 3), (batch.n_structures, 3, 3)]
    assert not kernel.learn(none, 2, e[:0], p[:0], s).f.any()
