"""The frozen protocol: what it fixes, its hash, and changes after the first result."""

import hashlib
import json

import pytest

from gpt_jax.ablation import protocol, source_digest, store
from gpt_jax.ablation.execute import runner
from gpt_jax.reports import study_report, study_results
from gpt_jax.runs import records
from tests import ablation_study

CODE = {'base config': 'b', 'evaluation code': 'e', 'analysis code': 'a', 'changes': {}}
CHANGES = [
  ({'tolerance': 0.4}, 'tolerance 0.01 -> 0.4'),
  ({'metric': 'loss', 'better': 'higher'}, 'metric valid_loss -> loss, better lower -> higher'),
  ({'seeds': list(range(9))}, 'seeds 5 -> 9'),
  ({'seeds': [0, 1, 3, 4]}, 'seeds 5 -> [0, 1, 3, 4]'),
  ({'budget': {'tokens': 9}}, '"tokens": 9'),
  ({'analysis code': 'new'}, 'analysis code'),
  ({'question': 'Another?'}, 'question Which'),
]


def make_study(levels=('learned', 'alibi'), **changes):
  return ablation_study.study(levels) | CODE | changes


def write(workdir, study):
  """Write study.json the way that the runner does -> it."""
  before = records.read_json(workdir / 'study.json')
  study = study | protocol.record_protocol(workdir, before, study)
  records.write_json(workdir / 'study.json', study)
  return study


def finish_run(workdir, slug='base', seed=0):
  """A run with a result."""
  folder = store.run_path(workdir, slug, seed)
  folder.mkdir(parents=True)
  (folder / 'result.json').write_text('{}')


def test_the_hash_is_that_of_the_file_and_depends_on_the_study_alone(tmp_path):
  (tmp_path / 'other').mkdir()
  study, other = write(tmp_path, make_study()), write(tmp_path / 'other', make_study(command='elsewhere'))
  content = (tmp_path / 'protocol.json').read_bytes()
  assert study['protocol'] == other['protocol'] == hashlib.sha256(content).hexdigest()
  fixed = json.loads(content)
  assert fixed['tolerance'] == 0.01 and fixed['seeds'] == [0, 1, 2, 3, 4]
  assert fixed['arms']['positions=alibi'] == {'model.positions': ['rope', 'alibi']}
  assert 'unchanged since' in protocol.describe(study)


@pytest.mark.parametrize('change, text', CHANGES)
def test_a_change_after_the_first_result_is_exploratory(tmp_path, change, text):
  first = write(tmp_path, make_study())
  finish_run(tmp_path)
  same = write(tmp_path, make_study())
  assert protocol.exploratory(same) == [] and same['protocol'] == first['protocol']
  changed = write(tmp_path, make_study(**change))
  assert changed['protocol'] == first['protocol']  # the file stays
  [said] = protocol.exploratory(changed)
  assert text in said and said.endswith(' after 1 result')
  back = write(tmp_path, make_study())  # a change that is taken back was still made
  assert len(protocol.exploratory(back)) == 2


def test_arms_that_are_added_or_left_out_after_a_result_are_exploratory(tmp_path):
  write(tmp_path, make_study())
  finish_run(tmp_path)
  changed = write(tmp_path, make_study(('learned', 'none')))
  [text] = protocol.exploratory(changed)
  assert text == 'left out positions=alibi, added positions=none after 1 result'


def test_before_the_first_result_the_protocol_follows_the_study(tmp_path):
  first = write(tmp_path, make_study())
  changed = write(tmp_path, make_study(tolerance=0.4))
  assert changed['protocol'] != first['protocol'] and protocol.exploratory(changed) == []
  assert json.loads((tmp_path / 'protocol.json').read_text())['tolerance'] == 0.4
  assert [(a['results'], a['changes']) for a in changed['amendments']] == [(0, ['tolerance 0.01 -> 0.4'])]


@pytest.mark.parametrize('old, new', [('"tolerance": 0.01', '"tolerance": 0.4'), ('0.01', '0.-1')])
def test_an_altered_protocol_is_two_lines_and_made_again_if_deleted(tmp_path, old, new):
  first, path = write(tmp_path, make_study()), tmp_path / 'protocol.json'
  path.write_text(path.read_text().replace(old, new))
  if new == '0.-1':
    path.with_name('study.json').unlink()
  else:
    finish_run(tmp_path)
  with pytest.raises(ValueError, match='protocol.json .*\nfix: restore'):
    write(tmp_path, make_study())
  path.unlink()
  assert write(tmp_path, make_study())['protocol'] == first['protocol']


def test_a_study_of_an_earlier_version_is_frozen_as_it_was(tmp_path):
  records.write_json(tmp_path / 'study.json', make_study())
  finish_run(tmp_path)
  changed = write(tmp_path, make_study(tolerance=0.4))
  assert json.loads((tmp_path / 'protocol.json').read_text())['tolerance'] == 0.01
  assert protocol.exploratory(changed) == ['tolerance 0.01 -> 0.4 after 1 result']


def test_proposed_arms_are_not_amendments(tmp_path):
  write(tmp_path, make_study(('learned',), sweep='optuna'))
  finish_run(tmp_path)
  assert protocol.exploratory(write(tmp_path, make_study(sweep='optuna'))) == []


def test_other_code_that_judges_is_exploratory(tmp_path):
  study = write(tmp_path, make_study())
  finish_run(tmp_path)
  now = make_study(**{'analysis code': source_digest.analysis_code()})
  records.write_json(tmp_path / 'study.json', study | now)
  assert protocol.exploratory(runner.record_look(tmp_path, [])) == []
  records.write_json(tmp_path / 'study.json', study)
  assert protocol.exploratory(runner.record_look(tmp_path, [])) == ['analysis code after 1 result']
  assert protocol.exploratory(runner.record_look(tmp_path, [])) == ['analysis code after 1 result']


def test_every_output_says_exploratory(tmp_path):
  study = write(tmp_path, make_study())
  rows = ablation_study.rows(study, tmp_path, samples=False)
  for row in rows:
    finish_run(tmp_path, row['folder'].split('/')[-2], row['seed'])
  outputs = []
  for change in ({}, {'tolerance': 0.4}):
    spec = write(tmp_path, make_study(**change))
    analysis = runner.analyze.analyze(spec, rows)
    report = study_results.StudyResults(spec, rows, analysis, (), tmp_path)
    texts = {suffix: render(report) for suffix, render in study_report.FORMATS.items()}
    texts['csv'] = texts['csv'].replace(',exploratory,', ',')  # the name of a column
    texts |= {'console': ' '.join(arm['sentence'] for arm in analysis['arms'])}
    outputs.append(texts | {'headline': study_results.headline(report)})
  before, after = outputs
  assert not [name for name, text in before.items() if 'xploratory' in text]
  assert all('xploratory' in text for name, text in after.items() if name != 'csv')
  assert [line.split(',')[8:10] for line in after['csv'].splitlines()[1:]] == [['1', study['protocol']]] * 3
  assert study['protocol'] in before['html'] and study['protocol'] in before['csv']
