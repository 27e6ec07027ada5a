// Training over the atoms of a range, compiled once per instruction set like kernel.cpp.
#include <stdlib.h>

#include "kernel.h"
#include "radial.h"
#include "train_forces.h"
#include "train_gradients.h"
#include "train_readout.h"

namespace snnp {
namespace SNNP_TARGET {
namespace {

// What is kept of an atom between its features and the derivatives in them.
template <typename T>
struct Kept {
  int64_t atom, species, n_runs;
  Run *runs, *angular_runs;   // [Z]
  T *p, *p_dot;               // of rho: sums of weights [runs, K] and their derivatives
  T *moments, *selves, *moments_dot, *selves_dot, *sums, *sums_dot, *bands, *bands_dot;  // see Moments, Training, Sums
  T *features, *features_dot, *g, *h;

  void allocate(Arena& arena, const Plan* plan) {
    const int64_t n_rows = plan->rho.n_segments + 1, c = plan->n_channels, stride = plan->f.stride;
    const int64_t n_lm = (plan->degree + 1) * (plan->degree + 1), n_sums = plan->n_elements * (plan->f.n_segments + 1);
    runs = arena.take<Run>(plan->n_elements);
    angular_runs = arena.take<Run>(plan->n_elements);
    T** const radial[] = {&p, &p_dot};
    for (T** array : radial) *array = arena.take<T>(plan->n_elements * n_rows);
    T** const per_feature[] = {&features, &features_dot, &g, &h};
    for (T** array : per_feature) *array = arena.take<T>(plan->feature_stride + kPad);
    if (plan->evaluator != kLegendre) return;
    T** const per_moment[] = {&moments, &moments_dot};
    for (T** array : per_moment) *array = arena.take<T>(c * n_lm * stride);
    T** const per_channel[] = {&selves, &selves_dot};
    for (T** array : per_channel) *array = arena.take<T>(c * stride);
    T** const per_row[] = {&sums, &sums_dot};
    for (T** array : per_row) *array = arena.take<T>(n_sums * round_up(n_lm + 4, Lanes<T>::W));
    T** const per_band[] = {&bands, &bands_dot};
    for (T** array : per_band) *array = arena.take<T>(n_sums * 7 + kPad);
  }
};

template <typename T>
struct Workspace {
  Pairs<T> pairs;
  PairWeights<T> weights;  // of rho
  Radial<T> radial;
  Moments<T> moments;
  Training<T> training;
  Readout<T> readout;
  DualReadout<T> dual;
  Kept<T> kept[kTogether];  // one of them unless the task is to learn

  void allocate(Arena& arena, const Plan* plan, int64_t capacity, bool learns) {
    // A whole vector may be written from any pair on.
    const int64_t rows = round_up(capacity + 1, kPad) + kPad;
    pairs.allocate(arena, rows);
    weights.allocate(arena, rows);
    radial.allocate(arena, plan);
    if (plan->evaluator == kLegendre) moments.allocate(arena, plan);
    training.allocate(arena, plan, rows, learns);
    if (learns) dual.allocate(arena, plan);
    else readout.allocate(arena, plan);
    for (int64_t k = 0; k < (learns ? kTogether : 1); ++k) kept[k].allocate(arena, plan);
  }

  // Point the work of the angular part at what is kept of an atom.
  void use(const Kept<T>& mine) {
    moments.moments = mine.moments;
    moments.selves = mine.selves;
    training.moments_dot = mine.moments_dot;
    training.selves_dot = mine.selves_dot;
    training.sums.p = mine.sums;
    training.sums.p_dot = mine.sums_dot;
    training.sums.s = mine.bands;
    training.sums.s_dot = mine.bands_dot;
  }
};

// Coefficients with k running fastest, as the way back to the pairs takes them.
template <typename T>
void turn_rows(const Table& table, const T* rows, Basis<T>& basis) {
  const int64_t n_rows = table.n_segments + 1;
  for (int64_t group = 0; group < table.n_groups; ++group) {
    basis.ready[group] = 1;
    for (int64_t b = 0; b < table.n_filters; ++b)
      for (int64_t k = 0; k < n_rows; ++k)
        basis.coefficients[(group * table.n_filters + b) * basis.length + k] = rows[(group * n_rows + k) * table.stride + b];
  }
}

// Pairs of atom `a`, and their runs; false where the pairs of one run do not stand together.
template <typename T>
bool load_pairs(const Plan* plan, const snnp_batch& batch, int64_t a, Pairs<T>& pairs, Kept<T>& mine) {
  constexpr int W = Lanes<T>::W;
  const int64_t row = batch.rows[a], first = batch.first[row], n = batch.first[row + 1] - first;
  mine.atom = a;
  mine.species = batch.species[row];
  const int32_t* groups = at<int32_t>(plan, plan->radial_group) + mine.species * plan->n_elements;
  const void* const sources[] = {batch.x, batch.y, batch.z, batch.r};
  T* const targets[] = {pairs.x, pairs.y, pairs.z, pairs.r};
  for (int k = 0; k < 4 && n; ++k) memcpy(targets[k], static_cast<const T*>(sources[k]) + first, n * sizeof(T));
  pairs.n = n;
  for (int64_t p = n; p < round_up(n, W); ++p) pairs.x[p] = pairs.y[p] = 0, pairs.z[p] = pairs.r[p] = 1;
  for (int64_t p = 0; p < n; p += W) {
    store<T>(pairs.inverse + p, T(1) / load<T>(pairs.r + p));
    T* const sums[] = {pairs.radial, pairs.gx, pairs.gy, pairs.gz};
    for (T* array : sums) store<T>(array + p, all<T>(0));
  }
  const int32_t *neighbour = batch.neighbour + first, shift = static_cast<int32_t>(batch.shift[a]);
  for (int64_t p = 0; p < n; ++p) pairs.j[p] = neighbour[p] - shift;
  mine.n_runs = 0;
  if (plan->n_elements == 1 && n) mine.runs[mine.n_runs++] = {0, n, groups[0], 0, 0, 0};
  for (int64_t p = 0; p < n && plan->n_elements > 1; ++p) {
    const int32_t element = batch.species[neighbour[p]];
    const int64_t group = groups[element], channel = plan->n_channels > 1 ? element : 0;
    pairs.species[p] = element;
    const Run* last = mine.n_runs ? mine.runs + mine.n_runs - 1 : nullptr;
    if (!last || last->group != group || last->channel != channel) {
      if (mine.n_runs == plan->n_elements) return false;
      mine.runs[mine.n_runs++] = {p, p, group, channel, 0, 0};
    }
    mine.runs[mine.n_runs - 1].end = p + 1;
  }
  for (int64_t k = 0; k < mine.n_runs; ++k) {
    Run& run = mine.angular_runs[k] = mine.runs[k];
    while (run.end > run.begin && !(pairs.r[run.end - 1] < T(plan->angular_cutoff))) --run.end;
  }
  return true;
}

// q_ij = p_i - p_j + s^T r_ij, and its part along the pair.
template <typename T>
void load_directions(const TrainingPart& part, int64_t a, const Pairs<T>& pairs, Training<T>& own) {
  constexpr int W = Lanes<T>::W;
  const double *p = part.arrays->p, *mine = p + 3 * a;
  const int32_t* j = pairs.j;
  T *qx = own.qx, *qy = own.qy, *qz = own.qz;
  for (int64_t k = 0; k < pairs.n; ++k) {
    const double* other = p + 3 * static_cast<int64_t>(j[k]);
    qx[k] = T(mine[0] - other[0]);
    qy[k] = T(mine[1] - other[1]);
    qz[k] = T(mine[2] - other[2]);
  }
  T s[9];
  for (int b = 0; b < 9; ++b) s[b] = T(part.arrays->s[9 * part.batch->owner[a] + b]);
  for (int64_t k = 0; k < pairs.n; k += W) {
    const Vec<T> x = load<T>(pairs.x + k), y = load<T>(pairs.y + k), z = load<T>(pairs.z + k), r = load<T>(pairs.r + k);
    const Vec<T> x_dot = load<T>(qx + k) + r * (s[0] * x + s[3] * y + s[6] * z);
    const Vec<T> y_dot = load<T>(qy + k) + r * (s[1] * x + s[4] * y + s[7] * z);
    const Vec<T> z_dot = load<T>(qz + k) + r * (s[2] * x + s[5] * y + s[8] * z);
    store<T>(qx + k, x_dot);
    store<T>(qy + k, y_dot);
    store<T>(qz + k, z_dot);
    store<T>(own.rate + k, x_dot * x + y_dot * y + z_dot * z);
  }
}

template <typename T>
void add_forces(const TrainingPart& part, int64_t a, Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W;
  for (int64_t p = pairs.n; p < round_up(pairs.n, W); ++p) pairs.radial[p] = pairs.gx[p] = pairs.gy[p] = pairs.gz[p] = 0;
  Vec<T> total[3], v[9];
  for (Vec<T>& sum : total) sum = all<T>(0);
  for (Vec<T>& sum : v) sum = all<T>(0);
  for (int64_t p = 0; p < pairs.n; p += W) {
    const Vec<T> u[3] = {load<T>(pairs.x + p), load<T>(pairs.y + p), load<T>(pairs.z + p)}, r = load<T>(pairs.r + p);
    T* const rests[3] = {pairs.gx + p, pairs.gy + p, pairs.gz + p};
    for (int b = 0; b < 3; ++b) {
      const Vec<T> g = load<T>(rests[b]) + load<T>(pairs.radial + p) * u[b];
      store<T>(rests[b], g);
      total[b] += g;
      for (int c = 0; c < 3; ++c) v[3 * c + b] += r * u[c] * g;
    }
  }
  const T *gx = pairs.gx, *gy = pairs.gy, *gz = pairs.gz;
  const int32_t* j = pairs.j;
  for (int64_t p = 0; p < pairs.n; ++p) {
    double* force = part.forces + 3 * static_cast<int64_t>(j[p]);
    force[0] -= double(gx[p]);
    force[1] -= double(gy[p]);
    force[2] -= double(gz[p]);
  }
  for (int b = 0; b < 3; ++b) part.forces[3 * a + b] += double(sum<T>(total[b]));
  for (int b = 0; b < 9; ++b) part.virial[9 * part.batch->owner[a] + b] += double(sum<T>(v[b]));
}

// Radial features, from the sums of weights of each run; with `rate` also their derivatives.
template <typename T>
void radial_sums(const Plan* plan, const T* rows, const T* rate, const Pairs<T>& pairs, PairWeights<T>& weights,
                 Kept<T>& mine) {
  constexpr int W = Lanes<T>::W;
  const int64_t n_rows = plan->rho.n_segments + 1, stride = plan->rho.stride;
  memset(mine.features, 0, stride * sizeof(T));
  memset(mine.features_dot, 0, stride * sizeof(T));
  for (int64_t k = 0; k < mine.n_runs; ++k) {
    Run& run = mine.runs[k];
    weigh<T>(plan, plan->rho, pairs.r, run, weights);
    T *p = mine.p + k * n_rows, *p_dot = mine.p_dot + k * n_rows;
    memset(p, 0, n_rows * sizeof(T));
    sum_weights<T, false>(run, weights, nullptr, p);
    if (rate) {
      memset(p_dot, 0, n_rows * sizeof(T));
      sum_weights<T, true>(run, weights, rate, p_dot);
    }
    for (int64_t b = 0; b < plan->rho.n_filters; b += W) {
      const T* c = rows + run.group * n_rows * stride + b;
      Vec<T> value = load<T>(mine.features + b), dot = load<T>(mine.features_dot + b);
      for (int64_t row = run.low; row < run.high; ++row) {
        value += p[row] * load<T>(c + row * stride);
        if (rate) dot += p_dot[row] * load<T>(c + row * stride);
      }
      store<T>(mine.features + b, value);
      store<T>(mine.features_dot + b, dot);
    }
  }
}

// Derivatives in the coefficients of rho.
template <typename T>
void radial_gradients(const Plan* plan, const Kept<T>& mine, T* rho) {
  constexpr int W = Lanes<T>::W;
  const int64_t n_rows = plan->rho.n_segments + 1, stride = plan->rho.stride;
  for (int64_t k = 0; k < mine.n_runs; ++k) {
    const Run& run = mine.runs[k];
    const T *p = mine.p + k * n_rows, *p_dot = mine.p_dot + k * n_rows;
    for (int64_t b = 0; b < plan->rho.n_filters; b += W) {
      const Vec<T> g = load<T>(mine.g + b), h = load<T>(mine.h + b);
      T* out = rho + run.group * n_rows * stride + b;
      for (int64_t row = run.low; row < run.high; ++row)
        store<T>(out + row * stride, load<T>(out + row * stride) + p[row] * g + p_dot[row] * h);
    }
  }
}

template <typename T, int L>
void angular_forward(const Plan* plan, const T* rows, bool moves, Workspace<T>& work, Kept<T>& mine) {
  constexpr int W = Lanes<T>::W;
  const int64_t n = plan->f.n_filters, n_radial = plan->rho.n_filters;
  if (moves) angular_sums<T, L, true>(plan, rows, mine.angular_runs, mine.n_runs, work.pairs, work.moments, work.training);
  else angular_sums<T, L, false>(plan, rows, mine.angular_runs, mine.n_runs, work.pairs, work.moments, work.training);
  for (int64_t b = 0; b < n; b += W) {
    const Vec<T> row = feature_row<T, L>(plan, work.moments, b);
    for (int q = 0; q < W && b + q < n; ++q) mine.features[n_radial + b + q] = row[q];
  }
  if (moves) angular_tangents<T, L>(plan, work.moments, work.training, mine.features_dot + n_radial);
}

template <typename T, int L>
void angular_back(const Plan* plan, const T* rows, Gradients<T>* gradients, Workspace<T>& work, const Kept<T>& mine) {
  const int64_t n = plan->f.n_filters, n_radial = plan->rho.n_filters;
  memcpy(work.training.h, mine.h + n_radial, n * sizeof(T));
  if (!gradients) {
    angular_pull<T, L>(plan, mine.angular_runs, mine.n_runs, work.pairs, work.moments, work.training);
    return;
  }
  memcpy(work.training.g, mine.g + n_radial, n * sizeof(T));
  angle_gradients<T, L>(plan, work.moments, work.training, gradients->legendre, gradients->at_one);
  function_gradients<T, L>(plan, rows, mine.angular_runs, mine.n_runs, work.training, gradients->f);
}

template <typename T>
struct ByDegree {
  void (*forward[kMaxDegree + 1])(const Plan*, const T*, bool, Workspace<T>&, Kept<T>&);
  void (*back[kMaxDegree + 1])(const Plan*, const T*, Gradients<T>*, Workspace<T>&, const Kept<T>&);
};
#define SNNP_EACH_DEGREE(F) {F<T, 0>, F<T, 1>, F<T, 2>, F<T, 3>, F<T, 4>, F<T, 5>, F<T, 6>, F<T, 7>, F<T, 8>}
template <typename T>
constexpr ByDegree<T> by_degree = {SNNP_EACH_DEGREE(angular_forward), SNNP_EACH_DEGREE(angular_back)};

// Features of atom `a`; false for bad pairs.
template <typename T>
bool forward(const Plan* plan, const TrainingPart& part, int64_t a, Workspace<T>& work, Kept<T>& mine) {
  const snnp_training& arrays = *part.arrays;
  // Without forces in the loss nothing moves, and all derivatives along q stay zero.
  const bool moves = part.task == SNNP_LEARN && arrays.p;
  if (!load_pairs<T>(plan, *part.batch, a, work.pairs, mine)) return false;
  work.use(mine);
  if (moves) load_directions<T>(part, a, work.pairs, work.training);
  const T *rho = static_cast<const T*>(arrays.rho), *f = static_cast<const T*>(arrays.f);
  if (plan->rho.n_filters) radial_sums<T>(plan, rho, moves ? work.training.rate : nullptr, work.pairs, work.weights, mine);
  if (plan->evaluator == kLegendre) by_degree<T>.forward[plan->degree](plan, f, moves, work, mine);
  return true;
}

template <typename T>
void predict_atom(const Plan* plan, const TrainingPart& part, Workspace<T>& work, Kept<T>& mine) {
  const snnp_training& arrays = *part.arrays;
  if (part.task == SNNP_FEATURES) {
    memcpy(static_cast<T*>(arrays.features) + mine.atom * plan->feature_stride, mine.features, plan->n_features * sizeof(T));
    return;
  }
  arrays.energies[mine.atom] = read_out<T>(plan, mine.species, mine.features, work.readout, mine.h);
  if (!arrays.forces) return;
  if (plan->rho.n_filters) radial_slopes<T>(plan, mine.species, work.pairs, mine.h, work.radial);
  const T* f = static_cast<const T*>(arrays.f);
  if (plan->evaluator == kLegendre) by_degree<T>.back[plan->degree](plan, f, nullptr, work, mine);
  add_forces<T>(part, mine.atom, work.pairs);
}

// The gradients of n atoms whose features are known.
template <typename T>
void learn_atoms(const Plan* plan, const TrainingPart& part, int64_t n, Workspace<T>& work, Gradients<T>& gradients) {
  const snnp_training& arrays = *part.arrays;
  ReadoutRow<T> atoms[kTogether];
  for (int64_t k = 0; k < n; ++k) {
    const Kept<T>& mine = work.kept[k];
    atoms[k] = {mine.species, T(arrays.e[mine.atom]), mine.features, mine.features_dot, mine.g, mine.h};
  }
  learn_readouts<T>(plan, static_cast<const T*>(arrays.embedding), atoms, n, work.dual, gradients);
  for (int64_t k = 0; k < n; ++k) {
    const Kept<T>& mine = work.kept[k];
    if (plan->rho.n_filters) radial_gradients<T>(plan, mine, gradients.rho);
    if (plan->evaluator != kLegendre) continue;
    work.use(mine);
    by_degree<T>.back[plan->degree](plan, static_cast<const T*>(arrays.f), &gradients, work, mine);
  }
}

template <typename T>
Gradients<T> gradients_at(const Plan* plan, void* memory) {
  T* base = static_cast<T*>(memory);
  int64_t offsets[kGradientParts + 1];
  gradient_layout(plan, offsets);
  Gradients<T> found = {base + offsets[0], base + offsets[1], base + offsets[2], base + offsets[3], base + offsets[4],
                        base + offsets[5], {}, {}};
  for (int k = 0; k < kMaxLayers; ++k) {
    found.weight[k] = base + offsets[6 + 2 * k];
    found.bias[k] = base + offsets[7 + 2 * k];
  }
  return found;
}

template <typename T>
void train_atoms(const Plan* plan, const TrainingPart& part, snnp_report* report) {
  const bool learns = part.task == SNNP_LEARN;
  int64_t capacity = 0;
  for (int64_t a = part.begin; a < part.end; ++a) {
    const int64_t row = part.batch->rows[a], n = part.batch->first[row + 1] - part.batch->first[row];
    capacity = n > capacity ? n : capacity;
  }
  Workspace<T> work;
  Arena arena = {nullptr, 0};
  work.allocate(arena, plan, capacity, learns);
  void* memory = calloc(arena.used + kPad, 1);
  if (!memory) {
    report->status = SNNP_NO_MEMORY;
    return;
  }
  arena = {reinterpret_cast<char*>(round_up(reinterpret_cast<int64_t>(memory), kPad)), 0};
  work.allocate(arena, plan, capacity, learns);
  if (part.task == SNNP_PREDICT && part.arrays->forces) {
    if (plan->rho.n_filters) turn_rows<T>(plan->rho, static_cast<const T*>(part.arrays->rho), work.radial.basis);
    if (plan->evaluator == kLegendre)
      turn_rows<T>(plan->f, static_cast<const T*>(part.arrays->f), work.training.basis);
  }
  Gradients<T> gradients = learns ? gradients_at<T>(plan, part.gradient) : Gradients<T>{};
  const int64_t step = learns ? kTogether : 1;
  for (int64_t a = part.begin; a < part.end && !report->status; a += step) {
    const int64_t n = part.end - a < step ? part.end - a : step;
    for (int64_t k = 0; k < n; ++k)
      if (!forward<T>(plan, part, a + k, work, work.kept[k])) *report = {SNNP_UNSORTED, part.batch->rows[a + k], 0, 0.0};
    if (report->status) break;
    if (learns) learn_atoms<T>(plan, part, n, work, gradients);
    else predict_atom<T>(plan, part, work, work.kept[0]);
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
