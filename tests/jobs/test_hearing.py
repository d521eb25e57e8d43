"""experiments/hear.py with a tiny encoder of random weights: train, resume, evaluate, sample; no export."""

import itertools
import zipfile

import numpy as np
import pytest

from gpt_jax import config, train
from gpt_jax.cli import experiment_file
from gpt_jax.data import media_io
from gpt_jax.data.synthetic import keypad
from gpt_jax.evaluation import evaluate, trained
from gpt_jax.interop import huggingface
from gpt_jax.jobs import run_tokenizers
from gpt_jax.sampling import prompts
from gpt_jax.tokenizers import readers
from tests import command_line, encoders, models, tiny_runs

SPEAKERS = ('george', 'theo')


@pytest.fixture
def recordings(tmp_path, monkeypatch):
  """GPT_JAX_DATA with a few recordings and a tiny Whisper."""
  encoders.write(tmp_path / 'ear', encoders.WHISPER)
  (tmp_path / 'fsdd').mkdir()
  with zipfile.ZipFile(tmp_path / 'fsdd/recordings.zip', 'w') as archive:
    for digit, speaker, index in itertools.product(range(3), SPEAKERS, (0, 5, 10)):
      wave = keypad.tone(digit, 100 * len(speaker) + index)[:1600]
      archive.writestr(f'{digit}_{speaker}_{index}.wav', media_io.to_wav(wave, 8000))
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path))
  return tmp_path


def experiment(arguments, **changes):
  loaded = experiment_file.load_config(
    f'{command_line.ROOT}/experiments/hear.py:encoder=ear,text=,{arguments}'
  )
  loaded.model.update(layers=1, width=16, heads=2)
  loaded.train.update(steps=4, batch_size=4, eval_every=0)
  loaded.checkpoint.every = 2
  for name, values in changes.items():
    loaded[name].update(values)
  return config.build(config.Config, loaded)


@pytest.mark.slow
def test_a_small_model_learns_to_hear(recordings, tmp_path, tmp_path_factory, monkeypatch):
  cfg = experiment('base=,projector=resampler')
  with tiny_runs.compiled_programs(tmp_path_factory):
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
    monkeypatch.setattr('gpt_jax.tokenizers.readers.EncoderReader.open', None)  # it is in the run folder
    train.train(cfg, tmp_path / 'run')
    run = trained.load(tmp_path / 'run')
    assert run.step == 4 and run.model.cfg.frame_values == 4 * 12
    assert 'audio0' not in run.tokenizers.vocabulary.kinds
    rows = evaluate.run_tasks(run.subject(), ['answer'], split='test', limit=4)
    assert {row['source'] for row in rows} == {'transcribe', 'number', 'who'}
    sound = str(tmp_path / 'fsdd/recordings.zip/2_theo_0.wav')
    prompt = prompts.build_prompt(run, 'Who speaks?', sounds=[sound])
    assert prompt.ids == prompts.build_prompt(run, sounds=[sound], source='who').ids
    [text] = run.generate([{'sounds': [sound], 'source': 'who'}], max_new_tokens=3)
    assert isinstance(text, str) and prompt.frames.shape == (len(prompt.ids), 48)
    with pytest.raises(ValueError) as error:
      huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
    tiny_runs.assert_two_lines(error.value, 'reads frames')


@pytest.mark.slow
def test_a_frozen_model_trains_the_projector_and_adapters(recordings, tmp_path, tmp_path_factory):
  base = tiny_runs.finished(tmp_path_factory)
  cfg = experiment_file.load_config(
    f'{command_line.ROOT}/experiments/hear.py:encoder=ear,text=,base={base},adapter=2'
  )
  cfg.train.update(steps=2, batch_size=8, eval_every=0)
  cfg.optim.lr = 0.1
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(config.build(config.Config, cfg), tmp_path / 'run')
    run, before = trained.load(tmp_path / 'run'), models.params(trained.load(base).model)
  after = models.params(run.model)
  assert np.abs(after['frame_projector/up_AF']).max() > 0
  assert not np.array_equal(after['blocks/attention/wq_DHK'], before['blocks/attention/wq_DHK'])
  np.testing.assert_array_equal(after['final_norm/scale'], before['final_norm/scale'])


def test_an_encoder_that_nothing_reads(recordings, tmp_path):
  cfg = tiny_runs.experiment(encoder__audio='ear')
  with pytest.raises(ValueError) as error:
    train.train(cfg, tmp_path / 'run')
  tiny_runs.assert_two_lines(error.value, 'encoder.audio=ear has no use')


@pytest.mark.parametrize(
  'changes, cause',
  [
    (dict(encoder__layer=1), 'encoder.layer=1 has no effect'),
    (dict(encoder__stack=3), 'encoder.stack=3 has no effect'),
    (dict(encoder__seconds=2.0), 'encoder.seconds=2.0 has no effect'),
    (
      dict(
        data__mixture={'read': {'kind': 'digits', 'template': '{image:patches} -> {name}'}},
        data__packing='first_fit',
        model__projector='pool',
        model__projector_parts=2,
      ),
      'model.projector_parts=2 would cut patches',
    ),
  ],
)
def test_settings_of_encoders_without_effect(changes, cause):
  with pytest.raises(ValueError) as error:
    run_tokenizers.open_readers(tiny_runs.experiment(**changes))
  tiny_runs.assert_two_lines(error.value, cause)


@pytest.mark.parametrize('key', ['do_normalize', 'do_rescale'])
def test_a_processor_that_leaves_a_step_out(tmp_path, key):
  folder = encoders.write(tmp_path / 'eye', encoders.CLIP)
  opened = lambda: readers.EncoderReader.open(str(folder), readers.EncoderConfig(), 'patches')
  assert opened().pixels
  (folder / readers.PROCESSOR).write_text(f'{{"{key}": false}}')
  with pytest.raises(ValueError) as error:
    opened()
  tiny_runs.assert_two_lines(error.value, '=false is not supported')
