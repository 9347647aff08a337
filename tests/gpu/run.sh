#!/usr/bin/env bash
# The tests on a GPU and a table of times, on a machine that has one and need have no network.
#
#   tests/gpu/run.sh wheels              beforehand, with a network: what the machine may lack
#   tests/gpu/run.sh                     everything, within nine minutes
#   tests/gpu/run.sh bits streams        these sections of: bits suite streams times
#
# A section that fails does not stop the others; the exit status tells. $PYTHON is the interpreter,
# for which the wheels have to be built, too. Without wheels the installed package is tested. Logs go
# to $RESULTS as they are written, failures and times to files of their own. No process goes on for
# longer than its section may take, nor after $LIMIT seconds in all.
set -uo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
wheels=$root/build/gpu/wheels
results=${RESULTS:-$root/build/gpu/results}
deadline=$((SECONDS + ${LIMIT:-540}))
# Processes at a time: a GPU has the memory for some ten.
jobs=$(($(nproc) < 10 ? $(nproc) : 10))
libraries=(torch-cuda cupy jax-cuda)
# The conftest.py of the root is for the documentation, and needs more than the tests.
pytest=("$python" -m pytest -q --tb=short --maxfail=20 --continue-on-collection-errors
  -p no:cacheprovider -p gpu.failures --confcutdir="$root/tests")

wheels() {
  rm -rf "$wheels"
  "$python" -m pip wheel --no-deps --wheel-dir "$wheels" "$root" array-api-compat
}

# Those of the CPU, for every dtype and layout.
bits() {
  local library
  for library in "${libraries[@]}"; do
    start 240 "bits-$library" "${pytest[@]}" -k "$library" "$root/tests/gpu/test_bits.py"
  done
}

# The suite's own bodies. A process for each library and file, those with most tests first: they wait
# for compilers most of the time.
suite() {
  local rows library file
  rows=$(FAILURES=$results/collecting "${pytest[@]}" --collect-only "$root"/tests/test_*.py 2>/dev/null)
  for library in "${libraries[@]}"; do
    for file in $(grep -- "[[-]$library[]-]" <<<"$rows" | cut -d: -f1 | sort | uniq -c | sort -rn \
      | awk '{print $2}'); do
      start 240 "suite-$library-$(basename "$file" .py)" "${pytest[@]}" -k "$library" "$root/$file"
    done
  done
}

# By themselves, since they look at what the GPU is busy with.
streams() {
  finish
  start 90 streams "${pytest[@]}" "$root/tests/gpu/test_streams.py"
  finish
}

times() {
  finish
  rm -f "$results/times.jsonl"
  start 200 times "$python" -m gpu.times --json "$results/times.jsonl"
  finish
}

names=()

# start SECONDS NAME COMMAND...
start() {
  local limit=$1 name=$2
  shift 2
  while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do wait -n; done
  [ "$limit" -le $((deadline - SECONDS)) ] || limit=$((deadline - SECONDS))
  names+=("$name")
  rm -f "$results/$name.log"
  echo "did not start in time" >"$results/$name.status"
  [ "$limit" -gt 0 ] || return
  {
    FAILURES=$results/$name.failures timeout -k 15 "$limit" "$@" >"$results/$name.log" 2>&1
    echo "status $?" >"$results/$name.status"
  } &
}

finish() {
  local name
  wait
  for name in "${names[@]}"; do
    printf '\n== %s: %s\n' "$name" "$(cat "$results/$name.status")"
    [ "$(cat "$results/$name.status")" = "status 0" ] || failed=1
    [ ! -f "$results/$name.log" ] || tail -n $([ "$name" = times ] && echo 100 || echo 30) "$results/$name.log"
  done
  names=()
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
export PYTHONPATH=$root/tests${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# Processes side by side share the memory of the GPU.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
cd "$root/tests" || exit
# Every test would skip, and that would look like a success.
"$python" - <<'END' || exit
import sys

import logitloss

said = logitloss.show_config("dicts")["cuda"]
if not said.startswith("kernel"):
    sys.exit(said)

from cuda.bindings import driver

(error,) = driver.cuInit(0)
if error:
    sys.exit(f"no GPU: {error.name}")
END
failed=0
# The most telling first, should there be no time for all.
[ $# -gt 0 ] || set -- bits suite streams times
for section; do
  case $section in
    bits | suite | streams | times) "$section" ;;
    *)
      echo "no section $section: there are bits, suite, streams and times" >&2
      exit 2
      ;;
  esac
done
finish
exit $failed
