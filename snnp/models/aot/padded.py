"""The twins of all families on neighbours that come in from outside, padded: what `torch.export` can trace.

No shape in here depends on what a tensor holds, and no branch does. Where a twin picks the atoms of an element, every
element's network sees all atoms, and a mask chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snnp.errors import InputError
from snnp.models.ani.scripted import ScriptedANI
from snnp.models.ensemble import Ensemble
from snnp.models.families import family_of
from snnp.models.gradients import SHORTEST_DISTANCE, Shell
from snnp.models.hipnn.scripted import ScriptedHIPNN
from snnp.models.potential import Potential
from snnp.models.scripted import ScriptedPotential
from snnp.models.spline.readout import Network
from snnp.models.spline.scripted import ScriptedSplineNNP

__all__ = ["PaddedPotential"]


class _EveryNetwork(nn.Module):
    """A readout's networks without a choice of atoms; arguments and results as of `Network`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.network.effective_weights()
        if self.network.n_copies == 1:
            return self.network.of_element(x, 0, weights)
        energy, gradient = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for element in range(self.network.n_copies):
            mine = (species == element).to(x.dtype)
            one, slopes = self.network.of_element(x, element, weights)
            energy, gradient = energy + mine * one, gradient + mine.unsqueeze(1) * slopes
        return energy, gradient


class _Member(nn.Module):
    """One potential: energies [N] without E0 and repulsion, and gradients [N, J, 3], of padded rows."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        family = family_of(model)
        twin = None if family is None or family.scripted is None else family.scripted(model, True)
        if not isinstance(twin, ScriptedSplineNNP | ScriptedHIPNN | ScriptedANI):
            known = "SplineNNP, HIPNN and ANI, and Ensembles of them, can"
            raise InputError(f"models of class {type(model).__name__} cannot be written as aoti; {known}.")
        self.twin: ScriptedPotential = twin
        self.angular_cutoff = model.cutoff
        if isinstance(twin, ScriptedSplineNNP | ScriptedANI):
            self.angular_cutoff = twin.angular_cutoff
        if isinstance(twin, ScriptedSplineNNP) and twin.readout.network is not None:
            twin.readout.network = _EveryNetwork(twin.readout.network)  # type: ignore[assignment]

    def forward(self, j: Tensor, vectors: Tensor, there: Tensor, species: Tensor) -> tuple[Tensor, Tensor]:
        vectors = vectors.to(self.twin.real.dtype)
        if isinstance(self.twin, ScriptedSplineNNP):
            far, near = self.shells(j, vectors, there, species)
            energies, radial, angular = self.twin.of_shells(far, near, species)
            return energies, radial + angular
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            energies = self.energies(*self.shells(j, vectors, there, species), species)
            (gradients,) = torch.autograd.grad([energies.sum()], [vectors])
        return energies.detach(), gradients

    def shells(self, j: Tensor, vectors: Tensor, there: Tensor, species: Tensor) -> tuple[Shell, Shell]:
        """Neighbours within the cutoff, and within that of angles."""
        distance = torch.linalg.vector_norm(vectors, dim=-1)
        channel = species.index_select(0, j.flatten()).reshape(j.shape)
        everyone = torch.arange(j.shape[0], device=j.device)
        far = Shell(everyone, j, channel, distance, vectors / distance.unsqueeze(-1), there)
        return far, far._replace(mask=there & (distance < self.angular_cutoff))

    def energies(self, far: Shell, near: Shell, species: Tensor) -> Tensor:
        """[N], differentiable, of a family without analytic gradients."""
        if isinstance(self.twin, ScriptedHIPNN):
            return self.twin.of_shell(far, species)
        assert isinstance(self.twin, ScriptedANI)
        features = self.twin.features(far, near)
        total = torch.zeros_like(features[:, 0])
        for element, network in enumerate(self.twin.networks):
            total = total + network(features) * (species == element)
        return total


class PaddedPotential(nn.Module):
    """A potential, or the mean of an ensemble, as a function of tensors whose shapes are known beforehand."""

    species_of_number: Tensor
    charge: Tensor
    reference: Tensor

    def __init__(self, model: Potential) -> None:
        super().__init__()
        members = model.potentials if isinstance(model, Ensemble) else [model]
        if any(member.elements != model.elements for member in members):
            raise InputError("an Ensemble whose members list their elements in different orders cannot be exported.")
        self.members = nn.ModuleList(_Member(member) for member in members)
        twins: list[ScriptedPotential] = [each.twin for each in self.members if isinstance(each, _Member)]
        self.cutoff = model.cutoff
        self.is_analytic = all(isinstance(each, ScriptedSplineNNP) for each in twins)
        self.repulsions = nn.ModuleList(each.repulsion for each in twins if each.repulsion is not None)
        self.register_buffer("reference", torch.stack([each.reference for each in twins]).mean(dim=0))
        self.register_buffer("charge", twins[0].charge)
        self.register_buffer("species_of_number", model.species_of_number.clone())

    def forward(
        self, numbers: Tensor, positions: Tensor, cell: Tensor, neighbours: Tensor, shifts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Energy [] in eV (NaN: an unknown element, or atoms on top of each other), forces [N, 3], virial [3, 3].

        `numbers`: [N] int64; `positions`: [N, 3] Å, float64; `cell`: [3, 3], rows are vectors; `neighbours`: [N, J]
        int64, -1 in padding, all within the cutoff and any beyond; `shifts`: [N, J, 3] int64, those of the cell.
        """
        # Two more columns: those who form pairs of them need two of which torch knows when it traces.
        neighbours = torch.nn.functional.pad(neighbours, (0, 2), value=-1)
        shifts = torch.nn.functional.pad(shifts, (0, 0, 0, 2))
        n_atoms, width = neighbours.shape
        known = self.species_of_number[numbers.clamp(0, self.species_of_number.shape[0] - 1)]
        species = known.clamp_min(0)
        j = neighbours.clamp_min(0)
        ends = positions.index_select(0, j.flatten()).reshape(n_atoms, width, 3)
        vectors = ends - positions.unsqueeze(1) + shifts.to(cell.dtype) @ cell
        squares = vectors.square().sum(dim=-1)
        there = (neighbours >= 0) & (squares < self.cutoff * self.cutoff)
        wrong = (known < 0).any() | (there & (squares <= SHORTEST_DISTANCE**2)).any()
        outside = torch.tensor([2.0 * self.cutoff, 0.0, 0.0], dtype=vectors.dtype, device=vectors.device)
        vectors = torch.where(there.unsqueeze(-1), vectors, outside)

        energy, gradients = self.reference[species].sum(), torch.zeros_like(vectors)
        for member in self.members:
            energies, slopes = member(j, vectors, there, species)
            energy = energy + energies.double().sum() / len(self.members)
            gradients = gradients + slopes.double() / len(self.members)
        charge = self.charge[species]
        for repulsion in self.repulsions:
            distance = torch.linalg.vector_norm(vectors, dim=-1)
            others = charge.index_select(0, j.flatten()).reshape(n_atoms, width)
            halves, slopes = repulsion(distance, charge.unsqueeze(1), others)
            energy = energy + halves.sum() / len(self.members)
            gradients = gradients + (slopes / distance).unsqueeze(-1) * vectors / len(self.members)
        gradients = (gradients * there.unsqueeze(-1)).reshape(-1, 3)
        forces = gradients.reshape(n_atoms, width, 3).sum(dim=1).index_add(0, j.flatten(), -gradients)
        virial = vectors.reshape(-1, 3).T @ gradients
        return torch.where(wrong, torch.nan, energy), forces, virial
