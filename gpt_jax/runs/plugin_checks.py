"""Checks of what the functions of a plugin return: a wrong shape is an error that names the row.

Without them the error would come from the package's own line that uses the result. Letters: as in the tables'
own files.
"""

import functools

import numpy as np


def guard(table, row, value, where):
  """Return a row whose functions in SHAPES are checked at each call.

  where: the beginning of errors, such as plugins=mine.py.
  """
  for place, shape_of in SHAPES.get(table, {}).items():
    is_field = hasattr(value, '_fields')
    name = f'{table}[{row!r}]' + f'.{place}' * is_field
    check = functools.partial(_checked, name=name, where=where, shape_of=shape_of)
    if not place:
      value = check(value)
    elif not is_field:
      value = tuple(check(part) if callable(part) else part for part in value)
    elif function := getattr(value, place):
      value = value._replace(**{place: check(function)})
  return value


def _checked(function, name, where, shape_of):
  """The function, with an error for a result of another shape."""

  @functools.wraps(function)
  def call(*args, **options):
    result = function(*args, **options)
    expected, fits = shape_of(*args)
    try:
      shape = np.shape(result)
    except Exception:  # such as a list of arrays of several shapes
      shape = None
    if shape is None or not fits(shape, expected):
      got = f'a {type(result).__name__}' if shape is None else f'the shape {_text(shape)}'
      code, plugin = getattr(function, '__code__', None), where.partition('=')[2]
      line = f' ({plugin}:{code.co_firstlineno}, in {code.co_name})' if code else ''
      broadcasts = ' or what broadcasts to it' * (fits is not _equal)
      raise ValueError(
        f'{where}: {name} returns {got}, expected {_text(expected)}{broadcasts}{line}\n'
        f'fix: correct {code.co_name if code else name} in {plugin}'
      )
    return result

  return call


def _text(shape):
  return f'({", ".join(map(str, shape))})'


def _equal(shape, expected):
  return shape == tuple(expected)


def _broadcasts(shape, expected):
  try:
    return np.broadcast_shapes(shape, expected) == tuple(expected)
  except ValueError:
    return False


def _broadcasts_in_each_head(shape, expected):
  return len(shape) == 4 and shape[1] == expected[1] and _broadcasts(shape, expected)


def _scores(cfg, t_BT, s_BS):
  return (t_BT.shape[0], cfg.heads, t_BT.shape[1], s_BS.shape[1]), _broadcasts_in_each_head


_number = lambda *_: ((), _equal)
_as_first = lambda x, *_: (np.shape(x), _equal)
_as_second = lambda _, x, *rest: (np.shape(x), _equal)
SHAPES = {  # table: {field of a row that is a function, '' for the row: its arguments -> (shape, fits)}
  'POSITIONS': {
    'embed': lambda cfg, positions_BT, table_TD: ((*positions_BT.shape[:2], cfg.width), _broadcasts),
    'rotate': _as_second,
    'bias': _scores,
  },
  'ROPE_SCALINGS': {'frequencies': _as_second},
  'FUSED_KERNELS': {'attend': _as_second},
  'NORMS': {'': _as_first},
  'ACTIVATIONS': {'': _as_first},
  'GATED': {'': _as_first},
  'INITS': {'': _number},
  'SCHEDULES': {'': lambda cfg, update, steps: (np.shape(update), _broadcasts)},
  'TERMS': {'': lambda logits_BTV, target_ids_BT, log_z_BT: (target_ids_BT.shape, _broadcasts)},
  'BALANCES': {'': _as_first},
  'DISTIL_LOSSES': {'': lambda cfg, student_BTV, teacher_BTV: (student_BTV.shape[:-1], _equal)},
  'REWARDS': {'': _number},
  'FILTERS': {'filter': _as_first},
}
