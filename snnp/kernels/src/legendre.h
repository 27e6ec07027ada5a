// Three-body features through moments A_lm,b = sum_j f_b(r_ij) Y_lm(r_ij), filters b as lanes; see snnp/models/spline/three_body.py.
//
// All loops over pairs are small matrix products: forward [lm, pair] x [pair, b], backward [lm, b] x [b, pair], where
// f is kept in both layouts and its slope in the second (see forces.h for the way back that needs neither). A product works
// on a chunk of lm whose sums stay in registers.
#pragma once
#include "atom.h"
#include "harmonics.h"

namespace snnp {
namespace SNNP_TARGET {

// Vector registers of the target, less those for operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 26;
#else
constexpr int kSums = 12;
#endif

// Moments of one atom, and what follows from them alone.
template <typename T>
struct Moments {
  int64_t stride;     // numbers in a row of filters
  T *moments;         // A [C, (L+1)^2, stride]
  T *gradient;        // dE/dA [stride / W, (L+1)^2 padded, W] of one channel
  T *selves, *self_gradient;  // sum_j f_b^2 and its gradient [C, stride]

  void allocate(Arena& arena, const Plan* plan) {
    stride = plan->f.stride;
    const int64_t c = plan->n_channels, n_lm = (plan->degree + 1) * (plan->degree + 1);
    moments = arena.take<T>(c * n_lm * stride);
    gradient = arena.take<T>(round_up(n_lm, Lanes<T>::W) * stride);
    T** const selves_too[] = {&selves, &self_gradient};
    for (T** array : selves_too) *array = arena.take<T>(c * stride);
  }
};

template <typename T>
struct Legendre : Moments<T> {
  int64_t n_blocks;   // blocks of W pairs; a block holds neighbours of one channel
  int64_t* source;    // [blocks * W] index of the pair, -1 in padding
  int32_t* channel;   // [blocks]
  int32_t* filled;    // [blocks] pairs in a block
  T *harmonics;       // [blocks, (L+1)^2, W]
  T *f;               // [blocks * W, stride]
  T *f_lanes, *slope_lanes;  // [blocks, stride, W]
  T *turned;          // dE/dA of all channels [C, stride, (L+1)^2 padded]
  T *v;               // [(L+1)^2, W]

  void allocate(Arena& arena, const Plan* plan, int64_t capacity) {
    constexpr int W = Lanes<T>::W;
    Moments<T>::allocate(arena, plan);
    const int64_t c = plan->n_channels, n_lm = (plan->degree + 1) * (plan->degree + 1), stride = plan->f.stride;
    const int64_t rows = round_up(capacity, W) + c * W;
    source = arena.take<int64_t>(rows);
    channel = arena.take<int32_t>(rows / W);
    filled = arena.take<int32_t>(rows / W);
    harmonics = arena.take<T>(rows * n_lm);
    T** const layouts[] = {&f, &f_lanes, &slope_lanes};
    for (T** array : layouts) *array = arena.take<T>(rows * stride);
    turned = arena.take<T>(c * stride * round_up(n_lm, W));
    v = arena.take<T>(n_lm * W);
  }
};

// Distribute the pairs within the reach of f over blocks, channel by channel.
template <typename T>
inline void make_blocks(const Plan* plan, const Pairs<T>& pairs, Legendre<T>& work) {
  constexpr int W = Lanes<T>::W;
  const T reach = T(plan->angular_cutoff);
  work.n_blocks = 0;
  for (int64_t c = 0; c < plan->n_channels; ++c) {
    int64_t n = work.n_blocks * W;
    const int64_t start = n;
    int64_t outside = plan->n_channels > 1;
    for (int64_t p = 0; p < pairs.n; ++p) outside += !(pairs.r[p] < reach);
    if (outside) {
      for (int64_t p = 0; p < pairs.n; ++p) {
        work.source[n] = p;
        n += pairs.r[p] < reach && (plan->n_channels == 1 || pairs.species[p] == c);
      }
    } else {
      for (; n < pairs.n; ++n) work.source[n] = n;
    }
    for (int64_t b = work.n_blocks; b * W < n; ++b) {
      work.channel[b] = static_cast<int32_t>(c);
      work.filled[b] = static_cast<int32_t>(n - b * W < W ? n - b * W : W);
    }
    work.n_blocks += (n - start + W - 1) / W;
    for (; n < work.n_blocks * W; ++n) work.source[n] = -1;
  }
}

// What an array over pairs has for the pairs of a block.
template <typename T>
inline Vec<T> of_block(const T* values, const int64_t* source, int filled, T padding) {
  if (source[filled - 1] - source[0] == filled - 1) {
    const Vec<T> found = load_anywhere<T>(values + source[0]);
    return lane_numbers<T>() < filled ? found : all<T>(padding);
  }
  Vec<T> found = all<T>(padding);
  for (int q = 0; q < filled; ++q) found[q] = values[source[q]];
  return found;
}

// Harmonics of a block; its functions f in rows (for sums over pairs), and f and slopes with pairs as lanes (for forces).
// With rows, f^2 is added to the sums over selves. Either layout is made only where a caller needs it.
template <typename T, int L, bool in_rows, bool in_lanes>
inline void fill_block(const Plan* plan, int64_t species, const Pairs<T>& pairs, int64_t block, Legendre<T>& work) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t* source = work.source + block * W;
  const int filled = work.filled[block];
  const Vec<T> x = of_block<T>(pairs.x, source, filled, T(0)), y = of_block<T>(pairs.y, source, filled, T(0));
  const Vec<T> z = of_block<T>(pairs.z, source, filled, T(1)), r = of_block<T>(pairs.r, source, filled, T(1));
  harmonics<T, L>(x, y, z, work.harmonics + block * n_lm * W);
  int32_t kinds[W];
  for (int q = 0; q < filled; ++q) kinds[q] = pairs.species[source[q]];
  const Segments<T> segments = find_segments<T>(plan, plan->f, species, kinds, r, filled);
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    if constexpr (in_rows) {
      Vec<T> square = all<T>(0);
      T* out = work.f + block * W * work.stride + b;
      for (int q = 0; q < filled; ++q, out += work.stride) {
        const Vec<T> row = value_of<T>(segments[q], work.stride, b);
        store<T>(out, row);
        square += row * row;
      }
      T* selves = work.selves + work.channel[block] * work.stride + b;
      store<T>(selves, load<T>(selves) + square);
    }
    if constexpr (!in_lanes) continue;
    Vec<T> rows[W];
    for (int q = 0; q < W; ++q) rows[q] = q < filled ? value_of<T>(segments[q], work.stride, b) : all<T>(0);
    transpose<T>(rows);
    for (int q = 0; q < W; ++q) store<T>(work.f_lanes + (block * work.stride + b + q) * W, rows[q]);
    for (int q = 0; q < W; ++q) rows[q] = q < filled ? slope_of<T>(segments[q], work.stride, b) : all<T>(0);
    transpose<T>(rows);
    for (int q = 0; q < W; ++q) store<T>(work.slope_lanes + (block * work.stride + b + q) * W, rows[q]);
  }
}

// A_lm for `count` values of lm from `first` and one vector of filters, over the blocks [begin, end) of a channel.
template <typename T, int L, int first, int count>
inline void sum_moments(const Legendre<T>& work, int64_t begin, int64_t end, int64_t b, T* out) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  Vec<T> sums[count];
#pragma GCC unroll 32
  for (int c = 0; c < count; ++c) sums[c] = all<T>(0);
  for (int64_t block = begin; block < end; ++block) {
    const T* y = work.harmonics + (block * n_lm + first) * W;
    const T* f = work.f + block * W * work.stride + b;
    for (int q = 0; q < work.filled[block]; ++q, ++y, f += work.stride) {
      const Vec<T> row = load<T>(f);
#pragma GCC unroll 32
      for (int c = 0; c < count; ++c) sums[c] += row * y[c * W];
    }
  }
#pragma GCC unroll 32
  for (int c = 0; c < count; ++c) store<T>(out + (first + c) * work.stride + b, sums[c]);
}

template <typename T, int L, int first>
inline void sum_all_moments(const Legendre<T>& work, int64_t begin, int64_t end, int64_t b, T* out) {
  constexpr int n_lm = (L + 1) * (L + 1), chunks = (n_lm + kSums - 1) / kSums, size = (n_lm + chunks - 1) / chunks;
  if constexpr (first < n_lm) {
    constexpr int count = first + size <= n_lm ? size : n_lm - first;
    sum_moments<T, L, first, count>(work, begin, end, b, out);
    sum_all_moments<T, L, first + count>(work, begin, end, b, out);
  }
}

// Features of one vector of filters: 1/2 [ sum_cc'l g_cc'l sum_m A_c,lm A_c',lm - sum_c g_c(1) sum_j f^2 ].
template <typename T, int L>
inline Vec<T> feature_row(const Plan* plan, const Moments<T>& work, int64_t b) {
  constexpr int n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  const T* g = at<T>(plan, plan->legendre);
  const T* at_one = at<T>(plan, plan->at_one);
  Vec<T> total = all<T>(0);
  for (int64_t c = 0; c < channels; ++c) {
    total -= load<T>(at_one + c * stride + b) * load<T>(work.selves + c * stride + b);
    for (int64_t other = 0; other < channels; ++other) {
      const T* mine = work.moments + c * n_lm * stride + b;
      const T* theirs = work.moments + other * n_lm * stride + b;
      const T* weights = g + (c * channels + other) * (L + 1) * stride + b;
      for (int l = 0; l <= L; ++l, weights += stride) {
        Vec<T> product = all<T>(0);
        for (int m = -l; m <= l; ++m, mine += stride, theirs += stride) product += load<T>(mine) * load<T>(theirs);
        total += product * load<T>(weights);
      }
    }
  }
  return T(0.5) * total;
}

// Features from pairs that are distributed over blocks; `in_lanes` if `angular_gradients` follows.
template <typename T, int L, bool in_lanes>
inline void features_of_blocks(const Plan* plan, int64_t species, const Pairs<T>& pairs, Legendre<T>& work, T* features) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  memset(work.selves, 0, plan->n_channels * work.stride * sizeof(T));
  for (int64_t block = 0; block < work.n_blocks; ++block)
    fill_block<T, L, true, in_lanes>(plan, species, pairs, block, work);
  int64_t begin = 0;
  for (int64_t c = 0; c < plan->n_channels; ++c) {
    int64_t end = begin;
    while (end < work.n_blocks && work.channel[end] == c) ++end;
    T* out = work.moments + c * n_lm * work.stride;
    for (int64_t b = 0; b < plan->f.n_filters; b += W) sum_all_moments<T, L, 0>(work, begin, end, b, out);
    begin = end;
  }
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    const Vec<T> row = feature_row<T, L>(plan, work, b);
    for (int q = 0; q < W && b + q < plan->f.n_filters; ++q) features[b + q] = row[q];
  }
}

// dE/dA of channel c for one vector of filters, from dE/dG (h, padded with zeros); out [(L+1)^2, W].
template <typename T, int L>
inline void moment_gradient(const Plan* plan, const T* h, Moments<T>& work, int64_t c, int64_t b, T* out) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const int64_t channels = plan->n_channels, stride = work.stride;
  const Vec<T> mine = load<T>(h + b);
  store<T>(work.self_gradient + c * stride + b, -mine * load<T>(at<T>(plan, plan->at_one) + c * stride + b));
  for (int64_t other = 0; other < channels; ++other) {
    const T* g = at<T>(plan, plan->legendre) + (c * channels + other) * (L + 1) * stride + b;
    const T* a = work.moments + other * n_lm * stride + b;
    T* row = out;
    for (int l = 0; l <= L; ++l, g += stride) {
      const Vec<T> weight = mine * load<T>(g);
      for (int m = -l; m <= l; ++m, row += W, a += stride)
        store<T>(row, other ? load<T>(row) + weight * load<T>(a) : weight * load<T>(a));
    }
  }
}

// dE/dA of all channels, turned so that lm runs fastest.
template <typename T, int L>
inline void moment_gradients(const Plan* plan, const T* h, Legendre<T>& work) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), lm_padded = (n_lm + W - 1) / W * W;
  for (int64_t c = 0; c < plan->n_channels; ++c)
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      T* rows = work.gradient + b * lm_padded;
      moment_gradient<T, L>(plan, h, work, c, b, rows);
      memset(rows + n_lm * W, 0, (lm_padded - n_lm) * W * sizeof(T));
      T* out = work.turned + (c * work.stride + b) * lm_padded;
      for (int first = 0; first < lm_padded; first += W) {
        Vec<T> square[W];
        for (int q = 0; q < W; ++q) square[q] = load<T>(rows + (first + q) * W);
        transpose<T>(square);
        for (int q = 0; q < W; ++q) store<T>(out + q * lm_padded + first, square[q]);
      }
    }
}

// V_lm = sum_b dE/dA_lm,b f_b into work.v; returns sum_lm Y_lm sum_b dE/dA_lm,b f'_b; both for a block of pairs.
template <typename T, int L, int first>
inline Vec<T> pull_back(const Plan* plan, int64_t block, Legendre<T>& work) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), lm_padded = (n_lm + W - 1) / W * W;
  constexpr int most = kSums / 2, chunks = (n_lm + most - 1) / most, size = (n_lm + chunks - 1) / chunks;
  if constexpr (first >= n_lm) {
    return all<T>(0);
  } else {
    constexpr int count = first + size <= n_lm ? size : n_lm - first;
    Vec<T> values[count], slopes[count];
#pragma GCC unroll 32
    for (int c = 0; c < count; ++c) values[c] = slopes[c] = all<T>(0);
    const T* weights = work.turned + work.channel[block] * work.stride * lm_padded + first;
    const T* f = work.f_lanes + block * work.stride * W;
    const T* d = work.slope_lanes + block * work.stride * W;
    for (int64_t b = 0; b < plan->f.n_filters; ++b, weights += lm_padded, f += W, d += W) {
      const Vec<T> value = load<T>(f), slope = load<T>(d);
#pragma GCC unroll 32
      for (int c = 0; c < count; ++c) {
        values[c] += value * weights[c];
        slopes[c] += slope * weights[c];
      }
    }
    const T* y = work.harmonics + (block * n_lm + first) * W;
    Vec<T> radial = all<T>(0);
#pragma GCC unroll 32
    for (int c = 0; c < count; ++c) {
      radial += slopes[c] * load<T>(y + c * W);
      store<T>(work.v + (first + c) * W, values[c]);
    }
    return radial + pull_back<T, L, first + count>(plan, block, work);
  }
}

// Add to what a block has in an array over pairs; zeros in padding.
template <typename T>
inline void add_to(T* values, const int64_t* source, int filled, Vec<T> more) {
  if (source[filled - 1] - source[0] == filled - 1) {
    T* first = values + source[0];
    const Vec<T> total = load_anywhere<T>(first) + more;
    memcpy(first, &total, sizeof total);
  } else {
    for (int q = 0; q < filled; ++q) values[source[q]] += more[q];
  }
}

// Add dE/dr at fixed direction, and dE/du (with a part along u that does not count), to the pairs of a block.
template <typename T>
inline void add_to_pairs(const Legendre<T>& work, int64_t block, Vec<T> radial, Vec<T> gx, Vec<T> gy, Vec<T> gz,
                         Pairs<T>& pairs) {
  const int64_t* source = work.source + block * Lanes<T>::W;
  const int filled = work.filled[block];
  const Vec<T> inverse = of_block<T>(pairs.inverse, source, filled, T(0));
  const Vec<T> x = gx * inverse, y = gy * inverse, z = gz * inverse;
  const Vec<T> along = x * of_block<T>(pairs.x, source, filled, T(0)) + y * of_block<T>(pairs.y, source, filled, T(0)) +
                       z * of_block<T>(pairs.z, source, filled, T(0));
  add_to<T>(pairs.radial, source, filled, radial - along);
  add_to<T>(pairs.gx, source, filled, x);
  add_to<T>(pairs.gy, source, filled, y);
  add_to<T>(pairs.gz, source, filled, z);
}

// Add the gradients of the three-body energy to those of the pairs.
template <typename T, int L>
inline void angular_gradients(const Plan* plan, Pairs<T>& pairs, const T* h, Legendre<T>& work) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  moment_gradients<T, L>(plan, h, work);
  for (int64_t block = 0; block < work.n_blocks; ++block) {
    Vec<T> radial = pull_back<T, L, 0>(plan, block, work);
    const T* selves = work.self_gradient + work.channel[block] * work.stride;
    const T* f = work.f_lanes + block * work.stride * W;
    const T* d = work.slope_lanes + block * work.stride * W;
    for (int64_t b = 0; b < plan->f.n_filters; ++b) radial += selves[b] * load<T>(f + b * W) * load<T>(d + b * W);
    Vec<T> gx, gy, gz;
    solid_gradient<T, L>(work.v, work.harmonics + block * n_lm * W, gx, gy, gz);
    add_to_pairs<T>(work, block, radial, gx, gy, gz, pairs);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
