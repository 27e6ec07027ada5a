// Vectors of the width this file is compiled for (SNNP_BYTES), through the vector extension of gcc and clang.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace snnp {
namespace SNNP_TARGET {

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(SNNP_BYTES), may_alias));
  typedef int32_t Integer;
  typedef int32_t I __attribute__((vector_size(SNNP_BYTES), may_alias));
  static constexpr int W = SNNP_BYTES / 4;
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  static constexpr int kMantissa = 23, kBias = 127, kLogTerms = 9;
  static constexpr float kLowest = -87.0f, kHighest = 88.0f;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(SNNP_BYTES), may_alias));
  typedef int64_t Integer;
  typedef int64_t I __attribute__((vector_size(SNNP_BYTES), may_alias));
  static constexpr int W = SNNP_BYTES / 8;
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissa = 52, kBias = 1023, kLogTerms = 17;
  static constexpr double kLowest = -708.0, kHighest = 709.0;
};

template <typename T>
using Vec = typename Lanes<T>::V;
template <typename T>
using Index = typename Lanes<T>::I;

template <typename T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}
// The same where p need not be a multiple of the vector's size.
template <typename T>
inline Vec<T> load_anywhere(const T* p) {
  Vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <typename T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}
template <typename T>
inline void store_anywhere(T* p, Vec<T> v) {
  memcpy(p, &v, sizeof v);
}
template <typename T>
inline Vec<T> all(T x) {
  return Vec<T>{} + x;
}
template <typename T>
inline T sum(Vec<T> v) {
#if defined(__AVX512F__) && SNNP_BYTES == 64
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)v);
  else return _mm512_reduce_add_pd((__m512d)v);
#else
  T total = 0;
  for (int q = 0; q < Lanes<T>::W; ++q) total += v[q];
  return total;
#endif
}
template <typename T>
inline Vec<T> minimum(Vec<T> a, Vec<T> b) {
  return a < b ? a : b;
}
template <typename T>
inline Vec<T> maximum(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// base[index[q]] for every lane.
template <typename T>
inline Vec<T> gather(const T* base, typename Lanes<T>::I index) {
#if defined(__AVX512F__) && SNNP_BYTES == 64
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_i32gather_ps((__m512i)index, base, 4);
  else return (Vec<T>)_mm512_i64gather_pd((__m512i)index, base, 8);
#elif defined(__AVX2__) && SNNP_BYTES == 32
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_i32gather_ps(base, (__m256i)index, 4);
  else return (Vec<T>)_mm256_i64gather_pd(base, (__m256i)index, 8);
#else
  Vec<T> found;
  for (int q = 0; q < Lanes<T>::W; ++q) found[q] = base[index[q]];
  return found;
#endif
}

// 0, 1, 2, ...
template <typename T>
inline Index<T> lane_numbers() {
  Index<T> lanes;
  for (int q = 0; q < Lanes<T>::W; ++q) lanes[q] = q;
  return lanes;
}

// One bit per lane, from the result of a comparison; and the lanes that are set, moved together at `out`, where a whole vector
// may be overwritten. There are such instructions in AVX-512 alone.
#if defined(__AVX512F__) && SNNP_BYTES == 64
#define SNNP_COMPRESS 1
using Mask = uint32_t;
template <typename T>
inline Mask mask_of(Index<T> compared) {
  if constexpr (sizeof(T) == 4) return _mm512_movepi32_mask((__m512i)compared);
  else return _mm512_movepi64_mask((__m512i)compared);
}
template <typename T>
inline void compress(Vec<T> v, Mask mask, T* out) {
  if constexpr (sizeof(T) == 4) _mm512_storeu_ps(out, _mm512_maskz_compress_ps(static_cast<__mmask16>(mask), (__m512)v));
  else _mm512_storeu_pd(out, _mm512_maskz_compress_pd(static_cast<__mmask8>(mask), (__m512d)v));
}
template <typename T>
inline void compress_integers(const int32_t* from, Mask mask, int32_t* out) {
  if constexpr (sizeof(T) == 4) {
    const __mmask16 some = static_cast<__mmask16>(mask);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(some, _mm512_maskz_loadu_epi32(some, from)));
  } else {
    const __mmask8 some = static_cast<__mmask8>(mask);
    const __m256i packed = _mm256_maskz_compress_epi32(some, _mm256_maskz_loadu_epi32(some, from));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
  }
}
#endif

// table[index[q]] for every lane; the table has 1 to 4 vectors, or any length where `vectors` is 0.
template <typename T, int vectors>
inline Vec<T> look_up(const T* table, Index<T> index) {
  constexpr int W = Lanes<T>::W;
#if defined(__AVX512F__) && SNNP_BYTES == 64
  if constexpr (vectors == 1 && sizeof(T) == 4) {
    return (Vec<T>)_mm512_permutexvar_ps((__m512i)index, (__m512)load<T>(table));
  } else if constexpr (vectors == 1) {
    return (Vec<T>)_mm512_permutexvar_pd((__m512i)index, (__m512d)load<T>(table));
  } else if constexpr (vectors == 2 && sizeof(T) == 4) {
    return (Vec<T>)_mm512_permutex2var_ps((__m512)load<T>(table), (__m512i)index, (__m512)load<T>(table + W));
  } else if constexpr (vectors == 2) {
    return (Vec<T>)_mm512_permutex2var_pd((__m512d)load<T>(table), (__m512i)index, (__m512d)load<T>(table + W));
  } else if constexpr (vectors > 2) {
    const Vec<T> low = look_up<T, 2>(table, index), high = look_up<T, vectors - 2>(table + 2 * W, index);
    return index < 2 * W ? low : high;
  }
#elif defined(__AVX2__) && SNNP_BYTES == 32
  if constexpr (vectors == 1 && sizeof(T) == 4) {
    return (Vec<T>)_mm256_permutevar8x32_ps((__m256)load<T>(table), (__m256i)index);
  } else if constexpr (vectors == 2 && sizeof(T) == 4) {
    const Vec<T> low = look_up<T, 1>(table, index), high = look_up<T, 1>(table + W, index);
    return index < W ? low : high;
  }
#endif
  return gather<T>(table, index);
}

// How many multiplications a look-up costs.
template <typename T>
constexpr int cost_of_look_up(int64_t vectors) {
#if defined(__AVX512F__) && SNNP_BYTES == 64
  return vectors <= 2 ? 1 : (vectors <= 4 ? 3 : 24);
#elif defined(__AVX2__) && SNNP_BYTES == 32
  return vectors == 1 && sizeof(T) == 4 ? 1 : (vectors == 2 && sizeof(T) == 4 ? 3 : 10);
#else
  return 2 * Lanes<T>::W;
#endif
}

// e^x to the last digit but one: 2^n times a Taylor polynomial on |r| <= ln(2) / 2.
template <typename T>
inline Vec<T> exponential(Vec<T> x) {
  using S = Lanes<T>;
  x = minimum<T>(maximum<T>(x, all<T>(S::kLowest)), all<T>(S::kHighest));
  Vec<T> shifted = x * T(1.4426950408889634) + S::kRound;
  Vec<T> n = shifted - S::kRound;
  // ln 2 in two parts, the first with few digits so that n times it is exact.
  Vec<T> r = (x - n * T(0.693359375)) + n * T(2.12194440054690583e-4);
  constexpr int degree = sizeof(T) == 4 ? 7 : 13;
  T inverse_factorial[degree + 1];
  inverse_factorial[0] = 1;
  for (int k = 1; k <= degree; ++k) inverse_factorial[k] = inverse_factorial[k - 1] / T(k);
  Vec<T> value = all<T>(inverse_factorial[degree]);
#pragma GCC unroll 16
  for (int k = degree - 1; k >= 0; --k) value = value * r + inverse_factorial[k];
  typename S::I bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + S::kBias) << S::kMantissa;
  Vec<T> power;
  memcpy(&power, &bits, sizeof power);
  return value * power;
}

// log(1 + e) for e in [0, 1]: 2 atanh(e / (2 + e)).
template <typename T>
inline Vec<T> log_one_plus(Vec<T> e) {
  Vec<T> s = e / (e + T(2)), square = s * s;
  constexpr int terms = Lanes<T>::kLogTerms;
  Vec<T> series = all<T>(T(1) / T(2 * terms + 1));
#pragma GCC unroll 32
  for (int k = terms - 1; k >= 0; --k) series = series * square + T(1) / T(2 * k + 1);
  return T(2) * s * series;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SNNP_SHUFFLE 1
#endif
#endif

#ifdef SNNP_SHUFFLE
// One step of a transposition: rows a and b, `step` apart, exchange their off-diagonal blocks of that size.
template <typename T, int W, int step>
struct Exchange;
#define SNNP_EXCHANGE(T, W, step, LOW, HIGH)                        \
  template <>                                                       \
  struct Exchange<T, W, step> {                                     \
    static inline void run(Vec<T>& a, Vec<T>& b) {                  \
      Vec<T> low = __builtin_shufflevector(a, b, LOW);              \
      b = __builtin_shufflevector(a, b, HIGH);                      \
      a = low;                                                      \
    }                                                               \
  };
#define SNNP_LIST(...) __VA_ARGS__
#include "exchange.inc"

template <typename T, int step>
inline void exchange_rows(Vec<T>* rows) {
  constexpr int W = Lanes<T>::W;
  if constexpr (step < W) {
#pragma GCC unroll 16
    for (int row = 0; row < W; ++row)
      if (!(row & step)) Exchange<T, W, step>::run(rows[row], rows[row + step]);
    exchange_rows<T, step * 2>(rows);
  }
}
#endif

// Transpose a W x W block held in W vectors.
template <typename T>
inline void transpose(Vec<T>* rows) {
#ifdef SNNP_SHUFFLE
  exchange_rows<T, 1>(rows);
#else
  constexpr int W = Lanes<T>::W;
  for (int a = 0; a < W; ++a)
    for (int b = a + 1; b < W; ++b) {
      T kept = rows[a][b];
      rows[a][b] = rows[b][a];
      rows[b][a] = kept;
    }
#endif
}

}  // namespace SNNP_TARGET
}  // namespace snnp
