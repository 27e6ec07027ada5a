"""Mathematics of the GPU kernels: harmonics, splines, and blocks that hold one number per pair.

A block of pairs has one pair per thread; (L+1)² blocks of pairs are a tuple, so that recursions run in registers.
`join_columns` lays such a tuple side by side as a matrix [pairs, columns] for a matrix product, `split_columns` takes
the result apart. Both move nothing between threads.

Harmonics are Racah's R_lm = P_lm(z) (x + iy)^m / (l + m)!, whose gradients have no constants; what they lack to
sum_m Y_lm(u) Y_lm(v) = P_l(u . v), a factor (2 - delta_m0) (l - m)! (l + m)!, is part of the Legendre coefficients.
"""

# ruff: noqa: RUF005  (kernels are compiled from a subset of Python that cannot unpack tuples)

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl


@triton.constexpr_function
def _diagonal(m: int) -> float:
    """Q_mm = (2m-1)!! / (2m)!."""
    return 1.0 / (2.0**m * math.factorial(m))


@triton.jit
def _legendre_column(z: tl.tensor, m: tl.constexpr, degree: tl.constexpr) -> Any:
    """Q_nm(z) for n = m .. degree: (n+m)(n-m) Q_nm = (2n-1) z Q_(n-1)m - Q_(n-2)m."""
    q = tl.zeros_like(z) + _diagonal(m)
    column = (q,)
    before = tl.zeros_like(z)
    for n in tl.static_range(m + 1, degree + 1):
        following = z * q * ((2 * n - 1) / ((n + m) * (n - m)))
        if n > m + 1:
            following -= before * (1.0 / ((n + m) * (n - m)))
        before = q
        q = following
        column = column + (q,)
    return column


@triton.jit
def harmonics(x: tl.tensor, y: tl.tensor, z: tl.tensor, degree: tl.constexpr) -> Any:
    """(L+1)² harmonics of unit vectors at index l l + l + m: real part of R_lm, at -m the imaginary part."""
    cosine = tl.zeros_like(x) + 1.0
    sine = tl.zeros_like(x)
    real, imaginary = (), ()
    for m in tl.static_range(degree + 1):
        column = _legendre_column(z, m, degree)
        for n in tl.static_range(degree + 1 - m):
            real = real + (column[n] * cosine,)
            imaginary = imaginary + (column[n] * sine,)
        turned = x * cosine - y * sine
        sine = x * sine + y * cosine
        cosine = turned
    ordered = ()
    for n in tl.static_range(degree + 1):
        for k in tl.static_range(2 * n + 1):
            # Column m starts after sum_{q<m} (degree + 1 - q) entries.
            if k < n:
                ordered = ordered + (imaginary[_column_entry(n, n - k, degree)],)
            else:
                ordered = ordered + (real[_column_entry(n, k - n, degree)],)
    return ordered


@triton.constexpr_function
def _column_entry(n: int, m: int, degree: int) -> int:
    return m * (degree + 1) - m * (m - 1) // 2 + n - m


@triton.constexpr_function
def _index(n: int, m: int) -> int:
    return n * n + n + m


@triton.jit
def solid_gradient(v: tl.tuple, values: tl.tuple, degree: tl.constexpr) -> Any:
    """G_a = sum_lm v_lm dR_lm/dr_a at unit vectors where `values` are the harmonics; every coefficient is 1 or 1/2."""
    gx = tl.zeros_like(v[0])
    gy = tl.zeros_like(v[0])
    gz = tl.zeros_like(v[0])
    for n in tl.static_range(1, degree + 1):
        centre = v[_index(n, 0)]
        gz += centre * values[_index(n - 1, 0)]
        if n > 1:
            centre += centre
            gx -= centre * values[_index(n - 1, 1)]
            gy -= centre * values[_index(n - 1, -1)]
        for m in tl.static_range(1, n + 1):
            c = v[_index(n, m)]
            s = v[_index(n, -m)]
            # One product per line: each becomes one fused operation.
            if m < n:
                gz += c * values[_index(n - 1, m)]
                gz += s * values[_index(n - 1, -m)]
            gx += c * values[_index(n - 1, m - 1)]
            gy += s * values[_index(n - 1, m - 1)]
            if m > 1:
                gx += s * values[_index(n - 1, 1 - m)]
                gy -= c * values[_index(n - 1, 1 - m)]
            if m + 1 < n:
                gx -= c * values[_index(n - 1, m + 1)]
                gx -= s * values[_index(n - 1, -m - 1)]
                gy += s * values[_index(n - 1, m + 1)]
                gy -= c * values[_index(n - 1, -m - 1)]
    return 0.5 * gx, 0.5 * gy, gz


@triton.jit
def _join_halves(columns: tl.tuple, n: tl.constexpr) -> Any:
    """Join entry k with entry k + n/2 until one block with log2(n) trailing axes of length 2 is left."""
    if n == 1:
        return columns[0]
    else:  # noqa: RET505  the compiler of kernels follows one branch of constants, and needs both
        half: tl.constexpr = n // 2
        joined = ()
        for k in tl.static_range(half):
            joined = joined + (tl.join(columns[k], columns[k + half]),)
        return _join_halves(joined, half)


@triton.jit
def join_columns(columns: tl.tuple, width: tl.constexpr) -> Any:
    """Matrix [pairs, width] of a tuple of blocks [pairs], filled up with zeros; width is a power of 2."""
    pairs: tl.constexpr = columns[0].shape[0]
    zero = tl.zeros_like(columns[0])
    for _ in tl.static_range(width - len(columns)):
        columns = columns + (zero,)
    return tl.reshape(_join_halves(columns, width), [pairs, width])


@triton.jit
def _split_halves(blocks: tl.tuple, n: tl.constexpr, width: tl.constexpr) -> Any:
    """Undo `_join_halves`: from n blocks to `width` blocks, splitting the last axis of each."""
    if n == width:
        return blocks
    else:  # noqa: RET505
        low, high = (), ()
        for k in tl.static_range(n):
            a, b = tl.split(blocks[k])
            low = low + (a,)
            high = high + (b,)
        return _split_halves(low + high, 2 * n, width)


@triton.constexpr_function
def _halves(pairs: int, width: int) -> list[int]:
    return [pairs] + [2] * (width.bit_length() - 1)


@triton.jit
def split_columns(matrix: tl.tensor, width: tl.constexpr) -> Any:
    """The columns of a matrix [pairs, width] as a tuple of blocks [pairs]."""
    pairs: tl.constexpr = matrix.shape[0]
    return _split_halves((tl.reshape(matrix, _halves(pairs, width)),), 1, width)


@triton.jit
def row_sums(matrix: tl.tensor, width: tl.constexpr) -> Any:
    """Sums over the columns of a matrix [pairs, width], one pair per thread.

    `tl.sum` leaves every sum in several threads, and what is computed from it is then computed several times.
    """
    columns = split_columns(matrix, width)
    total = columns[0]
    for k in tl.static_range(1, width):
        total += columns[k]
    return total


@triton.jit
def segment(table: tl.tuple, group: tl.tensor, r: tl.tensor) -> Any:
    """Row of the table of polynomials, place u within the segment, and inverse spacing; see `SplineTable`."""
    inverse = tl.load(table.inverse_spacing + group)
    last = tl.load(table.n_intervals + group)
    t = (r - tl.load(table.lower + group)) * inverse
    # NaN positions pass through `u`; the row must stay within the table.
    k = tl.minimum(tl.maximum(tl.floor(t), -1.0), last.to(t.dtype))
    return group * table.n_segments + k.to(tl.int32) + 1, t - k, inverse


@triton.jit
def product(a: tl.tensor, b: tl.tensor, c: tl.tensor) -> Any:
    """a @ b + c, without the rounding of tensor cores."""
    return tl.dot(a, b, c, input_precision="ieee", out_dtype=c.dtype)


@triton.jit
def activate(x: tl.tensor, form: tl.constexpr) -> Any:
    """Value and slope of an activation."""
    if form.activation == "tanh":
        # 1 - 2 / (exp(2x) + 1) loses digits near 0 only against |x| itself, less than float32 sums before it.
        value = 2.0 * tl.sigmoid(2.0 * x) - 1.0
        slope = 1.0 - value * value
    elif form.activation == "softplus":
        slope = tl.sigmoid(x)
        value = tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x)))
    else:
        slope = tl.sigmoid(x)
        value = x * slope
        slope = slope + value * (1.0 - slope)
    return value, slope
