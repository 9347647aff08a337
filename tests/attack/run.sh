#!/usr/bin/env bash
# Attacks the compiled code: sanitizers, valgrind and a fuzzer.  See docs/contributing.md.
#
#   tests/attack/run.sh [SECONDS] [STEP...]    how long each fuzzer runs (default 600)
#   tests/attack/run.sh short [STEP...]        all of it in little more than a minute
#
# Wants gcc; clang (any version, with its compiler-rt), valgrind and a Python with the
# packages of the extra `test` are used if they are there, and said to be missing if not.
set -euo pipefail
cd "$(dirname "$0")/../.."
sources=src/logitloss/_kernel python=${PYTHON:-python}
seconds=${1:-600} is_short=false seed=$RANDOM
shift || true
if [ "$seconds" = short ]; then
  # The same calls in every short run: what is new is for the long ones to find.
  is_short=true seconds=8 seed=1
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The interpreter by its full path, and commands such as meson beside it: both are used in another
# folder below.
if found=$(command -v "$python"); then
  PATH=$(cd "$(dirname "$found")" && pwd):$PATH
  python=${PATH%%:*}/${found##*/}
fi

skip() { printf 'skipped: %s\n' "$1"; }

# The kernels of every instruction set, and what is given beside them, with sanitizers.
build() { # compiler, output, flags
  local compiler=$1 output=$2 objects=() target bits flags
  shift 2
  local common=(-std=c11 -g -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all
    -ffp-contract=off -fno-math-errno -fno-trapping-math -DLOGITLOSS_X86 "-I$sources")
  for target in baseline avx2 avx512; do
    case $target in
      baseline) flags=() ;;
      avx2) flags=(-mavx2 -mfma -mf16c) ;;
      avx512) flags=(-mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -mf16c) ;;
    esac
    for bits in 32 64; do
      objects+=("$output.$target$bits.o")
      "$compiler" "${common[@]}" "${flags[@]}" "${@/%-fsanitize=fuzzer/-fsanitize=fuzzer-no-link}" \
        "-DLOGITLOSS_REAL=$bits" "-DLOGITLOSS_RUN=logitloss_run_float${bits}_$target" \
        -c "$sources/blocks.c" -o "${objects[-1]}"
    done
  done
  "$compiler" "${common[@]}" "$@" "${objects[@]}" "$sources/careful.c" "$sources/task.c" \
    tests/attack/fuzz_kernel.c -lm -o "$output"
}

# Random calls, gcc with AddressSanitizer and UndefinedBehaviorSanitizer.
random() {
  build gcc "$work/random" -fsanitize=address,undefined -DSTANDALONE
  "$work/random" "$seconds" "$seed"
}

# Coverage-guided calls, libFuzzer with the same sanitizers.
guided() {
  local clang
  clang=$(compgen -c clang | grep -E '^clang(-[0-9]+)?$' | sort -V | tail -1 || true)
  if [ -z "$clang" ]; then
    skip "no clang"
  elif ! echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return 0; }' |
    "$clang" -fsanitize=fuzzer,address -x c - -o "$work/probe" 2>/dev/null; then
    skip "$clang has no libFuzzer (package libclang-rt-dev)"
  else
    build "$clang" "$work/fuzzer" -fsanitize=address,undefined -fsanitize=fuzzer
    mkdir "$work/corpus"
    (cd "$work" && ./fuzzer -seed="$seed" -max_total_time="$seconds" -max_len=8192 -len_control=10 \
      -verbosity=0 -print_final_stats=1 corpus 2>&1) | grep -v '# Uses:'
  fi
}

has_python() {
  if ! "$python" -c 'import numpy, Cython, hypothesis, pytest' 2>/dev/null || ! command -v meson >/dev/null; then
    skip "needs meson, and $python with numpy, Cython, pytest and hypothesis"
    return 1
  fi
}

# A copy of the package in $work, with the extension built with these options of meson.
build_extension() {
  rm -rf "$work/src" "$work/tests" "$work/build"
  cp -r src tests pyproject.toml meson.build meson.options "$work/"
  rm -f "$work"/src/logitloss/_kernel/*.so
  (cd "$work" && meson setup build "$@" >build.log 2>&1 &&
    meson compile -C build >>build.log 2>&1) </dev/null || { tail -30 "$work/build.log"; exit 1; }
  cp "$work"/build/kernel.*.so "$work/src/logitloss/_kernel/"
}

# Random calls under valgrind; and the tests that are short, if there is time.
memcheck() {
  if ! command -v valgrind >/dev/null; then
    skip "no valgrind"
    return
  fi
  # It shows programs a processor without AVX-512, and computes long double as double, too
  # inexactly to compare with.
  build gcc "$work/plain" -DSTANDALONE -DWITHOUT_VALUES
  valgrind --quiet --error-exitcode=1 --leak-check=full "$work/plain" "$($is_short && echo 3 || echo 60)"
  if $is_short || ! has_python; then
    return
  fi
  build_extension -Ddebug=true
  # What the interpreter does by itself is not ours to judge: only what a call of the kernel leads to.
  (cd "$work" && PYTHONPATH=src PYTHONMALLOC=malloc valgrind --log-file=valgrind.log --num-callers=40 \
    "$python" -m pytest -m "" -q --no-header -p no:cacheprovider -k "not past_the_end" tests/test_{layouts,numpy,out}.py)
  if grep -qE 'kernel\.(pyx|cpython)|(blocks|careful|task)\.c' "$work/valgrind.log"; then
    cat "$work/valgrind.log"
    exit 1
  fi
}

# The extension in Python, with both sanitizers.
extension() {
  if ! has_python; then
    return
  fi
  build_extension -Db_sanitize=address,undefined -Db_lundef=false -Dbuildtype=plain -Doptimization=1 \
    -Dc_args=-fno-sanitize-recover=all
  # Python keeps what it allocates: leaks are for valgrind.  The tests left out start other
  # programs, whose libraries the sanitizers were not loaded into.
  local tests=(tests/test_layouts.py tests/test_numpy.py tests/test_out.py)
  $is_short || tests+=(tests/test_kernel.py tests/test_values.py tests/test_reductions.py tests/test_inputs.py
    tests/test_arguments.py tests/test_hostile.py tests/test_properties.py)
  (cd "$work" && env ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" \
    PYTHONPATH=src PYTHONMALLOC=malloc "$python" -m pytest -m "" -q --no-header -p no:cacheprovider \
    -k "(numpy or not (strict or torch or jax or dask or cupy)) and not bounds and not instruction_set and not past_the_end and not full_disk and not 32_bits and not no_memory" \
    -r fE "${tests[@]}")
}

if [ "$(uname -m)" != x86_64 ] || ! command -v gcc >/dev/null; then
  skip "the attacks are written for gcc on x86-64"
  exit 0
fi
[ $# -gt 0 ] || set -- random guided memcheck extension
for step; do
  printf '\n-- %s\n' "$step"
  "$step"
done
