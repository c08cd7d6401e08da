"""Fetch all that the tests run, with progress: python3 -m tests.qemu.fetch"""

import sys

from tests.qemu.binaries import qemu
from tests.qemu.cache import CacheError, say
from tests.qemu.roots import ROOTS, root
from tests.support.guest_image import guest_image


def main() -> int:
    try:
        found, image = qemu(), guest_image()
        for name in ROOTS:
            root(name)
    except CacheError as error:
        print(f"tests.qemu.fetch: {error}", file=sys.stderr)
        return 1
    say(f"QEMU {found.version} ({found.name}), guest kernel {image.kernel}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
