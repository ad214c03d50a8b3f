// Winograd's form of the map that makes a kernel.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"
#include "winograd.h"

namespace mosaic {

constexpr int64_t kTilesAtOnce = 96;  // whose cotangents and images in V, of one product, stay in the first-level cache

// A e A' of `block` of the cotangents of some tiles from `first` on, [products][kTilesAtOnce][lanes]; zeros beyond an odd edge.
template <class Taps>
MOSAIC_FLAT void transform_cotangents(
    Taps, const Correlation& c, const Tiling& tiling, const Channels& block, const float* g, int64_t first, int64_t tiles, float* e) {
  const int64_t apart = spread(kTilesAtOnce * block.width()), line = c.out_width * c.out;
  for (int64_t tile = first; tile < first + tiles; ++tile, e += block.width()) {
    const int64_t a = tiling.row(tile), b = tiling.column(tile);
    const float* from = g + ((tiling.image(tile) * c.out_height + a) * c.out_width + b) * c.out + block.first;
    const bool below = a + 1 < c.out_height, beside = b + 1 < c.out_width;
    for (int v = 0; v < block.vectors; ++v) {
      both_ways<2, 2, Taps::Down, Taps::Across>(
          Line<Taps::Rows>::cotangents, Line<Taps::Columns>::cotangents,
          [&](int i, int j) {
            return (i == 0 || below) && (j == 0 || beside) ? load(from + i * line + j * c.out + v * kLanes) : Vector{};
          },
          [&](int i, int j, Vector value) { store(e + (i * Taps::Across + j) * apart + v * kLanes, value); });
    }
  }
}

// Adds what images first to last give for input channels `channel` on, `channels` of them, to
// sum [grids][products][blocks of output channels][channels][lanes], products spread. c: the forward map in split form.
inline void add_winograd(
    const Correlation& c, int64_t first, int64_t last, int64_t channel, int64_t channels, const float* x, const float* g, float* sum) {
  const Tiling tiling(c.grids[0]);
  const int64_t apart = spread(kTilesAtOnce * channels), room = kMostProducts * spread(kTilesAtOnce * 2 * kLanes);
  float* v = scratch(1, all_products(c) * apart);
  float* e = scratch(2, room + channels);
  float* zeros = e + room;
  std::memset(zeros, 0, channels * sizeof(float));
  std::vector<int32_t> offsets(kTilesAtOnce);
  for (int64_t tile = 0; tile < kTilesAtOnce; ++tile) offsets[tile] = static_cast<int32_t>(tile * channels);
  const int64_t end = last * tiling.of_image();
  for (int64_t tile = first * tiling.of_image(); tile < end; tile += kTilesAtOnce) {
    const int64_t tiles = std::min(kTilesAtOnce, end - tile);
    float* made = v;
    for (const Grid& grid : c.grids) {
      with_taps(grid, [&](auto taps) {
        transform_images(taps, c, grid, x + channel, channels, tile, tiles, zeros, made, channels, kLanes, apart);
      });
      made += products_of(grid) * apart;
    }
    for (int index = 0; index < num_blocks(static_cast<int>(c.out)); ++index) {
      const Channels block = block_of(static_cast<int>(c.out), index);
      const float* images = v;
      float* to = sum + block.first * channels;
      for (size_t each = 0; each < c.grids.size(); ++each) {
        const Grid& grid = c.grids[each];
        if (each == 0 || !alike(grid, c.grids[each - 1]))
          with_taps(grid, [&](auto taps) { transform_cotangents(taps, c, tiling, block, g, tile, tiles, e); });
        const float* cotangents = e;
        for (int64_t product = 0; product < products_of(grid); ++product) {
          in_equal_parts(channels, most_rows(block.vectors), [&](int64_t begin, int rows) {
            find_kernel_tile(block.vectors, rows)(images + begin, offsets.data(), cotangents, tiles, to + begin * block.width());
          });
          images += apart, cotangents += spread(kTilesAtOnce * block.width()), to += spread(channels * c.out);
        }
      }
    }
  }
}

// The taps of a grid from its sums, adding to k or not.
template <class Taps>
MOSAIC_FLAT void write_taps(
    Taps, const Geometry& g, const Correlation& c, const Grid& grid, int64_t channel, int64_t channels, const float* sum, bool add,
    float* k) {
  const int64_t apart = spread(channels * c.out);
  for (int index = 0; index < num_blocks(static_cast<int>(c.out)); ++index) {
    const Channels block = block_of(static_cast<int>(c.out), index);
    for (int64_t t = 0; t < channels; ++t) {
      for (int v = 0; v < block.vectors; ++v) {
        const float* from = sum + block.first * channels + t * block.width() + v * kLanes;
        both_ways<Taps::Down, Taps::Across, Taps::Rows, Taps::Columns>(
            Line<Taps::Rows>::gradients, Line<Taps::Columns>::gradients,
            [&](int i, int j) { return load(from + (i * Taps::Across + j) * apart); },
            [&](int i, int j, Vector value) {
              float* to = k + (tap_of(g, c, grid, i, j) * c.in + channel + t) * c.out + block.first + v * kLanes;
              store(to, add ? load(to) + value : value);
            });
      }
    }
  }
}

inline void write_winograd(
    const Geometry& g, const Correlation& c, int64_t channel, int64_t channels, const float* sum, bool add, float* k) {
  for (const Grid& grid : c.grids) {
    with_taps(grid, [&](auto taps) { write_taps(taps, g, c, grid, channel, channels, sum, add, k); });
    sum += products_of(grid) * spread(channels * c.out);
  }
}

}  // namespace mosaic
