// Register tiles: the innermost loops, which keep a block of results in vector registers while they run over what is summed.
//
// Vectors run over output channels. A tile has `rows` rows of one or two vectors; the sizes are those that leave registers for the
// factors: 16 vector registers where vectors have 4 or 8 floats, 32 where they have 16.
#pragma once

#include <cstdint>
#include <utility>

namespace mosaic {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kRowsOfOne = 24, kRowsOfTwo = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRowsOfOne = 12, kRowsOfTwo = 6;
#else
constexpr int kLanes = 4, kRowsOfOne = 12, kRowsOfTwo = 6;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Unaligned __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

// How many of the last vector's lanes are channels: the others are computed of zeros and left unwritten.
inline Vector load_first(const float* from, int lanes) {
  Vector value = {};
  for (int lane = 0; lane < lanes; ++lane) value[lane] = from[lane];
  return value;
}
inline void store_first(float* to, Vector value, int lanes) {
  for (int lane = 0; lane < lanes; ++lane) to[lane] = value[lane];
}

// What a tile of pixels sums over: `runs` stretches of `length` neighbouring floats, `stride` floats apart in the images.
struct Sum {
  int64_t runs, length, stride;
};

using PixelTile = void (*)(const float* const* in, float* const* out, const float* kernel, Sum sum, bool add, int lanes);
using ProductTile = void (*)(const float* v, int64_t in_apart, const float* u, int64_t chunks, bool add, float* m, int64_t out_apart);
using KernelTile = void (*)(const float* x, const int32_t* offsets, const float* g, int64_t pixels, float* k);

// out[r][:] (+)= sum_t in[r][t] kernel[t][:], for Rows pixels and Vectors vectors of output channels.
template <int Rows, int Vectors>
void pixel_tile(const float* const* in, float* const* out, const float* kernel, Sum sum, bool add, int lanes) {
  Vector total[Rows][Vectors];
  const float* from[Rows];
  for (int r = 0; r < Rows; ++r) {
    from[r] = in[r];
    for (int v = 0; v < Vectors; ++v) total[r][v] = Vector{};
  }
  for (int64_t run = 0; run < sum.runs; ++run) {
    for (int64_t t = 0; t < sum.length; ++t) {
      Vector weights[Vectors];
      for (int v = 0; v < Vectors; ++v) weights[v] = load(kernel + v * kLanes);
      kernel += Vectors * kLanes;
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const float value = from[r][t];
        for (int v = 0; v < Vectors; ++v) total[r][v] += weights[v] * value;
      }
    }
    for (int r = 0; r < Rows; ++r) from[r] += sum.stride;
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) {
      float* to = out[r] + v * kLanes;
      if (lanes == kLanes) {
        store(to, add ? load(to) + total[r][v] : total[r][v]);
      } else {
        store_first(to, add ? load_first(to, lanes) + total[r][v] : total[r][v], lanes);
      }
    }
  }
}

// m[r][:] (+)= sum_t v[r][t] u[t][:], for Rows tiles of Winograd's and Vectors vectors of output channels. Channels lie in chunks of
// kLanes, those of v and m `in_apart` and `out_apart` floats apart, so that all tiles of a chunk are neighbours.
template <int Rows, int Vectors>
void product_tile(const float* v, int64_t in_apart, const float* u, int64_t chunks, bool add, float* m, int64_t out_apart) {
  Vector total[Rows][Vectors] = {};
  for (int64_t chunk = 0; chunk < chunks; ++chunk, v += in_apart) {
    for (int t = 0; t < kLanes; ++t, u += Vectors * kLanes) {
      Vector weights[Vectors];
      for (int i = 0; i < Vectors; ++i) weights[i] = load(u + i * kLanes);
#pragma GCC unroll 24
      for (int r = 0; r < Rows; ++r) {
        const float value = v[r * kLanes + t];
        for (int i = 0; i < Vectors; ++i) total[r][i] += weights[i] * value;
      }
    }
  }
  for (int i = 0; i < Vectors; ++i, m += out_apart) {
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      float* to = m + r * kLanes;
      store(to, add ? load(to) + total[r][i] : total[r][i]);
    }
  }
}

// k[r][:] += sum_p x[offsets[p] + r] g[p][:], for Rows rows of a kernel and Vectors vectors of output channels.
template <int Rows, int Vectors>
void kernel_tile(const float* x, const int32_t* offsets, const float* g, int64_t pixels, float* k) {
  Vector total[Rows][Vectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) total[r][v] = load(k + (r * Vectors + v) * kLanes);
  for (int64_t p = 0; p < pixels; ++p) {
    const float* from = x + offsets[p];
    Vector cotangents[Vectors];
    for (int v = 0; v < Vectors; ++v) cotangents[v] = load(g + v * kLanes);
    g += Vectors * kLanes;
#pragma GCC unroll 24
    for (int r = 0; r < Rows; ++r) {
      const float value = from[r];
      for (int v = 0; v < Vectors; ++v) total[r][v] += cotangents[v] * value;
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < Vectors; ++v) store(k + (r * Vectors + v) * kLanes, total[r][v]);
}

// Tables of tiles by their number of rows, 1 to kRowsOfOne or kRowsOfTwo.
template <int Vectors, int... Row>
inline PixelTile pixel_tile_of(int rows, std::integer_sequence<int, Row...>) {
  static constexpr PixelTile table[] = {&pixel_tile<Row + 1, Vectors>...};
  return table[rows - 1];
}
template <int Vectors, int... Row>
inline ProductTile product_tile_of(int rows, std::integer_sequence<int, Row...>) {
  static constexpr ProductTile table[] = {&product_tile<Row + 1, Vectors>...};
  return table[rows - 1];
}
template <int Vectors, int... Row>
inline KernelTile kernel_tile_of(int rows, std::integer_sequence<int, Row...>) {
  static constexpr KernelTile table[] = {&kernel_tile<Row + 1, Vectors>...};
  return table[rows - 1];
}
inline int most_rows(int vectors) { return vectors == 1 ? kRowsOfOne : kRowsOfTwo; }
inline PixelTile find_pixel_tile(int vectors, int rows) {
  return vectors == 1 ? pixel_tile_of<1>(rows, std::make_integer_sequence<int, kRowsOfOne>())
                      : pixel_tile_of<2>(rows, std::make_integer_sequence<int, kRowsOfTwo>());
}
inline ProductTile find_product_tile(int vectors, int rows) {
  return vectors == 1 ? product_tile_of<1>(rows, std::make_integer_sequence<int, kRowsOfOne>())
                      : product_tile_of<2>(rows, std::make_integer_sequence<int, kRowsOfTwo>());
}
inline KernelTile find_kernel_tile(int vectors, int rows) {
  return vectors == 1 ? kernel_tile_of<1>(rows, std::make_integer_sequence<int, kRowsOfOne>())
                      : kernel_tile_of<2>(rows, std::make_integer_sequence<int, kRowsOfTwo>());
}

// Output channels are taken in blocks of two vectors, at the end of one, whose last lanes may be empty.
struct Channels {
  int first, vectors, lanes;  // lanes: filled ones of each vector; all of them where vectors is 2
  int width() const { return vectors * kLanes; }
  int used() const { return vectors == 2 ? 2 * kLanes : lanes; }
};
inline int num_blocks(int channels) {
  const int pairs = channels / (2 * kLanes), rest = channels % (2 * kLanes);
  return pairs + (rest > kLanes) + (rest > 0);
}
inline Channels block_of(int channels, int index) {
  const int pairs = channels / (2 * kLanes);
  if (index < pairs) return {index * 2 * kLanes, 2, kLanes};
  const int first = pairs * 2 * kLanes + (index - pairs) * kLanes;
  return {first, 1, channels - first < kLanes ? channels - first : kLanes};
}
// body(begin, size) for `count` things in as few parts of at most `most` as it takes, equal ones: a last one of few rows would wait for
// its own additions.
template <class Body>
void in_equal_parts(int64_t count, int most, Body body) {
  const int64_t parts = (count + most - 1) / most;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t begin = count * part / parts;
    body(begin, static_cast<int>(count * (part + 1) / parts - begin));
  }
}
inline int padded(int channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

}  // namespace mosaic
