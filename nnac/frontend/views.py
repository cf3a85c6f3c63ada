"""Views: transposes and reshapes between ONNX's axis order and the device's."""

from __future__ import annotations

from math import prod

Shape = tuple[int, ...]
Step = tuple[str, tuple[int, ...]]
Steps = tuple[Step, ...]

AS_IS: Steps = ()


def apply(steps: Steps, shape: Shape) -> Shape:
    """Return the shape of a tensor of `shape` after `steps`."""
    for kind, arg in steps:
        shape = tuple(shape[i] for i in arg) if kind == "transpose" else arg
    return shape


def invert(steps: Steps, shape: Shape) -> Steps:
    """Return the steps that undo `steps` on a tensor of `shape`."""
    back: list[Step] = []
    for kind, arg in steps:
        if kind == "transpose":
            back.append(("transpose", tuple(arg.index(i) for i in range(len(arg)))))
        else:
            back.append(("reshape", shape))
        shape = apply(((kind, arg),), shape)
    return tuple(reversed(back))


def reshape(source: Shape, target: Shape) -> Steps:
    """Return the steps that give a tensor of shape `source` the shape `target`."""
    return () if source == target else (("reshape", target),)


def transpose(perm: Shape) -> Steps:
    """Return the steps that permute the axes."""
    return () if perm == tuple(range(len(perm))) else (("transpose", perm),)


def channels_last(shape: Shape) -> Steps:
    """Return the steps from ONNX's (N, C), (N, C, L) or (N, C, H, W) to (N, H, W, C); L lies along H."""
    if len(shape) == 2:
        return (("reshape", (shape[0], 1, 1, shape[1])),)
    perm: Step = ("transpose", (0, 2, 3, 1))
    return (perm,) if len(shape) == 4 else (("reshape", (*shape, 1)), perm)


def axis_last(rank: int, axis: int) -> Steps:
    """Return the steps that move `axis` behind the others (for channels: the same transpose as `channels_last`)."""
    return transpose((*(i for i in range(rank) if i != axis), axis))


def flattened(shape: Shape, axis: int) -> Steps:
    """Return the steps to the matrix that ONNX's Flatten makes at `axis`."""
    return reshape(shape, (prod(shape[:axis]), prod(shape[axis:])))
