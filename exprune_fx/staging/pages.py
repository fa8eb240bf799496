"""Large weights on huge pages: a kernel that skips rows of them would look up a new page at almost every row."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor, fx

from exprune_fx.graph.edits import tensor_at
from exprune_fx.staging.emitter import ROLE_KEY

_log = logging.getLogger(__name__)
_MADV_COLLAPSE = 25  # Linux 6.1 and newer
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")


def weights_of_fused(gm: fx.GraphModule) -> Iterator[Tensor]:
    """The parameters that the fused operators of a graph read."""
    sources = (
        source for node in gm.graph.nodes if node.meta.get(ROLE_KEY) == "fused" for source in node.all_input_nodes
    )
    for name in dict.fromkeys(str(source.target) for source in sources if source.op == "get_attr"):
        yield tensor_at(gm, name)


def back_by_huge_pages(tensors: Iterable[Tensor]) -> int:
    """Asks Linux to move large CPU tensors to huge pages, where they are; values and addresses stay as they are.

    It is advice: on other systems, on kernels older than 6.1, and where the administrator has switched huge pages off,
    nothing happens.

    Returns:
        How many bytes are on huge pages for it; 0 where the kernel would not.
    """
    size = _page_bytes()
    return sum(_collapse(tensor, size) for tensor in tensors if tensor.device.type == "cpu") if size else 0


def _collapse(tensor: Tensor, size: int) -> int:
    storage = tensor.untyped_storage()
    first = -(-storage.data_ptr() // size) * size
    last = (storage.data_ptr() + storage.nbytes()) // size * size
    if last <= first:
        return 0
    if _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _MADV_COLLAPSE):
        _log.debug("%d bytes stay on small pages: %s", last - first, os.strerror(ctypes.get_errno()))
        return 0
    return last - first


@functools.cache
def _page_bytes() -> int:
    """The size of a huge page; 0 where there are none, or none are wanted."""
    if sys.platform != "linux":
        return 0
    try:
        return 0 if "[never]" in _SWITCH.read_text() else int(_SIZE.read_text())
    except (OSError, ValueError) as error:
        _log.debug("no huge pages: %s", error)
        return 0


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
