// Stored pairs in the basis of B-splines: f_b(r) = sum_k c_kb B_k(r), of which four functions are not zero at any r.
//
// With c outside the sums over neighbours, a pair meets four functions instead of all filters:
//     A_lm,b = sum_k c_kb P_k,lm,   P_k,lm = sum_j B_k(r_j) Y_lm(r_j),   sum_j f_b^2 = sum_kk' c_kb c_k'b S_kk',
// and the derivatives in c are sums over atoms alone. Rows k are counted from the start of a group's grid. A run of pairs
// shares group and channel; within it pairs come sorted by distance, so that sums stay in registers.
#pragma once
#include "basis.h"

namespace snnp {
namespace SNNP_TARGET {

// Pairs [begin, end) of the neighbours that share functions and channel; they touch the rows [low, high).
struct Run {
  int64_t begin, end, group, channel, low, high;
};

// Four numbers: the functions that are not zero at a distance.
template <typename T>
struct Quad {
  typedef T V __attribute__((vector_size(4 * sizeof(T)), may_alias));
};
template <typename T>
using Four = typename Quad<T>::V;

template <typename T>
inline Four<T> load_four(const T* p) {
  Four<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

// B_k and B'_k of every pair for k = first .. first + 3, with pairs as lanes and as rows of eight, B before B'.
template <typename T>
struct PairWeights {
  T *value[4], *slope[4];  // [pairs]
  T* row;                  // [pairs, 8]
  int32_t* first;          // [pairs]

  void allocate(Arena& arena, int64_t capacity) {
    for (int a = 0; a < 4; ++a) {
      value[a] = arena.take<T>(capacity);
      slope[a] = arena.take<T>(capacity);
    }
    row = arena.take<T>(capacity * 8);
    first = arena.take<int32_t>(capacity);
  }
};

// Rows of eight from eight vectors.
template <typename T>
inline void store_eights(const Vec<T>* vectors, T* out) {
  constexpr int W = Lanes<T>::W, n = W < 8 ? W : 8;
  for (int first = 0; first < 8; first += W) {
    Vec<T> rows[W];
    for (int q = 0; q < W; ++q) rows[q] = q < n ? vectors[first + q] : all<T>(0);
    transpose<T>(rows);
    for (int q = 0; q < W; ++q) memcpy(out + q * 8 + first, &rows[q], n * sizeof(T));
  }
}

// Fill in the weights of a run, and which rows it touches.
template <typename T>
inline void weigh(const Plan* plan, const Table& table, const T* r, Run& run, PairWeights<T>& out) {
  constexpr int W = Lanes<T>::W;
  const Grid<T> grid = grid_of<T>(plan, table, run.group);
  for (int64_t p = run.begin; p < run.end; p += W) {
    const Weights<T> w = weights_at<T>(grid, load_anywhere<T>(r + p));
    const Vec<T> both[8] = {w.value[0], w.value[1], w.value[2], w.value[3], w.slope[0], w.slope[1], w.slope[2], w.slope[3]};
    for (int a = 0; a < 4; ++a) {
      store_anywhere<T>(out.value[a] + p, w.value[a]);
      store_anywhere<T>(out.slope[a] + p, w.slope[a]);
    }
    store_eights<T>(both, out.row + p * 8);
    for (int q = 0; q < W && p + q < run.end; ++q) out.first[p + q] = static_cast<int32_t>(w.first[q]);
  }
  run.low = table.n_segments;
  run.high = 0;
  for (int64_t p = run.begin; p < run.end; ++p) {
    run.low = out.first[p] < run.low ? out.first[p] : run.low;
    run.high = out.first[p] + 4 > run.high ? out.first[p] + 4 : run.high;
  }
  if (run.low > run.high) run.low = run.high;
}

// P and S of one run, and with a direction their derivatives along it.
template <typename T>
struct Sums {
  int64_t width;       // numbers in a row: (L+1)^2 and four more, padded
  T *row, *row_dot;    // [pairs, width] Y and B of each pair, and their derivatives
  T *p, *p_dot;        // [runs, K, width] of the present atom
  T *s, *s_dot;        // [runs, K, 7]: S_k,k+d-3 of the present atom

  void allocate(Arena& arena, const Plan* plan, int64_t capacity, bool moves) {
    width = round_up((plan->degree + 1) * (plan->degree + 1) + 4, Lanes<T>::W);
    row = arena.take<T>(capacity * width);
    row_dot = moves ? arena.take<T>(capacity * width) : nullptr;
  }
};

// Add what the pairs of one segment gave to the rows of P and S that begin at `first`.
template <typename T, int L, int V>
inline void flush(const Vec<T> (&found)[4][V], int64_t first, T* p, T* s) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  for (int a = 0; a < 4; ++a) {
    T* out = p + (first + a) * V * W;
    T products[V * W] __attribute__((aligned(kPad)));
    for (int v = 0; v < V; ++v) {
      store<T>(products + v * W, found[a][v]);
      store<T>(out + v * W, load<T>(out + v * W) + found[a][v]);
    }
    for (int other = 0; other < 4; ++other) s[(first + a) * 7 + other - a + 3] += products[n_lm + other];
  }
}

// P and S of a run from the rows of its pairs; `moves`: P' and S', from p_dot/dt = sum rate B' Y + B Y'.
template <typename T, int L, bool moves>
inline void sum_run(const Run& run, const PairWeights<T>& weights, const T* rate, const Sums<T>& sums, T* p_out, T* s_out) {
  constexpr int W = Lanes<T>::W, V = ((L + 1) * (L + 1) + 4 + W - 1) / W;
  memset(p_out + run.low * V * W, 0, (run.high - run.low) * V * W * sizeof(T));
  memset(s_out + run.low * 7, 0, (run.high - run.low) * 7 * sizeof(T));
  const T *rows = sums.row, *rows_dot = sums.row_dot, *eights = weights.row;
  const int32_t* firsts = weights.first;
  for (int64_t p = run.begin; p < run.end;) {
    const int32_t first = firsts[p];
    Vec<T> found[4][V];
    for (int a = 0; a < 4; ++a)
      for (int v = 0; v < V; ++v) found[a][v] = all<T>(0);
    for (; p < run.end && firsts[p] == first; ++p) {
      const T *row = rows + p * V * W, *weight = eights + p * 8;
#pragma GCC unroll 4
      for (int a = 0; a < 4; ++a)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v)
          found[a][v] += (moves ? rate[p] * weight[4 + a] : weight[a]) * load<T>(row + v * W);
      if constexpr (moves) {
        const T* row_dot = rows_dot + p * V * W;
#pragma GCC unroll 4
        for (int a = 0; a < 4; ++a)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) found[a][v] += weight[a] * load<T>(row_dot + v * W);
      }
    }
    flush<T, L, V>(found, first, p_out, s_out);
  }
}

// Sums over pairs of B_k, or of rate B'_k, added to out [K].
template <typename T, bool moves>
inline void sum_weights(const Run& run, const PairWeights<T>& weights, const T* rate, T* out) {
  const T* eights = weights.row;
  const int32_t* firsts = weights.first;
  for (int64_t p = run.begin; p < run.end;) {
    const int32_t first = firsts[p];
    Four<T> found = load_four<T>(out + first);
    for (; p < run.end && firsts[p] == first; ++p) {
      if constexpr (moves) found += rate[p] * load_four<T>(eights + p * 8 + 4);
      else found += load_four<T>(eights + p * 8);
    }
    memcpy(out + first, &found, sizeof found);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
