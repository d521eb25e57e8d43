"""The boundary around parsers: any failure is a cause and a fix, and nothing else is changed."""

import pytest

from gpt_jax.runs.reading import check_types, reading


class PanicException(BaseException):
  """The name of what Rust libraries raise when they panic."""


@pytest.mark.parametrize(
  ('error', 'cause'),
  [
    (KeyError('model'), "KeyError 'model'"),
    (ValueError('two\nlines'), 'two lines'),
    (ZeroDivisionError(), 'ZeroDivisionError'),
    (RecursionError('too deep'), 'too deep'),
    (PermissionError(13, 'Permission denied', 'x'), 'Permission denied'),
    (PanicException('index out of bounds'), 'PanicException index out of bounds'),
    (OSError('cannot identify <_io.BytesIO object at 0x7f>'), 'cannot identify'),
  ],
  ids=lambda value: type(value).__name__,
)
def test_any_failure_to_parse_names_the_file_and_the_fix(error, cause):
  with pytest.raises(ValueError) as failure, reading('a.png', 'a picture', 'drop it'):
    raise error
  assert str(failure.value) == f'a.png is not a picture: {cause}\nfix: drop it'
  assert failure.value.__cause__ is error


def test_a_lack_of_memory_is_said():
  with pytest.raises(ValueError) as failure, reading('a.npz', 'an archive', 'drop it'):
    raise MemoryError('Unable to allocate 8.00 TiB')
  assert str(failure.value) == (
    'a.npz needs more memory than there is: MemoryError Unable to allocate 8.00 TiB\n'
    'fix: free memory; if the file should be small, drop it'
  )


@pytest.mark.parametrize('error', [KeyboardInterrupt(), SystemExit(1), ImportError('no soundfile')], ids=repr)
def test_signals_and_missing_packages_pass(error):
  with pytest.raises(type(error)) as failure, reading('a.wav', 'a sound', 'drop it'):
    raise error
  assert failure.value is error


def test_an_error_with_its_own_fix_keeps_it_and_names_the_file_once():
  with pytest.raises(ValueError) as failure, reading('a.wav', 'a sound', 'drop it'):
    raise ValueError('the sound has no samples\nfix: record it again')
  assert str(failure.value) == 'a.wav: the sound has no samples\nfix: record it again'
  with pytest.raises(FileNotFoundError) as failure, reading('b.zip', 'an archive', 'drop it'):
    raise FileNotFoundError('b.zip has no member a\nfix: list them')
  assert str(failure.value) == 'b.zip has no member a\nfix: list them'


@pytest.mark.parametrize(
  ('value', 'expected', 'cause'),
  [
    ([], dict, 'it is [], expected a JSON object'),
    ({'a': 1}, {'a': str}, "it['a'] is 1, expected text"),
    ({}, {'a': int}, "it has no 'a'"),
    ({'a': True}, {'a': int | float}, "it['a'] is True, expected int or float"),
    ({'a': [1, None]}, {'a': [int]}, "it['a'][1] is None, expected int"),
    ({'x': [{}]}, {str: [{'b': str | None}]}, "it['x'][0] has no 'b'"),
    ('abc', [str], "it is 'abc', expected a list"),
  ],
)
def test_a_wrong_type_names_its_entry(value, expected, cause):
  with pytest.raises(ValueError) as failure:
    check_types(value, expected)
  assert str(failure.value) == cause


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    ({'a': 1, 'more': []}, {'a': int, 'b?': str}),
    ({'x': 1.5, 'y': 2}, {str: int | float}),
    ([None, 'a'], [str | None]),
    ({'anything': [True]}, {str: object}),
    (True, bool),
  ],
)
def test_expected_types_pass_unchanged(value, expected):
  assert check_types(value, expected) is value
