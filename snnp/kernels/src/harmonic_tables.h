// Constants of the harmonics: filled in once, by code that every processor can run.
#pragma once
#include <math.h>

namespace snnp {

constexpr int kMaxDegree = 8;

// Constants of the recursions, for 0 <= m <= l (Schmidt's normalisation N_lm = sqrt((2 - delta_m0) (l-m)! / (l+m)!)).
template <typename T>
struct HarmonicTables {
  T z[kMaxDegree + 1][kMaxDegree + 1];       // Q_lm = z[l][m] z Q_(l-1)m - below[l][m] Q_(l-2)m
  T below[kMaxDegree + 1][kMaxDegree + 1];
  T diagonal[kMaxDegree + 1];                // Q_mm, a constant
  T up[kMaxDegree + 1][kMaxDegree + 1];      // gradients: weights of Y_(l-1)(m+1), Y_(l-1)(m-1), Y_(l-1)m
  T down[kMaxDegree + 1][kMaxDegree + 1];
  T level[kMaxDegree + 1][kMaxDegree + 1];

  HarmonicTables() {
    for (int l = 0; l <= kMaxDegree; ++l)
      for (int m = 0; m <= l; ++m) {
        double n = norm(l, m);
        z[l][m] = l > m ? T(n / norm(l - 1, m) * (2 * l - 1) / (l - m)) : T(0);
        below[l][m] = l > m + 1 ? T(n / norm(l - 2, m) * (l + m - 1) / (l - m)) : T(0);
        up[l][m] = m + 1 <= l - 1 ? T(n / norm(l - 1, m + 1) * (m ? 0.5 : 1.0)) : T(0);
        down[l][m] = m > 0 ? T(n / norm(l - 1, m - 1) * 0.5 * (l + m) * (l + m - 1)) : T(0);
        level[l][m] = m <= l - 1 ? T(n / norm(l - 1, m) * (l + m)) : T(0);
      }
    for (int m = 0; m <= kMaxDegree; ++m) {
      double product = norm(m, m);
      for (int k = 2 * m - 1; k > 1; k -= 2) product *= k;
      diagonal[m] = T(product);
    }
  }
  static double norm(int l, int m) {
    double ratio = m ? 2.0 : 1.0;
    for (int k = l - m + 1; k <= l + m; ++k) ratio /= k;
    return sqrt(ratio);
  }
};

extern const HarmonicTables<float> harmonic_tables_float;
extern const HarmonicTables<double> harmonic_tables_double;

template <typename T>
inline const HarmonicTables<T>& harmonic_tables() {
  if constexpr (sizeof(T) == sizeof(float)) return harmonic_tables_float;
  else return harmonic_tables_double;
}

}  // namespace snnp
