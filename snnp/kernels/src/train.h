// Training: features, forces, and the derivatives of both in the coefficients of the splines, in the basis of B-splines.
//
// With q_ij = p_i - p_j + s r_ij, where p = dL/dF and s = dL/dvirial, the force loss depends on the parameters as
// sum_i h_i . G'_i does, where h = dE/dG and G' is the derivative of the features along q (moments A and A' likewise).
// So, given g = dL/dG besides, everything follows from sum_i (g_i . G_i + h_i . G'_i) in one pass over the atoms.
#pragma once
#include "bsplines.h"
#include "legendre.h"

namespace snnp {
namespace SNNP_TARGET {

// Rows of a matrix whose sums are formed at once.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int64_t kRows = 4;
#else
constexpr int64_t kRows = 2;
#endif

// Derivatives of harmonics along (qx, qy, qz) / r; `along` is the part of q / r in the direction of the pair.
template <typename T, int L>
inline void harmonic_tangents(const T* values, Vec<T> qx, Vec<T> qy, Vec<T> qz, Vec<T> along, T* out) {
  constexpr int W = Lanes<T>::W;
  const HarmonicTables<T>& t = harmonic_tables<T>();
  store<T>(out, all<T>(0));
#pragma GCC unroll 16
  for (int l = 1; l <= L; ++l) {
    const int here = l * l + l, lower = (l - 1) * (l - 1) + (l - 1);
    const Vec<T> stretch = T(l) * along;
    Vec<T> middle = qz * t.level[l][0] * load<T>(values + lower * W);
    if (l > 1)
      middle -= t.up[l][0] * (qx * load<T>(values + (lower + 1) * W) + qy * load<T>(values + (lower - 1) * W));
    store<T>(out + here * W, middle - stretch * load<T>(values + here * W));
#pragma GCC unroll 16
    for (int m = 1; m <= l; ++m) {
      const Vec<T> c0 = load<T>(values + (lower + m - 1) * W);
      const Vec<T> s0 = m > 1 ? load<T>(values + (lower - m + 1) * W) : all<T>(0);
      Vec<T> c = t.down[l][m] * (qx * c0 - qy * s0), s = t.down[l][m] * (qx * s0 + qy * c0);
      if (m + 1 <= l - 1) {
        const Vec<T> c1 = load<T>(values + (lower + m + 1) * W), s1 = load<T>(values + (lower - m - 1) * W);
        c -= t.up[l][m] * (qx * c1 + qy * s1);
        s += t.up[l][m] * (qy * c1 - qx * s1);
      }
      if (m <= l - 1) {
        c += t.level[l][m] * qz * load<T>(values + (lower + m) * W);
        s += t.level[l][m] * qz * load<T>(values + (lower - m) * W);
      }
      store<T>(out + (here + m) * W, c - stretch * load<T>(values + (here + m) * W));
      store<T>(out + (here - m) * W, s - stretch * load<T>(values + (here - m) * W));
    }
  }
}

// What an atom needs besides `Moments`: coefficients turned, sums over pairs, and derivatives along q.
template <typename T>
struct Training {
  Basis<T> basis;        // of f
  PairWeights<T> weights;
  Sums<T> sums;
  T *d, *squares;        // dE/dP [(L+1)^2, length]; [4, length], see sum_squares
  T *rate, *qx, *qy, *qz;  // [pairs] q, and its part along the pair
  T *selves_dot, *moments_dot;  // sum_j f f' rate [C, stride], A' [C, (L+1)^2, stride] of the present atom
  T *bar, *bar_dot;      // dL/dA, dL/dA' [C, (L+1)^2, stride]
  T *g, *h;              // [stride] of the angular features

  void allocate(Arena& arena, const Plan* plan, int64_t capacity, bool learns) {
    const int64_t n_lm = (plan->degree + 1) * (plan->degree + 1), c = plan->n_channels, stride = plan->f.stride;
    T** const per_pair[] = {&rate, &qx, &qy, &qz};
    for (T** array : per_pair) *array = learns ? arena.take<T>(capacity) : nullptr;
    if (plan->evaluator != kLegendre) return;
    basis.allocate(arena, plan->f);
    weights.allocate(arena, capacity);
    sums.allocate(arena, plan, capacity, learns);
    g = arena.take<T>(stride);
    h = arena.take<T>(stride);
    T** const moments[] = {&bar, &bar_dot};
    for (T** array : moments) *array = learns ? arena.take<T>(c * n_lm * stride) : nullptr;
    d = arena.take<T>(n_lm * basis.length);
    squares = arena.take<T>(4 * basis.length + kPad);
  }
};

// W rows from W vectors over pairs: harmonics (n_lm of them) and then `extra`, the weights of B-splines at these pairs.
template <typename T, int L>
inline void turn_block(const T* harmonics, T* const* extra, int64_t p, T* out) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), width = (n_lm + 4 + W - 1) / W * W;
  for (int first = 0; first < width; first += W) {
    Vec<T> rows[W];
    for (int q = 0; q < W; ++q) {
      const int k = first + q;
      rows[q] = k < n_lm ? load<T>(harmonics + k * W) : k < n_lm + 4 ? load<T>(extra[k - n_lm] + p) : all<T>(0);
    }
    transpose<T>(rows);
    for (int q = 0; q < W; ++q) store<T>(out + q * width + first, rows[q]);
  }
}

// A of one channel from a run, for `count` values of lm from `first`; a later run of the channel adds to it.
template <typename T, int L, int first, bool moves>
inline void contract(const Run& run, const T* c, int64_t stride, const T* p, const T* p_dot, bool adds, T* out, T* out_dot) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), width = (n_lm + 4 + W - 1) / W * W;
  constexpr int most = moves ? kSums / 2 : kSums, chunks = (n_lm + most - 1) / most, size = (n_lm + chunks - 1) / chunks;
  if constexpr (first < n_lm) {
    constexpr int count = first + size <= n_lm ? size : n_lm - first;
    Vec<T> sums[count], dots[count];
#pragma GCC unroll 32
    for (int m = 0; m < count; ++m) {
      sums[m] = adds ? load<T>(out + (first + m) * stride) : all<T>(0);
      if constexpr (moves) dots[m] = adds ? load<T>(out_dot + (first + m) * stride) : all<T>(0);
    }
    for (int64_t k = run.low; k < run.high; ++k) {
      const Vec<T> row = load<T>(c + k * stride);
#pragma GCC unroll 32
      for (int m = 0; m < count; ++m) {
        sums[m] += row * p[k * width + first + m];
        if constexpr (moves) dots[m] += row * p_dot[k * width + first + m];
      }
    }
#pragma GCC unroll 32
    for (int m = 0; m < count; ++m) {
      store<T>(out + (first + m) * stride, sums[m]);
      if constexpr (moves) store<T>(out_dot + (first + m) * stride, dots[m]);
    }
    contract<T, L, first + count, moves>(run, c, stride, p, p_dot, adds, out, out_dot);
  }
}

// sum_kk' c_k S_kk' c_k' of one vector of filters; S is symmetric.
template <typename T>
inline Vec<T> band_product(const Run& run, const T* c, int64_t stride, const T* s) {
  Vec<T> total = all<T>(0);
  for (int64_t k = run.low; k < run.high; ++k) {
    Vec<T> inner = s[k * 7 + 3] * load<T>(c + k * stride);
    for (int64_t d = 1; d < 4 && k + d < run.high; ++d)
      inner += T(2) * s[k * 7 + 3 + d] * load<T>(c + (k + d) * stride);
    total += inner * load<T>(c + k * stride);
  }
  return total;
}

// (S c)_k of one vector of filters.
template <typename T>
inline Vec<T> band_row(const Run& run, const T* c, int64_t stride, const T* s, int64_t k) {
  const int64_t low = k - 3 < run.low ? run.low : k - 3, high = k + 4 > run.high ? run.high : k + 4;
  Vec<T> total = all<T>(0);
  for (int64_t other = low; other < high; ++other) total += s[k * 7 + 3 + other - k] * load<T>(c + other * stride);
  return total;
}

// Harmonics of all pairs, and the rows to be summed.
template <typename T, int L, bool moves>
inline void angular_rows(const Pairs<T>& pairs, Training<T>& own) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  for (int64_t p = 0; p < pairs.n; p += W) {
    T y[n_lm * W] __attribute__((aligned(kPad)));
    harmonics<T, L>(load<T>(pairs.x + p), load<T>(pairs.y + p), load<T>(pairs.z + p), y);
    turn_block<T, L>(y, own.weights.value, p, own.sums.row + p * own.sums.width);
    if constexpr (moves) {
      T y_dot[n_lm * W] __attribute__((aligned(kPad))), b_dot[4 * W] __attribute__((aligned(kPad)));
      const Vec<T> inverse = load<T>(pairs.inverse + p), rate = load<T>(own.rate + p);
      harmonic_tangents<T, L>(y, load<T>(own.qx + p) * inverse, load<T>(own.qy + p) * inverse, load<T>(own.qz + p) * inverse,
                              rate * inverse, y_dot);
      T* extra[4];
      for (int a = 0; a < 4; ++a) {
        store<T>(b_dot + a * W, rate * load<T>(own.weights.slope[a] + p));
        extra[a] = b_dot + a * W;
      }
      turn_block<T, L>(y_dot, extra, 0, own.sums.row_dot + p * own.sums.width);
    }
  }
}

// Add what run k gives to A and to the sums of f^2 of its channel (and to A', and to the sums of f f').
template <typename T, int L, bool moves>
inline void add_run(const Plan* plan, const T* rows, const Run& run, int64_t k, bool adds, Moments<T>& work, Training<T>& own) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t stride = work.stride, n_rows = plan->f.n_segments + 1, c = run.channel;
  T *p = own.sums.p + k * n_rows * own.sums.width, *s = own.sums.s + k * n_rows * 7, *p_dot = nullptr, *s_dot = nullptr;
  sum_run<T, L, false>(run, own.weights, nullptr, own.sums, p, s);
  if constexpr (moves) {
    p_dot = own.sums.p_dot + k * n_rows * own.sums.width;
    s_dot = own.sums.s_dot + k * n_rows * 7;
    sum_run<T, L, true>(run, own.weights, own.rate, own.sums, p_dot, s_dot);
  }
  const T* table = rows + run.group * n_rows * stride;
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    T *out = work.moments + c * n_lm * stride + b, *out_dot = nullptr;
    if constexpr (moves) out_dot = own.moments_dot + c * n_lm * stride + b;
    contract<T, L, 0, moves>(run, table + b, stride, p, p_dot, adds, out, out_dot);
    T* selves = work.selves + c * stride + b;
    store<T>(selves, load<T>(selves) + band_product<T>(run, table + b, stride, s));
    if constexpr (moves) {
      selves = own.selves_dot + c * stride + b;
      store<T>(selves, load<T>(selves) + T(0.5) * band_product<T>(run, table + b, stride, s_dot));
    }
  }
}

// Sums of all runs, moments A and sums of f^2; where something moves, their derivatives.
template <typename T, int L, bool moves>
inline void angular_sums(const Plan* plan, const T* rows, Run* runs, int64_t n_runs, const Pairs<T>& pairs, Moments<T>& work,
                         Training<T>& own) {
  constexpr int n_lm = (L + 1) * (L + 1);
  const int64_t size = work.stride * sizeof(T);
  for (int64_t k = 0; k < n_runs; ++k) weigh<T>(plan, plan->f, pairs.r, runs[k], own.weights);
  angular_rows<T, L, moves>(pairs, own);
  memset(work.selves, 0, plan->n_channels * size);
  if constexpr (moves) memset(own.selves_dot, 0, plan->n_channels * size);
  for (int64_t c = 0; c < plan->n_channels; ++c) {
    bool adds = false;
    for (int64_t k = 0; k < n_runs; ++k) {
      if (runs[k].channel != c) continue;
      add_run<T, L, moves>(plan, rows, runs[k], k, adds, work, own);
      adds = true;
    }
    if (adds) continue;
    memset(work.moments + c * n_lm * work.stride, 0, n_lm * size);
    if constexpr (moves) memset(own.moments_dot + c * n_lm * work.stride, 0, n_lm * size);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
