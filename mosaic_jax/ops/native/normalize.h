// Sums over pixels and affine maps of pixels, channel by channel: what batch normalisation is made of, with or without a ReLU behind it.
//
// Arrays are [pixels, channels]. Vectors run over channels; blocks of pixels that fit the first-level cache are the tasks that threads
// share, and partial sums are added in the order of blocks, so that results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>

#include "epilogue.h"
#include "threads.h"

namespace mosaic {

constexpr int64_t kBlockFloats = 8192;

struct Pixels {
  int64_t count, channels;

  int64_t rows() const { return std::max<int64_t>(kBlockFloats / channels, 1); }
  int64_t blocks() const { return (count + rows() - 1) / rows(); }
};

// A vector of channels, of which all (Full) or the first `lanes` exist.
template <bool Full>
Vector get(const float* from, int lanes) {
  return Full ? load(from) : load_first(from, lanes);
}
template <bool Full>
void put(float* to, Vector value, int lanes) {
  Full ? store(to, value) : store_first(to, value, lanes);
}

// body(full, channel, lanes) for each vector of channels; full: std::true_type or std::false_type.
template <class Body>
void for_each_vector(int64_t channels, Body body) {
  int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) body(std::true_type{}, channel, kLanes);
  if (channel < channels) body(std::false_type{}, channel, static_cast<int>(channels - channel));
}

// out[s][c] = sum_p terms(full, c, lanes)(p channels + c)[s]: `terms` gives, for a vector of channels, what a place adds to the sums.
template <int Sums, class Terms>
void channel_sums(ThreadPool* pool, Pixels pixels, Terms terms, const std::array<float*, Sums>& out) {
  const int64_t channels = pixels.channels, blocks = pixels.blocks();
  float* partial = scratch(0, blocks * Sums * channels);
  share(pool, blocks, [=](int64_t block) {
    const int64_t first = block * pixels.rows(), last = std::min(first + pixels.rows(), pixels.count);
    for_each_vector(channels, [&](auto full, int64_t channel, int lanes) {
      const auto term = terms(full, channel, lanes);
      Vector total[Sums][4] = {};
      int64_t row = first;
      for (; row + 4 <= last; row += 4) {
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) {
          const std::array<Vector, Sums> found = term((row + u) * channels + channel);
          for (int s = 0; s < Sums; ++s) total[s][u] += found[s];
        }
      }
      for (; row < last; ++row) {
        const std::array<Vector, Sums> found = term(row * channels + channel);
        for (int s = 0; s < Sums; ++s) total[s][0] += found[s];
      }
      for (int s = 0; s < Sums; ++s) {
        const Vector sum = (total[s][0] + total[s][1]) + (total[s][2] + total[s][3]);
        put<full.value>(partial + (block * Sums + s) * channels + channel, sum, lanes);
      }
    });
  });
  for (int s = 0; s < Sums; ++s) {
    std::fill_n(out[s], channels, 0.0f);
    for (int64_t block = 0; block < blocks; ++block) {
      const float* own = partial + (block * Sums + s) * channels;
      for (int64_t channel = 0; channel < channels; ++channel) out[s][channel] += own[channel];
    }
  }
}

// to[p channels + c] = maps(full, c, lanes)(p channels + c) for all places.
template <class Maps>
void map_pixels(ThreadPool* pool, Pixels pixels, Maps maps, float* to) {
  share(pool, pixels.blocks(), [=](int64_t block) {
    const int64_t first = block * pixels.rows(), last = std::min(first + pixels.rows(), pixels.count);
    for_each_vector(pixels.channels, [&](auto full, int64_t channel, int lanes) {
      const auto map = maps(full, channel, lanes);
      for (int64_t row = first; row < last; ++row) {
        const int64_t at = row * pixels.channels + channel;
        put<full.value>(to + at, map(at), lanes);
      }
    });
  });
}

// g at a place, where y is positive if there was a ReLU.
template <bool Full, bool Relu>
Vector passed(const float* g, const float* y, int64_t at, int lanes) {
  const Vector own = get<Full>(g + at, lanes);
  return Relu ? (get<Full>(y + at, lanes) > Vector{} ? own : Vector{}) : own;
}

// body(std::true_type) or body(std::false_type), so that the innermost loops do not ask.
template <class Body>
void settled(bool flag, Body body) {
  flag ? body(std::true_type{}) : body(std::false_type{});
}

// y = (x - center) factor + offset, then a ReLU.
inline void scale_shift(
    ThreadPool* pool, Pixels pixels, bool relu, const float* x, const float* center, const float* factor, const float* offset,
    float* y) {
  auto maps = [=](auto with_relu) {
    return [=](auto full, int64_t channel, int lanes) {
      const Vector c = get<full.value>(center + channel, lanes), f = get<full.value>(factor + channel, lanes);
      const Vector o = get<full.value>(offset + channel, lanes);
      return [=](int64_t at) {
        const Vector value = (get<decltype(full)::value>(x + at, lanes) - c) * f + o;
        return decltype(with_relu)::value ? rectified(value) : value;
      };
    };
  };
  settled(relu, [&](auto with_relu) { map_pixels(pool, pixels, maps(with_relu), y); });
}

// Mean and biased variance, in two passes.
inline void moments(ThreadPool* pool, Pixels pixels, const float* x, float* mean, float* var) {
  const int64_t channels = pixels.channels;
  channel_sums<1>(
      pool, pixels,
      [=](auto full, int64_t, int lanes) {
        return [=](int64_t at) { return std::array<Vector, 1>{get<decltype(full)::value>(x + at, lanes)}; };
      },
      {mean});
  for (int64_t channel = 0; channel < channels; ++channel) mean[channel] /= pixels.count;
  channel_sums<1>(
      pool, pixels,
      [=](auto full, int64_t channel, int lanes) {
        const Vector center = get<full.value>(mean + channel, lanes);
        return [=](int64_t at) {
          const Vector difference = get<decltype(full)::value>(x + at, lanes) - center;
          return std::array<Vector, 1>{difference * difference};
        };
      },
      {var});
  for (int64_t channel = 0; channel < channels; ++channel) var[channel] /= pixels.count;
}

// sum g and sum g (x - mean), g where y is positive if there was a ReLU.
inline void products(
    ThreadPool* pool, Pixels pixels, bool relu, const float* g, const float* x, const float* y, const float* mean, float* plain,
    float* centered) {
  auto terms = [=](auto with_relu) {
    return [=](auto full, int64_t channel, int lanes) {
      const Vector center = get<full.value>(mean + channel, lanes);
      return [=](int64_t at) {
        constexpr bool all = decltype(full)::value;
        const Vector own = passed<all, decltype(with_relu)::value>(g, y, at, lanes);
        return std::array<Vector, 2>{own, own * (get<all>(x + at, lanes) - center)};
      };
    };
  };
  settled(relu, [&](auto with_relu) { channel_sums<2>(pool, pixels, terms(with_relu), {plain, centered}); });
}

// to_x = g factor + (x - center) slope + offset, g where y is positive if there was a ReLU.
inline void combine(
    ThreadPool* pool, Pixels pixels, bool relu, const float* g, const float* x, const float* y, const float* center,
    const float* factor, const float* slope, const float* offset, float* to_x) {
  auto maps = [=](auto with_relu) {
    return [=](auto full, int64_t channel, int lanes) {
      const Vector c = get<full.value>(center + channel, lanes), f = get<full.value>(factor + channel, lanes);
      const Vector s = get<full.value>(slope + channel, lanes), o = get<full.value>(offset + channel, lanes);
      return [=](int64_t at) {
        constexpr bool all = decltype(full)::value;
        const Vector own = passed<all, decltype(with_relu)::value>(g, y, at, lanes);
        return own * f + ((get<all>(x + at, lanes) - c) * s + o);
      };
    };
  };
  settled(relu, [&](auto with_relu) { map_pixels(pool, pixels, maps(with_relu), to_x); });
}

}  // namespace mosaic
