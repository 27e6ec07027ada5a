// What a compiled instruction set offers to the dispatcher.
#pragma once
#include "plan.h"
#include "snnp_kernels.h"

namespace snnp {

// Atoms [begin, end) of one thread with its own forces [N, 3] (or NULL) and virials [B, 6].
struct Part {
  int64_t begin, end;
  double *forces, *virial;
};

using EvaluatePart = void (*)(const Plan*, const snnp_system&, const Part&, snnp_report*);

}  // namespace snnp
