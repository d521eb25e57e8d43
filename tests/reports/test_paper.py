"""The files of a study for a paper."""

import csv
import io
import re

import pytest

from gpt_jax.ablation.stats import analyze
from gpt_jax.reports import citations, figures, paper, study_results
from tests import ablation_study


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  """A finished study whose protocol was amended."""
  folder = tmp_path_factory.mktemp('study')
  spec = ablation_study.study(('learned', 'alibi'), seeds=3)
  rows = ablation_study.rows(spec, folder)
  spec['arms'][2]['flags'] = ['its data are not the baseline_s']
  spec |= {'protocol': 'ab' * 32, 'amendments': [{'results': 2, 'changes': ['tolerance 0.02 -> 0.01']}]}
  return study_results.StudyResults(spec, rows, analyze.analyze(spec, rows), [], folder)


@pytest.mark.slow
def test_every_file_is_written(study, monkeypatch):
  monkeypatch.setattr(study_results, 'read_study', lambda workdir: study)
  names = {path.name for path in paper.write_paper('x')}
  assert {'table.tex', 'table_full.tex', 'methods.tex', 'runs.csv', 'references.bib'} < names
  for stem in ('arms-broad', 'arms-narrow', 'curves-broad', 'curves-narrow', 'seconds-broad'):
    assert {f'{stem}.pdf', f'{stem}.svg'} < names


def test_a_saved_figure_has_colors_of_its_own(tmp_path):
  effect = figures.Effect('a', 0.1, (0.0, 0.2), (0.1,), '0.1', figures.FIRST)
  with figures.saving(tmp_path):
    figures.forest([effect], name='one small', label='', width=200)
  assert (tmp_path / 'one-small.pdf').read_bytes().startswith(b'%PDF')
  svg = (tmp_path / 'one-small.svg').read_text()
  assert '#0000a' not in svg and 'var(' not in svg and figures.LIGHT[figures.FIRST] in svg
  assert not figures._folder  # later figures are drawn for pages alone


def test_methods_say_what_was_done(study):
  text = paper.methods(study)
  for part in ('2 variants', 'baseline (rope)', 'model.positions', '3 seeds', 'Holm', 'equal tokens'):
    assert part in text, part
  assert 'SHA-256 abab' in text and 'amended: tolerance 0.02 -> 0.01' in text
  assert '9 of 9 runs' in text and 'jax 0.10.2' in text


def test_the_full_table_has_the_flags_and_costs(study):
  text = paper.full_table(study)
  assert '\\begin{table*}' in text and 'its data are not the baseline\\_s' in text
  assert 'parameters' in text and 'verdict' in text
  assert text.count('\\\\\n') == 1 + len(study.arms)


def test_the_csv_has_all_runs(study):
  rows = list(csv.DictReader(io.StringIO(paper.runs_csv(study))))
  assert len(rows) == len(study.rows)
  first = study.rows[0]
  assert float(rows[0]['valid_loss']) == first['result']['valid_loss'] and rows[0]['positions'] == 'rope'
  assert float(rows[0]['perplexity/bits_per_byte']) == first['result']['evaluations'][0]['value']


def test_references_are_of_what_was_used():
  configs = [{'model': {'positions': 'rope', 'qk_norm': False}, 'optim': {'name': 'muon'}}]
  configs += [{'model': {'positions': 'alibi', 'qk_norm': True}}]
  text = citations.format_bibtex(configs)
  keys = re.findall(r'@misc\{(\w+),', text)
  assert set(keys) == {*citations.ALWAYS, 'su2021', 'press2022', 'henry2020', 'jordan2024'}
  assert text.count('{') == text.count('}')


def test_every_choice_has_an_entry():
  chosen = {key for table in citations.CHOICES.values() for key in table.values()}
  assert chosen | {*citations.ALWAYS} == {*citations.ENTRIES}
