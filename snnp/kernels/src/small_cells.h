// Neighbour lists of many small structures at once.
#pragma once
#include <stdint.h>

#include "snnp_kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// Structures stand one behind the other; atoms and images of each are numbered from 0. Entries of an atom are sorted by
// neighbour, then by shift; `images` of a structure are those shifts that occur, in order.
typedef struct {
  int64_t n_structures, capacity;  // capacity: entries (and images) that there is room for
  double reach;                    // Angstrom
  const int64_t* sizes;            // [B], no zero among them
  const double* positions;         // [N, 3]
  const double *boxes, *inverses;  // [B, 3, 3] with rows that are vectors in open directions, too; and their inverses
  const uint8_t* periodic;         // [B, 3]
  int64_t* lengths;                // [N] out: entries of each atom
  int32_t *neighbour, *image;      // [capacity] out
  double* shifts;                  // [capacity, 3] out
  int64_t* n_images;               // [B] out
} snnp_small_cells;

// The number of entries, which are complete only if they do not exceed the capacity; -1 where memory does not suffice or
// atoms of one structure are too many cells apart to number its images.
SNNP_API int64_t snnp_find_small(const snnp_small_cells* cells);

#ifdef __cplusplus
}
#endif
