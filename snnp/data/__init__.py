"""Reference structures with energies, forces and stresses: from files, and from datasets."""

from snnp.data.dataset import Batch, Dataset
from snnp.data.frames import Frame, Frames, elements_of
from snnp.data.labels import Keys, Units, keys_of
from snnp.data.plausibility import check_frames
from snnp.data.read import convert, dataset_records, load_dataset, read_frames
from snnp.data.reference import ReferenceEnergies, fit_reference_energies, is_isolated_atom
from snnp.data.splits import Split, load_split, save_split, split_frames
from snnp.report import Finding

__all__ = [
    "Batch",
    "Dataset",
    "Finding",
    "Frame",
    "Frames",
    "Keys",
    "ReferenceEnergies",
    "Split",
    "Units",
    "check_frames",
    "convert",
    "dataset_records",
    "elements_of",
    "fit_reference_energies",
    "is_isolated_atom",
    "keys_of",
    "load_dataset",
    "load_split",
    "read_frames",
    "save_split",
    "split_frames",
]
