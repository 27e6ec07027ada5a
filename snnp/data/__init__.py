"""Reference structures with energies, forces and stresses, as read from files."""

from snnp.data.checks import Finding, check_frames
from snnp.data.frames import Frame, Keys, elements_of, read_frames
from snnp.data.reference import ReferenceEnergies, fit_reference_energies, is_isolated_atom
from snnp.data.splits import Split, load_split, save_split, split_frames

__all__ = [
    "Finding",
    "Frame",
    "Keys",
    "ReferenceEnergies",
    "Split",
    "check_frames",
    "elements_of",
    "fit_reference_energies",
    "is_isolated_atom",
    "load_split",
    "read_frames",
    "save_split",
    "split_frames",
]
