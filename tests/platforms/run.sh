#!/usr/bin/env bash
# Compiles the C kernel by every compiler that is found, runs it here, under qemu-user or under wine,
# and compares the bits of bits.c with those of gcc or cc on this machine: fused instruction sets with
# its fused ones, the others with the others.  What is not installed is named and skipped.
#
#   tests/platforms/run.sh [PLATFORM...]    all of them, or these
#
# On Debian: apt-get install clang lld qemu-user wine64 musl-tools mingw-w64 gcc-aarch64-linux-gnu
# gcc-arm-linux-gnueabihf gcc-s390x-linux-gnu; and pip install ziglang, which compiles for macOS.
set -euo pipefail
cd "$(dirname "$0")/../.."
sources=src/logitloss/_kernel
export LC_ALL=C

# Each function below sets what it takes to build and to run; see `try`.

gcc_here() { compiler=(gcc) sets=x86; }
clang_here() { compiler=(clang) sets=x86; }
musl() { compiler=(musl-gcc -static) sets=x86; }
aarch64() { compiler=(aarch64-linux-gnu-gcc -static) runner=(qemu-aarch64); }
armhf() { compiler=(arm-linux-gnueabihf-gcc -static) runner=(qemu-arm); }
# That one has no fused operations; this one has, for one element at a time.
armhf_fused() { compiler=(arm-linux-gnueabihf-gcc -static -mfpu=neon-vfpv4) runner=(qemu-arm); }
# Big-endian.
s390x() { compiler=(s390x-linux-gnu-gcc -static) runner=(qemu-s390x); }
# GCC does not align the stack of Windows for AVX.
mingw() { compiler=(x86_64-w64-mingw32-gcc) runner=("$(find_wine)"); }
# Clang as clang-cl, with declarations in place of Microsoft's headers, and linked by mingw.
clang_cl() { compiler=("$(find_clang)") linker=x86_64-w64-mingw32-gcc sets=x86 runner=("$(find_wine)"); }
zig_linux() { compiler=("$(find_zig)" cc -target x86_64-linux-musl) sets=x86; }
zig_windows_arm() { compiler=("$(find_zig)" cc -target aarch64-windows-gnu) runner=(none); }
zig_macos() { compiler=("$(find_zig)" cc -target aarch64-macos) runner=(none); }
zig_macos_intel() { compiler=("$(find_zig)" cc -target x86_64-macos) sets=x86 runner=(none); }

platforms=(gcc_here clang_here musl aarch64 armhf armhf_fused s390x mingw clang_cl
  zig_linux zig_windows_arm zig_macos zig_macos_intel)

# The first of these that can be run, or the last one, which is then named as missing.
first_of() {
  local command
  for command; do
    if type -P "$command"; then
      return
    fi
  done
  printf '%s\n' "$command"
}

find_wine() { first_of wine64 /usr/lib/wine/wine64 wine; }
find_clang() { first_of clang-cl /usr/lib/llvm-*/bin/clang-cl clang; }
find_zig() { first_of zig "$("${PYTHON:-python3}" -c 'import ziglang; print(ziglang.__path__[0] + "/zig")' 2>/dev/null)" zig; }

# As meson.build has them.
common=(-std=c11 -O3 -ffp-contract=off -fno-math-errno -fno-trapping-math)
gcc_only=(-fno-tree-loop-distribute-patterns -fexcess-precision=fast -fschedule-insns -fsched-pressure)
avx2=(-mavx2 -mfma -mf16c -mprfchw)
avx512=("${avx2[@]}" -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512)

build() { # folder
  local folder=$1 target bits objects=() arguments prefix='' options=() output=(-o) targets=(baseline)
  if [ "$sets" = x86 ]; then
    targets+=(avx2 avx512)
    options+=(-DLOGITLOSS_X86)
  fi
  if [ -n "$linker" ]; then
    # Checks of the stack are a part of the library that is not there.
    options+=(--driver-mode=cl --target=x86_64-pc-windows-msvc -imsvc tests/platforms/windows /Zl /GS-)
    prefix=/clang: output=(/Fo)
  fi
  options+=("${common[@]/#/$prefix}" "-I$sources")
  if [ -z "$linker" ] && "${compiler[@]}" --version | grep -qi gcc; then
    options+=("${gcc_only[@]}")
  fi
  compile() { # object without its ending, arguments
    objects+=("$folder/$1.o")
    if [ -n "$linker" ]; then
      "${compiler[@]}" "${options[@]}" /c "/Fo$folder/$1.o" "${@:2}"
    else
      "${compiler[@]}" "${options[@]}" -c -o "$folder/$1.o" "${@:2}"
    fi
  }
  for target in "${targets[@]}"; do
    arguments=()
    case $target in
      avx2) arguments=("${avx2[@]/#/$prefix}") ;;
      avx512) arguments=("${avx512[@]/#/$prefix}") ;;
    esac
    for bits in 32 64; do
      compile "$target$bits" "${arguments[@]}" "-DLOGITLOSS_REAL=$bits" \
        "-DLOGITLOSS_RUN=logitloss_run_float${bits}_$target" "$sources/blocks.c"
    done
  done
  compile task "$sources/task.c"
  compile careful "$sources/careful.c"
  compile bits tests/platforms/bits.c
  if [ -n "$linker" ]; then
    "$linker" -std=c11 -O3 -c -o "$folder/parallel.o" "$sources/parallel.c"
    objects+=("$folder/parallel.o")
    # What Microsoft's library calls it.
    "$linker" "${objects[@]}" -Wl,--defsym=__chkstk=___chkstk_ms -o "$folder/bits.exe"
  else
    compile parallel "$sources/parallel.c"
    "${compiler[@]}" "${objects[@]}" -lm -o "$folder/bits.exe"
  fi
}

# Builds for a platform, and leaves the results of each instruction set in its folder.
try() { # platform
  local compiler=() runner=() linker='' sets='' folder=$work/$1 line
  "$1"
  mkdir -p "$folder"
  local command
  for command in "${compiler[0]}" "${runner[@]:0:1}" $linker; do
    if [ "$command" != none ] && ! type -P "$command" >/dev/null; then
      echo "skipped: no ${command##*/}" >"$folder/result"
      return
    fi
  done
  # Another kind of processor than this one.
  if [ "$sets" = x86 ] && [ "$(uname -m)" != x86_64 ] && [ "${runner[*]}" != none ]; then
    echo "skipped: for x86-64 only" >"$folder/result"
    return
  fi
  if ! build "$folder" >"$folder/log" 2>&1 || ! [ -s "$folder/bits.exe" ]; then
    echo "does not build" >"$folder/result"
    return
  fi
  if [ "${runner[*]}" = none ]; then
    echo "builds; not run" >"$folder/result"
    return
  fi
  if ! "${runner[@]}" "$folder/bits.exe" list 2>>"$folder/log" | tr -d '\r' >"$folder/targets"; then
    echo "does not run" >"$folder/result"
    return
  fi
  while read -r target _; do
    "${runner[@]}" "$folder/bits.exe" "$target" "$folder/$target.bits" </dev/null >>"$folder/log" 2>&1 ||
      echo "$target does not run" >>"$folder/result"
  done <"$folder/targets"
}

if [ "${1:-}" = --try ]; then
  try "$2"
  exit
fi

work=$(mktemp -d)
export work WINEPREFIX=$work/wine WINEDEBUG=-all
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- "${platforms[@]}"
if [ "$(uname -s)" != Linux ]; then
  echo "skipped: written for Linux"
  exit
fi
try gcc_here
# A prefix of its own for wine, made before two of its processes want it at the same time.
if type -P "$(find_wine)" >/dev/null; then
  "$(find_wine)" wineboot -i >/dev/null 2>&1 || true
fi
printf '%s\n' "${@#gcc_here}" | grep . | xargs -P "$(nproc)" -I{} bash tests/platforms/run.sh --try {}

failed=0
for platform; do
  folder=$work/$platform
  if [ -s "$folder/result" ]; then
    sed "s/^/$platform: /" "$folder/result"
    if grep -q 'does not' "$folder/result"; then
      failed=1
      tail -n 20 "$folder/log"
    fi
  fi
  [ -s "$folder/targets" ] || continue
  while read -r target kind; do
    reference=$(grep " $kind\$" "$work/gcc_here/targets" | head -1 | cut -d' ' -f1)
    if [ -z "$reference" ]; then
      printf '%s: %s (%s): runs; nothing to compare with\n' "$platform" "$target" "$kind"
    elif [ -s "$folder/$target.bits" ]; then
      printf '%s: %s (%s): ' "$platform" "$target" "$kind"
      "$work/gcc_here/bits.exe" compare "$work/gcc_here/$reference.bits" "$folder/$target.bits" || failed=1
    fi
  done <"$folder/targets"
done
exit "$failed"
