// Splines as sums of B-splines. What is linear in the filters is summed over them once per atom, then evaluated per pair:
// sum_b w_b f_b(r) = sum_k s_k B_k(r) with s_k = sum_b w_b beta_bk, and only four B-splines differ from zero at any r.
#pragma once
#include "atom.h"

namespace snnp {
namespace SNNP_TARGET {

// Coefficients beta [G, F, length] of a table, found from its polynomials when a group is first needed.
template <typename T>
struct Basis {
  int64_t length;  // B-splines of a group, padded to whole vectors
  T* coefficients;
  char* ready;  // [G]

  void allocate(Arena& arena, const Table& table) {
    constexpr int W = Lanes<T>::W;
    length = round_up(table.n_segments + 1, W);
    coefficients = arena.take<T>(table.n_groups * table.n_filters * length + W + 3);  // rows are also read from k + 3
    ready = arena.take<char>(table.n_groups);
  }
};

// The coefficients of a group. On its grid a spline of n intervals is sum_k beta_k B_k, k = 0 .. n + 2.
template <typename T>
inline const T* coefficients_of(const Plan* plan, const Table& table, int64_t group, Basis<T>& basis) {
  T* out = basis.coefficients + group * table.n_filters * basis.length;
  if (basis.ready[group]) return out;
  basis.ready[group] = 1;
  memset(out, 0, table.n_filters * basis.length * sizeof(T));
  const int64_t n = at<int32_t>(plan, table.counts)[group], stride = table.stride;
  for (int64_t k = 0; k < n + 3; ++k) {
    // In the polynomials of a segment: beta_(k-1), ..., beta_(k+2) = c0 - c1 + 2/3 c2, c0 - c2 / 3, c0 + c1 + 2/3 c2, ...
    const int64_t segment = k < 1 ? 1 : (k > n ? n : k), place = k - segment;
    const double first[4] = {-1, 0, 1, 2}, second[4] = {2. / 3, -1. / 3, 2. / 3, 11. / 3}, third[4] = {0, 0, 0, 6};
    const T w1 = T(first[place + 1]), w2 = T(second[place + 1]), w3 = T(third[place + 1]);
    const T* c = at<T>(plan, table.coefficients) + (group * table.n_segments + segment) * 4 * stride;
    for (int64_t b = 0; b < table.n_filters; ++b)
      out[b * basis.length + k] = c[b] + w1 * c[stride + b] + w2 * c[2 * stride + b] + w3 * c[3 * stride + b];
  }
  return out;
}

// The B-splines that are not zero at W distances, their derivatives in r, and the place of the first.
template <typename T>
struct Weights {
  Index<T> first;
  Vec<T> value[4], slope[4];
};

// Beyond its grid a spline goes on as its tangent; so do the B-splines.
template <typename T>
inline Weights<T> weights_at(const Grid<T>& grid, Vec<T> r) {
  Weights<T> w;
  const Vec<T> t = (r - grid.lower) * grid.inverse, zero = all<T>(0), one = all<T>(1);
  const Vec<T> inside = minimum<T>(maximum<T>(t, zero), grid.count - T(1));
  w.first = __builtin_convertvector(inside, Index<T>);
  const Vec<T> along = t - __builtin_convertvector(w.first, Vec<T>);
  const Vec<T> u = minimum<T>(maximum<T>(along, zero), one), beyond = along - u, v = T(1) - u;
  const T sixth = T(1. / 6);
  w.value[0] = sixth * v * v * v;
  w.value[1] = T(2. / 3) - u * u * (T(1) - T(0.5) * u);
  w.value[2] = T(2. / 3) - v * v * (T(1) - T(0.5) * v);
  w.value[3] = sixth * u * u * u;
  w.slope[0] = T(-0.5) * v * v;
  w.slope[1] = u * (T(1.5) * u - T(2));
  w.slope[2] = v * (T(2) - T(1.5) * v);
  w.slope[3] = T(0.5) * u * u;
#pragma GCC unroll 4
  for (int m = 0; m < 4; ++m) {
    w.value[m] += beyond * w.slope[m];
    w.slope[m] *= grid.inverse;
  }
  return w;
}

// out [length] = sum_b weights[b] beta_b of one group.
template <typename T>
inline void sum_filters(const T* coefficients, int64_t length, const T* weights, int64_t n_filters, T* out) {
  constexpr int W = Lanes<T>::W;
  for (int64_t k = 0; k < length; k += W) {
    Vec<T> even = all<T>(0), odd = all<T>(0);
    const T* row = coefficients + k;
    int64_t b = 0;
    for (; b + 1 < n_filters; b += 2, row += 2 * length) {
      even += weights[b] * load<T>(row);
      odd += weights[b + 1] * load<T>(row + length);
    }
    if (b < n_filters) even += weights[b] * load<T>(row);
    store<T>(out + k, even + odd);
  }
}

// out [4, length], rows `stride` apart: for d = 0 .. 3 sum_b weights[b] beta_bk beta_b(k+d), the coefficients of
// sum_b weights[b] f_b^2. What beta_b(k+d) is beyond the row does not matter: where it is one vector, that is turned around.
template <typename T, bool one_vector>
inline void sum_squares(const T* coefficients, int64_t length, const T* weights, int64_t n_filters, T* out, int64_t stride) {
  constexpr int W = Lanes<T>::W;
  for (int64_t k = 0; k < length; k += W) {
    Vec<T> sums[4];
    for (Vec<T>& x : sums) x = all<T>(0);
    const T* row = coefficients + k;
    for (int64_t b = 0; b < n_filters; ++b, row += length) {
      const Vec<T> beta = load<T>(row), weighted = weights[b] * beta;
      sums[0] += weighted * beta;
#pragma GCC unroll 4
      for (int d = 1; d < 4; ++d) {
        if constexpr (one_vector) sums[d] += weighted * look_up<T, 1>(row, lane_numbers<T>() + d);
        else sums[d] += weighted * load_anywhere<T>(row + d);
      }
    }
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) store<T>(out + d * stride + k, sums[d]);
  }
}

// Half the slope of the sum of squares.
template <typename T, int vectors>
inline Vec<T> slope_of_squares(const Weights<T>& w, int64_t stride, const T* squares) {
  Vec<T> slope = all<T>(0);
#pragma GCC unroll 4
  for (int m = 0; m < 4; ++m) slope += w.value[m] * w.slope[m] * look_up<T, vectors>(squares, w.first + m);
#pragma GCC unroll 4
  for (int d = 1; d < 4; ++d)
#pragma GCC unroll 4
    for (int m = 0; m + d < 4; ++m) {
      const Vec<T> product = w.value[m] * w.slope[m + d] + w.value[m + d] * w.slope[m];
      slope += product * look_up<T, vectors>(squares + d * stride, w.first + m);
    }
  return slope;
}

}  // namespace SNNP_TARGET
}  // namespace snnp
