#!/usr/bin/env bash
# The tests on a GPU and a table of times, on a machine that has one and need have no network.
#
#   tests/gpu/run.sh wheels              beforehand, with a network: what the machine may lack
#   tests/gpu/run.sh                     everything
#   tests/gpu/run.sh bits streams        these sections of: suite bits streams times
#
# A section that fails does not stop the others; the exit status tells. $PYTHON is the interpreter,
# for which the wheels have to be built, too. Without wheels the installed package is tested. Logs go
# to $RESULTS. A section takes $LIMIT seconds at most, 300 if nothing is said.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
wheels=$root/build/gpu/wheels
results=${RESULTS:-$root/build/gpu/results}
libraries=(torch-cuda cupy jax-cuda)
# The conftest.py of the root is for the documentation, and needs more than the tests.
pytest=("$python" -m pytest -q --tb=short --maxfail=20 --continue-on-collection-errors
  -p no:cacheprovider --confcutdir="$root/tests")

wheels() {
  rm -rf "$wheels"
  "$python" -m pip wheel --no-deps --wheel-dir "$wheels" "$root" array-api-compat
}

# The suite's own bodies, a process for each library.
suite() {
  local files library
  mapfile -t files < <(grep -lE 'backend|execution|path' "$root"/tests/test_*.py)
  for library in "${libraries[@]}"; do
    start "suite-$library" "${pytest[@]}" -k "$library" "${files[@]}"
  done
}

# Those of the CPU, for every dtype and layout.
bits() {
  local library
  for library in "${libraries[@]}"; do
    start "bits-$library" "${pytest[@]}" -k "$library" "$root/tests/gpu/test_bits.py"
  done
}

# By themselves, since they look at what the GPU is busy with.
streams() {
  finish
  start streams "${pytest[@]}" "$root/tests/gpu/test_streams.py"
  finish
}

times() {
  finish
  start times "$python" -m gpu.times
  finish
}

names=()
pids=()

start() {
  local name=$1
  shift
  names+=("$name")
  timeout "${LIMIT:-300}" "$@" >"$results/$name.log" 2>&1 &
  pids+=($!)
}

finish() {
  local status lines
  for index in "${!pids[@]}"; do
    wait "${pids[index]}"
    status=$?
    printf '\n== %s: ' "${names[index]}"
    if [ $status = 0 ]; then echo done; else
      echo "failed with $status"
      failed=1
    fi
    lines=30
    [ "${names[index]}" != times ] || lines=100
    tail -n $lines "$results/${names[index]}.log"
  done
  names=()
  pids=()
}

if [ "${1:-}" = wheels ]; then
  wheels
  exit
fi

mkdir -p "$results"
if compgen -G "$wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$wheels"/*.whl || exit
  export PYTHONPATH=$site
fi
export PYTHONPATH=$root/tests${PYTHONPATH:+:$PYTHONPATH}
# Processes side by side share the memory of the GPU.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
cd "$root/tests" || exit
failed=0
[ $# -gt 0 ] || set -- suite bits streams times
for section; do
  case $section in
    suite | bits | streams | times) "$section" ;;
    *)
      echo "no section $section: there are suite, bits, streams and times" >&2
      exit 2
      ;;
  esac
done
finish
exit $failed
