"""vgpuwire.ioctls: numbers and layouts against the compiler and the kernel's headers."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vgpuwire import Ctrl, Format, Record, WireError, ioctls

HEADERS = (
    *("stddef", "stdio", "sys/ioctl", "linux/types"),
    *("linux/udmabuf", "linux/vfio", "linux/dma-buf", "linux/virtio_gpu"),
)

NUMBERS = {
    "UDMABUF_CREATE": 0x40187542,
    "UDMABUF_CREATE_LIST": 0x40087543,
    "VFIO_DEVICE_GET_INFO": 0x3B6B,
    "VFIO_DEVICE_GET_REGION_INFO": 0x3B6C,
    "VFIO_DEVICE_RESET": 0x3B6F,
    "VFIO_DEVICE_FEATURE": 0x3B75,
    "DMA_BUF_IOCTL_SYNC": 0x40086200,
}

CONSTANTS = [
    *["UDMABUF_FLAGS_CLOEXEC", "VFIO_DEVICE_FLAGS_RESET", "VFIO_DEVICE_FLAGS_PCI"],
    *[f"VFIO_REGION_INFO_FLAG_{name}" for name in ("READ", "WRITE", "MMAP", "CAPS")],
    "VFIO_REGION_INFO_CAP_SPARSE_MMAP",
    *[f"VFIO_DEVICE_FEATURE_{name}" for name in ("GET", "SET", "PROBE", "DMA_BUF")],
    *[f"DMA_BUF_SYNC_{name}" for name in ("READ", "WRITE", "START", "END")],
]

STRUCTS: dict[type[Record], str] = {
    ioctls.UdmabufCreate: "udmabuf_create",
    ioctls.UdmabufCreateItem: "udmabuf_create_item",
    ioctls.UdmabufCreateList: "udmabuf_create_list",
    ioctls.VfioRegionInfo: "vfio_region_info",
    ioctls.VfioInfoCapHeader: "vfio_info_cap_header",
    ioctls.VfioRegionSparseMmapArea: "vfio_region_sparse_mmap_area",
    ioctls.VfioDeviceFeature: "vfio_device_feature",
    ioctls.DmaBufSync: "dma_buf_sync",
}
NEWER: dict[type[Record], str] = {
    ioctls.VfioDeviceInfo: "vfio_device_info",  # older ones lack its padding
    ioctls.VfioRegionDmaRange: "vfio_region_dma_range",
    ioctls.VfioDeviceFeatureDmaBuf: "vfio_device_feature_dma_buf",
}
"""Structs of headers that have VFIO_DEVICE_FEATURE_DMA_BUF."""

ENUMS = {f"VIRTIO_GPU_{one.name}": int(one) for one in Ctrl} | {
    f"VIRTIO_GPU_FORMAT_{one.name}": int(one) for one in Format
}


def _printed(macro: str) -> str:
    return f'#ifdef {macro}\nprintf("{macro} %lu\\n", (unsigned long)({macro}));\n#endif\n'


def _offsets(record: type[Record], kernel: str) -> str:
    names = [sub.name for sub in record.layout.subcons if sub.name]
    return "".join(
        f'printf("{kernel}.{name} %lu\\n", (unsigned long)offsetof(struct {kernel}, {name}));\n'
        for name in names
    )


def _sizes(table: dict[type[Record], str]) -> str:
    return "".join(
        f'printf("{kernel} %lu\\n", (unsigned long)sizeof(struct {kernel}));\n'
        + _offsets(record, kernel)
        for record, kernel in table.items()
    )


def _expected(table: dict[type[Record], str]) -> dict[str, int]:
    values = {}
    for record, kernel in table.items():
        values[kernel] = record.SIZE
        at = 0
        for sub in record.layout.subcons:
            if sub.name:
                values[f"{kernel}.{sub.name}"] = at
            at += sub.sizeof()
    return values


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the installed kernel headers say, through the compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("no C compiler: apt-get install gcc")
    folder: Path = tmp_path_factory.mktemp("kernel")
    source = (
        "".join(f"#include <{name}.h>\n" for name in HEADERS)
        + "int main(void) {\n"
        + "".join(_printed(macro) for macro in (*NUMBERS, *CONSTANTS))
        + "".join(f'printf("{name} %lu\\n", (unsigned long){name});\n' for name in ENUMS)
        + _sizes(STRUCTS)
        + f"#ifdef VFIO_DEVICE_FEATURE_DMA_BUF\n{_sizes(NEWER)}#endif\nreturn 0; }}\n"
    )
    (folder / "kernel.c").write_text(source)
    subprocess.run([compiler, "-o", folder / "kernel", folder / "kernel.c"], check=True)
    output = subprocess.run([folder / "kernel"], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, output.splitlines())}


def test_numbers() -> None:
    assert {name: getattr(ioctls, name) for name in NUMBERS} == NUMBERS


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_the_compilers(name: str, kernel: dict[str, int]) -> None:
    assert kernel[name] == getattr(ioctls, name)


def test_constants_are_the_kernels(kernel: dict[str, int]) -> None:
    missing = set(CONSTANTS) - set(kernel)
    assert missing <= {"VFIO_DEVICE_FEATURE_DMA_BUF"}, "only older headers may lack it"
    for name in set(CONSTANTS) - missing:
        assert kernel[name] == getattr(ioctls, name), name
    assert ioctls.VFIO_DEVICE_FEATURE_DMA_BUF == 11


def test_structs_are_the_kernels(kernel: dict[str, int]) -> None:
    expected = _expected(STRUCTS)
    if "VFIO_DEVICE_FEATURE_DMA_BUF" in kernel:
        expected |= _expected(NEWER)
    assert {name: kernel[name] for name in expected} == expected


def test_the_guests_numbers_are_the_kernels(kernel: dict[str, int]) -> None:
    assert {name: kernel[name] for name in ENUMS} == ENUMS


def test_udmabuf_list() -> None:
    items = [ioctls.UdmabufCreateItem(3, 0x1000, 0x2000), ioctls.UdmabufCreateItem(4, 0, 1 << 40)]
    assert ioctls.udmabuf_create_list(items) == (
        struct.pack("<II", 1, 2)
        + struct.pack("<I4xQQ", 3, 0x1000, 0x2000)
        + struct.pack("<I4xQQ", 4, 0, 1 << 40)
    )
    assert ioctls.udmabuf_create_list([]) == struct.pack("<II", 1, 0)
    with pytest.raises(WireError, match=r"UdmabufCreateItem\.memfd: -1"):
        ioctls.udmabuf_create_list([ioctls.UdmabufCreateItem(-1, 0, 0x1000)])


def test_vfio_dma_buf_export() -> None:
    flags = os.O_RDONLY | os.O_CLOEXEC
    ranges = [ioctls.VfioRegionDmaRange(0x1000, 0x2000), ioctls.VfioRegionDmaRange(0, 0x1000)]
    data = ioctls.vfio_get_dma_buf(2, flags, ranges)
    assert data == (
        struct.pack("<II", 8 + 16 + 32, 11 | 1 << 16)
        + struct.pack("<IIII", 2, flags, 0, 2)
        + struct.pack("<QQQQ", 0x1000, 0x2000, 0, 0x1000)
    )


def test_vfio_dma_buf_probe() -> None:
    assert ioctls.vfio_probe_dma_buf() == struct.pack("<II", 8, 11 | 1 << 16 | 1 << 18)
