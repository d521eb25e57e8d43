"""Studies recorded in docs/: those of the shipped files, and how a study is recorded."""

import json

import numpy as np
import pytest

from benchmarks import record, table
from gpt_jax.data import media_io
from gpt_jax.reports import study_results
from tests.reports import test_study_report

PATHS = sorted(record.STUDIES.glob('*.json'))
RECORDED = [path for path in PATHS if 'headline' in json.loads(path.read_text())]


@pytest.mark.parametrize('path', RECORDED, ids=lambda path: path.stem)
def test_a_recorded_study_is_the_one_of_its_file(path):
  result = json.loads(path.read_text())
  study = table.shipped_study(result)
  assert result['budget'] == study.budget.__dict__
  assert result['tolerance'] == study.tolerance
  assert result['metric'] == study.metric or (result['metric'], study.metric) == ('valid_loss', '')
  arms = {arm['name']: arm for arm in result['arms']}
  assert all(sorted(arm['values']) == sorted(map(str, study.seed_list)) for arm in arms.values())
  assert [*arms] == [arm.name for arm in table.arms_of(study)]
  rows = [line for line in table.read_docs().splitlines() if line.startswith('| [')]
  [row] = [row for row in rows if f'/{path.stem}.md)' in row]
  assert f'[{study.question}]' in row and result['headline'] in row
  assert bool(study.tune) == bool(result.get('tune'))


@pytest.mark.parametrize(
  'path',
  [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] * (p.stem == 'scaling')) for p in RECORDED],  # 60 s
)
def test_a_recorded_headline_is_judged_from_its_scores_alone(path):
  result = json.loads(path.read_text())
  assert table.judged_headline(result, table.shipped_study(result)) == result['headline']
  assert f'**{result["headline"]}**' in path.with_suffix('.md').read_text()


def test_what_is_recorded_of_an_arm_decides_its_verdict():
  result = json.loads((record.STUDIES / 'mlps.json').read_text())
  headline = table.judged_headline(result, table.shipped_study(result))
  [best] = [arm for arm in result['arms'] if headline.startswith(f'{arm["name"]} beats')]
  assert f'{best["mean"]:.3f}' in headline and 'was picked as the best of 4: expect less' in headline
  best['values'] = result['arms'][0]['values']
  assert not table.judged_headline(result, table.shipped_study(result)).startswith(f'{best["name"]} ')


def test_the_record_of_a_study_has_its_verdicts(tmp_path, monkeypatch):
  planned = test_study_report.ablation_study.study(('alibi', 'learned'), seeds=3)
  rows = test_study_report.ablation_study.rows(planned, tmp_path, samples=False)
  results = test_study_report.build_study(tmp_path, planned, rows)
  monkeypatch.setattr(study_results, 'read_study', lambda workdir: results)
  monkeypatch.setattr(record.run_folder, 'read_events', lambda folder: [{'time': '2026-01-01'}])
  summary = record.study_summary(tmp_path)
  assert summary['headline'] == study_results.headline(results)
  assert [arm['name'] for arm in summary['arms']] == ['base', 'positions=alibi', 'positions=learned']
  assert summary['arms'][1]['p_holm'] is not None and summary['runs'] == 9
  assert summary['tuning_runs'] == 0
  json.dumps(summary, allow_nan=False)


def test_the_figure_of_a_study_has_a_row_of_each_run_and_only_its_drawings(tmp_path):
  rows = [{'arm': arm, 'seed': 0, 'folder': tmp_path / arm} for arm in ('base', 'head=flow')]
  for row, shade in zip(rows, (10, 200), strict=True):
    folder = row['folder'] / 'predictions' / 'draw-draw-valid'
    folder.mkdir(parents=True)
    for number in range(record.DRAWINGS + 2):
      drawn, target = (np.full((4, 4, 1), value, np.uint8) for value in (shade, 99))
      (folder / f'{number:05d}.png').write_bytes(media_io.to_png(drawn))
      (folder / f'{number:05d}_target.png').write_bytes(media_io.to_png(target))
  study = study_results.StudyResults({}, rows, {'arms': [{'name': 'base'}, {'name': 'head=flow'}]})
  figure = record.drawings(study)
  assert figure.shape == (9, 5 * record.DRAWINGS - 1, 3)
  assert figure[:4, :4].max() == 10 and figure[5:, :4].min() == 200 and 99 not in figure
  (folder / '00003.png').unlink()
  assert record.drawings(study) is not None  # others take its place
  for path in folder.glob('*.png'):
    path.unlink()
  assert record.drawings(study) is None
