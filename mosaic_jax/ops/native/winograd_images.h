// Winograd's form of the two maps that make images.
#pragma once

#include <algorithm>
#include <cstring>

#include "epilogue.h"
#include "threads.h"
#include "winograd.h"

namespace mosaic {

// Tiles whose products share a read of U: the more channels the larger U, the fewer the more of all else stays in the cache.
inline int64_t tiles_at_once(int64_t in) { return in <= 64 ? 24 : in <= 256 ? 48 : 96; }

// kLanes x kLanes floats, rows `line` apart, with rows and columns exchanged.
inline void transpose(const float* from, int64_t line, Vector (&to)[kLanes]) {
  float rows[kLanes][kLanes];
  for (int row = 0; row < kLanes; ++row) store(rows[row], load(from + row * line));
  for (int column = 0; column < kLanes; ++column)
    for (int row = 0; row < kLanes; ++row) to[column][row] = rows[row][column];
}

// U of a grid's block of output channels, [products][in][lanes], products `apart` floats apart.
// transposed: kernel [size, size, out, in].
template <class Taps>
MOSAIC_FLAT void pack_block(
    Taps, const Geometry& g, bool transposed, const Correlation& c, const Grid& grid, const Channels& block, const float* kernel,
    int64_t apart, float* u) {
  for (int v = 0; v < block.vectors; ++v) {
    const int64_t out = block.first + v * kLanes;
    for (int64_t first = 0; first < c.in; first += kLanes) {
      Vector taps[Taps::Rows][Taps::Columns][kLanes];
      for (int i = 0; i < Taps::Rows; ++i) {
        for (int j = 0; j < Taps::Columns; ++j) {
          const float* tap = kernel + tap_of(g, c, grid, i, j) * c.in * c.out;
          if (transposed) transpose(tap + out * c.in + first, c.in, taps[i][j]);
          else for (int t = 0; t < kLanes; ++t) taps[i][j][t] = load(tap + (first + t) * c.out + out);
        }
      }
      for (int t = 0; t < kLanes; ++t) {
        float* to = u + (first + t) * block.width() + v * kLanes;
        both_ways<Taps::Rows, Taps::Columns, Taps::Down, Taps::Across>(
            Line<Taps::Rows>::taps, Line<Taps::Columns>::taps, [&](int i, int j) { return taps[i][j][t]; },
            [&](int i, int j, Vector value) { store(to + (i * Taps::Across + j) * apart, value); });
      }
    }
  }
}

// U of every grid, as [grids][products][blocks of output channels][in][lanes], products spread.
inline void pack_winograd(ThreadPool* pool, const Geometry& g, bool transposed, const Correlation& c, const float* kernel, float* packed) {
  const int64_t apart = spread(c.in * c.out), blocks = num_blocks(static_cast<int>(c.out));
  share(pool, static_cast<int64_t>(c.grids.size()) * blocks, [&](int64_t index) {
    const size_t each = index / blocks;
    const Channels block = block_of(static_cast<int>(c.out), static_cast<int>(index % blocks));
    float* to = packed + products_before(c, each) * apart + block.first * c.in;
    with_taps(c.grids[each], [&](auto taps) { pack_block(taps, g, transposed, c, c.grids[each], block, kernel, apart, to); });
  });
}

// m (+)= v u for `tiles` tiles; u [products][blocks of output channels][in][lanes], v and m [products][chunks of channels][room][lanes],
// products spread.
inline void multiply(
    int64_t products, const float* u, const float* v, int64_t tiles, int64_t room, int64_t in, int64_t out, bool add, float* m) {
  const int64_t chunks = in / kLanes, pieces = (in + 255) / 256;  // of the sum, so that a block of u stays in the first-level cache
  for (int64_t product = 0; product < products; ++product, u += kLanes, v += spread(room * in), m += spread(room * out)) {
    for (int index = 0; index < num_blocks(static_cast<int>(out)); ++index) {
      const Channels block = block_of(static_cast<int>(out), index);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begin = chunks * piece / pieces, count = chunks * (piece + 1) / pieces - begin;
        in_equal_parts(tiles, most_rows(block.vectors), [&](int64_t first, int rows) {
          find_product_tile(block.vectors, rows)(
              v + begin * room * kLanes + first * kLanes, room * kLanes, u, count, add || piece > 0,
              m + block.first * room + first * kLanes, room * kLanes);
        });
        u += count * kLanes * block.width();
      }
    }
  }
}

// The pixels of some tiles from `first` on (fewer than 2x2 at an odd edge), from their products m; added to what is there or not.
// epilogue: of what then is there.
template <class Taps>
MOSAIC_FLAT void transform_outputs(
    Taps, const Correlation& c, const Grid& grid, const float* m, int64_t room, int64_t first, int64_t tiles, bool add,
    const Epilogue& epilogue, float* out) {
  const Tiling tiling(grid);
  const int64_t apart = spread(room * c.out), column = c.out_step * c.out, line = column * c.out_width;
  for (int64_t tile = first; tile < first + tiles; ++tile, m += kLanes) {
    const int64_t a = tiling.row(tile), b = tiling.column(tile);
    const int64_t y = grid.out_y + a * c.out_step, x = grid.out_x + b * c.out_step;
    float* of_tile = out + ((tiling.image(tile) * c.out_height + y) * c.out_width + x) * c.out;
    const bool below = a + 1 < grid.height, beside = b + 1 < grid.width;
    for (int64_t channel = 0; channel < c.out; channel += kLanes) {
      both_ways<Taps::Down, Taps::Across, 2, 2>(
          Line<Taps::Rows>::outputs, Line<Taps::Columns>::outputs,
          [&](int i, int j) { return load(m + (i * Taps::Across + j) * apart + channel * room); },
          [&](int i, int j, Vector value) {
            if ((i == 1 && !below) || (j == 1 && !beside)) return;
            float* to = of_tile + i * line + j * column + channel;
            store(to, epilogue(add ? load(to) + value : value, to, channel, kLanes));
          });
    }
  }
}

// All grids of `count` images.
inline void run_winograd(
    const Correlation& c, const float* images, int64_t count, const float* packed, const Epilogue& epilogue, float* out) {
  const int64_t room = tiles_at_once(c.in);
  const size_t together = c.out_step == 1 ? c.grids.size() : 1;  // grids that make the same pixels
  float* zeros = scratch(1, c.in);
  std::memset(zeros, 0, c.in * sizeof(float));
  float* v = scratch(2, kMostProducts * spread(room * c.in));
  float* m = scratch(3, kMostProducts * spread(room * c.out));
  for (size_t set = 0; set < c.grids.size(); set += together) {
    const int64_t all = count * Tiling(c.grids[set]).of_image();
    for (int64_t first = 0; first < all; first += room) {
      const int64_t tiles = std::min(room, all - first);
      const float* u = packed + products_before(c, set) * spread(c.in * c.out);
      bool begun = false, kept = false;  // whether out, and m, hold the sum of other grids
      for (size_t each = set; each < set + together; ++each) {
        const Grid& grid = c.grids[each];
        const bool goes_on = each + 1 < set + together && alike(grid, c.grids[each + 1]);  // sums of like grids are added before A
        with_taps(grid, [&](auto taps) {
          transform_images(taps, c, grid, images, c.in, first, tiles, zeros, v, kLanes, room * kLanes, spread(room * c.in));
          multiply(taps.Products, u, v, tiles, room, c.in, c.out, kept, m);
          const bool ends = each + 1 == set + together;
          if (!goes_on) transform_outputs(taps, c, grid, m, room, first, tiles, begun, ends ? epilogue : Epilogue{}, out);
        });
        u += products_of(grid) * spread(c.in * c.out);
        kept = goes_on, begun = begun || !goes_on;
      }
    }
  }
}

}  // namespace mosaic
