// C interface of the kernels; no type of any other library appears here. All functions may be called from any thread.
#pragma once
#include <stdint.h>

#ifdef _WIN32
#define SNNP_API __declspec(dllexport)
#else
#define SNNP_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum snnp_status {
  SNNP_OK = 0,
  SNNP_BAD_PLAN = 1,      // damaged, or of another version
  SNNP_OVERLAP = 2,       // atoms `i` and `j` are `value` Angstrom apart (or a position is NaN)
  SNNP_NO_MEMORY = 3,
  SNNP_BAD_LIST = 4,      // entry `i` of the neighbour list points outside the system
  SNNP_UNSORTED = 5,      // stored pairs of atom `i` that share functions and channel do not stand together
};

typedef struct {
  int64_t status, i, j;
  double value;
} snnp_report;

// Lengths in Angstrom, energies in eV. A neighbour entry e of atom i stands for the atom neighbour[e] shifted by
// images[image[e]]. Entries beyond the cutoff are skipped, so that a list may have a skin. Of the N atoms the first C are centres,
// which have an energy and a row of the list: all of them, unless a `snnp_domain` says less.
typedef struct {
  int64_t n_atoms, n_structures, n_images;
  const double* positions;     // [N, 3]
  const int32_t* species;      // [N] index of the element in the model
  const int32_t* structure;    // [C] or NULL (one structure)
  const int64_t* first;        // [C + 1] rows of the list
  const int32_t* neighbour;    // [P]
  const int32_t* image;        // [P] or NULL: nothing is shifted
  const double* images;        // [n_images, 3]
  const double* weights;       // [C] or NULL: forces and virial are those of sum_i weights_i E_i
  int64_t n_threads;           // parts of the work; results are the same for the same number
  double* energies;            // [C] out, with E0
  double* forces;              // [N, 3] out, or NULL
  double* virial;              // [B, 9] out: sum of r_ij (x) dE/dr_ij
} snnp_system;

// One domain of a parallel program: atoms behind the centres are neighbours alone (ghosts, whose forces go back to their owners).
typedef struct {
  int64_t n_centres;
  double* atom_virials;        // [N, 9] out with forces, or NULL: the part of atom j, sum over i of r_ij (x) dE_i/dr_ij
} snnp_domain;

// Several models that are the same but for their readout and E0 (functions, cutoffs, pair term, repulsion), on one encoding of the
// neighbours: the functions are those of the first, and energies, forces and virial of the system are those of their mean.
typedef struct {
  int64_t n_heads;
  const void* const* plans;    // [M] the packed models
  const int64_t* plan_bytes;   // [M]
  double* energies;            // [M, C] out, with E0
  double* forces;              // [M, N, 3] out, or NULL: they take a way back through the functions for every head
  // Heads of at most one hidden layer, where their forces are not asked for, are one network: NULL, or their mean as a packed
  // model whose H hidden units are those of all heads; from its D features (less mean, over deviation) and hidden units to the
  // heads, real [Z, D + H, M padded to 64 bytes], at a multiple of 64; and what each head adds to that, with E0 [Z, M].
  const void* joint;
  int64_t joint_bytes;
  const void* outputs;
  const double* offsets;
} snnp_heads;

// What a packed model says of itself. `numbers` and `reference` point into it.
typedef struct {
  int64_t version, real_size, n_elements;
  double cutoff;               // Angstrom
  const int32_t* numbers;      // [n_elements] atomic numbers, in the order of `species`
  const double* reference;     // [n_elements] E0, eV
} snnp_model;

SNNP_API int64_t snnp_version(void);
// Name of the instruction set in use: "avx512", "avx2" or "portable".
SNNP_API const char* snnp_target(void);
// Choose an instruction set by name; 0 if this machine or this build lacks it. For tests and benchmarks.
SNNP_API int snnp_set_target(const char* name);
// Do all entries of a neighbour list point into the system? `snnp_evaluate` trusts its list.
SNNP_API int snnp_check_list(int64_t n_atoms, int64_t n_images, const int64_t* first, const int32_t* neighbour,
                             const int32_t* image, snnp_report* report);
// Sort pairs (i, j, shift in cells) by i into `first`, `neighbour`, `image`; the image of a shift s, with |s_a| <= reach_a, is
// ((s_0 + reach_0) (2 reach_1 + 1) + s_1 + reach_1) (2 reach_2 + 1) + s_2 + reach_2, plus their number times structure[i].
// From a half list every pair is entered in both directions.
typedef struct {
  int64_t n_atoms, n_pairs, half;
  const int64_t *i, *j;        // [P]
  const int32_t* shift;        // [P, 3]
  const int32_t* structure;    // [N] or NULL
  int64_t reach[3];
  int64_t* first;              // [N + 1] out
  int32_t *neighbour, *image;  // [P] out, or [2 P] from a half list
} snnp_pairs;
SNNP_API void snnp_pack_list(const snnp_pairs* pairs);
// Largest square of |x_k - (reference_k @ map)| over all atoms; NaN where a position is NaN. map [3, 3] or NULL.
SNNP_API double snnp_largest_move(int64_t n_atoms, const double* positions, const double* reference, const double* map);
// SNNP_OK, or SNNP_BAD_PLAN for a block that is damaged, of another version, or does not start at a multiple of 64.
SNNP_API int snnp_describe(const void* plan, int64_t plan_bytes, snnp_model* model);
SNNP_API int snnp_evaluate(const void* plan, int64_t plan_bytes, const snnp_system* system, snnp_report* report);
SNNP_API int snnp_evaluate_domain(const void* plan, int64_t plan_bytes, const snnp_system* system, const snnp_domain* domain,
                                  snnp_report* report);
// SNNP_BAD_PLAN, too, for models of other elements, numbers of features or float types than the first.
SNNP_API int snnp_evaluate_heads(const snnp_heads* heads, const snnp_system* system, snnp_report* report);

// Training on the atoms `rows` of stored pairs; "real" is the float type of the plan, which must have no pair term and no
// angles evaluated as splines. Splines are given by their B-spline coefficients besides; of the plan's own tables only that
// of the embedding is read (by PREDICT). Pairs of an atom are sorted by group and channel, and within these best by distance.
typedef struct {
  int64_t n_atoms, n_structures, n_threads;
  const int64_t *rows, *shift;          // [n] stored index of each atom; stored minus local index
  const int32_t* owner;                 // [n] structure within the batch
  const int64_t* first;                 // of all stored atoms: pairs of atom k are first[k] .. first[k + 1]
  const int32_t *neighbour, *species;   // [P] stored index, [N]
  const void *x, *y, *z, *r;            // real [P]: unit vectors and distances
} snnp_batch;

enum snnp_task { SNNP_FEATURES = 0, SNNP_PREDICT = 1, SNNP_LEARN = 2 };

// in:  rho, f, embedding: real [G, K + 1, stride], rows of B-spline coefficients (K segments as in the plan's tables).
//      LEARN: e = dL/dE [n], p = dL/dF [n, 3] and s = dL/dvirial [B, 9] (s_ab belongs to r_a F_b), both NULL for energies alone.
// out: FEATURES: features, real [n, feature_stride]. PREDICT: energies [n] without E0 and repulsion; where `forces` is not
//      NULL forces [n, 3] and virial [B, 9]. LEARN: gradient of L, real, laid out as `snnp_gradient_layout` says.
typedef struct {
  const void *rho, *f, *embedding;
  const double *e, *p, *s;
  void* features;
  double *energies, *forces, *virial;
  void* gradient;
} snnp_training;

SNNP_API int snnp_train(int64_t task, const void* plan, int64_t plan_bytes, const snnp_batch* batch,
                        const snnp_training* arrays, snnp_report* report);
// Where the parts of a gradient begin, in numbers: rho, f, legendre, at_one, linear, embedding, then weight [copies, in,
// out_stride] and bias [copies, out_stride] of each of 8 layers (empty beyond the last), then the whole size: 23 offsets.
SNNP_API int snnp_gradient_layout(const void* plan, int64_t plan_bytes, int64_t* offsets);

#ifdef __cplusplus
}
#endif
