// All atoms of a range, compiled once per instruction set (SNNP_TARGET, SNNP_BYTES given by the build).
#include <stdlib.h>

#include "forces.h"
#include "kernel.h"
#include "legendre.h"
#include "radial.h"
#include "readout.h"
#include "triples.h"

namespace snnp {
namespace SNNP_TARGET {

namespace {

template <typename T>
struct Workspace {
  Pairs<T> pairs;
  Radial<T> radial;
  Legendre<T> legendre;
  Reduced<T> reduced;
  Triples<T> triples;
  Readout<T> readout;
  T *features, *h, *h_angular;
  T *head_h, *common;  // of heads: dE/dfeatures [M, feature_stride], and slopes of what all of them share
  bool reduces;  // how the forces of the atom at work are found, see forces.h

  void allocate(Arena& arena, const Plan* plan, const snnp_heads* heads, int64_t capacity) {
    const int64_t rows = round_up(capacity + 1, kPad);
    pairs.allocate(arena, rows);
    radial.allocate(arena, plan);
    if (plan->evaluator == kLegendre) {
      legendre.allocate(arena, plan, rows);
      reduced.allocate(arena, plan);
    }
    if (plan->evaluator == kSpline) triples.allocate(arena, plan, rows);
    const void* own = heads && heads->joint ? heads->joint : plan;
    const bool apart = heads && (heads->forces || !heads->joint);
    readout.allocate(arena, apart ? heads->plans : &own, apart ? heads->n_heads : 1);
    features = arena.take<T>(plan->feature_stride);
    h = arena.take<T>(plan->feature_stride);
    h_angular = arena.take<T>(plan->f.stride);
    head_h = arena.take<T>(heads ? heads->n_heads * round_up(plan->feature_stride, kPad) : 0);
    common = arena.take<T>(heads ? rows + kPad : 0);
  }
};

template <typename T>
using Angular = void (*)(const Plan*, int64_t, Workspace<T>&, T*);

template <typename T>
struct ByDegree {
  Angular<T> features[kMaxDegree + 1];
  Angular<T> gradients[kMaxDegree + 1];
};

template <typename T, int L>
void features(const Plan* plan, int64_t species, Workspace<T>& work, T* out) {
  make_blocks(plan, work.pairs, work.legendre);
  work.reduces = reduction_pays<T>(plan, species, work.pairs, work.legendre, work.reduced);
  if (work.reduces) features_of_blocks<T, L, false>(plan, species, work.pairs, work.legendre, out);
  else features_of_blocks<T, L, true>(plan, species, work.pairs, work.legendre, out);
}

template <typename T, int L>
void gradients(const Plan* plan, int64_t species, Workspace<T>& work, T* h) {
  if (work.reduces) reduced_gradients<T, L>(plan, species, work.pairs, h, work.legendre, work.reduced);
  else angular_gradients<T, L>(plan, work.pairs, h, work.legendre);
}

#define SNNP_EACH_DEGREE(F) {F<T, 0>, F<T, 1>, F<T, 2>, F<T, 3>, F<T, 4>, F<T, 5>, F<T, 6>, F<T, 7>, F<T, 8>}
template <typename T>
constexpr ByDegree<T> by_degree = {SNNP_EACH_DEGREE(features), SNNP_EACH_DEGREE(gradients)};

// Hand the gradients of the pairs of atom i to forces and virial.
template <typename T>
inline void scatter(const snnp_system& system, int64_t i, Pairs<T>& pairs, double* forces, double* virial) {
  constexpr int W = Lanes<T>::W;
  Vec<T> v[6], total[3];
  for (Vec<T>& x : v) x = all<T>(0);
  for (Vec<T>& x : total) x = all<T>(0);
  for (int64_t p = 0; p < pairs.n; p += W) {
    const Vec<T> radial = load<T>(pairs.radial + p), r = load<T>(pairs.r + p);
    const Vec<T> ux = load<T>(pairs.x + p), uy = load<T>(pairs.y + p), uz = load<T>(pairs.z + p);
    const Vec<T> gx = load<T>(pairs.gx + p) + radial * ux, gy = load<T>(pairs.gy + p) + radial * uy;
    const Vec<T> gz = load<T>(pairs.gz + p) + radial * uz;
    store<T>(pairs.gx + p, gx);
    store<T>(pairs.gy + p, gy);
    store<T>(pairs.gz + p, gz);
    total[0] += gx, total[1] += gy, total[2] += gz;
    const Vec<T> x = r * ux, y = r * uy, z = r * uz;
    v[0] += x * gx, v[1] += y * gy, v[2] += z * gz, v[3] += y * gz, v[4] += x * gz, v[5] += x * gy;
  }
  for (int64_t p = 0; p < pairs.n; ++p) {
    double* force = forces + 3 * static_cast<int64_t>(pairs.j[p]);
    force[0] -= double(pairs.gx[p]);
    force[1] -= double(pairs.gy[p]);
    force[2] -= double(pairs.gz[p]);
  }
  for (int a = 0; a < 3; ++a) forces[3 * i + a] += double(sum<T>(total[a]));
  double* out = virial + 6 * (system.structure ? system.structure[i] : 0);
  for (int a = 0; a < 6; ++a) out[a] += double(sum<T>(v[a]));
}

// The virial of every neighbour of an atom whose gradients `scatter` has completed: r_ij (x) dE_i/dr_ij belongs to atom j, which
// is what the heat flux of a many-body potential asks for.
template <typename T>
void scatter_virials(const Pairs<T>& pairs, double* atom_virials) {
  for (int64_t p = 0; p < pairs.n; ++p) {
    const double r = double(pairs.r[p]);
    const double vector[3] = {r * double(pairs.x[p]), r * double(pairs.y[p]), r * double(pairs.z[p])};
    const double gradient[3] = {double(pairs.gx[p]), double(pairs.gy[p]), double(pairs.gz[p])};
    double* out = atom_virials + 9 * static_cast<int64_t>(pairs.j[p]);
    for (int a = 0; a < 3; ++a)
      for (int b = 0; b < 3; ++b) out[3 * a + b] += vector[a] * gradient[b];
  }
}

// Features of an atom.
template <typename T>
inline void encode(const Plan* plan, int64_t species, Workspace<T>& work) {
  const int64_t n_radial = plan->rho.n_filters;
  if (n_radial) radial_features<T>(plan, species, work.pairs, work.features);
  T* angular = work.features + n_radial;
  if (plan->evaluator == kLegendre) by_degree<T>.features[plan->degree](plan, species, work, angular);
  if (plan->evaluator == kSpline) triple_features<T>(plan, species, work.pairs, work.triples, angular);
}

// From dE/dfeatures in h to the gradients of the pairs, which are added to what is there.
template <typename T>
inline void way_back(const Plan* plan, int64_t species, const T* h, Workspace<T>& work) {
  const int64_t n_radial = plan->rho.n_filters;
  if (n_radial) radial_slopes<T>(plan, species, work.pairs, h, work.radial);
  if (plan->evaluator == kNone) return;
  memcpy(work.h_angular, h + n_radial, plan->f.n_filters * sizeof(T));
  if (plan->evaluator == kLegendre) by_degree<T>.gradients[plan->degree](plan, species, work, work.h_angular);
  else triple_gradients<T>(plan, work.pairs, work.h_angular, work.triples);
}

template <typename T>
void atom(const Plan* plan, const snnp_system& system, int64_t i, Workspace<T>& work, const Part& part) {
  const int64_t species = system.species[i];
  Pairs<T>& pairs = work.pairs;
  encode<T>(plan, species, work);
  double energy = read_out<T>(plan, species, work.features, work.readout, work.h);
  const T weight = system.weights ? T(system.weights[i]) : T(1);
  if (system.weights)
    for (int64_t a = 0; a < plan->n_features; ++a) work.h[a] *= weight;
  if (plan->phi.n_groups) energy += pair_term<T>(plan, species, pairs, weight);
  if (plan->repulsion_outer > 0) energy += repulsion<T>(plan, species, pairs, weight);
  system.energies[i] = energy + at<double>(plan, plan->reference)[species];
  if (!part.forces) return;
  way_back<T>(plan, species, work.h, work);
  scatter<T>(system, i, pairs, part.forces, part.virial);
  if (part.atom_virials) scatter_virials<T>(pairs, part.atom_virials);
}

// As `atom`, of heads that are one network.
template <typename T>
void atom_of_joint(const snnp_system& system, int64_t i, Workspace<T>& work, const Part& part) {
  const snnp_heads& heads = *part.heads;
  const int64_t species = system.species[i], n_heads = heads.n_heads, stride = round_up(n_heads, kPad / sizeof(T));
  const Plan* joint = static_cast<const Plan*>(heads.joint);
  atom<T>(joint, system, i, work, part);
  // Its readout leaves x and hidden units behind.
  const int64_t d = joint->n_features, n_hidden = joint->layers[0].n_out;
  const T* outputs = static_cast<const T*>(heads.outputs) + species * (d + n_hidden) * stride;
  multiply<T>(outputs, stride, work.readout.x, d, nullptr, work.head_h);
  multiply<T>(outputs + d * stride, stride, work.readout.hidden[0], n_hidden, work.head_h, work.head_h);
  double mean = 0;
  for (int64_t m = 0; m < n_heads; ++m) {
    const double energy = double(work.head_h[m]) + heads.offsets[species * n_heads + m];
    heads.energies[m * system.n_atoms + i] = energy;
    mean += energy / double(n_heads);
  }
  // What all have in common, pair term and repulsion among it, and rounding: their mean is the energy that was differentiated.
  for (int64_t m = 0; m < n_heads; ++m) heads.energies[m * system.n_atoms + i] += system.energies[i] - mean;
}

// As `atom`, of several readouts on one encoding. The way back is linear in dE/dfeatures: for the mean it is taken once.
template <typename T>
void atom_of_heads(const Plan* plan, const snnp_system& system, int64_t i, Workspace<T>& work, const Part& part) {
  const snnp_heads& heads = *part.heads;
  const int64_t species = system.species[i], stride = plan->feature_stride, n_heads = heads.n_heads;
  const int64_t n_centres = system.n_atoms;
  Pairs<T>& pairs = work.pairs;
  encode<T>(plan, species, work);
  const T weight = system.weights ? T(system.weights[i]) : T(1);
  double shared = 0, total = 0;
  if (plan->phi.n_groups) shared += pair_term<T>(plan, species, pairs, weight);
  if (plan->repulsion_outer > 0) shared += repulsion<T>(plan, species, pairs, weight);
  memset(work.h, 0, stride * sizeof(T));
  const T share = weight / T(part.head_forces ? 1 : n_heads);
  for (int64_t m = 0; m < n_heads; ++m) {
    const Plan* head = static_cast<const Plan*>(heads.plans[m]);
    T* h = work.head_h + m * stride;
    double energy = read_out<T>(head, species, work.features, work.readout, h) + shared;
    energy += at<double>(head, head->reference)[species];
    heads.energies[m * n_centres + i] = energy;
    total += energy;
    for (int64_t a = 0; a < stride; ++a) {
      h[a] *= share;
      work.h[a] += h[a];
    }
  }
  system.energies[i] = total / double(n_heads);
  if (part.forces) {
    way_back<T>(plan, species, work.h, work);
    scatter<T>(system, i, pairs, part.forces, part.virial);
  }
  if (!part.head_forces) return;
  const int64_t padded = round_up(pairs.n, Lanes<T>::W);
  memcpy(work.common, pairs.radial, padded * sizeof(T));
  T* const sums[] = {pairs.gx, pairs.gy, pairs.gz};
  for (int64_t m = 0; m < n_heads; ++m) {
    if (m) {
      memcpy(pairs.radial, work.common, padded * sizeof(T));
      for (T* array : sums) memset(array, 0, padded * sizeof(T));
    }
    way_back<T>(plan, species, work.head_h + m * stride, work);
    scatter<T>(system, i, pairs, part.head_forces + m * 3 * system.n_atoms, part.virial);
  }
}

template <typename T>
void atoms(const Plan* plan, const snnp_system& system, const Part& part, snnp_report* report) {
  int64_t capacity = 0;
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t row = system.first[i + 1] - system.first[i];
    capacity = row > capacity ? row : capacity;
  }
  Workspace<T> work;
  Arena arena = {nullptr, 0};
  work.allocate(arena, plan, part.heads, capacity);
  const size_t bytes = arena.used + kPad;
  void* memory = malloc(bytes);
  if (!memory) {
    report->status = SNNP_NO_MEMORY;
    return;
  }
  arena.memory = reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(memory), kPad));
  arena.used = 0;
  work.allocate(arena, plan, part.heads, capacity);
  if (plan->evaluator == kLegendre) memset(work.reduced.basis.ready, 0, plan->f.n_groups);
  if (plan->rho.n_filters) memset(work.radial.basis.ready, 0, plan->rho.n_groups);
  memset(work.h_angular, 0, plan->f.stride * sizeof(T));
  memset(work.features, 0, plan->feature_stride * sizeof(T));
  memset(work.readout.x, 0, plan->feature_stride * sizeof(T));
  for (int64_t i = part.begin; i < part.end; ++i) {
    if (!gather<T>(plan, system, i, work.pairs, report)) break;
    if (part.heads && part.heads->joint && !part.head_forces) atom_of_joint<T>(system, i, work, part);
    else if (part.heads) atom_of_heads<T>(plan, system, i, work, part);
    else atom<T>(plan, system, i, work, part);
  }
  free(memory);
}

}  // namespace

void evaluate_part(const Plan* plan, const snnp_system& system, const Part& part, snnp_report* report) {
  if (plan->real_size == 4) atoms<float>(plan, system, part, report);
  else atoms<double>(plan, system, part, report);
}

}  // namespace SNNP_TARGET
}  // namespace snnp
