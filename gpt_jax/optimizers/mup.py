"""Maximal update parametrization: factors that make the best learning rate the same at every width.

Where each number moves by about lr whatever its gradient is, a matrix moves its outputs by lr times the
number of its inputs, so its factor is 1 / growth. Momentum alone follows gradients, and those of tables
and vectors shrink with the width. Muon's step, of spectral norm ~ sqrt(width), lies between.

Sources: Yang et al. 2022, table 8 and appendix B.3; for Muon the spectral condition of Yang, Simon &
Bernstein 2023, equation 1.
"""

ADAM_POWERS = {'input': 0, 'hidden': -1, 'output': -1}  # factor = growth ** power
MUON_POWERS = ADAM_POWERS | {'hidden': -0.5}
SGD_POWERS = {'input': 1, 'hidden': 0, 'output': -1}


def inner_axes(axes):
  """Letters of one layer's, one expert's part of a parameter: 'LEDF' -> 'DF'."""
  return axes.lstrip('LE')


def is_matrix(axes):
  """Whether these letters are of a parameter that D or an adapter's r is multiplied with or looked up in."""
  return bool(set('Dr') & set(axes)) and len(inner_axes(axes)) > 1


def matrix_axes(axes):
  """Return (input axes, output axes) of a layer's matrix; None for vectors and tables."""
  inner = inner_axes(axes)
  if not is_matrix(axes) or set(inner) & set('VT'):
    return None
  offset = len(axes) - len(inner)
  letter = 'r' if 'r' in inner else 'D'
  d = offset + inner.index(letter)
  others = tuple(i for i in range(offset, len(axes)) if i != d)
  return ((d,), others) if inner[0] == letter else (others, (d,))


def role(axes):
  """Return muP's class of a parameter: 'hidden' or 'output' (inputs grow with the width), or 'input'.

  A head is an 'input', as the embedding is that it may be tied to: the model multiplies logits by
  1/growth (table 8).
  """
  numbers = matrix_axes(axes)
  grows = lambda places: any(axes[i] in 'DFHG' for i in places)
  if numbers is None or not grows(numbers[0]):
    return 'input'
  return 'hidden' if grows(numbers[1]) else 'output'
