"""Labels of structures: the names and the units that files have for energies, forces, stresses and groups.

Within one file one name is used for each quantity, so that levels of theory are never mixed. What looks like a label
and is not read is said, and what could be meant by several names is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from snnp.errors import DataError, near_matches
from snnp.units import ENERGY_UNITS, LENGTH_UNITS, PRESSURE_UNITS

__all__ = ["Keys", "Names", "Shape", "Units", "choose_names", "keys_of", "look_alikes", "outranked"]

_log = logging.getLogger(__name__)

_GROUPS = ("config_type", "group", "tag")
_REFERENCE = frozenset({"ref", "reference", "target", "true"})
_LEVELS = frozenset(
    (
        *("dft", "qm", "abinitio", "castep", "vasp", "qe", "espresso", "pwscf", "cp2k", "aims", "fhiaims", "orca"),
        *("gpaw", "abinit", "siesta", "psi4", "gaussian", "molpro", "nwchem", "turbomole", "openmx", "dftb", "xtb"),
        *("emt", "lda", "pbe", "pbesol", "pbe0", "pbed3", "rpbe", "scan", "rscan", "r2scan", "blyp", "b3lyp", "wb97x"),
        *("wb97xd", "wb97mv", "hse", "hse06", "hf", "mp2", "ccsd", "ccsdt", "rpa", "caspt2"),
    )
)
_RANKS = {"": 1, **dict.fromkeys(_REFERENCE, 0), **dict.fromkeys(_LEVELS, 2), "total": 3, "potential": 3, "free": 4}
# Sizes, weights and parts of labels, which are none themselves.
_NO_LABELS = re.compile(
    r"sigma|weight|mask|max|rms|mae|std|err|tol|cutoff|conv|constant|per_?atom|unit|field|kinetic|norm", re.IGNORECASE
)
_NAME = re.compile(
    r"(?P<before>.*?)[ _.:/-]?(?P<core>energy|forces?|stress|virials?)(?:[ _.:/-](?P<after>.+))?", re.IGNORECASE
)
_LOOKS_LIKE = {
    "energy": re.compile(r"energ|\be_?(?:pot|tot)", re.IGNORECASE),
    "forces": re.compile(r"forc|grad|^f(?:rc)?s?(?:_?[xyz])?$", re.IGNORECASE),
    "stress": re.compile(r"stress|virial|pressure", re.IGNORECASE),
}
_LONGEST_NAME = 80
_ATOMIC = {"energy": "Hartree", "length": "bohr"}


@dataclass(frozen=True)
class Units:
    """Units of the numbers in a file; refuses what is no unit of a quantity, and names near matches.

    Such as "kcal/mol" (also of virials), "nm", "kcal/mol/angstrom", and "GPa" or "eV/angstrom^3"; None for forces and
    stress: made of the others. A minus sign in front turns the sign: forces of "-eV/angstrom" are gradients.
    """

    energy: str = "eV"
    length: str = "angstrom"
    forces: str | None = None
    stress: str | None = None

    def __post_init__(self) -> None:
        _ = self.factors

    @property
    def factors(self) -> dict[str, float]:
        """What numbers of the file are multiplied by: "energy", "length", "forces", "stress", "virial"."""
        energy = _factor(self.energy, "energy", ENERGY_UNITS)
        length = _factor(self.length, "length", LENGTH_UNITS)
        forces = energy / length if self.forces is None else _quotient(self.forces, "forces", 1)
        stress = energy / length**3 if self.stress is None else _quotient(self.stress, "stress", 3)
        sign = -1.0 if (self.stress or "").startswith("-") else 1.0
        return {"energy": energy, "length": length, "forces": forces, "stress": stress, "virial": sign * energy}

    @staticmethod
    def parse(given: object) -> Units:
        """Units of a mapping, of a text such as "energy=kcal/mol,length=nm", or of one unit of energy; or "atomic"."""
        if isinstance(given, Units):
            return given
        if isinstance(given, str):
            words = [part.strip() for part in given.split(",") if part.strip()]
            if words == ["atomic"]:
                given = _ATOMIC
            elif len(words) == 1 and "=" not in words[0]:
                given = {"energy": words[0]}
            else:
                given = {name.strip(): unit.strip() for name, _, unit in (word.partition("=") for word in words)}
        quantities = tuple(Units.__dataclass_fields__)
        if not isinstance(given, Mapping) or not given:
            raise DataError(f"units are {str(given)[:60]!r}; expected such as energy=kcal/mol,length=angstrom.")
        for name, unit in given.items():
            if name not in quantities:
                hint = near_matches(str(name), quantities)
                raise DataError(f"units of {str(name)[:40]!r} are not known, only of {', '.join(quantities)}.{hint}")
            if unit is not None and not isinstance(unit, str):
                raise DataError(f"the unit of {name} is {str(unit)[:40]!r}; expected a name such as eV.")
        return Units(**given)


def _factor(text: str, quantity: str, table: Mapping[str, float]) -> float:
    """A unit of a table, in its own spelling first, else in any case."""
    word = text.strip()
    # A big M is mega: MeV is no misspelt meV.
    plain = {} if word.startswith("M") else {name.lower(): value for name, value in table.items()}
    value = table.get(word, plain.get(word.lower()))
    if value is None:
        hint = near_matches(word, table)
        raise DataError(f"{word[:40]!r} is no unit of {quantity} known here; there are {', '.join(table)}.{hint}")
    return value


def _quotient(text: str, quantity: str, power: int) -> float:
    """A pressure, or a unit of energy divided by one of length to a power."""
    sign, word = (-1.0, text.strip()[1:].strip()) if text.strip().startswith("-") else (1.0, text.strip())
    if power == 3 and (word in PRESSURE_UNITS or "/" not in word):
        return sign * _factor(word, quantity, PRESSURE_UNITS)
    above, slash, below = word.rpartition("/")
    length = re.sub(r"\s*(?:\^|\*\*)?\s*3$|³$", "", below) if power == 3 else below
    wanted = "energy/length" if power == 1 else "energy/length^3 or a pressure"
    if not slash or (power == 3 and length == below):
        example = "eV/angstrom" if power == 1 else "eV/angstrom^3 or GPa"
        raise DataError(f"{text.strip()[:40]!r} is no unit of {quantity}, which is {wanted}; such as {example}.")
    return sign * _factor(above, quantity, ENERGY_UNITS) / _factor(length, quantity, LENGTH_UNITS) ** power


@dataclass(frozen=True)
class Keys:
    """Names under which a file holds its labels, and their units; None takes the usual name that the file has.

    Energies are total ones, stresses in ASE's sign, 3x3, 9 or 6 (Voigt) numbers; a name that holds "virial" means
    `-stress * V`. `group` says of which kind a structure is; `units` are also those of the coordinates.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    group: str | None = None
    units: Units = Units()


def keys_of(energy: str | None, forces: str | None, stress: str | None, group: str | None, units: object) -> Keys:
    """Keys with units in any form that `Units.parse` takes, or None for eV and Å."""
    return Keys(energy, forces, stress, group, Units() if units is None else Units.parse(units))


Names = dict[str, str | None]
"""The one name of each quantity in a file: "energy", "forces", "stress", "group" -> name or None."""

Shape = tuple[frozenset[str], frozenset[str]]
"""What some frames of a file have: names of values of the frame, and names of columns of the atoms."""


def _rank(name: str) -> tuple[str, int] | None:
    """Quantity and rank of a label's name; None for what is none for sure.

    Ranks: 0 the reference by name, 1 the plain name (which a calculator may have written), 2 a level of theory or a
    program, 3 and 4 the total and the free energy.
    """
    match = _NAME.fullmatch(name) if len(name) <= _LONGEST_NAME else None
    if match is None:
        return None
    quantity = {"e": "energy", "f": "forces"}.get(match["core"][0].lower(), "stress")
    words = [re.sub(r"[^a-z0-9]", "", word.lower()) for word in (match["before"], match["after"] or "")]
    words = [word for word in words if word and word != "tensor"]
    rank = _RANKS.get(" ".join(words))
    return None if rank is None or (rank > 2 and quantity != "energy") else (quantity, rank)


def _candidates(quantity: str, present: Iterable[str]) -> dict[str, int]:
    """Name -> rank of what may hold a quantity."""
    ranked = {name: _rank(name) for name in present}
    return {name: found[1] for name, found in ranked.items() if found is not None and found[0] == quantity}


def _option(quantity: str) -> str:
    return f"data.{quantity}_key in a configuration or --{quantity}-key"


def _choose(file: object, quantity: str, present: frozenset[str]) -> str | None:
    """The name that is meant, if any; refuses several."""
    ranks = _candidates(quantity, present)
    best = min(ranks.values(), default=0)
    names = sorted(name for name, rank in ranks.items() if rank == best)
    if quantity == "stress":  # a virial is the same thing once more
        names = [name for name in names if "virial" not in name.lower()] or names
    several = [*names, *sorted(name for name, rank in ranks.items() if best < rank == 2)]
    if len(several) > 1:
        raise DataError(
            f"{file} holds {quantity} under several names ({', '.join(several)}); say which is meant with "
            f"{_option(quantity)}, such as {several[-1]}."
        )
    return several[0] if several else None


def choose_names(
    file: object, shapes: Mapping[Shape, int], single_atoms: bool, keys: Keys = Keys(), *, labelled: bool = True
) -> Names:
    """The one name per quantity that is used for a file, those of `keys` where they are prescribed.

    `shapes`: which names occur together, and in how many frames; `single_atoms`: it holds nothing else, and needs no
    forces; `labelled`: there must be energies.
    """
    info, columns = (frozenset().union(*names) for names in zip(*shapes, strict=True))
    listing = ", ".join(sorted(info | columns)) or "none"
    names: Names = {"group": next((name for name in _GROUPS if name in info), None)}
    for quantity in ("energy", "forces", "stress", "group"):
        present = columns if quantity == "forces" else info
        wanted = getattr(keys, quantity)
        if wanted is not None:
            if wanted not in present and (quantity == "energy" or not single_atoms):
                hint = near_matches(wanted, present)
                raise DataError(f"{file} has no key '{wanted}' for {quantity}; it has: {listing}.{hint}")
            names[quantity] = wanted
        elif quantity != "group":
            names[quantity] = _choose(file, quantity, present)
            _warn(file, quantity, names[quantity], present, shapes)
    if names["energy"] is None and labelled:
        cure = "Name the key that holds the energy (data.energy_key, --energy-key)."
        if not (info | columns) - {*_GROUPS}:
            cure = "There is none to be named: compute energies with a reference method, or name another file."
        raise DataError(
            f"{file} holds no energies under a usual name (such as energy or REF_energy); it has: {listing}. {cure}"
        )
    return names


def look_alikes(quantity: str, present: Iterable[str]) -> list[str]:
    """Names that may mean a label ("energy", "forces", "stress"), by their sound."""
    similar = (name for name in present if len(name) <= _LONGEST_NAME and _LOOKS_LIKE[quantity].search(name))
    return sorted(name for name in similar if not _NO_LABELS.search(name))


def outranked(name: str, present: Iterable[str]) -> list[str]:
    """Those of the names that are present which a reader would take instead of a label's own, or not tell from it."""
    quantity, rank = _rank(name) or ("", 0)
    found = _candidates(quantity, present)
    return sorted(other for other, its in found.items() if other != name and (its <= rank or its == 2))


def _warn(
    file: object, quantity: str, chosen: str | None, present: frozenset[str], shapes: Mapping[Shape, int]
) -> None:
    """Say what looks like a label and is not read."""
    cure = _option(quantity)
    if chosen is None:
        if similar := look_alikes(quantity, present):
            apart = sorted(name[-1].lower() for name in similar) == ["x", "y", "z"]
            cure = "write them as one, forces:R:3" if apart else f"name it with {cure} ({quantity}_key: {similar[0]})"
            _log.warning("%s: no %s are read; %s may hold them: if so, %s.", file, quantity, " or ".join(similar), cure)
        return
    place = 1 if quantity == "forces" else 0
    others = {name for name in _candidates(quantity, present) if name != chosen}
    lost = sum(number for shape, number in shapes.items() if chosen not in shape[place] and others & shape[place])
    if lost:
        _log.warning(
            "%s: %d of %d frames have no %s but %s, which is not read: it may be of another level of theory; split the "
            "file or give one name to both, or choose with %s.",
            *(file, lost, sum(shapes.values()), chosen, " or ".join(sorted(others)), cure),
        )
