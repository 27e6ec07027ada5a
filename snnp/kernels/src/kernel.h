// What a compiled instruction set offers to the dispatcher.
#pragma once
#include "plan.h"
#include "snnp_kernels.h"

namespace snnp {

// Centres [begin, end) of one thread with its own forces [N, 3], virials of atoms [N, 9] (or NULL) and virials [B, 6]. Of
// several heads (or NULL) there are forces of the mean, or those of each [M, N, 3] and the sum of their virials.
struct Part {
  int64_t begin, end;
  double *forces, *atom_virials, *virial;
  const snnp_heads* heads;
  double* head_forces;
};

using EvaluatePart = void (*)(const Plan*, const snnp_system&, const Part&, snnp_report*);

// Atoms [begin, end) of a batch. Sums over atoms (forces and virial, or the gradient) have arrays of their own.
struct TrainingPart {
  int64_t task, begin, end;
  const snnp_batch* batch;
  const snnp_training* arrays;
  double *forces, *virial;
  void* gradient;
};

// Where each part of a gradient begins, and its whole size, in numbers: see snnp_gradient_layout.
constexpr int kGradientParts = 6 + 2 * kMaxLayers;
void gradient_layout(const Plan* plan, int64_t* offsets);

using TrainPart = void (*)(const Plan*, const TrainingPart&, snnp_report*);

TrainPart chosen_training();  // of the instruction set in use

}  // namespace snnp
