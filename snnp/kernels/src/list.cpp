// Neighbour lists: from pairs to rows per atom, and the test whether a list with a skin still holds.
#include <string.h>

#include "snnp_kernels.h"

namespace {

struct Images {
  int64_t width[3], reach[3], count;
  explicit Images(const int64_t* r) {
    count = 1;
    for (int a = 0; a < 3; ++a) {
      reach[a] = r[a];
      width[a] = 2 * r[a] + 1;
      count *= width[a];
    }
  }
  int64_t index(const int32_t* s, int sign) const {
    return ((sign * s[0] + reach[0]) * width[1] + sign * s[1] + reach[1]) * width[2] + sign * s[2] + reach[2];
  }
};

}  // namespace

void snnp_pack_list(const snnp_pairs* pairs) {
  const Images images(pairs->reach);
  const int64_t n = pairs->n_atoms;
  int64_t* first = pairs->first;
  memset(first, 0, static_cast<size_t>(n + 1) * sizeof(int64_t));
  // Counts go one place too far, so that filling the rows moves every entry to where its row begins.
  for (int64_t e = 0; e < pairs->n_pairs; ++e) {
    if (pairs->i[e] + 2 <= n) ++first[pairs->i[e] + 2];
    if (pairs->half && pairs->j[e] + 2 <= n) ++first[pairs->j[e] + 2];
  }
  for (int64_t k = 2; k <= n; ++k) first[k] += first[k - 1];
  for (int64_t e = 0; e < pairs->n_pairs; ++e) {
    const int64_t i = pairs->i[e], j = pairs->j[e];
    const int32_t* shift = pairs->shift + 3 * e;
    const int64_t offset = pairs->structure ? pairs->structure[i] * images.count : 0;
    int64_t row = first[i + 1]++;
    pairs->neighbour[row] = static_cast<int32_t>(j);
    pairs->image[row] = static_cast<int32_t>(offset + images.index(shift, 1));
    if (!pairs->half) continue;
    row = first[j + 1]++;
    pairs->neighbour[row] = static_cast<int32_t>(i);
    pairs->image[row] = static_cast<int32_t>(offset + images.index(shift, -1));
  }
}

double snnp_largest_move(int64_t n_atoms, const double* positions, const double* reference, const double* map) {
  static const double identity[9] = {1, 0, 0, 0, 1, 0, 0, 0, 1};
  const double* m = map ? map : identity;
  double largest = 0;
  bool sound = true;
  for (int64_t k = 0; k < n_atoms; ++k) {
    const double *x = positions + 3 * k, *r = reference + 3 * k;
    double square = 0;
    for (int a = 0; a < 3; ++a) {
      const double moved = x[a] - (r[0] * m[a] + r[1] * m[3 + a] + r[2] * m[6 + a]);
      square += moved * moved;
    }
    sound &= square == square;
    largest = square > largest ? square : largest;
  }
  return sound ? largest : __builtin_nan("");
}
