# cython: language_level=3, cdivision=True, freethreading_compatible=True
"""Typed entry points to the C kernels: what to compute is decided above, how in C."""

import os

import numpy as np

cimport cython
cimport numpy as cnp
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_AsDouble, PyLong_Check
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_INCREF
from libc.string cimport memset

cdef extern from "numpy/arrayobject.h":
    object PyArray_New(
        PyTypeObject *subtype, int ndim, Py_ssize_t *shape, int number, Py_ssize_t *strides,
        void *data, int itemsize, int flags, PyObject *like
    )
    object PyArray_Scalar(void *data, cnp.dtype dtype, PyObject *base)
    # It takes the reference to `dtype` away.
    object PyArray_NewLikeArray(
        cnp.ndarray like, cnp.NPY_ORDER order, cnp.dtype dtype, int keep_subclass
    )

cdef extern from "task.h" nogil:
    enum:
        LOGITLOSS_BLOCK
        LOGITLOSS_MAX_AXES
        LOGITLOSS_MAX_SLICES
        LOGITLOSS_LOSS
        # Among the others, the oldest Cython could not make it the size of an array.
        LOGITLOSS_TYPES

    ctypedef enum logitloss_type:
        LOGITLOSS_FLOAT16
        LOGITLOSS_BFLOAT16
        LOGITLOSS_FLOAT32
        LOGITLOSS_FLOAT64
        LOGITLOSS_LONGDOUBLE
        LOGITLOSS_BOOL
        LOGITLOSS_INT8
        LOGITLOSS_UINT8
        LOGITLOSS_INT16
        LOGITLOSS_UINT16
        LOGITLOSS_INT32
        LOGITLOSS_UINT32
        LOGITLOSS_INT64
        LOGITLOSS_UINT64

    ctypedef enum logitloss_reduction:
        LOGITLOSS_NONE
        LOGITLOSS_SUM
        LOGITLOSS_MEAN
        LOGITLOSS_WEIGHTED_MEAN

    ctypedef struct logitloss_array:
        char *data
        logitloss_type type
        bint is_swapped
        int ndim
        const Py_ssize_t *shape
        const Py_ssize_t *strides

    ctypedef struct logitloss_operand:
        char *data
        bint is_overwritten

    ctypedef struct logitloss_task:
        Py_ssize_t size
        logitloss_operand logits
        logitloss_operand labels
        logitloss_operand pos_weight
        logitloss_operand weight
        logitloss_operand scale

    ctypedef struct logitloss_arrays:
        logitloss_array logits
        logitloss_array labels
        logitloss_array pos_weight
        logitloss_array weight
        logitloss_array scale
        double pos_weight_value
        double weight_value
        logitloss_array results[3]

    ctypedef struct logitloss_sums:
        pass

    ctypedef logitloss_sums logitloss_execute(
        const logitloss_task *task, void *context
    ) noexcept nogil

    logitloss_type logitloss_result_type(
        logitloss_type labels, logitloss_type logits
    ) noexcept
    bint logitloss_plan_remote(
        logitloss_task *task, const logitloss_arrays *arrays, logitloss_type type, int orders
    ) noexcept
    bint logitloss_plan(
        logitloss_task *task, const logitloss_arrays *arrays, logitloss_type type, int orders
    ) noexcept
    double logitloss_compute(
        logitloss_task *task,
        logitloss_reduction reduction,
        double divisor,
        logitloss_execute *execute,
        void *context,
    ) noexcept
    void logitloss_write(double value, logitloss_type type, void *to) noexcept
    bint logitloss_overlaps_itself(const logitloss_array *array) noexcept
    bint logitloss_may_overlap(
        const logitloss_array *first, const logitloss_array *second
    ) noexcept
    bint logitloss_is_same(const logitloss_array *first, const logitloss_array *second) noexcept
    Py_ssize_t logitloss_slice(Py_ssize_t size) noexcept
    void logitloss_add_both(logitloss_sums *sums, const logitloss_sums *terms) noexcept

cdef extern from "blocks.h" nogil:
    ctypedef logitloss_sums logitloss_run(
        const logitloss_task *task, Py_ssize_t start, Py_ssize_t stop
    ) noexcept nogil

cdef extern from "targets.h" nogil:
    enum:
        LOGITLOSS_MAX_TARGETS

    ctypedef struct logitloss_target:
        const char *name
        bint is_fused
        logitloss_run *run_float32
        logitloss_run *run_float64

    int logitloss_list_targets(logitloss_target *targets) noexcept

cdef extern from "parallel.h" nogil:
    const bint LOGITLOSS_HAS_THREADS
    void logitloss_share(
        int parts, void (*work)(void *context, size_t part) noexcept nogil, void *context
    ) noexcept

cdef extern from "xla.h" nogil:
    void *logitloss_xla_handler(logitloss_run *float32, logitloss_run *float64) noexcept

cdef extern from "grid.h" nogil:
    enum:
        LOGITLOSS_GRID_COUNT
        LOGITLOSS_GRID_THREADS

    ctypedef struct logitloss_grid_task:
        Py_ssize_t size

    ctypedef struct logitloss_grid_launch:
        logitloss_grid_task task
        unsigned int blocks
        unsigned char constants[LOGITLOSS_GRID_COUNT]

    int logitloss_plan_grid(
        logitloss_grid_launch *launches,
        const logitloss_task *task,
        logitloss_reduction reduction,
        double divisor,
        logitloss_type reduced,
    ) noexcept
    Py_ssize_t logitloss_grid_scratch(
        const logitloss_grid_launch *launches, int count
    ) noexcept
    void logitloss_place_grid(
        logitloss_grid_launch *launches, int count, size_t scratch, size_t reduced
    ) noexcept
    const char *LOGITLOSS_GRID_NAMES

cdef extern from "threads.h" nogil:
    const int LOGITLOSS_OPENMP
    const bint LOGITLOSS_CLANG_OPENMP
    int omp_get_max_threads() noexcept
    int omp_get_num_procs() noexcept
    void logitloss_watch_forks() noexcept
    bint logitloss_is_forked_child
    int logitloss_thread_limit

cnp.import_array()
logitloss_watch_forks()

BLOCK = LOGITLOSS_BLOCK
MAX_AXES = LOGITLOSS_MAX_AXES

cdef enum:
    MOST_RESULTS = 3
    # Those that have had their numbers since NumPy 1.
    NUMPY_TYPES = cnp.NPY_NTYPES_LEGACY
OPENMP = LOGITLOSS_OPENMP
HAS_THREADS = LOGITLOSS_HAS_THREADS
CLANG_OPENMP = LOGITLOSS_CLANG_OPENMP

cdef logitloss_run *_run_float32
cdef logitloss_run *_run_float64


def _choose_target():
    """Point the kernels at the best instruction set, or the one LOGITLOSS_CPU names."""
    global _run_float32, _run_float64
    cdef logitloss_target targets[LOGITLOSS_MAX_TARGETS]
    cdef int count = logitloss_list_targets(targets)
    available = [targets[i].name.decode() for i in range(count)]
    name = os.environ.get("LOGITLOSS_CPU") or available[-1]
    if name not in available:
        raise ImportError(
            f"`LOGITLOSS_CPU` must be one of {', '.join(available)} on this machine; "
            f"got {name!r}."
        )
    cdef logitloss_target *chosen = &targets[<int>available.index(name)]
    _run_float32, _run_float64 = chosen.run_float32, chosen.run_float64
    return name, chosen.is_fused, tuple(available)


# The bits of all that are fused are the same.
TARGET, TARGET_IS_FUSED, AVAILABLE_TARGETS = _choose_target()

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
# Whether the OpenMP runtime can be asked: not where OMP_NUM_THREADS is nonsense, of which
# Clang's makes anything between a negative number and the end of the process.
cdef bint _can_ask_openmp = True


def set_threads(int requested):
    """Use `requested` threads from now on; 0 returns to the default."""
    global _requested_threads
    _requested_threads = requested


def set_default_threads(int default, int unlimited_openmp, bint can_ask_openmp):
    global _default_threads, _unlimited_openmp_threads, _can_ask_openmp
    _default_threads = default
    _can_ask_openmp = can_ask_openmp
    if unlimited_openmp:
        _unlimited_openmp_threads = unlimited_openmp
    elif can_ask_openmp:
        _unlimited_openmp_threads = omp_get_num_procs()


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
    if not LOGITLOSS_HAS_THREADS or logitloss_is_forked_child:
        return 1
    if LOGITLOSS_CLANG_OPENMP and not _can_ask_openmp:
        return 1
    if _requested_threads:
        threads = _requested_threads
    elif LOGITLOSS_OPENMP and _can_ask_openmp:
        # threadpoolctl and omp_set_num_threads show themselves here.
        openmp = omp_get_max_threads()
        if 0 < openmp < _unlimited_openmp_threads and openmp < threads:
            threads = openmp
    if 0 < logitloss_thread_limit < threads:
        threads = logitloss_thread_limit
    return threads


cdef logitloss_sums _execute(const logitloss_task *task, void *context) noexcept nogil:
    """Run all of a task by the kernel that `context` is."""
    cdef logitloss_run *run = <logitloss_run *>context
    cdef Py_ssize_t width = logitloss_slice(task.size)
    if task.size <= width:
        return run(task, 0, task.size)
    return _execute_slices(task, run, width)


# What the threads of a call share.
cdef struct slices:
    const logitloss_task *task
    logitloss_run *run
    Py_ssize_t width, count
    int parts
    logitloss_sums sums[LOGITLOSS_MAX_SLICES]


cdef void _run_part(void *context, size_t part) noexcept nogil:
    """Run the slices of one part, which follow on each other."""
    cdef slices *all = <slices *>context
    cdef Py_ssize_t i, start
    for i in range(
        all.count * <Py_ssize_t>part // all.parts, all.count * (<Py_ssize_t>part + 1) // all.parts
    ):
        start = i * all.width
        all.sums[i] = all.run(all.task, start, min(all.task.size, start + all.width))


cdef logitloss_sums _execute_slices(
    const logitloss_task *task, logitloss_run *run, Py_ssize_t width
) noexcept nogil:
    """Share the slices of a task among threads, and add up their sums in order."""
    cdef slices all
    cdef logitloss_sums total
    cdef Py_ssize_t i
    all.task, all.run, all.width = task, run, width
    all.count = (task.size + width - 1) // width
    all.parts = 1 if task.size < _parallel_size else _threads()
    if all.parts > all.count:
        all.parts = <int>all.count
    if all.parts > 1:
        logitloss_share(all.parts, _run_part, &all)
    else:
        _run_part(&all, 0)
    memset(&total, 0, sizeof(total))
    for i in range(all.count):
        logitloss_add_both(&total, &all.sums[i])
    return total


# What the kernel calls the types that it knows under one name everywhere, by the names of dtypes.
TYPES = {
    "float16": LOGITLOSS_FLOAT16,
    "bfloat16": LOGITLOSS_BFLOAT16,
    "float32": LOGITLOSS_FLOAT32,
    "float64": LOGITLOSS_FLOAT64,
    "bool": LOGITLOSS_BOOL,
    "int8": LOGITLOSS_INT8,
    "uint8": LOGITLOSS_UINT8,
    "int16": LOGITLOSS_INT16,
    "uint16": LOGITLOSS_UINT16,
    "int32": LOGITLOSS_INT32,
    "uint32": LOGITLOSS_UINT32,
    "int64": LOGITLOSS_INT64,
    "uint64": LOGITLOSS_UINT64,
}

# The same by NumPy's numbers, and long double; -1 for those that the kernel does not know.
cdef int _types[NUMPY_TYPES]
# The other way round, where bfloat16 has the number of its bits.
cdef int _numbers[LOGITLOSS_TYPES]
# bfloat16 comes from ml_dtypes, which registers it with NumPy under a number of its own.
cdef int _bfloat16 = -1


cdef int _set_types() except -1:
    cdef int number
    for number in range(NUMPY_TYPES):
        _types[number] = -1
    _types[<int>cnp.NPY_LONGDOUBLE] = LOGITLOSS_LONGDOUBLE
    # Which of C's integers has how many bytes differs between platforms.
    for code in "?efdbBhHiIlLqQ":
        dtype = np.dtype(code)
        _types[dtype.num] = TYPES[dtype.name]
        _numbers[_types[dtype.num]] = dtype.num
    _numbers[<int>LOGITLOSS_BFLOAT16] = cnp.NPY_SHORT
    return 0


_set_types()


cdef int _type_of(cnp.ndarray array) except -2:
    global _bfloat16
    cdef int number = cnp.PyArray_TYPE(array)
    if number < NUMPY_TYPES:
        return _types[number]
    if _bfloat16 < 0 and array.dtype.name == "bfloat16":
        _bfloat16 = number
    return LOGITLOSS_BFLOAT16 if number == _bfloat16 else -1


class BFloat16Bits(np.ndarray):
    """The memory of bfloat16 numbers as int16, for callers who have no such dtype in NumPy.

    Results beside it are int16 as well: plain arrays, and numbers.
    """


cdef int _number_of(logitloss_type type, bint as_bits=False) noexcept:
    """NumPy's number of a type that results have."""
    return _bfloat16 if type == LOGITLOSS_BFLOAT16 and not as_bits else _numbers[<int>type]


cdef inline bint _describe(logitloss_array *described, object value) except -1:
    """Say what an array is, or return False if it is none that the kernel reads."""
    cdef cnp.ndarray array
    cdef int kind
    if cnp.PyArray_CheckExact(value):
        kind = _type_of(<cnp.ndarray>value)
    elif type(value) is BFloat16Bits:
        kind = LOGITLOSS_BFLOAT16
    else:
        return False
    if kind < 0:
        return False
    array = <cnp.ndarray>value
    described.type = <logitloss_type>kind
    described.data = cnp.PyArray_BYTES(array)
    described.is_swapped = not cnp.PyArray_ISNOTSWAPPED(array)
    described.ndim = cnp.PyArray_NDIM(array)
    described.shape = <const Py_ssize_t *>cnp.PyArray_DIMS(array)
    described.strides = <const Py_ssize_t *>cnp.PyArray_STRIDES(array)
    return True


cdef inline bint _describe_coefficient(
    logitloss_array *described, double *number, object value
) except -1:
    """Say what an array or a number is, or return False if it is neither."""
    described.data = NULL
    if PyFloat_Check(value):
        number[0] = PyFloat_AS_DOUBLE(value)
        return True
    if cnp.PyArray_Check(value):
        return _describe(described, value)
    if PyLong_Check(value):
        try:
            number[0] = PyLong_AsDouble(value)
        except OverflowError:
            return False
        return True
    if isinstance(value, _NUMBERS) and not isinstance(value, np.timedelta64):
        number[0] = value
        return True
    return False


_NUMBERS = np.bool_, np.integer, np.float16, np.float32

# The string that callers get by default, which is recognised without being looked up.
cdef str _NOT_REDUCED = "none"
cdef dict _REDUCTIONS = {
    _NOT_REDUCED: LOGITLOSS_NONE,
    "sum": LOGITLOSS_SUM,
    "mean": LOGITLOSS_MEAN,
    "weighted_mean": LOGITLOSS_WEIGHTED_MEAN,
}


# With what only the library itself asks for.
REDUCTIONS = *_REDUCTIONS, "total"


cdef struct reducing:
    logitloss_reduction reduction
    # Of a sum.
    double divisor
    bint is_total


cdef inline bint _read_reduction(reducing *how, object reduction, bint is_checked) except -1:
    """Say how losses are reduced, or return False for what has to be refused.

    In a call that has been checked a reduction may also be "total", or a divisor.
    """
    how.is_total = False
    how.divisor = 1
    if reduction is _NOT_REDUCED:
        how.reduction = LOGITLOSS_NONE
    elif isinstance(reduction, str) and reduction in _REDUCTIONS:
        how.reduction = _REDUCTIONS[reduction]
    elif is_checked:
        how.reduction = LOGITLOSS_SUM
        how.is_total = reduction == "total"
        how.divisor = 1 if how.is_total else reduction
    else:
        return False
    return True


cdef object _allocate(cnp.ndarray logits, int number):
    """An array like the logits, in their memory order: straight on for Fortran arrays, too."""
    cdef bint is_c = cnp.PyArray_IS_C_CONTIGUOUS(logits)
    cdef cnp.dtype dtype
    if is_c or cnp.PyArray_IS_F_CONTIGUOUS(logits):
        return cnp.PyArray_EMPTY(
            cnp.PyArray_NDIM(logits), cnp.PyArray_DIMS(logits), number, not is_c
        )
    dtype = cnp.PyArray_DescrFromType(number)
    Py_INCREF(dtype)
    return PyArray_NewLikeArray(logits, cnp.NPY_KEEPORDER, dtype, False)


cdef inline bint _is_output(object out, logitloss_array *described, logitloss_type type) except -1:
    """Describe an array that results of this type can be written to; False for any other."""
    return (
        _describe(described, out)
        and described.type == type
        and not described.is_swapped
        and cnp.PyArray_ISWRITEABLE(<cnp.ndarray>out)
        and (
            cnp.PyArray_ISONESEGMENT(<cnp.ndarray>out) or not logitloss_overlaps_itself(described)
        )
    )


def overlaps_itself(cnp.ndarray array):
    """Whether two elements of an array lie in the same memory."""
    cdef logitloss_array described
    # The kernel takes no subclasses.
    array = np.asarray(array)
    _describe(&described, array)
    # Long double, which the kernel does not write, lies in memory like any other type.
    return logitloss_overlaps_itself(&described)


# Whether arrays share memory is an NP-hard question: past so much work, it is presumed.
cdef object _MAX_WORK = 1000


cdef bint _share_memory(
    object first,
    const logitloss_array *first_described,
    object second,
    const logitloss_array *second_described,
) except -1:
    return logitloss_may_overlap(first_described, second_described) and np.may_share_memory(
        first, second, max_work=_MAX_WORK
    )


cdef object _separate(
    object value,
    logitloss_array *described,
    tuple outs,
    const logitloss_array *given,
    bint *is_overwritten,
):
    """An input, or a copy if an output overlaps it in any other way than element on element."""
    cdef Py_ssize_t index
    is_overwritten[0] = False
    if described.data == NULL:
        return value
    for index in range(len(outs)):
        if logitloss_is_same(described, &given[index]):
            is_overwritten[0] = True
        elif _share_memory(value, described, outs[index], &given[index]):
            value = value.copy(order="K")
            _describe(described, value)
            is_overwritten[0] = False
            break
    return value


cdef object _number(double value, logitloss_type type, int number):
    cdef double memory
    logitloss_write(value, type, &memory)
    return PyArray_Scalar(&memory, cnp.PyArray_DescrFromType(number), NULL)


cdef struct call:
    # What is known of a call once its arguments have been looked at.
    logitloss_arrays arrays
    # Of the results, as the kernel and as NumPy call it.
    logitloss_type type
    int number
    reducing how


cdef bint _look_at(
    call *it,
    object labels,
    object logits,
    object pos_weight,
    object weight,
    object reduction,
    bint is_checked,
) except -1:
    """Say what was passed, or return False if something has to be converted or refused."""
    cdef int order
    if not _read_reduction(&it.how, reduction, is_checked):
        return False
    it.arrays.scale.data = NULL
    for order in range(MOST_RESULTS):
        it.arrays.results[order].data = NULL
    if not (
        _describe(&it.arrays.logits, logits)
        and _describe(&it.arrays.labels, labels)
        and _describe_coefficient(&it.arrays.pos_weight, &it.arrays.pos_weight_value, pos_weight)
        and _describe_coefficient(
            &it.arrays.weight, &it.arrays.weight_value, 1.0 if weight is None else weight
        )
    ):
        return False
    it.type = logitloss_result_type(it.arrays.labels.type, it.arrays.logits.type)
    if it.type == LOGITLOSS_TYPES:
        return False
    it.number = _number_of(it.type, type(logits) is BFloat16Bits)
    return True


cdef bint _run(call *it, int orders, const bint *overwritten, double *value) noexcept:
    """Compute, or return False if the shapes do not fit."""
    cdef logitloss_task task
    cdef void *run = <void *>(
        _run_float64 if it.type == LOGITLOSS_FLOAT64 else _run_float32
    )
    if not logitloss_plan(&task, &it.arrays, it.type, orders):
        return False
    if overwritten != NULL:
        task.logits.is_overwritten = overwritten[0]
        task.labels.is_overwritten = overwritten[1]
        task.pos_weight.is_overwritten = overwritten[2]
        task.weight.is_overwritten = overwritten[3]
        task.scale.is_overwritten = overwritten[4]
    if task.size < _nogil_size:
        value[0] = logitloss_compute(&task, it.how.reduction, it.how.divisor, _execute, run)
    else:
        with nogil:
            value[0] = logitloss_compute(&task, it.how.reduction, it.how.divisor, _execute, run)
    return True


_LOSS = (0,)


# Not a function of Cython's own kind: to enter one takes a tenth of such a call longer.
@cython.binding(False)
def loss(
    object labels,
    object logits,
    object pos_weight,
    object weight,
    object reduction,
    object out,
    object name,
):
    """`compute` of the loss alone, with no tuples around it, for the shortest calls.

    NumPy has no use for the name, but None is returned where it is not one.
    """
    cdef call it
    cdef double value
    cdef object result = None
    if not (name is None or isinstance(name, str)):
        return None
    if out is not None:
        result = compute(_LOSS, labels, logits, pos_weight, weight, reduction, (out,))
        return result if result is None else out
    if not _look_at(&it, labels, logits, pos_weight, weight, reduction, False):
        return None
    if it.how.reduction == LOGITLOSS_NONE:
        result = _allocate(<cnp.ndarray>logits, it.number)
        _describe(&it.arrays.results[0], result)
        it.arrays.results[0].type = it.type
    if not _run(&it, LOGITLOSS_LOSS, NULL, &value):
        return None
    return _finished(&it, 0, result, value)


cdef inline object _finished(const call *it, int order, object result, double value):
    """A result that was allocated here, as NumPy's own functions return it."""
    if order == 0 and it.how.reduction != LOGITLOSS_NONE:
        if it.how.is_total:
            return _number(value, LOGITLOSS_FLOAT64, cnp.NPY_DOUBLE)
        return _number(value, it.type, it.number)
    return result if it.arrays.logits.ndim else result[()]


cdef struct remote_shape:
    Py_ssize_t shape[LOGITLOSS_MAX_AXES]
    Py_ssize_t strides[LOGITLOSS_MAX_AXES]


cdef bint _describe_remote(
    logitloss_array *described, remote_shape *memory, double *number, object value
) except -1:
    """Describe memory, as `view` takes it, or a number."""
    cdef Py_ssize_t axis, unit
    described.data = NULL
    if value is None:
        return True
    if PyFloat_Check(value):
        number[0] = PyFloat_AS_DOUBLE(value)
        return True
    address, kind, shape, strides, unit, _ = <tuple>value
    if len(shape) > LOGITLOSS_MAX_AXES:
        return False
    # Of an array without elements nothing is read, and its address may be zero.
    described.data = <char *><size_t>(address or 1)
    described.type = <logitloss_type><int>kind
    described.is_swapped = False
    described.ndim = <int>len(shape)
    described.shape, described.strides = memory.shape, memory.strides
    for axis in range(described.ndim):
        memory.shape[axis] = shape[axis]
        memory.strides[axis] = <Py_ssize_t>strides[axis] * unit
    return True


def view(tuple memory):
    """Memory as an array of NumPy's, bfloat16 as `BFloat16Bits`; None if it has too many axes.

    Memory is given as ``(address, type, shape, strides, bytes of a stride of 1, owner)``, the type
    as `TYPES` has it. The array keeps the owner, and must not be read where it is on a GPU.
    """
    return _view(memory)


cdef object _view(tuple memory):
    cdef logitloss_array described
    cdef remote_shape sizes
    cdef cnp.ndarray array
    if not _describe_remote(&described, &sizes, NULL, memory):
        return None
    kind = BFloat16Bits if described.type == LOGITLOSS_BFLOAT16 else np.ndarray
    array = PyArray_New(
        <PyTypeObject *>kind,
        described.ndim,
        sizes.shape,
        _numbers[<int>described.type],
        sizes.strides,
        described.data,
        0,
        cnp.NPY_ARRAY_WRITEABLE,
        NULL,
    )
    cnp.set_array_base(array, memory[5])
    return array


cdef inline object _viewed(object value):
    return _view(<tuple>value) if type(value) is tuple else value


def compute(
    tuple orders,
    object labels,
    object logits,
    object pos_weight,
    object weight,
    object reduction,
    object outs,
    bint is_checked=False,
    bint are_multiplied=False,
    object scale=None,
):
    """Compute derivatives of the loss by the logits, of these orders, of NumPy arrays.

    Returns a tuple of results, or None for arguments that have to be converted or refused:
    then nothing has been written. In a call that has been checked arrays may be memory, as `view`
    takes it, which has to be converted if it has more than `MAX_AXES` axes, and a reduction may
    also be "total", for a sum of float64, or the number that the sum is divided by. Results are
    multiplied by the memory `scale`, losses before they are added up; its zeros mask as those of a
    weight do. Derivatives that are yet to be multiplied before they are rounded to half precision
    are returned as float32.
    """
    cdef call it
    cdef logitloss_array given[MOST_RESULTS]
    cdef bint overwritten[5]
    cdef bint is_number
    cdef double value
    cdef int order, number, wanted = 0
    cdef logitloss_type kind
    cdef Py_ssize_t index, other, count = len(orders)
    cdef list results
    if is_checked:
        labels, logits = _viewed(labels), _viewed(logits)
        pos_weight, weight = _viewed(pos_weight), _viewed(weight)
        if outs is not None:
            outs = tuple([_viewed(out) for out in outs])
    if not _look_at(&it, labels, logits, pos_weight, weight, reduction, is_checked):
        return None
    if scale is not None:
        scale = _viewed(scale)
        if not _describe(&it.arrays.scale, scale):
            return None
    if outs is not None and not (isinstance(outs, tuple) and len(<tuple>outs) == count):
        return None

    results = [None] * count if outs is None else list(outs)
    for index in range(count):
        order = orders[index]
        wanted |= 1 << order
        is_number = order == 0 and it.how.reduction != LOGITLOSS_NONE
        if outs is not None:
            if not _is_output(results[index], &given[index], it.type):
                return None
            if is_number and given[index].ndim:
                return None
        elif not is_number:
            kind = it.type
            if order and are_multiplied and kind < LOGITLOSS_FLOAT32:
                kind = LOGITLOSS_FLOAT32
            number = it.number if kind == it.type else _number_of(kind)
            results[index] = _allocate(<cnp.ndarray>logits, number)
            _describe(&given[index], results[index])
            given[index].type = kind
        if not is_number:
            it.arrays.results[order] = given[index]
    if outs is None:
        if not _run(&it, wanted, NULL, &value):
            return None
        for index in range(count):
            results[index] = _finished(&it, orders[index], results[index], value)
        return tuple(results)

    for index in range(count):
        for other in range(index):
            if _share_memory(results[other], &given[other], results[index], &given[index]):
                return None
    logits = _separate(logits, &it.arrays.logits, outs, given, &overwritten[0])
    labels = _separate(labels, &it.arrays.labels, outs, given, &overwritten[1])
    pos_weight = _separate(pos_weight, &it.arrays.pos_weight, outs, given, &overwritten[2])
    weight = _separate(weight, &it.arrays.weight, outs, given, &overwritten[3])
    scale = _separate(scale, &it.arrays.scale, outs, given, &overwritten[4])
    if not _run(&it, wanted, overwritten, &value):
        return None
    if orders[0] == 0 and it.how.reduction != LOGITLOSS_NONE:
        logitloss_write(value, it.type, cnp.PyArray_BYTES(<cnp.ndarray>results[0]))
    return outs


cdef enum:
    MOST_LAUNCHES = 2


@cython.auto_pickle(False)
cdef class Launches:
    """What a call takes on a GPU: one launch of cuda.cu or two, or none where it cannot.

    Arrays are given as memory, as `view` takes it. `inputs` are labels, logits, pos_weight, weight
    and what every derivative is multiplied by, the last two of which may be None; `results` has an
    array for each of the orders.
    """

    cdef logitloss_grid_launch launches[MOST_LAUNCHES]
    cdef void *parameters[MOST_LAUNCHES]
    cdef readonly int count
    # Bytes of memory that sums are kept in on the way. The first four count the blocks that are
    # done, and have to be zero before the last launch, unless there is one before it.
    cdef readonly Py_ssize_t scratch
    cdef readonly bint counts_blocks
    cdef size_t reduced
    # Whether there is nothing to compute.
    cdef readonly bint is_empty

    def __init__(
        self,
        int type,
        tuple inputs,
        object reduction,
        tuple results,
        tuple orders,
    ):
        cdef logitloss_arrays arrays
        cdef remote_shape memory[5 + MOST_RESULTS]
        cdef logitloss_task task
        cdef reducing how
        cdef int order, derivatives = 0, i
        labels, logits, pos_weight, weight, scale = inputs
        arrays.pos_weight_value = arrays.weight_value = 1
        for order in orders:
            derivatives |= 1 << order
        _read_reduction(&how, reduction, True)
        self.count = 0
        if not (
            _describe_remote(&arrays.labels, &memory[0], NULL, labels)
            and _describe_remote(&arrays.logits, &memory[1], NULL, logits)
            and _describe_remote(
                &arrays.pos_weight, &memory[2], &arrays.pos_weight_value, pos_weight
            )
            and _describe_remote(&arrays.weight, &memory[3], &arrays.weight_value, weight)
            and _describe_remote(&arrays.scale, &memory[4], NULL, scale)
        ):
            return
        for order in range(MOST_RESULTS):
            arrays.results[order].data = NULL
        for order, result in zip(orders, results, strict=True):
            _describe_remote(&arrays.results[order], &memory[5 + order], NULL, result)
            if order == 0 and how.reduction != LOGITLOSS_NONE:
                self.reduced = <size_t>arrays.results[0].data
                arrays.results[0].data = NULL
        if not logitloss_plan_remote(&task, &arrays, <logitloss_type>type, derivatives):
            return
        self.is_empty = not task.size and how.reduction == LOGITLOSS_NONE
        self.count = logitloss_plan_grid(
            self.launches,
            &task,
            how.reduction,
            how.divisor,
            LOGITLOSS_FLOAT64 if how.is_total else <logitloss_type>type,
        )
        self.scratch = logitloss_grid_scratch(self.launches, self.count)
        self.counts_blocks = self.count == 1 and self.launches[0].blocks > 1
        for i in range(self.count):
            self.parameters[i] = &self.launches[i].task
        self.place(0)

    cpdef place(self, size_t scratch):
        """Say where the sums are kept."""
        logitloss_place_grid(self.launches, self.count, scratch, self.reduced)

    def __getitem__(self, int index):
        """The constants to compile with, the blocks of threads, and where the parameters are."""
        cdef logitloss_grid_launch *launch = &self.launches[index]
        return (
            launch.constants[:LOGITLOSS_GRID_COUNT],
            launch.blocks,
            <size_t>&self.parameters[index],
        )


# Threads of a block, and the names of the constants, in their order.
GRID_THREADS = LOGITLOSS_GRID_THREADS
CONSTANTS = tuple(LOGITLOSS_GRID_NAMES.decode().split())


def xla_handler():
    """The kernel as a custom call of XLA, in a capsule; None where it cannot be one."""
    cdef void *handler = logitloss_xla_handler(_run_float32, _run_float64)
    return None if handler == NULL else PyCapsule_New(handler, NULL, NULL)
