"""Files that survive a crash: any cut, any order of steps, and a second writer."""

import contextlib
import errno
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_jax.runs import records

FLOATS = st.floats(width=64)
TREES = st.recursive(
  st.booleans() | st.integers() | FLOATS | st.text().filter(lambda s: s not in records.NONFINITE),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def strict(text):
  """Parse JSON; fail on NaN and Infinity, which Python accepts."""
  return json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


@given(TREES)
def test_values_come_back_through_strict_json(tree):
  text = json.dumps(records.to_json(tree), allow_nan=False)
  np.testing.assert_equal(records.from_json(strict(text)), tree)


def test_arrays_tuples_and_paths_become_plain(tmp_path):
  value = {'a': np.float32(0.5), 'b': (1, np.arange(3)), 3: tmp_path, 'c': np.float64('inf')}
  assert records.to_json(value) == {'a': 0.5, 'b': [1, [0, 1, 2]], '3': str(tmp_path), 'c': 'Infinity'}


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'result.json'
  records.write_json(path, {'loss': 1.0})

  def no_space(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', no_space)
  with pytest.raises(OSError, match='No space'):
    records.write_json(path, {'loss': 2.0})
  assert records.read_json(path) == {'loss': 1.0}


def test_two_writers_of_one_file_have_their_own_temporaries(tmp_path):
  """In one process, as in two of the same number on two hosts."""
  path = tmp_path / 'study.json'
  with records.open_atomic(path) as first:
    first.write(b'{"writer": 1, "more": "and longer"}')
    records.write_json(path, {'writer': 2})
    assert records.read_json(path) == {'writer': 2}
  assert records.read_json(path) == {'writer': 1, 'more': 'and longer'}
  assert list(tmp_path.iterdir()) == [path]


@contextlib.contextmanager
def files_of_at_most(size):
  """Limit files to this size, as a nearly full disk does."""
  _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_whole(path):
  records.write_json(path, {'a': 'x' * 100})


def write_line(path):
  records.append_line(path, {'a': 'x' * 100})


def write_step(path):
  records.StepLines(path).add({'step': 1, 'a': 'x' * 100})


@pytest.mark.parametrize('write', [write_whole, write_line, write_step])
def test_a_write_without_room_is_an_error_that_names_the_file(tmp_path, write):
  with files_of_at_most(60), pytest.raises(OSError) as error:
    write(tmp_path / 'file')
  assert str(error.value) == f"[Errno {errno.EFBIG}] File too large: '{tmp_path / 'file'}'"
  assert not [path for path in tmp_path.iterdir() if path.name != 'file'], 'a temporary is left'


def test_lone_surrogates_can_be_written_and_read(tmp_path):
  records.write_atomically(tmp_path / 'sample.txt', 'a\udc80b')
  assert (tmp_path / 'sample.txt').read_text(encoding='utf-8') == 'a\\udc80b'
  records.append_line(tmp_path / 'events.jsonl', {'text': 'é\udc80'})
  assert records.read_lines(tmp_path / 'events.jsonl') == [{'text': 'é\udc80'}]


def test_read_json_names_a_bad_file(tmp_path):
  assert records.read_json(tmp_path / 'absent.json') == {}
  path = tmp_path / 'config.json'
  for content, cause in (
    ('{"a": ', 'is not readable: Expecting value'),
    ('[1]', 'is not readable: it is .1., expected a JSON object'),
  ):
    path.write_text(content)
    with pytest.raises(ValueError, match=cause) as error:
      records.read_json(path)
    first, second = str(error.value).split('\n')
    assert str(path) in first
    assert second == 'fix: restore that file, or give another --workdir'


def test_read_lines_skips_only_a_half_written_end(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert records.read_lines(path) == []
  path.write_bytes(b'{"step": 0, "loss": "NaN"}\n{"step": 1, "lo')
  (only,) = records.read_lines(path)
  assert only['step'] == 0
  assert math.isnan(only['loss'])
  path.write_bytes(b'{"step": 0}\n{"st\n{"step": 2}\n')
  with pytest.raises(ValueError, match='line 2 is not a record: .*\nfix: delete that line'):
    records.read_lines(path)


@pytest.mark.parametrize('cut', range(1, 40, 6))
def test_a_line_after_a_torn_one_begins_on_its_own(tmp_path, cut):
  """A kill in the middle of a write: the next process appends as if the torn record had never begun."""
  path, whole = tmp_path / 'events.jsonl', {'event': 'start'}
  records.append_line(path, whole)
  records.append_line(path, {'event': 'checkpoint'})
  path.write_bytes(path.read_bytes()[:-cut])
  records.append_line(path, {'event': 'resume'})
  only_the_newline_was_missing = [{'event': 'checkpoint'}] if cut == 1 else []
  assert records.read_lines(path) == [whole, *only_the_newline_was_missing, {'event': 'resume'}]


def test_a_record_after_a_text_of_a_user_keeps_it(tmp_path):
  path = tmp_path / 'samples.jsonl'
  path.write_text('my notes')
  records.append_line(path, {'text': 'a'})
  first, second = path.read_text().splitlines()
  assert first == 'my notes' and second.startswith('{"text": "a", "sha256": ')


REPORTS = st.lists(
  st.tuples(st.integers(0, 30), st.dictionaries(st.sampled_from('abc'), FLOATS, min_size=1)), max_size=30
)


@given(reports=REPORTS, cut=st.integers(0, 400), last=st.integers(0, 31))
def test_step_lines_are_sorted_and_unique_through_any_cut(tmp_path_factory, reports, cut, last):
  path = tmp_path_factory.mktemp('lines') / 'metrics.jsonl'
  lines, expected = records.StepLines(path), {}
  for step, metrics in reports:
    lines.add({'step': step, **metrics})
    expected[step] = expected.get(step, {'step': step}) | metrics
  whole = [expected[step] for step in sorted(expected)]
  np.testing.assert_equal(records.read_lines(path), whole)

  content = path.read_bytes()[: max(0, path.stat().st_size - cut)]  # as a crash would leave it
  path.write_bytes(content)
  resumed = records.StepLines(path, last)
  # The newline is written last, so a line that lacks only that is whole too.
  survivors = [record for record in whole[: len(content.splitlines())] if record['step'] <= last]
  torn = resumed.dropped['unreadable']
  assert torn <= 1
  remaining = records.read_lines(path)
  np.testing.assert_equal(remaining, survivors[: len(remaining)])
  assert len(survivors) - len(remaining) <= torn
  resumed.add({'step': 40})
  np.testing.assert_equal(records.read_lines(path), [*remaining, {'step': 40}])


def test_parts_of_one_step_join_even_when_they_come_late(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = records.StepLines(path)
  for record in ({'step': 99, 'a': 1}, {'step': 100, 'valid': 2}, {'step': 101, 'a': 12345}):
    lines.add(record)
  lines.add({'step': 100, 'a': 3})
  lines.add({'step': 101, 'a': 4})  # shorter than the line that it replaces
  lines.add({'step': 98, 'a': 0})
  texts = (
    '{"step": 98, "a": 0',
    '{"step": 99, "a": 1',
    '{"step": 100, "valid": 2, "a": 3',
    '{"step": 101, "a": 4',
  )
  for line, text in zip(path.read_text().splitlines(), texts, strict=True):
    assert re.fullmatch(re.escape(text) + ', "sha256": "[0-9a-f]{16}"}', line)


def test_every_flipped_bit_of_a_record_is_found_or_harmless(tmp_path):
  """A flip in the name of the digest leaves an unknown entry; in all others the object is refused."""
  record, path = {'step': 1, 'loss': 1.25, 'text': 'é'}, tmp_path / 'config.json'
  for content in (records.format_object(record), records.format_object(record, indent=2)):
    accepted = 0
    for bit in range(8 * len(content)):
      altered = bytearray(content)
      altered[bit // 8] ^= 1 << bit % 8
      path.write_bytes(altered)
      try:
        value = records.read_json(path)
      except ValueError as error:
        assert str(error).startswith(str(path)) and '\nfix: ' in str(error)
      else:
        accepted += 1
        assert value.items() >= record.items() and len(value) == 4
    assert accepted <= 8 * len('sha256')


@pytest.mark.parametrize(
  'alter',
  [
    lambda text: text.replace('1.25', '1.5'),
    lambda text: text.replace('}', ', "loss": 2}'),  # after the digest
    lambda text: text.replace('"sha256": "', '"sha256": "0'),
    lambda text: text.replace('"sha256": "', '"sha256": 5, "x": "'),
  ],
)
def test_an_edited_record_is_refused_until_its_digest_is_deleted(tmp_path, alter):
  path = tmp_path / 'result.json'
  path.write_text(alter(records.format_object({'step': 1, 'loss': 1.25}).decode()))
  with pytest.raises(
    ValueError, match='result.json.*was altered after it was written\nfix: restore it; or'
  ) as error:
    records.read_json(path)
  assert len(str(error.value).splitlines()) == 2
  lines = tmp_path / 'lines.jsonl'
  lines.write_text(path.read_text() * 2)
  with pytest.raises(ValueError, match='lines.jsonl line 1.*was altered'):
    records.read_lines(lines)
  assert records.repair_lines(lines) == ([], {'unreadable': 2, 'rewound': 0})
  path.write_text('{"step": 1, "loss": 1.5}')
  assert records.read_json(path) == {'step': 1, 'loss': 1.5}


WRITER = """
import pathlib, sys
from gpt_jax.runs import records
folder = pathlib.Path(sys.argv[1])
with records.locked(folder):
  lines = records.StepLines(folder / 'metrics.jsonl', int(sys.argv[2]))
  for step in range(int(sys.argv[2]), 10**9):
    lines.add({'step': step, 'text': 'x' * 1000})
    lines.add({'step': step, 'valid': step})
    print(step, flush=True)
"""


def start_writer(folder, step):
  command = [sys.executable, '-c', WRITER, str(folder), str(step)]
  return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_kill_and_resume_lose_no_step_and_repeat_none(tmp_path):
  step = 0
  for _ in range(3):
    with start_writer(tmp_path, step) as writer:
      for _ in range(20):
        reached = int(writer.stdout.readline())
      writer.send_signal(signal.SIGKILL)
    lines = records.StepLines(tmp_path / 'metrics.jsonl', reached)
    assert lines.steps == list(range(reached + 1))
    step = reached - 3


def test_a_second_process_cannot_hold_the_folder(tmp_path):
  with start_writer(tmp_path, 0) as writer:
    writer.stdout.readline()
    with pytest.raises(ValueError, match='workdir=.* is being written by process') as error:
      with records.locked(tmp_path):
        pytest.fail('two holders')
    first, second = str(error.value).split('\n')
    assert f'process {writer.pid} on ' in first
    assert second == 'fix: wait for it, stop it, or give another --workdir'
    writer.kill()
  deadline = time.time() + 10
  while True:  # the kernel drops the lock of a killed process, perhaps not at once
    try:
      with records.locked(tmp_path):
        break
    except ValueError:
      assert time.time() < deadline
      time.sleep(0.05)
  assert f'process {os.getpid()} on' in (tmp_path / '.lock').read_text()


@pytest.mark.parametrize('why', ['no fcntl', 'no locks'])
def test_without_flock_the_folder_is_used_unlocked(tmp_path, monkeypatch, why):
  class NoLocks:
    LOCK_EX = LOCK_NB = LOCK_UN = 0

    def flock(self, *_):
      raise OSError(errno.ENOTSUP, 'Operation not supported')

  monkeypatch.setattr(records, 'fcntl', None if why == 'no fcntl' else NoLocks())
  with records.locked(tmp_path), records.locked(tmp_path):
    assert (tmp_path / '.lock').exists()
