#!/bin/bash
# sanitize.sh [DIRECTORY [PYTEST ARGUMENTS]]: build the extension under AddressSanitizer and
# UndefinedBehaviorSanitizer into DIRECTORY (default: in the cache) and run tests/contract on it.
# PYTHON and CC choose the interpreter and the compiler (gcc or clang). The tree is not touched.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
cache=${VGPUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vgpud}
out=${1:-$cache/sanitize/$(echo "$PWD" | sha256sum | cut -c1-16)}
[ $# -eq 0 ] || shift
mkdir -p "$out"
out=$(readlink -f "$out")

cc=${CC:-gcc}
python=${PYTHON:-python3}
# setup.sh also installs a compiler where there is none.
if ! command -v "$cc" >/dev/null ||
    ! "$python" -c 'import hypothesis, pytest, pytest_timeout, pytest_trio' 2>/dev/null; then
    python=$(tests/qemu/setup.sh)/bin/python
fi

flags=(-std=c11 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover
    -Wall -Wextra -Wshadow -Wmissing-prototypes -Werror)
# The sanitizer must be the first library of the process, which is Python's, not ours.
if "$cc" --version | grep -q clang; then
    flags+=(-shared-libasan)
    runtime=$("$cc" -print-file-name="libclang_rt.asan-$(uname -m).so")
else
    runtime=$(readlink -f "$("$cc" -print-file-name=libasan.so)")
fi
[ -e "$runtime" ] || { echo "sanitize: $cc has no AddressSanitizer library" >&2; exit 1; }

include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
native=$out/_native.so
"$cc" -shared -fPIC "${flags[@]}" -Wno-missing-field-initializers \
    -isystem "$include" -Inative native/*.c -o "$native"

# SIGBUS is ours to handle; leaks are the interpreter's and are looked for by the tests instead.
# Without its own allocator, every block of Python's is the sanitizer's.
export VGPUD_NATIVE=$native PYTHONMALLOC=malloc PYTHONDONTWRITEBYTECODE=1
export ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0:detect_stack_use_after_return=0:${ASAN_OPTIONS:-}
export HYPOTHESIS_STORAGE_DIRECTORY=$out/hypothesis
export UBSAN_OPTIONS=print_stacktrace=1:${UBSAN_OPTIONS:-}
# A report goes to file descriptor 2 of a dying process: pytest may not have captured that.
exec env LD_PRELOAD="$runtime" \
    "$python" -m pytest --capture=sys -p no:cacheprovider tests/contract "$@"
