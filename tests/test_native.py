"""The C++ kernels against lax and the loop, on any number of threads, and what happens where they cannot be had."""

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mosaic_jax.config import ConfigError
from mosaic_jax.io import cache_directory, native_library
from mosaic_jax.mapping import Plan, for_each_client
from mosaic_jax.ops import (
    batch_norm_train,
    canonical,
    chosen_lowering,
    conv2d,
    conv2d_affine,
    conv2d_transpose,
    lowering,
    native,
    one_core_each,
    scale_shift,
    set_lowering,
)

# (kernel size, stride, padding, image size, channels in, out): every network's layers small, odd edges, both of Winograd's sides.
LAYERS = [
    (3, 1, 1, 6, 3, 16), (3, 1, 1, 7, 16, 20), (3, 2, 1, 8, 16, 32), (3, 2, 1, 7, 5, 11), (4, 2, 1, 8, 3, 9), (1, 2, 0, 7, 8, 8),
    (3, 1, 1, 4, 32, 64), (3, 1, 1, 5, 64, 32), (3, 1, 0, 6, 32, 32), (3, 1, 2, 3, 48, 32), (5, 3, 2, 6, 20, 24),
    (2, 3, 0, 8, 4, 4), (3, 1, 1, 4, 300, 16), (3, 1, 1, 2, 512, 32), (3, 2, 1, 8, 32, 64), (3, 2, 1, 9, 64, 32),
    (3, 2, 0, 6, 16, 48), (4, 2, 1, 8, 32, 64), (4, 2, 1, 7, 48, 32), (4, 2, 2, 9, 16, 16), (2, 1, 1, 6, 32, 16),
    (5, 3, 1, 11, 16, 32), (4, 2, 1, 4, 80, 96),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _library() -> Iterator[None]:
    # Sources that a compiler refuses are a failure, not a reason to skip.
    if not any(map(shutil.which, native_library.COMPILERS)):
        pytest.skip("no C++ compiler")
    native.register(native_library.library())
    with lowering("native"):
        yield


def normal(seed: int, *shape: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def normal_kernel(size: int, channels: int, out: int) -> jax.Array:
    """A kernel whose outputs are of the images' size, so that rounding is too."""
    return normal(1, size, size, channels, out) / (size * channels**0.5)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def value_and_gradients(
    how: str, alone: bool, transposed: bool, stride: int, padding: int, images: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, ...]:
    function = conv2d_transpose if transposed else conv2d
    with lowering(how):
        if alone:
            with one_core_each():
                out, pullback = jax.vjp(functools.partial(function, stride=stride, padding=padding), images, kernel)
                return out, *pullback(jnp.sin(out + 1))
        out, pullback = jax.vjp(functools.partial(function, stride=stride, padding=padding), images, kernel)
        return out, *pullback(jnp.sin(out + 1))


def assert_close(actual: tuple[jax.Array, ...], expected: tuple[jax.Array, ...], tolerance: float = 5e-6) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert float(jnp.abs(a - e).max()) <= tolerance * float(jnp.abs(e).max())


@pytest.mark.parametrize(("size", "stride", "padding", "length", "channels", "out"), LAYERS)
def test_a_convolution_and_its_gradients_equal_lax(
    size: int, stride: int, padding: int, length: int, channels: int, out: int
) -> None:
    images, kernel = normal(0, 33, length, length, channels), normal_kernel(size, channels, out)
    actual, expected = (value_and_gradients(how, False, False, stride, padding, images, kernel) for how in ("native", "grouped"))
    assert_close(actual, expected)


def convolved(x: np.ndarray, k: np.ndarray, stride: int, padding: int) -> np.ndarray:
    """conv2d by its definition, in float64."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = k.shape[0]
    patches = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))[:, ::stride, ::stride]
    return np.einsum("nyxcij,ijco->nyxo", patches, k.astype(np.float64))


@given(
    size=st.integers(1, 4), stride=st.integers(1, 3), padding=st.integers(0, 2), height=st.integers(1, 7), width=st.integers(1, 7),
    batch=st.integers(1, 40), channels=st.sampled_from([1, 3, 16, 32, 35]), out=st.sampled_from([1, 3, 8, 32, 40]),
    seed=st.integers(0, 9),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_convolution_is_its_definition_and_its_gradients_are_adjoint_to_it(
    size: int, stride: int, padding: int, height: int, width: int, batch: int, channels: int, out: int, seed: int
) -> None:
    padding = min(padding, size - 1)
    if min(height, width) + 2 * padding < size:
        return
    geometry = canonical.Geometry(size, stride, padding, height, width)
    random = np.random.default_rng(seed)
    x = random.normal(size=(batch, height, width, channels)).astype(np.float32)
    k = random.normal(size=(size, size, channels, out)).astype(np.float32)
    expected = convolved(x, k, stride, padding)
    g = random.normal(size=expected.shape).astype(np.float32)
    scale = np.abs(expected).max() + 1e-6
    np.testing.assert_allclose(native.forward(geometry, True, x, k), expected, rtol=0, atol=5e-6 * scale)
    # <g, conv(x, k)> = <to_images(g, k), x> = <to_kernel(x, g), k> for every x, g and k.
    product = np.vdot(g.astype(np.float64), expected)
    size_of_sum = np.sqrt(g.size) * scale
    for gradient, operand in ((native.to_images(geometry, True, g, k), x), (native.to_kernel(geometry, True, x, g), k)):
        assert abs(np.vdot(np.asarray(gradient, np.float64), operand.astype(np.float64)) - product) <= 1e-5 * size_of_sum


@pytest.mark.parametrize(("size", "stride", "padding", "length"), [(4, 2, 1, 4), (4, 1, 1, 4), (3, 1, 1, 5), (3, 2, 1, 4)])
def test_a_transposed_convolution_and_its_gradients_equal_lax(size: int, stride: int, padding: int, length: int) -> None:
    images, kernel = normal(0, 9, length, length, 32), normal_kernel(size, 32, 40)
    both = (value_and_gradients(how, False, True, stride, padding, images, kernel) for how in ("native", "grouped"))
    assert_close(*both)


def of_parts(
    images: jax.Array, kernel: jax.Array, factor: jax.Array, offset: jax.Array, residual: jax.Array | None, *, stride: int,
    padding: int, relu: bool,
) -> jax.Array:  # fmt: skip
    outputs = conv2d(images, kernel, stride=stride, padding=padding) * factor + offset
    outputs = outputs if residual is None else outputs + residual
    return jnp.maximum(outputs, 0) if relu else outputs


@pytest.mark.parametrize(("with_residual", "relu"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "length", "channels", "out"),
    [(3, 1, 1, 6, 3, 16), (3, 1, 1, 5, 32, 48), (3, 2, 1, 7, 32, 32), (3, 1, 1, 4, 300, 20), (4, 2, 1, 8, 5, 3), (1, 1, 0, 4, 8, 6)]
)  # fmt: skip
def test_an_affine_convolution_and_its_gradients_equal_its_parts(
    size: int, stride: int, padding: int, length: int, channels: int, out: int, with_residual: bool, relu: bool
) -> None:
    images, kernel = normal(0, 20, length, length, channels), normal_kernel(size, channels, out)
    factor, offset = 1 + 0.3 * normal(2, out), normal(3, out)
    residual = None
    if with_residual:
        residual = normal(4, *conv2d(images, kernel, stride=stride, padding=padding).shape)

    def value_and_all_gradients(how: str, function: Callable[..., jax.Array]) -> tuple[jax.Array, ...]:
        function = jax.jit(functools.partial(function, stride=stride, padding=padding, relu=relu))
        with lowering(how):
            out, pullback = jax.vjp(function, images, kernel, factor, offset, residual)
            return out, *jax.tree.leaves(pullback(jnp.sin(out + 1)))

    expected = value_and_all_gradients("grouped", of_parts)
    for how in ("native", "map", "grouped"):
        assert_close(value_and_all_gradients(how, conv2d_affine), expected, 2e-5)


@pytest.mark.parametrize(("channels", "out"), [(16, 16), (32, 32), (3, 16), (128, 16)])
def test_threads_change_no_bit(channels: int, out: int) -> None:
    images, kernel = normal(0, 70, 6, 6, channels), normal(1, 3, 3, channels, out)
    alone, shared = (value_and_gradients("native", alone, False, 1, 1, images, kernel) for alone in (True, False))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_clients_under_vmap_equal_the_loop(axes: tuple[int | None, int | None]) -> None:
    images, kernel = (normal(0, 3, 4, 6, 6, 5), normal(1, 3, 3, 3, 5, 7))
    operands = [a if axis == 0 else a[0] for a, axis in zip((images, kernel), axes, strict=True)]
    run = functools.partial(value_and_gradients, "native", True, False, 2, 1)
    mapped = jax.vmap(run, in_axes=axes)(*operands)
    for client in range(3):
        own = run(*(a[client] if axis == 0 else a for a, axis in zip(operands, axes, strict=True)))
        assert_close(tuple(each[client] for each in mapped), own, 1e-6)


@given(
    size=st.integers(2, 4), stride=st.integers(1, 3), padding=st.integers(0, 1), length=st.integers(4, 7),
    channels=st.sampled_from([3, 32]), out=st.sampled_from([5, 32]), axes=st.sampled_from([(0, 0), (0, None), (None, 0)]),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_any_convolution_of_stacked_clients_is_each_ones_own(
    size: int, stride: int, padding: int, length: int, channels: int, out: int, axes: tuple[int | None, int | None]
) -> None:
    def gradients(x: jax.Array, k: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(functools.partial(conv2d, stride=stride, padding=padding), x, k)
        return y, *pull(jnp.sin(y))

    images, kernels = normal(0, 3, 2, length, length, channels), jnp.stack([normal_kernel(size, channels, out)] * 3)
    kernels *= jnp.arange(1.0, 4.0)[:, None, None, None, None]
    x, k = (array if axis == 0 else array[0] for array, axis in zip((images, kernels), axes, strict=True))
    together = jax.jit(jax.vmap(gradients, axes))(x, k)
    alone = [gradients(x[i] if axes[0] == 0 else x, k[i] if axes[1] == 0 else k) for i in range(3)]
    assert_close(together, tuple(map(jnp.stack, zip(*alone, strict=True))))


def test_a_loop_of_steps_equals_the_steps() -> None:
    images, kernel = normal(0, 4, 6, 6, 16), 0.1 * normal(1, 3, 3, 16, 16)

    def step(kernel: jax.Array, _: None) -> tuple[jax.Array, None]:
        return kernel - 0.01 * jax.grad(lambda k: jnp.mean(jnp.tanh(conv2d(images, k, padding=1)) ** 2))(kernel), None

    looped = jax.jit(lambda k: jax.lax.scan(step, k, None, length=3)[0])(kernel)
    one = jax.jit(lambda k: step(k, None)[0])
    np.testing.assert_allclose(looped, one(one(one(kernel))), rtol=1e-5, atol=1e-7)


def test_the_derivative_of_a_derivative_equals_that_of_lax() -> None:
    images, kernel = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)

    def penalty(k: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(conv2d(x, k, stride=2, padding=1))))(x) ** 2)

    found = []
    for how in ("native", "grouped"):
        with lowering(how):
            found.append(jax.jit(lambda k, x: jax.grad(penalty, argnums=(0, 1))(k, x))(kernel, images))
    assert_close(*found, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_dtypes_and_products_of_patches_are_left_to_xla(dtype: jnp.dtype) -> None:
    with jax.enable_x64(dtype == jnp.float64):
        images, kernel = normal(0, 2, 4, 4, 3, dtype=dtype), normal(1, 3, 3, 3, 4, dtype=dtype)
        assert "ffi_call" not in str(jax.make_jaxpr(lambda x, k: conv2d(x, k, padding=1))(images, kernel))
    images, kernel = normal(0, 2, 4, 4, 3), normal(1, 1, 1, 3, 4)
    assert "ffi_call" not in str(jax.make_jaxpr(conv2d)(images, kernel))
    assert "ffi_call" in str(jax.make_jaxpr(lambda x, k: conv2d(x, k, padding=1))(images, normal(1, 3, 3, 3, 4)))


@pytest.mark.parametrize("devices", [1, 2])
def test_clients_with_a_core_each_keep_to_it(devices: int) -> None:
    plan = Plan(1, tuple(jax.devices()[:devices]))
    images, kernels = normal(0, 2, 4, 4, 3), normal(1, 2, 3, 3, 3, 4)
    one = lambda k, x: conv2d(x, k, padding=1)  # noqa: E731
    traced = str(jax.make_jaxpr(lambda k, x: for_each_client(one, (k,), (x,), plan))(kernels, images))
    assert str(devices == 1) in traced.split("share", 1)[1][:12]


WITHOUT_MEMORY = """
import resource
import jax, jax.numpy as jnp
from mosaic_jax.io import cache_directory, native_library
from mosaic_jax.ops import conv2d, native, set_lowering

native.register(native_library.library())
set_lowering("native")


def attempt(batch, length, channels, size, stride):
    arrays = jnp.ones((batch, length, length, channels)), jnp.ones((size, size, channels, channels))
    convolve = jax.jit(lambda x, k: conv2d(x, k, stride=stride, padding=1)).lower(*arrays).compile()
    (used,) = (int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))
    try:
        convolve(*arrays).block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(float(convolve(*arrays).max()))


attempt(1, 4, 1024, 3, 1)  # the packed kernel, of the thread that calls, needs more than is left
attempt(2, 2048, 8, 16, 15)  # the padded image of each task does
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_runs_out_is_an_error_and_the_process_goes_on() -> None:
    told = subprocess.run([sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, check=True).stdout.splitlines()
    error = "RESOURCE_EXHAUSTED: no memory for the work space of a convolution"
    assert told == [error, str(9.0 * 1024), error, str(256.0 * 8)]


def test_kernels_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = native_library.library()
    commands: list[list[str]] = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command) or run(command, **options))
    assert native_library.library() == kept
    assert [command[1:] for command in commands] == [["--version"]]


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    fails = 'echo "module.cc:1: error: no such header" >&2; exit 1'
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo broken 1.0 && exit 0\n{fails}\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(native_library.NoLibrary, match=r"error: no such header"):
        native_library.library()
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_compiler_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho 'warning: still at it' >&2\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("CXX", str(slow))
    monkeypatch.setattr(native_library, "TIMEOUT_SECONDS", 1)
    with pytest.raises(native_library.NoLibrary, match=r"slow failed .*still at it"):
        native_library.library()
    with pytest.raises(native_library.NoLibrary, match=r"slow failed \(not done after 1 s"):
        native_library.library()


def compiler(path: Path) -> Path:
    """A program that compiles nothing, slowly, and writes down that it was asked to."""
    path.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo quick 1.0 && exit 0\n'
        f'echo "$@" >>{path}.log\nsleep 0.3\nfor last; do :; done\necho made >"$last"\n'
    )
    path.chmod(0o755)
    return path


def compilations(path: Path) -> int:
    return len(Path(f"{path}.log").read_text().splitlines())


@pytest.mark.parametrize(("locks", "count"), [(True, 1), (False, 4)])
def test_of_several_first_runs_at_once_one_compiles_where_the_file_system_has_locks(
    locks: bool, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setenv("CXX", str(compiler(tmp_path / "quick")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if not locks:
        monkeypatch.setattr(cache_directory.fcntl, "flock", none)
    with ThreadPoolExecutor(4) as pool:  # a lock is of an open file, not of a process
        found = set(pool.map(lambda _: native_library.library(), range(4)))
    assert compilations(tmp_path / "quick") == count
    (kept,) = found
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [kept]


def test_who_waits_in_vain_for_another_process_compiles_for_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "quick")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native_library, "TIMEOUT_SECONDS", 1)
    registered: list[Path] = []
    monkeypatch.setattr(native, "register", registered.append)
    warnings: list[str] = []
    with cache_directory.alone_in(cache_directory.own_directory("native"), 1), lowering("auto"):
        native_library.set_lowering("auto", warnings.append)
    assert "another process has not left it in 1 s" in warnings[0]
    assert compilations(tmp_path / "quick") == len(registered) == len(warnings) == 1


@pytest.mark.parametrize("how", ["of another user", "writable by all"])
def test_kernels_in_a_directory_that_others_can_write_are_never_loaded(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "quick")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    theirs = native_library.library()
    if how == "of another user":
        monkeypatch.setattr(os, "geteuid", lambda: theirs.stat().st_uid + 1)
    else:
        theirs.parent.chmod(0o777)
    registered: list[Path] = []
    monkeypatch.setattr(native, "register", registered.append)
    warnings: list[str] = []
    with lowering("auto"):
        native_library.set_lowering("auto", warnings.append)
    (line,), (used,) = warnings, registered
    assert f"{theirs.parent} cannot be used (other users can write there); XDG_CACHE_HOME names another" in line
    assert used != theirs and not used.exists()  # compiled for this process, taken away once it was loaded


@pytest.mark.parametrize("words", ["{ccache} {quick}", "'{ccache}' -- {quick}", "{quick}"])
def test_the_compiler_may_be_several_words(words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ccache = tmp_path / "has blanks" / "ccache" if "'" in words else tmp_path / "ccache"
    ccache.parent.mkdir(exist_ok=True)
    ccache.write_text('#!/bin/sh\n[ "$1" = -- ] && shift\nexec "$@"\n')
    ccache.chmod(0o755)
    monkeypatch.setenv("CXX", words.format(ccache=ccache, quick=compiler(tmp_path / "quick")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native_library.library().read_text() == "made\n"


def test_kept_kernels_that_cannot_be_loaded_are_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = native_library.library()
    whole = kept.read_bytes()

    def register(library: Path) -> None:
        if library.read_bytes() != whole:
            raise OSError("file too short")

    monkeypatch.setattr(native, "register", register)
    monkeypatch.setattr(native_library, "FLAGS", ("-O0", *native_library.FLAGS[2:]))  # another name, compiled soon
    kept = native_library.library()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    warnings: list[str] = []
    native_library.set_lowering("auto", warnings.append)
    assert kept.stat().st_size == len(whole)
    assert not warnings


def test_without_a_compiler_auto_warns_and_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    warnings: list[str] = []
    with lowering("auto"):
        native_library.set_lowering("auto", warnings.append)
        assert len(warnings) == 1
        assert "CXX=/no/such/compiler is no program" in warnings[0]
        assert "install g++" in warnings[0]
    with pytest.raises(ConfigError, match=r"mapping.convolution=native: CXX=/no/such/compiler"):
        native_library.set_lowering("native", warnings.append)


def test_auto_is_native_once_the_kernels_are_there() -> None:
    with lowering("auto"):
        set_lowering("auto")
        assert chosen_lowering() == "native"
    with lowering("map"):
        native_library.set_lowering("map", lambda text: pytest.fail(text))
        assert chosen_lowering() == "map"


def of_batch_norm(relu: bool, x: jax.Array, scale: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    """Outputs and all gradients of both normalisations: by the batch's statistics and by given numbers."""
    (y, mean, var), pullback = jax.vjp(lambda *a: batch_norm_train(*a, 1e-5, relu), x, scale, bias)
    z, shifted = jax.vjp(lambda *a: scale_shift(*a, relu), x, scale, bias)
    return y, mean, var, *pullback((jnp.sin(y + 1), mean, jnp.sqrt(var))), z, *shifted(jnp.sin(z + 1))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 5, 20), (2, 3, 3, 3), (16, 16, 16, 32), (5, 1, 1, 300)])
def test_batch_norm_equals_xla_and_is_the_same_on_any_number_of_threads(shape: tuple[int, ...], relu: bool) -> None:
    x, scale, bias = normal(0, *shape) * 2 + 3, normal(1, shape[-1]), normal(2, shape[-1])
    found = []
    for how, alone in (("native", False), ("native", True), ("map", False)):
        with lowering(how), one_core_each() if alone else contextlib.nullcontext():
            found.append(jax.jit(lambda *a: of_batch_norm(relu, *a))(x, scale, bias))
    for shared, alone, xla in zip(*found, strict=True):
        np.testing.assert_array_equal(shared, alone)
        np.testing.assert_allclose(shared, xla, rtol=1e-5, atol=2e-6 * float(jnp.abs(xla).max()))


def test_batch_norm_of_stacked_clients_and_its_second_derivative_equal_xla() -> None:
    x, scale, bias = normal(0, 3, 2, 4, 4, 9), normal(1, 3, 9), normal(2, 3, 9)

    def slope(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(jax.grad(lambda x: jnp.sum(jnp.sin(batch_norm_train(x, scale, bias, 1e-5, True)[0])))(x)))

    found = []
    for how in ("native", "map"):
        with lowering(how):
            both = jax.vmap(lambda *one: (of_batch_norm(True, *one), jax.grad(slope)(*one)))
            found.append(jax.jit(lambda *a, both=both: both(*a))(x, scale, bias))
    for ours, xla in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, xla, rtol=1e-4, atol=1e-5 * float(jnp.abs(xla).max()))


def test_what_is_not_a_number_passes_the_rectifier() -> None:
    x = normal(0, 2, 3, 3, 8).at[0, 0, 0, 0].set(jnp.nan)
    assert jnp.isnan(jax.jit(lambda x: scale_shift(x, jnp.ones(8), jnp.zeros(8), True))(x)[0, 0, 0, 0])
    assert jnp.isnan(jax.jit(lambda x: batch_norm_train(x, jnp.ones(8), jnp.zeros(8), 1e-5, True)[0])(x)[..., 0]).all()
