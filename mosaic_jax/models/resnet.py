"""ResNets with the CIFAR stem (3x3, stride 1, no pooling): post-activation blocks, 1x1 projection shortcuts with BatchNorm."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mosaic_jax.models.layers import NORMS, Conv, Linear, Statistics, narrowed

BLOCKS: dict[str, tuple[str, tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
EXPANSION = {"basic": 1, "bottleneck": 4}


class Block(nn.Module):
    """Residual block: basic is two 3x3 convolutions, bottleneck is 1x1, 3x3 and 1x1 with four times the width out.

    project: whether a convolution leads past the others; rate, divisor, norm: as of `ResNet`.
    """

    kind: str
    width: int
    stride: int
    project: bool
    rate: float = 1.0
    divisor: float = 1.0
    norm: str = "batch"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, record: list[Statistics] | None) -> jax.Array:
        out = self.width * EXPANSION[self.kind]
        layers = {
            "basic": ((self.width, 3, self.stride, 1), (out, 3, 1, 1)),
            "bottleneck": ((self.width, 1, 1, 0), (self.width, 3, self.stride, 1), (out, 1, 1, 0)),
        }[self.kind]
        shortcut, of_shortcut = images, None if record is None else []
        if self.project:
            shortcut = Conv(narrowed(out, self.rate), 1, self.stride, 0, name="shortcut_conv")(images, defer=True)
            shortcut = NORMS[self.norm](name="shortcut_bn")(shortcut, train, of_shortcut, divisor=self.divisor)
        hidden = images
        for index, (channels, kernel, stride, padding) in enumerate(layers, start=1):
            last = index == len(layers)
            hidden = Conv(narrowed(channels, self.rate), kernel, stride, padding, name=f"conv{index}")(hidden, defer=True)
            hidden = NORMS[self.norm](name=f"bn{index}")(
                hidden, train, record, relu=True, residual=shortcut if last else None, divisor=self.divisor
            )
        if record is not None:
            record.extend(of_shortcut)  # behind the others, as PyTorch lists them
        return hidden


class ResNet(nn.Module):
    """images f32[B, S, S, 3] -> features f32[B, 8 * width * expansion] -> logits f32[B, K].

    rate: every layer but the classifier has so much of its channels; divisor: HeteroFL's scaler, see `BatchNorm`;
    norm: a key of NORMS.
    """

    name_: str
    num_classes: int
    width: int
    rate: float = 1.0
    divisor: float = 1.0
    norm: str = "batch"

    def setup(self) -> None:
        kind, counts = BLOCKS[self.name_]
        self.conv1 = Conv(narrowed(self.width, self.rate), 3, 1, 1)
        self.bn1 = NORMS[self.norm]()
        blocks, source = [], self.width
        for stage, count in enumerate(counts):
            width, out = self.width * 2**stage, self.width * 2**stage * EXPANSION[kind]
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                project = stride != 1 or source != out  # of full widths: networks of all rates have the same layers
                name = f"layer{stage + 1}_{index}"
                blocks.append(Block(kind, width, stride, project, self.rate, self.divisor, self.norm, name=name))
                source = out
        self.blocks = blocks
        self.linear = Linear(self.num_classes)

    def features(self, images: jax.Array, train: bool, record: list[Statistics] | None = None) -> jax.Array:
        hidden = self.bn1(self.conv1(images, defer=True), train, record, relu=True, divisor=self.divisor)
        for block in self.blocks:
            hidden = block(hidden, train, record)
        return jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)

    def head(self, features: jax.Array) -> jax.Array:
        return self.linear(features)

    def __call__(self, images: jax.Array, train: bool, record: list[Statistics] | None = None) -> jax.Array:
        return self.head(self.features(images, train, record))
