// Features of an atom to its energy and back: network, skip and embedding; see snnp/models/spline/readout.py.
#pragma once
#include "atom.h"

namespace snnp {
namespace SNNP_TARGET {

template <typename T>
struct Readout {
  T* x;                        // standardised features
  T* hidden[kMaxLayers];       // values behind each layer
  T* slopes[kMaxLayers];       // slopes of the activations
  T *gradient, *next;

  void allocate(Arena& arena, const Plan* plan) {
    const void* alone = plan;
    allocate(arena, &alone, 1);
  }
  // For any of several models with the same features.
  void allocate(Arena& arena, const void* const* plans, int64_t n_plans) {
    const int64_t features = static_cast<const Plan*>(plans[0])->feature_stride;
    int64_t widest = features;
    x = arena.take<T>(features);
    for (int64_t k = 0; k < kMaxLayers; ++k) {
      int64_t size = 0;
      for (int64_t m = 0; m < n_plans; ++m) {
        const Plan* plan = static_cast<const Plan*>(plans[m]);
        if (k < plan->n_layers && plan->layers[k].out_stride > size) size = plan->layers[k].out_stride;
      }
      hidden[k] = arena.take<T>(size);
      slopes[k] = arena.take<T>(size);
      widest = size > widest ? size : widest;
    }
    gradient = arena.take<T>(widest);
    next = arena.take<T>(widest);
  }
};

// sum_k a[k] b[k] in double, over rows padded to whole vectors with zeros in one of them.
template <typename T>
inline double dot(const T* a, const T* b, int64_t n) {
  constexpr int parts = 8;  // rows have multiples of 64 bytes
  double sums[parts] = {};
  for (int64_t k = 0; k < n; k += parts)
    for (int q = 0; q < parts; ++q) sums[q] += double(a[k + q]) * double(b[k + q]);
  return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

// out [n_out padded] = start + sum_k in[k] matrix[k, :]; the sums of up to 4 vectors stay in registers.
template <typename T>
inline void multiply(const T* matrix, int64_t stride, const T* in, int64_t n_in, const T* start, T* out) {
  constexpr int W = Lanes<T>::W;
  int64_t b = 0;
  for (; b + 2 * W <= stride; b += 2 * W) {
    Vec<T> s[8];
    for (int k = 0; k < 8; ++k) s[k] = all<T>(0);
    if (start) s[0] = load<T>(start + b), s[1] = load<T>(start + b + W);
    const T* row = matrix + b;
    int64_t k = 0;
    for (; k + 4 <= n_in; k += 4, row += 4 * stride)
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        s[2 * c] += in[k + c] * load<T>(row + c * stride);
        s[2 * c + 1] += in[k + c] * load<T>(row + c * stride + W);
      }
    for (; k < n_in; ++k, row += stride) {
      s[0] += in[k] * load<T>(row);
      s[1] += in[k] * load<T>(row + W);
    }
    store<T>(out + b, (s[0] + s[2]) + (s[4] + s[6]));
    store<T>(out + b + W, (s[1] + s[3]) + (s[5] + s[7]));
  }
  for (; b < stride; b += W) {
    Vec<T> s[4];
    for (int k = 0; k < 4; ++k) s[k] = all<T>(0);
    if (start) s[0] = load<T>(start + b);
    const T* row = matrix + b;
    int64_t k = 0;
    for (; k + 4 <= n_in; k += 4, row += 4 * stride)
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) s[c] += in[k + c] * load<T>(row + c * stride);
    for (; k < n_in; ++k, row += stride) s[0] += in[k] * load<T>(row);
    store<T>(out + b, (s[0] + s[1]) + (s[2] + s[3]));
  }
}

template <typename T>
inline void activate(int64_t kind, T* values, T* slopes, int64_t n) {
  for (int64_t k = 0; k < n; k += Lanes<T>::W) {
    const Vec<T> x = load<T>(values + k);
    Vec<T> value, slope;
    if (kind == kSilu) {
      const Vec<T> s = T(1) / (T(1) + exponential<T>(-x));
      value = x * s;
      slope = s + value * (T(1) - s);
    } else {
      const Vec<T> size = x < T(0) ? -x : x;
      if (kind == kTanh) {
        const Vec<T> e = exponential<T>(T(-2) * size), t = (T(1) - e) / (T(1) + e);
        value = x < T(0) ? -t : t;
        slope = T(1) - value * value;
      } else {
        const Vec<T> e = exponential<T>(-size), fraction = T(1) / (T(1) + e);
        value = maximum<T>(x, all<T>(0)) + log_one_plus<T>(e);
        slope = x < T(0) ? e * fraction : fraction;
      }
    }
    store<T>(values + k, value);
    store<T>(slopes + k, slope);
  }
}

// Energy of the network at work.x; its gradient in x goes to work.gradient.
template <typename T>
inline double network(const Plan* plan, int64_t species, Readout<T>& work) {
  const int64_t copy = plan->n_copies > 1 ? species : 0, last = plan->n_layers - 1;
  const T* in = work.x;
  for (int64_t k = 0; k < last; ++k) {
    const Layer& layer = plan->layers[k];
    const T* matrix = at<T>(plan, layer.forward) + copy * layer.n_in * layer.out_stride;
    const T* bias = at<T>(plan, layer.bias) + copy * layer.out_stride;
    multiply<T>(matrix, layer.out_stride, in, layer.n_in, bias, work.hidden[k]);
    activate<T>(plan->activation, work.hidden[k], work.slopes[k], layer.out_stride);
    in = work.hidden[k];
  }
  const Layer& top = plan->layers[last];
  const T* weights = at<T>(plan, top.backward) + copy * top.n_out * top.in_stride;
  const double energy = double(at<T>(plan, top.bias)[copy * top.out_stride]) + dot<T>(weights, in, top.in_stride);
  T *gradient = work.gradient, *next = work.next;
  memcpy(gradient, weights, top.in_stride * sizeof(T));
  for (int64_t k = last - 1; k >= 0; --k) {
    const Layer& layer = plan->layers[k];
    for (int64_t q = 0; q < layer.out_stride; q += Lanes<T>::W)
      store<T>(gradient + q, load<T>(gradient + q) * load<T>(work.slopes[k] + q));
    const T* matrix = at<T>(plan, layer.backward) + copy * layer.n_out * layer.in_stride;
    multiply<T>(matrix, layer.in_stride, gradient, layer.n_out, nullptr, next);
    T* swapped = gradient;
    gradient = next;
    next = swapped;
  }
  work.gradient = gradient;
  work.next = next;
  return energy;
}

// Value and slope of one embedding spline at x.
template <typename T>
inline void embed(const Plan* plan, int64_t species, int64_t filter, T x, double& value, T& slope) {
  const Table& table = plan->embedding;
  const Segment<T> s = segment<T>(plan, table, species, x);
  const T* c = s.row + filter;
  const T c0 = c[0], c1 = c[table.stride], c2 = c[2 * table.stride], c3 = c[3 * table.stride];
  value = double(c0 + s.u * (c1 + s.u * (c2 + s.u * c3)));
  slope = s.inverse * (c1 + s.u * (T(2) * c2 + s.u * (T(3) * c3)));
}

// Energy (without E0) of an atom with the given features; h receives dE/dfeatures. Both have feature_stride numbers.
template <typename T>
inline double read_out(const Plan* plan, int64_t species, const T* features, Readout<T>& work, T* h) {
  const int64_t d = plan->n_features;
  const T* mean = at<T>(plan, plan->mean);
  const T* inverse = at<T>(plan, plan->inverse_std);
  const T* linear = at<T>(plan, plan->linear) + species * plan->feature_stride;
  constexpr int W = Lanes<T>::W;
  for (int64_t a = 0; a < plan->feature_stride; a += W) {
    const Vec<T> x = (load<T>(features + a) - load<T>(mean + a)) * load<T>(inverse + a);
    store<T>(work.x + a, lane_numbers<T>() < static_cast<int>(d - a) ? x : all<T>(0));
    store<T>(h + a, load<T>(linear + a) * load<T>(inverse + a));
  }
  double energy = dot<T>(linear, work.x, plan->feature_stride);
  if (plan->n_layers) {
    energy += network<T>(plan, species, work);
    for (int64_t a = 0; a < plan->feature_stride; a += W)
      store<T>(h + a, load<T>(h + a) + load<T>(work.gradient + a) * load<T>(inverse + a));
  }
  if (plan->embedding.n_groups) {
    double value;
    T slope;
    if (plan->embeds_sum) {
      T total = 0;
      for (int64_t a = 0; a < d; ++a) total += features[a];
      embed<T>(plan, species, 0, total, value, slope);
      energy += value;
      for (int64_t a = 0; a < d; ++a) h[a] += slope;
    } else {
      for (int64_t a = 0; a < d; ++a) {
        embed<T>(plan, species, a, features[a], value, slope);
        energy += value;
        h[a] += slope;
      }
    }
  }
  return energy;
}

}  // namespace SNNP_TARGET
}  // namespace snnp
