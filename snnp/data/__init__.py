"""Reference structures with energies, forces and stresses: from files, and from datasets."""

from snnp.data.dataset import Batch, Dataset
from snnp.data.frames import Frame, Frames
from snnp.data.labels import Keys, Units, keys_of
from snnp.data.plausibility import check_frames
from snnp.data.read import convert, dataset_records, load_dataset, read_frames
from snnp.data.reference import ReferenceEnergies, fit_reference_energies
from snnp.data.splits import Split, load_split, save_split, split_frames

__all__ = ["Batch", "Dataset", "Frame", "Frames", "Keys", "ReferenceEnergies", "Split", "Units", "check_frames"]
__all__ += ["convert", "dataset_records", "fit_reference_energies", "keys_of", "load_dataset", "load_split"]
__all__ += ["read_frames", "save_split", "split_frames"]
