// Forces in the basis of B-splines: from dE/dA to dE/dP, and from there to each pair.
#pragma once
#include "radial.h"
#include "train.h"

namespace snnp {
namespace SNNP_TARGET {

// dE/dA of every channel into own.bar, and weights of the self terms, from h = dE/dG (own.h).
template <typename T, int L>
inline void moment_slopes(const Plan* plan, Legendre<T>& work, Training<T>& own) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      const Vec<T> mine = load<T>(own.h + b);
      store<T>(work.self_gradient + c * stride + b, -mine * load<T>(at<T>(plan, plan->at_one) + c * stride + b));
      T* out = own.bar + c * n_lm * stride + b;
      for (int64_t other = 0; other < channels; ++other) {
        const T* g = at<T>(plan, plan->legendre) + (c * channels + other) * (L + 1) * stride + b;
        const T* a = work.moments + other * n_lm * stride + b;
        for (int l = 0, lm = 0; l <= L; ++l) {
          const Vec<T> weight = mine * load<T>(g + l * stride);
          for (int m = -l; m <= l; ++m, ++lm) {
            const Vec<T> more = weight * load<T>(a + lm * stride);
            store<T>(out + lm * stride, other ? load<T>(out + lm * stride) + more : more);
          }
        }
      }
    }
}

// dE/dP for W values of k from `columns` on: vectors over k for each lm from `first` on.
template <typename T, int L, int first>
inline void pull_columns(const Plan* plan, const T* columns, int64_t k_stride, const T* bar, Vec<T>* out) {
  constexpr int n_lm = (L + 1) * (L + 1), chunks = (n_lm + kSums - 1) / kSums, size = (n_lm + chunks - 1) / chunks;
  if constexpr (first < n_lm) {
    constexpr int count = first + size <= n_lm ? size : n_lm - first;
    Vec<T> sums[count];
#pragma GCC unroll 32
    for (int m = 0; m < count; ++m) sums[m] = all<T>(0);
    const int64_t stride = plan->f.stride;
    const T *c = columns, *row = bar + first * stride;
    for (int64_t b = 0; b < plan->f.n_filters; ++b, c += k_stride, ++row) {
      const Vec<T> x = load_any<T>(c);
#pragma GCC unroll 32
      for (int m = 0; m < count; ++m) sums[m] += row[m * stride] * x;
    }
#pragma GCC unroll 32
    for (int m = 0; m < count; ++m) out[first + m] = sums[m];
    pull_columns<T, L, first + count>(plan, columns, k_stride, bar, out);
  }
}

// dE/dP_k,lm = sum_b c_kb dE/dA_lm,b for the rows of a run, into d [K, width].
template <typename T, int L>
inline void pull_rows(const Plan* plan, const Run& run, const T* columns, int64_t k_stride, const T* bar, T* d) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), width = (n_lm + 4 + W - 1) / W * W;
  for (int64_t k = run.low; k < run.high; k += W) {
    Vec<T> lanes[width];
    pull_columns<T, L, 0>(plan, columns + k, k_stride, bar, lanes);
    for (int lm = n_lm; lm < width; ++lm) lanes[lm] = all<T>(0);
    for (int first = 0; first < width; first += W) {
      transpose<T>(lanes + first);
      for (int64_t q = 0; q < W && k + q < run.high; ++q) store<T>(d + (k + q) * width + first, lanes[first + q]);
    }
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

// Rows of dE/dP from `first` on. The row of a pair ends with its weights: with gamma in their places the self term comes
// along when the two are multiplied.
template <typename T, int L, int U>
inline void load_slopes(const Training<T>& own, int64_t first, Vec<T> (&d)[4][U]) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  T local[4 * U * W] __attribute__((aligned(kPad)));
  memcpy(local, own.d + first * U * W, sizeof local);
  for (int a = 0; a < 4; ++a)
    for (int other = 0; other < 4; ++other) {
      const int apart = a < other ? other - a : a - other;
      local[a * U * W + n_lm + other] = own.gamma[apart * own.k_stride + first + (a < other ? a : other)];
    }
  for (int a = 0; a < 4; ++a)
    for (int v = 0; v < U; ++v) d[a][v] = load<T>(local + (a * U + v) * W);
}

// Gradients of W pairs from p on, from their dE/dY (rows [W, V * W]) and dE/dr along the pair (rows to be summed).
template <typename T, int L>
inline void pull_block(int64_t p, T* v_rows, Vec<T>* slopes, Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), V = (n_lm + W - 1) / W;
  T v[V * W * W] __attribute__((aligned(kPad))), y[n_lm * W] __attribute__((aligned(kPad)));
  for (int first = 0; first < V; ++first) {
    Vec<T> rows[W];
    for (int q = 0; q < W; ++q) rows[q] = load<T>(v_rows + (q * V + first) * W);
    transpose<T>(rows);
    for (int q = 0; q < W; ++q) store<T>(v + (first * W + q) * W, rows[q]);
  }
  const Vec<T> ux = load_any<T>(pairs.x + p), uy = load_any<T>(pairs.y + p), uz = load_any<T>(pairs.z + p);
  harmonics<T, L>(ux, uy, uz, y);
  Vec<T> gx, gy, gz;
  solid_gradient<T, L>(v, y, gx, gy, gz);
  const Vec<T> radial = sum_rows<T>(slopes), inverse = load_any<T>(pairs.inverse + p);
  gx *= inverse, gy *= inverse, gz *= inverse;
  store_any<T>(pairs.radial + p, load_any<T>(pairs.radial + p) + radial - (gx * ux + gy * uy + gz * uz));
  store_any<T>(pairs.gx + p, load_any<T>(pairs.gx + p) + gx);
  store_any<T>(pairs.gy + p, load_any<T>(pairs.gy + p) + gy);
  store_any<T>(pairs.gz + p, load_any<T>(pairs.gz + p) + gz);
}

// Add the gradients of the angular energy in the pairs of a run; lanes beyond its end receive zeros.
template <typename T, int L>
inline void pull_pairs(const Run& run, const Training<T>& own, Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), V = (n_lm + W - 1) / W, U = (n_lm + 4 + W - 1) / W;
  const int32_t* firsts = own.weights.first;
  const T *eights = own.weights.row, *pair_rows = own.sums.row;
  Vec<T> d[4][U];
  int32_t loaded = -1;
  for (int64_t p = run.begin; p < run.end; p += W) {
    T v_rows[W * V * W] __attribute__((aligned(kPad)));
    Vec<T> slopes[W];
    for (int q = 0; q < W; ++q) {
      slopes[q] = all<T>(0);
      if (p + q >= run.end) {
        for (int v = 0; v < V; ++v) store<T>(v_rows + (q * V + v) * W, all<T>(0));
        continue;
      }
      if (firsts[p + q] != loaded) load_slopes<T, L, U>(own, loaded = firsts[p + q], d);
      const T *row = pair_rows + (p + q) * U * W, *weight = eights + (p + q) * 8;
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
        if (v < V) store<T>(v_rows + (q * V + v) * W, value);
      }
      slopes[q] = slope;
    }
    pull_block<T, L>(p, v_rows, slopes, pairs);
  }
}

// Gradients of the angular energy in the pairs, from h = dE/dG (own.h), added to pairs.radial, gx, gy, gz.
template <typename T, int L>
inline void angular_pull(const Plan* plan, const Run* runs, int64_t n_runs, Pairs<T>& pairs, Legendre<T>& work, Training<T>& own) {
  constexpr int n_lm = (L + 1) * (L + 1);
  moment_slopes<T, L>(plan, work, own);
  for (int64_t k = 0; k < n_runs; ++k) {
    const Run& run = runs[k];
    if (run.begin == run.end) continue;
    const T* columns = own.columns + run.group * plan->f.n_filters * own.k_stride;
    pull_rows<T, L>(plan, run, columns, own.k_stride, own.bar + run.channel * n_lm * work.stride, own.d);
    pull_band<T>(plan, run, columns, own.k_stride, work.self_gradient + run.channel * work.stride, own.gamma);
    pull_pairs<T, L>(run, own, pairs);
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
