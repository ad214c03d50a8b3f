// The two maps of a convolution that make images, as sums over the taps of a kernel at every pixel of a grid.
//
// The forward map has one grid; the transposed one with stride s has s x s of them (sub-pixel form): the pixels of one remainder
// modulo s meet every s-th tap only. In split form the forward map has s x s grids too, one for each remainder of the taps, which all
// make the same pixels: then the taps of each are neighbours in the image of every s-th pixel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mosaic {

// Letters as in ops/canonical.py: images [batch, height, width, in], kernel [size, size, I, O].
struct Geometry {
  int64_t size, stride, padding;
};

// One grid of output pixels. Pixel (a, b) stands at (out_y + a out_step, out_x + b out_step) and sums over the taps (i, j), i < rows,
// j < columns, of the input pixel (in_y + a in_step + i, in_x + b in_step + j), in split form in_step times i and j, times the
// kernel's tap (first_row + i tap_step, first_column + j tap_step).
struct Grid {
  int64_t height, width, out_y, out_x, in_y, in_x, rows, columns, first_row, first_column;
};

// Images [batch, height, width, in] -> [batch, out_height, out_width, out], by the grids.
struct Correlation {
  int64_t batch, height, width, in, out_height, out_width, out, in_step, out_step, tap_step;
  std::vector<Grid> grids;
};

// Which of the kernel's taps, counted row by row, is (i, j) of a grid.
inline int64_t tap_of(const Geometry& g, const Correlation& c, const Grid& grid, int64_t i, int64_t j) {
  return (grid.first_row + i * c.tap_step) * g.size + grid.first_column + j * c.tap_step;
}

// x [batch, height, width, in], k -> g.
inline Correlation forward_of(
    const Geometry& g, int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, bool split) {
  const int64_t rows = (height + 2 * g.padding - g.size) / g.stride + 1, columns = (width + 2 * g.padding - g.size) / g.stride + 1;
  const int64_t parts = split ? g.stride : 1;
  auto taps = [&](int64_t first) { return (g.size - first + parts - 1) / parts; };
  Correlation c{batch, height, width, in, rows, columns, out, g.stride, 1, parts, {}};
  for (int64_t y = 0; y < parts; ++y)
    for (int64_t x = 0; x < parts; ++x) c.grids.push_back({rows, columns, 0, 0, y - g.padding, x - g.padding, taps(y), taps(x), y, x});
  return c;
}

// g [batch, height, width, in], k -> x [.., out_height, out_width, out]; the caller fills with zeros the grids that no tap meets.
inline Correlation transposed_of(
    const Geometry& g, int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out_height, int64_t out_width, int64_t out) {
  Correlation c{batch, height, width, in, out_height, out_width, out, 1, g.stride, -g.stride, {}};
  auto count = [&](int64_t first) { return first < g.size ? (g.size - 1 - first) / g.stride + 1 : 0; };
  for (int64_t y = 0; y < std::min(g.stride, out_height); ++y) {
    for (int64_t x = 0; x < std::min(g.stride, out_width); ++x) {
      const int64_t row = (y + g.padding) % g.stride, column = (x + g.padding) % g.stride;
      const int64_t rows = count(row), columns = count(column);
      c.grids.push_back({(out_height - y - 1) / g.stride + 1, (out_width - x - 1) / g.stride + 1, y, x,
                         (y + g.padding) / g.stride - (rows - 1), (x + g.padding) / g.stride - (columns - 1), rows, columns,
                         row + g.stride * (rows - 1), column + g.stride * (columns - 1)});
    }
  }
  return c;
}

}  // namespace mosaic
