#include "check.h"

#include "harmonic_tables.h"

namespace snnp {

const HarmonicTables<float> harmonic_tables_float = {};
const HarmonicTables<double> harmonic_tables_double = {};

namespace {

constexpr int64_t kMost = int64_t(1) << 40;  // no count comes near; products of two stay in 64 bits after `fits`

struct Checker {
  const Plan* plan;
  bool sound = true;

  void require(bool condition) { sound = sound && condition; }

  // `count` numbers of `size` bytes at `offset`, aligned to `alignment`.
  void fits(int64_t offset, int64_t count, int64_t size, int64_t alignment) {
    require(count >= 0 && count < kMost / 64 && offset >= int64_t(sizeof(Plan)) && offset % alignment == 0);
    require(offset <= plan->bytes && count * size <= plan->bytes - offset);
  }
  void reals(int64_t offset, int64_t count) { fits(offset, count, plan->real_size, kPad); }

  void padded(int64_t stride, int64_t n) {
    require(n >= 0 && n <= stride && stride < kMost / 64 && stride * plan->real_size % kPad == 0);
  }

  void table(const Table& t) {
    require(t.n_groups >= 0 && t.n_groups < 65536);
    if (!sound || !t.n_groups) return;
    require(t.n_segments > 2 && t.n_segments < 65536 && t.n_filters >= 0);
    padded(t.stride, t.n_filters);
    if (!sound) return;
    reals(t.lower, t.n_groups);
    reals(t.inverse, t.n_groups);
    fits(t.counts, t.n_groups, 4, kPad);
    require(t.stride < 65536);
    if (!sound) return;
    reals(t.coefficients, t.n_groups * t.n_segments * 4 * t.stride);
    for (int64_t g = 0; sound && g < t.n_groups; ++g) {
      const int32_t n = at<int32_t>(plan, t.counts)[g];
      require(n >= 1 && n + 2 <= t.n_segments);
    }
  }

  void groups(int64_t offset, int64_t n_groups) {
    const int64_t z = plan->n_elements;
    fits(offset, z * z, 4, kPad);
    for (int64_t k = 0; sound && k < z * z; ++k) {
      const int32_t group = at<int32_t>(plan, offset)[k];
      require(group >= 0 && (group < n_groups || n_groups == 0));
    }
  }

  void network() {
    require(plan->n_layers >= 0 && plan->n_layers <= kMaxLayers);
    require(plan->n_copies == 1 || plan->n_copies == plan->n_elements);
    int64_t n_in = plan->n_features;
    for (int64_t k = 0; sound && k < plan->n_layers; ++k) {
      const Layer& layer = plan->layers[k];
      require(layer.n_in == n_in && layer.n_out > 0 && layer.n_out < 65536);
      padded(layer.in_stride, layer.n_in);
      padded(layer.out_stride, layer.n_out);
      require(layer.in_stride < 131072 && layer.out_stride < 131072);
      if (!sound) return;
      require(layer.in_stride == (k ? plan->layers[k - 1].out_stride : plan->feature_stride));
      reals(layer.forward, plan->n_copies * layer.n_in * layer.out_stride);
      reals(layer.backward, plan->n_copies * layer.n_out * layer.in_stride);
      reals(layer.bias, plan->n_copies * layer.out_stride);
      n_in = layer.n_out;
    }
    require(plan->n_layers == 0 || n_in == 1);
  }

  void angular() {
    const int64_t c = plan->n_channels, stride = plan->f.stride;
    require(plan->f.n_groups > 0 && (c == 1 || c == plan->n_elements));
    require(plan->degree >= 0 && plan->degree <= kMaxDegree && plan->angular_cutoff <= plan->cutoff);
    if (!sound) return;
    groups(plan->radial_group, plan->f.n_groups);
    if (plan->evaluator == kLegendre) {
      reals(plan->legendre, c * c * (plan->degree + 1) * stride);
      reals(plan->at_one, c * stride);
    } else {
      require(plan->g.n_groups > 0 && plan->g.n_filters == plan->f.n_filters && plan->g.stride == stride);
      if (plan->g.n_groups > 1) groups(plan->pair_group, plan->g.n_groups);
    }
  }

  bool run() {
    require(plan->real_size == 4 || plan->real_size == 8);
    require(plan->n_elements > 0 && plan->n_elements < 256);
    require(plan->evaluator == kNone || plan->evaluator == kLegendre || plan->evaluator == kSpline);
    require(plan->cutoff > 0);
    if (!sound) return false;
    fits(plan->numbers, plan->n_elements, 4, kPad);
    fits(plan->reference, plan->n_elements, 8, kPad);
    const Table* const tables[] = {&plan->rho, &plan->f, &plan->phi, &plan->g, &plan->embedding};
    for (const Table* t : tables) table(*t);
    if (!sound) return false;
    groups(plan->radial_group, plan->rho.n_filters ? plan->rho.n_groups : 0);
    groups(plan->pair_group, plan->phi.n_groups);
    if (plan->evaluator != kNone) angular();
    require(plan->n_features == plan->rho.n_filters + (plan->evaluator == kNone ? 0 : plan->f.n_filters));
    padded(plan->feature_stride, plan->n_features);
    if (!sound) return false;
    reals(plan->mean, plan->feature_stride);
    reals(plan->inverse_std, plan->feature_stride);
    reals(plan->linear, plan->n_elements * plan->feature_stride);
    network();
    if (plan->embedding.n_groups) {
      require(plan->embedding.n_groups == plan->n_elements);
      require(plan->embedding.n_filters == (plan->embeds_sum ? 1 : plan->n_features));
    }
    return sound;
  }
};

}  // namespace

bool plan_is_sound(const void* memory, int64_t bytes) {
  if (bytes < int64_t(sizeof(Plan)) || reinterpret_cast<uintptr_t>(memory) % kPad != 0) return false;
  const Plan* plan = static_cast<const Plan*>(memory);
  if (plan->magic != kMagic || plan->version != kVersion || plan->bytes != bytes) return false;
  Checker checker = {plan};
  return checker.run();
}

}  // namespace snnp
