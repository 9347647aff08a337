"""The kernel on a GPU of NVIDIA's: `_kernel/cuda.cu`, compiled when it is first called for.

It is compiled and launched by NVIDIA's own `cuda.bindings`, which PyTorch's builds for CUDA bring
along and the extra ``cuda`` installs. Where that or the compiler is missing, the formula serves.
A launch is put on the caller's current stream and waited for by nobody, so that it can be captured
in a CUDA graph.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from logitloss._formula import Array
from logitloss._kernel import kernel
from logitloss._reductions import TOTAL

_HEADERS = (
    "careful.c",
    "careful.h",
    "compiler.h",
    "element.h",
    "grid.h",
    "half.h",
    "logistic.h",
    "task.h",
)
# What they ask of the C library, cuda.cu declares: the compiler of a GPU has no library.
_NO_HEADERS = ("float.h", "math.h", "stddef.h", "stdint.h", "string.h")
_OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space")
_ENTRY = b"logitloss_run"
# Of a GPU that can take arguments in its constant memory.
_OLDEST_CAPABILITY = 70
# Programs look for these words, and try again with a smaller batch.
_OUT_OF_MEMORY = "CUDA out of memory."
# Of errors. What derivatives are multiplied by is an incoming gradient.
_INPUTS = ("labels", "logits", "pos_weight", "weight", "grad_output")


class Library(NamedTuple):
    """What is asked of a library that has arrays on GPUs."""

    #: The memory of an argument, as `kernel.view` takes it; numbers and None as they are.
    describe: Callable[[str, Array | float | None], Any]
    #: A new array of this shape and this of `kernel.TYPES`, on the device of another array.
    empty: Callable[[tuple[int, ...], str, Array], Array]
    #: The same in the shape and the memory order of the other array.
    empty_like: Callable[[str, Array], Array]
    #: The number of an array's device, and the handle of the stream that is current there.
    place: Callable[[Array], tuple[int, int]]


def compute(
    library: Library,
    dtype: str,
    orders: tuple[int, ...],
    labels: Array,
    logits: Array,
    pos_weight: Array | float,
    weight: Array | float | None,
    reduction: str | float,
    outs: tuple[Array, ...] | None = None,
    scale: Array | None = None,
) -> tuple[Array, ...] | None:
    """The derivatives of these orders, times `scale`, or None where the formula has to serve.

    The device of the arrays is the current one; `outs` share no memory with anything. The
    reduction may also be "total", for a sum of float64, or the number that the sum is divided by.
    """
    launcher = launcher_or_reason()
    if isinstance(launcher, str):
        return None
    device, stream = library.place(logits)
    if device in launcher.refused:
        return None
    if outs is None:
        results = tuple(
            [
                library.empty((), "float64" if reduction == TOTAL else dtype, logits)
                if order == 0 and reduction != "none"
                else library.empty_like(dtype, logits)
                for order in orders
            ]
        )
    else:
        results = outs
    describe = library.describe
    # Held here: the memory of a copy must not become that of the sums.
    inputs = tuple(map(describe, _INPUTS, (labels, logits, pos_weight, weight, scale)))
    outputs = tuple([describe("out", result) for result in results])
    launches = kernel.Launches(kernel.TYPES[dtype], inputs, reduction, outputs, orders)
    if not launches.count:
        return None
    if launches.is_empty:
        return results
    launcher.enter(device)
    if launches.scratch:
        scratch = library.empty((launches.scratch // 8,), "float64", logits)
        address = describe("scratch", scratch)[0]
        launches.place(address)
        if launches.counts_blocks:
            launcher.clear(address, stream)
    try:
        for index in range(launches.count):
            launcher.launch(*launches[index], device, stream)
    except CompilationError as error:
        launcher.refused[device] = " ".join(str(error).split())
        return None
    return results


def describe_launcher() -> str:
    """What computes arrays on GPUs, in words."""
    launcher = launcher_or_reason()
    if isinstance(launcher, str):
        return f"formula: {launcher}"
    refused = [f"formula on GPU {device}: {why}; " for device, why in launcher.refused.items()]
    return "".join([*refused, f"kernel: {launcher.describe()}"])


class CompilationError(Exception):
    """cuda.cu could not be compiled or loaded."""


@cache
def launcher_or_reason() -> Any:
    """What launches the kernel, or why there is nothing that does."""
    try:
        from cuda.bindings import driver, nvrtc

        _, *compiler_version = nvrtc.nvrtcVersion()
        _, driver_version = driver.cuDriverGetVersion()
    except Exception as error:
        # A missing library of NVIDIA's is an exception of its own, in each version another.
        return " ".join(f"{type(error).__name__}: {error}".split())
    versions = "NVRTC {}.{}, driver {}.{}".format(
        *compiler_version, driver_version // 1000, driver_version % 1000 // 10
    )
    return Launcher(driver, nvrtc, versions)


class Launcher:
    """Compiles the kernel for each combination of constants, and launches it."""

    def __init__(self, driver: Any, nvrtc: Any, versions: str) -> None:
        self._driver, self._nvrtc, self._versions = driver, nvrtc, versions
        #: Why the kernel is no longer tried on a device.
        self.refused: dict[int, str] = {}
        # By the constants and the number of the device.
        self._functions: dict[tuple[bytes, int], Any] = {}
        self._thread = threading.local()

    def describe(self) -> str:
        return f"cuda.bindings, {self._versions}"

    def enter(self, device: int) -> None:
        """Give this thread the context that every library computes in, if it has none yet.

        PyTorch differentiates in threads of its own, which get theirs with the first memory.
        """
        if hasattr(self._thread, "has_context"):
            return
        driver = self._driver
        if not int(self._checked(driver.cuCtxGetCurrent())):
            context = self._checked(driver.cuDevicePrimaryCtxRetain(device))
            self._checked(driver.cuCtxSetCurrent(context))
        self._thread.has_context = True

    def launch(
        self, constants: bytes, blocks: int, parameters: int, device: int, stream: int
    ) -> None:
        driver = self._driver
        function = self._functions.get((constants, device))
        if function is None:
            function = self._load(constants, device)
            self._functions[constants, device] = function
        threads = kernel.GRID_THREADS
        self._checked(
            driver.cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, parameters, 0)
        )

    def clear(self, address: int, stream: int) -> None:
        """Set four bytes to zero."""
        self._checked(self._driver.cuMemsetD32Async(address, 0, 1, stream))

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        error, *values = answer
        if error != self._driver.CUresult.CUDA_SUCCESS:
            is_memory = error.name == "CUDA_ERROR_OUT_OF_MEMORY"
            raise RuntimeError(_OUT_OF_MEMORY if is_memory else f"CUDA: {error.name}")
        return values[0] if values else None

    def _load(self, constants: bytes, device: int) -> Any:
        driver = self._driver
        attributes = driver.CUdevice_attribute
        major, minor = (
            self._checked(driver.cuDeviceGetAttribute(attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        code, _ = compile_for(self._nvrtc, constants, 10 * major + minor)
        # Loading is no part of a graph that is being captured, and refused there unless the thread
        # asks for it.
        relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        before = self._checked(driver.cuThreadExchangeStreamCaptureMode(relaxed))
        try:
            library = self._checked(driver.cuLibraryLoadData(code, [], [], 0, [], [], 0))
            entry = self._checked(driver.cuLibraryGetKernel(library, _ENTRY))
            # Otherwise the driver loads the code as late as the launch.
            self._checked(driver.cuKernelGetFunction(entry))
        except RuntimeError as error:
            # What another call may get past does not end the use of the kernel.
            if "STREAM_CAPTURE" in str(error):
                message = "outside of the graph, make a call with the same dtypes and layouts first"
                raise RuntimeError(f"{error}: {message}") from error
            if str(error) == _OUT_OF_MEMORY:
                raise
            raise CompilationError(str(error)) from error
        finally:
            driver.cuThreadExchangeStreamCaptureMode(before)
        # The driver takes one for the other, in any context.
        return driver.CUfunction(int(entry))


def compile_for(nvrtc: Any, constants: bytes, capability: int, *options: str) -> tuple[bytes, str]:
    """The code for GPUs of a compute capability, 90 for 9.0, and what the compiler says."""
    known = nvrtc.nvrtcGetSupportedArchs()[-1]
    oldest = max(_OLDEST_CAPABILITY, min(known))
    if capability < oldest:
        raise CompilationError(f"compute capability {capability / 10}, less than {oldest / 10}")
    # For a GPU that the compiler does not know, the driver translates.
    nearest = max(each for each in known if each <= capability)
    is_known = nearest == capability
    target = f"{'sm' if is_known else 'compute'}_{nearest}"
    named = zip(kernel.CONSTANTS, constants, strict=True)
    all_options = [
        f"--gpu-architecture={target}",
        *_OPTIONS,
        *options,
        *(f"-D{name}={value}" for name, value in named),
    ]
    source, headers = _sources()
    _, program = nvrtc.nvrtcCreateProgram(
        source,
        b"cuda.cu",
        len(headers),
        list(headers.values()),
        [name.encode() for name in headers],
    )
    try:
        (error,) = nvrtc.nvrtcCompileProgram(
            program, len(all_options), [option.encode() for option in all_options]
        )
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
        text = log.rstrip(b"\0").decode()
        if error == nvrtc.nvrtcResult.NVRTC_ERROR_OUT_OF_MEMORY:
            raise MemoryError(error.name)
        if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompilationError(f"{error.name} {text}")
        if is_known:
            code = _read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
        else:
            code = _read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
        return code, text
    finally:
        nvrtc.nvrtcDestroyProgram(program)


@cache
def _sources() -> tuple[bytes, dict[str, bytes]]:
    folder = files("logitloss._kernel")
    try:
        headers = {name: folder.joinpath(name).read_bytes() for name in _HEADERS}
        return folder.joinpath("cuda.cu").read_bytes(), headers | dict.fromkeys(_NO_HEADERS, b"")
    except OSError as error:
        # A program that was packed into one file may have left out what is not Python.
        raise CompilationError(f"{type(error).__name__}: {error}") from error


def _read(size_of: Any, read: Any, program: Any) -> bytes:
    _, size = size_of(program)
    memory = bytes(size)
    read(program, memory)
    return memory
