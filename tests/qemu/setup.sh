#!/bin/bash
# setup.sh: make this machine able to build and test the project; prints the virtual environment's
# path on stdout, progress on stderr. Installs a Debian package only where its program is missing.
# The environment lies in the cache, one per checkout, and is renewed when what it is made of changes.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
cache=${VGPUD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vgpud}
say() { echo "==> $*" >&2; }
fail() { echo "setup: $*" >&2; exit 1; }

# Of an interpreter: its path (the program itself: not a pyenv shim, which chooses another one in
# another folder, nor the python of a virtual environment that happens to be active), the folder of
# its C headers, and the name of our extension built for it.
facts='import sys, sysconfig
assert sys.version_info >= (3, 11)
print(sys._base_executable, sysconfig.get_path("include"),
      "vgpud/_native" + sysconfig.get_config_var("EXT_SUFFIX"))'
look_at() { read -r python include extension < <("$1" -c "$facts" 2>/dev/null); }
python=
for candidate in ${PYTHON:-python3 /usr/bin/python3}; do
    if look_at "$candidate"; then break; fi
done
[ -n "$python" ] || [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python 3.11 or newer"

missing=()
command -v gcc >/dev/null || missing+=(gcc)
[ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
if [ -z "$python" ]; then
    python=/usr/bin/python3
    missing+=(python3 python3-venv python3-dev)
else
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    [ -e "$include/Python.h" ] || missing+=(python3-dev)
fi
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || fail "run as root once, or: apt-get install ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    mkdir -p "$cache"
    log=$cache/apt.log
    # A third party's list that fails here is no reason to stop: ours may be among the good ones.
    apt-get -q update >"$log" 2>&1 || say "apt-get update failed for some sources; going on"
    apt-get -q -o Acquire::Retries=5 -o Dpkg::Use-Pty=0 install -y --no-install-recommends \
        "${missing[@]}" >>"$log" 2>&1 || { tail -n 20 "$log" >&2; fail "apt-get failed: see above"; }
    look_at "$python" || fail "Python 3.11 or newer is needed: PYTHON=/path/to/python3 make ..."
    [ -e "$include/Python.h" ] || fail "$python has no Python.h: choose another by PYTHON=/path"
fi

venv=$cache/venv/$(echo "$PWD $python" | sha256sum | cut -c1-16)
state=$("$python" -V; cat pyproject.toml tests/qemu/setup.sh; sha256sum native/*.[ch])
state=$(sha256sum <<<"$state")
mkdir -p "$cache/venv" "$cache/locks"
exec 9>"$cache/locks/venv-$(basename "$venv")"
flock 9
# The extension module lies in the tree (an editable install), so a clean checkout lacks it.
if [ "$(cat "$venv/state" 2>/dev/null)" = "$state" ] && [ -e "$extension" ]; then
    echo "$venv"
    exit
fi
# Environments of checkouts that are gone.
for other in "$cache"/venv/*/checkout; do
    [ ! -e "$other" ] || [ -d "$(cat "$other")" ] || rm -rf "$(dirname "$other")"
done
say "installing the project and its tools into $venv"
rm -f "$venv/state"
# An interrupted run leaves one without pip.
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || { rm -rf "$venv"; "$python" -m venv "$venv" >&2; }
echo "$PWD" >"$venv/checkout"
export CFLAGS="${CFLAGS:-} -Werror"
"$venv/bin/pip" install --disable-pip-version-check --progress-bar off --retries 10 -e '.[dev,fuzz]' \
    >"$venv/pip.log" 2>&1 9>&- || { tail -n 40 "$venv/pip.log" >&2; fail "pip failed: see above"; }
echo "$state" >"$venv/state"
echo "$venv"
