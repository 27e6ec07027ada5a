// Gradients of the splines' coefficients, in the basis of B-splines.
#pragma once
#include "train.h"

namespace snnp {
namespace SNNP_TARGET {

// G' of the angular features from A, A' and the sums of f f'.
template <typename T, int L>
inline void angular_tangents(const Plan* plan, const Moments<T>& work, const Training<T>& own, T* features_dot) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    Vec<T> total = all<T>(0);
    for (int64_t c = 0; c < channels; ++c) {
      total -= load<T>(at<T>(plan, plan->at_one) + c * stride + b) * load<T>(own.selves_dot + c * stride + b);
      for (int64_t other = 0; other < channels; ++other) {
        const T* weights = at<T>(plan, plan->legendre) + (c * channels + other) * (L + 1) * stride + b;
        const T* mine = work.moments + c * n_lm * stride + b;
        const T* theirs = own.moments_dot + other * n_lm * stride + b;
        for (int l = 0, lm = 0; l <= L; ++l) {
          Vec<T> product = all<T>(0);
          for (int m = -l; m <= l; ++m, ++lm) product += load<T>(mine + lm * stride) * load<T>(theirs + lm * stride);
          total += product * load<T>(weights + l * stride);
        }
      }
    }
    for (int q = 0; q < W && b + q < plan->f.n_filters; ++q) features_dot[b + q] = total[q];
  }
}

// Derivatives in the angular parameters: of g into `legendre` and `at_one`, and dL/dA, dL/dA' into the work arrays.
template <typename T, int L>
inline void angle_gradients(const Plan* plan, const Moments<T>& work, Training<T>& own, T* legendre, T* at_one) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    const Vec<T> g = load<T>(own.g + b), h = load<T>(own.h + b);
    for (int64_t c = 0; c < channels; ++c) {
      T* ones = at_one + c * stride + b;
      const Vec<T> selves = T(0.5) * g * load<T>(work.selves + c * stride + b);
      store<T>(ones, load<T>(ones) - selves - h * load<T>(own.selves_dot + c * stride + b));
      T* bar = own.bar + c * n_lm * stride + b;
      T* bar_dot = own.bar_dot + c * n_lm * stride + b;
      for (int64_t other = 0; other < channels; ++other) {
        const int64_t place = (c * channels + other) * (L + 1) * stride + b;
        const T* weights = at<T>(plan, plan->legendre) + place;
        const T* a = work.moments + c * n_lm * stride + b;
        const T* a_dot = own.moments_dot + c * n_lm * stride + b;
        const T* z = work.moments + other * n_lm * stride + b;
        const T* z_dot = own.moments_dot + other * n_lm * stride + b;
        for (int l = 0, lm = 0; l <= L; ++l) {
          Vec<T> product = all<T>(0), tangent = all<T>(0);
          const Vec<T> weight = load<T>(weights + l * stride);
          for (int m = -l; m <= l; ++m, ++lm) {
            const int64_t k = lm * stride;
            const Vec<T> x = load<T>(z + k), x_dot = load<T>(z_dot + k);
            product += load<T>(a + k) * x;
            tangent += load<T>(a_dot + k) * x + load<T>(a + k) * x_dot;
            const Vec<T> before = other ? load<T>(bar + k) : all<T>(0), dot_before = other ? load<T>(bar_dot + k) : all<T>(0);
            store<T>(bar + k, before + weight * (g * x + h * x_dot));
            store<T>(bar_dot + k, dot_before + weight * h * x);
          }
          T* out = legendre + place + l * stride;
          store<T>(out, load<T>(out) + T(0.5) * (g * product + h * tangent));
        }
      }
    }
  }
}

// Derivatives in the rows of f of one run, for N vectors of filters from b.
template <typename T, int L, int N>
inline void row_gradients(const Plan* plan, const Run& run, const T* table, const T* p, const T* p_dot, const T* s,
                          const T* s_dot, int64_t b, const Training<T>& own, T* gradient) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), width = (n_lm + 4 + W - 1) / W * W;
  const int64_t stride = plan->f.stride, place = run.channel * n_lm * stride + b;
  for (int64_t k = run.low; k < run.high; k += kRows) {
    const T *rows[kRows], *rows_dot[kRows];
    Vec<T> sums[kRows][N];
    for (int64_t r = 0; r < kRows; ++r) {
      const int64_t row = k + r < run.high ? k + r : run.high - 1;
      rows[r] = p + row * width;
      rows_dot[r] = p_dot + row * width;
      for (int n = 0; n < N; ++n) sums[r][n] = all<T>(0);
    }
    const T *bar = own.bar + place, *bar_dot = own.bar_dot + place;
    for (int lm = 0; lm < n_lm; ++lm, bar += stride, bar_dot += stride)
#pragma GCC unroll 2
      for (int n = 0; n < N; ++n) {
        const Vec<T> a = load<T>(bar + n * W), a_dot = load<T>(bar_dot + n * W);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sums[r][n] += a * rows[r][lm] + a_dot * rows_dot[r][lm];
      }
    for (int64_t r = 0; r < kRows && k + r < run.high; ++r)
      for (int n = 0; n < N; ++n) {
        const int64_t lane = b + n * W;
        const Vec<T> at_one = load<T>(at<T>(plan, plan->at_one) + run.channel * stride + lane);
        const Vec<T> self = load<T>(own.g + lane) * band_row<T>(run, table + lane, stride, s, k + r) +
                            load<T>(own.h + lane) * band_row<T>(run, table + lane, stride, s_dot, k + r);
        T* out = gradient + (k + r) * stride + lane;
        store<T>(out, load<T>(out) + sums[r][n] - at_one * self);
      }
  }
}

// Derivatives in the coefficients of f of all runs, from dL/dA and dL/dA'.
template <typename T, int L>
inline void function_gradients(const Plan* plan, const T* rows, const Run* runs, int64_t n_runs, const Training<T>& own, T* f) {
  constexpr int W = Lanes<T>::W;
  const int64_t n_rows = plan->f.n_segments + 1, n = plan->f.n_filters;
  for (int64_t k = 0; k < n_runs; ++k) {
    const Run& run = runs[k];
    const int64_t table = run.group * n_rows * plan->f.stride, place = k * n_rows * own.sums.width;
    const T *s = own.sums.s + k * n_rows * 7, *s_dot = own.sums.s_dot + k * n_rows * 7;
    const T *p = own.sums.p + place, *p_dot = own.sums.p_dot + place;
    int64_t b = 0;
    for (; b + W < n; b += 2 * W) row_gradients<T, L, 2>(plan, run, rows + table, p, p_dot, s, s_dot, b, own, f + table);
    if (b < n) row_gradients<T, L, 1>(plan, run, rows + table, p, p_dot, s, s_dot, b, own, f + table);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
