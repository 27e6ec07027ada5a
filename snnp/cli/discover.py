"""`snnp explain` and `snnp discover`: what a spline model learned, and what families of images and curves share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from snnp.cli import console
from snnp.cli.options import Json, Model, Overwrite, Threads, command, group, set_threads
from snnp.cli.outputs import input_files, prepare_output
from snnp.errors import InputError
from snnp.files import refuse_inputs

__all__ = ["discover_app"]


@command(
    "explain",
    "snnp explain snnp-si --data train.xyz --out runs/si",
    "snnp explain runs/mine --prune 24",
    "snnp explain snnp-shared6 runs/tuned --data train.xyz --structure POSCAR",
)
def explain_command(
    model: Model,
    other: str | None = typer.Argument(None, metavar="[MODEL_B]", help="A second model, to be seen side by side."),
    data: list[str] | None = typer.Option(
        None, metavar="SET", help="Reference data; by default the model's own, or structures made for it."
    ),
    structure: str | None = typer.Option(
        None, metavar="STRUCTURE", help="Whose atoms are drawn: a file, fcc:Al:2x2x2."
    ),
    prune: int | None = typer.Option(None, metavar="N", help="Write a smaller model of the N filters missed most."),
    out: Path | None = typer.Option(None, metavar="FOLDER", help="Where all goes; default: runs/explain-NAME."),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Explain what a spline model learned: filters, parts of the energy, how few filters suffice; or two models."""
    from snnp.explain import PAGES, explain

    folder = out or Path("runs") / "-".join(["explain", *(Path(name).name for name in (model, other) if name)])
    inputs = [path for name in (model, other) if name for path in input_files(name)]
    for page in PAGES:
        prepare_output(folder / page, overwrite=overwrite, inputs=inputs)
    for path in inputs if prune else ():
        refuse_inputs(folder / "pruned" / path.name, inputs)  # which may be the smaller model of another time
    with console.progress_bar("explaining") as update:
        found = explain(model, other, data or (), structure, prune, lambda stage, k, n: update(k, n, stage))
    found.write(folder)
    if as_json:
        console.print_json(found.report.json())
        return
    for finding in found.report.findings:
        console.say(f"{finding.check}: {finding}")
    console.print_pairs({"page": str(folder / PAGES[0])} | ({"smaller model": str(folder / "pruned")} if prune else {}))


discover_app = group(
    "The few variables behind many images or curves.",
    "snnp discover images micrographs --out runs/micrographs",
    "snnp discover curves rdf.csv --out runs/rdf",
)


@command(
    "images",
    "snnp discover images micrographs --out runs/micrographs",
    "snnp discover images micrographs --out runs/micrographs --features two-point --dimensions 3",
    "snnp discover images micrographs --out runs/micrographs --near sample-07.png",
    of=discover_app,
)
def images_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="PNG or TIFF files: grey, of one size.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For map.csv, map.json and map.png.")],
    features: Annotated[
        Literal["cnn", "two-point"],
        typer.Option(help="What is compared: activations of a network, or two-point correlations."),
    ] = "cnn",
    method: Annotated[
        Literal["isomap", "mds"], typer.Option(help="Keep distances along neighbours, or between all.")
    ] = "isomap",
    dimensions: Annotated[int, typer.Option(metavar="N", help="Of the map; the picture shows two.")] = 2,
    near: Annotated[str | None, typer.Option(metavar="FILE", help="Print the images most like this one.")] = None,
    neighbours: Annotated[int, typer.Option(metavar="N", help="How many of the nearest to name.")] = 5,
    crop: Annotated[int | None, typer.Option(metavar="N", help="Take N x N pixels in the middle of each.")] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Take the luminance of images in colour.")] = False,
    overwrite: Overwrite = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Map images by what their textures have in common, and find those most alike."""
    from snnp.discovery.images import map_images, read_images

    set_threads(threads)
    if out.resolve() == folder.resolve():
        raise InputError(f"--out {out}: the images are there, and the next map would hold this one; name another.")
    for ending in ("csv", "json", "png"):
        prepare_output(out / f"map.{ending}", overwrite=overwrite)
    images = read_images(folder, grey=grey, crop=crop)
    if near is not None:
        images.row(Path(near).name)  # before the work
    with console.progress_bar("comparing", len(images.names)) as update:
        found = map_images(
            images, features, method, n_dimensions=dimensions, n_neighbours=neighbours, report=lambda n: update(n)
        )
    alike = None if near is None else found.near(Path(near).name)
    files = found.write(out)
    if as_json:
        console.print_json(found.json() | {"files": files} | ({} if alike is None else {"near": alike}))
        return
    if alike is not None:
        console.print_table(["image", "distance"], alike, title=f"most like {Path(near or '').name}")
    rest = ", ".join(f"{value:.2f}" for value in found.unexplained)
    console.print_pairs(
        {
            "images": f"{len(images.names):,}, {images.shades.shape[2]} x {images.shades.shape[1]} pixels",
            "unexplained by 1, 2, ... dimensions": rest,
            "written to": ", ".join(map(str, files.values())),
        }
    )


@command(
    "curves",
    "snnp discover curves rdf.csv --parameters temperature density --out runs/found",
    "snnp discover curves spectra.npz --where B=0 --parameters T_K,n_up --formulas 5 --out runs/found",
    after=("CSV: one row for each curve; columns whose name is a number are its points, the others are parameters.",),
    of=discover_app,
)
def curves_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Curves at the same points: .csv, or .npz with the array curves.")
    ],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For the report and pictures.")] = Path("runs/curves"),
    parameters: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="What to compare variables with; default: every column that is known."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LOW:HIGH", help="Only curves with this parameter in this range; may be repeated."),
    ] = None,
    scale: Annotated[
        Literal["none", "max", "area"], typer.Option(help="Divide every curve by its largest value, or by its area.")
    ] = "none",
    latents: Annotated[int, typer.Option(metavar="N", help="Variables that may be used.")] = 10,
    beta: Annotated[
        float, typer.Option(metavar="X", help="What a nat costs; larger: fewer variables, coarser curves.")
    ] = 0.02,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="How often all curves are seen; default: 4,000 steps, 100 at least.")
    ] = None,
    formulas: Annotated[int, typer.Option(metavar="N", help="Searches of a formula for each variable.")] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, order and noise.")] = 0,
    overwrite: Overwrite = False,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Find the variables behind a family of curves, what they do, and which parameters they follow."""
    from snnp.discovery.autoencoder import VAESettings
    from snnp.discovery.curve_family import discover_curves, read_family
    from snnp.discovery.latent_pictures import write_report

    set_threads(threads)
    start = time.perf_counter()
    settings = VAESettings(latents, beta, epochs, seed=seed)
    names = [part for text in [*(parameters or []), *(more or [])] for part in text.replace(",", " ").split()]
    family = read_family(file).where(where or []).scaled(scale)
    family = family.only(names) if names else family
    prepare_output(out / "report.html", overwrite=overwrite, inputs=[file])
    with console.progress_bar("learning curves", settings.passes(len(family.curves))[0]) as update:
        found = discover_curves(family, settings, formulas, lambda epoch, loss: update(epoch, note=f"loss {loss:.3g}"))
    report = write_report(found, out, time.perf_counter() - start)
    for finding in report.findings:
        console.warn(str(finding))
    if as_json:
        console.print_json(report.json())
        return
    for table in report.tables[:-1]:
        console.print_table(list(table.columns), [list(row) for row in table.rows], title=f"{table.title}\n")
    console.print_pairs({"answer": report.answer, "report": str(out / "report.html")})
    console.say("Variables that follow nothing that is known may be what is worth looking at: see traversals.png.")
