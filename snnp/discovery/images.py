"""Statistics of images: activations of a network that learned photographs, and two-point correlations.

Microstructures are alike where their statistics are, not their pixels. Two kinds of statistics are offered:

- `cnn`: the Gram matrices G_ab = <F_a F_b>, averages over all places of products of two channels of the first layers of
  MobileNetV2 (Sandler et al. 2018), trained on photographs (ImageNet). Lubbers, Lookman and Barros, Phys. Rev. E 96,
  052111 (2017), did this with VGG; MobileNetV2 has a hundredth of its weights. They are bundled (`weights/README.md`).
- `two-point`: S(r) = <f(x) f(x + r)> and C(r) = S(r) - <f>², averaged over all places and directions, up to half of
  the image; C over C(0).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import conv2d

from snnp.discovery.manifold import Embedding, draw_map, embed, nearest, scaled, unexplained
from snnp.errors import DataError, InputError, MissingDependencyError, ModelFileError, near_matches
from snnp.files import write_atomically
from snnp.report import new_figure, png

__all__ = ["Features", "ImageMap", "ImageSet", "activations", "full_two_point", "gram_features", "map_images"]
__all__ += ["network_weights", "random_weights", "read_images", "two_point"]

Array = NDArray[np.float64]
Features = Literal["cnn", "two-point"]
Weights = Mapping[str, Tensor]
"""`I.J.weight` [out, in / groups, k, k] and `I.J.bias` [out] of convolution J of layer I, batch norm folded in."""

LEAST_SIZE = 64  # pixels: 4 x 4 places are left in the last layer
LEAST_IMAGES = 6  # fewer are no map
_ENDINGS = (".png", ".tif", ".tiff")
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's
_LUMINANCE = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's shades, as the network was trained
_STRIDES = (2, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1)  # of the layers of MobileNetV2
_WEIGHTS = Path(__file__).resolve().parent / "weights" / "mobilenet_v2.safetensors"
_SHA256 = "ded6603f7aa108b8768e525ad5393057d6d1d6f02b9a8535055eb4c91da8cbe4"
_BATCH = 32  # images at once


# Files.


@dataclass(frozen=True)
class ImageSet:
    """Grey images of one size.

    Arguments:
        names: of the files. shades: [n, height, width] float64 in 0..1; of 8 bit files 0 is black and 1 white, else
            they are the darkest and the brightest value of the whole set.
    """

    names: tuple[str, ...]
    shades: Array

    def __post_init__(self) -> None:
        n, *size = self.shades.shape
        if min(size) < LEAST_SIZE:
            raise DataError(
                f"the images have {size[1]} x {size[0]} pixels, and at least {LEAST_SIZE} x {LEAST_SIZE} are needed; "
                "take larger sections."
            )
        if n < LEAST_IMAGES:
            raise DataError(
                f"{n} image{'s are' if n != 1 else ' is'} too few to be compared, at least {LEAST_IMAGES} are needed; "
                "add images, or cut larger ones into sections."
            )
        if flat := [name for name, each in zip(self.names, self.shades, strict=True) if np.ptp(each) == 0.0]:
            raise DataError(f"'{flat[0]}' has one shade everywhere, so there is nothing to compare; leave it out.")

    def row(self, name: str) -> int:
        """Where an image stands; raises `InputError` for a name that is not there."""
        if name not in self.names:
            meant = near_matches(name, self.names)
            raise InputError(f"'{name}' is not among the {len(self.names)} images; name one of them.{meant}")
        return self.names.index(name)


def read_images(folder: Path, *, grey: bool = False, crop: int | None = None) -> ImageSet:
    """The PNG and TIFF files of a folder, in the order of their names.

    Arguments:
        grey: take the luminance of images in colour. crop: take the square of so many pixels in the middle of each.

    Raises:
        DataError: for no folder, too few images, files that are no images, images in colour, of mixed sizes or depths,
            with several pages, with NaN, too small, or of one shade.
        InputError: for a `crop` that an image does not hold.
        MissingDependencyError: without Pillow.
    """
    if not folder.is_dir():
        raise DataError(f"'{folder}' is no folder; name one that holds PNG or TIFF files.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS and path.is_file())
    if not files:
        raise DataError(f"'{folder}' holds no file that ends in {', '.join(_ENDINGS)}; convert the images to PNG.")
    read = {path.name: _read(path, grey) for path in files}
    if crop is not None:
        read = {name: _cropped(name, each, crop) for name, each in read.items()}
    first, least = next(iter(read)), min(min(each.shape) for each in read.values())
    for name, each in read.items():
        if each.shape != read[first].shape:
            raise DataError(
                f"images must have one size: '{first}' has {_size(read[first])} pixels and '{name}' {_size(each)}; "
                f"cut them alike, or say --crop {least} for the middle of each."
            )
        if each.dtype != read[first].dtype:
            raise DataError(
                f"images must have one depth: '{first}' holds {read[first].dtype} and '{name}' {each.dtype}; "
                "convert them alike."
            )
        if not np.isfinite(each).all():
            raise DataError(f"'{name}' holds NaN or infinite values; replace them.")
    shades = np.stack(list(read.values())).astype(np.float64)
    low, high = (0.0, 255.0) if read[first].dtype == np.uint8 else (float(shades.min()), float(shades.max()))
    return ImageSet(tuple(read), (shades - low) / max(high - low, 1e-300))


def _read(path: Path, grey: bool) -> NDArray[Any]:
    """[height, width] of 8 bits, or of what else the file holds."""
    try:
        from PIL import Image
    except ImportError as error:
        message = "images are read by Pillow; install it with: pip install 'snnp[discovery]'."
        raise MissingDependencyError(message) from error
    try:
        with Image.open(path) as image:
            n_pages = getattr(image, "n_frames", 1)
            if n_pages == 1 and image.mode in _GREY_MODES:
                return np.asarray(image.convert("L") if image.mode == "1" else image)
            colour = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"'{path.name}' cannot be read as an image ({reason}); mend it, or leave it out.") from error
    if n_pages > 1:
        raise DataError(f"'{path.name}' has {n_pages} pages, and one is expected; split it into files.")
    if not grey and (np.ptp(colour, axis=2) > 0).any():
        raise DataError(f"'{path.name}' is in colour, and shades are compared; say --grey to take its luminance.")
    return np.round(colour @ _LUMINANCE).astype(np.uint8)


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _cropped(name: str, image: NDArray[Any], crop: int) -> NDArray[Any]:
    most = min(image.shape)
    if not LEAST_SIZE <= crop <= most:
        raise InputError(f"--crop {crop}: '{name}' has {_size(image)} pixels; name {LEAST_SIZE} to {most}.")
    top, left = ((length - crop) // 2 for length in image.shape)
    return image[top : top + crop, left : left + crop]


# The network.


def network_weights() -> Weights:
    """The bundled weights, checked.

    Raises:
        ModelFileError: for a file that is missing or not the one that was bundled.
    """
    from safetensors.torch import load

    try:
        data = _WEIGHTS.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{_WEIGHTS}: {error.strerror}; reinstall snnp.") from error
    if hashlib.sha256(data).hexdigest() != _SHA256:
        raise ModelFileError(f"{_WEIGHTS} is not the file that was bundled (its sha256 differs); reinstall snnp.")
    return load(data)


def random_weights(seed: int) -> Weights:
    """Weights of the same shapes that have learned nothing: He's normal initialisation, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, each in sorted(network_weights().items()):
        fan_out = each.shape[0] * each[0, 0].numel() if each.ndim == 4 and each.shape[1] > 1 else 9.0
        spread = (2.0 / fan_out) ** 0.5 if each.ndim == 4 else 0.0
        drawn[name] = spread * torch.randn(each.shape, generator=generator)
    return drawn


def activations(weights: Weights, images: Array) -> list[Tensor]:
    """What each layer makes of grey images [n, h, w]: channels [n, c, h', w'], float32.

    A first convolution, then inverted residuals: 1 x 1 to more channels, 3 x 3 in each of them, 1 x 1 to few.
    """
    shades = torch.from_numpy(np.ascontiguousarray(images)).float()
    x = torch.stack([(shades - mean) / std for mean, std in zip(_MEAN, _STD, strict=True)], dim=1)
    found = []
    for layer, stride in enumerate(_STRIDES):
        if f"{layer}.0.weight" not in weights:
            break
        n = sum(name.startswith(f"{layer}.") for name in weights) // 2
        y = x
        for index in range(n):
            kernel, bias = weights[f"{layer}.{index}.weight"], weights[f"{layer}.{index}.bias"]
            spatial = kernel.shape[-1] == 3
            groups = y.shape[1] // kernel.shape[1]
            y = conv2d(y, kernel, bias, stride if spatial else 1, 1 if spatial else 0, groups=groups)
            if layer == 0 or index < n - 1:  # the last of a residual is linear
                y = y.clamp(0.0, 6.0)
        x = x + y if layer > 0 and stride == 1 and x.shape == y.shape else y
        found.append(x)
    return found


@torch.no_grad()
def gram_features(images: Array, weights: Weights | None = None, report: Callable[[int], None] | None = None) -> Array:
    """Gram matrices of all layers, their upper triangles in a row: [n, features].

    Arguments:
        images: [n, h, w], shades in 0..1. weights: of the network; by default the bundled ones.
        report: is called with the number of images that are done.
    """
    weights = network_weights() if weights is None else weights
    rows = []
    for first in range(0, len(images), _BATCH):
        parts = []
        for each in activations(weights, images[first : first + _BATCH]):
            channels = each.flatten(2)
            gram = channels @ channels.transpose(1, 2) / channels.shape[2]
            upper = torch.triu_indices(gram.shape[1], gram.shape[1])
            parts.append(gram[:, upper[0], upper[1]])
        rows.append(torch.cat(parts, dim=1).double().numpy())
        if report is not None:
            report(min(first + _BATCH, len(images)))
    return np.concatenate(rows)


# Correlations.


def _covariances(images: Array) -> Array:
    """C(dy, dx) [n, 2h, 2w] at lags -h..h-1, -w..w-1 (as of an FFT): means over all pairs within the image."""
    _, h, w = images.shape
    shape = (2 * h, 2 * w)
    centred = images - images.mean(axis=(1, 2), keepdims=True)
    counts = np.fft.irfft2(np.abs(np.fft.rfft2(np.ones((h, w)), shape)) ** 2, shape)
    sums = np.fft.irfft2(np.abs(np.fft.rfft2(centred, shape, axes=(1, 2))) ** 2, shape, axes=(1, 2))
    return np.asarray(sums / np.maximum(counts, 1.0))


def _both(images: Array, covariances: Array) -> Array:
    """S = C + <f>² beside C / C(0): what phases there are, and how they lie; neither hides the other."""
    squares, variance = images.mean(axis=(1, 2))[:, None] ** 2, images.var(axis=(1, 2))[:, None]
    return np.hstack([covariances + squares, covariances / variance])


def two_point(images: Array, report: Callable[[int], None] | None = None) -> Array:
    """S(r), then C(r) / C(0), at r = 0, 1, ... up to half of the shorter side: [n, features]."""
    _, h, w = images.shape
    y, x = np.meshgrid(np.fft.fftfreq(2 * h, 0.5 / h), np.fft.fftfreq(2 * w, 0.5 / w), indexing="ij")
    shells = np.round(np.hypot(y, x)).astype(int)
    inside = shells <= min(h, w) // 2
    members = np.bincount(shells[inside])
    rows: list[Array] = []
    for first in range(0, len(images), _BATCH):
        found = _covariances(images[first : first + _BATCH])
        rows += [np.bincount(shells[inside], weights=each[inside]) / members for each in found]
        if report is not None:
            report(len(rows))
    return _both(images, np.stack(rows))


def full_two_point(images: Array) -> Array:
    """S(dy, dx), then C(dy, dx) / C(0), at lags up to a quarter of each side: [n, features]."""
    _, h, w = images.shape
    y, x = np.arange(0, h // 4 + 1), np.arange(-(w // 4), w // 4 + 1)
    rows = [_covariances(images[i : i + _BATCH])[:, y][:, :, x] for i in range(0, len(images), _BATCH)]
    return _both(images, np.concatenate(rows).reshape(len(images), -1))


# A map.


@dataclass(frozen=True)
class ImageMap:
    """Where images lie by their statistics.

    Arguments:
        images: what was compared. features: by which statistics. method: by which embedding.
        points: [n, m], the statistics on one scale: two images are 1.4 apart on average (root mean square).
        places: [n, dimensions], on the map. unexplained: see `snnp.discovery.manifold.unexplained`.
        neighbours, distances: [n, k], the nearest others by `points`, nearest first.
    """

    images: ImageSet
    features: Features
    method: Embedding
    points: Array
    places: Array
    unexplained: list[float]
    neighbours: NDArray[np.int64]
    distances: Array

    def near(self, name: str) -> list[tuple[str, float]]:
        """The nearest images of one, nearest first, with distances; raises `InputError` for an unknown name."""
        names, row = self.images.names, self.images.row(name)
        found = zip(self.neighbours[row], self.distances[row], strict=True)
        return [(names[index], float(distance)) for index, distance in found]

    def json(self) -> dict[str, Any]:
        """JSON values."""
        rows = [
            {"name": name, "place": place.tolist(), "nearest": [list(each) for each in self.near(name)]}
            for name, place in zip(self.images.names, self.places, strict=True)
        ]
        height, width = self.images.shades.shape[1:]
        return {
            "format": "snnp-discovery-images",
            **{"features": self.features, "method": self.method, "width": width, "height": height},
            **{"unexplained": self.unexplained, "images": rows},
        }

    def csv(self) -> str:
        """One row per image: its name, its place, its nearest others."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        coordinates = [f"x{n + 1}" for n in range(self.places.shape[1])]
        writer.writerow(["name", *coordinates, *(f"nearest_{n + 1}" for n in range(self.neighbours.shape[1]))])
        for name, place in zip(self.images.names, self.places, strict=True):
            writer.writerow([name, *(f"{x:.6g}" for x in place), *(each for each, _ in self.near(name))])
        return stream.getvalue()

    def write(self, folder: Path) -> dict[str, Path]:
        """Write `map.csv`, `map.json` and `map.png` into a folder; returns the paths by these endings."""
        across, high = np.ptp(self.places[:, :2], axis=0)
        figure = new_figure(9.0, float(np.clip(9.0 * high / max(across, 1e-9), 4.0, 11.0)) + 1.0)
        title = f"{len(self.images.names)} images by {self.features} features"
        draw_map(figure.subplots(), self.places, self.images.shades, title)
        contents = {
            "csv": self.csv().encode(),
            "json": (json.dumps(self.json(), indent=1, ensure_ascii=False) + "\n").encode(),
            "png": png(figure),
        }
        folder.mkdir(parents=True, exist_ok=True)
        files = {ending: folder / f"map.{ending}" for ending in contents}
        for ending, path in files.items():
            write_atomically(path, contents[ending])
        return files


def map_images(
    images: ImageSet,
    features: Features = "cnn",
    method: Embedding = "isomap",
    *,
    n_dimensions: int = 2,
    n_neighbours: int = 5,
    report: Callable[[int], None] | None = None,
) -> ImageMap:
    """Statistics of images, their places on a map, and the nearest of each.

    Arguments:
        n_dimensions: of the map. n_neighbours: how many of the nearest to name.
        report: is called with the number of images whose statistics are known.

    Raises:
        InputError: for unknown features, more neighbours or dimensions than images allow, or images that are all alike.
        MissingDependencyError: without scikit-learn.

    Example:
        >>> from pathlib import Path
        >>> found = map_images(read_images(Path("micrographs")))  # doctest: +SKIP
        >>> found.near("a.png")  # doctest: +SKIP
    """
    if features not in get_args(Features):
        raise InputError(f"features '{features}' are unknown; expected {' or '.join(get_args(Features))}.")
    compute = gram_features if features == "cnn" else two_point
    points = scaled(compute(images.shades, report=report))
    places = embed(points, n_dimensions, method)
    neighbours, distances = nearest(points, n_neighbours)
    return ImageMap(images, features, method, points, places, unexplained(points, method), neighbours, distances)
