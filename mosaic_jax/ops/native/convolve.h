// The two maps of a convolution that make images: forward, and the gradient to the images, which is the transposed convolution.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "epilogue.h"
#include "threads.h"
#include "winograd_images.h"

namespace mosaic {

constexpr int64_t kSummedAtOnce = 256;       // rows of a packed kernel that stay in the first-level cache
constexpr int64_t kGroupFloats = 48 * 1024;  // of padded images that stay in the second-level cache

// Weights of one grid, transposed or not, packed as [blocks of output channels][i][j][in][lanes], zeros in empty lanes.
inline void pack_kernel(const Geometry& g, bool transposed, const Grid& grid, const Correlation& c, const float* kernel, float* to) {
  for (int index = 0; index < num_blocks(c.out); ++index) {
    const Channels block = block_of(c.out, index);
    for (int64_t i = 0; i < grid.rows; ++i) {
      for (int64_t j = 0; j < grid.columns; ++j) {
        const float* tap = kernel + tap_of(g, c, grid, i, j) * c.in * c.out;
        for (int64_t t = 0; t < c.in; ++t, to += block.width()) {
          for (int o = 0; o < block.used(); ++o)
            to[o] = transposed ? tap[(block.first + o) * c.in + t] : tap[t * c.out + block.first + o];
          for (int o = block.used(); o < block.width(); ++o) to[o] = 0;
        }
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

// The epilogue of a tile of pixels that hold their whole sums.
inline void finish(const Epilogue& epilogue, const Channels& block, float* const* outs, int rows) {
  for (int v = 0; v < block.vectors; ++v) {
    for (int r = 0; r < rows; ++r) {
      float* to = outs[r] + v * kLanes;
      const bool full = block.lanes == kLanes;
      const Vector value = epilogue(full ? load(to) : load_first(to, block.lanes), to, block.first + v * kLanes, block.lanes);
      full ? store(to, value) : store_first(to, value, block.lanes);
    }
  }
}

// One grid of `count` padded images: blocks of output channels, then stretches of the sum, then tiles of pixels.
inline void run_grid(
    const Correlation& c, const Grid& grid, const Frame& frame, const float* in, int64_t count, const float* packed,
    const Epilogue& epilogue, float* out) {
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
        const bool whole = epilogue.offset && i + runs >= grid.rows && piece + 1 == pieces;
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
          if (whole) finish(epilogue, block, outs, rows);
        }
        packed += here * (end - begin) * block.width();
        add = true;
      }
    }
  }
}

// How many images are one task. A kernel too large for the cache is read once for each: as many as it takes for that to cost little.
inline int64_t images_at_once(ThreadPool* pool, int64_t batch, int64_t image, int64_t weights) {
  const int64_t wanted = std::max(kGroupFloats, std::min<int64_t>(weights / 2, 16 * kGroupFloats));
  const int64_t group = std::clamp<int64_t>(wanted / std::max<int64_t>(image, 1), 1, batch);
  return pool ? std::min(group, std::max<int64_t>(1, batch / (2 * pool->num_threads()))) : group;
}

// task(first, count) for all images, by groups.
template <class Task>
void share_images(ThreadPool* pool, int64_t batch, int64_t image, int64_t weights, Task task) {
  const int64_t group = images_at_once(pool, batch, image, weights);
  share(pool, (batch + group - 1) / group, [=](int64_t index) { task(index * group, std::min(group, batch - index * group)); });
}

inline void correlate_directly(
    ThreadPool* pool, const Geometry& g, bool transposed, const Correlation& c, const float* images, const float* kernel,
    const Epilogue& epilogue, float* out) {
  std::vector<int64_t> starts;
  int64_t weights = 0;
  for (const Grid& grid : c.grids) {
    starts.push_back(weights);
    weights += grid.rows * grid.columns * c.in * padded(c.out);
  }
  float* packed = scratch(0, weights);
  for (size_t index = 0; index < c.grids.size(); ++index) pack_kernel(g, transposed, c.grids[index], c, kernel, packed + starts[index]);
  const Frame frame = frame_of(c);
  const bool padding = frame.top || frame.left || frame.height > c.height || frame.width > c.width;
  const Frame stored = padding ? frame : Frame{0, 0, c.height, c.width};
  const int64_t image = stored.height * stored.width * c.in;
  share_images(pool, c.batch, image, weights, [&](int64_t first, int64_t count) {
    const float* in = images + first * c.height * c.width * c.in;
    if (padding) {
      float* framed = scratch(1, count * image);
      pad_images(in, count, c.height, c.width, c.in, frame, framed);
      in = framed;
    }
    for (size_t each = 0; each < c.grids.size(); ++each) {
      if (c.grids[each].rows && c.grids[each].columns)
        run_grid(c, c.grids[each], stored, in, count, packed + starts[each], epilogue, out + first * c.out_height * c.out_width * c.out);
    }
  });
}

inline void correlate_by_winograd(
    ThreadPool* pool, const Geometry& g, bool transposed, const Correlation& c, const float* images, const float* kernel,
    const Epilogue& epilogue, float* out) {
  const int64_t weights = all_products(c) * spread(c.in * c.out), image = c.height * c.width * c.in;
  float* packed = scratch(0, weights);
  pack_winograd(pool, g, transposed, c, kernel, packed);
  share_images(pool, c.batch, image, weights, [&](int64_t first, int64_t count) {
    run_winograd(c, images + first * image, count, packed, epilogue, out + first * c.out_height * c.out_width * c.out);
  });
}

inline void correlate(
    ThreadPool* pool, const Geometry& g, bool transposed, const Correlation& c, const float* images, const float* kernel,
    const Epilogue& epilogue, float* out) {
  suits_winograd(g, c.in, c.out) ? correlate_by_winograd(pool, g, transposed, c, images, kernel, epilogue, out)
                                 : correlate_directly(pool, g, transposed, c, images, kernel, epilogue, out);
}

// x, k -> g, and what is done to g.
inline void forward(
    ThreadPool* pool, const Geometry& g, int64_t batch, int64_t height, int64_t width, int64_t in, int64_t out, const float* x,
    const float* k, const Epilogue& epilogue, float* to) {
  correlate(pool, g, false, forward_of(g, batch, height, width, in, out, suits_winograd(g, in, out)), x, k, epilogue, to);
}

}  // namespace mosaic
