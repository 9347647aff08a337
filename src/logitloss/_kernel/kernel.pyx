# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Typed entry points to the C kernels: what to compute is decided above, how in C."""

import os

cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange
from libc.string cimport memcmp, memcpy

cdef extern from "blocks.h" nogil:
    enum:
        LOGITLOSS_BLOCK
        LOGITLOSS_MAX_SLICES

    ctypedef enum logitloss_type:
        LOGITLOSS_FLOAT32
        LOGITLOSS_FLOAT64
        LOGITLOSS_INT8
        LOGITLOSS_UINT8
        LOGITLOSS_INT16
        LOGITLOSS_UINT16
        LOGITLOSS_INT32
        LOGITLOSS_UINT32
        LOGITLOSS_INT64
        LOGITLOSS_UINT64

    ctypedef enum logitloss_operation:
        LOGITLOSS_LOSS
        LOGITLOSS_VALUE_AND_GRAD
        LOGITLOSS_GRAD_AND_HESS

    ctypedef struct logitloss_operand:
        const char *data
        Py_ssize_t stride
        Py_ssize_t repeat
        Py_ssize_t period
        logitloss_type type

    ctypedef struct logitloss_result:
        char *data
        Py_ssize_t stride

    ctypedef struct logitloss_task:
        logitloss_operation operation
        logitloss_operand logits
        logitloss_operand labels
        logitloss_operand pos_weight
        logitloss_operand weight
        double pos_weight_scalar
        double weight_scalar
        logitloss_result first
        logitloss_result second
        double gradient_divisor
        bint in_place
        bint reduce

    ctypedef struct logitloss_sum:
        double hi
        double lo

    ctypedef logitloss_sum logitloss_run(
        const logitloss_task *task, Py_ssize_t start, Py_ssize_t stop
    ) noexcept nogil

    Py_ssize_t logitloss_slice(Py_ssize_t size) noexcept
    void logitloss_add(logitloss_sum *sum, logitloss_sum term) noexcept
    double logitloss_value(logitloss_sum sum) noexcept

    logitloss_run logitloss_run_float32_baseline, logitloss_run_float64_baseline

cdef extern from *:
    """
    #ifndef LOGITLOSS_X86
    #define logitloss_run_float32_avx2 logitloss_run_float32_baseline
    #define logitloss_run_float64_avx2 logitloss_run_float64_baseline
    #define logitloss_run_float32_avx512 logitloss_run_float32_baseline
    #define logitloss_run_float64_avx512 logitloss_run_float64_baseline
    #endif
    """
    logitloss_run logitloss_run_float32_avx2, logitloss_run_float64_avx2
    logitloss_run logitloss_run_float32_avx512, logitloss_run_float64_avx512

cdef extern from "xla.h" nogil:
    void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64) noexcept

cdef extern from "runtime.h" nogil:
    const int LOGITLOSS_OPENMP
    int omp_get_max_threads() noexcept
    int omp_get_num_procs() noexcept
    bint logitloss_has_avx2() noexcept
    bint logitloss_has_avx512() noexcept
    void logitloss_watch_forks() noexcept
    bint logitloss_is_forked_child
    int logitloss_thread_limit

cnp.import_array()
logitloss_watch_forks()

LOSS = LOGITLOSS_LOSS
VALUE_AND_GRAD = LOGITLOSS_VALUE_AND_GRAD
GRAD_AND_HESS = LOGITLOSS_GRAD_AND_HESS
BLOCK = LOGITLOSS_BLOCK
OPENMP = LOGITLOSS_OPENMP

cdef logitloss_run *_run_float32
cdef logitloss_run *_run_float64


def _choose_target():
    """Point the kernels at the best instruction set, or the one LOGITLOSS_CPU names."""
    global _run_float32, _run_float64
    available = ["baseline"]
    if logitloss_has_avx2():
        available.append("avx2")
    if logitloss_has_avx512():
        available.append("avx512")
    target = os.environ.get("LOGITLOSS_CPU") or available[-1]
    if target not in available:
        raise ImportError(
            f"`LOGITLOSS_CPU` must be one of {', '.join(available)} on this machine; "
            f"got {target!r}."
        )
    if target == "avx512":
        _run_float32, _run_float64 = logitloss_run_float32_avx512, logitloss_run_float64_avx512
    elif target == "avx2":
        _run_float32, _run_float64 = logitloss_run_float32_avx2, logitloss_run_float64_avx2
    else:
        _run_float32, _run_float64 = logitloss_run_float32_baseline, logitloss_run_float64_baseline
    return target, tuple(available)


TARGET, AVAILABLE_TARGETS = _choose_target()

# Below this a parallel region costs more than it saves, and below that giving up the
# GIL costs more than anybody could do with it.  Found with benchmarks/threshold.py: on two
# cores, one call after the other, threads paid from 18,000 to 56,000 elements on in float32
# and from 6,000 in float64, after a pause from more than 300,000; giving up the GIL
# cost 3 % at 3,000 elements and 1 % at 10,000.
cdef Py_ssize_t _parallel_size = 32768
cdef Py_ssize_t _nogil_size = 4096

# What set_num_threads asked for, or 0; what the environment or the machine gives
# otherwise; and what the OpenMP runtime says while nobody limits it.
cdef int _requested_threads = 0
cdef int _default_threads = 1
cdef int _unlimited_openmp_threads = 1


def set_threads(int requested):
    """Use `requested` threads from now on; 0 returns to the default."""
    global _requested_threads
    _requested_threads = requested


def set_default_threads(int default, int unlimited_openmp):
    global _default_threads, _unlimited_openmp_threads
    _default_threads = default
    _unlimited_openmp_threads = unlimited_openmp or omp_get_num_procs()


def set_thresholds(Py_ssize_t parallel, Py_ssize_t nogil):
    """Use threads, and give up the GIL, from so many elements on; return what it was before."""
    global _parallel_size, _nogil_size
    previous = _parallel_size, _nogil_size
    _parallel_size, _nogil_size = parallel, nogil
    return previous


def limit_threads(int limit):
    """Use no more than `limit` threads for calls from this thread, or 0 for no limit.

    Returns the limit before, for callers that are one of many parallel workers.
    """
    global logitloss_thread_limit
    previous = logitloss_thread_limit
    logitloss_thread_limit = limit
    return previous


def get_threads():
    """How many threads a large call from this thread would use now."""
    return _threads()


cdef int _threads() noexcept nogil:
    cdef int threads = _default_threads, openmp
    if not LOGITLOSS_OPENMP or logitloss_is_forked_child:
        return 1
    if _requested_threads:
        threads = _requested_threads
    else:
        # threadpoolctl and omp_set_num_threads show themselves here.
        openmp = omp_get_max_threads()
        if openmp < _unlimited_openmp_threads and openmp < threads:
            threads = openmp
    if 0 < logitloss_thread_limit < threads:
        threads = logitloss_thread_limit
    return threads


cdef logitloss_sum _execute(
    const logitloss_task *task, Py_ssize_t size, logitloss_run *run
) noexcept nogil:
    """Run all of a task and return the sum of the losses, if it asks for one."""
    cdef logitloss_sum sums[LOGITLOSS_MAX_SLICES]
    cdef logitloss_sum total = [0, 0]
    cdef Py_ssize_t width = logitloss_slice(size)
    cdef Py_ssize_t slices = (size + width - 1) // width
    cdef Py_ssize_t i
    cdef int threads = 1 if size < _parallel_size else _threads()
    if threads > slices:
        threads = <int>slices
    if threads > 1:
        for i in prange(slices, num_threads=threads, schedule="static"):
            sums[i] = run(task, i * width, min(size, (i + 1) * width))
    else:
        for i in range(slices):
            sums[i] = run(task, i * width, min(size, (i + 1) * width))
    for i in range(slices):
        logitloss_add(&total, sums[i])
    return total


cdef inline bint _is_plain(cnp.ndarray array) noexcept:
    return (
        cnp.PyArray_IS_C_CONTIGUOUS(array)
        and cnp.PyArray_ISALIGNED(array)
        and cnp.PyArray_ISNOTSWAPPED(array)
    )


cdef inline bint _same_sizes(
    const cnp.npy_intp *first, const cnp.npy_intp *second, int ndim
) noexcept:
    # An array without dimensions may have none to point to.
    return ndim == 0 or not memcmp(first, second, ndim * sizeof(cnp.npy_intp))


cdef bint _describe_plain(logitloss_task *task, object labels, object logits) noexcept:
    """Fill in labels and logits in the commonest case, or return False if it is another one.

    Two plain contiguous arrays of the same shape, logits of a floating type and labels of
    the same or of an integer one, for which a call costs no more than an addition: no
    checks beyond these are needed.
    """
    cdef cnp.ndarray x, z
    cdef int kind, ndim, labels_type
    if not (cnp.PyArray_CheckExact(logits) and cnp.PyArray_CheckExact(labels)):
        return False
    x = <cnp.ndarray>logits
    z = <cnp.ndarray>labels
    kind = cnp.PyArray_TYPE(x)
    ndim = cnp.PyArray_NDIM(x)
    if (
        (kind != cnp.NPY_FLOAT and kind != cnp.NPY_DOUBLE)
        or cnp.PyArray_NDIM(z) != ndim
        or not _same_sizes(cnp.PyArray_DIMS(x), cnp.PyArray_DIMS(z), ndim)
        or not _is_plain(x)
        or not _is_plain(z)
    ):
        return False
    task.logits.type = LOGITLOSS_FLOAT32 if kind == cnp.NPY_FLOAT else LOGITLOSS_FLOAT64
    task.labels.type = task.logits.type
    if cnp.PyArray_TYPE(z) != kind:
        labels_type = _type_of(z)
        if labels_type < 0 or cnp.PyArray_ISFLOAT(z):
            return False
        task.labels.type = <logitloss_type>labels_type
    task.logits.data = cnp.PyArray_BYTES(x)
    task.labels.data = cnp.PyArray_BYTES(z)
    task.logits.stride = cnp.PyArray_ITEMSIZE(x)
    task.labels.stride = cnp.PyArray_ITEMSIZE(z)
    task.logits.repeat = task.labels.repeat = 1
    task.logits.period = task.labels.period = max(cnp.PyArray_SIZE(x), 1)
    task.in_place = False
    return True


cdef inline object _add_plain_coefficient(
    logitloss_operand *operand, double *scalar, object value, object logits
):
    """Let a task have a number, or a plain array of its type that varies along adjacent axes.

    Returns what must stay alive until the task has been run, or None in any other case.
    """
    if PyFloat_Check(value):
        operand.data = NULL
        scalar[0] = PyFloat_AS_DOUBLE(value)
        return value
    return _add_uncommon_coefficient(operand, scalar, value, logits)


cdef object _add_uncommon_coefficient(
    logitloss_operand *operand, double *scalar, object value, cnp.ndarray logits
):
    cdef cnp.ndarray array
    cdef cnp.npy_intp *sizes
    cdef cnp.npy_intp *goal
    cdef cnp.npy_intp length
    cdef Py_ssize_t nbytes, done = 0
    cdef int missing, first = 0, last
    operand.data = NULL
    if type(value) is int:
        try:
            scalar[0] = value
        except OverflowError:
            return None
        return value
    if not (
        cnp.PyArray_CheckExact(value)
        and cnp.PyArray_TYPE(value) == cnp.PyArray_TYPE(logits)
        and _is_plain(value)
    ):
        return None
    array = <cnp.ndarray>value
    last = cnp.PyArray_NDIM(array)
    missing = cnp.PyArray_NDIM(logits) - last
    if missing < 0 or not cnp.PyArray_SIZE(logits):
        return None
    sizes = cnp.PyArray_DIMS(array)
    goal = cnp.PyArray_DIMS(logits) + missing
    operand.repeat = 1
    while last and sizes[last - 1] == 1:
        last -= 1
        operand.repeat *= goal[last]
    while first < last and sizes[first] == 1:
        first += 1
    if not _same_sizes(sizes + first, goal + first, last - first):
        return None
    operand.period = cnp.PyArray_SIZE(array)
    if operand.period == 1:
        scalar[0] = array.item()
        return value
    operand.stride = cnp.PyArray_ITEMSIZE(array)
    operand.type = <logitloss_type>_type_of(array)
    if operand.repeat == 1 and operand.period < cnp.PyArray_SIZE(logits):
        # The kernel reads past the end of a period: see blocks.h.
        nbytes = cnp.PyArray_NBYTES(array)
        length = operand.period + LOGITLOSS_BLOCK
        value = cnp.PyArray_EMPTY(1, &length, cnp.PyArray_TYPE(array), 0)
        length *= operand.stride
        while done < length:
            memcpy(
                cnp.PyArray_BYTES(value) + done,
                cnp.PyArray_BYTES(array),
                min(nbytes, length - done),
            )
            done += nbytes
    operand.data = cnp.PyArray_BYTES(value)
    return value


def plain_loss(object labels, object logits, object pos_weight, object weight=None):
    """The elementwise loss in the commonest case, or None if it is another one."""
    cdef logitloss_task task
    cdef logitloss_run *kernel
    cdef cnp.ndarray result
    cdef Py_ssize_t size
    if not _describe_plain(&task, labels, logits):
        return None
    pos_weight = _add_plain_coefficient(
        &task.pos_weight, &task.pos_weight_scalar, pos_weight, logits
    )
    weight = _add_plain_coefficient(
        &task.weight, &task.weight_scalar, 1.0 if weight is None else weight, logits
    )
    if pos_weight is None or weight is None:
        return None
    size = cnp.PyArray_SIZE(logits)
    result = cnp.PyArray_EMPTY(
        cnp.PyArray_NDIM(logits), cnp.PyArray_DIMS(logits), cnp.PyArray_TYPE(logits), 0
    )
    task.operation = LOGITLOSS_LOSS
    task.first.data = cnp.PyArray_BYTES(result)
    task.first.stride = task.logits.stride
    task.second.data = NULL
    task.gradient_divisor = 1
    task.reduce = False
    kernel = _run_float32 if task.logits.type == LOGITLOSS_FLOAT32 else _run_float64
    if size < _nogil_size:
        kernel(&task, 0, size)
    else:
        with nogil:
            _execute(&task, size, kernel)
    # Like NumPy's own functions: a scalar for a 0-d result.
    return result if cnp.PyArray_NDIM(result) else result[()]


cdef bint _overlap(const char *first, const char *second, Py_ssize_t nbytes) noexcept:
    return first < second + nbytes and second < first + nbytes


cdef bint _add_result(
    logitloss_result *result, logitloss_task *task, object array, object logits
) noexcept:
    """Let `result` be `array`, or return False if it cannot be written to straight on."""
    cdef char *data
    cdef Py_ssize_t nbytes
    result.data = NULL
    if array is None:
        return True
    if not (
        cnp.PyArray_CheckExact(array)
        and cnp.PyArray_TYPE(array) == cnp.PyArray_TYPE(logits)
        and cnp.PyArray_NDIM(array) == cnp.PyArray_NDIM(logits)
        and _same_sizes(
            cnp.PyArray_DIMS(array), cnp.PyArray_DIMS(logits), cnp.PyArray_NDIM(logits)
        )
        and cnp.PyArray_ISWRITEABLE(array)
        and _is_plain(array)
    ):
        return False
    data = cnp.PyArray_BYTES(array)
    nbytes = cnp.PyArray_NBYTES(array)
    if (
        _overlap(data, task.logits.data, nbytes)
        or _overlap(data, task.labels.data, nbytes)
        or _overlap(data, task.pos_weight.data, nbytes)
        or _overlap(data, task.weight.data, nbytes)
    ):
        return False
    result.data = data
    result.stride = task.logits.stride
    return True


def plain_run(
    int operation,
    object labels,
    object logits,
    object pos_weight,
    object weight,
    object first,
    object second,
    double gradient_divisor,
    bint reduce,
):
    """What `run` does, for arguments as of `plain_loss`: the sum as one number, or None.

    The results, which may be None, are plain arrays of the same type and shape.
    """
    cdef logitloss_task task
    cdef logitloss_run *kernel
    cdef logitloss_sum total
    cdef Py_ssize_t size
    if not _describe_plain(&task, labels, logits):
        return None
    pos_weight = _add_plain_coefficient(
        &task.pos_weight, &task.pos_weight_scalar, pos_weight, logits
    )
    weight = _add_plain_coefficient(
        &task.weight, &task.weight_scalar, 1.0 if weight is None else weight, logits
    )
    if (
        pos_weight is None
        or weight is None
        or not _add_result(&task.first, &task, first, logits)
        or not _add_result(&task.second, &task, second, logits)
    ):
        return None
    size = cnp.PyArray_SIZE(logits)
    if (
        task.first.data != NULL
        and task.second.data != NULL
        and _overlap(task.first.data, task.second.data, cnp.PyArray_NBYTES(logits))
    ):
        return None
    task.operation = <logitloss_operation>operation
    task.gradient_divisor = gradient_divisor
    task.reduce = reduce
    kernel = _run_float32 if task.logits.type == LOGITLOSS_FLOAT32 else _run_float64
    with nogil:
        total = _execute(&task, size, kernel)
    return logitloss_value(total)


cdef int _type_of(cnp.ndarray array) noexcept:
    """What the kernel calls the type of an array; -1 for one that it does not know."""
    cdef char kind = array.descr.kind
    cdef int itemsize = cnp.PyArray_ITEMSIZE(array)
    if kind == c"f" and itemsize == 4:
        return LOGITLOSS_FLOAT32
    if kind == c"f" and itemsize == 8:
        return LOGITLOSS_FLOAT64
    if kind == c"b" or (kind == c"u" and itemsize == 1):
        return LOGITLOSS_UINT8
    if kind == c"u" and itemsize == 2:
        return LOGITLOSS_UINT16
    if kind == c"u" and itemsize == 4:
        return LOGITLOSS_UINT32
    if kind == c"u" and itemsize == 8:
        return LOGITLOSS_UINT64
    if kind == c"i" and itemsize == 1:
        return LOGITLOSS_INT8
    if kind == c"i" and itemsize == 2:
        return LOGITLOSS_INT16
    if kind == c"i" and itemsize == 4:
        return LOGITLOSS_INT32
    if kind == c"i" and itemsize == 8:
        return LOGITLOSS_INT64
    return -1


cdef int _set_operand(logitloss_operand *operand, cnp.ndarray array) except -1:
    cdef int type = _type_of(array)
    if type < 0:
        raise AssertionError(f"no kernel for {array.dtype}")
    operand.type = <logitloss_type>type
    operand.data = cnp.PyArray_BYTES(array)
    operand.stride = cnp.PyArray_STRIDE(array, 0)
    operand.repeat = 1
    operand.period = max(cnp.PyArray_DIM(array, 0), 1)
    return 0


cdef int _set_coefficient(logitloss_operand *operand, double *scalar, object value) except -1:
    operand.data = NULL
    if isinstance(value, float):
        scalar[0] = value
        return 0
    array, repeat, period = value
    _set_operand(operand, array)
    operand.repeat = repeat
    operand.period = period
    return 0


def run(
    int operation,
    cnp.ndarray labels,
    cnp.ndarray logits,
    object pos_weight,
    object weight,
    cnp.ndarray first,
    cnp.ndarray second,
    double gradient_divisor,
    bint in_place,
    bint reduce,
    bint is_float32,
):
    """Run one operation over one-dimensional arrays; return the sum of the losses as a pair.

    Arrays are aligned and in native byte order; `first` and `second`, of the type the
    kernel computes in, receive the results and may be None.  A coefficient is a float
    or a tuple (array, repeat, period): element i is ``array[i // repeat % period]``.
    """
    cdef logitloss_task task
    cdef Py_ssize_t size = cnp.PyArray_DIM(logits, 0)
    cdef logitloss_run *kernel = _run_float32 if is_float32 else _run_float64
    cdef logitloss_sum total
    task.operation = <logitloss_operation>operation
    _set_operand(&task.labels, labels)
    _set_operand(&task.logits, logits)
    _set_coefficient(&task.pos_weight, &task.pos_weight_scalar, pos_weight)
    _set_coefficient(&task.weight, &task.weight_scalar, weight)
    task.first.data = task.second.data = NULL
    if first is not None:
        task.first.data = cnp.PyArray_BYTES(first)
        task.first.stride = cnp.PyArray_STRIDE(first, 0)
    if second is not None:
        task.second.data = cnp.PyArray_BYTES(second)
        task.second.stride = cnp.PyArray_STRIDE(second, 0)
    task.gradient_divisor = gradient_divisor
    task.in_place = in_place
    task.reduce = reduce
    with nogil:
        total = _execute(&task, size, kernel)
    return total.hi, total.lo


def add(tuple sum, tuple term):
    """Add two sums that `run` returned."""
    cdef logitloss_sum total = logitloss_sum(sum[0], sum[1])
    logitloss_add(&total, logitloss_sum(term[0], term[1]))
    return total.hi, total.lo


def xla_handler():
    """The kernel as a custom call of XLA, in a capsule; None where it cannot be one."""
    cdef void *handler = logitloss_xla_handler(_run_float32, _run_float64)
    return None if handler == NULL else PyCapsule_New(handler, NULL, NULL)
