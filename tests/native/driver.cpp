// Runs the compiled kernels on a case file, without Python: what valgrind counts and sanitizers watch.
//
//     driver CASE RESULT TARGET CALLS THREADS CALLERS
//
// CASE is written by cases.py or training.py. A training case is replayed once. In any other, each of CALLERS threads packs the neighbour list, checks it, and evaluates CALLS times
// with THREADS threads of the kernel; energies, forces and virial of the first caller go to RESULT.
#include <pthread.h>
#include <string.h>

#include "driver.h"
#include "snnp_kernels.h"

namespace {

template <typename X>
X* allocate(int64_t count) {
  X* memory = static_cast<X*>(malloc(static_cast<size_t>(count ? count : 1) * sizeof(X)));
  if (!memory) fail("no memory");
  return memory;
}

enum { kPlan, kPositions, kSpecies, kStructure, kI, kJ, kShift, kReach, kHalf, kImages, kWeights, kCells, kBlobs };

struct Caller {
  Blob* blobs;
  int64_t n_calls, n_threads;
  double *energies, *forces, *virial;
  pthread_t thread;
};

int64_t n_atoms(const Blob* blobs) { return blobs[kSpecies].bytes / 4; }
int64_t n_structures(const Blob* blobs) { return blobs[kCells].bytes / 72; }

void* run(void* context) {
  Caller* caller = static_cast<Caller*>(context);
  const Blob* b = caller->blobs;
  const int64_t n = n_atoms(b), n_pairs = b[kI].bytes / 8, half = *static_cast<int64_t*>(b[kHalf].data);
  snnp_pairs pairs = {n, n_pairs, half};
  pairs.i = static_cast<int64_t*>(b[kI].data);
  pairs.j = static_cast<int64_t*>(b[kJ].data);
  pairs.shift = static_cast<int32_t*>(b[kShift].data);
  pairs.structure = static_cast<int32_t*>(b[kStructure].data);
  memcpy(pairs.reach, b[kReach].data, sizeof pairs.reach);
  pairs.first = allocate<int64_t>(n + 1);
  pairs.neighbour = allocate<int32_t>(half ? 2 * n_pairs : n_pairs);
  pairs.image = allocate<int32_t>(half ? 2 * n_pairs : n_pairs);
  snnp_pack_list(&pairs);
  snnp_report report;
  const int64_t n_images = b[kImages].bytes / 24;
  if (snnp_check_list(n, n_images, pairs.first, pairs.neighbour, pairs.image, &report)) fail("the list is not sound");
  const double* x = static_cast<double*>(b[kPositions].data);
  if (snnp_largest_move(n, x, x, nullptr) != 0.0) fail("atoms at rest have moved");
  caller->energies = allocate<double>(n);
  caller->forces = allocate<double>(3 * n);
  caller->virial = allocate<double>(9 * n_structures(b));
  snnp_system system = {n, n_structures(b), n_images, x};
  system.species = static_cast<int32_t*>(b[kSpecies].data);
  system.structure = pairs.structure;
  system.first = pairs.first;
  system.neighbour = pairs.neighbour;
  system.image = pairs.image;
  system.images = static_cast<double*>(b[kImages].data);
  system.weights = static_cast<double*>(b[kWeights].data);
  system.n_threads = caller->n_threads;
  system.energies = caller->energies;
  system.forces = caller->forces;
  system.virial = caller->virial;
  for (int64_t call = 0; call < caller->n_calls; ++call)
    if (snnp_evaluate(b[kPlan].data, b[kPlan].bytes, &system, &report)) {
      fprintf(stderr, "driver: snnp_evaluate reports status %d\n", static_cast<int>(report.status));
      exit(1);
    }
  free(pairs.first);
  free(pairs.neighbour);
  free(pairs.image);
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) fail("usage: driver CASE RESULT TARGET CALLS THREADS CALLERS");
  if (!snnp_set_target(argv[3])) fail("this machine or library has no such instruction set");
  FILE* file = fopen(argv[1], "rb");
  if (!file) fail("cannot read the case file");
  if (read_number(file)) {
    replay_training(file, argv[2]);
    fclose(file);
    return 0;
  }
  Blob blobs[kBlobs];
  for (Blob& blob : blobs) blob = read_blob(file);
  fclose(file);
  const int64_t n_callers = atoll(argv[6]);
  Caller* callers = allocate<Caller>(n_callers);
  for (int64_t k = 0; k < n_callers; ++k) {
    callers[k] = {blobs, atoll(argv[4]), atoll(argv[5]), nullptr, nullptr, nullptr, pthread_t()};
    if (k > 0 && pthread_create(&callers[k].thread, nullptr, run, callers + k)) fail("cannot start a thread");
  }
  run(callers);
  for (int64_t k = 1; k < n_callers; ++k) pthread_join(callers[k].thread, nullptr);
  const int64_t n = n_atoms(blobs);
  file = fopen(argv[2], "wb");
  if (!file) fail("cannot write the result");
  fwrite(callers[0].energies, sizeof(double), static_cast<size_t>(n), file);
  fwrite(callers[0].forces, sizeof(double), static_cast<size_t>(3 * n), file);
  fwrite(callers[0].virial, sizeof(double), static_cast<size_t>(9 * n_structures(blobs)), file);
  fclose(file);
  for (int64_t k = 1; k < n_callers; ++k)
    if (memcmp(callers[k].forces, callers[0].forces, static_cast<size_t>(24 * n))) fail("callers disagree");
  for (int64_t k = 0; k < n_callers; ++k) {
    free(callers[k].energies);
    free(callers[k].forces);
    free(callers[k].virial);
  }
  free(callers);
  for (Blob& blob : blobs) free(blob.data);
  return 0;
}
