// Division of a training batch over threads, and the sums of what each of them found.
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernel.h"
#include "pool.h"

namespace snnp {
namespace {

// Sizes in bytes of one part's own sums.
struct Sizes {
  int64_t forces, virial, rho, f, legendre, at_one;
  int64_t total() const { return forces + virial + rho + f + legendre + at_one; }
};

int64_t table_bytes(const Plan* plan, const Table& t) {
  return t.n_groups * t.n_segments * 4 * t.stride * plan->real_size;
}

Sizes sizes_of(int64_t task, const Plan* plan, const snnp_batch* batch) {
  if (task == SNNP_FORCES) return {batch->n_atoms * 24, batch->n_structures * 72, 0, 0, 0, 0};
  if (task != SNNP_GRADIENTS) return {0, 0, 0, 0, 0, 0};
  const int64_t row = plan->f.stride * plan->real_size, c = plan->n_channels;
  const int64_t angular = plan->evaluator == kLegendre ? 1 : 0;
  return {0, 0, table_bytes(plan, plan->rho), table_bytes(plan, plan->f), angular * c * c * (plan->degree + 1) * row,
          angular * c * row};
}

struct Job {
  const Plan* plan;
  int64_t task, n_parts;
  const snnp_batch* batch;
  const snnp_training* arrays;
  Sizes sizes;
  char* sums;  // [parts, sizes.total()], zero
  snnp_report* reports;
};

void train_one(void* context, int64_t k) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t n = job.batch->n_atoms;
  char* place = job.sums + k * job.sizes.total();
  TrainingPart part = {job.task, n * k / job.n_parts, n * (k + 1) / job.n_parts, job.batch, job.arrays,
                       nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  // Tables first: their rows must be aligned, and all their sizes are whole vectors.
  part.rho = place;
  part.f = place + job.sizes.rho;
  part.legendre = place + job.sizes.rho + job.sizes.f;
  part.at_one = place + job.sizes.rho + job.sizes.f + job.sizes.legendre;
  part.forces = reinterpret_cast<double*>(place);
  part.virial = reinterpret_cast<double*>(place + job.sizes.forces);
  chosen_training()(job.plan, part, job.reports + k);
}

template <typename X>
void add_up(void* out, const char* sums, int64_t step, int64_t n_parts, int64_t bytes) {
  X* total = static_cast<X*>(out);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(X));
  memcpy(total, sums, static_cast<size_t>(bytes));
  for (int64_t k = 1; k < n_parts; ++k) {
    const X* more = reinterpret_cast<const X*>(sums + k * step);
    for (int64_t a = 0; a < count; ++a) total[a] += more[a];
  }
}

void collect(const Job& job) {
  const int64_t step = job.sizes.total();
  if (job.task == SNNP_FORCES) {
    add_up<double>(job.arrays->forces, job.sums, step, job.n_parts, job.sizes.forces);
    add_up<double>(job.arrays->virial, job.sums + job.sizes.forces, step, job.n_parts, job.sizes.virial);
  } else if (job.task == SNNP_GRADIENTS) {
    void* const outs[] = {job.arrays->rho, job.arrays->f, job.arrays->legendre, job.arrays->at_one};
    const int64_t bytes[] = {job.sizes.rho, job.sizes.f, job.sizes.legendre, job.sizes.at_one};
    const char* from = job.sums;
    for (int k = 0; k < 4; ++k) {
      if (bytes[k] && job.plan->real_size == 4) add_up<float>(outs[k], from, step, job.n_parts, bytes[k]);
      if (bytes[k] && job.plan->real_size == 8) add_up<double>(outs[k], from, step, job.n_parts, bytes[k]);
      from += bytes[k];
    }
  }
}

}  // namespace
}  // namespace snnp

using namespace snnp;

int snnp_train(int64_t task, const void* memory, int64_t plan_bytes, const snnp_batch* batch, const snnp_training* arrays,
               snnp_report* report) {
  *report = {SNNP_OK, 0, 0, 0.0};
  const Plan* plan = static_cast<const Plan*>(memory);
  if (!plan_is_sound(memory, plan_bytes) || plan->evaluator == kSpline || plan->phi.n_groups)
    return static_cast<int>(report->status = SNNP_BAD_PLAN);
  int64_t n_parts = batch->n_threads < batch->n_atoms / 8 ? batch->n_threads : batch->n_atoms / 8;
  n_parts = n_parts < 1 ? 1 : n_parts;
  Job job = {plan, task, n_parts, batch, arrays, sizes_of(task, plan, batch), nullptr, nullptr};
  void* memory_of_sums = calloc(static_cast<size_t>(n_parts * job.sizes.total() + kPad), 1);
  job.reports = static_cast<snnp_report*>(calloc(static_cast<size_t>(n_parts), sizeof(snnp_report)));
  if (memory_of_sums && job.reports) {
    const int64_t start = reinterpret_cast<int64_t>(memory_of_sums);
    job.sums = reinterpret_cast<char*>((start + kPad - 1) / kPad * kPad);
    run_parts(train_one, &job, n_parts);
    for (int64_t k = n_parts - 1; k >= 0; --k)
      if (job.reports[k].status) *report = job.reports[k];
    if (!report->status) collect(job);
  } else {
    report->status = SNNP_NO_MEMORY;
  }
  free(memory_of_sums);
  free(job.reports);
  return static_cast<int>(report->status);
}
