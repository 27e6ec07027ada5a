// Training: features, forces, and the derivatives of both in the coefficients of the splines.
//
// With q_ij = p_i - p_j + s r_ij, where p = dL/dF and s = dL/dvirial, the force loss depends on the parameters as
// sum_i h_i . G'_i does, where h = dE/dG and G' is the derivative of the features along q (moments A and A' likewise).
// So, given g = dL/dG besides, everything follows from sum_i (g_i . G_i + h_i . G'_i) in one pass over the pairs.
#pragma once
#include "legendre.h"

namespace snnp {
namespace SNNP_TARGET {

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

// What one atom needs besides `Legendre`.
template <typename T>
struct Tangents {
  T *rate;               // [pairs] dr/dt along q
  T *qx, *qy, *qz;       // [pairs] q
  T *f_dot;              // [blocks * W, stride] slope times rate
  T *harmonics;          // [blocks, (L+1)^2, W]
  T *selves;             // sum_j f f' rate [C, stride]
  T *bar, *bar_dot;      // dL/dA, dL/dA' [C, (L+1)^2, stride]
  T *g, *h;              // [stride] of the angular features

  void allocate(Arena& arena, const Plan* plan, int64_t capacity) {
    constexpr int W = Lanes<T>::W;
    const int64_t n_lm = (plan->degree + 1) * (plan->degree + 1), c = plan->n_channels, stride = plan->f.stride;
    const int64_t rows = round_up(capacity, W) + c * W;
    T** const per_pair[] = {&rate, &qx, &qy, &qz};
    for (T** array : per_pair) *array = arena.take<T>(rows);
    if (plan->evaluator != kLegendre) return;
    f_dot = arena.take<T>(rows * stride);
    harmonics = arena.take<T>(rows * n_lm);
    selves = arena.take<T>(c * stride);
    T** const moments[] = {&bar, &bar_dot};
    for (T** array : moments) *array = arena.take<T>(c * n_lm * stride);
    T** const features[] = {&g, &h};
    for (T** array : features) *array = arena.take<T>(stride);
  }
};

// f' rate in rows, tangents of harmonics, and sum_j f f' rate of a block that `fill_block` has filled.
template <typename T, int L>
inline void fill_tangents(const Plan* plan, int64_t species, const Pairs<T>& pairs, int64_t block, Legendre<T>& work, Tangents<T>& dot) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  Vec<T> qx = all<T>(0), qy = qx, qz = qx, along = qx;
  for (int q = 0; q < work.filled[block]; ++q) {
    const int64_t p = work.source[block * W + q];
    const T inverse = pairs.inverse[p];
    qx[q] = dot.qx[p] * inverse;
    qy[q] = dot.qy[p] * inverse;
    qz[q] = dot.qz[p] * inverse;
    along[q] = dot.rate[p] * inverse;
  }
  harmonic_tangents<T, L>(work.harmonics + block * n_lm * W, qx, qy, qz, along, dot.harmonics + block * n_lm * W);
  T* selves = dot.selves + work.channel[block] * work.stride;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  for (int q = 0; q < work.filled[block]; ++q) {
    const int64_t row = (block * W + q) * work.stride, p = work.source[block * W + q];
    const Segment<T> s = segment<T>(plan, plan->f, groups[pairs.species[p]], pairs.r[p]);
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      const Vec<T> f_dot = dot.rate[p] * slope_of<T>(s, work.stride, b);
      store<T>(dot.f_dot + row + b, f_dot);
      store<T>(selves + b, load<T>(selves + b) + f_dot * load<T>(work.f + row + b));
    }
  }
}

// A' for `count` values of lm from `first`: sum_j f'_j Y_j + f_j Y'_j.
template <typename T, int L, int first>
inline void sum_tangents(const Legendre<T>& work, const Tangents<T>& dot, int64_t begin, int64_t end, int64_t b, T* out) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  constexpr int chunks = (n_lm + kSums - 1) / kSums, size = (n_lm + chunks - 1) / chunks;
  if constexpr (first < n_lm) {
    constexpr int count = first + size <= n_lm ? size : n_lm - first;
    Vec<T> sums[count];
#pragma GCC unroll 32
    for (int c = 0; c < count; ++c) sums[c] = all<T>(0);
    for (int64_t block = begin; block < end; ++block) {
      const T* y = work.harmonics + (block * n_lm + first) * W;
      const T* y_dot = dot.harmonics + (block * n_lm + first) * W;
      for (int q = 0; q < work.filled[block]; ++q) {
        const Vec<T> f = load<T>(work.f + (block * W + q) * work.stride + b);
        const Vec<T> f_dot = load<T>(dot.f_dot + (block * W + q) * work.stride + b);
#pragma GCC unroll 32
        for (int c = 0; c < count; ++c) sums[c] += f_dot * y[c * W + q] + f * y_dot[c * W + q];
      }
    }
#pragma GCC unroll 32
    for (int c = 0; c < count; ++c) store<T>(out + (first + c) * work.stride + b, sums[c]);
    sum_tangents<T, L, first + count>(work, dot, begin, end, b, out);
  }
}

// Range of the blocks of channel c, which begin at `begin`.
template <typename T>
inline int64_t end_of_channel(const Legendre<T>& work, int64_t begin, int64_t c) {
  while (begin < work.n_blocks && work.channel[begin] == c) ++begin;
  return begin;
}

// A' and G' of an atom whose blocks and moments are filled.
template <typename T, int L>
inline void angular_tangents(const Plan* plan, int64_t species, const Pairs<T>& pairs, Legendre<T>& work,
                             Tangents<T>& dot, T* moments_dot, T* features_dot) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  memset(dot.selves, 0, channels * stride * sizeof(T));
  for (int64_t block = 0; block < work.n_blocks; ++block) fill_tangents<T, L>(plan, species, pairs, block, work, dot);
  for (int64_t c = 0, begin = 0; c < channels; ++c) {
    const int64_t end = end_of_channel(work, begin, c);
    for (int64_t b = 0; b < plan->f.n_filters; b += W)
      sum_tangents<T, L, 0>(work, dot, begin, end, b, moments_dot + c * n_lm * stride);
    begin = end;
  }
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    Vec<T> total = all<T>(0);
    for (int64_t c = 0; c < channels; ++c) {
      total -= load<T>(at<T>(plan, plan->at_one) + c * stride + b) * load<T>(dot.selves + c * stride + b);
      for (int64_t other = 0; other < channels; ++other) {
        const T* weights = at<T>(plan, plan->legendre) + (c * channels + other) * (L + 1) * stride + b;
        const T* mine = work.moments + c * n_lm * stride + b;
        const T* theirs = moments_dot + other * n_lm * stride + b;
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
inline void angle_gradients(const Plan* plan, const Legendre<T>& work, Tangents<T>& dot, const T* moments_dot, T* legendre,
                            T* at_one) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    const Vec<T> g = load<T>(dot.g + b), h = load<T>(dot.h + b);
    for (int64_t c = 0; c < channels; ++c) {
      T* ones = at_one + c * stride + b;
      const Vec<T> selves = T(0.5) * g * load<T>(work.selves + c * stride + b);
      store<T>(ones, load<T>(ones) - selves - h * load<T>(dot.selves + c * stride + b));
      T* bar = dot.bar + c * n_lm * stride + b;
      T* bar_dot = dot.bar_dot + c * n_lm * stride + b;
      for (int64_t other = 0; other < channels; ++other) {
        const int64_t place = (c * channels + other) * (L + 1) * stride + b;
        const T* weights = at<T>(plan, plan->legendre) + place;
        const T* a = work.moments + c * n_lm * stride + b;
        const T* a_dot = moments_dot + c * n_lm * stride + b;
        const T* z = work.moments + other * n_lm * stride + b;
        const T* z_dot = moments_dot + other * n_lm * stride + b;
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

// Add df B(r) + df' rate B'(r) of one pair to the gradient of its polynomial, for one vector of filters.
template <typename T>
inline void add_to_table(const Segment<T>& s, int64_t offset, int64_t stride, Vec<T> value, Vec<T> slope, T* gradient) {
  const Vec<T> x = slope * s.inverse, u = all<T>(s.u);
  T* out = gradient + offset;
  store<T>(out, load<T>(out) + value);
  store<T>(out + stride, load<T>(out + stride) + u * value + x);
  store<T>(out + 2 * stride, load<T>(out + 2 * stride) + u * (u * value + T(2) * x));
  store<T>(out + 3 * stride, load<T>(out + 3 * stride) + u * u * (u * value + T(3) * x));
}

// Derivatives in the coefficients of f, from dL/dA and dL/dA'.
template <typename T, int L>
inline void function_gradients(const Plan* plan, int64_t species, const Pairs<T>& pairs, const Legendre<T>& work,
                               const Tangents<T>& dot, T* gradient) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), group = 4;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  const T* table = at<T>(plan, plan->f.coefficients);
  for (int64_t block = 0; block < work.n_blocks; ++block) {
    const int64_t c = work.channel[block];
    const T* y = work.harmonics + block * n_lm * W;
    const T* y_dot = dot.harmonics + block * n_lm * W;
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      const Vec<T> at_one = load<T>(at<T>(plan, plan->at_one) + c * work.stride + b);
      const Vec<T> g = load<T>(dot.g + b), h = load<T>(dot.h + b);
      const T* bar = dot.bar + c * n_lm * work.stride + b;
      const T* bar_dot = dot.bar_dot + c * n_lm * work.stride + b;
      for (int q0 = 0; q0 < work.filled[block]; q0 += group) {
        Vec<T> value[group], slope[group];
#pragma GCC unroll 4
        for (int k = 0; k < group; ++k) value[k] = slope[k] = all<T>(0);
        for (int lm = 0; lm < n_lm; ++lm) {
          const Vec<T> a = load<T>(bar + lm * work.stride), a_dot = load<T>(bar_dot + lm * work.stride);
#pragma GCC unroll 4
          for (int k = 0; k < group; ++k) {
            value[k] += a * y[lm * W + q0 + k] + a_dot * y_dot[lm * W + q0 + k];
            slope[k] += a_dot * y[lm * W + q0 + k];
          }
        }
        for (int k = 0; k < group && q0 + k < work.filled[block]; ++k) {
          const int64_t row = block * W + q0 + k, p = work.source[row];
          const Vec<T> f = load<T>(work.f + row * work.stride + b), f_dot = load<T>(dot.f_dot + row * work.stride + b);
          const Segment<T> s = segment<T>(plan, plan->f, groups[pairs.species[p]], pairs.r[p]);
          add_to_table<T>(s, s.row - table + b, work.stride, value[k] - at_one * (g * f + h * f_dot),
                          dot.rate[p] * (slope[k] - at_one * h * f), gradient);
        }
      }
    }
  }
}

// G' of the radial features, and derivatives in their coefficients.
template <typename T>
inline void radial_tangents(const Plan* plan, int64_t species, const Pairs<T>& pairs, const Tangents<T>& dot, T* out) {
  constexpr int W = Lanes<T>::W;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  for (int64_t b = 0; b < plan->rho.n_filters; b += W) {
    Vec<T> total = all<T>(0);
    for (int64_t p = 0; p < pairs.n; ++p)
      total += dot.rate[p] * slope_of<T>(segment<T>(plan, plan->rho, groups[pairs.species[p]], pairs.r[p]),
                                         plan->rho.stride, b);
    for (int q = 0; q < W && b + q < plan->rho.n_filters; ++q) out[b + q] = total[q];
  }
}

template <typename T>
inline void radial_gradients(const Plan* plan, int64_t species, const Pairs<T>& pairs, const Tangents<T>& dot, const T* g,
                             const T* h, T* gradient) {
  constexpr int W = Lanes<T>::W;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  const T* table = at<T>(plan, plan->rho.coefficients);
  for (int64_t b = 0; b < plan->rho.n_filters; b += W) {
    const Vec<T> value = load<T>(g + b), slope = load<T>(h + b);
    for (int64_t p = 0; p < pairs.n; ++p) {
      const Segment<T> s = segment<T>(plan, plan->rho, groups[pairs.species[p]], pairs.r[p]);
      add_to_table<T>(s, s.row - table + b, plan->rho.stride, value, dot.rate[p] * slope, gradient);
    }
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
