"""What a teacher costs: CPU time of energy and forces of 32 atoms on one thread, in the environment that has it.

OMP_NUM_THREADS=1 ENV/bin/python docs/measure/timings/teacher.py 7net-l3i5 Al
"""

from __future__ import annotations

import importlib
import statistics
import sys
import time

from ase.build import bulk


def main(model: str, symbol: str) -> None:
    """Print µs per atom, the median of five calls after a first one."""
    importlib.import_module("torch").set_num_threads(1)
    atoms = bulk(symbol, cubic=True) * (2, 2, 2)
    atoms.rattle(0.05, seed=0)
    atoms.calc = importlib.import_module("sevenn.calculator").SevenNetCalculator(model=model, device="cpu")
    seconds = []
    for _ in range(6):
        atoms.positions[0, 0] += 1e-3
        began = time.process_time()
        atoms.get_forces()
        seconds.append(time.process_time() - began)
    print(f"{model}, {len(atoms)} {symbol} atoms: {1e6 * statistics.median(seconds[1:]) / len(atoms):,.0f} µs/atom")


if __name__ == "__main__":
    main(*sys.argv[1:])
