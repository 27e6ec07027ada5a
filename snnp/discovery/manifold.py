"""Places of many things on a map of two or three dimensions, and how well known parameters are found on it.

Statistics of images have thousands of components, few of which matter. `scaled` brings any of them to one scale;
`embed` finds few coordinates that keep distances along the surface on which the points lie (Isomap: Tenenbaum, de Silva
and Langford, Science 290, 2319 (2000)) or the distances themselves (MDS); `recovery` and `distance_correlation`
(Székely, Rizzo and Bakirov, Ann. Stat. 35, 2769 (2007)) measure what of a known parameter is in them. scikit-learn does
the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from snnp.errors import InputError, MissingDependencyError
from snnp.report import GREY, plain_ticks, tidy

if TYPE_CHECKING:
    import matplotlib.axes

__all__ = ["Embedding", "distance_correlation", "draw_map", "embed", "nearest", "recovery", "scaled", "unexplained"]

Array = NDArray[np.float64]
Embedding = Literal["isomap", "mds"]

_COMPONENTS = 20  # that are kept of standardised features
_NEIGHBOURS = 10  # of each point, along which Isomap walks
_VOTERS, _FOLDS = 5, 5  # of the regression by which parameters are recovered
_IMAGES_ACROSS = 12  # of a picture of a map


def _needs_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        message = "maps are made by scikit-learn; install it with: pip install 'snnp[discovery]'."
        raise MissingDependencyError(message) from error


def scaled(features: Any, n_components: int = _COMPONENTS) -> Array:
    """Any features on one scale: each standardised, then the first principal components, their variances summing to 1.

    Arguments:
        features: [n, m]; those that are the same for all are left out.

    Returns:
        [n, at most n_components], centred, the largest variance first.

    Raises:
        InputError: where all rows are the same.
    """
    values = np.asarray(features, dtype=float)
    values = values - values.mean(axis=0)
    spread = values.std(axis=0)
    kept = spread > 1e-9 * max(float(spread.max()), 1e-300)
    if not spread.any():
        raise InputError("all have the same statistics, so that nothing tells them apart; look for copies.")
    left, sizes, _ = np.linalg.svd(values[:, kept] / spread[kept], full_matrices=False)
    n = max(min(n_components, int((sizes > 1e-10 * sizes[0]).sum())), 1)
    points: Array = left[:, :n] * sizes[:n] / np.sqrt((sizes[:n] ** 2).sum() / len(values))
    return points


def embed(points: Array, n_dimensions: int = 2, method: Embedding = "isomap", n_neighbours: int | None = None) -> Array:
    """Coordinates [n, n_dimensions] of points [n, m].

    Arguments:
        method: "isomap" keeps distances along chains of near neighbours, "mds" those between all points.
        n_neighbours: of each point, for Isomap; 10 if not said. If the points then fall into parts, more are taken,
            until all are joined.

    Raises:
        InputError: for more dimensions than the points have, or neighbours than there are.
        MissingDependencyError: without scikit-learn.
    """
    _needs_sklearn()
    from sklearn.manifold import MDS

    n = len(points)
    if not 1 <= n_dimensions < n:
        raise InputError(f"{n_dimensions} dimensions were asked for from {n} points; name 1 to {n - 1}.")
    if method == "mds":
        return np.asarray(MDS(n_dimensions, init="classical_mds", n_init=1).fit_transform(points), dtype=float)
    return np.asarray(_isomap(points, n_dimensions, n_neighbours).embedding_, dtype=float)


def _isomap(points: Array, n_dimensions: int, n_neighbours: int | None) -> Any:
    """Isomap with the least number of neighbours, from the one given on, that joins all points."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.manifold import Isomap
    from sklearn.neighbors import kneighbors_graph

    n = len(points)
    count = min(_NEIGHBOURS, n - 1) if n_neighbours is None else n_neighbours
    if not 1 <= count < n:
        raise InputError(f"{count} neighbours of each were asked for among {n}; name 1 to {n - 1}.")
    while count < n - 1 and connected_components(kneighbors_graph(points, count), directed=False)[0] > 1:
        count += 1
    return Isomap(n_neighbors=count, n_components=n_dimensions).fit(points)


def unexplained(points: Array, method: Embedding = "isomap", n_most: int = 6) -> list[float]:
    """1 - r² between distances and those on maps of 1, 2, ... dimensions: where it stops falling, these are enough.

    Distances are those that the method keeps: along chains of neighbours, or of the points themselves.
    """
    from scipy.spatial.distance import pdist, squareform

    n_most = min(n_most, len(points) - 1, points.shape[1])
    distances, places = pdist(points), points  # of MDS its first guess, the principal components
    if method == "isomap":
        _needs_sklearn()
        fitted = _isomap(points, n_most, None)
        distances, places = squareform(fitted.dist_matrix_, checks=False), fitted.embedding_
    maps = (pdist(places[:, : n + 1]) for n in range(n_most))
    return [float(1.0 - np.corrcoef(distances, each)[0, 1] ** 2) for each in maps]


def nearest(points: Array, n_neighbours: int) -> tuple[NDArray[np.int64], Array]:
    """The nearest others of each point [n, m], and their distances, nearest first: both [n, n_neighbours].

    Raises:
        InputError: for more neighbours than there are others.
    """
    from scipy.spatial.distance import cdist

    if not 1 <= n_neighbours < len(points):
        raise InputError(f"{n_neighbours} neighbours were asked for among {len(points)}; name 1 to {len(points) - 1}.")
    distances = cdist(points, points)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")[:, :n_neighbours]
    return order, np.take_along_axis(distances, order, axis=1)


def recovery(points: Array, target: Any, seed: int = 0) -> float:
    """R² of a parameter by the mean of the 5 nearest neighbours, in five-fold cross-validation: 1 is all, 0 nothing.

    Arguments:
        points: [n, m]. target: [n], or [n, k] (the cosine and sine of an angle).
    """
    _needs_sklearn()
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neighbors import KNeighborsRegressor

    values = np.asarray(target, dtype=float).reshape(len(points), -1)
    folds = KFold(_FOLDS, shuffle=True, random_state=seed)
    guessed = cross_val_predict(KNeighborsRegressor(_VOTERS), points, values, cv=folds).reshape(values.shape)
    return float(1.0 - ((values - guessed) ** 2).sum() / ((values - values.mean(axis=0)) ** 2).sum())


def distance_correlation(points: Array, target: Any) -> float:
    """0 where points [n, m] and a parameter [n] or [n, k] are independent, 1 where one is a rotation of the other."""
    from scipy.spatial.distance import cdist

    centred: list[Array] = []
    for values in (points, np.asarray(target, dtype=float).reshape(len(points), -1)):
        d = cdist(values, values)
        centred.append(d - d.mean(axis=0) - d.mean(axis=1, keepdims=True) + d.mean())
    a, b = centred
    return float(np.sqrt(max((a * b).mean(), 0.0) / np.sqrt((a * a).mean() * (b * b).mean())))


def draw_map(panel: matplotlib.axes.Axes, places: Array, pictures: Array, title: str = "") -> None:
    """Draw a map with images at their places: as many as do not hide each other, a dot for every one.

    Arguments:
        places: [n, 2 or more]; the first two are drawn. pictures: [n, height, width], shades in 0..1.
        title: of the picture, which says besides how many are dots alone.
    """
    x, y = places[:, 0], places[:, 1]
    side = max(float(np.ptp(x)), float(np.ptp(y)), 1e-9) / _IMAGES_ACROSS
    shown: list[int] = []
    for index in range(len(places)):
        if all(np.abs(places[index, :2] - places[other, :2]).max() >= 1.05 * side for other in shown):
            shown.append(index)
    panel.plot(x, y, ".", color=GREY, markersize=4, zorder=1)
    half = 0.5 * side
    for index in shown:
        extent = (x[index] - half, x[index] + half, y[index] - half, y[index] + half)
        panel.imshow(pictures[index], cmap="gray", vmin=0.0, vmax=1.0, extent=extent, zorder=2)
        panel.plot(*_frame(extent), color="black", linewidth=0.6, zorder=3)
    panel.set_xlim(float(x.min()) - side, float(x.max()) + side)
    panel.set_ylim(float(y.min()) - side, float(y.max()) + side)
    panel.set(aspect="equal", xlabel="first coordinate", ylabel="second coordinate")
    hidden = len(places) - len(shown)
    if hidden:
        title += f"; {hidden} that would overlap others {'is a dot' if hidden == 1 else 'are dots'}"
    panel.set_title(title, fontsize=10, loc="left")
    plain_ticks(panel.xaxis, panel.yaxis)
    tidy(panel)


def _frame(extent: tuple[float, float, float, float]) -> tuple[list[float], list[float]]:
    left, right, low, high = extent
    return [left, right, right, left, left], [low, low, high, high, low]
