"""One module per program that can be measured; each runs in the interpreter of that program's own environment.

An adapter is a file that imports nothing of snnp (but `own.py`) and nothing heavy before `prepare`. It has

    PACKAGES                 the distributions that it needs, whose versions are reported
    CASES                    one mapping per case: `name`, `structure` (a crystal without its size such as
                             fcc:Al:a=4.05, or `molecules`), perhaps `atoms` (the most atoms worth waiting for),
                             perhaps `method` (its name in the tables of published errors), and what it needs itself
    prepare(case, system, threads)
                             returns a function of positions [N, 3] in Å that computes the energy and all forces
                             (eV, eV/Å) at them, and a mapping of facts to report (parameters, cutoff, precision)

`system` has numbers [N], positions [N, 3] in Å, cells [B, 3, 3], pbc (bool) and structure_of_atom [N]. Positions
move by 1e-4 Å from call to call: less than any skin, so neighbour lists may be kept, and enough that no result can be.
"""
