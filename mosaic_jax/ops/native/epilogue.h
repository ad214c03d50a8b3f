// What is done to outputs as they are written: an offset of each channel, another array, a ReLU.
#pragma once

#include "tiles.h"

namespace mosaic {

// max(value, 0), which keeps what is not a number.
inline Vector rectified(Vector value) { return value < Vector{} ? Vector{} : value; }

// outputs: where the array begins that is written. offset: [channels], or null where nothing is done. residual: like outputs, or null.
struct Epilogue {
  const float* outputs = nullptr;
  const float* offset = nullptr;
  const float* residual = nullptr;
  bool relu = false;

  // What to write to `to`, of `lanes` channels from `channel` on, in the place of `value`.
  Vector operator()(Vector value, const float* to, int64_t channel, int lanes) const {
    if (offset == nullptr) return value;
    const bool full = lanes == kLanes;
    value += full ? load(offset + channel) : load_first(offset + channel, lanes);
    if (residual != nullptr) value += full ? load(residual + (to - outputs)) : load_first(residual + (to - outputs), lanes);
    return relu ? rectified(value) : value;
  }
};

}  // namespace mosaic
