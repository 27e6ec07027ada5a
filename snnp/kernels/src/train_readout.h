// Derivatives of the readout: with features G moving along G', those of e E + dE/dG . G' in all parameters, in G and in G'.
#pragma once
#include "readout.h"

namespace snnp {
namespace SNNP_TARGET {

// Where the gradient of each kind of parameter goes, in the layouts of the tables they belong to.
template <typename T>
struct Gradients {
  T *rho, *f, *legendre, *at_one, *linear, *embedding;
  T *weight[kMaxLayers], *bias[kMaxLayers];
};

template <typename T>
struct DualReadout {
  T *x, *x_dot;                                      // standardised features and their derivatives
  T *value[kMaxLayers], *dot[kMaxLayers];            // behind each layer
  T *slope[kMaxLayers], *curve[kMaxLayers];          // act'(z), act''(z) z'
  T *bar, *bar_dot, *next, *next_dot;

  void allocate(Arena& arena, const Plan* plan) {
    int64_t widest = plan->feature_stride;
    x = arena.take<T>(plan->feature_stride);
    x_dot = arena.take<T>(plan->feature_stride);
    for (int64_t k = 0; k < plan->n_layers; ++k) {
      const int64_t size = plan->layers[k].out_stride;
      T** const arrays[] = {&value[k], &dot[k], &slope[k], &curve[k]};
      for (T** array : arrays) *array = arena.take<T>(size);
      widest = size > widest ? size : widest;
    }
    T** const arrays[] = {&bar, &bar_dot, &next, &next_dot};
    for (T** array : arrays) *array = arena.take<T>(widest);
  }
};

// out = start + in matrix and out_dot = in_dot matrix, rows of the matrix being loaded once.
template <typename T>
inline void multiply_both(const T* matrix, int64_t stride, const T* in, const T* in_dot, int64_t n_in, const T* start, T* out,
                          T* out_dot) {
  constexpr int W = Lanes<T>::W;
  for (int64_t b = 0; b < stride; b += W) {
    Vec<T> s[2] = {start ? load<T>(start + b) : all<T>(0), all<T>(0)}, t[2] = {all<T>(0), all<T>(0)};
    const T* row = matrix + b;
    int64_t k = 0;
    for (; k + 2 <= n_in; k += 2, row += 2 * stride)
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c) {
        const Vec<T> weights = load<T>(row + c * stride);
        s[c] += in[k + c] * weights;
        t[c] += in_dot[k + c] * weights;
      }
    if (k < n_in) s[0] += in[k] * load<T>(row), t[0] += in_dot[k] * load<T>(row);
    store<T>(out + b, s[0] + s[1]);
    store<T>(out_dot + b, t[0] + t[1]);
  }
}

// Values a = act(z), a' = act'(z) z', and what the way back needs, from z and z'.
template <typename T>
inline void activate_both(int64_t kind, T* values, T* dots, T* slopes, T* curves, int64_t n) {
  for (int64_t k = 0; k < n; k += Lanes<T>::W) {
    const Vec<T> x = load<T>(values + k), x_dot = load<T>(dots + k);
    Vec<T> value, slope, curve;
    if (kind == kTanh) {
      const Vec<T> size = x < T(0) ? -x : x, e = exponential<T>(T(-2) * size), t = (T(1) - e) / (T(1) + e);
      value = x < T(0) ? -t : t;
      slope = T(1) - value * value;
      curve = T(-2) * value * slope;
    } else if (kind == kSilu) {
      const Vec<T> s = T(1) / (T(1) + exponential<T>(-x));
      value = x * s;
      slope = s + value * (T(1) - s);
      curve = s * (T(1) - s) * (T(2) + x * (T(1) - T(2) * s));
    } else {
      const Vec<T> size = x < T(0) ? -x : x, e = exponential<T>(-size), fraction = T(1) / (T(1) + e);
      value = maximum<T>(x, all<T>(0)) + log_one_plus<T>(e);
      slope = x < T(0) ? e * fraction : fraction;
      curve = slope * (T(1) - slope);
    }
    store<T>(values + k, value);
    store<T>(dots + k, slope * x_dot);
    store<T>(slopes + k, slope);
    store<T>(curves + k, curve * x_dot);
  }
}

// gradient [n_in, stride] += in (x) bar + in_dot (x) bar_dot.
template <typename T>
inline void add_products(const T* in, const T* in_dot, int64_t n_in, const T* bar, const T* bar_dot, int64_t stride, T* gradient) {
  constexpr int W = Lanes<T>::W;
  for (int64_t b = 0; b < stride; b += W) {
    const Vec<T> mine = load<T>(bar + b), dot = load<T>(bar_dot + b);
    T* out = gradient + b;
    for (int64_t k = 0; k < n_in; ++k, out += stride) store<T>(out, load<T>(out) + in[k] * mine + in_dot[k] * dot);
  }
}

// The network at work.x, work.x_dot; derivatives in these go to work.bar and work.bar_dot.
template <typename T>
inline void learn_network(const Plan* plan, int64_t species, T e, DualReadout<T>& work, Gradients<T>& out) {
  const int64_t copy = plan->n_copies > 1 ? species : 0, last = plan->n_layers - 1;
  const T *in = work.x, *in_dot = work.x_dot;
  for (int64_t k = 0; k < last; ++k) {
    const Layer& layer = plan->layers[k];
    const T* matrix = at<T>(plan, layer.forward) + copy * layer.n_in * layer.out_stride;
    const T* bias = at<T>(plan, layer.bias) + copy * layer.out_stride;
    multiply_both<T>(matrix, layer.out_stride, in, in_dot, layer.n_in, bias, work.value[k], work.dot[k]);
    activate_both<T>(plan->activation, work.value[k], work.dot[k], work.slope[k], work.curve[k], layer.out_stride);
    in = work.value[k];
    in_dot = work.dot[k];
  }
  const Layer& top = plan->layers[last];
  const T* weights = at<T>(plan, top.backward) + copy * top.in_stride;
  T* top_weight = out.weight[last] + copy * top.n_in * top.out_stride;
  for (int64_t k = 0; k < top.n_in; ++k) top_weight[k * top.out_stride] += e * in[k] + in_dot[k];
  out.bias[last][copy * top.out_stride] += e;
  for (int64_t k = 0; k < top.in_stride; ++k) {
    work.bar[k] = e * weights[k];
    work.bar_dot[k] = weights[k];
  }
  for (int64_t k = last - 1; k >= 0; --k) {
    const Layer& layer = plan->layers[k];
    T* bias = out.bias[k] + copy * layer.out_stride;
    for (int64_t q = 0; q < layer.out_stride; ++q) {
      work.bar[q] = work.slope[k][q] * work.bar[q] + work.curve[k][q] * work.bar_dot[q];
      work.bar_dot[q] *= work.slope[k][q];
      bias[q] += work.bar[q];
    }
    in = k ? work.value[k - 1] : work.x;
    in_dot = k ? work.dot[k - 1] : work.x_dot;
    T* weight = out.weight[k] + copy * layer.n_in * layer.out_stride;
    add_products<T>(in, in_dot, layer.n_in, work.bar, work.bar_dot, layer.out_stride, weight);
    const T* matrix = at<T>(plan, layer.backward) + copy * layer.n_out * layer.in_stride;
    multiply_both<T>(matrix, layer.in_stride, work.bar, work.bar_dot, layer.n_out, nullptr, work.next, work.next_dot);
    T* const kept[] = {work.bar, work.bar_dot};
    work.bar = work.next, work.bar_dot = work.next_dot;
    work.next = kept[0], work.next_dot = kept[1];
  }
}

// One embedding spline at x moving with x_dot: adds derivatives in x and x_dot to g and h, and those in its coefficients.
template <typename T>
inline void learn_embedding(const Plan* plan, const T* rows, int64_t species, int64_t filter, T e, T x, T x_dot, T& g, T& h,
                            T* gradient) {
  const Table& table = plan->embedding;
  const T inverse = at<T>(plan, table.inverse)[species], t = (x - at<T>(plan, table.lower)[species]) * inverse;
  const T last = T(at<int32_t>(plan, table.counts)[species] - 1);
  const T above = t > T(0) ? t : T(0);
  const int64_t k = static_cast<int64_t>(above < last ? above : last);
  const T free = t - T(k), low = free > T(0) ? free : T(0), u = low < T(1) ? low : T(1), v = T(1) - u, rest = free - u;
  const T slopes[4] = {T(-0.5) * v * v, u * (T(1.5) * u - T(2)), T(0.5) + u * (T(1) - T(1.5) * u), T(0.5) * u * u};
  const T sixth = T(1) / T(6), third = T(2) / T(3);
  const T values[4] = {sixth * v * v * v, third + u * u * (T(0.5) * u - T(1)), third + v * v * (T(0.5) * v - T(1)),
                       sixth * u * u * u};
  const T curves[4] = {v, T(3) * u - T(2), T(1) - T(3) * u, u};
  const int64_t place = (species * (table.n_segments + 1) + k) * table.stride + filter;
  T slope = 0, curve = 0;
  for (int a = 0; a < 4; ++a) {
    const T c = rows[place + a * table.stride];
    slope += inverse * slopes[a] * c;
    // Beyond the grid the spline is its tangent.
    if (rest == T(0)) curve += inverse * inverse * curves[a] * c;
    gradient[place + a * table.stride] += e * (values[a] + rest * slopes[a]) + x_dot * inverse * slopes[a];
  }
  g += e * slope + curve * x_dot;
  h += slope;
}

// From features G and G' [stride] and e = dL/dE to g = dL/dG and h = dE/dG [stride], and to the parameters' gradients.
template <typename T>
inline void learn_readout(const Plan* plan, const T* embedding, int64_t species, T e, const T* features, const T* features_dot,
                          DualReadout<T>& work, T* g, T* h, Gradients<T>& out) {
  const int64_t d = plan->n_features, row = species * plan->feature_stride;
  const T *mean = at<T>(plan, plan->mean), *inverse = at<T>(plan, plan->inverse_std), *linear = at<T>(plan, plan->linear) + row;
  for (int64_t a = 0; a < d; ++a) {
    work.x[a] = (features[a] - mean[a]) * inverse[a];
    work.x_dot[a] = features_dot[a] * inverse[a];
    out.linear[row + a] += e * work.x[a] + work.x_dot[a];
    h[a] = linear[a] * inverse[a];
    g[a] = e * h[a];
  }
  if (plan->n_layers) {
    learn_network<T>(plan, species, e, work, out);
    for (int64_t a = 0; a < d; ++a) {
      g[a] += work.bar[a] * inverse[a];
      h[a] += work.bar_dot[a] * inverse[a];
    }
  }
  if (!plan->embedding.n_groups) return;
  if (!plan->embeds_sum) {
    for (int64_t a = 0; a < d; ++a)
      learn_embedding<T>(plan, embedding, species, a, e, features[a], features_dot[a], g[a], h[a], out.embedding);
    return;
  }
  T total = 0, total_dot = 0, to_value = 0, to_dot = 0;
  for (int64_t a = 0; a < d; ++a) total += features[a], total_dot += features_dot[a];
  learn_embedding<T>(plan, embedding, species, 0, e, total, total_dot, to_value, to_dot, out.embedding);
  for (int64_t a = 0; a < d; ++a) g[a] += to_value, h[a] += to_dot;
}

}  // namespace SNNP_TARGET
}  // namespace snnp
