// Derivatives of the readout: with features G moving along G', those of e E + dE/dG . G' in all parameters, in G and in G'.
#pragma once
#include "basis.h"
#include "readout.h"

namespace snnp {
namespace SNNP_TARGET {

// Where the gradient of each kind of parameter goes, in the layouts of the tables they belong to.
template <typename T>
struct Gradients {
  T *rho, *f, *legendre, *at_one, *linear, *embedding;
  T *weight[kMaxLayers], *bias[kMaxLayers];
};

constexpr int64_t kTogether = 8;  // atoms whose readouts are learnt at once: their weights are fetched once

// Rows of several atoms, first those of the values and then those of the derivatives; all atoms have one network.
template <typename T>
struct DualReadout {
  T* x;                                      // standardised features [2 n, feature_stride]
  T* value[kMaxLayers];                      // behind each layer [2 n, out_stride]
  T *slope[kMaxLayers], *curve[kMaxLayers];  // act'(z), act''(z) z' [n, out_stride]
  T *bar, *next;                             // [2 n, widest]

  void allocate(Arena& arena, const Plan* plan) {
    int64_t widest = plan->feature_stride;
    x = arena.take<T>(2 * kTogether * plan->feature_stride);
    for (int64_t k = 0; k < plan->n_layers; ++k) {
      const int64_t size = plan->layers[k].out_stride;
      value[k] = arena.take<T>(2 * kTogether * size);
      slope[k] = arena.take<T>(kTogether * size);
      curve[k] = arena.take<T>(kTogether * size);
      widest = size > widest ? size : widest;
    }
    bar = arena.take<T>(2 * kTogether * widest);
    next = arena.take<T>(2 * kTogether * widest);
  }
};

// out [R, out_stride] = in [R, in_stride] matrix [n_in, out_stride], for R rows and N vectors of columns from b.
template <typename T, int R, int N>
inline void multiply_tile(const T* matrix, int64_t out_stride, const T* in, int64_t in_stride, int64_t n_in, int64_t b,
                          T* out) {
  constexpr int W = Lanes<T>::W;
  Vec<T> sums[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sums[r][n] = all<T>(0);
  const T* row = matrix + b;
  for (int64_t k = 0; k < n_in; ++k, row += out_stride)
#pragma GCC unroll 2
    for (int n = 0; n < N; ++n) {
      const Vec<T> weights = load<T>(row + n * W);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r][n] += in[r * in_stride + k] * weights;
    }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store<T>(out + r * out_stride + b + n * W, sums[r][n]);
}

template <typename T, int R>
inline void multiply_rows(const T* matrix, int64_t out_stride, const T* in, int64_t in_stride, int64_t n_in, T* out) {
  constexpr int W = Lanes<T>::W;
  int64_t b = 0;
  for (; b + W < out_stride; b += 2 * W) multiply_tile<T, R, 2>(matrix, out_stride, in, in_stride, n_in, b, out);
  if (b < out_stride) multiply_tile<T, R, 1>(matrix, out_stride, in, in_stride, n_in, b, out);
}

// The same for any even number of rows.
template <typename T>
inline void multiply_all(const T* matrix, int64_t out_stride, const T* in, int64_t in_stride, int64_t n_in, int64_t n_rows,
                         T* out) {
  int64_t r = 0;
  for (; r + 8 <= n_rows; r += 8)
    multiply_rows<T, 8>(matrix, out_stride, in + r * in_stride, in_stride, n_in, out + r * out_stride);
  for (; r < n_rows; r += 2)
    multiply_rows<T, 2>(matrix, out_stride, in + r * in_stride, in_stride, n_in, out + r * out_stride);
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

// gradient [n_in, stride] += in^T bar, summed over pairs of rows.
template <typename T, int R>
inline void add_tile(const T* in, int64_t in_stride, int64_t n_in, const T* bar, int64_t stride, T* gradient) {
  constexpr int W = Lanes<T>::W;
  for (int64_t b = 0; b < stride; b += W) {
    Vec<T> mine[R];
    for (int r = 0; r < R; ++r) mine[r] = load<T>(bar + r * stride + b);
    T* out = gradient + b;
    for (int64_t k = 0; k < n_in; ++k, out += stride) {
      Vec<T> even = load<T>(out), odd = all<T>(0);
#pragma GCC unroll 8
      for (int r = 0; r < R; r += 2) {
        even += in[r * in_stride + k] * mine[r];
        odd += in[(r + 1) * in_stride + k] * mine[r + 1];
      }
      store<T>(out, even + odd);
    }
  }
}

template <typename T>
inline void add_products(const T* in, int64_t in_stride, int64_t n_in, const T* bar, int64_t stride, int64_t n_rows,
                         T* gradient) {
  int64_t r = 0;
  for (; r + 8 <= n_rows; r += 8)
    add_tile<T, 8>(in + r * in_stride, in_stride, n_in, bar + r * stride, stride, gradient);
  for (; r < n_rows; r += 2) add_tile<T, 2>(in + r * in_stride, in_stride, n_in, bar + r * stride, stride, gradient);
}

// Derivatives behind the activations of a layer to those before them; their sum is the bias's.
template <typename T>
inline void pull_activations(const T* slopes, const T* curves, int64_t n, int64_t stride, T* bar, T* bias) {
  constexpr int W = Lanes<T>::W;
  for (int64_t b = 0; b < stride; b += W) {
    Vec<T> total = load<T>(bias + b);
    for (int64_t a = 0; a < n; ++a) {
      T *value = bar + a * stride + b, *dot = bar + (n + a) * stride + b;
      const Vec<T> slope = load<T>(slopes + a * stride + b);
      const Vec<T> both = slope * load<T>(value) + load<T>(curves + a * stride + b) * load<T>(dot);
      total += both;
      store<T>(value, both);
      store<T>(dot, slope * load<T>(dot));
    }
    store<T>(bias + b, total);
  }
}

// The network of n atoms at work.x; derivatives in these rows go to work.bar.
template <typename T>
inline void learn_network(const Plan* plan, int64_t copy, int64_t n, const T* e, DualReadout<T>& work, Gradients<T>& out) {
  constexpr int W = Lanes<T>::W;
  const int64_t last = plan->n_layers - 1;
  const T* in = work.x;
  for (int64_t k = 0; k < last; ++k) {
    const Layer& layer = plan->layers[k];
    const int64_t size = layer.out_stride;
    const T* matrix = at<T>(plan, layer.forward) + copy * layer.n_in * size;
    multiply_all<T>(matrix, size, in, layer.in_stride, layer.n_in, 2 * n, work.value[k]);
    const T* bias = at<T>(plan, layer.bias) + copy * size;
    for (int64_t a = 0; a < n; ++a)
      for (int64_t b = 0; b < size; b += W)
        store<T>(work.value[k] + a * size + b, load<T>(work.value[k] + a * size + b) + load<T>(bias + b));
    activate_both<T>(plan->activation, work.value[k], work.value[k] + n * size, work.slope[k], work.curve[k], n * size);
    in = work.value[k];
  }
  const Layer& top = plan->layers[last];
  const T* weights = at<T>(plan, top.backward) + copy * top.in_stride;
  T* top_weight = out.weight[last] + copy * top.n_in * top.out_stride;
  for (int64_t a = 0; a < n; ++a) {
    const T *value = in + a * top.in_stride, *dot = in + (n + a) * top.in_stride;
    for (int64_t k = 0; k < top.n_in; ++k) top_weight[k * top.out_stride] += e[a] * value[k] + dot[k];
    out.bias[last][copy * top.out_stride] += e[a];
    for (int64_t k = 0; k < top.in_stride; ++k) {
      work.bar[a * top.in_stride + k] = e[a] * weights[k];
      work.bar[(n + a) * top.in_stride + k] = weights[k];
    }
  }
  for (int64_t k = last - 1; k >= 0; --k) {
    const Layer& layer = plan->layers[k];
    const int64_t size = layer.out_stride;
    pull_activations<T>(work.slope[k], work.curve[k], n, size, work.bar, out.bias[k] + copy * size);
    add_products<T>(k ? work.value[k - 1] : work.x, layer.in_stride, layer.n_in, work.bar, size, 2 * n,
                    out.weight[k] + copy * layer.n_in * size);
    const T* matrix = at<T>(plan, layer.backward) + copy * layer.n_out * layer.in_stride;
    multiply_all<T>(matrix, layer.in_stride, work.bar, size, layer.n_out, 2 * n, work.next);
    T* const kept = work.bar;
    work.bar = work.next;
    work.next = kept;
  }
}

// One embedding spline at x moving with x_dot: adds derivatives in x and x_dot to g and h, and those in its coefficients.
template <typename T>
inline void learn_embedding(const Plan* plan, const T* rows, int64_t species, int64_t filter, T e, T x, T x_dot, T& g, T& h,
                            T* gradient) {
  const Table& table = plan->embedding;
  const Grid<T> grid = grid_of<T>(plan, table, species);
  const Weights<T> w = weights_at<T>(grid, all<T>(x));
  const T inverse = grid.inverse[0], u = (x - grid.lower[0]) * inverse - T(w.first[0]);
  const bool inside = u >= T(0) && u <= T(1);  // beyond the grid the spline is its tangent
  const T curves[4] = {T(1) - u, T(3) * u - T(2), T(1) - T(3) * u, u};
  const int64_t place = (species * (table.n_segments + 1) + w.first[0]) * table.stride + filter;
  T slope = 0, curve = 0;
  for (int a = 0; a < 4; ++a) {
    const T c = rows[place + a * table.stride];
    slope += w.slope[a][0] * c;
    if (inside) curve += inverse * inverse * curves[a] * c;
    gradient[place + a * table.stride] += e * w.value[a][0] + x_dot * w.slope[a][0];
  }
  g += e * slope + curve * x_dot;
  h += slope;
}

// An atom's part in learning the readout. in: e = dL/dE, features G and G'. out: g = dL/dG and h = dE/dG [stride].
template <typename T>
struct ReadoutRow {
  int64_t species;
  T e;
  const T *features, *features_dot;
  T *g, *h;
};

// Standardised features, and the linear part.
template <typename T>
inline void learn_linear(const Plan* plan, const ReadoutRow<T>& atom, T* x, T* x_dot, Gradients<T>& out) {
  const int64_t row = atom.species * plan->feature_stride;
  const T *mean = at<T>(plan, plan->mean), *inverse = at<T>(plan, plan->inverse_std), *linear = at<T>(plan, plan->linear) + row;
  T *gradient = out.linear + row, *g = atom.g, *h = atom.h;
  const T *features = atom.features, *features_dot = atom.features_dot, e = atom.e;
  for (int64_t a = 0; a < plan->n_features; ++a) {
    x[a] = (features[a] - mean[a]) * inverse[a];
    x_dot[a] = features_dot[a] * inverse[a];
    gradient[a] += e * x[a] + x_dot[a];
    h[a] = linear[a] * inverse[a];
    g[a] = e * h[a];
  }
}

template <typename T>
inline void learn_embeddings(const Plan* plan, const T* rows, const ReadoutRow<T>& atom, T* gradient) {
  const int64_t d = plan->n_features;
  if (!plan->embeds_sum) {
    for (int64_t a = 0; a < d; ++a)
      learn_embedding<T>(plan, rows, atom.species, a, atom.e, atom.features[a], atom.features_dot[a], atom.g[a], atom.h[a],
                         gradient);
    return;
  }
  T total = 0, total_dot = 0, to_value = 0, to_dot = 0;
  for (int64_t a = 0; a < d; ++a) total += atom.features[a], total_dot += atom.features_dot[a];
  learn_embedding<T>(plan, rows, atom.species, 0, atom.e, total, total_dot, to_value, to_dot, gradient);
  for (int64_t a = 0; a < d; ++a) atom.g[a] += to_value, atom.h[a] += to_dot;
}

// Up to kTogether atoms.
template <typename T>
inline void learn_readouts(const Plan* plan, const T* embedding, const ReadoutRow<T>* atoms, int64_t n_atoms,
                           DualReadout<T>& work, Gradients<T>& out) {
  const int64_t d = plan->n_features, stride = plan->feature_stride;
  const T* inverse = at<T>(plan, plan->inverse_std);
  for (int64_t first = 0, n = 0; first < n_atoms; first += n, n = 0) {
    const int64_t species = atoms[first].species;
    T e[kTogether];
    while (first + n < n_atoms && (atoms[first + n].species == species || plan->n_copies == 1)) ++n;
    for (int64_t a = 0; a < n; ++a) {
      learn_linear<T>(plan, atoms[first + a], work.x + a * stride, work.x + (n + a) * stride, out);
      e[a] = atoms[first + a].e;
    }
    if (plan->n_layers) {
      learn_network<T>(plan, plan->n_copies > 1 ? species : 0, n, e, work, out);
      for (int64_t a = 0; a < n; ++a) {
        T *g = atoms[first + a].g, *h = atoms[first + a].h;
        const T *bar = work.bar + a * stride, *bar_dot = work.bar + (n + a) * stride;
        for (int64_t q = 0; q < d; ++q) g[q] += bar[q] * inverse[q], h[q] += bar_dot[q] * inverse[q];
      }
    }
    for (int64_t a = 0; a < n && plan->embedding.n_groups; ++a)
      learn_embeddings<T>(plan, embedding, atoms[first + a], out.embedding);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
