"""ops.narrowing_product against the plain product, and the form of its gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mosaic_jax import ops

BATCH, INPUTS, OUTPUTS = 256, 384, 64


def arrays() -> list[jax.Array]:
    shapes = (BATCH, INPUTS), (INPUTS, OUTPUTS), (BATCH, OUTPUTS)
    return [jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)]


def compiled(product: Callable[..., jax.Array]) -> Callable[..., tuple]:
    """rows, kernel, cotangents -> outputs, (gradient to the rows, to the kernel)."""

    def with_gradients(rows: jax.Array, kernel: jax.Array, cotangents: jax.Array) -> tuple:
        outputs, pull = jax.vjp(product, rows, kernel)
        return outputs, pull(cotangents)

    return jax.jit(with_gradients).lower(*arrays()).compile()


def test_it_is_the_product_and_has_its_gradients() -> None:
    ours, plain = (compiled(product)(*arrays()) for product in (ops.narrowing_product, jnp.matmul))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, plain)


def test_the_kernels_gradient_is_computed_with_its_long_side_last() -> None:
    forms = [
        line.split(" dot(")[0].split(" = ")[1] for line in compiled(ops.narrowing_product).as_text().splitlines() if " dot(" in line
    ]
    lies_long = {f"f32[{OUTPUTS},{INPUTS}]{{1,0}}", f"f32[{INPUTS},{OUTPUTS}]{{0,1}}"}  # one order in memory
    assert lies_long & set(forms) and f"f32[{INPUTS},{OUTPUTS}]{{1,0}}" not in forms
