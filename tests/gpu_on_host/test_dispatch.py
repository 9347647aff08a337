"""Which calls the launcher gets, what happens without one, and how it treats NVIDIA's functions."""

from __future__ import annotations

import ast
import contextlib
import math
import sys
import types
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import logitloss
from gpu_on_host.host import COMPILER, NUMPY, HostLauncher, send_torch_to
from logitloss import weighted_cross_entropy_with_logits as weighted
from logitloss._backends import cuda
from logitloss._kernel import kernel


def call(array: np.ndarray, device: int = 0) -> Any:
    library = NUMPY._replace(place=lambda array: (device, 0))
    return cuda.compute(library, array.dtype.name, (0,), array, array, 3.0, None, "none")


class Driver:
    """NVIDIA's driver, as far as it is asked."""

    CUresult = types.SimpleNamespace(CUDA_SUCCESS=0)
    CUstreamCaptureMode = types.SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed")
    CUdevice_attribute = types.SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )

    def __init__(self) -> None:
        self.context = 5
        self.loaded: list[bytes] = []
        self.ready: set[int] = set()
        self.launched: list[tuple[Any, ...]] = []
        self.failing: dict[str, Any] = {}
        self.capture_mode = "global"
        self.is_capturing = False

    def _answer(self, name: str, *values: Any) -> tuple[Any, ...]:
        return (self.failing.get(name, 0), *values)

    def _answer_unless_capturing(self, name: str, *values: Any) -> tuple[Any, ...]:
        if self.is_capturing and self.capture_mode != "relaxed":
            return (Failure("STREAM_CAPTURE_UNSUPPORTED"),)
        return self._answer(name, *values)

    def cuThreadExchangeStreamCaptureMode(self, mode: str) -> Any:
        before, self.capture_mode = self.capture_mode, mode
        return self._answer("cuThreadExchangeStreamCaptureMode", before)

    def cuCtxGetCurrent(self) -> Any:
        return self._answer("cuCtxGetCurrent", self.context)

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return self._answer("cuDevicePrimaryCtxRetain", 100 + device)

    def cuCtxSetCurrent(self, context: int) -> Any:
        self.context = context
        return self._answer("cuCtxSetCurrent")

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> Any:
        return self._answer("cuDeviceGetAttribute", {"major": 9, "minor": 0}[attribute])

    def cuLibraryLoadData(self, code: bytes, *options: Any) -> Any:
        self.loaded.append(code)
        return self._answer_unless_capturing("cuLibraryLoadData", len(self.loaded))

    def cuLibraryGetKernel(self, library: int, name: bytes) -> Any:
        assert name == b"logitloss_run"
        return self._answer("cuLibraryGetKernel", library)

    def cuKernelGetFunction(self, kernel: int) -> Any:
        self.ready.add(kernel)
        return self._answer_unless_capturing("cuKernelGetFunction", kernel)

    def CUfunction(self, kernel: int) -> int:
        return kernel

    def cuLaunchKernel(self, function: int, *arguments: Any) -> Any:
        self.launched.append((function, *arguments))
        if function not in self.ready:
            # The driver would load it now.
            return self._answer_unless_capturing("cuLaunchKernel")
        return self._answer("cuLaunchKernel")

    def cuMemsetD32Async(self, *arguments: Any) -> Any:
        self.launched.append(("clear", *arguments))
        return self._answer("cuMemsetD32Async")


class Failure:
    """An error number of NVIDIA's that is none of success."""

    def __init__(self, kind: str) -> None:
        self.name = f"CUDA_ERROR_{kind}"


compile_for = cuda.compile_for


class Compiler:
    """NVIDIA's compiler, as far as it is asked, which always ends in the same way."""

    def __init__(self, result: str, known: Sequence[int] = (90,)) -> None:
        self.nvrtcResult = Enum("nvrtcResult", ["NVRTC_SUCCESS", "NVRTC_ERROR_OUT_OF_MEMORY"])
        self._result = self.nvrtcResult[result]
        self._known = known
        self.options: list[bytes] = []

    def nvrtcGetSupportedArchs(self) -> Any:
        return 0, self._known

    def nvrtcCreateProgram(self, *arguments: Any) -> Any:
        return 0, 1

    def nvrtcCompileProgram(self, program: int, count: int, options: list[bytes]) -> Any:
        self.options = options
        return (self._result,)

    def _size(self, program: int) -> Any:
        return 0, 1

    def _read(self, program: int, memory: bytes) -> None:
        pass

    nvrtcGetProgramLogSize = nvrtcGetCUBINSize = nvrtcGetPTXSize = _size
    nvrtcGetProgramLog = nvrtcGetCUBIN = nvrtcGetPTX = _read

    def nvrtcDestroyProgram(self, program: int) -> None:
        pass


# What is asked of the driver until a kernel can be launched.
LOADING = ("cuLibraryLoadData", "cuLibraryGetKernel", "cuKernelGetFunction")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    launcher = cuda.Launcher(driver, None, "NVRTC 13.0, driver 12.4")
    monkeypatch.setattr(cuda, "launcher_or_reason", lambda: launcher)
    monkeypatch.setattr(cuda, "compile_for", lambda nvrtc, *version: (repr(version).encode(), ""))
    return driver


def test_compiled_once_for_a_version_and_a_device(driver: Driver) -> None:
    array = np.zeros(10, np.float32)
    call(array)
    call(array + 1)
    assert len(driver.loaded) == 1
    call(array.astype(np.float64))
    assert len(driver.loaded) == 2
    call(array, device=1)
    assert len(driver.loaded) == 3


# As in grid.h.
SINGLE, PACKED, UNALIGNED, STRIDED = 2, 3, 4, 5


@pytest.mark.parametrize(
    ("dtype", "start", "kind"),
    [
        ("float32", 0, PACKED),
        ("float32", 4, PACKED),
        ("float32", 1, UNALIGNED),
        ("float32", 2, UNALIGNED),
        # A thread reads 8 bytes at once.
        ("float16", 4, PACKED),
        ("float16", 2, UNALIGNED),
    ],
)
def test_how_arrays_lie(driver: Driver, dtype: str, start: int, kind: int) -> None:
    """A GPU reads several elements at once only where their address is a multiple of their size."""
    memory = np.zeros(4096, dtype)
    first = -(memory.ctypes.data // memory.itemsize) % 16
    array = memory[first + start :][:1000]
    cases = {
        "LOGITS": (array, kind),
        "LABELS": (memory[:2000:2], STRIDED),
        "WEIGHT": (array[:1], SINGLE),
    }
    logits, labels, weight = (operand for operand, _ in cases.values())
    cuda.compute(NUMPY, dtype, (0,), labels, logits, 3.0, weight, "none")
    version, _ = ast.literal_eval(driver.loaded[0].decode())
    constants = dict(zip(kernel.CONSTANTS, version, strict=True))
    assert {name: constants[f"{name}_KIND"] for name in cases} == {
        name: expected for name, (_, expected) in cases.items()
    }


@pytest.mark.parametrize(("context", "expected"), [(0, 103), (5, 5)])
def test_a_thread_without_a_context_gets_that_of_the_device(
    driver: Driver, context: int, expected: int
) -> None:
    driver.context = context
    call(np.zeros(10, np.float32), device=3)
    assert driver.context == expected


def test_launched_on_the_current_stream(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    library = NUMPY._replace(place=lambda array: (3, 77))
    array = np.zeros(5000, np.float32)
    cuda.compute(library, "float32", (0,), array, array, 3.0, None, "mean")
    (cleared, launched) = driver.launched
    assert cleared[0] == "clear" and cleared[-1] == 77
    function, blocks, _, _, threads, *_, stream, parameters, _ = launched
    assert (function, blocks, threads, stream) == (1, 5, kernel.GRID_THREADS, 77)
    assert parameters


@pytest.mark.parametrize(
    ("size", "reduction", "weight", "launches"),
    [
        (0, "none", None, 0),
        (10, "none", None, 1),
        (10, "mean", None, 1),
        (0, "mean", None, 1),
        (10, "weighted_mean", 1, 1),
        (5000, "weighted_mean", 1, 2),
    ],
)
def test_so_many_launches(
    driver: Driver, size: int, reduction: str, weight: Any, launches: int
) -> None:
    array = np.zeros(size, np.float32)
    weight = weight and array
    cuda.compute(NUMPY, "float32", (0,), array, array, 3.0, weight, reduction)
    assert len(driver.launched) == launches


def test_at_most_two_launches_for_anything(driver: Driver) -> None:
    array = np.zeros((5000, 3), np.float32)
    for weight in (array, array[:, :1], array[0]):
        driver.launched.clear()
        cuda.compute(NUMPY, "float32", (0, 1), array, array, 3.0, weight, "weighted_mean")
        assert len(driver.launched) == 2


def test_an_error_of_a_launch_is_raised(driver: Driver) -> None:
    driver.failing["cuLaunchKernel"] = Failure("OF_SOME_KIND")
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OF_SOME_KIND"):
        call(np.zeros(10, np.float32))


@pytest.mark.parametrize("step", LOADING)
def test_what_cannot_be_loaded_leaves_calls_to_the_formula(driver: Driver, step: str) -> None:
    driver.failing[step] = Failure("OF_SOME_KIND")
    array = np.zeros(10, np.float32)
    assert call(array) is None
    assert logitloss.show_config("dicts")["cuda"] == (
        "formula on GPU 0: CUDA: CUDA_ERROR_OF_SOME_KIND; "
        "kernel: cuda.bindings, NVRTC 13.0, driver 12.4"
    )
    assert call(array) is None
    assert len(driver.loaded) == 1
    assert driver.capture_mode == "global"
    # Another GPU may be of another kind.
    driver.failing.clear()
    assert call(array, device=1) is not None
    assert call(array) is None


def test_a_first_call_is_loaded_while_a_graph_is_captured(driver: Driver) -> None:
    driver.is_capturing = True
    array = np.zeros(10, np.float32)
    assert call(array) is not None
    assert len(driver.launched) == 1
    assert driver.capture_mode == "global"


@pytest.mark.parametrize("step", LOADING)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "STREAM_CAPTURE_UNSUPPORTED",
            "CUDA: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED: outside of the graph, make a call with "
            "the same dtypes and layouts first",
        ),
        ("OUT_OF_MEMORY", "CUDA out of memory."),
    ],
)
def test_what_may_pass_leaves_the_kernel_in_use(
    driver: Driver, step: str, kind: str, message: str
) -> None:
    array = np.zeros(10, np.float32)
    driver.failing[step] = Failure(kind)
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        call(array)
    assert driver.capture_mode == "global"
    driver.failing.clear()
    assert call(array) is not None
    assert len(driver.launched) == 1
    assert logitloss.show_config("dicts")["cuda"].startswith("kernel")


def test_a_compiler_without_memory_is_asked_again(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros(10, np.float32)
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "compile_for", compile_for)
        patch.setattr(cuda.launcher_or_reason(), "_nvrtc", Compiler("NVRTC_ERROR_OUT_OF_MEMORY"))
        with pytest.raises(MemoryError, match="NVRTC_ERROR_OUT_OF_MEMORY"):
            call(array)
    assert call(array) is not None


def test_the_configuration_names_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = types.SimpleNamespace(cuDriverGetVersion=lambda: (0, 12040))
    bindings.nvrtc = types.SimpleNamespace(nvrtcVersion=lambda: (0, 13, 0))
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    cuda.launcher_or_reason.cache_clear()
    try:
        said = logitloss.show_config("dicts")["cuda"]
    finally:
        cuda.launcher_or_reason.cache_clear()
    assert said == "kernel: cuda.bindings, NVRTC 13.0, driver 12.4"


@pytest.mark.parametrize("error", [ImportError("No module"), RuntimeError("several\n lines \n")])
def test_without_the_library_the_formula_serves(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Missing(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise error

    monkeypatch.setitem(sys.modules, "cuda.bindings", Missing("cuda.bindings"))
    cuda.launcher_or_reason.cache_clear()
    try:
        assert call(np.zeros(3)) is None
        said = logitloss.show_config("dicts")["cuda"]
    finally:
        cuda.launcher_or_reason.cache_clear()
    assert said == f"formula: {type(error).__name__}: {' '.join(str(error).split())}"


@pytest.mark.parametrize(
    ("capability", "known", "target"),
    [
        (90, [75, 90, 120], "sm_90"),
        # Code for a newer GPU would not run.
        (103, [75, 90, 120], "compute_90"),
        (130, [75, 90, 120], "compute_120"),
        (70, [50, 70, 90], "sm_70"),
    ],
)
def test_what_is_compiled_for(capability: int, known: list[int], target: str) -> None:
    compiler = Compiler("NVRTC_SUCCESS", known)
    cuda.compile_for(compiler, bytes(len(kernel.CONSTANTS)), capability)
    assert compiler.options[0] == f"--gpu-architecture={target}".encode()


@pytest.mark.parametrize(
    ("capability", "known", "least"), [(61, [50, 61, 90], 7.0), (70, [75, 90], 7.5)]
)
def test_a_gpu_that_is_too_old(capability: int, known: list[int], least: float) -> None:
    compiler = Compiler("NVRTC_SUCCESS", known)
    with pytest.raises(
        cuda.CompilationError, match=rf"capability {capability / 10}, less than {least}"
    ):
        cuda.compile_for(compiler, bytes(len(kernel.CONSTANTS)), capability)


def test_without_the_sources_the_formula_serves(
    driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "compile_for", compile_for)
    monkeypatch.setattr(cuda.launcher_or_reason(), "_nvrtc", Compiler("NVRTC_SUCCESS"))
    monkeypatch.setattr(cuda, "files", lambda package: tmp_path)
    cuda._sources.cache_clear()
    try:
        assert call(np.zeros(3)) is None
    finally:
        cuda._sources.cache_clear()
    assert "formula on GPU 0: FileNotFoundError" in logitloss.show_config("dicts")["cuda"]


@pytest.fixture
def torch_on_host(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, HostLauncher]:
    """PyTorch whose CPU tensors go the way of CUDA tensors."""
    torch = pytest.importorskip("torch")
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    if not kernel.TARGET_IS_FUSED:
        pytest.skip("this CPU has no fused multiply-add")
    launcher = HostLauncher(tmp_path)
    send_torch_to(launcher, monkeypatch)
    return torch, launcher


DTYPES = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
def test_steps_of_torch(torch_on_host: Any, dtype: str, reduction: str) -> None:
    """The same as on the CPU, loss and gradient, in one pass each."""
    torch, launcher = torch_on_host
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    labels, logits, weight = (torch.rand(60, 10).to(kind) for _ in range(3))
    logits = (6 * logits - 3).requires_grad_()
    value = weighted(labels, logits, 2.5, weight=weight, reduction=reduction)
    value.sum().backward()
    with pytest.MonkeyPatch.context() as patch:
        from logitloss._backends.torch import _ways

        patch.setattr(_ways, "is_readable", lambda tensors: True)
        loss, gradient = logitloss.value_and_grad(
            labels, logits.detach(), 2.5, weight=weight, reduction=reduction
        )
    assert torch.equal(value.detach(), loss)
    assert torch.equal(logits.grad, gradient)
    # Loss and gradient, each with the sum of weights before it where that divides a gradient.
    assert len(launcher.versions) == (3 if reduction == "weighted_mean" else 2)


# Dynamo does so to every Function that it traces, of which a call without derivatives has none.
FUNCTION = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@pytest.mark.parametrize("requires_grad", [False, pytest.param(True, marks=FUNCTION)])
@pytest.mark.parametrize("reduction", ["none", "mean", "weighted_mean"])
def test_graphs_of_torch_hold_the_formula(
    torch_on_host: Any, reduction: str, requires_grad: bool
) -> None:
    """A compiled graph does, which PyTorch 2.11 takes for an exported one."""
    torch, launcher = torch_on_host
    torch._dynamo.reset()
    labels, weight = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([0.5, 0.0, 2.0])
    logits = torch.tensor([0.5, math.nan, 3.0], requires_grad=requires_grad)

    def function(logits: Any) -> Any:
        return weighted(labels, 1.5 * logits, 2.5, weight=weight, reduction=reduction)

    value = torch.compile(function, fullgraph=True, backend="aot_eager")(logits)
    slopes = torch.autograd.grad(value.sum(), logits) if requires_grad else ()
    assert not launcher.versions
    expected = function(logits)
    torch.testing.assert_close(value, expected)
    if requires_grad:
        eager = torch.autograd.grad(expected.sum(), logits)
        torch.testing.assert_close(slopes, eager)
    assert launcher.versions


def test_the_operator_of_torch(torch_on_host: Any) -> None:
    torch, launcher = torch_on_host
    labels, logits, pos_weight = torch.rand(40), torch.randn(40), torch.tensor(2.5)
    operands = labels, logits, pos_weight, None
    for reduction in ("none", "total"):
        loss, gradient = torch.ops.logitloss.derivatives(*operands, [0, 1], reduction)
        wide = [value.double().numpy() for value in (labels, logits)]
        expected, slopes = logitloss.value_and_grad(
            *wide, 2.5, reduction="none" if reduction == "none" else "sum"
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-7)
    assert len(launcher.versions) == 2


@pytest.mark.parametrize("reduction", ["none", "mean", "weighted_mean"])
def test_modes_of_torch_see_one_operator(torch_on_host: Any, reduction: str) -> None:
    """Counters of operations, and checkpoints that choose among them, keep the kernel."""
    torch, _ = torch_on_host
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Recording(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), options: Any = None
        ) -> Any:
            seen.append(str(function))
            return function(*args, **(options or {}))

    labels, weight = torch.rand(50), torch.rand(50)
    logits = torch.randn(50, requires_grad=True)
    steps = []
    for mode in (contextlib.nullcontext(), Recording()):
        with mode:
            value = weighted(labels, logits, 2.0, weight=weight, reduction=reduction)
            steps.append((value.detach(), *torch.autograd.grad(value.sum(), logits)))
    assert seen.count("logitloss.derivatives.default") == 2
    # None of the formula's.
    assert not {"aten.exp.default", "aten.log1p.default"} & set(seen)
    for got, expected in zip(*steps, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("reduction", ["none", "mean", "weighted_mean"])
def test_every_derivative_of_torch(torch_on_host: Any, reduction: str) -> None:
    torch, launcher = torch_on_host
    torch.manual_seed(0)
    operands = [torch.rand(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def loss(*operands: Any) -> Any:
        labels, logits, pos_weight, weight = operands
        return weighted(labels, logits, pos_weight, weight=weight, reduction=reduction)

    assert torch.autograd.gradcheck(loss, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(loss, operands)
    assert launcher.versions


def test_a_gradient_of_half_precision_is_rounded_once(torch_on_host: Any) -> None:
    torch, _ = torch_on_host
    logits = torch.linspace(-4, 4, 1001).to(torch.bfloat16).requires_grad_()
    labels = torch.ones_like(logits)
    (gradient,) = torch.autograd.grad(
        weighted(labels, logits, 1.0), logits, torch.full_like(logits, 0.3)
    )
    _, exact = logitloss.value_and_grad(
        labels.double().numpy(), logits.detach().double().numpy(), 1.0
    )
    factor = float(torch.tensor(0.3, dtype=torch.bfloat16))
    assert torch.equal(gradient, torch.from_numpy(exact * factor).to(torch.bfloat16))


def test_outputs_of_torch(torch_on_host: Any) -> None:
    torch, _ = torch_on_host
    labels, logits = torch.rand(50), torch.rand(50)
    expected = weighted(labels, logits, 2.0)
    for out in (torch.empty(50), torch.empty(100)[::2], logits):
        version = out._version
        assert weighted(labels, logits, 2.0, out=out) is out
        assert torch.equal(out, expected)
        assert out._version > version


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "weighted_mean"])
def test_layouts_of_torch_that_are_left_to_the_formula(torch_on_host: Any, reduction: str) -> None:
    """Results have the dtype that the kernel's would have, the gradient of a loss as well."""
    torch, launcher = torch_on_host
    logits = torch.rand((3,) * 10).half()[(slice(2),) * 10].requires_grad_()
    options = {"weight": torch.tensor(0.5, dtype=torch.float16), "reduction": reduction}
    value = weighted(logits.detach(), logits, 2.0, **options)
    value.sum().backward()
    results = logitloss.value_and_grad(logits.detach(), logits.detach(), 2.0, **options)
    assert not launcher.versions
    assert torch.equal(value, results[0])
    assert all(result.dtype is torch.float16 for result in (value, logits.grad, *results))


@pytest.mark.parametrize("shape", [(0,), (1,), ()])
def test_no_elements_have_no_weights(torch_on_host: Any, shape: tuple[int, ...]) -> None:
    torch, _ = torch_on_host
    value, gradient = logitloss.value_and_grad(
        torch.empty(0), torch.empty(0), 2.0, weight=torch.ones(shape), reduction="weighted_mean"
    )
    assert value.isnan()
    assert gradient.shape == (0,)


def test_memory_of_torch_that_holds_other_numbers(torch_on_host: Any) -> None:
    """A negated view, and a tensor of zeros that has no memory at all."""
    torch, _ = torch_on_host
    plain = torch.rand(5) + 1
    negated = torch.complex(torch.zeros(5), -plain).conj().imag
    assert negated.is_neg()
    none = torch._efficientzerotensor(5)
    for value, other in ((negated, plain), (none, torch.zeros(5))):
        for position in range(4):
            got, expected = (
                logitloss.value_and_grad(*given[:3], weight=given[3])
                for given in (
                    [number if i == position else plain for i in range(4)]
                    for number in (value, other)
                )
            )
            assert all(map(torch.equal, got, expected))
        logits = plain.clone().requires_grad_()
        loss = weighted(plain, logits, 2.0)
        got, expected = (
            torch.autograd.grad(loss, logits, number, retain_graph=True)[0]
            for number in (value, other)
        )
        assert torch.equal(got, expected)


def test_an_output_of_torch_whose_storage_overlaps_that_of_an_operand(torch_on_host: Any) -> None:
    torch, _ = torch_on_host
    memory = np.linspace(-3, 3, 50, dtype=np.float32)
    labels, logits, out = torch.rand(40), *map(torch.from_numpy, (memory[:40], memory[1:41]))
    expected = weighted(labels, logits, 2.0)
    assert torch.equal(weighted(labels, logits, 2.0, out=out), expected)


def test_outputs_of_torch_that_share_memory_are_refused(
    torch_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, _ = torch_on_host
    labels, logits, memory = torch.rand(4), torch.rand(4), torch.empty(8)
    expected = logitloss.value_and_grad(labels, logits, 2.0)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    with pytest.raises(ValueError, match="`out` must be two arrays with no memory in common"):
        logitloss.value_and_grad(labels, logits, 2.0, out=(memory[:4], memory[3:7]))
    # They span the same bytes and share none.
    outs = memory[::2], memory[1::2]
    logitloss.value_and_grad(labels, logits, 2.0, out=outs)
    assert all(map(torch.equal, outs, expected))


def test_numbers_of_numpy_are_coefficients_of_torch(torch_on_host: Any) -> None:
    torch, launcher = torch_on_host
    values = torch.rand(5)
    got = weighted(values, values, np.float64(2), weight=np.float64(0.5))
    assert torch.equal(got, weighted(values, values, 2.0, weight=0.5))
    assert len(launcher.versions) == 1
