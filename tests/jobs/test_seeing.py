"""experiments/see.py with a tiny vision encoder of random weights: train adapters, answer, sample."""

import json
import zipfile

import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.cli import experiment_file
from gpt_jax.data import media_io
from gpt_jax.evaluation import evaluate, trained
from tests import command_line, encoders, models, tiny_runs


@pytest.fixture
def emoji(tmp_path, monkeypatch):
  """GPT_JAX_DATA with eight pictures of two groups, and a tiny CLIP."""
  encoders.write(tmp_path / 'eye', encoders.CLIP)
  for folder in ('noto_emoji', 'runs'):
    (tmp_path / folder).mkdir()
  lines = []
  with zipfile.ZipFile(tmp_path / 'noto_emoji/images_72.zip', 'w') as archive:
    for number in range(12):
      picture = np.full((72, 72, 4), 20 * number, np.uint8)
      archive.writestr(f'{number}.png', media_io.to_png(picture))
      split = ('train', 'train', 'valid', 'test')[number % 4]
      fields = dict(
        image=f'{number}.png', name='sun', group='sky' if number > 5 else 'sea', group_split=split
      )
      lines.append(json.dumps(fields) + '\n')
  (tmp_path / 'runs/emoji.jsonl').write_text(''.join(lines))
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.slow
def test_a_frozen_model_learns_to_see_by_a_projector_and_adapters(emoji, tmp_path, tmp_path_factory):
  base = tiny_runs.finished(tmp_path_factory)
  loaded = experiment_file.load_config(
    f'{command_line.ROOT}/experiments/see.py:encoder=eye,text=,base={base},adapter=2'
  )
  loaded.train.update(steps=2, batch_size=8, eval_every=0)
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(config.build(config.Config, loaded), tmp_path / 'run')
    run, before = trained.load(tmp_path / 'run'), models.params(trained.load(base).model)
    after = models.params(run.model)
    assert run.model.cfg.patch_values == 8 and np.abs(after['patch_projector/up_AF']).max() > 0
    assert not np.array_equal(after['blocks/attention/wq_DHK'], before['blocks/attention/wq_DHK'])
    np.testing.assert_array_equal(after['final_norm/scale'], before['final_norm/scale'])
    rows = evaluate.run_tasks(run.subject(), ['answer'], split='test', limit=3)
    assert {row['source'] for row in rows} == {'caption', 'group'}
    picture = np.zeros((72, 72, 3), np.uint8)
    [text] = run.generate([{'images': [picture], 'text': 'Which group?'}], max_new_tokens=3)
    assert isinstance(text, str)
