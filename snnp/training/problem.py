"""Before the first step: read and divide the data, fix E0 and ranges, build the model."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from snnp.data import Dataset, Frames, check_frames, dataset_records, read_frames
from snnp.data.consistency import by_file, suspicions
from snnp.data.read import as_dataset
from snnp.data.reference import FROM_ISOLATED_ATOMS, ReferenceEnergies, are_isolated_atoms, fit_reference_energies
from snnp.data.splits import Split, load_split, split_frames
from snnp.errors import ConfigError, DataError
from snnp.models.families import FAMILIES
from snnp.models.potential import Potential
from snnp.training.batches import Batches, Inside
from snnp.training.compressed import MOST_ELEMENTS, CompressedFrame, compressed_frames, fit_wall
from snnp.training.config import DataConfig, TrainConfig
from snnp.training.transfer import Start, atomic_zeros

__all__ = ["Problem", "build_model", "check_data", "features_of", "load_problem", "resolve"]

_SAMPLE_ATOMS = 100_000
"""Of a stream: E0, elements, ranges, checks, compressed structures, the scale of features come from a sample of it."""


@dataclass(frozen=True)
class Problem:
    """What is to be learned: the frames of each part, E0 with its provenance, and structures beyond the data.

    `zeros`: eV per element, of the labels of atomic energies (see `atomic_zeros`).
    `stream`: the dataset whose rows are trained on, where `split.train` is only a sample of them; `inside` says which
    of its frames are within the limits. `start`: the model that training goes on from.
    """

    split: Split
    reference: ReferenceEnergies
    compressed: tuple[CompressedFrame, ...] = ()
    zeros: Mapping[str, float] = field(default_factory=dict)
    stream: Dataset | None = None
    inside: Inside = lambda frames: np.ones(len(frames), dtype=bool)
    start: Start | None = None


def _expand(path: str) -> str:
    expanded = os.path.expanduser(os.path.expandvars(path))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise ConfigError(
            f"data path {path!r} uses the environment variable {unset[1]}, which is not set; "
            f"'export {unset[1]}=/path/to/the/folder', or write the path itself."
        )
    return expanded


def _inside(frames: Frames, config: DataConfig, floor: float) -> np.ndarray:
    """[B] bool, which frames are within the limits of elements, energy (above a `floor` in eV/atom) and forces."""
    energy = np.where(are_isolated_atoms(frames), np.nan, frames.energy / frames.counts)
    force = frames.per_frame(np.abs(frames.forces).max(axis=1), np.maximum)
    # What is not known is NaN, which is not above any limit.
    above = (energy - floor > (config.max_energy or math.inf)) | (force > (config.max_force or math.inf))
    return ~above & _made_of(frames, config.elements)


def _made_of(frames: Frames, elements: Collection[str] | None) -> np.ndarray:
    """[B] bool, which frames hold no other elements."""
    others = [elements is not None and symbol not in elements for symbol in frames.elements]
    only: np.ndarray = frames.composition()[:, others].sum(axis=1) == 0
    return only


def _distinct(frames: Frames) -> Frames:
    """Frames without repetitions: sets that share frames would otherwise leak from one part into another.

    One are only frames of the same species, cell, boundaries, positions (to 1e-6 Å) and labels.
    """
    # Zero is added because a rounded -1e-9 is -0.0, whose bytes are others.
    rounded = [np.round(values, 6) + 0.0 for values in (frames.positions, frames.forces, frames.energies)]
    per_atom = [*rounded, frames.numbers]
    per_frame = [np.round(frames.cell, 6) + 0.0, np.round(frames.stress, 6) + 0.0, frames.pbc, frames.energy + 0.0]
    seen: dict[bytes, int] = {}
    for row, (first, last) in enumerate(itertools.pairwise(frames.starts.tolist())):
        parts = [values[first:last] for values in per_atom] + [values[row] for values in per_frame]
        seen.setdefault(b"".join(part.tobytes() for part in parts), row)
    return frames.take(list(seen.values()))


def _read(paths: str | tuple[str, ...], config: DataConfig, part: str = "", split: str | None = None) -> Frames:
    """Frames of some files or datasets; the part's name goes before the sources: two parts may have files of one name.

    `split` is taken of datasets that have it, where the path names none (`org/name:test`).
    """
    listed = (paths,) if isinstance(paths, str) else paths
    frames = read_frames([_expand(path) for path in listed], config.keys, split=split)
    return replace(frames, sources=[part + source for source in frames.sources])


def _divide(config: TrainConfig) -> tuple[Split, Dataset | None]:
    """Train, valid and test from files and fractions; of a stream `train` is a sample, and its dataset comes along."""
    data, stream = config.data, None
    valid, test = (part if isinstance(part, float) else 0.0 for part in (data.valid, data.test))
    if data.stream:
        dataset = as_dataset(_expand(data.train[0]), "train")
        if dataset is None:
            raise ConfigError(
                f"data.stream reads datasets in parquet; make one of {data.train[0]} with 'snnp convert'."
            )
        # The lowest energy is not known yet.
        free = data.model_copy(update={"max_energy": None})
        split, stream = _divide_dataset(dataset, valid, test, config.seed, lambda frames: _inside(frames, free, 0.0))
    else:
        frames = _distinct(_read(data.train, data, split="train"))
        split = split_frames(frames, valid=valid, test=test, seed=config.seed)
    if data.forces_only:
        extra = _read(data.forces_only, data, "forces_only:", "train")
        nothing = np.full(len(extra), np.nan)
        extra = replace(extra, energy=nothing, has_energy=np.zeros(len(extra), dtype=bool))
        split = replace(split, train=Frames.concatenate([split.train, extra]))
    for part, paths in (("valid", data.valid), ("test", data.test)):
        if isinstance(paths, str | tuple):
            split = replace(split, **{part: _read(paths, data, f"{part}:", part)})
    return split, stream


def _divide_dataset(dataset: Dataset, valid: float, test: float, seed: int, inside: Inside) -> tuple[Split, Dataset]:
    """Draw the rows of each part by the seed; returns the parts, of `train` a sample, and all rows of `train`."""
    total, random = len(dataset), np.random.default_rng([seed, 3])
    n_valid, n_test = (int(part) if part >= 1 else max(1, round(part * total)) if part else 0 for part in (valid, test))
    if n_valid + n_test >= total:
        raise DataError(f"{n_valid} validation and {n_test} test frames leave nothing of {total} to train on.")
    drawn = np.split(random.permutation(total), [n_valid, n_valid + n_test])
    held, train = [dataset[np.sort(rows)].frames() for rows in drawn[:2]], dataset[np.sort(drawn[2])]
    # Isolated atoms fix E0, and are no test of anything.
    alone = [(frames, are_isolated_atoms(frames)) for frames in held]
    sample = Frames.concatenate([_sample(train, random, inside), *(frames.take(which) for frames, which in alone)])
    return Split(sample, *(frames.take(~which) for frames, which in alone)), train


def _sample(dataset: Dataset, random: np.random.Generator, inside: Inside) -> Frames:
    """What tells the rest of a training part, in one pass: frames drawn, isolated atoms, each element's lowest."""
    parts, share = list[Frames](), 1.0
    lowest: dict[str, tuple[float, Frames]] = {}
    for k, frames in enumerate(dataset.chunks()):
        if k == 0:
            share = _SAMPLE_ATOMS / (float(frames.counts.mean()) * len(dataset))
        drawn, frames = random.random(len(frames)) < share, frames.checked()
        frames, drawn = frames.take(good := inside(frames)), drawn[good]
        alone = are_isolated_atoms(frames)
        parts.append(frames.take(drawn | alone))
        energy = np.where(alone | ~frames.has_energy, np.inf, frames.energy / frames.counts)
        for symbol, count in zip(frames.elements, frames.composition().T, strict=True):
            row = np.flatnonzero(count)[energy[count > 0].argmin()]
            if symbol not in lowest or energy[row] < lowest[symbol][0]:
                lowest[symbol] = float(energy[row]), frames.take([row])
    found = Frames.concatenate([*parts, *(frame for _, frame in lowest.values())])
    _, first = np.unique(np.array(found.sources), return_index=True)
    return found.take(np.sort(first))


def load_problem(
    config: TrainConfig, split_file: Path | None = None, check: Callable[[Problem], None] = lambda problem: None
) -> Problem:
    """Read the data of a run; a `split_file` repeats an earlier division.

    `check` is called before compressed structures are made, which takes for ever of lengths in another unit. Raises
    `DataError` if files are missing or empty, lack energies, or if the limits leave nothing to train on.
    """
    split, stream = _divide(config)
    if split_file is not None:
        parts = Frames.concatenate([split.train, split.valid, split.test])
        rows = {source: row for row, source in enumerate(parts.sources)}
        split = load_split(split_file, parts.take(list(rows.values())))
    telling = split.train.has_energy & ~are_isolated_atoms(split.train)
    if not telling.any():
        raise DataError("no training frame has an energy; name the key with data.energy_key.")
    floor = float((split.train.energy / split.train.counts)[telling].min())
    narrow = config.data.model_copy(update={"max_energy": config.data.test_max_energy or config.data.max_energy})
    limits = ((split.train, config.data), (split.valid, config.data), (split.test, narrow))
    split = Split(*(frames.take(_inside(frames, each, floor)) for frames, each in limits))
    if not split.train:
        raise DataError("data.max_energy and data.max_force leave no training frame; raise the limits.")
    isolated = None
    if config.data.isolated_atoms is not None:
        atoms = _read(config.data.isolated_atoms, config.data, split="isolated_atoms")
        isolated = atoms.take(_made_of(atoms, split.train.elements))
    reference, start = fit_reference_energies(split.train, isolated), None
    if config.start is not None:
        start = Start(_expand(config.start), split.train.elements, config.freeze == "filters", config.seed)
        reference = start.zeros(split.train, reference)
    zeros = atomic_zeros(split.train, reference.energies)
    if config.loss.teaches_atoms and not zeros:
        raise ConfigError(
            "loss.atomic_energy_weight asks for energies of atoms, but no training frame has them (a column 'energies' "
            "of extended XYZ, 'atomic_energies' of a dataset); set it to 0, or have a teacher label them."
        )
    inside = partial(_inside, config=config.data, floor=floor)
    problem = Problem(split, reference, zeros=zeros, stream=stream, inside=inside, start=start)
    check(problem)
    if config.compression is None or len(split.train.elements) > MOST_ELEMENTS:
        return problem
    wall = fit_wall(split.train, config.seed)
    return replace(problem, compressed=tuple(compressed_frames(split.train, wall, config.compression, config.seed)))


def check_data(config: DataConfig, problem: Problem) -> list[str]:
    """What is suspicious about the units of labels, file by file, and about structures.

    Raises `DataError` where units are wrong beyond doubt, unless `data.check_units` says to go on.
    """
    cure, strict = "To train all the same set data.check_units to warn.", config.check_units == "error"
    train, valid, test = problem.split.train, problem.split.valid, problem.split.test
    doubts = [] if config.check_units == "off" else suspicions(by_file(Frames.concatenate([train, valid, test])))
    certain = [str(each) for each in doubts if each.certain]
    if certain and strict:
        raise DataError(f"{'. '.join(certain)}. {cure}")
    frames = Frames.concatenate([train, valid])
    findings = check_frames(frames)
    for finding in findings:
        if strict and finding.check == "short_distance" and 2 * len(finding.frames) > len(frames):
            raise DataError(f"{finding}; state the unit with data.units, such as {{length: nm}}. {cure}")
    return [str(each) for each in [*doubts, *findings]]


def resolve(config: TrainConfig, problem: Problem) -> TrainConfig:
    """Fill in what follows from the data: elements, ranges (see `FamilyConfig.ranged`), and how forces are trained.

    Raises `ConfigError` if the model's elements do not cover the data.
    """
    found = problem.split.train.elements
    if problem.start is not None:
        config = config.model_copy(update={"model": problem.start.model.config, "ranges": "given"})
    elements = config.model.elements or found
    if missing := [symbol for symbol in found if symbol not in elements]:
        raise ConfigError(f"model.elements lacks {', '.join(missing)}, which the training data hold.")
    model = config.model.model_copy(update={"elements": elements})
    if config.ranges == "auto":
        model = model.ranged(float(problem.split.train.shortest_distances(model.reach).min(initial=model.reach)))
    chosen = "exact" if config.displacement is None else "directional"
    optimiser = config.optimiser.model_copy(update={"force_training": chosen})
    return config.model_copy(update={"model": model, "ranges": "given", "optimiser": optimiser})


def _lowest_energy(problem: Problem) -> float:
    """eV per atom relative to E0, of the training frames: far below, nothing that a model says can be trusted."""
    frames = problem.split.train
    zero = np.array([problem.reference.energies.get(symbol, 0.0) for symbol in frames.elements])
    relative = (frames.energy - frames.composition() @ zero) / frames.counts
    return float(relative[frames.has_energy].min())


def build_model(config: TrainConfig, problem: Problem) -> Potential:
    """A fresh model in float64 with the metadata of the run."""
    family = FAMILIES[config.model.family]
    model: Potential = family.potential(config.model, problem.reference.energies, seed=config.seed)
    model.isolated_atoms = [s for s, how in problem.reference.provenance.items() if how == FROM_ISOLATED_ATOMS]
    model.metadata = {
        **config.metadata,
        "reference_energies_from": problem.reference.provenance,
        "training_data": list(config.data.train),
        "n_training_frames": len(problem.split.train if problem.stream is None else problem.stream),
        "n_compressed_frames": len(problem.compressed),
        "lowest_energy_ev_per_atom": _lowest_energy(problem),
    }
    if datasets := dataset_records(_expand(source) for source in config.data.train):
        model.metadata["datasets"] = datasets
    return model


@torch.no_grad()
def features_of(model: Potential, data: Batches, n_frames: int | None = None) -> Tensor:
    """[N, D] of the atoms of the first `n_frames` (all by default)."""
    frames = np.arange(data.n_frames if n_frames is None else n_frames)
    chunks = [frames[k : k + 16] for k in range(0, len(frames), 16)]
    return torch.cat([data.backend.features(model, data.batch(chunk)) for chunk in chunks])
