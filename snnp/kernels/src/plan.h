// The model as one block of memory, written by snnp/kernels/cpu/library.py (the layouts must change together).
#pragma once
#include <stdint.h>

namespace snnp {

constexpr int64_t kMagic = 0x504e4e5373706c6e;
constexpr int64_t kVersion = 4;  // of this layout and of the interface in snnp_kernels.h
constexpr int kMaxLayers = 8;
constexpr int kPad = 64;  // bytes: rows of filters are padded to the widest vector

enum Evaluator : int64_t { kNone = 0, kLegendre = 1, kSpline = 2 };
enum Activation : int64_t { kSilu = 0, kTanh = 1, kSoftplus = 2 };

// Offsets count bytes from the start of the block; rows of filters are `stride` numbers apart.
struct Table {
  int64_t n_groups, n_segments, n_filters, stride;
  int64_t lower, inverse, counts;  // real [G], real [G], int32 [G] (n, without the segments beyond the ends)
  int64_t coefficients;            // real [G, K, 4, stride]
};

struct Layer {
  int64_t n_in, n_out, in_stride, out_stride;
  int64_t forward, backward, bias;  // real [C, in, out_stride], [C, out, in_stride], [C, out_stride]
};

struct Plan {
  int64_t magic, version, bytes, real_size;
  int64_t n_elements, n_channels, degree, evaluator;
  double cutoff, angular_cutoff, repulsion_inner, repulsion_outer;  // outer = 0: no repulsion
  double coulomb, screening, amplitudes[4], decays[4];              // of the repulsion, see snnp/models/repulsion.py
  int64_t numbers, reference, radial_group, pair_group;             // int32 [Z], double [Z], int32 [Z, Z] twice
  Table rho, f, phi, g, embedding;                                  // n_groups = 0: absent
  int64_t legendre, at_one;                                         // real [C, C, L + 1, stride], [C, stride]
  int64_t n_features, feature_stride, mean, inverse_std, linear;    // real [D], [D], [Z, D]
  int64_t n_layers, n_copies, activation, embeds_sum;
  Layer layers[kMaxLayers];
};

template <typename X>
inline const X* at(const Plan* plan, int64_t offset) {
  return reinterpret_cast<const X*>(reinterpret_cast<const char*>(plan) + offset);
}

}  // namespace snnp
