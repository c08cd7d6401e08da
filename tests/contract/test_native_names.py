"""The stub is the extension's only documentation, so it names what there is: both ways."""

from __future__ import annotations

import ast
from pathlib import Path

import vgpud
from vgpud import _native

STUB = ast.parse((Path(vgpud.__file__).parent / "_native.pyi").read_text())
# What every class has.
COMMON = set(dir(object)) | {"__module__", "__doc__", "__weakref__"}


def assigned(node: ast.stmt) -> str | None:
    match node:
        case ast.ClassDef() | ast.FunctionDef():
            return node.name
        case ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case _:
            return None


def names(body: list[ast.stmt]) -> set[str]:
    return {name for node in body if (name := assigned(node)) is not None}


def test_the_module_has_the_names_of_the_stub():
    assert names(STUB.body) == {name for name in dir(_native) if not name.startswith("_")}


def test_every_class_has_the_names_of_the_stub():
    for node in STUB.body:
        if isinstance(node, ast.ClassDef) and not node.name.endswith(("Error", "Fault")):
            real = set(vars(getattr(_native, node.name))) - COMMON - {"__new__"}
            assert names(node.body) - {"__init__"} == real, node.name


def test_final_means_final():
    for node in STUB.body:
        if isinstance(node, ast.ClassDef) and node.decorator_list:
            try:
                type("Sub", (getattr(_native, node.name),), {})
            except TypeError:
                continue
            raise AssertionError(f"{node.name} can be subclassed")


def test_max_request_is_a_blob_with_all_entries_of_qemu():
    assert _native.MAX_REQUEST == 56 + 16384 * 16


def test_docstrings_are_in_the_stub_only():
    for name in names(STUB.body):
        assert (
            not isinstance(getattr(_native, name), type)
            or not vars(getattr(_native, name))["__doc__"]
        )
