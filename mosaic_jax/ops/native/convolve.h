// The two maps of a convolution that make images: forward, and the gradient to the images, which is the transposed convolution.
//
// Both are sums over the taps of a kernel at every pixel of a grid. The forward map has one grid; the transposed one with stride s
// has s x s of them (sub-pixel form): the pixels of one remainder modulo s meet every s-th tap only.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "threads.h"
#include "tiles.h"
#include "winograd.h"

namespace mosaic {

constexpr int64_t kSummedAtOnce = 256;       // rows of a packed kernel that stay in the first-level cache
constexpr int64_t kGroupFloats = 48 * 1024;  // of padded images that stay in the second-level cache

// Letters as in ops/canonical.py: images [batch, height, width, in], kernel [size, size, I, O].
struct Geometry {
  int64_t size, stride, padding;
};

// One grid of output pixels. Pixel (a, b) stands at (out_y + a * out_step, out_x + b * out_step) and sums over the taps (i, j),
// i < rows, j < columns, of the input pixel (in_y + a * in_step + i, in_x + b * in_step + j).
struct Grid {
  int64_t height, width, out_y, out_x, in_y, in_x, rows, columns;
  int64_t first_row, first_column;  // of the kernel's taps; transposed: the last tap, from which they go down by the stride
};

// Images [batch, height, width, in] -> [batch, out_height, out_width, out], by the grids.
struct Correlation {
  int64_t batch, height, width, in, out_height, out_width, out, in_step, out_step;
  std::vector<Grid> grids;
};

// Weights of one grid, transposed or not, packed as [blocks of output channels][i][j][in][lanes], zeros in empty lanes.
inline void pack_kernel(const Geometry& g, bool transposed, const Grid& grid, const Correlation& c, const float* kernel, float* to) {
  for (int index = 0; index < num_blocks(c.out); ++index) {
    const Channels block = block_of(c.out, index);
    for (int64_t i = 0; i < grid.rows; ++i) {
      for (int64_t j = 0; j < grid.columns; ++j) {
        const int64_t row = transposed ? grid.first_row - g.stride * i : i, column = transposed ? grid.first_column - g.stride * j : j;
        const float* tap = kernel + (row * g.size + column) * c.in * c.out;
        for (int64_t t = 0; t < c.in; ++t, to += block.width()) {
          for (int o = 0; o < block.used(); ++o)
            to[o] = transposed ? tap[(block.first + o) * c.in + t] : tap[t * c.out + block.first + o];
          for (int o = block.used(); o < block.width(); ++o) to[o] = 0;
        }
      }
    }
  }
}

// U of Winograd's form, packed as [16][blocks of output channels][in][lanes].
inline void pack_winograd(bool transposed, const Correlation& c, const float* kernel, float* to) {
  const int64_t product = c.in * c.out;
  for (int index = 0; index < num_blocks(c.out); ++index) {
    const Channels block = block_of(c.out, index);
    for (int64_t t = 0; t < c.in; ++t, to += block.width()) {
      for (int v = 0; v < block.vectors; ++v) {
        const int64_t first = block.first + v * kLanes;
        Vector taps[3][3], u[4][4];
        for (int i = 0; i < 3; ++i) {
          for (int j = 0; j < 3; ++j) {
            if (transposed) {
              const float* tap = kernel + ((2 - i) * 3 + 2 - j) * product + t;
              for (int o = 0; o < kLanes; ++o) taps[i][j][o] = tap[(first + o) * c.in];
            } else {
              taps[i][j] = load(kernel + (i * 3 + j) * product + t * c.out + first);
            }
          }
        }
        transform_taps(taps, u);
        for (int i = 0; i < 16; ++i) store(to + i * product + v * kLanes, u[i / 4][i % 4]);
      }
    }
  }
}

// Images with zeros around: top, left of each, to [height, width] in all.
struct Frame {
  int64_t top, left, height, width;
};

inline void pad_images(const float* images, int64_t count, int64_t height, int64_t width, int64_t channels, const Frame& frame, float* to) {
  const int64_t kept = std::min(width, frame.width - frame.left) * channels, left = frame.left * channels;
  for (int64_t n = 0; n < count; ++n) {
    for (int64_t y = 0; y < frame.height; ++y, to += frame.width * channels) {
      const int64_t from = y - frame.top;
      if (from < 0 || from >= height) {
        std::memset(to, 0, frame.width * channels * sizeof(float));
        continue;
      }
      std::memset(to, 0, left * sizeof(float));
      std::memcpy(to + left, images + (n * height + from) * width * channels, kept * sizeof(float));
      std::memset(to + left + kept, 0, (frame.width * channels - left - kept) * sizeof(float));
    }
  }
}

inline Frame frame_of(const Correlation& c) {
  Frame frame{0, 0, 0, 0};
  for (const Grid& grid : c.grids) {
    frame.top = std::max(frame.top, -grid.in_y);
    frame.left = std::max(frame.left, -grid.in_x);
  }
  for (const Grid& grid : c.grids) {
    frame.height = std::max(frame.height, frame.top + grid.in_y + (grid.height - 1) * c.in_step + grid.rows);
    frame.width = std::max(frame.width, frame.left + grid.in_x + (grid.width - 1) * c.in_step + grid.columns);
  }
  return frame;
}

// One grid of `count` padded images: blocks of output channels, then stretches of the sum, then tiles of pixels.
inline void run_grid(const Correlation& c, const Grid& grid, const Frame& frame, const float* in, int64_t count, const float* packed, float* out) {
  const int64_t pixels = grid.height * grid.width;
  const int64_t in_image = frame.height * frame.width * c.in, out_image = c.out_height * c.out_width * c.out;
  std::vector<int64_t> in_at(pixels), out_at(pixels);
  for (int64_t a = 0; a < grid.height; ++a) {
    for (int64_t b = 0; b < grid.width; ++b) {
      in_at[a * grid.width + b] =
          ((frame.top + grid.in_y + a * c.in_step) * frame.width + frame.left + grid.in_x + b * c.in_step) * c.in;
      out_at[a * grid.width + b] = ((grid.out_y + a * c.out_step) * c.out_width + grid.out_x + b * c.out_step) * c.out;
    }
  }
  const int64_t run = grid.columns * c.in, stride = frame.width * c.in;
  const int64_t pieces = run > kSummedAtOnce ? (run + kSummedAtOnce - 1) / kSummedAtOnce : 1;
  const int64_t runs = std::max<int64_t>(1, std::min(grid.rows, kSummedAtOnce / run));
  for (int index = 0; index < num_blocks(c.out); ++index) {
    const Channels block = block_of(c.out, index);
    const int most = most_rows(block.vectors);
    bool add = false;
    for (int64_t i = 0; i < grid.rows; i += runs) {
      const int64_t here = std::min(runs, grid.rows - i);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begin = run * piece / pieces, end = run * (piece + 1) / pieces;
        const Sum sum{here, end - begin, stride};
        const int64_t from = i * stride + begin;
        for (int64_t first = 0, image = 0, pixel = 0; first < count * pixels; first += most) {
          const int rows = static_cast<int>(std::min<int64_t>(most, count * pixels - first));
          const float* ins[kRowsOfOne];
          float* outs[kRowsOfOne];
          for (int r = 0; r < rows; ++r) {
            ins[r] = in + image * in_image + in_at[pixel] + from;
            outs[r] = out + image * out_image + out_at[pixel] + block.first;
            if (++pixel == pixels) pixel = 0, ++image;
          }
          find_pixel_tile(block.vectors, rows)(ins, outs, packed, sum, add, block.lanes);
        }
        packed += here * (end - begin) * block.width();
        add = true;
      }
    }
  }
}

// The one grid of `count` padded images in Winograd's form.
inline void run_winograd(const Correlation& c, const Frame& frame, const float* in, int64_t count, const float* packed, float* out) {
  const int64_t across = (c.out_width + 1) / 2, of_image = (c.out_height + 1) / 2 * across, line = frame.width * c.in;
  const int64_t room = tiles_at_once(c.in);
  float* v = scratch(2, 16 * room * c.in);
  float* m = scratch(3, 16 * room * c.out);
  for (int64_t first = 0; first < count * of_image; first += room) {
    const int64_t tiles = std::min(room, count * of_image - first);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t image = (first + tile) / of_image, y = (first + tile) % of_image / across * 2, x = (first + tile) % across * 2;
      transform_images(in + ((image * frame.height + y) * frame.width + x) * c.in, line, c.in, v + tile * c.in, room * c.in);
    }
    multiply(packed, v, tiles, room, c.in, c.out, m);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t image = (first + tile) / of_image, y = (first + tile) % of_image / across * 2, x = (first + tile) % across * 2;
      transform_outputs(m + tile * c.out, room * c.out, c.out, out + ((image * c.out_height + y) * c.out_width + x) * c.out,
                        c.out_width * c.out, std::min<int64_t>(2, c.out_height - y), std::min<int64_t>(2, c.out_width - x));
    }
  }
}

inline void correlate(ThreadPool* pool, const Geometry& g, bool transposed, const Correlation& c, const float* images, const float* kernel, float* out) {
  const bool winograd = suits_winograd(g.size, g.stride, c.in, c.out);
  Frame frame = frame_of(c);
  if (winograd) frame.height += c.out_height % 2, frame.width += c.out_width % 2;
  std::vector<int64_t> starts;
  int64_t weights = 0;
  for (const Grid& grid : c.grids) {
    starts.push_back(weights);
    weights += grid.rows * grid.columns * c.in * padded(c.out);
  }
  if (winograd) weights = 16 * c.in * c.out;
  float* packed = scratch(0, weights);
  if (winograd) pack_winograd(transposed, c, kernel, packed);
  for (size_t index = 0; !winograd && index < c.grids.size(); ++index) pack_kernel(g, transposed, c.grids[index], c, kernel, packed + starts[index]);

  const bool padding = frame.top || frame.left || frame.height > c.height || frame.width > c.width;
  const Frame stored = padding ? frame : Frame{0, 0, c.height, c.width};
  const int64_t image = stored.height * stored.width * c.in;
  // A kernel too large for the cache is read once for each group: as many images as it takes for that to cost little.
  const int64_t wanted = std::max(kGroupFloats, std::min<int64_t>(weights / 2, 16 * kGroupFloats));
  int64_t group = std::clamp<int64_t>(wanted / std::max<int64_t>(image, 1), 1, c.batch);
  if (pool) group = std::min(group, std::max<int64_t>(1, c.batch / (2 * pool->num_threads())));
  const int64_t groups = (c.batch + group - 1) / group;
  share(pool, groups, [&](int64_t index) {
    const int64_t first = index * group, count = std::min(group, c.batch - first);
    const float* in = images + first * c.height * c.width * c.in;
    if (padding) {
      float* framed = scratch(1, count * image);
      pad_images(in, count, c.height, c.width, c.in, frame, framed);
      in = framed;
    }
    if (winograd) return run_winograd(c, stored, in, count, packed, out + first * c.out_height * c.out_width * c.out);
    for (size_t each = 0; each < c.grids.size(); ++each) {
      if (c.grids[each].rows && c.grids[each].columns)
        run_grid(c, c.grids[each], stored, in, count, packed + starts[each], out + first * c.out_height * c.out_width * c.out);
    }
  });
}

// x [batch, height, width, in], k -> g.
inline Correlation forward_of(const Geometry& g, int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out) {
  const int64_t rows = (height + 2 * g.padding - g.size) / g.stride + 1, columns = (width + 2 * g.padding - g.size) / g.stride + 1;
  return {batch, height, width, in, rows, columns, out, g.stride, 1,
          {{rows, columns, 0, 0, -g.padding, -g.padding, g.size, g.size, 0, 0}}};
}

// g [batch, height, width, in], k -> x [.., out_height, out_width, out]; the caller fills with zeros the grids that no tap meets.
inline Correlation transposed_of(const Geometry& g, int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out_height, int64_t out_width, int64_t out) {
  Correlation c{batch, height, width, in, out_height, out_width, out, 1, g.stride, {}};
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
