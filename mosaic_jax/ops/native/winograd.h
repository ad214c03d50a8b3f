// 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): 16 multiplications make 4 pixels of a channel pair, instead of 36.
//
// Every tile of 2x2 output pixels needs 4x4 input pixels d. With U = G k G' and V = B' d B the tile is A' (U * V) A, the products
// summed over input channels: 16 matrix products [tiles, in] x [in, out]. Source: Lavin and Gray, 2016 (arXiv 1509.09308).
// It pays from 32 channels, where the products outweigh the transforms; errors stay those of a sum twice as long.
#pragma once

#include <algorithm>

#include "tiles.h"

namespace mosaic {

constexpr int64_t kNarrowest = 32;  // channels

// Tiles whose products share a read of U: the more channels the larger U, the fewer the more of all else stays in the cache.
inline int64_t tiles_at_once(int64_t in) { return in <= 64 ? 24 : in <= 256 ? 48 : 96; }

inline bool suits_winograd(int64_t size, int64_t stride, int64_t in, int64_t out) {
  return size == 3 && stride == 1 && in >= kNarrowest && out >= kNarrowest && in % kLanes == 0 && out % kLanes == 0;
}

// U of the taps k[i][j], in vectors of output channels.
inline void transform_taps(const Vector (&k)[3][3], Vector (&u)[4][4]) {
  Vector rows[4][3];
  for (int j = 0; j < 3; ++j) {
    const Vector sum = (k[0][j] + k[2][j]) * 0.5f, half = k[1][j] * 0.5f;
    rows[0][j] = k[0][j], rows[1][j] = sum + half, rows[2][j] = sum - half, rows[3][j] = k[2][j];
  }
  for (int i = 0; i < 4; ++i) {
    const Vector sum = (rows[i][0] + rows[i][2]) * 0.5f, half = rows[i][1] * 0.5f;
    u[i][0] = rows[i][0], u[i][1] = sum + half, u[i][2] = sum - half, u[i][3] = rows[i][2];
  }
}

// V of one tile and all channels: in points to its first pixel, rows `line` floats apart; products lie `apart` floats apart in v.
inline void transform_images(const float* in, int64_t line, int64_t channels, float* v, int64_t apart) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector rows[4][4];
    for (int j = 0; j < 4; ++j) {
      const float* from = in + j * channels + c;
      const Vector d0 = load(from), d1 = load(from + line), d2 = load(from + 2 * line), d3 = load(from + 3 * line);
      rows[0][j] = d0 - d2, rows[1][j] = d1 + d2, rows[2][j] = d2 - d1, rows[3][j] = d1 - d3;
    }
    for (int i = 0; i < 4; ++i) {
      float* to = v + 4 * i * apart + c;
      store(to, rows[i][0] - rows[i][2]);
      store(to + apart, rows[i][1] + rows[i][2]);
      store(to + 2 * apart, rows[i][2] - rows[i][1]);
      store(to + 3 * apart, rows[i][1] - rows[i][3]);
    }
  }
}

// The tile's 2x2 pixels (fewer at an odd edge) of all output channels, from its products m.
inline void transform_outputs(const float* m, int64_t apart, int64_t channels, float* out, int64_t line, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector sums[2][4];
    for (int j = 0; j < 4; ++j) {
      const float* from = m + j * apart + c;
      const Vector m0 = load(from), m1 = load(from + 4 * apart), m2 = load(from + 8 * apart), m3 = load(from + 12 * apart);
      sums[0][j] = m0 + m1 + m2, sums[1][j] = m1 - m2 - m3;
    }
    for (int64_t i = 0; i < rows; ++i) {
      store(out + i * line + c, sums[i][0] + sums[i][1] + sums[i][2]);
      if (columns > 1) store(out + i * line + channels + c, sums[i][1] - sums[i][2] - sums[i][3]);
    }
  }
}

// m = v u for `tiles` tiles; u [16][blocks of output channels][in][lanes], v [16][room][in], m [16][room][out].
inline void multiply(const float* u, const float* v, int64_t tiles, int64_t room, int64_t in, int64_t out, float* m) {
  const int64_t pieces = (in + 255) / 256;  // of the sum, so that a block of u stays in the first-level cache
  for (int64_t product = 0; product < 16; ++product, v += room * in, m += room * out) {
    for (int index = 0; index < num_blocks(static_cast<int>(out)); ++index) {
      const Channels block = block_of(static_cast<int>(out), index);
      const int most = most_rows(block.vectors);
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begin = in * piece / pieces, end = in * (piece + 1) / pieces;
        for (int64_t first = 0; first < tiles; first += most) {
          const int rows = static_cast<int>(std::min<int64_t>(most, tiles - first));
          const float* ins[kRowsOfOne];
          float* outs[kRowsOfOne];
          for (int r = 0; r < rows; ++r) {
            ins[r] = v + (first + r) * in + begin;
            outs[r] = m + (first + r) * out + block.first;
          }
          find_pixel_tile(block.vectors, rows)(ins, outs, u, {1, end - begin, 0}, piece > 0, block.lanes);
        }
        u += (end - begin) * block.width();
      }
    }
  }
}

}  // namespace mosaic
