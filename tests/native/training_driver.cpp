// Replays calls of snnp_train that training.py has recorded, each array in an allocation of its own.
#include <string.h>

#include "driver.h"
#include "snnp_kernels.h"

namespace {

enum { kPlan, kRows, kShift, kOwner, kFirst, kNeighbour, kSpecies, kX, kY, kZ, kR, kBlobs };
enum { kAbsent = 0, kInput = 1, kOutput = 2 };
constexpr int kArrays = 11;  // of snnp_training, all of them pointers

void replay_one(FILE* file, FILE* out, const Blob* blobs, const snnp_batch& batch) {
  const int64_t task = read_number(file);
  void* pointers[kArrays] = {};
  int64_t roles[kArrays], sizes[kArrays] = {};
  for (int k = 0; k < kArrays; ++k) {
    roles[k] = read_number(file);
    if (roles[k] == kInput) {
      const Blob blob = read_blob(file);
      pointers[k] = blob.data ? blob.data : aligned(0);
    } else if (roles[k] == kOutput) {
      sizes[k] = read_number(file);
      pointers[k] = aligned(sizes[k]);
      memset(pointers[k], 0, static_cast<size_t>(sizes[k]));
    }
  }
  static_assert(sizeof(snnp_training) == sizeof pointers, "snnp_training has other members");
  snnp_training arrays;
  memcpy(&arrays, pointers, sizeof arrays);
  snnp_report report;
  if (snnp_train(task, blobs[kPlan].data, blobs[kPlan].bytes, &batch, &arrays, &report)) {
    fprintf(stderr, "driver: snnp_train reports status %d\n", static_cast<int>(report.status));
    exit(1);
  }
  for (int k = 0; k < kArrays; ++k) {
    if (roles[k] == kOutput) fwrite(pointers[k], 1, static_cast<size_t>(sizes[k]), out);
    free(pointers[k]);
  }
}

}  // namespace

void replay_training(FILE* file, const char* result) {
  Blob blobs[kBlobs];
  for (Blob& blob : blobs) blob = read_blob(file);
  snnp_batch batch = {blobs[kRows].bytes / 8, read_number(file), read_number(file)};
  batch.rows = static_cast<int64_t*>(blobs[kRows].data);
  batch.shift = static_cast<int64_t*>(blobs[kShift].data);
  batch.owner = static_cast<int32_t*>(blobs[kOwner].data);
  batch.first = static_cast<int64_t*>(blobs[kFirst].data);
  batch.neighbour = static_cast<int32_t*>(blobs[kNeighbour].data);
  batch.species = static_cast<int32_t*>(blobs[kSpecies].data);
  batch.x = blobs[kX].data;
  batch.y = blobs[kY].data;
  batch.z = blobs[kZ].data;
  batch.r = blobs[kR].data;
  FILE* out = fopen(result, "wb");
  if (!out) fail("cannot write the result");
  for (int64_t n_calls = read_number(file); n_calls > 0; --n_calls) replay_one(file, out, blobs, batch);
  fclose(out);
  for (Blob& blob : blobs) free(blob.data);
}
