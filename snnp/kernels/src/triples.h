// Three-body features as sums over pairs of neighbours, every function exactly its spline; see snnp/models/spline/three_body.py.
//
// With c = cos theta_jik, everything that the energy and its gradient need are five sums per pair and filter:
//   S_j = sum_k f_k g(c),  M_j = sum_k f_k g'(c) u_k (three components),  C_j = sum_k f_k g'(c) c,
//   G = 1/2 sum_j f_j S_j,   dE/dr_ij = h f'_j S_j u_j + h f_j (M_j - C_j u_j) / r_j.
// They do not contain h = dE/dG, so that one pass over the triples suffices.
#pragma once
#include "atom.h"

namespace snnp {
namespace SNNP_TARGET {

constexpr int kSumsPerPair = 5;

template <typename T>
struct Triples {
  int64_t stride, n;        // numbers in a row of filters; pairs within the reach of f
  int64_t* source;          // [n] index of the pair
  T *x, *y, *z;             // [n padded]
  T *f, *slope;             // [n, stride], or [F, n padded] where filters are few
  T *sums;                  // [5, n, stride], or [F, 5, n]
  T *cosine, *lower, *inverse, *count, *base;  // [n padded], per second neighbour of one first
  int64_t padded;

  void allocate(Arena& arena, const Plan* plan, int64_t capacity) {
    stride = plan->f.stride;
    const int64_t rows = round_up(capacity, kPad);
    source = arena.take<int64_t>(rows);
    T** const coordinates[] = {&x, &y, &z, &cosine, &lower, &inverse, &count, &base};
    for (T** array : coordinates) *array = arena.take<T>(rows);
    T** const functions[] = {&f, &slope};
    for (T** array : functions) *array = arena.take<T>(rows * stride);
    sums = arena.take<T>(kSumsPerPair * rows * stride);
  }
};

// With few filters, lanes are neighbours; otherwise filters.
template <typename T>
inline bool lanes_are_neighbours(const Plan* plan) {
  return 4 * plan->f.n_filters <= Lanes<T>::W;
}

template <typename T>
inline void select_pairs(const Plan* plan, int64_t species, const Pairs<T>& pairs, Triples<T>& work) {
  constexpr int W = Lanes<T>::W;
  const T reach = T(plan->angular_cutoff);
  int64_t n = 0;
  for (int64_t p = 0; p < pairs.n; ++p) {
    work.source[n] = p;
    n += pairs.r[p] < reach;
  }
  work.n = n;
  work.padded = round_up(n, W);
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  const bool turned = lanes_are_neighbours<T>(plan);
  if (turned) memset(work.f, 0, plan->f.n_filters * work.padded * sizeof(T));
  for (int64_t a = 0; a < work.padded; ++a) {
    const int64_t p = a < n ? work.source[a] : -1;
    work.x[a] = p < 0 ? T(0) : pairs.x[p];
    work.y[a] = p < 0 ? T(0) : pairs.y[p];
    work.z[a] = p < 0 ? T(0) : pairs.z[p];
    if (p < 0) continue;
    const Segment<T> s = segment<T>(plan, plan->f, groups[pairs.species[p]], pairs.r[p]);
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      const Vec<T> value = value_of<T>(s, work.stride, b), slope = slope_of<T>(s, work.stride, b);
      if (!turned) {
        store<T>(work.f + a * work.stride + b, value);
        store<T>(work.slope + a * work.stride + b, slope);
      } else {
        for (int64_t q = 0; q < plan->f.n_filters; ++q) {
          work.f[q * work.padded + a] = value[q];
          work.slope[q * work.padded + a] = slope[q];
        }
      }
    }
  }
}

// Grids of g between neighbour `first` and every other; `base` is the row before the first segment.
template <typename T>
inline void angle_grids(const Plan* plan, const Pairs<T>& pairs, int64_t first, Triples<T>& work) {
  const Table& g = plan->g;
  if (g.n_groups == 1 && first > 0) return;
  const int32_t* groups = at<int32_t>(plan, plan->pair_group) + pairs.species[work.source[first]] * plan->n_elements;
  for (int64_t a = 0; a < work.padded; ++a) {
    const int64_t group = g.n_groups == 1 || a >= work.n ? 0 : groups[pairs.species[work.source[a]]];
    work.lower[a] = at<T>(plan, g.lower)[group];
    work.inverse[a] = at<T>(plan, g.inverse)[group];
    work.count[a] = T(at<int32_t>(plan, g.counts)[group] + 1);
    work.base[a] = T(group * g.n_segments);
  }
}

// Lanes are neighbours k: all k for each j, with f_j set to zero meanwhile to leave out k = j.
template <typename T>
inline void sum_over_neighbours(const Plan* plan, const Pairs<T>& pairs, Triples<T>& work) {
  constexpr int W = Lanes<T>::W;
  const Table& g = plan->g;
  for (int64_t j = 0; j < work.n; ++j) {
    angle_grids(plan, pairs, j, work);
    for (int64_t b = 0; b < plan->f.n_filters; ++b) {
      const T* table = at<T>(plan, g.coefficients) + b;
      T* f = work.f + b * work.padded;
      const T own = f[j];
      f[j] = 0;
      Vec<T> s = all<T>(0), mx = s, my = s, mz = s, c = s;
      for (int64_t k = 0; k < work.padded; k += W) {
        const Vec<T> x = load<T>(work.x + k), y = load<T>(work.y + k), z = load<T>(work.z + k);
        const Vec<T> cosine = work.x[j] * x + work.y[j] * y + work.z[j] * z;
        const Vec<T> inverse = load<T>(work.inverse + k);
        const Vec<T> t = (cosine - load<T>(work.lower + k)) * inverse;
        const Vec<T> above = minimum<T>(maximum<T>(t + T(1), all<T>(0)), load<T>(work.count + k));
        const auto row = __builtin_convertvector(above, typename Lanes<T>::I);
        const Vec<T> u = t + T(1) - __builtin_convertvector(row, Vec<T>);
        const auto base = __builtin_convertvector(load<T>(work.base + k), typename Lanes<T>::I);
        const auto start = (row + base) * (4 * int32_t(g.stride));
        const Vec<T> c0 = gather<T>(table, start), c1 = gather<T>(table + g.stride, start);
        const Vec<T> c2 = gather<T>(table + 2 * g.stride, start), c3 = gather<T>(table + 3 * g.stride, start);
        const Vec<T> fk = load<T>(f + k);
        s += fk * (c0 + u * (c1 + u * (c2 + u * c3)));
        const Vec<T> turn = fk * inverse * (c1 + u * (T(2) * c2 + u * (T(3) * c3)));
        mx += turn * x;
        my += turn * y;
        mz += turn * z;
        c += turn * cosine;
      }
      f[j] = own;
      T* out = work.sums + b * kSumsPerPair * work.padded + j;
      const Vec<T> totals[kSumsPerPair] = {s, mx, my, mz, c};
      for (int m = 0; m < kSumsPerPair; ++m) out[m * work.padded] = sum<T>(totals[m]);
    }
  }
}

// Lanes are filters: every pair j < k adds to both.
template <typename T>
inline void sum_over_filters(const Plan* plan, const Pairs<T>& pairs, Triples<T>& work) {
  constexpr int W = Lanes<T>::W;
  const Table& g = plan->g;
  const int64_t plane = work.n * work.stride;
  memset(work.sums, 0, kSumsPerPair * plane * sizeof(T));
  for (int64_t j = 0; j < work.n; ++j) {
    angle_grids(plan, pairs, j, work);
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      const Vec<T> fj = load<T>(work.f + j * work.stride + b);
      T* mine = work.sums + j * work.stride + b;
      Vec<T> s = load<T>(mine), mx = load<T>(mine + plane), my = load<T>(mine + 2 * plane);
      Vec<T> mz = load<T>(mine + 3 * plane), c = load<T>(mine + 4 * plane);
      for (int64_t k = j + 1; k < work.n; ++k) {
        const T cosine = work.x[j] * work.x[k] + work.y[j] * work.y[k] + work.z[j] * work.z[k];
        const T t = (cosine - work.lower[k]) * work.inverse[k];
        T above = t + T(1);
        above = above > T(0) ? above : T(0);
        above = above < work.count[k] ? above : work.count[k];
        const int32_t row = static_cast<int32_t>(above);
        Segment<T> found = {at<T>(plan, g.coefficients) + (static_cast<int64_t>(work.base[k]) + row) * 4 * g.stride,
                            t - T(row - 1), work.inverse[k]};
        const Vec<T> value = value_of<T>(found, g.stride, b), slope = slope_of<T>(found, g.stride, b);
        const Vec<T> fk = load<T>(work.f + k * work.stride + b), turn = fk * slope, other = fj * slope;
        T* theirs = work.sums + k * work.stride + b;
        s += fk * value;
        mx += turn * work.x[k];
        my += turn * work.y[k];
        mz += turn * work.z[k];
        c += turn * cosine;
        store<T>(theirs, load<T>(theirs) + fj * value);
        store<T>(theirs + plane, load<T>(theirs + plane) + other * work.x[j]);
        store<T>(theirs + 2 * plane, load<T>(theirs + 2 * plane) + other * work.y[j]);
        store<T>(theirs + 3 * plane, load<T>(theirs + 3 * plane) + other * work.z[j]);
        store<T>(theirs + 4 * plane, load<T>(theirs + 4 * plane) + other * cosine);
      }
      const Vec<T> totals[kSumsPerPair] = {s, mx, my, mz, c};
      for (int m = 0; m < kSumsPerPair; ++m) store<T>(mine + m * plane, totals[m]);
    }
  }
}

template <typename T>
inline void triple_features(const Plan* plan, int64_t species, const Pairs<T>& pairs, Triples<T>& work, T* features) {
  constexpr int W = Lanes<T>::W;
  select_pairs(plan, species, pairs, work);
  if (lanes_are_neighbours<T>(plan)) {
    sum_over_neighbours(plan, pairs, work);
    for (int64_t b = 0; b < plan->f.n_filters; ++b) {
      T total = 0;
      const T* s = work.sums + b * kSumsPerPair * work.padded;
      for (int64_t a = 0; a < work.n; ++a) total += work.f[b * work.padded + a] * s[a];
      features[b] = T(0.5) * total;
    }
    return;
  }
  sum_over_filters(plan, pairs, work);
  for (int64_t b = 0; b < plan->f.n_filters; b += W) {
    Vec<T> total = all<T>(0);
    for (int64_t a = 0; a < work.n; ++a)
      total += load<T>(work.f + a * work.stride + b) * load<T>(work.sums + a * work.stride + b);
    for (int q = 0; q < W && b + q < plan->f.n_filters; ++q) features[b + q] = T(0.5) * total[q];
  }
}

// Add one filter's (or one vector of filters') share, summed over lanes, to a pair.
template <typename T>
inline void add_to_pair(Pairs<T>& pairs, int64_t p, T radial, T mx, T my, T mz, T c) {
  const T inverse = pairs.inverse[p];
  pairs.radial[p] += radial - c * inverse;
  pairs.gx[p] += mx * inverse;
  pairs.gy[p] += my * inverse;
  pairs.gz[p] += mz * inverse;
}

template <typename T>
inline void triple_gradients(const Plan* plan, Pairs<T>& pairs, const T* h, Triples<T>& work) {
  constexpr int W = Lanes<T>::W;
  const bool turned = lanes_are_neighbours<T>(plan);
  const int64_t plane = work.n * work.stride;
  for (int64_t a = 0; a < work.n; ++a) {
    const int64_t p = work.source[a];
    if (turned) {
      for (int64_t b = 0; b < plan->f.n_filters; ++b) {
        const T* s = work.sums + b * kSumsPerPair * work.padded + a;
        const T f = h[b] * work.f[b * work.padded + a], slope = h[b] * work.slope[b * work.padded + a];
        add_to_pair<T>(pairs, p, slope * s[0], f * s[work.padded], f * s[2 * work.padded], f * s[3 * work.padded],
                       f * s[4 * work.padded]);
      }
      continue;
    }
    Vec<T> totals[kSumsPerPair];
    for (int m = 0; m < kSumsPerPair; ++m) totals[m] = all<T>(0);
    for (int64_t b = 0; b < plan->f.n_filters; b += W) {
      const T* s = work.sums + a * work.stride + b;
      const Vec<T> f = load<T>(h + b) * load<T>(work.f + a * work.stride + b);
      totals[0] += load<T>(h + b) * load<T>(work.slope + a * work.stride + b) * load<T>(s);
      for (int m = 1; m < kSumsPerPair; ++m) totals[m] += f * load<T>(s + m * plane);
    }
    add_to_pair<T>(pairs, p, sum<T>(totals[0]), sum<T>(totals[1]), sum<T>(totals[2]), sum<T>(totals[3]),
                   sum<T>(totals[4]));
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
