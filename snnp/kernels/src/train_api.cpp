// Division of a training batch over threads, and the sums of what each of them found.
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernel.h"
#include "pool.h"

namespace snnp {
namespace {

struct Job {
  const Plan* plan;
  int64_t task, n_parts;
  const snnp_batch* batch;
  const snnp_training* arrays;
  int64_t gradient_bytes, bytes;  // of a part's own sums: gradient, or forces and virial
  char* sums;                     // [parts, bytes], zero
  snnp_report* reports;
};

void train_one(void* context, int64_t k) {
  const Job& job = *static_cast<const Job*>(context);
  const int64_t n = job.batch->n_atoms;
  char* place = job.sums + k * job.bytes;
  double* forces = reinterpret_cast<double*>(place);
  const TrainingPart part = {job.task, n * k / job.n_parts, n * (k + 1) / job.n_parts, job.batch, job.arrays,
                             forces, forces + 3 * n, place};
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
  const int64_t n_forces = job.batch->n_atoms * 24;
  if (job.task == SNNP_PREDICT && job.arrays->forces) {
    add_up<double>(job.arrays->forces, job.sums, job.bytes, job.n_parts, n_forces);
    add_up<double>(job.arrays->virial, job.sums + n_forces, job.bytes, job.n_parts, job.batch->n_structures * 72);
  }
  if (job.task != SNNP_LEARN) return;
  if (job.plan->real_size == 4) add_up<float>(job.arrays->gradient, job.sums, job.bytes, job.n_parts, job.gradient_bytes);
  else add_up<double>(job.arrays->gradient, job.sums, job.bytes, job.n_parts, job.gradient_bytes);
}

}  // namespace

void gradient_layout(const Plan* plan, int64_t* offsets) {
  const int64_t c = plan->n_channels, angular = plan->evaluator == kLegendre ? plan->f.stride : 0;
  const Table* const tables[] = {&plan->rho, &plan->f, &plan->embedding};
  int64_t rows[3];
  for (int k = 0; k < 3; ++k) rows[k] = tables[k]->n_groups * (tables[k]->n_segments + 1) * tables[k]->stride;
  const int64_t sizes[] = {rows[0], rows[1], c * c * (plan->degree + 1) * angular, c * angular,
                           plan->n_elements * plan->feature_stride, rows[2]};
  offsets[0] = 0;
  for (int k = 0; k < 6; ++k) offsets[k + 1] = offsets[k] + sizes[k];
  for (int k = 0; k < kMaxLayers; ++k) {
    const Layer& layer = plan->layers[k];
    const int64_t row = k < plan->n_layers ? plan->n_copies * layer.out_stride : 0;
    offsets[7 + 2 * k] = offsets[6 + 2 * k] + layer.n_in * row;
    offsets[8 + 2 * k] = offsets[7 + 2 * k] + row;
  }
}

}  // namespace snnp

using namespace snnp;

int snnp_train(int64_t task, const void* memory, int64_t plan_bytes, const snnp_batch* batch, const snnp_training* arrays,
               snnp_report* report) {
  *report = {SNNP_OK, 0, 0, 0.0};
  const Plan* plan = static_cast<const Plan*>(memory);
  if (!plan_is_sound(memory, plan_bytes) || plan->evaluator == kSpline || plan->phi.n_groups || task < SNNP_FEATURES ||
      task > SNNP_LEARN)
    return static_cast<int>(report->status = SNNP_BAD_PLAN);
  int64_t n_parts = batch->n_threads < batch->n_atoms / 8 ? batch->n_threads : batch->n_atoms / 8;
  n_parts = n_parts < 1 ? 1 : n_parts;
  Job job = {plan, task, n_parts, batch, arrays, 0, 0, nullptr, nullptr};
  int64_t offsets[kGradientParts + 1];
  gradient_layout(plan, offsets);
  if (task == SNNP_LEARN) job.gradient_bytes = job.bytes = offsets[kGradientParts] * plan->real_size;
  if (task == SNNP_PREDICT && arrays->forces) job.bytes = batch->n_atoms * 24 + batch->n_structures * 72;
  void* memory_of_sums = calloc(static_cast<size_t>(n_parts * job.bytes + kPad), 1);
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

int snnp_gradient_layout(const void* memory, int64_t plan_bytes, int64_t* offsets) {
  if (!plan_is_sound(memory, plan_bytes)) return SNNP_BAD_PLAN;
  gradient_layout(static_cast<const Plan*>(memory), offsets);
  return SNNP_OK;
}
