"""launch.py data: counts, samples that hide what was found, files, refusals."""

import json

import pytest

from tests import command_line

SECRET = 'ann@example.org'


@pytest.fixture
def call(capsys, monkeypatch):
  """`call(verb, *args)` in this process -> (exit code, stdout, stderr)."""
  return command_line.in_process(capsys, monkeypatch)


@pytest.fixture
def source(tmp_path):
  """JSON lines with an address, a duplicate and a short document."""
  texts = [f'Write to {SECRET} or +49 30 1234567; {SECRET}!'] * 2 + [
    'Nothing to see here.',
    f'I am {SECRET}.',
  ]
  path = tmp_path / 'a.jsonl'
  path.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  return path


def test_counts_and_masked_samples(call, source, tmp_path):
  code, out, err = call('data', f'--source={source}', '--scrub=all', '--clean=exact', f'--out={tmp_path}/out')
  assert (code, err) == (0, '')
  lines = [' '.join(line.split()) for line in out.splitlines()]
  assert {'documents 4', '- exact 1 25.0%', 'left 3 75.0%', 'email replaced 3', 'phone replaced 1'} <= {
    *lines
  }
  assert 'Write to <EMAIL_1> or <PHONE_1>; <EMAIL_1>!' in lines and 'I am <EMAIL_1>.' in lines
  page, record = (tmp_path / 'out' / name for name in ('data.html', 'data.json'))
  for text in (out, page.read_text(), record.read_text()):
    assert SECRET not in text and '1234567' not in text
  [row] = json.loads(record.read_text())['sources']
  assert row['removed'] == {'exact': 1} and row['replaced'] == {'email': 3, 'phone': 1}
  assert '<svg' in page.read_text() and 'Cleaned data' in page.read_text()


def test_personal_data_are_masked_also_without_scrub(call, source):
  assert SECRET not in call('data', f'--source={source}', '--clean=gopher,exact', '--samples=9')[1]


def test_personal_data_beside_what_is_scrubbed_are_masked(call, source):
  out = call('data', f'--source={source}', '--scrub=phone')[1]
  assert '<PHONE_1>' in out and SECRET not in out


def test_a_flag_shows_what_was_found(call, source):
  assert SECRET in call('data', f'--source={source}', '--scrub=email', '--show')[1]


def test_the_sources_of_an_experiment(call, tmp_path):
  path = command_line.experiment(tmp_path)
  [name] = {'text'}
  code, out, _ = call('data', f'--config={path}', f'--config.data.mixture.{name}.clean=gopher_repetition')
  assert code == 0 and out.startswith(f'{name}:\n') and 'left' in out


@pytest.mark.parametrize(
  ('args', 'word'),
  [
    ((), 'nothing to read'),
    (('--source={source}', '--template={{name}}'), 'name'),
    (('--source={broken}',), 'error: {broken}'),
    (('--source=none.txt',), '--source=none.txt'),
    (('--source={source}', '--config=experiments/demo.py'), 'both'),
    (('--config=experiments/demo.py', '--scrub=all'), '--scrub'),
    (('--source={source}', '--clean=exakt'), 'exakt'),
    (('--source={source}', '--scrub=mail'), 'mail'),
    (('--source={source}', '--samples=-1'), 'samples'),
  ],
)
def test_wrong_arguments_are_refused_in_two_lines(call, source, args, word):
  (broken := source.parent / 'b.jsonl').write_text('{"text": "a whole line"}\n{"text": \n')
  names = {'source': source, 'broken': broken}
  code, _, err = call('data', *(arg.format_map(names) for arg in args))
  cause, fix = err.strip().split('\n')
  assert code == 2 and cause.startswith('error: ') and fix.startswith('fix: ')
  assert word.format_map(names) in cause and 'data.mixture.source' not in err


def test_unreadable_lines_of_a_file_are_counted(call, tmp_path):
  path = tmp_path / 'b.jsonl'
  path.write_text('{"text": "a whole line"}\n{"text": \n')
  code, out, _ = call('data', f'--source={path}', '--bad_records=1')
  lines = [' '.join(line.split()) for line in out.splitlines()]
  assert code == 0 and {'b.jsonl:', 'documents 1', 'unreadable records skipped 1'} <= {*lines}


def test_line_breaks_of_a_separator_are_those_of_a_config(call, tmp_path):
  (tmp_path / 'a.txt').write_text('one\n\ntwo\n\nthree')
  code, out, err = call('data', f'--source={tmp_path}/a.txt', r'--separator=\n\n')
  assert code == 0 and ['documents', '3'] in [line.split() for line in out.splitlines()]
  assert 'escapes are resolved' in err
