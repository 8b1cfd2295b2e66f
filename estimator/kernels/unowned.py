"""Arrays that a kernel borrows from its caller, so that calls inside count no references (atomic, 10 ns each)."""

from __future__ import annotations

from typing import Any

from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic
def unowned(typingctx: Any, array: Any) -> Any:
    """The same array without its owner; valid while the caller holds the array, as the arguments of a kernel are."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, args[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), codegen
