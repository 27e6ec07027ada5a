// Real spherical harmonics with sum_m Y_lm(u) Y_lm(v) = P_l(u.v), order l * l + l + m, and gradients of solid harmonics.
#pragma once
#include "harmonic_tables.h"
#include "simd.h"

namespace snnp {
namespace SNNP_TARGET {

// Y [(L+1)^2] vectors, W numbers apart, for W unit vectors.
template <typename T, int L>
inline void harmonics(Vec<T> x, Vec<T> y, Vec<T> z, T* out) {
  constexpr int W = Lanes<T>::W;
  const HarmonicTables<T>& t = harmonic_tables<T>();
  Vec<T> cosine = all<T>(1), sine = all<T>(0);  // real and imaginary part of (x + i y)^m
#pragma GCC unroll 16
  for (int m = 0; m <= L; ++m) {
    Vec<T> before = all<T>(0), q = all<T>(t.diagonal[m]);
#pragma GCC unroll 16
    for (int l = m; l <= L; ++l) {
      if (l > m) {
        Vec<T> next = t.z[l][m] * z * q;
        if (l > m + 1) next -= t.below[l][m] * before;
        before = q;
        q = next;
      }
      store<T>(out + (l * l + l + m) * W, q * cosine);
      if (m) store<T>(out + (l * l + l - m) * W, q * sine);
    }
    Vec<T> turned = x * cosine - y * sine;
    sine = x * sine + y * cosine;
    cosine = turned;
  }
}

// G_a = sum_lm v_lm dS_lm/dr_a at the unit vectors where the harmonics are `values`.
template <typename T, int L>
inline void solid_gradient(const T* v, const T* values, Vec<T>& out_x, Vec<T>& out_y, Vec<T>& out_z) {
  constexpr int W = Lanes<T>::W;
  const HarmonicTables<T>& t = harmonic_tables<T>();
  // In registers, and by turns: the next sum need not wait for the last.
  Vec<T> sums[2][3];
  for (auto& each : sums)
    for (Vec<T>& x : each) x = all<T>(0);
#pragma GCC unroll 16
  for (int l = 1; l <= L; ++l) {
    Vec<T>&gx = sums[l % 2][0], &gy = sums[l % 2][1], &gz = sums[l % 2][2];
    const int here = l * l + l, lower = (l - 1) * (l - 1) + (l - 1);
    Vec<T> v0 = load<T>(v + here * W);
    gz += t.level[l][0] * v0 * load<T>(values + lower * W);
    if (l > 1) {
      gx -= t.up[l][0] * v0 * load<T>(values + (lower + 1) * W);
      gy -= t.up[l][0] * v0 * load<T>(values + (lower - 1) * W);
    }
#pragma GCC unroll 16
    for (int m = 1; m <= l; ++m) {
      Vec<T> vc = load<T>(v + (here + m) * W), vs = load<T>(v + (here - m) * W);
      if (m <= l - 1) {
        gz += t.level[l][m] * (vc * load<T>(values + (lower + m) * W) + vs * load<T>(values + (lower - m) * W));
      }
      Vec<T> dc = t.down[l][m] * vc, ds = t.down[l][m] * vs;
      Vec<T> c = load<T>(values + (lower + m - 1) * W);
      gx += c * dc;
      gy += c * ds;
      if (m > 1) {
        Vec<T> s = load<T>(values + (lower - m + 1) * W);
        gx += s * ds;
        gy -= s * dc;
      }
      if (m + 1 <= l - 1) {
        Vec<T> uc = t.up[l][m] * vc, us = t.up[l][m] * vs;
        Vec<T> c1 = load<T>(values + (lower + m + 1) * W), s1 = load<T>(values + (lower - m - 1) * W);
        gx -= c1 * uc + s1 * us;
        gy += c1 * us - s1 * uc;
      }
    }
  }
  out_x = sums[0][0] + sums[1][0];
  out_y = sums[0][1] + sums[1][1];
  out_z = sums[0][2] + sums[1][2];
}

}  // namespace SNNP_TARGET
}  // namespace snnp
