"""Rows of recurrent layers: LSTM, GRU, RNN, per direction a dense layer over all steps and the loop behind it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nnac.frontend import views
from nnac.frontend.builder import Builder
from nnac.frontend.use import Refused, Row, Rule, Use, real
from nnac.ops import Concat, Dense, Gru, Lstm, Recurrent, Rnn, Slice
from nnac.types import Array

X, W, R, B, LENGTHS, H0, C0, P = range(8)
"""Input positions; C0 and P are of LSTM only."""
Y, LAST, INNER = range(3)
"""Output positions; INNER is of LSTM only."""
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
ALPHA = {"Affine": 1.0, "LeakyRelu": 0.01, "HardSigmoid": 0.2, "Elu": 1.0}
"""Defaults of the functions' parameters (ONNX, "RNN")."""
BETA = {"HardSigmoid": 0.5, "Affine": 0.0}
NO_DEFAULT = ("Affine",)
"""Functions whose parameters must be given: the default is not one in all engines."""
KINDS = {
    "sigmoid": "sigmoid",
    "tanh": "tanh",
    "relu": "relu",
    "softsign": "softsign",
    "hardsigmoid": "hard_sigmoid",
    "affine": "affine",
    "leakyrelu": "leaky_relu",
    "elu": "elu",
    "softplus": "softplus",
}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One direction of a recurrent node.

    Attributes:
        index: of the direction.
        reverse: time runs backwards.
        functions: with their parameters behind the name.
    """

    use: Use
    index: int
    reverse: bool
    functions: tuple[str, ...]

    @property
    def sides(self) -> tuple[int, int, int]:
        """Time, batch, hidden."""
        time, batch, _ = self.use.shape(X)
        return time, batch, self.use.shape(R)[2]

    def constant(self, index: int) -> Array:
        """Return this direction's part of a constant input, float64."""
        return np.asarray(real(self.use.array(index))[self.index])

    def biases(self) -> tuple[Array, Array]:
        """Return the biases of input and recurrent weights."""
        rows = self.use.shape(W)[1]
        both = self.constant(B) if self.use.given(B) else np.zeros(2 * rows)
        return both[:rows], both[rows:]

    @property
    def stem(self) -> str:
        return self.use.name if self.use.shape(W)[0] == 1 else f"{self.use.name}.{self.index}"


def lstm(b: Builder, use: Use) -> None:
    """Import LSTM."""

    def build(layer: _Layer) -> tuple[Recurrent, Array, Array]:
        (f, g, h), (own, recurrent) = layer.functions, layer.biases()
        peepholes = tuple(layer.constant(P)) if use.given(P) else ()
        coupled = bool(use.get("input_forget", 0))
        op = Lstm(layer.reverse, _clip(use), (f, g, h), coupled, tuple(map(float, peepholes)))
        return op, own + recurrent, np.zeros_like(own)

    _import(b, use, ("Sigmoid", "Tanh", "Tanh"), (H0, C0), build)


def gru(b: Builder, use: Use) -> None:
    """Import GRU."""

    def build(layer: _Layer) -> tuple[Recurrent, Array, Array]:
        (f, g), (own, recurrent) = layer.functions, layer.biases()
        before = not use.get("linear_before_reset", 0)
        inner = np.zeros_like(recurrent)
        if not before:  # the reset gate scales this bias too
            inner[-len(inner) // 3 :] = recurrent[-len(inner) // 3 :]
        return Gru(layer.reverse, _clip(use), (f, g), before), own + recurrent - inner, inner

    _import(b, use, ("Sigmoid", "Tanh"), (H0,), build)


def rnn(b: Builder, use: Use) -> None:
    """Import RNN."""

    def build(layer: _Layer) -> tuple[Recurrent, Array, Array]:
        own, recurrent = layer.biases()
        return Rnn(layer.reverse, _clip(use), layer.functions[0]), own + recurrent, np.zeros_like(own)

    _import(b, use, ("Tanh",), (H0,), build)


def _clip(use: Use) -> float:
    clip = float(use.get("clip", 0.0))
    if not np.isfinite(clip) or clip < 0:
        raise Refused("clip is a finite positive number")
    return clip


def _functions(use: Use, defaults: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """Return the functions of every direction, with their parameters behind the names."""
    names = [str(n) for n in use.get("activations", list(defaults) * count)]
    if len(names) != len(defaults) * count:
        raise Refused(f"there are {len(defaults)} activations per direction")
    alphas, betas = list(use.get("activation_alpha", ())), list(use.get("activation_beta", ()))
    found = []
    for name in names:
        kind = KINDS.get(name.lower())
        if kind is None:
            raise Refused(f"the activations are among {', '.join(sorted(KINDS.values()))}")
        canonical = next((k for k in ALPHA if k.lower() == name.lower()), "")
        if canonical in NO_DEFAULT and not (alphas and betas):
            raise Refused(f"{canonical} comes with its activation_alpha and activation_beta")
        params = [alphas.pop(0) if alphas else ALPHA[canonical]] if canonical else []
        params += [betas.pop(0) if betas else BETA[canonical]] if canonical in BETA else []
        found.append(" ".join([kind, *(repr(float(p)) for p in params)]))
    size = len(defaults)
    return [tuple(found[i * size : (i + 1) * size]) for i in range(count)]


def _import(
    b: Builder,
    use: Use,
    defaults: Sequence[str],
    states: Sequence[int],
    build: Callable[[_Layer], tuple[Recurrent, Array, Array]],
) -> None:
    """Add all directions and put their results together as ONNX's outputs."""
    directions = DIRECTIONS[use.get("direction", "forward")]
    functions = _functions(use, defaults, len(directions))
    made = [_layer(b, _Layer(use, i, r, functions[i]), states, build) for i, r in enumerate(directions)]
    for output, axis in ((Y, 1), (LAST, 0), (INNER, 0)):
        if output < len(use.outputs) and use.outputs[output]:
            _gather(b, use, output, [parts[output] for parts in made], axis)


def _layer(
    b: Builder, layer: _Layer, states: Sequence[int], build: Callable[[_Layer], tuple[Recurrent, Array, Array]]
) -> tuple[str, str, str]:
    """Add one direction; return its hidden values (T, B, H), the last of them and the last inner state (B, H)."""
    use, (time, batch, hidden) = layer.use, layer.sides
    op, bias, inner_bias = build(layer)
    dense = b.constant(f"{layer.stem}.W", layer.constant(W)), b.constant(f"{layer.stem}.bias", bias)
    gates = b.emit(
        use, Dense(), [b.value(use.inputs[X]), *dense], f"{layer.stem}.gates", None, node=f"{layer.stem} (input gates)"
    )
    inputs = [gates, *(_state(b, layer, index) for index in states)]
    inputs += [b.constant(f"{layer.stem}.R", layer.constant(R)), b.constant(f"{layer.stem}.inner", inner_bias)]
    y, *more = b.emit_all(op, inputs, (f"{layer.stem}.hidden", f"{layer.stem}.state"), layer.stem)
    last = 0 if layer.reverse else time - 1
    if isinstance(op, Gru):
        return y, more[0], more[0]
    ending = y
    if time > 1:
        cut = Slice((last, 0, 0), (1, 1, 1), (1, batch, hidden))
        ending = b.emit(use, cut, [y], f"{layer.stem}.last", None)
    return y, b.view(ending, views.reshape((1, batch, hidden), (batch, hidden))), more[0] if more else ending


def _state(b: Builder, layer: _Layer, index: int) -> str:
    """Return the initial state (B, H) of one direction: a value, or zeros."""
    use, (_, batch, hidden) = layer.use, layer.sides
    if not use.given(index):
        return b.constant(f"{use.name}.zeros", np.zeros((batch, hidden)))
    if (array := use.constant(index)) is not None:
        return b.constant(f"{layer.stem}.initial{index}", real(array)[layer.index])
    name, one = b.value(use.inputs[index]), (1, batch, hidden)
    if use.shape(W)[0] > 1:
        name = b.emit(use, Slice((layer.index, 0, 0), (1, 1, 1), one), [name], f"{layer.stem}.initial", None)
    return b.view(name, views.reshape(one, (batch, hidden)))


def _gather(b: Builder, use: Use, output: int, parts: Sequence[str], axis: int) -> None:
    """Add an ONNX output made of one part per direction: a new axis, along which they are put together."""
    out = use.out(output)
    single = ("reshape", tuple(1 if i == axis else side for i, side in enumerate(out)))
    if len(parts) == 1:
        return b.deliver(parts[0], use, output, (single,))
    b.put(use, Concat(axis), [b.view(part, (single,)) for part in parts], output=output)


def _weights(use: Use) -> bool:
    return all(use.constant(i) is not None for i in (W, R)) and use.fixed(B) and use.fixed(P)


def _lengths(use: Use) -> bool:
    lengths, steps = use.constant(LENGTHS), use.shape(X)[0]
    return not use.given(LENGTHS) or (lengths is not None and bool((lengths == steps).all()))


_RULES = (
    Rule(lambda u: len(u.shape(X)) == 3, "the input has rank 3"),
    Rule(_weights, "W, R, B and P are constants"),
    Rule(_lengths, "sequence_lens is left out, or every sequence has the full length"),
    Rule(lambda u: u.get("direction", "forward") in DIRECTIONS, f"the direction is one of {', '.join(DIRECTIONS)}"),
    Rule(
        lambda u: u.get("hidden_size", u.shape(R)[2]) == u.shape(R)[2], "hidden_size is that of the recurrent weights"
    ),
    Rule(lambda u: u.get("layout", 0) == 0, "the layout is 0 or 1"),
)
_ATTRIBUTES = ("activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size", "layout")

ROWS = {
    "LSTM": Row(lstm, (Lstm, Dense), (*_ATTRIBUTES, "input_forget"), _RULES, Lstm.constraints[-2:]),
    "GRU": Row(gru, (Gru, Dense), (*_ATTRIBUTES, "linear_before_reset"), _RULES, Gru.constraints[-1:]),
    "RNN": Row(rnn, (Rnn, Dense), _ATTRIBUTES, _RULES),
}
