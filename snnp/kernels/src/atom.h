// The neighbours of one atom as arrays over pairs, and what is accumulated on them.
#pragma once
#include <math.h>
#include <stddef.h>

#include "plan.h"
#include "simd.h"
#include "snnp_kernels.h"

namespace snnp {
namespace SNNP_TARGET {

constexpr double kShortest = 0.1;  // Angstrom; closer than this two atoms are one atom written twice

inline int64_t round_up(int64_t n, int64_t block) { return (n + block - 1) / block * block; }

// Hands out aligned pieces of one allocation.
struct Arena {
  char* memory;
  size_t used;
  template <typename X>
  X* take(int64_t count) {
    X* piece = memory ? reinterpret_cast<X*>(memory + used) : nullptr;
    used += round_up(count * static_cast<int64_t>(sizeof(X)), kPad);
    return piece;
  }
};

// n pairs within the cutoff, padded to whole vectors; padding has r = 1 and the direction z.
template <typename T>
struct Pairs {
  int64_t n;
  T *x, *y, *z, *r, *inverse;  // unit vectors, distance and its inverse
  T *radial, *gx, *gy, *gz;    // dE/dr along the pair, and the rest of dE/dr_ij
  int32_t *j, *species;

  void allocate(Arena& arena, int64_t capacity) {
    T** const arrays[] = {&x, &y, &z, &r, &inverse, &radial, &gx, &gy, &gz};
    for (T** array : arrays) *array = arena.take<T>(capacity + kPad);  // vectors may begin at any pair
    j = arena.take<int32_t>(capacity + kPad);
    species = arena.take<int32_t>(capacity + kPad);
  }
};

// Fill in `n..padded` and turn vectors into unit vectors.
template <typename T>
inline void normalise(Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W;
  const int64_t padded = round_up(pairs.n, W);
  for (int64_t p = pairs.n; p < padded; ++p) {
    pairs.x[p] = pairs.y[p] = 0;
    pairs.z[p] = 1;
    pairs.j[p] = pairs.species[p] = 0;
  }
  for (int64_t p = 0; p < padded; ++p) {
    T square = pairs.x[p] * pairs.x[p] + pairs.y[p] * pairs.y[p] + pairs.z[p] * pairs.z[p];
    pairs.r[p] = sizeof(T) == 4 ? T(sqrtf(float(square))) : T(sqrt(double(square)));
  }
  for (int64_t p = 0; p < padded; p += W) {
    Vec<T> inverse = T(1) / load<T>(pairs.r + p);
    store<T>(pairs.inverse + p, inverse);
    store<T>(pairs.x + p, load<T>(pairs.x + p) * inverse);
    store<T>(pairs.y + p, load<T>(pairs.y + p) * inverse);
    store<T>(pairs.z + p, load<T>(pairs.z + p) * inverse);
    T* const sums[] = {pairs.radial, pairs.gx, pairs.gy, pairs.gz};
    for (T* array : sums) store<T>(array + p, all<T>(0));
  }
}

constexpr double kNoShift[3] = {0, 0, 0};

// Report the shortest distance of atom i, or one that is not a number.
inline void report_overlap(const snnp_system& system, int64_t i, snnp_report* report) {
  double shortest = INFINITY;
  for (int64_t e = system.first[i]; e < system.first[i + 1]; ++e) {
    const int64_t j = system.neighbour[e];
    double square = 0;
    const double* shift = system.image ? system.images + 3 * static_cast<int64_t>(system.image[e]) : kNoShift;
    for (int a = 0; a < 3; ++a) {
      const double d = system.positions[3 * j + a] - system.positions[3 * i + a] + shift[a];
      square += d * d;
    }
    if (square >= shortest) continue;
    shortest = square == square ? square : -1;
    *report = {SNNP_OVERLAP, i, j, sqrt(square)};
  }
}

// Vectors to the neighbours of atom i within the cutoff; false if any is too short. Differences are formed in double: far from
// the origin float would lose digits.
template <typename T, bool shifted>
inline bool collect(const Plan* plan, const snnp_system& system, int64_t i, Pairs<T>& pairs) {
  const double xi = system.positions[3 * i], yi = system.positions[3 * i + 1], zi = system.positions[3 * i + 2];
  const int32_t* neighbour = system.neighbour + system.first[i];
  const int32_t* image = shifted ? system.image + system.first[i] : nullptr;
  const int64_t in_list = system.first[i + 1] - system.first[i];
  const double limit = plan->cutoff * plan->cutoff;
  int64_t n = 0;
#ifdef SNNP_COMPRESS
  constexpr int W = Lanes<T>::W;
  T *x = pairs.gx, *y = pairs.gy, *z = pairs.gz;  // for the time being
  for (int64_t e = 0; e < in_list; ++e) {
    const double* position = system.positions + 3 * static_cast<int64_t>(neighbour[e]);
    const double* shift = shifted ? system.images + 3 * static_cast<int64_t>(image[e]) : kNoShift;
    x[e] = T(position[0] - xi + shift[0]);
    y[e] = T(position[1] - yi + shift[1]);
    z[e] = T(position[2] - zi + shift[2]);
  }
  Mask short_ones = 0;
  for (int64_t e = 0; e < in_list; e += W) {
    const Vec<T> dx = load<T>(x + e), dy = load<T>(y + e), dz = load<T>(z + e);
    const Vec<T> square = dx * dx + dy * dy + dz * dz;
    const Index<T> counts = lane_numbers<T>() < static_cast<int>(in_list - e < W ? in_list - e : W);
    short_ones |= mask_of<T>(~(square > T(kShortest * kShortest)) & counts);  // not a number is short, too
    const Mask inside = mask_of<T>((square < T(limit)) & counts);
    compress<T>(dx, inside, pairs.x + n);
    compress<T>(dy, inside, pairs.y + n);
    compress<T>(dz, inside, pairs.z + n);
    compress_integers<T>(neighbour + e, inside, pairs.j + n);
    n += __builtin_popcount(inside);
  }
  const bool sound = !short_ones;
#else
  bool sound = true;
  for (int64_t e = 0; e < in_list; ++e) {
    const double* position = system.positions + 3 * static_cast<int64_t>(neighbour[e]);
    const double* shift = shifted ? system.images + 3 * static_cast<int64_t>(image[e]) : kNoShift;
    const double dx = position[0] - xi + shift[0], dy = position[1] - yi + shift[1], dz = position[2] - zi + shift[2];
    const double square = dx * dx + dy * dy + dz * dz;
    sound &= square > kShortest * kShortest;  // false for NaN, too
    pairs.x[n] = T(dx);
    pairs.y[n] = T(dy);
    pairs.z[n] = T(dz);
    pairs.j[n] = neighbour[e];
    n += square < limit;
  }
#endif
  pairs.n = n;
  return sound;
}

// Collect the neighbours of atom i.
template <typename T>
inline bool gather(const Plan* plan, const snnp_system& system, int64_t i, Pairs<T>& pairs, snnp_report* report) {
  const bool sound = system.image ? collect<T, true>(plan, system, i, pairs) : collect<T, false>(plan, system, i, pairs);
  if (!sound) {
    report_overlap(system, i, report);
    return false;
  }
  for (int64_t p = 0; p < pairs.n; ++p) pairs.species[p] = plan->n_elements > 1 ? system.species[pairs.j[p]] : 0;
  normalise(pairs);
  return true;
}

// Where splines have their intervals: the same for all lanes, or the grid of each lane's group.
template <typename T>
struct Grid {
  Vec<T> lower, inverse, count;
};

template <typename T>
inline Grid<T> grid_of(const Plan* plan, const Table& table, int64_t group) {
  return {all<T>(at<T>(plan, table.lower)[group]), all<T>(at<T>(plan, table.inverse)[group]),
          all<T>(T(at<int32_t>(plan, table.counts)[group]))};
}

template <typename T>
inline void set_lane(const Plan* plan, const Table& table, int64_t group, int q, Grid<T>& grid) {
  grid.lower[q] = at<T>(plan, table.lower)[group];
  grid.inverse[q] = at<T>(plan, table.inverse)[group];
  grid.count[q] = T(at<int32_t>(plan, table.counts)[group]);
}

// The polynomial of a distance: row of coefficients and local coordinate.
template <typename T>
struct Segment {
  const T* row;  // 4 rows of `stride` numbers
  T u, inverse;
};

template <typename T>
inline int64_t segment_index(const Plan* plan, const Table& table, int64_t group, T r, T& u, T& inverse) {
  inverse = at<T>(plan, table.inverse)[group];
  const T t = (r - at<T>(plan, table.lower)[group]) * inverse;
  const T n = T(at<int32_t>(plan, table.counts)[group]);
  // Truncation is the floor of what is not negative. u comes from t itself, which has the smaller rounding error.
  T above = t + T(1);
  above = above > T(0) ? above : T(0);
  above = above < n + T(1) ? above : n + T(1);
  const int32_t k = static_cast<int32_t>(above);
  u = t - T(k - 1);
  return group * table.n_segments + k;
}

template <typename T>
inline Segment<T> segment(const Plan* plan, const Table& table, int64_t group, T r) {
  Segment<T> found;
  const int64_t k = segment_index<T>(plan, table, group, r, found.u, found.inverse);
  found.row = at<T>(plan, table.coefficients) + k * 4 * table.stride;
  return found;
}

// Polynomials of W distances.
template <typename T>
struct Segments {
  const T* table;
  int64_t step;
  Index<T> number;
  Vec<T> u, inverse;
  Segment<T> operator[](int q) const { return {table + number[q] * step, u[q], inverse[q]}; }
};

// Those at the distances r of the first n lanes, whose neighbours are of the elements `kinds`.
template <typename T>
inline Segments<T> find_segments(const Plan* plan, const Table& table, int64_t species, const int32_t* kinds, Vec<T> r, int n) {
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  Grid<T> grid = grid_of<T>(plan, table, groups[0]);
  Index<T> start = Index<T>{} + typename Lanes<T>::Integer(groups[0] * table.n_segments);
  if (table.n_groups > 1)
    for (int q = 0; q < n; ++q) {
      set_lane<T>(plan, table, groups[kinds[q]], q, grid);
      start[q] = groups[kinds[q]] * table.n_segments;
    }
  // As in `segment_index`, for all lanes at once.
  const Vec<T> t = (r - grid.lower) * grid.inverse;
  const Vec<T> above = minimum<T>(maximum<T>(t + T(1), all<T>(0)), grid.count + T(1));
  const Index<T> k = __builtin_convertvector(above, Index<T>);
  const Vec<T> u = t - (__builtin_convertvector(k, Vec<T>) - T(1));
  return {at<T>(plan, table.coefficients), 4 * table.stride, start + k, u, grid.inverse};
}

template <typename T>
inline Vec<T> value_of(const Segment<T>& s, int64_t stride, int64_t b) {
  const T* c = s.row + b;
  return load<T>(c) + s.u * (load<T>(c + stride) + s.u * (load<T>(c + 2 * stride) + s.u * load<T>(c + 3 * stride)));
}

template <typename T>
inline Vec<T> slope_of(const Segment<T>& s, int64_t stride, int64_t b) {
  const T* c = s.row + b;
  const T two = T(2) * s.u, three = T(3) * s.u * s.u;
  return s.inverse * (load<T>(c + stride) + (two * load<T>(c + 2 * stride) + three * load<T>(c + 3 * stride)));
}

}  // namespace SNNP_TARGET
}  // namespace snnp
