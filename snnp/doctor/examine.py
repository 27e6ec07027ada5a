"""Every check of a data set, or of a model, in one call; of data what cannot be read is a finding, too."""

from __future__ import annotations

import copy
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from snnp.analysis.properties import Compression, compression_scan
from snnp.data import Frame, Frames, Keys, load_dataset
from snnp.data.read import dataset_files, is_xyz, labels_of, read_any
from snnp.doctor import coverage, label_checks, trials
from snnp.doctor.consensus import consensus_of, spread
from snnp.doctor.pictures import data_pictures, model_pictures
from snnp.doctor.survey import UNASSIGNED, survey
from snnp.errors import DataError
from snnp.models.potential import Potential
from snnp.report import Finding, Report, Table
from snnp.uncertainty.statements import CALIBRATION, check_calibration

__all__ = ["DATA_CHECKS", "MODEL_CHECKS", "examine_data", "examine_model", "read_set"]

_OF_SOUND_UNITS = (
    *("force sign", "force units", "force direction", "energies and forces", "stress", "energy units"),
    *("energy outliers", "level of theory"),
)
DATA_CHECKS = (
    *("readable", "units", "completeness", "plausibility", "distances", "force sums", "torques"),
    *_OF_SOUND_UNITS,
    *("duplicates", "contradictions", "leakage", "near duplicates", "coverage"),
)
"""Names of all checks of data; a report lists those that found nothing."""

MODEL_CHECKS = (*trials.CONTRACT_CHECKS, "dimers", "compression", "dynamics", "size scaling", "statements", CALIBRATION)
"""Names of all checks of models; a report lists those that found nothing."""

_STATED = {"dataset": "data set", "level_of_theory": "level of theory", "licence": "licence"}
_RANK = {"error": 0, "warning": 1, "note": 2}
_USUAL = ("train", "valid", "test", "all")
_NAMES = {name: name for name in _USUAL[:3]} | {"training": "train", "validation": "valid", "val": "valid"}


def read_set(
    sources: Sequence[str | Path], keys: Keys | None = None, *, part: str | None = None
) -> tuple[dict[str, Frames], list[Finding]]:
    """Read files, folders and datasets by name, and sort the frames into splits, the one that is trained on first.

    Splits are those of a dataset; for files, the word "train", "valid" or "test" in the name, or as in `train=FILE`.
    Others are "all", or "other" beside files that have one. Broken frames are a finding; sources that do not exist, or
    cannot be read at all, are refused.
    """
    named: list[tuple[str | None, str]] = []
    for text in map(str, sources):  # a path that holds "=" is taken as it is where it exists
        name, sign, rest = text.partition("=")
        given = bool(sign) and re.fullmatch(r"\w+", name) is not None and not Path(text).exists()
        named.append((name, rest) if given else (None, text))
    files = [(split, file) for split, source in named for file in _files(source)]
    labels = dict(zip(files, labels_of([file for _, file in files]), strict=True)) if files else {}
    parts: dict[str, list[Frames]] = defaultdict(list)
    broken: list[str] = []
    for (split, file), label in labels.items():
        parts[split or _split_in(file.name)] += read_any(file, keys or Keys(), label, labelled=False)
    for split, source in named:
        if not _files(source):
            dataset = load_dataset(source, part=part)
            for name in [each for each in dataset.splits if each] or [""]:
                parts[split or name or "all"] += (dataset.select(name) if name else dataset).chunks()
    frames = {name: Frames.concatenate([each.checked(broken) for each in found]) for name, found in parts.items()}
    frames = {name: found for name, found in frames.items() if len(found)}
    if len(frames) > 1 and "all" in frames:
        both = [*([frames[UNASSIGNED]] if UNASSIGNED in frames else []), frames.pop("all")]
        frames[UNASSIGNED] = Frames.concatenate(both)
    order = sorted(frames, key=lambda name: _USUAL.index(name) if name in _USUAL else len(_USUAL))
    unreadable = Finding(
        "readable",
        "error",
        f"{len(broken):,} frames cannot be read; the first: {''.join(broken[:1])}",
        "Training refuses the whole file because of them: NaN would spread to every parameter.",
        "Remove these frames or recompute them (failed calculations often leave NaN behind).",
        tuple(text.partition(": ")[0] for text in broken),
    )
    return {name: frames[name] for name in order}, [unreadable] if broken else []


def _files(source: str) -> list[Path]:
    """The files that a source stands for; none for datasets in parquet or by name."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() != ".parquet":
        return [path]
    if not path.is_dir() or dataset_files(path):
        return []
    files = sorted(file for file in path.iterdir() if is_xyz(file))
    if not files:
        raise DataError(f"the folder {source} holds neither parquet nor extended XYZ files; name the files.")
    return files


def _split_in(name: str) -> str:
    """The split that a file's name speaks of, or "all"."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((_NAMES[word] for word in words if word in _NAMES), "all")


def examine_data(
    frames_by_split: Mapping[str, Iterable[Frame]],
    *,
    subject: str = "data",
    unreadable: Sequence[Finding] = (),
    pictures: bool = True,
) -> Report:
    """Examine a data set; raises `DataError` if there is no frame at all.

    `frames_by_split` begins with the split that is trained on; `unreadable` is what `read_set` found; `pictures`
    take about two seconds.

    Example:
        >>> report = examine_data({"train": read_frames("train.xyz"), "test": read_frames("test.xyz")})
        >>> [finding.message for finding in report.errors]
        []
    """
    begin = time.perf_counter()
    seen = survey(frames_by_split)
    units, wrong = label_checks.check_units(seen)
    sound = seen
    if wrong.any() and not wrong.all():
        # What is in other units would be taken for the opinion of the set: the rest is examined without it.
        sound = survey({name: seen.frames.take(~wrong & (seen.split == name)) for name in seen.splits})
    consensus = consensus_of(sound, label_checks.FORCE_FACTORS)
    clusters = coverage.find_clusters(seen)
    findings = [*unreadable, *units, *label_checks.check_completeness(seen), *coverage.check_distances(seen)]
    findings += [*label_checks.check_force_sums(sound), *coverage.check_duplicates(seen, clusters)]
    findings += [*coverage.check_leakage(seen, clusters), *coverage.check_coverage(seen)]
    if not wrong.all():
        told = any(each.check == "stress" for each in units)
        compared = [each for check in label_checks.COMPARED for each in check(sound, consensus)]
        findings += [*label_checks.check_plausibility(sound)]
        findings += [each for each in compared if not (told and each.check == "stress")]
    found = {finding.check for finding in findings}
    found |= {"plausibility", *_OF_SOUND_UNITS} if wrong.all() else set()
    labels = {
        "energy beyond composition, typical (eV/atom)": spread(consensus.composition_residual),
        "energy beyond composition and a linear model, typical (eV/atom)": spread(consensus.residual),
        "misfit of energies and forces in one linear model": consensus.relative_misfit.get(1.0),
    }
    return Report(
        subject,
        "data",
        tuple(sorted(findings, key=lambda each: _RANK[each.severity])),
        passed=tuple(name for name in DATA_CHECKS if name not in found),
        tables=[*coverage.tables(seen), Table.of("Labels", labels)],
        pictures=data_pictures(sound, consensus) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


def examine_model(model: Potential, *, subject: str | None = None, pictures: bool = True) -> Report:
    """Examine a potential of any family, on the CPU and in its own float type; it stays as it is.

    `subject` is its name, by default that of its class; `pictures` take about two seconds.

    Example:
        >>> report = examine_model(load_model("snnp-si"))
        >>> [finding.message for finding in report.errors]
        []
    """
    begin = time.perf_counter()
    subject = type(model).__name__ if subject is None else subject
    model = copy.deepcopy(model).to("cpu")
    about = {
        "class": type(model).__name__,
        "elements": ", ".join(model.elements),
        "cutoff (Å)": model.cutoff,
        "parameters": model.n_parameters,
        "float type": str(model.dtype).removeprefix("torch."),
        **{f"E0 of {symbol} (eV)": energy for symbol, energy in model.reference_energies.items()},
    }
    tables = [Table.of("Model", about)]
    findings = list(trials.check_numbers(model))
    if findings:
        # Nothing else can be said about a model whose every result is NaN.
        return Report(subject, "model", tuple(findings), (), tables, seconds=time.perf_counter() - begin)
    findings += trials.check_contract(model)
    dimers, scan = trials.dimer_curves(model), compression_scan(model, trials.relaxed_molecule(model))
    runs, scaling = trials.short_runs(model), trials.measure_scaling(model)
    findings += [*trials.check_dimers(dimers), *trials.check_compression(scan), *trials.check_runs(runs)]
    findings += [*trials.check_scaling(scaling), *_check_statements(model), *check_calibration(model)]
    found = {finding.check for finding in findings}
    return Report(
        subject,
        "model",
        tuple(sorted(findings, key=lambda each: _RANK[each.severity])),
        passed=tuple(name for name in MODEL_CHECKS if name not in found),
        tables=[*tables, *_model_tables(scan, runs, scaling)],
        pictures=model_pictures(dimers, scan, runs, scaling) if pictures else (),
        seconds=time.perf_counter() - begin,
    )


def _model_tables(scan: list[Compression], runs: list[trials.Run], scaling: trials.Scaling) -> list[Table]:
    words = {True: "yes", False: "no"}
    compression = [(s.system, s.way, float(s.ratio[-1]), float(s.energy[-1]), words[s.hole is None]) for s in scan]
    dynamics = [(run.name, run.seen.picoseconds, run.seen.dt_fs, run.drift, words[run.seen.survived]) for run in runs]
    columns = ("system", "ps", "step_fs", "drift_beyond_noise_mev_per_atom", "survived")
    cost = [(n, 1e6 * seconds / n) for n, seconds in zip(scaling.atoms, scaling.seconds, strict=True)]
    return [
        Table(("system", "way", "down to V/V0", "eV/atom there", "rises all the way"), compression, "Compression"),
        Table(columns, dynamics, "Dynamics"),
        Table(("atoms", "µs_per_atom"), cost, "Cost"),
    ]


def _check_statements(model: Potential) -> Iterator[Finding]:
    """What a user must know about a model and its metadata do not say."""
    missing = [words for key, words in _STATED.items() if not model.metadata.get(key)]
    if missing:
        yield Finding(
            "statements",
            "note",
            f"the metadata do not state: {', '.join(missing)}",
            "Nobody else can judge what the model is good for, or may use it; `snnp publish` refuses it.",
            "Fill in `metadata` before `save_model`, or use --set when publishing.",
        )
