"""The attack table: what has crashed, hung or leaked a virtio-gpu device model or a vhost-user
back-end, and what vgpud does with the same input.

The numbers are those of the peer analysis (its section 4): published flaws, bugs that were fixed,
and what was found by reading. A test shows a row by carrying `attack_` and its number in its name,
as in `test_attack_14_...`; tests that are named otherwise are listed as `also`. A row that cannot
apply to a back-end says why instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.conformance.rows import exists, tests_named

__all__ = ["ROWS", "Row", "exists", "names_by_number", "shown_by"]

LAST: Final = 87


@dataclass(frozen=True)
class Row:
    """`where` it was found, the `input`, and in few words what it does to `ours`."""

    number: int
    where: str
    input: str
    ours: str
    also: tuple[str, ...] = ()
    """Tests, as path in tests/ and name, that do not carry the number."""
    cannot: str = ""
    """Why there is nothing to test."""


_NUMBER: Final = re.compile(r"(?<=_)attack((?:_\d\d)+)(?=_)")


@cache
def names_by_number() -> dict[int, tuple[str, ...]]:
    """Every number that a test's name carries: its tests as pytest's node ids."""
    found: dict[int, list[str]] = {}
    for test in tests_named():
        for numbers in _NUMBER.findall(test.rpartition("::")[2]):
            for number in numbers.strip("_").split("_"):
                found.setdefault(int(number), []).append(test)
    return {number: tuple(tests) for number, tests in found.items()}


def shown_by(row: Row) -> tuple[str, ...]:
    """Its tests as pytest's node ids."""
    return names_by_number().get(row.number, ()) + tuple(f"tests/{name}" for name in row.also)


DEVICE: Final = "unit/device"
RENDERER: Final = "there is no renderer: 3D commands are refused by their number"

ROWS: Final = (
    # -- published flaws and bugs that were fixed
    Row(1, "QEMU CREATE_2D", "bad formats and sizes, for ever", "nothing is kept"),
    Row(2, "QEMU capset info", "an index beyond the last", "an error of 24 set bytes"),
    Row(3, "QEMU cursor", "UPDATE_CURSOR for ever", "one image a head"),
    Row(4, "QEMU GET_CAPSET", "a response with bytes nobody set", "an error of 24 set bytes"),
    Row(5, "QEMU UNREF", "a resource with its backing on, for ever", "pages go with it"),
    Row(
        6,
        "QEMU GET_CAPSET",
        "a capset of size 0",
        "no capset: an error",
        (f"{DEVICE}/test_gpu_resources.py::test_P02_a_2d_device_has_no_capset_to_give",),
    ),
    Row(
        7,
        "QEMU SET_SCANOUT",
        "a head between num_scanouts and 16",
        "INVALID_SCANOUT_ID",
        (
            f"{DEVICE}/test_gpu_scanout.py::test_S01_a_head_that_is_not_there_is_refused_first_of_all",
        ),
    ),
    Row(8, "QEMU virgl ATTACH", "attaching that fails half way", "nothing is kept"),
    Row(9, "QEMU ATTACH", "a second backing, for ever", "refused, the first stays"),
    Row(10, "QEMU virgl UNREF", "as 5", "pages go with it"),
    Row(11, "C back-end", "five leaks of resources and backings", "memory and fds stay flat"),
    Row(12, "C back-end capset info", "as 2", "an error of 24 set bytes"),
    Row(
        13,
        "C back-end GET_CAPSET",
        "as 6",
        "no capset: an error",
        (f"{DEVICE}/test_gpu_resources.py::test_P02_a_2d_device_has_no_capset_to_give",),
    ),
    Row(14, "QEMU mapping", "the last of 16384 entries is bad", "refused whole, nothing is held"),
    Row(
        15,
        "QEMU stride",
        "an image without width or height",
        "OUT_OF_MEMORY, no division",
        (f"{DEVICE}/test_gpu_resources.py::test_C11_an_empty_image_is_out_of_memory",),
    ),
    Row(
        16,
        "QEMU bottom half",
        "the response lies on the rings",
        "written as asked; the guest's own ring suffers",
        ("contract/test_native_queue_hostile.py::test_buffers_and_tables_on_the_rings_themselves",),
    ),
    Row(17, "QEMU CREATE_2D", "sides whose product wraps, then TRANSFER", "no such resource"),
    Row(
        18,
        "QEMU blobs",
        "a blob larger than its pages, shown",
        "refused when made, attached, shown",
        (
            f"{DEVICE}/test_gpu_blob.py::"
            "test_L02_L04_L05_L06_L08_L09_L12_a_wrong_blob_is_refused_and_nothing_changes",
            f"{DEVICE}/test_gpu_blob.py::test_A02_A15_a_wrong_backing_of_a_blob_is_refused",
            f"{DEVICE}/test_gpu_blob.py::test_B04_B05_B06_B07_B08_B10_B12_a_wrong_frame_buffer_is_refused",
        ),
    ),
    Row(19, "QEMU CREATE_BLOB", "failing at any stage, then used", "there is no such resource"),
    Row(
        20,
        "QEMU SET_SCANOUT_BLOB",
        "a stride shorter than a row",
        "INVALID_PARAMETER",
        (f"{DEVICE}/test_blob.py::test_B05_B06_B07_the_edges_of_32_bits",),
    ),
    Row(
        21,
        "QEMU SET_SCANOUT_BLOB",
        "a stride beyond an int",
        "INVALID_PARAMETER",
        (f"{DEVICE}/test_blob.py::test_B05_B06_B07_the_edges_of_32_bits",),
    ),
    Row(22, "QEMU, C SUBMIT_3D", "a size of 4 GiB", "UNSPEC, nothing is allocated"),
    Row(
        23,
        "QEMU pixman",
        "no memory for an image",
        "OUT_OF_MEMORY; each allocation made to fail",
        ("contract/test_native_faults.py::test_constructors_survive_failed_allocations",),
    ),
    Row(
        24,
        "QEMU udmabuf",
        "making a dma-buf fails half way",
        "no descriptor is left, the quota given back",
        (
            "unit/host/test_udmabuf.py::test_the_kernel_s_errors",
            "unit/host/test_udmabuf.py::test_nothing_is_left_of_10_000_exports",
        ),
    ),
    Row(25, "QEMU migration", "a stream with huge counts", "", cannot="no state is ever loaded"),
    Row(26, "QEMU SET_SCANOUT", "each command on each kind of resource", "answered by its rule"),
    Row(
        27,
        "QEMU UPDATE_CURSOR",
        "a blob that lacks its pages",
        "the old image stays",
        (
            f"{DEVICE}/test_gpu_cursor.py::test_K07_K08_K09_a_blob_is_a_pointer_by_its_first_16384_bytes",
        ),
    ),
    Row(
        28,
        "QEMU udmabuf",
        "it fails, or there is nothing to map",
        "pixels instead, said once",
        (
            "unit/host/test_udmabuf.py::test_what_is_known_before_is_said_in_words",
            f"{DEVICE}/test_gpu_blob.py::test_L11_a_blob_of_no_bytes_is_never_shown",
        ),
    ),
    Row(
        29,
        "QEMU's front-end",
        "a message shorter than it says",
        "all have the size that they tell",
        (
            "unit/tasks/test_gpu_socket.py::"
            "test_every_message_arrives_whole_and_in_order_with_its_own_descriptor",
        ),
    ),
    Row(30, "libvhost-user", "SET_INFLIGHT_FD of any shape", "not looked into, its fd closed"),
    Row(
        31,
        "libvhost-user",
        "ring sizes 0, 3, 1025, 2^31",
        "the ring does not start",
        ("unit/backend/test_ring.py::test_sizes_that_no_split_virtqueue_has",),
    ),
    Row(32, "libvhost-user", "a memory table that contradicts itself", "refused before use"),
    Row(33, "QEMU core", "packed rings, IN_ORDER", "neither is offered"),
    Row(
        34,
        "QEMU memory core",
        "ring addresses outside of RAM",
        "the ring does not start",
        (
            "contract/test_native_queue.py::test_an_area_lies_in_one_writable_region",
            "qtest/test_broken.py::test_ring_outside_of_memory",
        ),
    ),
    Row(
        35,
        "virtio core",
        "a stop with elements outstanding",
        "each is given back once",
        (
            "unit/tasks/test_servers.py::test_R08_a_stop_gives_every_element_back_in_order",
            "qtest/test_life.py::test_R08_trap_9_stop_in_flight",
        ),
    ),
    Row(36, "virtio-blk", "a used length beyond what was written", "it is what was written"),
    Row(
        37,
        "Linux udmabuf",
        "mmap beyond its size",
        "",
        cannot="the kernel's own (5.19 mends it): vgpud maps no udmabuf",
    ),
    Row(
        38,
        "Linux udmabuf",
        "sizes that overflow its limit",
        "a quota of our own before it",
        (
            "unit/host/test_dmabuf.py::test_a_quota_of_bytes",
            "unit/host/test_dmabuf.py::test_the_limits_keep_a_page_s_count_below_its_overflow",
        ),
    ),
    Row(
        39,
        "Linux vfio-pci",
        "a dma-buf that outlives its device",
        "",
        cannot="the kernel's own; exports of device memory are tested with what makes them",
    ),
    Row(
        40,
        "rust-vmm",
        "lengths and offsets of guest addresses",
        "64-bit sums, each checked",
        (
            "contract/test_native_queue_hostile.py::test_any_ring",
            "fuzz/test_fuzz.py::test_a_short_search_finds_nothing",
        ),
    ),
    Row(41, "virglrenderer", "crafted SUBMIT_3D", "", cannot=RENDERER),
    Row(
        42,
        "QEMU",
        "no /dev/udmabuf",
        "pixels instead, said once",
        (
            "lab/inner/test_blob_daemon.py::test_without_the_right_there_are_pixels_and_one_line",
            "unit/host/test_udmabuf.py::test_no_device",
        ),
    ),
    # -- found by reading, not fixed
    Row(
        43,
        "QEMU SET_SCANOUT",
        "a blob's id",
        "INVALID_RESOURCE_ID",
        (f"{DEVICE}/test_gpu_blob.py::test_S05_a_blob_is_no_image",),
    ),
    Row(
        44,
        "QEMU UPDATE_CURSOR",
        "a blob without backing",
        "the old image stays",
        (
            f"{DEVICE}/test_gpu_cursor.py::test_K07_K08_K09_a_blob_is_a_pointer_by_its_first_16384_bytes",
        ),
    ),
    Row(
        45,
        "QEMU FLUSH",
        "unfenced, while the display is busy",
        "executed once",
        ("unit/tasks/test_servers.py::test_E20_a_flush_that_waits_is_executed_once",),
    ),
    Row(
        46,
        "QEMU DETACH",
        "of a blob that is shown",
        "its heads go dark first",
        (f"{DEVICE}/test_gpu_blob.py::test_A21_detaching_a_blob_blanks_its_heads_and_no_other",),
    ),
    Row(47, "QEMU migration", "a blob of 4 GiB", "", cannot="no state is ever saved"),
    Row(
        48,
        "QEMU blobs",
        "dma-bufs and pinned pages without end",
        "quotas, then pixels",
        (
            "unit/host/test_dmabuf.py::test_a_quota_of_dmabufs",
            "lab/inner/test_blob_fallbacks.py::test_a_quota_bounds_dmabufs_not_blobs",
        ),
    ),
    Row(
        49,
        "C back-end",
        "a reboot",
        "the picture comes back",
        (
            "wire/test_session.py::test_the_picture_comes_back_after_a_reboot",
            "guest/test_screen.py::test_system_reset",
        ),
    ),
    Row(50, "C back-end", "FLUSH after the display has gone", "answered; no SIGPIPE"),
    Row(51, "C back-end", "the display's socket ends", "nobody spins on it"),
    Row(
        52,
        "C back-end",
        "one resource on two heads",
        "all sixteen, if the guest likes",
        (f"{DEVICE}/test_gpu_scanout.py::test_S10_one_resource_may_be_on_all_sixteen_heads",),
    ),
    Row(
        53,
        "C back-end",
        "GET_EDID of no head",
        "answered without QEMU's reply",
        ("wire/test_session.py::test_heads_that_qemu_lacks_are_refused",),
    ),
    Row(54, "C back-end", "questions for ever", "bounded, each element given back"),
    Row(
        55,
        "C back-end",
        "a malformed descriptor",
        "that ring rests until a reset",
        (
            "wire/test_faults.py::test_a_broken_ring_is_told_and_a_reset_mends_it",
            "qtest/test_broken.py::test_E11_E12_E13_broken",
        ),
    ),
    Row(
        56,
        "C back-end",
        "images of 4 GiB, many",
        "a quota of host memory",
        (
            f"{DEVICE}/test_gpu_resources.py::"
            "test_C10_the_sum_stays_below_the_quota_and_unref_gives_back",
        ),
    ),
    Row(
        57,
        "C back-end",
        "a DIMM with a backing is unplugged",
        "the backing is lost, not the daemon",
        ("qtest/test_memory.py::test_A22_R09_unplug",),
    ),
    Row(58, "C back-end", "shown before any TRANSFER", "zeros, nobody's old bytes"),
    Row(
        59,
        "C back-end",
        "wider than 32767",
        "exact damage",
        (f"{DEVICE}/test_gpu_flush.py::test_F13_a_resource_beyond_16_bits_has_exact_damage",),
    ),
    Row(60, "C back-end", "a request of number 0", "refused, the session goes on"),
    Row(61, "libvhost-user", "GET_INFLIGHT_FD whose sizes wrap", "nothing is in flight"),
    Row(
        62,
        "QEMU's front-end",
        "SCANOUT too large to allocate",
        "never said: blank",
        (
            f"{DEVICE}/test_gpu_scanout.py::"
            "test_V04_a_head_beyond_what_qemu_can_allocate_is_accepted_and_blank",
        ),
    ),
    Row(
        63,
        "QEMU's front-end",
        "UPDATE before SCANOUT",
        "never said",
        ("unit/tasks/test_heads.py::test_V05_a_head_is_told_its_size_before_its_pixels",),
    ),
    Row(
        64,
        "QEMU's front-end",
        "a size without a cap",
        "messages of at most a tile",
        (
            "unit/tasks/test_heads.py::test_V11_a_large_update_goes_in_tiles_and_is_shown_with_the_last",
            "unit/vgpuwire/test_framing.py::test_size_is_refused_with_the_header",
        ),
    ),
    Row(
        65,
        "QEMU's front-end",
        "the GPU socket ends before the main one",
        "never closed first",
        ("wire/test_review.py::test_no_gpu_socket_is_closed_before_the_main_one",),
    ),
    # -- other device models
    Row(
        66,
        "vhost-device-gpu",
        "blob commands",
        "served",
        (
            f"{DEVICE}/test_gpu_blob.py::"
            "test_L03_L07_L10_L11_L13_L14_L15_L17_L21_a_blob_of_guest_memory_is_made",
        ),
    ),
    Row(
        67,
        "vhost-device-gpu",
        "2^32-1 entries claimed",
        "UNSPEC, nothing is allocated",
        (f"{DEVICE}/test_gpu_backing.py::test_A05_a_huge_count_is_refused_without_an_allocation",),
    ),
    Row(68, "vhost-device-gpu", "SUBMIT_3D with huge counts", "UNSPEC, nothing is allocated"),
    Row(
        69,
        "vhost-device-gpu",
        "a head beyond 16",
        "INVALID_SCANOUT_ID",
        (
            f"{DEVICE}/test_gpu_scanout.py::test_S01_a_head_that_is_not_there_is_refused_first_of_all",
        ),
    ),
    Row(
        70,
        "vhost-device-gpu",
        "UNREF of what is shown",
        "its heads go dark",
        (f"{DEVICE}/test_gpu_resources.py::test_U04_all_its_scanouts_go_with_it_and_no_other",),
    ),
    Row(
        71,
        "vhost-device-gpu",
        "a fence of ring 0 with RING_IDX",
        "comes back",
        (f"{DEVICE}/test_gpu_envelope.py::test_E15_the_ring_comes_back_too_with_context_init",),
    ),
    Row(
        72,
        "vhost-device-gpu",
        "a fence id beyond 32 bits",
        "comes back whole",
        (f"{DEVICE}/test_gpu_envelope.py::test_E15_a_fence_comes_back_with_its_id_and_context",),
    ),
    Row(73, "vhost-device-gpu", "one bad chain", "ends its ring, the other goes on"),
    Row(
        74,
        "vhost-device-gpu",
        "a second GPU_SET_SOCKET",
        "the newest is used",
        (
            "wire/test_session.py::test_a_second_gpu_socket_without_a_restart_shows_the_picture",
            "qtest/test_life.py::test_trap_6_second_socket",
        ),
    ),
    Row(
        75,
        "vhost-device-gpu",
        "a modifier, and an old QEMU",
        "told only where negotiated",
        (
            "unit/tasks/test_gpu_socket.py::"
            "test_V01_V09_features_are_acked_and_modifiers_are_told_only_then",
        ),
    ),
    Row(76, "vhost-device-gpu", "a kick before the ring is enabled", "served once it is"),
    Row(77, "vhost-device-gpu", "a response of which a part is written", "whole or not at all"),
    Row(78, "crosvm", "more pointer commands than the ring has", "each comes back"),
    Row(
        79,
        "crosvm ATTACH",
        "2^32-1 entries claimed",
        "UNSPEC, nothing is allocated",
        (f"{DEVICE}/test_gpu_backing.py::test_A05_a_huge_count_is_refused_without_an_allocation",),
    ),
    Row(80, "libkrun", "commands that its device lacks", "an error, no panic"),
    Row(81, "libkrun", "a ring disabled twice", "disabled"),
    Row(
        82,
        "rutabaga",
        "an error after a part was done",
        "an error changes nothing",
        (f"{DEVICE}/test_gpu.py::test_random_bytes_never_raise_and_errors_change_nothing",),
    ),
    Row(
        83,
        "libkrun",
        "MAP_BLOB of foreign memory",
        "no host-visible memory: refused",
        (f"{DEVICE}/test_gpu_resources.py::test_M01_blobs_are_not_mapped_on_a_2d_device",),
    ),
    Row(
        84,
        "libkrun",
        "sizes that no timing can say",
        "an EDID of the nearest",
        (f"{DEVICE}/test_edid.py::test_a_size_that_no_head_has_is_cut",),
    ),
    Row(
        85,
        "acrn",
        "fewer entries than claimed",
        "refused, none is made up",
        (f"{DEVICE}/test_gpu_backing.py::test_A06_fewer_entries_than_claimed_are_refused",),
    ),
    Row(
        86,
        "acrn",
        "what a reboot left",
        "nothing is left",
        (
            f"{DEVICE}/test_gpu_reset.py::test_R01_after_a_reset_nothing_of_the_guest_is_left",
            "qtest/test_life.py::test_R05_system_reset",
        ),
    ),
    Row(
        87,
        "SPDK",
        "SET_MEM_TABLE at a hotplug, private memory",
        "all moves to the new table",
        (
            "qtest/test_memory.py::test_trap_19_hotplug",
            "wire/test_faults.py::test_memory_that_nobody_writes_is_pointed_out",
        ),
    ),
)
