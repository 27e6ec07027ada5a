// Forces of stored pairs, run by run: as in forces.h, with the coefficients that training gives.
#pragma once
#include "forces.h"
#include "train.h"

namespace snnp {
namespace SNNP_TARGET {

// Gradients of W pairs of a run from p on, those beyond its end masked, from the sums over filters.
template <typename T, int L, int vectors>
inline void pull_block(const Grid<T>& grid, const Run& run, int64_t p, const Training<T>& own, Pairs<T>& pairs) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1);
  const auto counts = lane_numbers<T>() < static_cast<int>(run.end - p < W ? run.end - p : W);
  const Weights<T> w = weights_at<T>(grid, counts ? load_anywhere<T>(pairs.r + p) : all<T>(1));
  const Vec<T> x = load_anywhere<T>(pairs.x + p), y = load_anywhere<T>(pairs.y + p), z = load_anywhere<T>(pairs.z + p);
  T v[n_lm * W] __attribute__((aligned(kPad))), harmonic[n_lm * W] __attribute__((aligned(kPad)));
  harmonics<T, L>(x, y, z, harmonic);
  Vec<T> radial = slope_of_squares<T, vectors>(w, own.basis.length, own.squares);
  Index<T> place[4];
  for (int m = 0; m < 4; ++m) place[m] = w.first + m;
  for (int lm = 0; lm < n_lm; ++lm) {
    Vec<T> value = all<T>(0), slope = all<T>(0);
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      const Vec<T> d = look_up<T, vectors>(own.d + lm * own.basis.length, place[m]);
      value += w.value[m] * d;
      slope += w.slope[m] * d;
    }
    store<T>(v + lm * W, value);
    radial += slope * load<T>(harmonic + lm * W);
  }
  Vec<T> gx, gy, gz;
  solid_gradient<T, L>(v, harmonic, gx, gy, gz);
  const Vec<T> inverse = load_anywhere<T>(pairs.inverse + p);
  gx *= inverse, gy *= inverse, gz *= inverse;
  const Vec<T> found[] = {radial - (gx * x + gy * y + gz * z), gx, gy, gz};
  T* const targets[] = {pairs.radial, pairs.gx, pairs.gy, pairs.gz};
  for (int k = 0; k < 4; ++k)
    store_anywhere<T>(targets[k] + p, load_anywhere<T>(targets[k] + p) + (counts ? found[k] : all<T>(0)));
}

template <typename T, int L, int vectors>
inline void pull_run(const Plan* plan, const Run& run, const Training<T>& own, Pairs<T>& pairs) {
  const Grid<T> grid = grid_of<T>(plan, plan->f, run.group);
  for (int64_t p = run.begin; p < run.end; p += Lanes<T>::W) pull_block<T, L, vectors>(grid, run, p, own, pairs);
}

// Gradients of the angular energy in the pairs, from h = dE/dG (own.h), added to pairs.radial, gx, gy, gz.
template <typename T, int L>
inline void angular_pull(const Plan* plan, const Run* runs, int64_t n_runs, Pairs<T>& pairs, Moments<T>& work,
                         Training<T>& own) {
  constexpr int W = Lanes<T>::W, n_lm = (L + 1) * (L + 1), lm_padded = (n_lm + W - 1) / W * W;
  const int64_t filters = plan->f.n_filters, length = own.basis.length, vectors = length / W;
  for (int64_t k = 0; k < n_runs; ++k) {
    const Run& run = runs[k];
    if (run.begin == run.end) continue;
    for (int64_t b = 0; b < filters; b += W)
      moment_gradient<T, L>(plan, own.h, work, run.channel, b, work.gradient + b * lm_padded);
    const T* coefficients = own.basis.coefficients + run.group * filters * length;
    const T* selves = work.self_gradient + run.channel * work.stride;
    for (int64_t row = 0; row < length; row += W)
      reduce<T, L, 0>(filters, work.gradient, coefficients + row, length, own.d + row, length);
    if (vectors == 1) sum_squares<T, true>(coefficients, length, selves, filters, own.squares, length);
    else sum_squares<T, false>(coefficients, length, selves, filters, own.squares, length);
    if (vectors == 1) pull_run<T, L, 1>(plan, run, own, pairs);
    else if (vectors == 2) pull_run<T, L, 2>(plan, run, own, pairs);
    else if (vectors == 3) pull_run<T, L, 3>(plan, run, own, pairs);
    else if (vectors == 4) pull_run<T, L, 4>(plan, run, own, pairs);
    else pull_run<T, L, 0>(plan, run, own, pairs);
  }
}

}  // namespace SNNP_TARGET
}  // namespace snnp
