// Terms that depend on distances alone: radial features, the pair term, the short-range repulsion.
#pragma once
#include "basis.h"

namespace snnp {
namespace SNNP_TARGET {

// Its memory must be zeros at first.
template <typename T>
struct Radial {
  Basis<T> basis;
  T* sums;        // per element of the neighbour (or for all): sum_a h_a of the coefficients, [Z, length]
  char* present;  // [Z]

  void allocate(Arena& arena, const Plan* plan) {
    basis.allocate(arena, plan->rho);
    sums = arena.take<T>(plan->n_elements * basis.length);
    present = arena.take<char>(plan->n_elements);
  }
};

// features[a] = sum_j rho_a(r_ij); rows beyond F are zero because the tables are padded with zeros.
template <typename T>
inline void radial_features(const Plan* plan, int64_t species, const Pairs<T>& pairs, T* features) {
  constexpr int W = Lanes<T>::W;
  const Table& rho = plan->rho;
  for (int64_t b = 0; b < rho.n_filters; b += W) {
    Vec<T> even = all<T>(0), odd = all<T>(0);
    for (int64_t p = 0; p < pairs.n; p += W) {
      const int n = static_cast<int>(pairs.n - p < W ? pairs.n - p : W);
      const Segments<T> segments = find_segments<T>(plan, rho, species, pairs.species + p, load<T>(pairs.r + p), n);
      for (int q = 0; q + 1 < n; q += 2) {
        even += value_of<T>(segments[q], rho.stride, b);
        odd += value_of<T>(segments[q + 1], rho.stride, b);
      }
      if (n % 2) even += value_of<T>(segments[n - 1], rho.stride, b);
    }
    even += odd;
    for (int q = 0; q < W && b + q < rho.n_filters; ++q) features[b + q] = even[q];
  }
}

// Add the slopes of a spline with B-spline coefficients `sums` to all pairs; those of several groups are behind one another.
template <typename T, int vectors>
inline void add_slopes(const Plan* plan, int64_t species, Pairs<T>& pairs, const Radial<T>& work) {
  constexpr int W = Lanes<T>::W;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  Grid<T> grid = grid_of<T>(plan, plan->rho, groups[0]);
  for (int64_t p = 0; p < pairs.n; p += W) {
    const int n = static_cast<int>(pairs.n - p < W ? pairs.n - p : W);
    Index<T> offset = {};
    if (plan->rho.n_groups > 1)
      for (int q = 0; q < n; ++q) {
        const int32_t s = pairs.species[p + q];
        set_lane<T>(plan, plan->rho, groups[s], q, grid);
        offset[q] = s * work.basis.length;
      }
    const auto counts = lane_numbers<T>() < n;
    const Weights<T> w = weights_at<T>(grid, counts ? load<T>(pairs.r + p) : all<T>(1));
    Vec<T> slope = all<T>(0);
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) slope += w.slope[m] * look_up<T, vectors>(work.sums, w.first + offset + m);
    store<T>(pairs.radial + p, load<T>(pairs.radial + p) + (counts ? slope : all<T>(0)));
  }
}

// radial[p] += sum_a h_a rho_a'(r): the filters are summed first, once per element, then evaluated once per pair.
template <typename T>
inline void radial_slopes(const Plan* plan, int64_t species, Pairs<T>& pairs, const T* h, Radial<T>& work) {
  const Table& rho = plan->rho;
  const int64_t z = rho.n_groups > 1 ? plan->n_elements : 1, length = work.basis.length;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  memset(work.present, 0, z);
  for (int64_t p = 0; p < pairs.n; ++p) work.present[z > 1 ? pairs.species[p] : 0] = 1;
  for (int64_t s = 0; s < z; ++s)
    if (work.present[s])
      sum_filters<T>(coefficients_of<T>(plan, rho, groups[s], work.basis), length, h, rho.n_filters, work.sums + s * length);
  const int64_t vectors = z * length / Lanes<T>::W;
  if (vectors == 1) add_slopes<T, 1>(plan, species, pairs, work);
  else if (vectors == 2) add_slopes<T, 2>(plan, species, pairs, work);
  else if (vectors == 3) add_slopes<T, 3>(plan, species, pairs, work);
  else if (vectors == 4) add_slopes<T, 4>(plan, species, pairs, work);
  else add_slopes<T, 0>(plan, species, pairs, work);
}

// Energy 1/2 sum_j phi(r_ij) and its slopes, scaled by the weight of the atom.
template <typename T>
inline double pair_term(const Plan* plan, int64_t species, Pairs<T>& pairs, T weight) {
  const Table& phi = plan->phi;
  const int32_t* groups = at<int32_t>(plan, plan->pair_group) + species * plan->n_elements;
  double energy = 0;
  for (int64_t p = 0; p < pairs.n; ++p) {
    const Segment<T> s = segment<T>(plan, phi, groups[pairs.species[p]], pairs.r[p]);
    const T c1 = s.row[phi.stride], c2 = s.row[2 * phi.stride], c3 = s.row[3 * phi.stride];
    energy += 0.5 * (s.row[0] + s.u * (c1 + s.u * (c2 + s.u * c3)));
    pairs.radial[p] += T(0.5) * weight * s.inverse * (c1 + s.u * (T(2) * c2 + s.u * (T(3) * c3)));
  }
  return energy;
}

// Ziegler, Biersack, Littmark (1985), switched off between inner and outer; see snnp/models/repulsion.py.
template <typename T>
inline double repulsion(const Plan* plan, int64_t species, Pairs<T>& pairs, T weight) {
  const int32_t* numbers = at<int32_t>(plan, plan->numbers);
  double energy = 0;
  for (int64_t p = 0; p < pairs.n; ++p) {
    if (!(pairs.r[p] < plan->repulsion_outer)) continue;
    const double r = pairs.r[p], zi = numbers[species], zj = numbers[pairs.species[p]];
    const double decay = (pow(zi, 0.23) + pow(zj, 0.23)) / plan->screening;
    double chi = 0, slope = 0;
    for (int k = 0; k < 4; ++k) {
      const double term = plan->amplitudes[k] * exp(-plan->decays[k] * decay * r);
      chi += term;
      slope -= plan->decays[k] * decay * term;
    }
    const double width = plan->repulsion_outer - plan->repulsion_inner;
    double t = (r - plan->repulsion_inner) / width;
    t = t < 0 ? 0 : (t > 1 ? 1 : t);
    const double step = 1 - t * t * t * (10 - 15 * t + 6 * t * t);
    const double step_slope = -30 * t * t * (1 - t) * (1 - t) / width;
    const double strength = 0.5 * plan->coulomb * zi * zj / r;
    energy += strength * chi * step;
    pairs.radial[p] += weight * T(strength * (slope * step + chi * (step_slope - step / r)));
  }
  return energy;
}

}  // namespace SNNP_TARGET
}  // namespace snnp
