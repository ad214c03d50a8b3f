// Convolutions for XLA's CPU backend: the three maps of ops/canonical.py as custom calls.
// All arrays are float32, dense, channels last.
#include "convolve.h"
#include "kernel_gradient.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using mosaic::Geometry;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

namespace {

ffi::ThreadPool* pool_if(bool share, ffi::ThreadPool& pool) { return share && pool.num_threads() > 1 ? &pool : nullptr; }

ffi::Error Forward(ffi::ThreadPool pool, Array x, Array k, Result g, int64_t stride, int64_t padding, bool share) {
  const auto images = x.dimensions(), kernel = k.dimensions();
  const Geometry geometry{kernel[0], stride, padding};
  const auto c = mosaic::forward_of(geometry, images[0], images[1], images[2], kernel[2], kernel[3]);
  mosaic::correlate(pool_if(share, pool), geometry, false, c, x.typed_data(), k.typed_data(), g->typed_data());
  return ffi::Error::Success();
}

ffi::Error ToImages(ffi::ThreadPool pool, Array g, Array k, Result x, int64_t stride, int64_t padding, bool share) {
  const auto outputs = g.dimensions(), kernel = k.dimensions(), images = x->dimensions();
  const Geometry geometry{kernel[0], stride, padding};
  const auto c = mosaic::transposed_of(geometry, outputs[0], outputs[1], outputs[2], kernel[3], images[1], images[2], kernel[2]);
  if (stride > geometry.size) std::memset(x->typed_data(), 0, x->size_bytes());  // pixels that no tap meets
  mosaic::correlate(pool_if(share, pool), geometry, true, c, g.typed_data(), k.typed_data(), x->typed_data());
  return ffi::Error::Success();
}

ffi::Error ToKernel(ffi::ThreadPool pool, Array x, Array g, Result k, int64_t stride, int64_t padding, bool share) {
  const auto images = x.dimensions(), outputs = g.dimensions(), kernel = k->dimensions();
  const mosaic::KernelShape shape{{kernel[0], stride, padding}, images[0], images[1], images[2], images[3],
                                  outputs[1], outputs[2], outputs[3]};
  mosaic::kernel_gradient(pool_if(share, pool), shape, x.typed_data(), g.typed_data(), k->typed_data());
  return ffi::Error::Success();
}

auto bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("padding")
      .Attr<bool>("share");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_forward, Forward, bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_to_images, ToImages, bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_to_kernel, ToKernel, bind());
