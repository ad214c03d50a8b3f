// The map of a convolution that makes a kernel: images [B, H, W, I], cotangents [B, H', W', O] -> [size, size, I, O].
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "convolve.h"
#include "winograd_kernel.h"

namespace mosaic {

constexpr int64_t kPixelsAtOnce = 128;  // whose cotangents and patches stay in the first-level cache

// Part of the sum: images first to last, input channels from `channel`, `channels` of them, into sum [blocks][i][j][channels][lanes].
struct KernelPart {
  int64_t first, last, channel, channels;
};

struct KernelShape {
  Geometry geometry;
  int64_t batch, height, width, in, rows, columns, out;  // rows, columns: of the cotangents
};

inline void add_part(const KernelShape& s, const KernelPart& part, const float* x, const float* g, float* sum) {
  const Geometry& geometry = s.geometry;
  const int64_t pixels = s.rows * s.columns, pack = padded(s.out);
  Frame frame{geometry.padding, geometry.padding, (s.rows - 1) * geometry.stride + geometry.size, (s.columns - 1) * geometry.stride + geometry.size};
  const bool direct = geometry.padding == 0 && part.channels == s.in && frame.height <= s.height && frame.width <= s.width;
  if (direct) frame = {0, 0, s.height, s.width};
  const int64_t image = frame.height * frame.width * part.channels;
  const int64_t group = std::clamp<int64_t>(2 * kGroupFloats / (image + pixels * 2 * kLanes), 1, part.last - part.first);
  const int64_t run = geometry.size * part.channels, lines = frame.width * part.channels;
  float* framed = direct ? nullptr : scratch(1, group * image);
  const bool packed = !(s.out == pack && num_blocks(s.out) == 1);
  float* cotangents = packed ? scratch(2, group * pixels * pack) : nullptr;
  std::vector<int32_t> offsets(group * pixels);
  for (int64_t n = 0, at = 0; n < group; ++n)
    for (int64_t a = 0; a < s.rows; ++a)
      for (int64_t b = 0; b < s.columns; ++b)
        offsets[at++] = static_cast<int32_t>(n * image + (a * geometry.stride * frame.width + b * geometry.stride) * part.channels);

  for (int64_t first = part.first; first < part.last; first += group) {
    const int64_t count = std::min(group, part.last - first);
    const float* images = x + first * s.height * s.width * s.in;
    const float* from = g + first * pixels * s.out;
    if (!direct) {
      if (part.channels == s.in) {
        pad_images(images, count, s.height, s.width, s.in, frame, framed);
      } else {
        std::memset(framed, 0, count * image * sizeof(float));
        const int64_t height = std::min(s.height, frame.height - frame.top), width = std::min(s.width, frame.width - frame.left);
        for (int64_t n = 0; n < count; ++n)
          for (int64_t a = 0; a < height; ++a)
            for (int64_t b = 0; b < width; ++b)
              std::memcpy(framed + n * image + ((frame.top + a) * frame.width + frame.left + b) * part.channels,
                          images + ((n * s.height + a) * s.width + b) * s.in + part.channel, part.channels * sizeof(float));
      }
      images = framed;
    }
    if (packed) {
      float* to = cotangents;
      for (int index = 0; index < num_blocks(s.out); ++index) {
        const Channels block = block_of(s.out, index);
        for (int64_t p = 0; p < count * pixels; ++p, to += block.width()) {
          std::memcpy(to, from + p * s.out + block.first, block.used() * sizeof(float));
          for (int o = block.used(); o < block.width(); ++o) to[o] = 0;
        }
      }
      from = cotangents;
    }
    float* block_sum = sum;
    for (int index = 0; index < num_blocks(s.out); ++index) {
      const Channels block = block_of(s.out, index);
      for (int64_t p = 0; p < count * pixels; p += kPixelsAtOnce) {
        const int64_t here = std::min(kPixelsAtOnce, count * pixels - p);
        float* to = block_sum;
        for (int64_t i = 0; i < geometry.size; ++i) {
          in_equal_parts(run, most_rows(block.vectors), [&](int64_t begin, int rows) {
            find_kernel_tile(block.vectors, rows)(images + i * lines + begin, offsets.data() + p, from + p * block.width(), here, to);
            to += rows * block.width();
          });
        }
      }
      from += count * pixels * block.width();
      block_sum += geometry.size * run * block.width();
    }
  }
}

// Unpacks [blocks][i][j][channels][lanes] into k, adding to it or not.
inline void write_part(const KernelShape& s, const KernelPart& part, const float* sum, bool add, float* k) {
  const int64_t taps = s.geometry.size * s.geometry.size;
  for (int index = 0; index < num_blocks(s.out); ++index) {
    const Channels block = block_of(s.out, index);
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t t = 0; t < part.channels; ++t, sum += block.width()) {
        float* to = k + (tap * s.in + part.channel + t) * s.out + block.first;
        for (int o = 0; o < block.used(); ++o) to[o] = add ? to[o] + sum[o] : sum[o];
      }
    }
  }
}

// What computes a part's sum, of how many floats, and writes it into k, adding to it or not.
struct Adding {
  std::function<int64_t(int64_t channels)> size;
  std::function<void(const KernelPart&, float* sum)> add;
  std::function<void(const KernelPart&, const float* sum, bool add)> write;
};

inline Adding by_winograd(const KernelShape& s, const float* x, const float* g, float* k) {
  const Correlation c = forward_of(s.geometry, s.batch, s.height, s.width, s.in, s.out, true);
  return {[=](int64_t channels) { return all_products(c) * spread(channels * s.out); },
          [=](const KernelPart& part, float* sum) { add_winograd(c, part.first, part.last, part.channel, part.channels, x, g, sum); },
          [=](const KernelPart& part, const float* sum, bool add) {
            write_winograd(s.geometry, c, part.channel, part.channels, sum, add, k);
          }};
}

inline Adding directly(const KernelShape& s, const float* x, const float* g, float* k) {
  return {[=](int64_t channels) { return s.geometry.size * s.geometry.size * padded(s.out) * channels; },
          [=](const KernelPart& part, float* sum) { add_part(s, part, x, g, sum); },
          [=](const KernelPart& part, const float* sum, bool add) { write_part(s, part, sum, add, k); }};
}

// Parts are chosen by the shape alone, so that the order of additions, and with it every bit, is the same for any number of threads.
inline void kernel_gradient(ThreadPool* pool, const KernelShape& s, const float* x, const float* g, float* k) {
  const Adding adding = suits_winograd(s.geometry, s.in, s.out) ? by_winograd(s, x, g, k) : directly(s, x, g, k);
  const int64_t channels = s.in <= 64 ? s.in : s.in % 64 == 0 ? 64 : s.in % 32 == 0 ? 32 : s.in % 16 == 0 ? 16 : s.in;
  const int64_t columns = s.in / channels;
  const int64_t slices = columns > 1 ? 1 : std::clamp<int64_t>(s.batch / 16, 1, 8);
  const int64_t size = adding.size(channels);
  float* sums = scratch(0, columns * slices * size);
  auto part_of = [&](int64_t index) -> KernelPart {
    const int64_t column = index / slices, slice = index % slices;
    return {s.batch * slice / slices, s.batch * (slice + 1) / slices, column * channels, channels};
  };
  share(pool, columns * slices, [&](int64_t index) {
    std::memset(sums + index * size, 0, size * sizeof(float));
    adding.add(part_of(index), sums + index * size);
    if (slices == 1) adding.write(part_of(index), sums + index * size, false);
  });
  for (int64_t index = 0; slices > 1 && index < slices; ++index) adding.write(part_of(index), sums + index * size, index > 0);
}

}  // namespace mosaic
