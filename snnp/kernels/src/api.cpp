// The C interface: choice of the instruction set, and the division of the work.
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernel.h"
#include "pool.h"

namespace snnp {

#define SNNP_DECLARE(target)                                                      \
  namespace target {                                                              \
  void evaluate_part(const Plan*, const snnp_system&, const Part&, snnp_report*); \
  void train_part(const Plan*, const TrainingPart&, snnp_report*);                \
  }
// Declared whether compiled in or not; the build says which are, by SNNP_WITH_...
SNNP_DECLARE(avx512)
SNNP_DECLARE(avx2)
SNNP_DECLARE(portable)

namespace {

struct Target {
  const char* name;
  bool (*runs_here)();
  EvaluatePart evaluate;
  TrainPart train;
};

#ifdef SNNP_WITH_PORTABLE
bool always() { return true; }
#endif
#ifdef SNNP_WITH_AVX512
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd");
}
#endif
#ifdef SNNP_WITH_AVX2
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

const Target targets[] = {
#ifdef SNNP_WITH_AVX512
    {"avx512", has_avx512, avx512::evaluate_part, avx512::train_part},
#endif
#ifdef SNNP_WITH_AVX2
    {"avx2", has_avx2, avx2::evaluate_part, avx2::train_part},
#endif
#ifdef SNNP_WITH_PORTABLE
    {"portable", always, portable::evaluate_part, portable::train_part},
#endif
};

const Target* best() {
#if defined(__x86_64__) || defined(_M_X64)
  __builtin_cpu_init();
#endif
  for (const Target& target : targets)
    if (target.runs_here()) return &target;
  return nullptr;
}

const Target* chosen = best();

struct Job {
  const Plan* plan;
  const snnp_system* system;
  const snnp_domain* domain;
  const snnp_heads* heads;  // or NULL
  int64_t n_parts;
  double *forces, *atom_virials;  // of parts 1, 2, ...: [N, 3] (of each head, where asked for) and [N, 9]; part 0 writes to the output
  double* virials;                // of all parts: [B, 6] each
  snnp_report* reports;
};

// Where part k sums `length` numbers, set to zero; NULL where there is no output.
double* own_sums(double* output, double* others, int64_t k, int64_t length) {
  if (!output) return nullptr;
  double* sums = k == 0 ? output : others + (k - 1) * length;
  memset(sums, 0, static_cast<size_t>(length) * sizeof(double));
  return sums;
}

void run_part(void* context, int64_t k) {
  const Job& job = *static_cast<const Job*>(context);
  const snnp_system& system = *job.system;
  const int64_t n = system.n_atoms, centres = job.domain->n_centres;
  double* of_heads = job.heads && job.heads->forces ? job.heads->forces : nullptr;
  double* head_forces = of_heads ? own_sums(of_heads, job.forces, k, job.heads->n_heads * 3 * n) : nullptr;
  double* forces = of_heads ? nullptr : own_sums(system.forces, job.forces, k, 3 * n);
  double* atom_virials = forces ? own_sums(job.domain->atom_virials, job.atom_virials, k, 9 * n) : nullptr;
  double* virial = job.virials + k * 6 * system.n_structures;
  const int64_t begin = centres * k / job.n_parts, end = centres * (k + 1) / job.n_parts;
  const Part part = {begin, end, forces, atom_virials, virial, job.heads, head_forces};
  chosen->evaluate(job.plan, system, part, job.reports + k);
}

// Share k of a sum over all parts, in their order.
void add_share(double* output, const double* others, int64_t k, int64_t n_parts, int64_t length) {
  for (int64_t part = 1; part < n_parts; ++part) {
    const double* other = others + (part - 1) * length;
    for (int64_t a = length * k / n_parts; a < length * (k + 1) / n_parts; ++a) output[a] += other[a];
  }
}

void add_part(void* context, int64_t k) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t n = job.system->n_atoms;
  if (job.heads && job.heads->forces) return add_share(job.heads->forces, job.forces, k, job.n_parts, job.heads->n_heads * 3 * n);
  add_share(job.system->forces, job.forces, k, job.n_parts, 3 * n);
  if (job.domain->atom_virials) add_share(job.domain->atom_virials, job.atom_virials, k, job.n_parts, 9 * n);
}

void add_virials(const Job& job) {
  const int64_t b = job.system->n_structures;
  static const int place[9] = {0, 5, 4, 5, 1, 3, 4, 3, 2};
  memset(job.system->virial, 0, 9 * b * sizeof(double));
  for (int64_t part = 0; part < job.n_parts; ++part)
    for (int64_t s = 0; s < b; ++s)
      for (int a = 0; a < 9; ++a) job.system->virial[9 * s + a] += job.virials[(part * b + s) * 6 + place[a]];
}

// Forces and virial of the mean from those of every head.
void average(const Job& job) {
  const int64_t n = 3 * job.system->n_atoms, m = job.heads->n_heads;
  for (int64_t a = 0; a < 9 * job.system->n_structures; ++a) job.system->virial[a] /= double(m);
  for (int64_t a = 0; job.system->forces && a < n; ++a) {
    double sum = 0;
    for (int64_t k = 0; k < m; ++k) sum += job.heads->forces[k * n + a];
    job.system->forces[a] = sum / double(m);
  }
}

int evaluate(const Plan* plan, const snnp_system* system, const snnp_domain* domain, const snnp_heads* heads,
             snnp_report* report) {
  const int64_t n = system->n_atoms, centres = domain->n_centres, b = system->n_structures;
  const bool each = heads && heads->forces;  // forces of every head
  // A part below some tens of atoms would cost more to hand over than to do.
  int64_t n_parts = system->n_threads < centres / 32 ? system->n_threads : centres / 32;
  n_parts = n_parts < 1 ? 1 : n_parts;
  const bool sums = system->forces || each;
  const size_t n_others = sums ? static_cast<size_t>((n_parts - 1) * n) : 0;
  const size_t n_sums = 3 * n_others * (each ? static_cast<size_t>(heads->n_heads) : 1);
  double* virials = static_cast<double*>(calloc(static_cast<size_t>(n_parts * 6 * b + 1), sizeof(double)));
  double* forces = static_cast<double*>(malloc((n_sums + 1) * sizeof(double)));
  double* atom_virials = static_cast<double*>(malloc((domain->atom_virials ? 9 * n_others + 1 : 1) * sizeof(double)));
  snnp_report* reports = static_cast<snnp_report*>(calloc(static_cast<size_t>(n_parts), sizeof(snnp_report)));
  if (virials && forces && atom_virials && reports) {
    Job job = {plan, system, domain, heads, n_parts, forces, atom_virials, virials, reports};
    run_parts(run_part, &job, n_parts);
    for (int64_t k = n_parts - 1; k >= 0; --k)
      if (reports[k].status) *report = reports[k];
    if (!report->status && sums && n_parts > 1) run_parts(add_part, &job, n_parts);
    if (!report->status) add_virials(job);
    if (!report->status && each) average(job);
  } else {
    report->status = SNNP_NO_MEMORY;
  }
  free(virials);
  free(forces);
  free(atom_virials);
  free(reports);
  return static_cast<int>(report->status);
}

}  // namespace

TrainPart chosen_training() { return chosen->train; }

}  // namespace snnp

using namespace snnp;

int64_t snnp_version(void) { return kVersion; }

const char* snnp_target(void) { return chosen ? chosen->name : nullptr; }

int snnp_set_target(const char* name) {
  for (const Target& target : targets)
    if (!strcmp(target.name, name) && target.runs_here()) {
      chosen = &target;
      return 1;
    }
  return 0;
}

int snnp_check_list(int64_t n_atoms, int64_t n_images, const int64_t* first, const int32_t* neighbour,
                    const int32_t* image, snnp_report* report) {
  bool sound = first[0] == 0;
  for (int64_t i = 0; sound && i < n_atoms; ++i) sound = first[i + 1] >= first[i];
  const int64_t n_pairs = sound ? first[n_atoms] : 0;
  for (int64_t e = 0; e < n_pairs; ++e)
    if (neighbour[e] < 0 || neighbour[e] >= n_atoms || image[e] < 0 || image[e] >= n_images) {
      *report = {SNNP_BAD_LIST, e, 0, 0.0};
      return SNNP_BAD_LIST;
    }
  *report = {sound ? SNNP_OK : SNNP_BAD_LIST, -1, 0, 0.0};
  return static_cast<int>(report->status);
}

int snnp_describe(const void* memory, int64_t plan_bytes, snnp_model* model) {
  if (!plan_is_sound(memory, plan_bytes)) return SNNP_BAD_PLAN;
  const Plan* plan = static_cast<const Plan*>(memory);
  const int32_t* numbers = at<int32_t>(plan, plan->numbers);
  *model = {plan->version, plan->real_size, plan->n_elements, plan->cutoff, numbers, at<double>(plan, plan->reference)};
  return SNNP_OK;
}

int snnp_evaluate(const void* memory, int64_t plan_bytes, const snnp_system* system, snnp_report* report) {
  const snnp_domain whole = {system->n_atoms, nullptr};
  return snnp_evaluate_domain(memory, plan_bytes, system, &whole, report);
}

int snnp_evaluate_domain(const void* memory, int64_t plan_bytes, const snnp_system* system, const snnp_domain* domain,
                         snnp_report* report) {
  *report = {SNNP_OK, 0, 0, 0.0};
  if (!plan_is_sound(memory, plan_bytes)) return static_cast<int>(report->status = SNNP_BAD_PLAN);
  return evaluate(static_cast<const Plan*>(memory), system, domain, nullptr, report);
}

int snnp_evaluate_heads(const snnp_heads* heads, const snnp_system* system, snnp_report* report) {
  *report = {SNNP_OK, 0, 0, 0.0};
  const Plan* first = heads->n_heads > 0 ? static_cast<const Plan*>(heads->plans[0]) : nullptr;
  bool sound = first != nullptr;
  for (int64_t m = 0; sound && m < heads->n_heads; ++m) {
    const Plan* plan = static_cast<const Plan*>(heads->plans[m]);
    sound = plan_is_sound(plan, heads->plan_bytes[m]) && plan->real_size == first->real_size &&
            plan->n_elements == first->n_elements && plan->n_features == first->n_features;
  }
  if (sound && heads->joint) {
    const Plan* joint = static_cast<const Plan*>(heads->joint);
    sound = plan_is_sound(joint, heads->joint_bytes) && joint->real_size == first->real_size && joint->n_layers == 2 &&
            joint->n_elements == first->n_elements && joint->n_features == first->n_features;
  }
  if (!sound) return static_cast<int>(report->status = SNNP_BAD_PLAN);
  const snnp_domain whole = {system->n_atoms, nullptr};
  return evaluate(heads->joint && !heads->forces ? static_cast<const Plan*>(heads->joint) : first, system, &whole, heads, report);
}
