"""`snnp discover`: what families of images and curves have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from snnp.cli import console
from snnp.cli.options import Json, Overwrite, Threads, command, group, set_threads
from snnp.cli.outputs import prepare_output
from snnp.errors import InputError

__all__ = ["discover_app"]

discover_app = group(
    "The few variables behind many images or curves.", "snnp discover images micrographs --out runs/micrographs"
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
