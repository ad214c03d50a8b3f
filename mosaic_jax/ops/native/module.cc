// Convolutions and batch normalisation for XLA's CPU backend, as custom calls: the three maps of ops/canonical.py, and what
// ops/normalization.py is made of.
// All arrays are float32, dense, channels last.
#include "convolve.h"
#include "kernel_gradient.h"
#include "normalize.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using mosaic::Geometry;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

namespace {

ffi::ThreadPool* pool_if(bool share, ffi::ThreadPool& pool) { return share && pool.num_threads() > 1 ? &pool : nullptr; }

void forward(mosaic::ThreadPool* pool, const Geometry& geometry, const Array& x, const Array& k, const mosaic::Epilogue& epilogue, Result& g) {
  const auto images = x.dimensions(), kernel = k.dimensions();
  mosaic::forward(
      pool, geometry, images[0], images[1], images[2], kernel[2], kernel[3], x.typed_data(), k.typed_data(), epilogue, g->typed_data());
}

void Forward(ffi::ThreadPool pool, Array x, Array k, Result g, int64_t stride, int64_t padding, bool share) {
  forward(pool_if(share, pool), {k.dimensions()[0], stride, padding}, x, k, {}, g);
}

// residual: empty where there is none.
void ForwardAffine(
    ffi::ThreadPool pool, Array x, Array k, Array offset, Array residual, Result g, int64_t stride, int64_t padding, bool share,
    bool relu) {
  const float* added = residual.element_count() ? residual.typed_data() : nullptr;
  const mosaic::Epilogue epilogue{g->typed_data(), offset.typed_data(), added, relu};
  forward(pool_if(share, pool), {k.dimensions()[0], stride, padding}, x, k, epilogue, g);
}

void ToImages(ffi::ThreadPool pool, Array g, Array k, Result x, int64_t stride, int64_t padding, bool share) {
  const auto outputs = g.dimensions(), kernel = k.dimensions(), images = x->dimensions();
  const Geometry geometry{kernel[0], stride, padding};
  const auto c = mosaic::transposed_of(geometry, outputs[0], outputs[1], outputs[2], kernel[3], images[1], images[2], kernel[2]);
  if (stride > geometry.size) std::memset(x->typed_data(), 0, x->size_bytes());  // pixels that no tap meets
  mosaic::correlate(pool_if(share, pool), geometry, true, c, g.typed_data(), k.typed_data(), {}, x->typed_data());
}

void ToKernel(ffi::ThreadPool pool, Array x, Array g, Result k, int64_t stride, int64_t padding, bool share) {
  const auto images = x.dimensions(), outputs = g.dimensions(), kernel = k->dimensions();
  const mosaic::KernelShape shape{{kernel[0], stride, padding}, images[0], images[1], images[2], images[3],
                                  outputs[1], outputs[2], outputs[3]};
  mosaic::kernel_gradient(pool_if(share, pool), shape, x.typed_data(), g.typed_data(), k->typed_data());
}

mosaic::Pixels pixels_of(const Array& x, const Array& of_channels) {
  const int64_t channels = of_channels.element_count();
  return {static_cast<int64_t>(x.element_count()) / channels, channels};
}

void Moments(ffi::ThreadPool pool, Array x, Result mean, Result var, bool share) {
  mosaic::moments(pool_if(share, pool), pixels_of(x, *mean), x.typed_data(), mean->typed_data(), var->typed_data());
}

void ScaleShift(
    ffi::ThreadPool pool, Array x, Array center, Array factor, Array offset, Result y, bool relu, bool share) {
  mosaic::scale_shift(
      pool_if(share, pool), pixels_of(x, factor), relu, x.typed_data(), center.typed_data(), factor.typed_data(),
      offset.typed_data(), y->typed_data());
}

void Products(ffi::ThreadPool pool, Array g, Array x, Array y, Array mean, Result plain, Result centered, bool relu, bool share) {
  mosaic::products(
      pool_if(share, pool), pixels_of(x, mean), relu, g.typed_data(), x.typed_data(), y.typed_data(), mean.typed_data(),
      plain->typed_data(), centered->typed_data());
}

void Combine(
    ffi::ThreadPool pool, Array g, Array x, Array y, Array center, Array factor, Array slope, Array offset, Result to_x, bool relu,
    bool share) {
  mosaic::combine(
      pool_if(share, pool), pixels_of(x, factor), relu, g.typed_data(), x.typed_data(), y.typed_data(), center.typed_data(),
      factor.typed_data(), slope.typed_data(), offset.typed_data(), to_x->typed_data());
}

// A handler: Function, and XLA told where its work space found no memory.
template <auto Function>
struct Answer;
template <class... Arguments, void (*Function)(Arguments...)>
struct Answer<Function> {
  static ffi::Error of(Arguments... arguments) {
    try {
      Function(std::move(arguments)...);
      return ffi::Error::Success();
    } catch (const std::bad_alloc&) {
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "no memory for the work space of a convolution");
    } catch (const std::exception& error) {
      return ffi::Error(ffi::ErrorCode::kInternal, error.what());
    }
  }
};

// A binding that goes on with so many arrays as arguments, then as results; bindings can be neither copied nor moved.
template <int Count, class Binding>
auto with_arguments(Binding&& binding) {
  if constexpr (Count == 1) return std::move(binding).template Arg<Array>();
  else return with_arguments<Count - 1>(std::move(binding).template Arg<Array>());
}
template <int Count, class Binding>
auto with_results(Binding&& binding) {
  if constexpr (Count == 1) return std::move(binding).template Ret<Array>();
  else return with_results<Count - 1>(std::move(binding).template Ret<Array>());
}
template <int Arguments, int Results>
auto bind() {
  return with_results<Results>(with_arguments<Arguments>(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()));
}

template <int Arguments>
auto bind_map() {
  return bind<Arguments, 1>().template Attr<int64_t>("stride").template Attr<int64_t>("padding").template Attr<bool>("share");
}

template <int Arguments, int Results>
auto bind_pixels() {
  return bind<Arguments, Results>().template Attr<bool>("relu").template Attr<bool>("share");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_forward, Answer<Forward>::of, bind_map<2>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_forward_affine, Answer<ForwardAffine>::of, bind_map<4>().Attr<bool>("relu"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_to_images, Answer<ToImages>::of, bind_map<2>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_to_kernel, Answer<ToKernel>::of, bind_map<2>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_moments, Answer<Moments>::of, (bind<1, 2>().Attr<bool>("share")));
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_scale_shift, Answer<ScaleShift>::of, (bind_pixels<4, 1>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_products, Answer<Products>::of, (bind_pixels<4, 2>()));
XLA_FFI_DEFINE_HANDLER_SYMBOL(mosaic_combine, Answer<Combine>::of, (bind_pixels<7, 1>()));
