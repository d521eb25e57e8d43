"""Runs with a pretrained encoder in the step: frozen, whole, by adapters; resume, sample, refusals."""

import numpy as np
import pytest

from gpt_jax import config, sharding, train
from gpt_jax.data import templates
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface
from gpt_jax.interop.encoders import encoder, families
from gpt_jax.jobs import language_model
from gpt_jax.training import encoders as pretrained
from tests import encoders, models, tiny_runs


@pytest.fixture(scope='module')
def eye(tmp_path_factory):
  """The folder of a tiny CLIP: pictures of 8 x 8 gray pixels, four patches."""
  return encoders.write(tmp_path_factory.mktemp('eye'), encoders.CLIP)


def experiment(eye, training, base='', **changes):
  """A tiny model that names digits, seen by an encoder."""
  cfg = tiny_runs.section(
    data__mixture={'read': {'kind': 'digits', 'template': '{image:patches} -> {name}'}},
    data__packing='first_fit',
    train__sample_prompts=(),
    optim__ema=0.0,
  )
  cfg.encoder.update(image=str(eye), train=training)
  cfg.train.update(steps=4, batch_size=4, eval_every=0, sample_every=0, eval_tokens=100)
  cfg.checkpoint.every = 2
  if base:
    config.start_from(cfg, str(base))
  for name, values in changes.items():
    cfg[name].update(values)
  return config.build(config.Config, cfg)


def encoder_weights(eye):
  """The encoder's parameters as its folder has them."""
  loaded = models.params(encoder.load(eye, families.read_spec(encoders.CLIP)))
  return {f'image_encoder/{path}': value for path, value in loaded.items()}


@pytest.mark.slow
def test_an_encoder_trained_whole_resumes_bitwise_and_samples(eye, tmp_path, tmp_path_factory):
  cfg = experiment(eye, 'whole', optim={'ema': 0.5, 'lr_multipliers': ('image_encoder/.*=0.5', '.*=1')})
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(cfg, tmp_path / 'all')
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(2)) is None
    train.train(cfg, tmp_path / 'run')
    run = trained.load(tmp_path / 'run')
    subject = [{'images': [np.full((8, 8, 1), 255 * n, np.uint8)], 'source': 'read'} for n in range(2)]
    texts = run.generate(subject, max_new_tokens=3)
  straight, resumed = tiny_runs.arrays(tmp_path / 'all'), tiny_runs.arrays(tmp_path / 'run')
  assert straight.keys() == resumed.keys()
  for path, value in straight.items():
    np.testing.assert_array_equal(value, resumed[path], err_msg=path)
  after, before = models.params(run.model), encoder_weights(eye)
  distance = {path: np.abs(after[path] - value).max() for path, value in before.items()}
  assert all(0 < x < 0.1 for path, x in distance.items() if 'k_bias' not in path), distance
  assert all(isinstance(text, str) for text in texts)
  with pytest.raises(ValueError) as error:
    huggingface.export_run(tmp_path / 'run', tmp_path / 'out')
  tiny_runs.assert_two_lines(error.value, 'reads patches')
  child = experiment(eye, 'frozen', tmp_path / 'run', train={'steps': 1})
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(child, tmp_path / 'child')  # keeps what its parent learned, not what the folder has
    kept = models.params(trained.load(tmp_path / 'child').model)
    other = encoders.write(tmp_path / 'other', encoders.CLIP, seed=1)
    with pytest.raises(ValueError) as error:
      train.train(experiment(other, 'frozen', tmp_path / 'run'), tmp_path / 'third')
  tiny_runs.assert_two_lines(error.value, 'this run names that of')
  for path in before:
    np.testing.assert_array_equal(kept[path], after[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize('training, rank', [('adapters', 2), ('frozen', 0)])
def test_a_frozen_encoder_is_not_in_the_checkpoint(eye, tmp_path, tmp_path_factory, caplog, training, rank):
  base = tiny_runs.finished(tmp_path_factory) if rank else ''
  changes = {'adapter': {'rank': rank, 'train': ('^patch_', 'embed_VD')}} if rank else {}
  cfg = experiment(eye, training, base, **changes, train={'steps': 2})
  with tiny_runs.compiled_programs(tmp_path_factory):
    assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(1)) is None
    train.train(cfg, tmp_path / 'run')
    run = trained.load(tmp_path / 'run')
  assert 'leaves out' not in caplog.text
  stored = {path for path in tiny_runs.arrays(tmp_path / 'run') if '/image_encoder/' in path}
  model = {path.removeprefix('model/') for path in stored if path.startswith('model/')}
  after, before = models.params(run.model), encoder_weights(eye)
  changed = {path for path, value in before.items() if not np.array_equal(after[path], value)}
  assert {path.rpartition('/')[0] for path in model} == changed
  assert all(path.endswith(('/a', '/b')) for path in model)
  if not rank:
    assert not stored
    eye.rename(eye.with_name('away'))
    with pytest.raises(FileNotFoundError) as error:
      trained.load(tmp_path / 'run')
    eye.with_name('away').rename(eye)
    tiny_runs.assert_two_lines(error.value, 'the encoder is not in')
    return
  assert 'image_encoder/blocks/attention/wq_DHK' in changed and 'image_encoder/patch_YXAD' not in changed
  old = models.params(trained.load(base).model)
  np.testing.assert_array_equal(after['final_norm/scale'], old['final_norm/scale'])


@pytest.mark.slow
def test_an_encoder_of_sounds_trains_in_the_step(tmp_path, tmp_path_factory):
  ear = encoders.write(tmp_path / 'ear', encoders.WHISPER)
  cfg = tiny_runs.section(
    data__mixture={'listen': {'kind': 'keypad', 'template': '{audio:frames} -> {name}', 'documents': 60}},
    data__packing='first_fit',
    train__sample_prompts=(),
  )
  cfg.encoder.update(audio=str(ear), train='whole', seconds=0.2, stack=5)
  cfg.train.update(steps=2, batch_size=4, eval_every=0, sample_every=0, eval_tokens=100)
  with tiny_runs.compiled_programs(tmp_path_factory):
    train.train(config.build(config.Config, cfg), tmp_path / 'run')
    run = trained.load(tmp_path / 'run')
    wave = 0.1 * np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    [text] = run.generate(
      [{'sounds': [templates.Samples(wave, 16_000)], 'source': 'listen'}], max_new_tokens=3
    )
  before = pretrained.weights(run.model.cfg)
  after = models.params(run.model)
  assert (
    isinstance(text, str)
    and 0 < np.abs(after['audio_encoder/conv1_WMD'] - before['audio_encoder/conv1_WMD']).max() < 0.1
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'encoder': {'train': 'some'}}, 'encoder.train=some is not possible'),
    ({'encoder': {'train': 'adapters'}}, 'needs a rank'),
    (
      {'encoder': {'image': ''}, 'image': {'kind': 'patches', 'height': 8, 'width': 8, 'patch': 4}},
      'no effect',
    ),
    ({'model': {'mup_base': 16}}, 'no rule of muP'),
  ],
)
def test_wrong_uses_are_two_lines(eye, tmp_path, changes, words):
  with pytest.raises(ValueError) as error:
    cfg = experiment(eye, 'frozen', **changes)
    language_model.LanguageModelJob(cfg, tmp_path, sharding.make_mesh(config.MeshConfig()))
  tiny_runs.assert_two_lines(error.value, words)
