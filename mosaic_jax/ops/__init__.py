"""Operations whose plain form is slow on some backend, most of them over the stacked weights of many clients."""

from mosaic_jax.ops.convolution import conv2d, conv2d_affine, conv2d_transpose
from mosaic_jax.ops.dropout import dropout, relu_dropout
from mosaic_jax.ops.lowering import chosen_lowering, lowering, one_core_each, set_lowering
from mosaic_jax.ops.normalization import batch_norm_train, scale_shift
from mosaic_jax.ops.product import narrowing_product

__all__ = [
    "batch_norm_train", "chosen_lowering", "conv2d", "conv2d_affine", "conv2d_transpose", "dropout", "lowering",
    "narrowing_product", "one_core_each", "relu_dropout", "scale_shift", "set_lowering",
]  # fmt: skip
