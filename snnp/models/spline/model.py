r"""The spline-based neural network potential (s-NNP) and its classical limits.

    G2_a(i) = sum_j rho_a(r_ij)
    G3_b(i) = sum_{j<k} f_b(r_ij) f_b(r_ik) g_b(cos theta_jik)
    E_i     = E0[z_i] + NN([G2, G3]) + w . [G2, G3] + sum_a U_a + 1/2 sum_j phi(r_ij) + repulsion

Forces are analytic: features pass through the readout, which returns dE/dG; the evaluator turns it into dE/dr_ij.
Source: J. A. Vita, D. R. Trinkle, Comput. Mater. Sci. (2023), doi 10.1016/j.commatsci.2023.112655.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from ase.data import atomic_numbers
from torch import Tensor

from snnp.harmonics import Harmonics
from snnp.kernels.parameters import SplineParameters
from snnp.models.gradients import PairGradients, Shell, chunks, join_gradients, make_shell
from snnp.models.potential import Evaluator, Potential
from snnp.models.repulsion import AMPLITUDES, DECAYS, SCREENING_LENGTH
from snnp.models.spline.compiled import Compiled
from snnp.models.spline.config import SplineNNPConfig
from snnp.models.spline.readout import Readout, array_of, table_of
from snnp.models.spline.three_body import Moments, RadialSums, TripleSums, sum_triples
from snnp.neighbours import Neighbours, unordered_pairs
from snnp.splines import End, SplineSet, legendre_projection
from snnp.structure import Structure

__all__ = ["Geometry", "SplineNNP"]

# From dE/dfeatures [n, D] to dE/dr_ij [n, J, 3] on the radial shell, and on the angular one if there are angles.
_PairGradients = Callable[[Tensor], tuple[Tensor, Tensor | None]]
_CHUNK_ATOMS = 256  # evaluated at once for inference: the arrays of a chunk stay in the caches of a core


@dataclass(frozen=True)
class Geometry:
    """Everything about N atoms that no parameter changes: computed once per structure in training.

    `angular_shell` is `radial_shell` where both reach equally far. `radial` and `angular` hold sums over neighbours
    that parameters multiply; they are None where functions are evaluated directly on the shells.
    """

    species: Tensor
    radial_shell: Shell
    angular_shell: Shell
    radial: RadialSums | None
    angular: Moments | TripleSums | None


class SplineNNP(Potential):
    """The s-NNP; every special case (linear, EAM, s-MEAM, with or without skip) is a configuration of it.

    `reference_energies`: E0 in eV per element (missing ones are zero). `seed`: for the initial filters and weights.
    """

    config: SplineNNPConfig

    def __init__(
        self, config: SplineNNPConfig, reference_energies: dict[str, float] | None = None, *, seed: int = 0
    ) -> None:
        super().__init__(config.elements, reference_energies or {}, config.reach)
        self.config = config
        smooth = config.ends == "smooth"
        ends: tuple[End, End] = ("flat", "zero") if smooth else ("free", "free")
        self.rho = SplineSet(config.grid("radial"), config.radial.n_filters, *ends)
        self.f = SplineSet(config.grid("angular"), config.angular.n_filters, *ends)
        self.g = SplineSet(config.grid("angle"), config.angular.n_filters)
        self.phi = SplineSet(config.grid("pair"), 1, *ends) if config.pair_term else None
        self.readout = Readout(config)
        self.harmonics = Harmonics(config.angular.degree)
        projection = legendre_projection(config.grid("angle")[0], config.angular.degree)
        self.register_constant("projection", projection)
        z = config.n_elements
        neighbour = torch.arange(z).expand(z, z)
        groups = {"shared": 0 * neighbour, "element": neighbour, "pair": neighbour.T * z + neighbour}
        # Of filters for each centre and neighbour; of functions of unordered pairs.
        self.register_buffer("radial_group", groups[config.filters].clone(), persistent=False)
        self.register_buffer("unordered", unordered_pairs(z), persistent=False)
        self.double()
        self.reset(seed)
        self._compiled = Compiled()

    projection: Tensor
    radial_group: Tensor
    unordered: Tensor

    @property
    def has_three_body(self) -> bool:
        return self.config.angular.n_filters > 0

    @property
    def uses_moments(self) -> bool:
        """Whether sums factorise: the legendre evaluator, or no angles at all, on grids that all groups share."""
        legendre = not self.has_three_body or self.config.angular.evaluator == "legendre"
        return legendre and self._shares_grids

    @property
    def _shares_grids(self) -> bool:
        one_pair_grid = self.phi is None or self.phi.grids[0] == self.rho.grids[0]
        return one_pair_grid and all(s.shares_grid for s in (self.rho, self.f, self.phi) if s is not None)

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Draw smooth, localised radial filters, low-order angular ones, and small network weights."""
        generator = torch.Generator().manual_seed(seed)
        for splines in (self.rho, self.f):
            splines.free.copy_(_bumps(splines.free.shape, generator))
        n_filters, n_angle = self.g.free.shape[1:]
        order = torch.arange(n_filters)[:, None] % 6
        angle = torch.linspace(torch.pi, 0.0, n_angle)[None, :]
        waves = torch.cos(order * angle) + 0.2 * torch.randn(n_filters, n_angle, generator=generator)
        self.g.free.copy_(waves.expand_as(self.g.free))
        if self.phi is not None:
            self.phi.free.zero_()
        if self.readout.network is not None:
            self.readout.network.reset(generator)
        if self.readout.linear is not None:
            self.readout.linear.zero_()
        if self.readout.embedding is not None:
            # The identity: an embedding that has learned nothing passes the features through.
            for group, grid in enumerate(self.readout.embedding.grids):
                knots = grid.knots().expand(self.readout.embedding.n_filters, -1)
                self.readout.embedding.set_knots(0.1 * knots, group, 0.1, 0.1)

    @torch.no_grad()
    def standardise(self, features: Callable[[], Tensor]) -> None:
        """Set mean and deviation of the features, and bring them into an embedding's range."""
        if self.readout.embedding is not None:
            self._fit_into_embedding(features)
        found = features()
        std = found.std(dim=0, correction=0)
        self.readout.mean.copy_(found.mean(dim=0))
        # A feature that hardly varies would be blown up by its own noise.
        self.readout.std.copy_(std.clamp_min(1e-2 * float(std.max().clamp_min(1e-6))))

    def _fit_into_embedding(self, features: Callable[[], Tensor]) -> None:
        """Shift and scale rho and g until an embedding's argument spreads over its grid, three deviations to each side.

        Features are linear in rho and in g: adding a constant function to a filter shifts its feature.
        """
        assert self.readout.embedding is not None
        grid = self.readout.embedding.grids[0]
        splines, drawn = (self.rho.free, self.g.free), features()
        initial = [free.clone() for free in splines]
        for free in splines:
            free.fill_(1.0)
        constant = features()
        shift = drawn.mean(dim=0) / constant.mean(dim=0)
        std = (drawn - shift * constant).std(dim=0, correction=0)
        arguments = drawn.shape[1] if self.readout.sums_features else 1
        scale = (grid.upper - grid.lower) / 6.0 / math.sqrt(arguments) / std.clamp_min(1e-3 * float(std.max()))
        middle = 0.5 * (grid.lower + grid.upper) / arguments / constant.mean(dim=0)
        n_radial = self.config.radial.n_filters
        for free, first, part in zip(splines, initial, (slice(n_radial), slice(n_radial, None)), strict=True):
            columns = [value[part][None, :, None] for value in (shift, scale, middle)]
            free.copy_((first - columns[0]) * columns[1] + columns[2])

    # Geometry: everything that parameters do not change.

    def geometry(
        self,
        pairs: tuple[Tensor, Tensor, Tensor],
        species: Tensor,
        centre: Tensor,
        n_columns: tuple[int | None, int | None] = (None, None),
        *,
        reused: bool = False,
    ) -> Geometry:
        """Shells and basis functions of the atoms `centre` [n].

        Arguments:
            pairs: row of the centre [P] (ascending), neighbour [P], vector [P, 3]; differentiable in the vectors.
            species: [N] of all atoms.
            n_columns: padding of the radial and the angular shell; by default the largest number of neighbours.
            reused: whether many evaluations will share this geometry, so that sums over triples pay off.
        """
        config, reach = self.config, self.config.angular_cutoff
        radial_shell = angular_shell = make_shell(pairs, species, centre, self.cutoff, n_columns[0])[0]
        if self.has_three_body and reach < self.cutoff and config.ends == "smooth":
            angular_shell = make_shell(pairs, species, centre, reach, n_columns[1])[0]
        species = species[centre]
        over_triples = not self.uses_moments
        if over_triples and not (reused and self._shares_grids and len(self.g.grids) == 1):
            return Geometry(species, radial_shell, angular_shell, None, None)
        radial = RadialSums.of(self.rho, radial_shell, self._channels(self.phi is not None))
        angular: Moments | TripleSums | None = None
        n_channels = self._channels(config.angular.elements == "pair")
        if over_triples:
            angular = TripleSums.of(self.f, self.g, angular_shell, n_channels)
        elif self.has_three_body:
            angular = Moments.of(self.f, self.harmonics, angular_shell, n_channels)
        return Geometry(species, radial_shell, angular_shell, radial, angular)

    def _channels(self, apart: bool) -> int:
        """E: how many kinds of neighbours filters, or what else acts on their pairs (`apart`), tell apart."""
        return self.config.n_elements if apart or self.config.filters != "shared" else 1

    # Parameters in the layout of the evaluators.

    def _per_channel(self, free: Tensor, n_channels: int) -> Tensor:
        """[C, F, E K] filters from free parameters [S, F, K]; C = Z where they depend on the centre, else 1."""
        z, (_, n_filters, n_free) = self.config.n_elements, free.shape
        if self.config.filters == "shared":
            return free.repeat(1, 1, n_channels)
        centres = z if self.config.filters == "pair" else 1
        split = free.reshape(centres, z, n_filters, n_free)
        return split.transpose(1, 2).reshape(centres, n_filters, z * n_free)

    def radial_filters(self) -> Tensor:
        """[C, F (+1), E K]: rho, and phi as the last row where there is a pair term."""
        filters = self._per_channel(self.rho.free, self._channels(self.phi is not None))
        if self.phi is None:
            return filters
        z = self.config.n_elements
        phi = self.phi.free[self.unordered].reshape(z, 1, -1)
        return torch.cat([filters.expand(z, -1, -1), phi], dim=1)

    def angular_filters(self) -> Tensor:
        """[C, E', F, E K]: f per centre C; where g depends on elements E' = Z copies, each zero outside its channel."""
        channels = self._channels(self.config.angular.elements == "pair")
        filters = self._per_channel(self.f.free, channels)[:, None]
        if self.config.angular.elements == "shared" or channels == 1:
            return filters
        own = torch.eye(channels, dtype=filters.dtype, device=filters.device)
        return filters * own.repeat_interleave(self.f.free.shape[2], dim=1)[None, :, None, :]

    def angle_coefficients(self) -> tuple[Tensor, Tensor]:
        """Legendre coefficients of g repeated over m [E', E', F, (L+1)²], and g(1) of equal elements [E', F]."""
        legendre = self.g.coefficients() @ self.projection.T
        repeated = legendre[..., self.harmonics.degree_of.to(torch.int64)]
        if len(self.g.grids) == 1:
            return repeated[None], legendre.sum(dim=-1)
        at_one = legendre.sum(dim=-1)[self.unordered.diagonal()]
        return repeated[self.unordered], at_one

    # Evaluation: features, their readout, and the gradients of pairs.

    def evaluate(self, geometry: Geometry) -> tuple[Tensor, list[tuple[Shell, Tensor]]]:
        """Energies [n] without E0 and repulsion, and pair gradients [n, J, 3] with their shells.

        Differentiable in the parameters, so that a force loss needs a single backward pass.
        """
        features, pair_energies, pair_gradients = self._features(geometry)
        energies, h = self.readout(features, geometry.species)
        radial, angular = pair_gradients(h)
        if pair_energies is not None:
            energies = energies + pair_energies
        if angular is None or geometry.angular_shell is geometry.radial_shell:
            return energies, [(geometry.radial_shell, radial if angular is None else radial + angular)]
        return energies, [(geometry.radial_shell, radial), (geometry.angular_shell, angular)]

    def features(self, geometry: Geometry) -> Tensor:
        """[n, D] features [G2, G3] that enter the readout."""
        return self._features(geometry)[0]

    def _features(self, geometry: Geometry) -> tuple[Tensor, Tensor | None, _PairGradients]:
        """Features [n, D], energies [n] of the pair term, and what turns dE/dfeatures into pair gradients."""
        return self._direct(geometry) if geometry.radial is None else self._from_sums(geometry, geometry.radial)

    def _from_sums(self, geometry: Geometry, sums: RadialSums) -> tuple[Tensor, Tensor | None, _PairGradients]:
        n_radial, rho, unit = self.config.radial.n_filters, self.radial_filters(), geometry.radial_shell.unit
        by_centre = rho.shape[0] > 1
        rho = rho[geometry.species] if by_centre else rho[0]
        values = torch.einsum("nk,nfk->nf", sums.sums, rho) if by_centre else sums.sums @ rho.T
        features, back = values[:, :n_radial], None
        if (angular := geometry.angular) is not None:
            f, shell = self.angular_filters(), geometry.angular_shell
            f = f[geometry.species] if f.shape[0] > 1 else f[0]
            if isinstance(angular, TripleSums):
                three_body, back = angular.features(shell, f.squeeze(-3), self.g.coefficients()[0])
            else:
                three_body, back = angular.features(shell, self.harmonics.lowering, f, *self.angle_coefficients())
            features = torch.cat([features, three_body], dim=1)

        def pair_gradients(h: Tensor) -> tuple[Tensor, Tensor | None]:
            h2 = h[:, :n_radial]
            if self.phi is not None:
                h2 = torch.cat([h2, torch.full_like(h2[:, :1], 0.5)], dim=1)
            weights = torch.einsum("nf,nfk->nk", h2, rho) if by_centre else h2 @ rho
            radial = (sums.slopes @ weights[:, :, None]) * unit
            return radial, None if back is None else back(h[:, n_radial:])

        return features, None if self.phi is None else 0.5 * values[:, n_radial], pair_gradients

    def _direct(self, geometry: Geometry) -> tuple[Tensor, Tensor | None, _PairGradients]:
        species, shell, inner = geometry.species, geometry.radial_shell, geometry.angular_shell
        inside, n_radial = shell.mask[..., None], self.config.radial.n_filters
        value, slope = self.rho(shell.distance, self._group(shell, species))
        features, back, pair_energies = (value * inside).sum(dim=1), None, None
        pair_slope = torch.zeros_like(shell.distance)
        if self.has_three_body:
            functions = self.f(inner.distance, self._group(inner, species))
            three_body, back = sum_triples(inner, functions, self.g, self.unordered)
            features = torch.cat([features, three_body], dim=1)
        if self.phi is not None:
            group = self.unordered[species[:, None], shell.channel] if self.config.n_elements > 1 else None
            phi, phi_slope = self.phi(shell.distance, group)
            pair_energies, pair_slope = 0.5 * (phi * inside).sum(dim=(1, 2)), 0.5 * (phi_slope * inside)[..., 0]

        def pair_gradients(h: Tensor) -> tuple[Tensor, Tensor | None]:
            along = (slope * inside * h[:, None, :n_radial]).sum(dim=-1) + pair_slope
            return along[..., None] * shell.unit, None if back is None else back(h[:, n_radial:])

        return features, pair_energies, pair_gradients

    def _group(self, shell: Shell, species: Tensor) -> Tensor | None:
        """[n, J] group of radial functions that each pair uses; None where one group serves all."""
        return None if self.config.filters == "shared" else self.radial_group[species[:, None], shell.channel]

    # The contract.

    def evaluator(self) -> Evaluator | None:
        """Compiled code where it is built and covers the form, on a GPU in float32 only."""
        if type(self) is not SplineNNP:  # which may compute something else
            return None
        # E0 among the tensors: kept alive, its id cannot pass to another tensor.
        return self._compiled.evaluator(
            lambda: [*self.parameters(), self.readout.mean, self.readout.std, self._reference],
            (id(self._reference), self._isolated),
            self.kernel_parameters,
        )

    @torch.no_grad()
    def kernel_parameters(self) -> SplineParameters:
        """The present parameters as kernels read them; it does not follow later changes of the model."""
        config = self.config
        reach = self.cutoff if config.ends == "free" else config.angular_cutoff
        projection, pairs = self.exact("projection").cpu().numpy(), self.unordered.cpu().numpy()
        legendre = array_of(self.g.free)[..., : projection.shape[1]] @ projection.T  # [groups, F, L + 1]
        chosen = pairs if config.angular.elements == "pair" else np.zeros((1, 1), dtype=np.int64)
        return SplineParameters(
            numbers=np.array([atomic_numbers[symbol] for symbol in self.elements], dtype=np.int32),
            reference=array_of(self.energy_offsets()),
            cutoff=self.cutoff,
            angular_cutoff=reach if self.has_three_body else 0.0,
            rho=table_of(self.rho),
            f=table_of(self.f),
            radial_group=self.radial_group.cpu().numpy().astype(np.int32),
            phi=None if self.phi is None else table_of(self.phi),
            pair_group=pairs.astype(np.int32),
            evaluator=config.angular.evaluator,
            degree=config.angular.degree,
            legendre=legendre[chosen],
            at_one=legendre.sum(axis=-1)[chosen.diagonal()],
            g=table_of(self.g),
            repulsion=None if config.repulsion is None else (config.repulsion.inner, config.repulsion.outer),
            screening=(SCREENING_LENGTH, *AMPLITUDES, *DECAYS),
            readout=self.readout.kernel_parameters(),
        )

    def atomic_energies(self, structure: Structure, vectors: Tensor, neighbours: Neighbours) -> Tensor:
        """[N] energies of filters and readout; differentiable in the vectors (automatic differentiation)."""
        everyone = torch.arange(structure.n_atoms, device=vectors.device)
        geometry = self.geometry((neighbours.i, neighbours.j, vectors), self.species(structure), everyone)
        return self.evaluate(geometry)[0]

    def _energies_alone(self) -> Tensor:
        """Without neighbours all features are zero."""
        return self.readout.at_zero()

    def _energies_and_pair_gradients(
        self, structure: Structure, neighbours: Neighbours
    ) -> tuple[Tensor, PairGradients]:
        """Analytic, in chunks of atoms whose arrays fit into the cache."""
        species, vectors = self.species(structure), self._vectors(structure, neighbours)
        bounds = [*range(0, structure.n_atoms, _CHUNK_ATOMS), structure.n_atoms]
        energies, none = [vectors.new_zeros(0)], vectors[:0]
        pieces = [PairGradients(neighbours.i[:0], neighbours.j[:0], none, none)]
        for centre, pairs in chunks(neighbours, vectors, structure.n_atoms, bounds):
            energy, gradients = self.evaluate(self.geometry(pairs, species, centre))
            energies.append(energy)
            pieces += [shell.pair_gradients(gradient) for shell, gradient in gradients]
        return torch.cat(energies), join_gradients(pieces)


def _bumps(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """[S, F, K] coefficients: a bump per filter, centres spread over the grid, with a random wave on top."""
    n_groups, n_filters, n_free = shape
    where = torch.linspace(0.0, 1.0, n_free, dtype=torch.float64)[None, None, :]
    centre = (torch.arange(n_filters, dtype=torch.float64) + 0.5) / max(n_filters, 1)
    centre = centre[None, :, None] + 0.1 * torch.randn(n_groups, n_filters, 1, generator=generator, dtype=torch.float64)
    width = 0.12 + 0.3 * torch.rand(n_groups, n_filters, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.exp(-(((where - centre) / width) ** 2)) + 0.1 * noise
