// Forces in the basis of B-splines: from dE/dA to dE/dP, and from there to each pair.
#pragma once
#include "radial.h"
#include "train.h"

namespace snnp {
namespace SNNP_TARGET {

// dE/dP_k,lm = sum_b c_kb dE/dA_lm,b for the rows of a run; `turned` [F, V * W] holds dE/dA with lm running fastest.
template <typename T, int L>
inline void pull_rows(const Plan* plan, const Run& run, const T* columns, int64_t k_stride, const T* turned, T* d) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), V = (n_lm + W - 1) / W, width = (n_lm + 4 + W - 1) / W * W;
  for (int64_t k = run.low; k < run.high; k += kRows) {
    Vec<T> sums[kRows][V];
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < V; ++v) sums[r][v] = all<T>(0);
    const T *c = columns + k, *row = turned;
    for (int64_t b = 0; b < plan->f.n_filters; ++b, c += k_stride, row += V * W)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        const Vec<T> x = load<T>(row + v * W);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][v] += c[r] * x;
      }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < width / W; ++v) store<T>(d + (k + r) * width + v * W, v < V ? sums[r][v] : all<T>(0));
  }
}

// gamma_d,k = sum_b weight_b c_kb c_k+d,b for d = 0 .. 3.
template <typename T>
inline void pull_band(const Plan* plan, const Run& run, const T* columns, int64_t k_stride, const T* weight, T* gamma) {
  constexpr int W = Lanes<T>::W;
  for (int64_t k = run.low; k < run.high; k += W) {
    Vec<T> sums[4];
    for (Vec<T>& sum : sums) sum = all<T>(0);
    for (int64_t b = 0; b < plan->f.n_filters; ++b) {
      const T* c = columns + b * k_stride + k;
      const Vec<T> mine = weight[b] * load_any<T>(c);
      for (int d = 0; d < 4; ++d) sums[d] += mine * load_any<T>(c + d);
    }
    for (int d = 0; d < 4; ++d) store_any<T>(gamma + d * k_stride + k, sums[d]);
  }
}

// dE/dY of each pair of a run into v_rows; dE/dr along the pair, as W numbers to be summed, into slopes.
template <typename T, int L>
inline void pull_pairs(const Run& run, Training<T>& own) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), V = (n_lm + W - 1) / W, U = (n_lm + 4 + W - 1) / W;
  const int32_t* firsts = own.weights.first;
  const T *eights = own.weights.row, *pair_rows = own.sums.row;
  T *v_rows = own.v_rows, *slopes = own.slopes;
  for (int64_t p = run.begin; p < run.end;) {
    const int32_t first = firsts[p];
    // The row of a pair ends with its weights: with gamma in their places the self term comes along.
    T local[4 * U * W] __attribute__((aligned(kPad)));
    memcpy(local, own.d + first * U * W, sizeof local);
    for (int a = 0; a < 4; ++a)
      for (int other = 0; other < 4; ++other) {
        const int apart = a < other ? other - a : a - other;
        local[a * U * W + n_lm + other] = own.gamma[apart * own.k_stride + first + (a < other ? a : other)];
      }
    Vec<T> d[4][U];
    for (int a = 0; a < 4; ++a)
      for (int v = 0; v < U; ++v) d[a][v] = load<T>(local + (a * U + v) * W);
    for (; p < run.end && firsts[p] == first; ++p) {
      const T *row = pair_rows + p * U * W, *weight = eights + p * 8;
      Vec<T> slope = all<T>(0);
#pragma GCC unroll 8
      for (int v = 0; v < U; ++v) {
        Vec<T> value = all<T>(0), along = all<T>(0);
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a) {
          value += weight[a] * d[a][v];
          along += weight[4 + a] * d[a][v];
        }
        slope += along * load<T>(row + v * W);
        if (v < V) store<T>(v_rows + (p * V + v) * W, value);
      }
      store<T>(slopes + p * W, slope);
    }
  }
}

// Gradients of the angular energy in the pairs, from h = dE/dG (own.h), added to pairs.radial, gx, gy, gz.
template <typename T, int L>
inline void angular_pull(const Plan* plan, const Run* runs, int64_t n_runs, Pairs<T>& pairs, Legendre<T>& work, Training<T>& own) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), V = (n_lm + W - 1) / W;
  moment_gradients<T, L>(plan, own.h, work);
  for (int64_t k = 0; k < n_runs; ++k) {
    const Run& run = runs[k];
    // Pairs beyond the reach of f stand at the end of their run.
    const int64_t next = k + 1 < n_runs ? runs[k + 1].begin : pairs.n;
    memset(own.v_rows + run.end * V * W, 0, (next - run.end) * V * W * sizeof(T));
    memset(own.slopes + run.end * W, 0, (next - run.end) * W * sizeof(T));
    if (run.begin == run.end) continue;
    const T* columns = own.columns + run.group * plan->f.n_filters * own.k_stride;
    pull_rows<T, L>(plan, run, columns, own.k_stride, work.turned + run.channel * work.stride * V * W, own.d);
    pull_band<T>(plan, run, columns, own.k_stride, work.self_gradient + run.channel * work.stride, own.gamma);
    pull_pairs<T, L>(run, own);
  }
  for (int64_t p = 0; p < pairs.n; p += W) {
    T v[V * W * W] __attribute__((aligned(kPad)));
    Vec<T> rows[W];
    for (int first = 0; first < V; ++first) {
      for (int q = 0; q < W; ++q) rows[q] = load<T>(own.v_rows + ((p + q) * V + first) * W);
      transpose<T>(rows);
      for (int q = 0; q < W; ++q) store<T>(v + (first * W + q) * W, rows[q]);
    }
    for (int q = 0; q < W; ++q) rows[q] = load<T>(own.slopes + (p + q) * W);
    const Vec<T> radial = sum_rows<T>(rows), inverse = load<T>(pairs.inverse + p);
    Vec<T> gx, gy, gz;
    solid_gradient<T, L>(v, work.harmonics + p * n_lm, gx, gy, gz);
    gx *= inverse, gy *= inverse, gz *= inverse;
    const Vec<T> along = gx * load<T>(pairs.x + p) + gy * load<T>(pairs.y + p) + gz * load<T>(pairs.z + p);
    store<T>(pairs.radial + p, load<T>(pairs.radial + p) + radial - along);
    store<T>(pairs.gx + p, load<T>(pairs.gx + p) + gx);
    store<T>(pairs.gy + p, load<T>(pairs.gy + p) + gy);
    store<T>(pairs.gz + p, load<T>(pairs.gz + p) + gz);
  }
}

// pairs.radial += sum_a h_a rho_a'(r): the filters are summed first, then evaluated once per pair.
template <typename T>
inline void radial_pull(const Plan* plan, const Run& run, const T* columns, int64_t k_stride, const T* h,
                        const Weights<T>& weights, Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W;
  const T* eights = weights.row;
  const int32_t* firsts = weights.first;
  T *radial = pairs.radial, effective[64] __attribute__((aligned(kPad)));
  for (int64_t low = run.low; low < run.high; low += 61) {
    // Pieces of 64 rows that overlap by three serve any number of them.
    for (int64_t k = 0; k < 64 && low + k < run.high; k += W) {
      Vec<T> total = all<T>(0);
      for (int64_t a = 0; a < plan->rho.n_filters; ++a) total += h[a] * load_any<T>(columns + a * k_stride + low + k);
      store<T>(effective + k, total);
    }
    for (int64_t p = run.begin; p < run.end; ++p) {
      const int64_t k = firsts[p] - low;
      if (k < 0 || k > 60) continue;
      const Four<T> slope = load_four<T>(eights + p * 8 + 4) * load_four<T>(effective + k);
      radial[p] += (slope[0] + slope[1]) + (slope[2] + slope[3]);
    }
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
