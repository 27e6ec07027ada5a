// Terms that depend on distances alone: radial features, the pair term, the short-range repulsion.
#pragma once
#include "atom.h"

namespace snnp {
namespace SNNP_TARGET {

template <typename T>
struct Radial {
  T* effective;  // per element of the neighbour: sum_a h_a of the slope polynomials, [Z, slopes_stride]
  char* present; // [Z]

  void allocate(Arena& arena, const Plan* plan) {
    effective = arena.take<T>(plan->n_elements * plan->rho.slopes_stride);
    present = arena.take<char>(plan->n_elements);
  }
};

// features[a] = sum_j rho_a(r_ij); rows beyond F are zero because the tables are padded with zeros.
template <typename T>
inline void radial_features(const Plan* plan, int64_t species, const Pairs<T>& pairs, T* features) {
  constexpr int W = Lanes<T>::W;
  const Table& rho = plan->rho;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * plan->n_elements;
  for (int64_t b = 0; b < rho.n_filters; b += W) {
    Vec<T> even = all<T>(0), odd = all<T>(0);
    int64_t p = 0;
    for (; p + 1 < pairs.n; p += 2) {
      even += value_of<T>(segment<T>(plan, rho, groups[pairs.species[p]], pairs.r[p]), rho.stride, b);
      odd += value_of<T>(segment<T>(plan, rho, groups[pairs.species[p + 1]], pairs.r[p + 1]), rho.stride, b);
    }
    if (p < pairs.n) even += value_of<T>(segment<T>(plan, rho, groups[pairs.species[p]], pairs.r[p]), rho.stride, b);
    even += odd;
    for (int q = 0; q < W && b + q < rho.n_filters; ++q) features[b + q] = even[q];
  }
}

// radial[p] += sum_a h_a rho_a'(r): the filters are summed first, once per element, then evaluated once per pair.
template <typename T>
inline void radial_slopes(const Plan* plan, int64_t species, Pairs<T>& pairs, const T* h, Radial<T>& work) {
  constexpr int W = Lanes<T>::W;
  const Table& rho = plan->rho;
  const int64_t z = plan->n_elements, stride = rho.slopes_stride;
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + species * z;
  memset(work.present, 0, z);
  for (int64_t p = 0; p < pairs.n; ++p) work.present[pairs.species[p]] = 1;
  for (int64_t s = 0; s < z; ++s) {
    if (!work.present[s]) continue;
    const T* slopes = at<T>(plan, rho.slopes) + groups[s] * rho.n_filters * stride;
    T* out = work.effective + s * stride;
    for (int64_t k = 0; k < stride; k += W) {
      Vec<T> even = all<T>(0), odd = all<T>(0);
      int64_t a = 0;
      for (; a + 1 < rho.n_filters; a += 2) {
        even += h[a] * load<T>(slopes + a * stride + k);
        odd += h[a + 1] * load<T>(slopes + (a + 1) * stride + k);
      }
      if (a < rho.n_filters) even += h[a] * load<T>(slopes + a * stride + k);
      store<T>(out + k, even + odd);
    }
  }
  for (int64_t p = 0; p < pairs.n; ++p) {
    T u, inverse;
    const int64_t s = pairs.species[p], group = groups[s];
    const int64_t k = segment_index<T>(plan, rho, group, pairs.r[p], u, inverse) - group * rho.n_segments;
    const T* c = work.effective + s * stride + 4 * k;
    pairs.radial[p] += c[0] + u * (c[1] + u * c[2]);
  }
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
