"""Console lines, and the bar on a real terminal."""

import contextlib
import io
import logging
import os
import sys
import threading

import pytest

from gpt_jax.runs import loggers
from gpt_jax.runs.metric_names import human

TRAINING = {'loss': 1.8231, 'tokens': 5, 'tokens_per_second': 23123.0, 'mfu': 0.1234, 'lr': 1e-3}


@pytest.mark.parametrize(
  ('number', 'text'),
  [(0, '0'), (950, '950'), (999.7, '1k'), (23123, '23.1k'), (8.2e6, '8.2M'), (999_900, '1M')]
  + [(1.24e9, '1.24B'), (3e12, '3T'), (0.00123, '0.00123'), (float('nan'), 'nan')],
)
def test_human(number, text):
  assert human(number) == text


@pytest.mark.parametrize(
  ('seconds', 'text'), [(0, '0:00'), (83.4, '1:23'), (7384, '2:03:04'), (302400, '3d 12:00')]
)
def test_duration(seconds, text):
  assert loggers.duration(seconds) == text


def test_plain_lines_align_and_can_be_grepped(capsys):
  plain = loggers.Plain(2000, 0)
  plain.metrics(120, loggers.console_fields(TRAINING | {'memory_gib': 0.41}, '1:23'), True)
  plain.metrics(1300, loggers.console_fields({**TRAINING, 'loss': float('nan'), 'memory_gib': 12}, '9'), True)
  plain.metrics(1300, loggers.console_fields({'valid_loss': 1.5, 'lr': 2}), False)
  first, second, third = capsys.readouterr().out.splitlines()
  assert first.split('  ')[0] == 'step 120/2000'
  for part in ('loss 1.823 ', 'tokens/s 23.1k ', 'mfu 12.3% ', 'eta 1:23 '):
    assert part in first
  assert first.endswith('mem 0.4 GiB')
  assert first.index('eta') == second.index('eta')
  assert 'loss nan ' in second
  assert third == 'step 1300/2000  valid_loss 1.500'
  assert ('mfu', '-') in loggers.console_fields(TRAINING | {'mfu': 2.018}, '1:23')  # beyond a measured peak


def test_losses_of_single_sources_are_not_on_the_console():
  fields = loggers.console_fields({'loss': 1.5, 'loss/text': 1.0, 'loss/source/text': 2.0})
  assert fields == [('loss', '1.500'), ('loss/text', '1.000')]


def test_plain_survives_an_ascii_pipe(monkeypatch):
  pipe = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  monkeypatch.setattr(sys, 'stdout', pipe)
  loggers.Plain(1, 0).print('é')
  assert pipe.buffer.getvalue() == b'?\n'


def read_all(descriptor, chunks):
  with contextlib.suppress(OSError):  # Linux says EIO when the other end has closed
    while chunk := os.read(descriptor, 1 << 16):
      chunks.append(chunk)


def test_bar_keeps_prints_and_evaluations_above_one_live_line(monkeypatch):
  pty = pytest.importorskip('pty')
  master, slave = pty.openpty()
  reader = threading.Thread(target=read_all, args=(master, chunks := []))
  reader.start()
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '80')
  with os.fdopen(slave, 'w') as terminal, contextlib.redirect_stdout(terminal):
    bar = loggers.Bar(2000, 100)
    bar.print('[red]not markup')
    bar.metrics(120, loggers.console_fields(TRAINING | {'memory_gib': 0.4}, '1:23'), True)
    bar.metrics(120, loggers.console_fields({'valid_loss': 1.5}), False)
    bar.close()
  reader.join()
  os.close(master)
  written = b''.join(chunks).decode()
  assert '[red]not markup\r\n' in written
  assert 'step 120/2000   valid_loss 1.500\r\n' in written
  assert '120/2000' in written
  assert 'loss 1.823  tokens/s 23.1k  mfu 12.3%  eta 1:23' in written


def test_off_is_silent(capsys):
  off = loggers.Off(10, 0)
  off.metrics(1, loggers.console_fields(TRAINING), True)
  off.print('hello')
  off.close()
  assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('\x1b[31mred\x1b]0;title\x07', '\\x1b[31mred\\x1b]0;title\\x07'),
    ('\x9b2Jbell\x00', '\\x9b2Jbell\\x00'),
    ('abc\u202edcb\u2066', 'abc\\u202edcb\\u2066'),
    ('back\rspace\x08', 'back\\rspace\\x08'),
    (
      'a\r\nb\tc \U0001f600 caf\u00e9 \u05d0 [red]x[/red]',
      'a\nb\tc \U0001f600 caf\u00e9 \u05d0 [red]x[/red]',
    ),
    ('\udc80', '\\udc80'),
  ],
)
def test_data_cannot_drive_the_terminal(text, shown, capsys):
  loggers.say(text, end='')
  assert capsys.readouterr().out == shown


def test_a_letter_that_the_terminal_lacks_is_no_error(monkeypatch):
  stream = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
  loggers.say('caf\u00e9', file=stream, flush=True)
  assert stream.buffer.getvalue() == b'caf?\n'


def test_work_goes_on_after_the_reader_of_a_pipe_has_left():
  reader, writer = os.pipe()
  with os.fdopen(writer, 'w') as stream:
    os.close(reader)
    for text in ('lost', 'dropped'):
      loggers.say(text, file=stream, flush=True)


def test_a_row_without_a_field_for_the_console_prints_nothing(capsys):
  loggers.open_console('plain', 10, 0).metrics(5, [], is_training=False)
  assert capsys.readouterr().out == ''


def test_a_note_is_printed_once_and_an_error_each_time(capsys):
  handler = loggers.ConsoleHandler()
  for level in (logging.WARNING, logging.WARNING, logging.ERROR, logging.ERROR):
    handler.emit(logging.LogRecord('x', level, '', 0, 'of %s', ('arm',), None))
  assert capsys.readouterr().err.splitlines() == ['note: of arm', 'error: of arm', 'error: of arm']
