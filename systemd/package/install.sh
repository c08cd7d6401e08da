#!/bin/bash
# install.sh: put everything in its place: `make install [DESTDIR=] [PREFIX=/usr] [PYTHON=python3]`.
# The programs get a folder of their own, which no other Python program sees. VENDOR names what is
# put there beside them; by default what Debian's stable release lacks. PIP_OPTIONS is for pip.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
destdir=${DESTDIR:-} prefix=${PREFIX:-/usr} python=${PYTHON:-/usr/bin/python3}
read -r -a options <<<"${PIP_OPTIONS:-}"
read -r -a vendor <<<"${VENDOR-$(systemd/package/vendored.sh)}"
libdir=$prefix/lib/vgpud bindir=$prefix/bin
command -v lowdown >/dev/null || { echo "install: lowdown is needed for the manual pages" >&2; exit 1; }

rm -rf "$destdir$libdir" build
for what in . "${vendor[@]}"; do
    "$python" -m pip --disable-pip-version-check install --quiet --no-deps --no-compile \
        --root-user-action=ignore "${options[@]}" --target "$destdir$libdir" "$what"
done
rm -rf "$destdir$libdir/bin" build vgpud.egg-info
"$python" -m compileall -q -s "$destdir" -p / "$destdir$libdir"

fill() { # FILE TARGET [MODE]
    install -D -m "${3:-644}" /dev/null "$destdir$2"
    sed "s,@BINDIR@,$bindir,; s,@LIBDIR@,$libdir,; s,@MODULE@,${module:-},; 1s,^#!/usr/bin/python3,#!$python," \
        "$1" >"$destdir$2"
}
module=cli fill systemd/package/launcher "$bindir/vgpud" 755
module=ctl fill systemd/package/launcher "$bindir/vgpuctl" 755
fill systemd/package/40-vgpud.json "$prefix/share/qemu/vhost-user/40-vgpud.json"
fill systemd/vgpud@.service "$prefix/lib/systemd/system/vgpud@.service"
fill systemd/vgpud@.socket "$prefix/lib/systemd/system/vgpud@.socket"
fill systemd/vgpud.sysusers "$prefix/lib/sysusers.d/vgpud.conf"
fill systemd/vgpud.tmpfiles "$prefix/lib/tmpfiles.d/vgpud.conf"
fill systemd/70-vgpud.rules "$prefix/lib/udev/rules.d/70-vgpud.rules"
fill systemd/vgpud-udmabuf.conf "$prefix/lib/modprobe.d/vgpud-udmabuf.conf"
for page in docs/man/*.md; do
    name=$(basename "$page" .md)
    target=$destdir$prefix/share/man/man${name##*.}/$name.gz
    mkdir -p "$(dirname "$target")"
    systemd/package/manpage.sh "$page" | gzip -9n >"$target"
done
for page in README.md docs/*.md; do
    install -D -m 644 "$page" "$destdir$prefix/share/doc/vgpud/$(basename "$page")"
done
