// Training over the atoms of a range, compiled once per instruction set like kernel.cpp.
#include <stdlib.h>

#include "kernel.h"
#include "radial.h"
#include "train.h"

namespace snnp {
namespace SNNP_TARGET {
namespace {

template <typename T>
struct Workspace {
  Pairs<T> pairs;
  Radial<T> radial;
  Legendre<T> legendre;
  Tangents<T> tangents;
  T* zeros;  // in place of h or A' where only energies are trained

  void allocate(Arena& arena, const Plan* plan, int64_t capacity) {
    const int64_t rows = round_up(capacity + 1, kPad), n_lm = (plan->degree + 1) * (plan->degree + 1);
    pairs.allocate(arena, rows);
    radial.allocate(arena, plan);
    if (plan->evaluator == kLegendre) legendre.allocate(arena, plan, rows);
    tangents.allocate(arena, plan, rows);
    zeros = arena.take<T>(plan->n_channels * n_lm * plan->f.stride + plan->feature_stride);
  }
};

template <typename T>
inline void load_pairs(const snnp_batch& batch, int64_t a, Pairs<T>& pairs) {
  const int64_t row = batch.rows[a], first = batch.first[row], n = batch.first[row + 1] - first;
  const T *x = static_cast<const T*>(batch.x) + first, *y = static_cast<const T*>(batch.y) + first;
  const T *z = static_cast<const T*>(batch.z) + first, *r = static_cast<const T*>(batch.r) + first;
  pairs.n = n;
  for (int64_t p = 0; p < n; ++p) {
    pairs.x[p] = x[p];
    pairs.y[p] = y[p];
    pairs.z[p] = z[p];
    pairs.r[p] = r[p];
    pairs.inverse[p] = T(1) / r[p];
    pairs.radial[p] = pairs.gx[p] = pairs.gy[p] = pairs.gz[p] = 0;
    pairs.j[p] = batch.neighbour[first + p] - static_cast<int32_t>(batch.shift[a]);
    pairs.species[p] = batch.species[batch.neighbour[first + p]];
  }
}

// q_ij = p_i - p_j + s^T r_ij, and its part along the pair.
template <typename T>
inline void load_directions(const TrainingPart& part, int64_t a, const Pairs<T>& pairs, Tangents<T>& dot) {
  const double *p = part.arrays->p, *s = part.arrays->s + 9 * part.batch->owner[a], *mine = p + 3 * a;
  for (int64_t k = 0; k < pairs.n; ++k) {
    const double *other = p + 3 * static_cast<int64_t>(pairs.j[k]);
    const double r[3] = {pairs.r[k] * double(pairs.x[k]), pairs.r[k] * double(pairs.y[k]), pairs.r[k] * double(pairs.z[k])};
    double q[3];
    for (int b = 0; b < 3; ++b) q[b] = mine[b] - other[b] + s[b] * r[0] + s[3 + b] * r[1] + s[6 + b] * r[2];
    dot.qx[k] = T(q[0]);
    dot.qy[k] = T(q[1]);
    dot.qz[k] = T(q[2]);
    dot.rate[k] = dot.qx[k] * pairs.x[k] + dot.qy[k] * pairs.y[k] + dot.qz[k] * pairs.z[k];
  }
}

template <typename T>
inline void add_forces(const TrainingPart& part, int64_t a, const Pairs<T>& pairs) {
  double* virial = part.virial + 9 * part.batch->owner[a];
  double total[3] = {0, 0, 0}, v[9] = {0, 0, 0, 0, 0, 0, 0, 0, 0};
  for (int64_t p = 0; p < pairs.n; ++p) {
    const T u[3] = {pairs.x[p], pairs.y[p], pairs.z[p]}, rest[3] = {pairs.gx[p], pairs.gy[p], pairs.gz[p]};
    double* force = part.forces + 3 * static_cast<int64_t>(pairs.j[p]);
    for (int b = 0; b < 3; ++b) {
      const double g = double(rest[b] + pairs.radial[p] * u[b]);
      force[b] -= g;
      total[b] += g;
      for (int c = 0; c < 3; ++c) v[3 * c + b] += double(pairs.r[p] * u[c]) * g;
    }
  }
  for (int b = 0; b < 3; ++b) part.forces[3 * a + b] += total[b];
  for (int b = 0; b < 9; ++b) virial[b] += v[b];
}

template <typename T, int L>
void angular(const Plan* plan, const TrainingPart& part, int64_t a, int64_t species, Workspace<T>& work) {
  constexpr int64_t n_lm = (L + 1) * (L + 1);
  const snnp_training& arrays = *part.arrays;
  const int64_t size = plan->n_channels * n_lm * plan->f.stride, n_radial = plan->rho.n_filters, n = plan->f.n_filters;
  const int64_t row = a * plan->feature_stride + n_radial;
  T* moments = static_cast<T*>(arrays.moments) + a * size;
  Legendre<T>& legendre = work.legendre;
  Tangents<T>& dot = work.tangents;
  legendre.moments = moments;
  if (part.task == SNNP_FEATURES) {
    angular_features<T, L, false>(plan, species, work.pairs, legendre, static_cast<T*>(arrays.features) + row);
    return;
  }
  make_blocks(plan, work.pairs, legendre);
  memset(legendre.selves, 0, plan->n_channels * plan->f.stride * sizeof(T));
  for (int64_t block = 0; block < legendre.n_blocks; ++block) {
    if (part.task == SNNP_FORCES) {
      fill_block<T, L, false, true>(plan, species, work.pairs, block, legendre);
    } else {
      fill_block<T, L, true, false>(plan, species, work.pairs, block, legendre);
    }
  }
  if (arrays.h) memcpy(dot.h, static_cast<const T*>(arrays.h) + row, n * sizeof(T));
  if (part.task == SNNP_FORCES) {
    angular_gradients<T, L>(plan, work.pairs, dot.h, legendre);
  } else if (part.task == SNNP_TANGENTS) {
    T* moments_dot = static_cast<T*>(arrays.moments_dot) + a * size;
    angular_tangents<T, L>(plan, species, work.pairs, legendre, dot, moments_dot, static_cast<T*>(arrays.features_dot) + row);
  } else {
    memcpy(dot.g, static_cast<const T*>(arrays.g) + row, n * sizeof(T));
    memset(dot.selves, 0, plan->n_channels * plan->f.stride * sizeof(T));
    for (int64_t block = 0; block < legendre.n_blocks; ++block)
      fill_tangents<T, L>(plan, species, work.pairs, block, legendre, dot);
    const T* moments_dot = arrays.moments_dot ? static_cast<const T*>(arrays.moments_dot) + a * size : work.zeros;
    angle_gradients<T, L>(plan, legendre, dot, moments_dot, static_cast<T*>(part.legendre), static_cast<T*>(part.at_one));
    function_gradients<T, L>(plan, species, work.pairs, legendre, dot, static_cast<T*>(part.f));
  }
}

template <typename T>
using Angular = void (*)(const Plan*, const TrainingPart&, int64_t, int64_t, Workspace<T>&);
template <typename T>
constexpr Angular<T> angular_by_degree[kMaxDegree + 1] = {
    angular<T, 0>, angular<T, 1>, angular<T, 2>, angular<T, 3>, angular<T, 4>,
    angular<T, 5>, angular<T, 6>, angular<T, 7>, angular<T, 8>};

template <typename T>
void radial(const Plan* plan, const TrainingPart& part, int64_t a, int64_t species, Workspace<T>& work) {
  const snnp_training& arrays = *part.arrays;
  const int64_t row = a * plan->feature_stride;
  const T* h = arrays.h ? static_cast<const T*>(arrays.h) + row : work.zeros;
  if (part.task == SNNP_FEATURES)
    radial_features<T>(plan, species, work.pairs, static_cast<T*>(arrays.features) + row);
  else if (part.task == SNNP_FORCES)
    radial_slopes<T>(plan, species, work.pairs, h, work.radial);
  else if (part.task == SNNP_TANGENTS)
    radial_tangents<T>(plan, species, work.pairs, work.tangents, static_cast<T*>(arrays.features_dot) + row);
  else
    radial_gradients<T>(plan, species, work.pairs, work.tangents, static_cast<const T*>(arrays.g) + row, h,
                        static_cast<T*>(part.rho));
}

template <typename T>
void train_atoms(const Plan* plan, const TrainingPart& part, snnp_report* report) {
  int64_t capacity = 0;
  for (int64_t a = part.begin; a < part.end; ++a) {
    const int64_t row = part.batch->rows[a], n = part.batch->first[row + 1] - part.batch->first[row];
    capacity = n > capacity ? n : capacity;
  }
  Workspace<T> work;
  Arena arena = {nullptr, 0};
  work.allocate(arena, plan, capacity);
  void* memory = calloc(arena.used + kPad, 1);
  if (!memory) {
    report->status = SNNP_NO_MEMORY;
    return;
  }
  arena = {reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(memory), kPad)), 0};
  work.allocate(arena, plan, capacity);
  const bool moves = part.arrays->p && (part.task == SNNP_TANGENTS || part.task == SNNP_GRADIENTS);
  for (int64_t a = part.begin; a < part.end; ++a) {
    const int64_t species = part.batch->species[part.batch->rows[a]];
    load_pairs<T>(*part.batch, a, work.pairs);
    if (moves) load_directions<T>(part, a, work.pairs, work.tangents);
    if (plan->rho.n_filters) radial<T>(plan, part, a, species, work);
    if (plan->evaluator == kLegendre) angular_by_degree<T>[plan->degree](plan, part, a, species, work);
    if (part.task == SNNP_FORCES) add_forces<T>(part, a, work.pairs);
  }
  free(memory);
}

}  // namespace

void train_part(const Plan* plan, const TrainingPart& part, snnp_report* report) {
  if (plan->real_size == 4) train_atoms<float>(plan, part, report);
  else train_atoms<double>(plan, part, report);
}

}  // namespace SNNP_TARGET
}  // namespace snnp
