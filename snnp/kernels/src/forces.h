// Forces of the three-body energy through B-splines: with P_lm,k = sum_b dE/dA_lm,b beta_bk the sums over filters are done
// once per atom, and V_lm = sum_k P_lm,k B_k(r) has four terms per pair, whose coefficients are looked up in registers.
//
// `angular_gradients` sums over the filters of every pair instead: better for few pairs, or neighbours of many elements.
#pragma once
#include "basis.h"
#include "legendre.h"

namespace snnp {
namespace SNNP_TARGET {

constexpr int kMostKinds = 4;  // groups of functions f among the neighbours of one atom

template <typename T>
struct Reduced {
  Basis<T> basis;
  int n_kinds;
  int32_t groups[kMostKinds];  // of the kinds
  int32_t* kind;               // [Z] of a neighbour's element
  T* sums;                     // P [(L+1)^2, kinds * length]
  T* squares;                  // [4, kinds * length], see sum_squares

  void allocate(Arena& arena, const Plan* plan) {
    const int64_t n_lm = (plan->degree + 1) * (plan->degree + 1);
    basis.allocate(arena, plan->f);
    kind = arena.take<int32_t>(plan->n_elements);
    sums = arena.take<T>(n_lm * kMostKinds * basis.length);
    squares = arena.take<T>(4 * kMostKinds * basis.length);
  }
  int64_t stride() const { return n_kinds * basis.length; }
};

// Number the groups of f that the neighbours have; false if they are too many.
template <typename T>
inline bool number_kinds(const Plan* plan, int64_t species, const Pairs<T>& pairs, Reduced<T>& work) {
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  work.n_kinds = 1;
  work.groups[0] = groups[0];
  if (plan->f.n_groups == 1 || plan->n_channels > 1) {
    for (int64_t s = 0; s < plan->n_elements; ++s) work.kind[s] = 0;
    return true;
  }
  work.n_kinds = 0;
  for (int64_t s = 0; s < plan->n_elements; ++s) work.kind[s] = -1;
  for (int64_t p = 0; p < pairs.n; ++p) {
    const int32_t s = pairs.species[p];
    if (work.kind[s] >= 0) continue;
    int k = 0;
    while (k < work.n_kinds && work.groups[k] != groups[s]) ++k;
    if (k == kMostKinds) return false;
    if (k == work.n_kinds) work.groups[work.n_kinds++] = groups[s];
    work.kind[s] = k;
  }
  return true;
}

// Whether forces through B-splines cost less, for pairs that are distributed over blocks.
template <typename T>
inline bool reduction_pays(const Plan* plan, int64_t species, const Pairs<T>& pairs, const Legendre<T>& legendre,
                           Reduced<T>& work) {
  constexpr int W = Lanes<T>::W;
  const int64_t blocks = legendre.n_blocks, filters = plan->f.n_filters;
  if (!number_kinds<T>(plan, species, pairs, work)) return false;
  int64_t channels = blocks > 0;
  for (int64_t b = 1; b < blocks; ++b) channels += legendre.channel[b] != legendre.channel[b - 1];
  const int64_t vectors = work.stride() / W;
  return channels * vectors * filters + blocks * (8 + 4 * cost_of_look_up<T>(vectors)) < 2 * blocks * filters;
}

// P of one group for `count` values of lm from `first`, and one vector of B-splines.
template <typename T, int L, int first>
inline void reduce(int64_t n_filters, const T* gradient, const T* coefficients, int64_t length, T* out, int64_t stride) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), lm_padded = (n_lm + W - 1) / W * W;
  constexpr int chunks = (n_lm + kSums - 1) / kSums, size = (n_lm + chunks - 1) / chunks;
  if constexpr (first < n_lm) {
    constexpr int count = first + size <= n_lm ? size : n_lm - first;
    Vec<T> sums[count];
#pragma GCC unroll 32
    for (int c = 0; c < count; ++c) sums[c] = all<T>(0);
    const T* row = coefficients;
    for (int64_t b = 0; b < n_filters; b += W) {
      const T* weights = gradient + b * lm_padded + first * W;
      const int64_t here = n_filters - b < W ? n_filters - b : W;
      for (int64_t q = 0; q < here; ++q, row += length, ++weights) {
        const Vec<T> beta = load<T>(row);
#pragma GCC unroll 32
        for (int c = 0; c < count; ++c) sums[c] += beta * weights[c * W];
      }
    }
#pragma GCC unroll 32
    for (int c = 0; c < count; ++c) store<T>(out + (first + c) * stride, sums[c]);
    reduce<T, L, first + count>(n_filters, gradient, coefficients, length, out, stride);
  }
}

// P and squares of channel c.
template <typename T, int L>
inline void reduce_channel(const Plan* plan, const T* h, int64_t species, int64_t c, Legendre<T>& legendre,
                           Reduced<T>& work) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), lm_padded = (n_lm + W - 1) / W * W;
  const int64_t length = work.basis.length, filters = plan->f.n_filters;
  for (int64_t b = 0; b < filters; b += W) moment_gradient<T, L>(plan, h, legendre, c, b, legendre.gradient + b * lm_padded);
  if (plan->n_channels > 1) work.groups[0] = (at<int32_t>(plan, plan->radial_group) + species * plan->n_elements)[c];
  const T* selves = legendre.self_gradient + c * legendre.stride;
  for (int kind = 0; kind < work.n_kinds; ++kind) {
    const T* coefficients = coefficients_of<T>(plan, plan->f, work.groups[kind], work.basis);
    T *sums = work.sums + kind * length, *squares = work.squares + kind * length;
    for (int64_t k = 0; k < length; k += W)
      reduce<T, L, 0>(filters, legendre.gradient, coefficients + k, length, sums + k, work.stride());
    if (length == W) sum_squares<T, true>(coefficients, length, selves, filters, squares, work.stride());
    else sum_squares<T, false>(coefficients, length, selves, filters, squares, work.stride());
  }
}

// The B-splines of a block; none of them counts in padding.
template <typename T>
inline Weights<T> weights_of_block(const Plan* plan, const Pairs<T>& pairs, const Legendre<T>& legendre, int64_t block,
                                   const Reduced<T>& work) {
  constexpr int W = Lanes<T>::W;
  const int64_t* source = legendre.source + block * W;
  const int filled = legendre.filled[block];
  const Vec<T> r = of_block<T>(pairs.r, source, filled, T(1));
  Grid<T> grid = grid_of<T>(plan, plan->f, work.groups[0]);
  Index<T> offset = {};
  if (work.n_kinds > 1)
    for (int q = 0; q < filled; ++q) {
      const int32_t kind = work.kind[pairs.species[source[q]]];
      set_lane<T>(plan, plan->f, work.groups[kind], q, grid);
      offset[q] = kind * work.basis.length;
    }
  Weights<T> w = weights_at<T>(grid, r);
  w.first += offset;
  const auto counts = lane_numbers<T>() < filled;
#pragma GCC unroll 4
  for (int m = 0; m < 4; ++m) {
    w.value[m] = counts ? w.value[m] : all<T>(0);
    w.slope[m] = counts ? w.slope[m] : all<T>(0);
  }
  return w;
}

template <typename T, int L, int vectors>
inline void pull_back_block(const Plan* plan, int64_t block, Legendre<T>& legendre, Reduced<T>& work,
                            Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t stride = work.stride();
  const Weights<T> w = weights_of_block<T>(plan, pairs, legendre, block, work);
  const T* y = legendre.harmonics + block * n_lm * W;
  Vec<T> radial = slope_of_squares<T, vectors>(w, stride, work.squares);
  Index<T> place[4];
  for (int m = 0; m < 4; ++m) place[m] = w.first + m;
  for (int lm = 0; lm < n_lm; ++lm) {
    Vec<T> value = all<T>(0), slope = all<T>(0);
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      const Vec<T> p = look_up<T, vectors>(work.sums + lm * stride, place[m]);
      value += w.value[m] * p;
      slope += w.slope[m] * p;
    }
    store<T>(legendre.v + lm * W, value);
    radial += slope * load<T>(y + lm * W);
  }
  Vec<T> gx, gy, gz;
  solid_gradient<T, L>(legendre.v, y, gx, gy, gz);
  add_to_pairs<T>(legendre, block, radial, gx, gy, gz, pairs);
}

// What `angular_gradients` does, where `reduction_pays`.
template <typename T, int L>
inline void reduced_gradients(const Plan* plan, int64_t species, Pairs<T>& pairs, const T* h, Legendre<T>& legendre,
                              Reduced<T>& work) {
  const int64_t vectors = work.stride() / Lanes<T>::W;
  for (int64_t block = 0; block < legendre.n_blocks; ++block) {
    if (block == 0 || legendre.channel[block] != legendre.channel[block - 1])
      reduce_channel<T, L>(plan, h, species, legendre.channel[block], legendre, work);
    if (vectors == 1) pull_back_block<T, L, 1>(plan, block, legendre, work, pairs);
    else if (vectors == 2) pull_back_block<T, L, 2>(plan, block, legendre, work, pairs);
    else if (vectors == 3) pull_back_block<T, L, 3>(plan, block, legendre, work, pairs);
    else if (vectors == 4) pull_back_block<T, L, 4>(plan, block, legendre, work, pairs);
    else pull_back_block<T, L, 0>(plan, block, legendre, work, pairs);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
