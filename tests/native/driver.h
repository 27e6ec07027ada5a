// What both parts of the driver share: files of arrays, and failing.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

// One allocation of exactly its size per array, so that a read beyond its end is seen.
struct Blob {
  void* data;
  int64_t bytes;
};

inline void fail(const char* what) {
  fprintf(stderr, "driver: %s\n", what);
  exit(1);
}

inline void* aligned(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, static_cast<size_t>(bytes ? bytes : 1))) fail("no memory");
  return memory;
}

inline int64_t read_number(FILE* file) {
  int64_t number = 0;
  if (fread(&number, sizeof number, 1, file) != 1) fail("the case file is too short");
  return number;
}

// An empty blob is a null pointer.
inline Blob read_blob(FILE* file) {
  Blob blob = {nullptr, read_number(file)};
  if (blob.bytes == 0) return blob;
  blob.data = aligned(blob.bytes);
  if (fread(blob.data, 1, static_cast<size_t>(blob.bytes), file) != static_cast<size_t>(blob.bytes))
    fail("the case file is too short");
  return blob;
}

// Replays recorded calls of snnp_train from a file that is open behind its first number.
void replay_training(FILE* file, const char* result);
