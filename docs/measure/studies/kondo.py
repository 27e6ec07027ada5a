"""Does an autoencoder find the Kondo temperature in spectra, and a search for formulas its exponent?

    python datasets/anderson-spectra/recipe.py SPECTRA --spectra 10000
    python docs/measure/studies/kondo.py SPECTRA/spectra.npz                     # writes table and pictures
    python docs/measure/studies/kondo.py SPECTRA/spectra.npz --limit 100 --out . # a quick look

From spectra without field at T = 0 those with a local moment are taken, ε < -Γ and ε + U > Γ, each also mirrored in ω,
which is the spectrum of -ε - U. Three samples: as computed; heights times πΓ; and with energies in units of Γ, too.
Formulas are looked for behind the variable that follows the Kondo temperature, and, without any autoencoder, behind
the logarithm of half widths.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import between_marks, provenance

from snnp.discovery.autoencoder import VAESettings
from snnp.discovery.curve_family import CurveFamily, Discovery, discover_curves, read_family, spearman
from snnp.discovery.formulas import FormulaSettings, agreement, find_formula
from snnp.discovery.latent_pictures import report_on
from snnp.files import write_atomically
from snnp.report import COLOURS, jsonable, new_panels, png

STUDY = Path(__file__).resolve().parents[2] / "studies" / Path(__file__).stem
BETAS = {"A(ω)": (0.1,), "πΓA(ω)": (0.1,), "πΓA(ω/Γ)": (0.03, 0.1)}
SEEDS = range(5)
FEWER = range(2)  # searches behind the variable of each other autoencoder
SAME = 0.9999  # |correlation| at random parameters with ε(ε+U)/(UΓ), from which a formula is that one


def sample(path: Path, limit: int | None) -> CurveFamily:
    """Spectra of local moments and their mirror images, with what is known of them."""
    family = read_family(path).where(["B=0"])
    known = family.parameters
    u, gamma, level = (known[name] for name in ("U", "Gamma", "eps_d"))
    taken = np.flatnonzero((level < -gamma) & (level + u > gamma))[:limit]
    u, gamma, level = u[taken], gamma[taken], level[taken]
    u, gamma = np.tile(u, 2), np.tile(gamma, 2)
    level = np.concatenate([level, -level - u[: len(taken)]])
    curves = np.concatenate([family.curves[taken], family.curves[taken, ::-1]])
    width, kondo = (np.tile(known[name][taken], 2) for name in ("half_width", "T_K"))
    exponent = level * (level + u) / (u * gamma)
    found = {"U": u, "Γ": gamma, "ε": level, "U/Γ": u / gamma, "ε/U": level / u, "ε/Γ": level / gamma}
    found |= {"ε(ε+U)/(UΓ)": exponent, "asymmetry": (2.0 * level + u) / u, "half width": width, "T_K": kondo}
    return CurveFamily(family.x, curves, found | {"half width/Γ": width / gamma, "T_K/Γ": kondo / gamma}, path.name)


def samples(family: CurveFamily) -> dict[str, CurveFamily]:
    """The three of them, by name."""
    gamma, x = family.parameters["Γ"], family.x
    heights = np.pi * gamma[:, None] * family.curves
    least, most = 1e-4, 5.0
    half = np.geomspace(least, most, len(x) // 2)
    units = np.concatenate([-half[::-1], [0.0], half])
    place = np.arcsinh(x / x[x > 0][0])  # nearly even, so that interpolation is smooth
    wanted = np.arcsinh(units[None, :] * gamma[:, None] / x[x > 0][0])
    stretched = np.stack([np.interp(at, place, height) for at, height in zip(wanted, heights, strict=True)])
    return {
        "A(ω)": family,
        "πΓA(ω)": CurveFamily(x, heights, family.parameters, family.name),
        "πΓA(ω/Γ)": CurveFamily(units, stretched, family.parameters, family.name),
    }


def variables(found: Discovery, unit: str) -> list[dict[str, Any]]:
    """Active variables, and their rank correlations with what is expected."""
    names = (f"T_K{unit}", f"half width{unit}", "ε(ε+U)/(UΓ)", "asymmetry")
    return [
        {"variable": f"z{k + 1}", "nats": float(found.encoded.nats[k])}
        | {name.removesuffix("/Γ"): found.correlations[k][name] for name in names}
        for k in found.active
    ]


def formulas(family: CurveFamily, target: np.ndarray, metric: Any, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What searches with different seeds find behind a target, and whether it is the exponent."""
    features = {name: family.parameters[name] for name in ("U/Γ", "ε/U", "ε/Γ")}
    rng = np.random.default_rng(1)
    ratio, place = rng.uniform(3.0, 20.0, 500), rng.uniform(-0.9, -0.1, 500)
    anew = {"U/Γ": ratio, "ε/U": place, "ε/Γ": ratio * place}
    rows = []
    for seed in seeds:
        found = find_formula(features, target, seed, FormulaSettings(metric=metric))
        alike = agreement(found, anew, ratio * place * (1.0 + place))
        rows.append({"seed": seed, "formula": found.text, "score": found.score, "exponent": alike})
        print(rows[-1], flush=True)
    return rows


def slopes(family: CurveFamily) -> dict[str, Any]:
    """Measured widths against Haldane's exponent where the peak is well below Γ."""
    known = family.parameters
    width, exponent = known["half width"], known["ε(ε+U)/(UΓ)"]
    taken = np.isfinite(width) & (exponent < -1.0)
    y = np.log(width / np.sqrt(0.5 * known["U"] * known["Γ"]))[taken]
    slope, offset = np.polyfit(exponent[taken], y, 1)
    rest = y - slope * exponent[taken] - offset
    return {
        "spectra": int(taken.sum()) // 2,
        "decades": float(np.log10(width[taken].max() / width[taken].min())),
        "slope over π/2": float(slope / (np.pi / 2)),
        "factor": float(np.exp(offset)),
        "scatter": float(rest.std()),
        "spearman": spearman(width, known["T_K"]),
    }


def draw(family: CurveFamily) -> bytes:
    """Widths against the formula."""
    known = family.parameters
    figure, (panel,) = new_panels(1, 5.0, 3.6)
    exponent, scale = known["ε(ε+U)/(UΓ)"], np.sqrt(0.5 * known["U"] * known["Γ"])
    panel.semilogy(exponent, known["half width"] / scale, ".", ms=4, color=COLOURS[0], mec="none", alpha=0.6)
    line, found = np.linspace(exponent.min(), exponent.max(), 2), slopes(family)
    panel.semilogy(line, found["factor"] * np.exp(0.5 * np.pi * found["slope over π/2"] * line), "k-", lw=1.0)
    panel.set_xlabel("x = ε(ε+U)/(UΓ)")
    panel.set_ylabel("half width / √(UΓ/2)")
    return png(figure)


def draw_latents(found: Discovery, k: int) -> bytes:
    """The variable against the Kondo temperature, and the other that tells most against the asymmetry."""
    known = found.family.parameters
    other = max((j for j in found.active if j != k), key=lambda j: abs(found.correlations[j]["asymmetry"]), default=k)
    figure, panels = new_panels(2, 4.2, 3.4)
    panels[0].semilogx(known["T_K/Γ"], found.encoded.mean[:, k], ".", ms=4, color=COLOURS[0], mec="none", alpha=0.6)
    panels[0].set_xlabel("T_K / Γ")
    panels[1].plot(known["asymmetry"], found.encoded.mean[:, other], ".", ms=4, color=COLOURS[1], mec="none", alpha=0.6)
    panels[1].set_xlabel("asymmetry (2ε + U) / U")
    for panel, each in zip(panels, (k, other), strict=True):
        panel.set_ylabel(f"z{each + 1}")
    return png(figure)


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| curves | β | variance kept | variable | nats | T_K | half width | ε(ε+U)/(UΓ) | asymmetry |"]
    lines += ["|---|--:|--:|---|--:|--:|--:|--:|--:|"]
    for row in found["autoencoders"]:
        for n, each in enumerate(row["variables"]):
            numbers = [each[name] for name in ("T_K", "half width", "ε(ε+U)/(UΓ)", "asymmetry")]
            first = f"| {row['curves']} | {row['beta']} | {row['kept']:.3f} " if n == 0 else "| | | "
            lines.append(
                f"{first}| {each['variable']} | {each['nats']:.2f} | {' | '.join(f'{v:.2f}' for v in numbers)} |"
            )
    lines += ["", "| target | seed | formula | score | is the exponent |", "|---|--:|---|--:|---|"]
    for key, name in (("of latents", "latent variable"), ("of widths", "log(half width/Γ)")):
        for row in found[key]:
            is_it = "**yes**" if row["exponent"] > SAME else f"no (correlation {row['exponent']:.3f})"
            lines.append(f"| {name} | {row['seed']} | `{row['formula']}` | {row['score']:.4f} | {is_it} |")
    lines += ["", "| other autoencoder, seed | variance kept | active | T_K | formulas | are the exponent |"]
    lines += ["|--:|--:|--:|--:|---|--:|"]
    for seed, row in sorted(found.get("seeds", {}).items()):
        texts = ", ".join(f"`{each['formula']}`" for each in row["searches"])
        n = sum(each["exponent"] > SAME for each in row["searches"])
        first = f"| {seed} | {row['kept']:.3f} | {row['active']} | {row['T_K']:.2f} "
        lines.append(f"{first}| {texts} | {n} of {len(row['searches'])} |")
    width = found["widths"]
    lines += [
        "",
        f"Half widths of {width['spectra']:,} spectra with x < -1, over {width['decades']:.1f} decades: slope "
        f"{width['slope over π/2']:.3f} of π/2, factor {width['factor']:.2f}, scatter of the logarithm "
        f"{width['scatter']:.3f}; Spearman with T_K {width['spearman']:.4f}.",
    ]
    said = ", ".join(f"{package} {number}" for package, number in found["versions"].items())
    told = f"{found['spectra']:,} spectra and their mirror images"
    return "\n".join(
        [*lines, "", f"Written by the command above on {found['date']}: {told}; {found['machine']}; {said}."]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spectra", type=Path, metavar="SPECTRA.npz")
    parser.add_argument("--limit", type=int, help="spectra used at most; the page stays as it is")
    parser.add_argument("--epochs", type=int, help="of the autoencoders; default: as many as make 4,000 steps")
    parser.add_argument("--only", choices=("autoencoders", "widths", "seeds"), help="a part; others stay as they were")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4], help="of other autoencoders")
    parser.add_argument("--out", type=Path, default=STUDY.parent)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    family = sample(asked.spectra, asked.limit)
    path = asked.out / f"{STUDY.name}.json"
    if asked.only in (None, "autoencoders"):
        found, pictures = autoencoders(family, asked.epochs)
        keep(path, found, pictures)
    if asked.only in (None, "seeds"):
        other_seeds(family, asked.epochs, asked.seeds, path)
    if asked.only in (None, "widths"):
        target = np.log(family.parameters["half width/Γ"])
        rows = formulas(family, target, "pearson", SEEDS)
        keep(path, {"of widths": rows, "widths": slopes(family)}, {"width": draw(family)})
    result = json.loads(path.read_text(encoding="utf-8"))
    if asked.limit is None and asked.out == STUDY.parent and {"autoencoders", "widths"} <= result.keys():
        between_marks(STUDY.with_suffix(".md"), {"table": table(result)})


def autoencoders(family: CurveFamily, epochs: int | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Variables of all samples, formulas behind the one that follows the Kondo temperature, and pictures."""
    n = len(family.curves) // 2
    apart = np.random.default_rng(0).permutation(n)[: n // 10]
    apart = np.concatenate([apart, apart + n])  # mirror images go together
    rows, best = [], None
    for name, curves in samples(family).items():
        unit = "/Γ" if name.endswith("/Γ)") else ""
        for beta in BETAS[name]:
            best = discover_curves(curves, VAESettings(beta=beta, epochs=epochs), held_out=apart)
            rows.append({"curves": name, "beta": beta, "kept": best.kept, "variables": variables(best, unit)})
            print(json.dumps(jsonable(rows[-1]), ensure_ascii=False), flush=True)
    assert best is not None
    k = max(best.active, key=lambda k: abs(best.correlations[k]["T_K/Γ"]))
    of_latent = formulas(family, best.encoded.mean[:, k], "spearman", SEEDS)
    pictures = {figure.title: figure.png for figure in report_on(best).pictures}
    drawn = {"traversals": pictures["What each variable does to a curve"], "latents": draw_latents(best, k)}
    return {"spectra": n, "autoencoders": rows, "of latents": of_latent}, drawn


def other_seeds(family: CurveFamily, epochs: int | None, seeds: Sequence[int], path: Path) -> None:
    """The last of the samples again, with autoencoders of other seeds; each is kept as soon as it is there."""
    curves = samples(family)["πΓA(ω/Γ)"]
    n = len(family.curves) // 2
    apart = np.random.default_rng(0).permutation(n)[: n // 10]
    apart = np.concatenate([apart, apart + n])
    for seed in seeds:
        found = discover_curves(
            curves, VAESettings(beta=BETAS["πΓA(ω/Γ)"][-1], epochs=epochs, seed=seed), held_out=apart
        )
        k = max(found.active, key=lambda k: abs(found.correlations[k]["T_K/Γ"]))
        rows = formulas(curves, found.encoded.mean[:, k], "spearman", FEWER)
        row = {"kept": found.kept, "active": len(found.active), "T_K": found.correlations[k]["T_K/Γ"], "searches": rows}
        known = json.loads(path.read_text(encoding="utf-8")).get("seeds", {}) if path.is_file() else {}
        keep(path, {"seeds": {**known, str(seed): row}}, {})


def keep(path: Path, found: dict[str, Any], pictures: dict[str, bytes]) -> None:
    """Add results to those that are there, and write pictures beside them."""
    for kind, picture in pictures.items():
        write_atomically(path.with_name(f"{path.stem}_{kind}.png"), picture)
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    after = {**before, **found, **provenance(("snnp", "torch", "numpy", "gplearn", "scikit-learn"))}
    write_atomically(path, (json.dumps(jsonable(after), indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
