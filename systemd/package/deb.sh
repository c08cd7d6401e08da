#!/bin/bash
# deb.sh: a Debian package of the tree as it is, for the release it is built on; prints its path.
# Needs python3-dev, python3-pip, python3-setuptools 77, gcc, lowdown.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."
python=${PYTHON:-/usr/bin/python3}
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' vgpud/__init__.py)
architecture=$(dpkg --print-architecture)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
DESTDIR=$work/root PYTHON=$python systemd/package/install.sh >&2

# The extension is made for one Python.
read -r this next <<<"$("$python" -c 'import sys; a, b = sys.version_info[:2]; print(f"{a}.{b} {a}.{b + 1}")')"
mkdir "$work/root/DEBIAN"
cat >"$work/root/DEBIAN/control" <<EOF
Package: vgpud
Version: $version
Architecture: $architecture
Maintainer: the vgpud developers <vgpud@localhost>
Section: admin
Priority: optional
Depends: python3 (>= $this), python3 (<< $next), python3-trio (>= 0.27),
 python3-construct (>= 2.10.68), python3-pyroute2, python3-seccomp
Recommends: qemu-system-x86
Suggests: libvirt-daemon-system
Installed-Size: $(du -sk "$work/root" | cut -f1)
Description: vhost-user-gpu back-end for QEMU
 The device model of virtio-gpu in a process of its own: 2D, blobs, pointers;
 pictures reach QEMU as dma-bufs or as pixels.
 .
 Contains ioctl-opt (LGPL-2.0-or-later), which Debian does not have.
EOF
cat >"$work/root/DEBIAN/postinst" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    if command -v systemd-sysusers >/dev/null; then systemd-sysusers vgpud.conf; fi
    if [ -d /run/systemd/system ]; then
        systemd-tmpfiles --create vgpud.conf
        systemctl daemon-reload
        udevadm control --reload || true
        udevadm trigger --name-match=udmabuf || true
    fi
fi
EOF
# Instances are the operator's: a removed package must not leave them running on files that are gone.
cat >"$work/root/DEBIAN/prerm" <<'EOF'
#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
    systemctl stop 'vgpud@*.socket' 'vgpud@*.service' || true
fi
EOF
cat >"$work/root/DEBIAN/postrm" <<'EOF'
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload || true; fi
EOF
chmod 755 "$work"/root/DEBIAN/{postinst,prerm,postrm}
install -D -m 644 LICENSE "$work/root/usr/share/doc/vgpud/copyright"
mkdir -p dist
package=$PWD/dist/vgpud_${version}_$architecture.deb
dpkg-deb --root-owner-group --build "$work/root" "$package" >&2
echo "$package"
