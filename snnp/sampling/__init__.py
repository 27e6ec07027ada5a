"""Molecular dynamics and relaxation: settings, structures, files and results shared by the engines."""

from snnp.sampling.checkpoint import Checkpoint, EngineState, starting_point
from snnp.sampling.run import (
    Engine,
    MDProgress,
    MDResult,
    RelaxProgress,
    RelaxResult,
    Report,
    available_engines,
    drive,
    relax,
    run_engine,
    run_md,
)
from snnp.sampling.settings import MDSettings
from snnp.sampling.snapshot import Sample, Snapshot
from snnp.sampling.structures import build_structure, structure_files

__all__ = [
    "Checkpoint",
    "Engine",
    "EngineState",
    "MDProgress",
    "MDResult",
    "MDSettings",
    "RelaxProgress",
    "RelaxResult",
    "Report",
    "Sample",
    "Snapshot",
    "available_engines",
    "build_structure",
    "drive",
    "relax",
    "run_engine",
    "run_md",
    "starting_point",
    "structure_files",
]
