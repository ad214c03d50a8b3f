// Winograd's form of a grid: F(2x2, rows x columns), up to three taps each way.
//
// Every tile of 2x2 output pixels needs (rows + 1) x (columns + 1) input pixels d. With U = G k G' and V = B' d B the tile is
// A' (U * V) A, the products summed over input channels: as many matrix products [tiles, in] x [in, out] as input pixels, 16 in the
// place of 36 for 3x3 taps, 9 of 16 for 2x2. A 3x3 kernel of stride 2 splits into grids of 2x2, 2x1, 1x2 and 1x1 taps: 25 of 36.
// The gradient to the kernel is G' (sum over tiles of V * (A e A')) G, of the tiles' cotangents e. Source: Lavin and Gray, 2016
// (arXiv 1509.09308). Factors are 1 and 1/2, so that errors stay those of a sum twice as long.
#pragma once

#include <algorithm>

#include "grids.h"
#include "tiles.h"

namespace mosaic {

#define MOSAIC_FLAT __attribute__((flatten))  // calls inside are inlined: the transforms live in registers

// Input channels from which on the products outweigh the transforms; a stride transforms each more often.
inline int64_t narrowest(int64_t stride) { return stride == 1 ? 16 : 32; }

// The transforms of one dimension. images: B'; taps: G; outputs: A'; cotangents: A; gradients: G'.
template <int Taps>
struct Line;

template <>
struct Line<3> {
  static void images(const Vector (&d)[4], Vector (&v)[4]) { v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[1] - d[3]; }
  static void taps(const Vector (&k)[3], Vector (&u)[4]) {
    const Vector sum = (k[0] + k[2]) * 0.5f, half = k[1] * 0.5f;
    u[0] = k[0], u[1] = sum + half, u[2] = sum - half, u[3] = k[2];
  }
  static void outputs(const Vector (&m)[4], Vector (&y)[2]) { y[0] = m[0] + m[1] + m[2], y[1] = m[1] - m[2] - m[3]; }
  static void cotangents(const Vector (&y)[2], Vector (&e)[4]) { e[0] = y[0], e[1] = y[0] + y[1], e[2] = y[0] - y[1], e[3] = -y[1]; }
  static void gradients(const Vector (&u)[4], Vector (&k)[3]) {
    const Vector sum = (u[1] + u[2]) * 0.5f;
    k[0] = u[0] + sum, k[1] = (u[1] - u[2]) * 0.5f, k[2] = sum + u[3];
  }
};

template <>
struct Line<2> {
  static void images(const Vector (&d)[3], Vector (&v)[3]) { v[0] = d[0] - d[1], v[1] = d[1], v[2] = d[1] - d[2]; }
  static void taps(const Vector (&k)[2], Vector (&u)[3]) { u[0] = k[0], u[1] = k[0] + k[1], u[2] = k[1]; }
  static void outputs(const Vector (&m)[3], Vector (&y)[2]) { y[0] = m[0] + m[1], y[1] = m[1] - m[2]; }
  static void cotangents(const Vector (&y)[2], Vector (&e)[3]) { e[0] = y[0], e[1] = y[0] + y[1], e[2] = -y[1]; }
  static void gradients(const Vector (&u)[3], Vector (&k)[2]) { k[0] = u[0] + u[1], k[1] = u[1] + u[2]; }
};

template <>
struct Line<1> {
  static void images(const Vector (&d)[2], Vector (&v)[2]) { v[0] = d[0], v[1] = d[1]; }
  static void taps(const Vector (&k)[1], Vector (&u)[2]) { u[0] = k[0], u[1] = k[0]; }
  static void outputs(const Vector (&m)[2], Vector (&y)[2]) { y[0] = m[0], y[1] = m[1]; }
  static void cotangents(const Vector (&y)[2], Vector (&e)[2]) { e[0] = y[0], e[1] = y[1]; }
  static void gradients(const Vector (&u)[2], Vector (&k)[1]) { k[0] = u[0] + u[1]; }
};

// A grid's taps as types: Rows and Columns of them, and Down x Across products.
template <int R, int C>
struct Taps {
  static constexpr int Rows = R, Columns = C, Down = R + 1, Across = C + 1, Products = Down * Across;
};
constexpr int kMostProducts = Taps<3, 3>::Products;

// body(Taps) for a grid in Winograd's form.
template <class Body>
void with_taps(const Grid& grid, Body body) {
  if (grid.rows == 3) body(Taps<3, 3>());
  else if (grid.rows == 2) grid.columns == 2 ? body(Taps<2, 2>()) : body(Taps<2, 1>());
  else grid.columns == 2 ? body(Taps<1, 2>()) : body(Taps<1, 1>());
}

// put(i, j, .) of get(i, j), H x W of them, transformed to h x w: `down` along columns, then `across` along rows.
template <int H, int W, int h, int w, class Down, class Across, class Get, class Put>
inline void both_ways(Down down, Across across, Get get, Put put) {
  Vector half[h][W];
  for (int j = 0; j < W; ++j) {
    Vector column[H], made[h];
    for (int i = 0; i < H; ++i) column[i] = get(i, j);
    down(column, made);
    for (int i = 0; i < h; ++i) half[i][j] = made[i];
  }
  for (int i = 0; i < h; ++i) {
    Vector made[w];
    across(half[i], made);
    for (int j = 0; j < w; ++j) put(i, j, made[j]);
  }
}

// Whether a convolution is done in Winograd's form: of three taps at stride 1, or of one or two for every remainder of the stride.
inline bool suits_winograd(const Geometry& g, int64_t in, int64_t out) {
  const bool wide = in >= narrowest(g.stride) && out >= narrowest(1) && in % kLanes == 0 && out % kLanes == 0;
  return wide && ((g.size == 3 && g.stride == 1) || (g.size > g.stride && g.size <= 2 * g.stride));
}

inline int64_t products_of(const Grid& grid) { return (grid.rows + 1) * (grid.columns + 1); }

// Of the grids before number `end`, or of all.
inline int64_t products_before(const Correlation& c, size_t end) {
  int64_t sum = 0;
  for (size_t each = 0; each < end; ++each) sum += products_of(c.grids[each]);
  return sum;
}
inline int64_t all_products(const Correlation& c) { return products_before(c, c.grids.size()); }

inline bool alike(const Grid& a, const Grid& b) { return a.rows == b.rows && a.columns == b.columns; }

// Floats from one product's matrix of `count` floats to the next: at a power of two all would share one set of the first-level cache.
inline int64_t spread(int64_t count) { return count + kLanes; }

// Tiles of a grid: of one image `across` by `down`, counted through a batch of images.
struct Tiling {
  int64_t down, across;
  explicit Tiling(const Grid& grid) : down((grid.height + 1) / 2), across((grid.width + 1) / 2) {}
  int64_t of_image() const { return down * across; }
  int64_t image(int64_t tile) const { return tile / of_image(); }
  int64_t row(int64_t tile) const { return tile % of_image() / across * 2; }
  int64_t column(int64_t tile) const { return tile % across * 2; }
};

// V of `channels` channels of some tiles from `first` on. In v tiles lie `tile_apart` floats apart, chunks of kLanes channels
// `chunk_apart`, products `apart`. images: from the first of these channels on; zeros: `channels` of them, for pixels outside.
template <class Taps>
MOSAIC_FLAT void transform_images(
    Taps, const Correlation& c, const Grid& grid, const float* images, int64_t channels, int64_t first, int64_t tiles, const float* zeros,
    float* v, int64_t tile_apart, int64_t chunk_apart, int64_t apart) {
  const Tiling tiling(grid);
  for (int64_t tile = first; tile < first + tiles; ++tile, v += tile_apart) {
    const float* image = images + tiling.image(tile) * c.height * c.width * c.in;
    const int64_t top = grid.in_y + tiling.row(tile) * c.in_step, left = grid.in_x + tiling.column(tile) * c.in_step;
    const float* at[Taps::Down][Taps::Across];
    for (int i = 0; i < Taps::Down; ++i) {
      for (int j = 0; j < Taps::Across; ++j) {
        const int64_t y = top + i * c.in_step, x = left + j * c.in_step;
        at[i][j] = y >= 0 && y < c.height && x >= 0 && x < c.width ? image + (y * c.width + x) * c.in : zeros;
      }
    }
    float* to = v;
    for (int64_t channel = 0; channel < channels; channel += kLanes, to += chunk_apart) {
      both_ways<Taps::Down, Taps::Across, Taps::Down, Taps::Across>(
          Line<Taps::Rows>::images, Line<Taps::Columns>::images, [&](int i, int j) { return load(at[i][j] + channel); },
          [&](int i, int j, Vector value) { store(to + (i * Taps::Across + j) * apart, value); });
    }
  }
}

}  // namespace mosaic
