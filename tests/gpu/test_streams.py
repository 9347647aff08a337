"""Streams and CUDA graphs: calls go where the library would compute, and wait for nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
from backends import Backend

import logitloss
from gpu.cases import CALLS, KERNEL, REDUCED, assert_as_on_cpu, assert_within, ordinary
from logitloss._backends import cuda

# Some hundred milliseconds.
CYCLES = 200_000_000
SLEEP = """
extern "C" __global__ void sleep(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {}
}
"""
NAMES = [*CALLS, *REDUCED]


class Streams:
    """What the tests need of streams, in both libraries."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.library = backend, backend.library
        self.is_torch = backend.name == "torch"
        if not self.is_torch:
            self._sleep = self.library.RawKernel(SLEEP, "sleep")

    def new(self) -> Any:
        if self.is_torch:
            return self.library.cuda.Stream()
        return self.library.cuda.Stream(non_blocking=True)

    def current(self) -> Any:
        if self.is_torch:
            return self.library.cuda.current_stream()
        return self.library.cuda.get_current_stream()

    def use(self, stream: Any) -> AbstractContextManager[Any]:
        return self.library.cuda.stream(stream) if self.is_torch else stream

    def sleep(self) -> None:
        """Keep the current stream busy."""
        if self.is_torch:
            self.library.cuda._sleep(CYCLES)
        else:
            self._sleep((1,), (1,), (CYCLES,))

    def is_done(self, stream: Any) -> bool:
        return bool(stream.query() if self.is_torch else stream.done)

    def write(self, target: Any, values: Any) -> None:
        if self.is_torch:
            target.copy_(values)
        else:
            target[...] = values

    def synchronize(self) -> None:
        if self.is_torch:
            self.library.cuda.synchronize()
        else:
            self.library.cuda.Device().synchronize()


@pytest.fixture
def streams(backend: Backend) -> Streams:
    return Streams(backend)


def with_other_logits(backend: Backend) -> tuple[list[Any], Any]:
    """Operands, and logits to take the place of theirs."""
    values = ordinary("float32", (100, 1000))
    return [backend.array(v, "float32") for v in values], backend.array(-values[1], "float32")


def compute(name: str, *operands: Any) -> tuple[Any, ...]:
    *operands, weight = operands
    if name in CALLS:
        return tuple(CALLS[name](*operands, weight=weight))
    return tuple(logitloss.value_and_grad(*operands, weight=weight, reduction=name))


@pytest.mark.parametrize("backend", KERNEL, indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_on_the_current_stream_and_does_not_wait(
    backend: Backend, streams: Streams, name: str
) -> None:
    operands, logits = with_other_logits(backend)
    stream = streams.new()
    with streams.use(stream):
        # Memory and programs are there afterwards.
        expected = compute(name, operands[0], logits, *operands[2:])
    streams.synchronize()
    with streams.use(stream):
        streams.sleep()
        streams.write(operands[1], logits)
        got = compute(name, *operands)
        assert not streams.is_done(stream), "the call has waited for the GPU"
    stream.synchronize()
    for result, other in zip(got, expected, strict=True):
        assert (backend.to_numpy(result) == backend.to_numpy(other)).all()


@pytest.mark.parametrize("backend", KERNEL, indirect=True)
def test_a_call_waits_for_no_other_stream(backend: Backend, streams: Streams) -> None:
    operands = [backend.array(v, "float32") for v in ordinary("float32", 1000)]
    stream, other = streams.new(), streams.new()
    for _ in range(2):
        streams.synchronize()
        with streams.use(other):
            streams.sleep()
        with streams.use(stream):
            for name in NAMES:
                compute(name, *operands)
        stream.synchronize()
    assert not streams.is_done(other)


@pytest.mark.parametrize("backend", KERNEL, indirect=True)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loaded", ["before", "while it is captured"])
def test_a_graph_computes_what_memory_holds_when_it_is_replayed(
    backend: Backend, streams: Streams, name: str, loaded: str
) -> None:
    operands, logits = with_other_logits(backend)
    stream = streams.new()
    with streams.use(stream):
        kept = [compute(name, *operands) for _ in range(3)]
        del kept
    streams.synchronize()
    if loaded != "before":
        cuda.launcher_or_reason()._functions.clear()
    if streams.is_torch:
        graph = streams.library.cuda.CUDAGraph()
        with streams.library.cuda.graph(graph, stream=stream):
            got = compute(name, *operands)
        replay = graph.replay
    else:
        with stream:
            stream.begin_capture()
            got = compute(name, *operands)
            graph = stream.end_capture()

        def replay() -> None:
            graph.launch(stream)

    for current in (operands[1], logits):
        expected = compute(name, operands[0], current, *operands[2:])
        streams.write(operands[1], current)
        streams.synchronize()
        replay()
        streams.synchronize()
        for result, other in zip(got, expected, strict=True):
            assert (backend.to_numpy(result) == backend.to_numpy(other)).all()


@pytest.mark.parametrize("backend", ["torch-cuda"], indirect=True)
def test_a_graph_holds_a_step_of_training(backend: Backend) -> None:
    torch = backend.library
    values = ordinary("float32", (100, 1000))
    labels, logits, pos_weight, weight = (backend.array(v, "float32") for v in values)
    logits.requires_grad_()

    def step() -> Any:
        logits.grad = None
        value = logitloss.weighted_cross_entropy_with_logits(
            labels, logits, pos_weight, weight=weight, reduction="mean"
        )
        value.backward()
        return value

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    logits.grad = None
    with torch.cuda.graph(graph):
        value = step()
    with torch.no_grad():
        logits.neg_()
    graph.replay()
    torch.cuda.synchronize()
    values = [values[0], -values[1], *values[2:]]
    expected = logitloss.value_and_grad(*values[:3], weight=values[3], reduction="mean")
    assert_within(1, backend, (value.detach(),), expected[:1])
    assert_as_on_cpu(backend, (logits.grad,), expected[1:])
