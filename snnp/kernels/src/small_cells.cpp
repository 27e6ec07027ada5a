// Neighbour lists of many small structures at once; the formula is explained in snnp/sampling/many/small_cells.py.
#include "small_cells.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

namespace {

constexpr int64_t kMostImages = 1 << 22;  // numbers of one structure: 16 MB

struct Range {
  int64_t low, high;
};

// Steps s with |s - middle| <= width.
inline Range steps(double middle, double width, bool periodic) {
  if (!periodic) return {0, 0};
  return {static_cast<int64_t>(ceil(middle - width)), static_cast<int64_t>(floor(middle + width))};
}

inline void widen(int64_t* reach, const Range& range) {
  const int64_t far = -range.low > range.high ? -range.low : range.high;
  if (far > *reach) *reach = far;
}

// One structure, whose entries are written from `entry` on.
struct Search {
  const snnp_small_cells& cells;
  int64_t n, entry;
  const double *x, *box, *inverse;
  const uint8_t* periodic;
  double width[3];     // reach in cells
  int64_t reach[3];    // largest step that can occur
  int32_t* table;      // marks, then numbers, of the images of this structure

  double offset(int64_t i, int64_t j, int axis) const {
    double d = 0;
    for (int a = 0; a < 3; ++a) d += (x[3 * i + a] - x[3 * j + a]) * inverse[3 * a + axis];
    return d;
  }

  void bounds() {
    for (int a = 0; a < 3; ++a) {
      double square = 0;
      for (int k = 0; k < 3; ++k) square += inverse[3 * k + a] * inverse[3 * k + a];
      width[a] = cells.reach * sqrt(square);
      reach[a] = 0;
      if (!periodic[a]) continue;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) widen(&reach[a], steps(offset(i, j, a), width[a], true));
    }
  }

  int64_t number(const int32_t* s) const {
    return ((s[0] + reach[0]) * (2 * reach[1] + 1) + s[1] + reach[1]) * (2 * reach[2] + 1) + s[2] + reach[2];
  }

  // Points on the line of images of j with steps s[0], s[1].
  void line(int64_t i, int64_t j, int32_t* s, int64_t* length) {
    const double *a = box, *b = box + 3, *c = box + 6;
    double v[3], square = 0, along = 0, c2 = 0;
    for (int k = 0; k < 3; ++k) {
      v[k] = x[3 * j + k] - x[3 * i + k] + s[0] * a[k] + s[1] * b[k];
      square += v[k] * v[k];
      along += v[k] * c[k];
      c2 += c[k] * c[k];
    }
    const double middle = periodic[2] ? -along / c2 : 0.0, half2 = (cells.reach * cells.reach - square) / c2 + middle * middle;
    if (half2 < 0) return;
    const Range range = steps(middle, sqrt(half2), periodic[2]);
    for (int64_t t = range.low; t <= range.high; ++t) {
      if (i == j && s[0] == 0 && s[1] == 0 && t == 0) continue;
      ++*length;
      if (entry < cells.capacity) {
        s[2] = static_cast<int32_t>(t);
        cells.neighbour[entry] = static_cast<int32_t>(j);
        const int64_t key = number(s);
        cells.image[entry] = static_cast<int32_t>(key);
        table[key] = 1;
      }
      ++entry;
    }
  }

  void pairs(int64_t* lengths) {
    for (int64_t i = 0; i < n; ++i) {
      lengths[i] = 0;
      for (int64_t j = 0; j < n; ++j) {
        const Range first = steps(offset(i, j, 0), width[0], periodic[0]);
        const Range second = steps(offset(i, j, 1), width[1], periodic[1]);
        for (int64_t s0 = first.low; s0 <= first.high; ++s0)
          for (int64_t s1 = second.low; s1 <= second.high; ++s1) {
            int32_t s[3] = {static_cast<int32_t>(s0), static_cast<int32_t>(s1), 0};
            line(i, j, s, lengths + i);
          }
      }
    }
  }

  // Number the images that occur and write their shifts; returns how many there are.
  int64_t number_images(int64_t begin, int64_t n_numbers, double* shifts, int64_t room) {
    int32_t count = 0;
    for (int64_t key = 0; key < n_numbers; ++key) {
      if (!table[key]) continue;
      if (count < room) {
        int64_t rest = key;
        for (int a = 2; a >= 0; --a) {
          shifts[3 * count + a] = static_cast<double>(rest % (2 * reach[a] + 1) - reach[a]);
          rest /= 2 * reach[a] + 1;
        }
      }
      table[key] = count++;
    }
    const int64_t end = entry < cells.capacity ? entry : cells.capacity;
    for (int64_t e = begin; e < end; ++e) cells.image[e] = table[cells.image[e]];
    return count;
  }
};

}  // namespace

int64_t snnp_find_small(const snnp_small_cells* cells) {
  int64_t atom = 0, entry = 0, images = 0, room = 0;
  int32_t* table = nullptr;
  for (int64_t b = 0; b < cells->n_structures; ++b) {
    Search search = {*cells, cells->sizes[b], entry, cells->positions + 3 * atom, cells->boxes + 9 * b,
                     cells->inverses + 9 * b, cells->periodic + 3 * b, {}, {}, nullptr};
    search.bounds();
    double n_numbers = 1;
    for (int a = 0; a < 3; ++a) n_numbers *= 2.0 * double(search.reach[a]) + 1.0;
    if (!(n_numbers <= double(kMostImages))) {
      free(table);
      return -1;
    }
    if (int64_t(n_numbers) > room) {
      free(table);
      room = int64_t(n_numbers);
      table = static_cast<int32_t*>(malloc(size_t(room) * sizeof(int32_t)));
      if (!table) return -1;
    }
    memset(table, 0, size_t(n_numbers) * sizeof(int32_t));
    search.table = table;
    search.pairs(cells->lengths + atom);
    const int64_t left = images < cells->capacity ? cells->capacity - images : 0;
    cells->n_images[b] = search.number_images(entry < cells->capacity ? entry : cells->capacity, int64_t(n_numbers),
                                              cells->shifts + 3 * (left ? images : 0), left);
    images += cells->n_images[b];
    entry = search.entry;
    atom += search.n;
  }
  free(table);
  return entry;
}
