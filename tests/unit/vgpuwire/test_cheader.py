"""vgpuwire.cheader: the committed header is current, complete, and true to the kernel's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.vgpuwire.values import RECORDS
from vgpuwire import cheader, ioctls, virtio_gpu, virtio_ring

NATIVE = Path(__file__).parents[3] / "native"
CHECK = [
    *["-std=c11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror"],
    str(NATIVE / "layout_check.c"),
]


def test_committed_header_is_current() -> None:
    committed = (NATIVE / "layout_gen.h").read_text()
    assert committed == cheader.header(), (
        "run: PYTHONPATH=protocol python -m vgpuwire.cheader > native/layout_gen.h"
    )


def test_every_ring_record_is_in_it() -> None:
    modules = {virtio_gpu.__name__, virtio_ring.__name__}
    ours = {record for record in RECORDS if record.__module__ in modules}
    ours |= {ioctls.UdmabufCreateItem, ioctls.UdmabufCreateList, ioctls.VfioRegionInfo}
    ours |= {ioctls.VfioDeviceFeature, ioctls.VfioDeviceFeatureDmaBuf, ioctls.VfioRegionDmaRange}
    assert ours == set(cheader.KERNEL_NAMES) | set(cheader.PREFIXES)


@pytest.mark.parametrize(
    "line",
    [
        "#define VGPU_VRING_DESC_SIZE 16u",
        "#define VGPU_VRING_DESC_NEXT_OFFSET 14u",
        "#define VGPU_VIRTIO_GPU_TRANSFER_TO_HOST_2D_RESOURCE_ID_OFFSET 48u",
        "#define VGPU_VIRTIO_GPU_RESP_EDID_SIZE 1056u",
        "#define VGPU_VIRTIO_GPU_RESP_EDID_SIZE_OFFSET 24u",
        "#define VGPU_VIRTIO_GPU_RESP_EDID_EDID_OFFSET 32u",
        "#define VGPU_UDMABUF_CREATE_ITEM_SIZE 24u",
        "#define VGPU_UDMABUF_CREATE_ITEM_OFFSET_OFFSET 8u",
        "#define VGPU_UDMABUF_CREATE_LIST_SIZE 8u",
        "#define VGPU_IOCTL_UDMABUF_CREATE_LIST 0x40087543u",
        "#define VGPU_IOCTL_VFIO_DEVICE_GET_REGION_INFO 0x3b6cu",
        "#define VGPU_IOCTL_VFIO_DEVICE_FEATURE 0x3b75u",
        "#define VGPU_VFIO_DEVICE_FEATURE_DMA_BUF 11u",
        "#define VGPU_VFIO_REGION_DMA_RANGE_SIZE 16u",
    ],
)
def test_constants(line: str) -> None:
    assert line in [" ".join(one.split()) for one in cheader.header().splitlines()]


def test_padding_has_no_constant() -> None:
    assert "PADDING" not in cheader.header()


def compiler() -> str:
    found = shutil.which("cc")
    if found is None:
        pytest.fail("no C compiler: apt-get install gcc")
    return found


def test_kernel_headers_agree() -> None:
    subprocess.run([compiler(), f"-I{NATIVE}", *CHECK], check=True)


def test_a_wrong_offset_fails_the_build_by_name(tmp_path: Path) -> None:
    text = (NATIVE / "layout_gen.h").read_text()
    wrong = [
        one.replace("4u", "8u") if one.startswith("#define VGPU_VIRTIO_GPU_RECT_Y_OFFSET") else one
        for one in text.splitlines()
    ]
    (tmp_path / "layout_gen.h").write_text("\n".join(wrong) + "\n")
    (tmp_path / "layout_check.c").write_text((NATIVE / "layout_check.c").read_text())
    command = [compiler(), *CHECK[:-1], str(tmp_path / "layout_check.c")]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode != 0
    assert "virtio_gpu_rect.y" in result.stderr
