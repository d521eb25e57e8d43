"""Jobs that train tokenizers: their results, their resumption, and a GPT that uses one."""

import io
import math
import shutil

import jax
import numpy as np
import pytest
import soundfile
from PIL import Image

from gpt_jax import config, data, sharding, train
from gpt_jax.evaluation import trained
from gpt_jax.jobs import base, run_tokenizers
from gpt_jax.runs import records, run_folder
from gpt_jax.step import params_of
from gpt_jax.tokenizers import audio, image
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines, snapshot

STEPS = 12
VQ = {'image': tiny_runs.CODECS['image']['image'] | {'kind': 'vq', 'codes': 16}}
VQ['image'].pop('levels')
MEASURE = {'image': 'psnr', 'audio': 'log_mel_rmse'}
TIMED = ('time', 'images_per_second', 'crops_per_second', 'memory_gib', 'step_seconds')


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def run_of(tmp_path_factory):
  """run_of('image') -> a finished run folder. Do not change it."""
  return lambda modality: tiny_runs.codec_finished(tmp_path_factory, modality)


@pytest.fixture(scope='module')
def vq(tmp_path_factory):
  """(config, run folder) of a codebook that learns by moving averages."""
  cfg = tiny_runs.codec('image', **VQ)
  folder = tmp_path_factory.mktemp('vq') / 'run'
  train.train(cfg, folder)
  return cfg, folder


def metrics(workdir):
  """{step: what was logged and does not depend on the machine's speed}."""
  lines = records.read_lines(workdir / 'metrics.jsonl')
  assert len({line['step'] for line in lines}) == len(lines)
  return {line['step']: {k: v for k, v in line.items() if k not in (*TIMED, 'step')} for line in lines}


def job_of(cfg, folder):
  """The job of a config on one device."""
  mesh = train.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    return train.JOBS[cfg.train.job](cfg, folder, mesh)


# ------------------------------------------------------------------------------------ run folder


@pytest.mark.slow
@pytest.mark.parametrize('modality', ['image', 'audio'])
def test_the_loss_falls(run_of, modality):
  logged = metrics(run_of(modality))
  assert list(logged) == list(range(1, STEPS + 1))
  assert logged[STEPS]['loss'] < 0.6 * logged[1]['loss']
  assert logged[STEPS]['valid_loss'] < logged[4]['valid_loss']
  for step, line in logged.items():
    unit = {'image': 'images', 'audio': 'crops'}[modality]
    expected = {'loss', 'objective', 'mse', 'grad_norm', 'lr', unit}
    if step % 4 == 0:
      expected |= {'valid_loss', MEASURE[modality], 'code_usage', 'code_perplexity'}
    assert line.keys() == expected
    assert line[unit] == 16 * step and line['loss'] == line['mse']


@pytest.mark.parametrize('modality', ['image', pytest.param('audio', marks=pytest.mark.slow)])
def test_the_result_scores_the_tokenizer_and_k_means(run_of, modality):
  result, last = run_folder.read_result(run_of(modality)), metrics(run_of(modality))[STEPS]
  rows = {(row['metric'], row.get('tokenizer', 'own')): row for row in result['evaluations']}
  names = (MEASURE[modality], 'code_usage', 'code_perplexity')
  assert rows.keys() == {(name, of) for name in names for of in ('own', 'k-means')}
  for (name, of), row in rows.items():
    assert (row['task'], row['source'], row['split']) == ('reconstruct', modality, 'valid')
    assert row['n'] == {'image': 180, 'audio': 6}[modality]
    if of == 'own':
      assert row['value'] == last[name] == result[name]
  better = max if modality == 'image' else min  # k-means is optimal for patches; 12 steps are few
  measures = [rows[MEASURE[modality], of]['value'] for of in ('own', 'k-means')]
  assert better(measures) == measures[1]
  assert 1 <= rows['code_perplexity', 'own']['value'] <= 16 and 0 < rows['code_usage', 'own']['value'] <= 1


def test_the_folder_holds_a_tokenizer_samples_and_a_report(run_of):
  """Of images; samples show held-out ones above what is left of them."""
  workdir = run_of('image')
  tokenizer, cfg = image.load(workdir / 'codec'), config.of_run(workdir)
  held_out = data.load_images(cfg.data, (8, 8, 1), 'valid')
  made = tokenizer.decode(tokenizer.encode(held_out))
  error_N = np.square(held_out / 255 - made / 255).mean((1, 2, 3))
  result = run_folder.read_result(workdir)  # the mean over images; what is minimized is pooled
  assert result['psnr'] == pytest.approx((-10 * np.log10(error_N)).mean(), rel=1e-5)
  assert result['valid_loss'] == pytest.approx(error_N.mean(), rel=1e-5)
  names = [f'step_{step:08d}_reconstructions.png' for step in (6, 12)]
  assert sorted(path.name for path in (workdir / 'samples').iterdir()) == names
  shown = np.asarray(Image.open(workdir / 'samples' / names[1]))
  np.testing.assert_array_equal(shown[: 7 * 8 : 7, : 7 * 8 : 7], held_out[0, ..., 0])
  below = shown[7 * 9 :: 7, : 7 * 8 : 7]
  np.testing.assert_array_equal(below, made[0, ..., 0])
  report = (workdir / 'report.html').read_text()
  assert 'psnr' in report and 'k-means' in report and 'base64' in report


def test_audio_samples_alternate_original_and_reconstruction(run_of):
  workdir = run_of('audio')
  tokenizer, cfg = audio.load(workdir / 'codec'), config.of_run(workdir)
  held_out = data.load_waveforms(cfg.data, 8000, 'valid', seconds=0.5)
  [*_, path] = sorted((workdir / 'samples').iterdir())
  sound, rate = soundfile.read(io.BytesIO(path.read_bytes()))
  made = tokenizer.decode(tokenizer.encode(held_out))
  both = sum(len(wave) for wave in (*held_out, *made)) + 2 * 6 * 1600  # a pause after each
  assert (rate, len(sound)) == (8000, both)
  loudest = max(1, max(np.abs(wave).max() for wave in made))
  first = held_out[0] / loudest
  np.testing.assert_allclose(sound[: len(first)], first, atol=1e-4)
  assert np.abs(sound[len(first) + 1600 :][: len(made[0])]).max() > 0.01


def test_no_validation_data_means_no_scores(tmp_path):
  cfg = tiny_runs.codec(
    'image', data={'packing': 'first_fit', 'valid_fraction': 0.0}, train__steps=1, train__eval_every=0
  )
  result = train.train(cfg, tmp_path / 'run')
  assert result['evaluations'] == [] and 'valid_loss' not in result
  assert not list((tmp_path / 'run/samples').iterdir())
  assert image.load(tmp_path / 'run/codec').codebooks == (16,)


@pytest.mark.parametrize('modality', ['image', 'audio'])
def test_a_tokenizer_is_a_job_and_scores_as_many_items_as_asked(modality, tmp_path, monkeypatch):
  job = job_of(tiny_runs.codec(modality), tmp_path)
  assert all(hasattr(job, name) for name in base.Job.__annotations__)
  scores, rows = job.validate(job.program.init(), 3)
  assert {row['n'] for row in rows} == {3} and scores['valid_loss'] > 0
  monkeypatch.setattr(job, 'program', None)  # its sizes are known without a state
  assert f', 16 codes, {job.count} {job.unit}, ' in job.describe()


# -------------------------------------------------------------------------------------- resuming


class Killed(Exception):
  """Stands for a power cut."""


def killed_before(step):
  """A should_stop that ends everything, with nothing saved, before this step."""
  asked = iter(range(step))

  def should_stop(_):
    if next(asked, None) is None:
      raise Killed
    return False

  return should_stop


def assert_same_run(workdir, reference):
  actual, expected = tiny_runs.arrays(workdir), tiny_runs.arrays(reference)
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_array_equal(actual[path], value, err_msg=path)
  assert metrics(workdir) == metrics(reference)
  assert snapshot(workdir / 'codec') == snapshot(reference / 'codec')


@pytest.mark.parametrize('modality', ['image', pytest.param('audio', marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bitwise_uninterrupted(run_of, modality, tmp_path):
  cfg = tiny_runs.codec(modality)
  with pytest.raises(Killed):
    train.train(cfg, tmp_path / 'run', killed_before(8))  # the newest checkpoint is of step 6
  assert not (tmp_path / 'run/codec').exists()
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(10)) is None
  train.train(cfg, tmp_path / 'run')
  assert_same_run(tmp_path / 'run', run_of(modality))


@pytest.mark.slow
def test_a_codebook_moves_and_survives(vq, tmp_path):
  cfg, whole = vq
  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(5)) is None
  early = tiny_runs.arrays(tmp_path / 'run')
  train.train(cfg, tmp_path / 'run')
  assert_same_run(tmp_path / 'run', whole)
  late, first = tiny_runs.arrays(whole), params_of(job_of(cfg, tmp_path).program.init().model)
  for name in ('values_KZ', 'counts_K', 'sums_KZ'):
    path = f'codebook/{name}'
    assert np.abs(early[f'model/{path}'] - np.asarray(first[path])).max() > 1e-3
    assert np.abs(early[f'model/{path}'] - late[f'model/{path}']).max() > 1e-4
  # Held in a step's statistics alone: no gradient, so no moment moves.
  moments = [v for path, v in late.items() if 'opt_state/direction' in path and 'codebook' in path]
  assert not any(np.abs(value).max() > 0 for value in moments)
  assert metrics(whole)[STEPS]['commitment'] > 0
  np.testing.assert_allclose(
    late['model/codebook/values_KZ'],
    late['model/codebook/sums_KZ'] / late['model/codebook/counts_K'][:, None],
    rtol=1e-5,
  )


@pytest.mark.slow
def test_accumulated_is_the_whole_batch(run_of, tmp_path):
  train.train(tiny_runs.codec('image', train__accumulate=4), tmp_path / 'run')
  actual, expected = tiny_runs.arrays(tmp_path / 'run'), tiny_runs.arrays(run_of('image'))
  for path, value in expected.items():
    np.testing.assert_allclose(actual[path], value, rtol=2e-3, atol=2e-3, err_msg=path)
  for step, line in metrics(run_of('image')).items():
    assert metrics(tmp_path / 'run')[step]['loss'] == pytest.approx(line['loss'], rel=2e-3)


def test_other_data_are_refused(run_of, tmp_path):
  cfg = tiny_runs.codec('audio')
  shutil.copytree(run_of('audio'), tmp_path / 'run')
  (tmp_path / 'run/result.json').unlink()
  saved = records.read_json(tmp_path / 'run/config.json')
  saved['data']['mixture']['keypad']['documents'] = 61
  records.write_json(tmp_path / 'run/config.json', saved)
  more = {'keypad': {'kind': 'keypad', 'template': '{audio:audio}', 'documents': 61}}
  with pytest.raises(ValueError) as error:
    train.train(tiny_runs.codec('audio', data__mixture=more), tmp_path / 'run')
  assert_two_lines(error.value, 'the data differ')
  assert cfg.data.mixture['keypad'].documents == 60


# --------------------------------------------------------------------------------------- batches


def items(count=10, batch_size=4, seed=3, content='x'):
  fingerprint = dict(count=count, batch_size=batch_size, seed=seed, content=content)
  gather = lambda numbers: {'index_B': np.asarray(numbers)}
  return data.ItemLoader(
    data.DataConfig(),
    gather,
    data.epoch_shuffle(seed, count),
    batch_size=batch_size,
    share=(0, 1),
    fingerprint=fingerprint,
  )


def take(loader, n):
  return np.concatenate([next(loader)['index_B'] for _ in range(n)])


def test_each_epoch_has_every_item_once_in_an_order_of_its_own():
  index = take(items(), 10).reshape(4, 10)
  assert all(sorted(epoch) == list(range(10)) for epoch in index.tolist())
  assert len({tuple(epoch) for epoch in index.tolist()}) == 4
  np.testing.assert_array_equal(index, take(items(), 10).reshape(4, 10))
  assert (index != take(items(seed=4), 10).reshape(4, 10)).any()


def test_a_batch_depends_on_its_number_alone():
  whole = [next(loader)['index_B'] for loader in [items()] for _ in range(7)]
  for start in (0, 2, 5):
    loader = items()
    assert loader.restore({**items().state(), 'next_batch': start}) == []
    np.testing.assert_array_equal(next(loader)['index_B'], whole[start])
  loader = items()
  take(loader, 3)
  assert records.to_json(loader.state()) == loader.state() and loader.state()['next_batch'] == 3
  for other in (items(count=11), items(batch_size=5), items(seed=4), items(content='y')):
    with pytest.raises(ValueError) as error:
      other.restore(loader.state())
    assert_two_lines(error.value, 'the data differ')
  wider = items(batch_size=5)
  assert wider.branch(loader.state(), 8) == ['items continues after 12 rows']
  assert (
    wider.identify(8)['items'] == np.concatenate(whole)[12:17].tolist() == wider.first()['index_B'].tolist()
  )
  assert items(count=11).branch(loader.state(), 8)[0].startswith('items starts at its first row (count')


def test_crops_are_pieces_of_the_sounds(tmp_path):
  cfg = tiny_runs.codec('audio')
  first, again = (job_of(cfg, tmp_path).loader for _ in range(2))
  next(first)
  batch = next(first)['frames_BJM']
  again.restore({**again.state(), 'next_batch': 1})
  np.testing.assert_array_equal(next(again)['frames_BJM'], batch)
  assert batch.shape == (16, 64, 40) and batch.dtype == np.float32
  frames_JM = job_of(cfg, tmp_path).frames_JM
  # What a skipped step says of its rows is where they were cut.
  for row, start in zip(batch, first.identify(1)['items'], strict=True):
    np.testing.assert_array_equal(frames_JM[start : start + 64], row)


# ---------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
  'modality, changes, cause',
  [
    ('image', {'image': {'kind': 'pixels', 'patch': 1}}, "image.kind='pixels' does not learn"),
    ('image', {'image': {'kind': 'patches'}}, "image.kind='patches' does not learn"),
    ('image', {'image': {}}, "image.kind='' does not learn"),
    ('audio', {'audio': {'kind': 'frames'}}, "audio.kind='frames' does not learn"),
    ('audio', {'audio': {}}, "audio.kind='' does not learn"),
    ('image', {'image__path': 'runs/x'}, "image.path='runs/x' has no effect"),
    ('audio', {'audio__path': 'runs/x'}, "audio.path='runs/x' has no effect"),
    ('image', {'audio__kind': 'frames'}, "audio.kind='frames' has no effect"),
    ('image', {'train__init_from': 'runs/x'}, "train.init_from='runs/x' has no effect"),
    ('audio', {'model__width': 32}, 'model.width=32 has no effect'),
    ('image', {'loss__z_loss': 0.1}, 'loss.z_loss=0.1 has no effect'),
    ('image', {'train__tasks': ('draw',)}, "train.tasks=('draw',) has no effect"),
    ('audio', {'model__tied_head': False}, 'model.tied_head=False has no effect'),
    ('image', {'audio__codes': 7}, 'audio.codes=7 has no effect'),
    ('audio', {'sample__temperature': 0.5}, 'sample.temperature=0.5 has no effect'),
    ('image', {'train__sample_prompts': ()}, 'train.sample_prompts=() has no effect'),
    ('audio', {'data__workers': 2}, 'data.workers=2 has no effect'),
    ('image', {'data__mixture': {'t': {'kind': 'synthetic'}}}, 'has image data'),
    ('audio', {'audio__seconds': 0.1}, 'more than 0.1 s'),
    ('audio', {'data__mixture__keypad__documents': 2}, '64'),
    ('image', {'data__mixture__digits__kind': 'builtin'}, 'image'),
  ],
)
def test_impossible_settings_are_refused(modality, changes, cause, tmp_path):
  with pytest.raises(ValueError) as error:
    cfg = tiny_runs.codec(modality, **changes)
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, cause)
  assert not (tmp_path / 'run').exists()


def test_an_unknown_job():
  with pytest.raises(ValueError) as error:
    train.TrainConfig(job='video_tokenizer')
  fix = assert_two_lines(error.value, "train.job='video_tokenizer'")[1]
  assert 'image_tokenizer' in fix


@pytest.mark.parametrize('modality', ['image', 'audio'])
def test_a_tokenizer_run_is_not_a_gpt(run_of, modality):
  with pytest.raises(ValueError) as error:
    trained.load(run_of(modality))
  cause, fix = assert_two_lines(error.value, str(run_of(modality)), f'{modality} tokenizer')
  assert f'{modality}.path' in fix


# ------------------------------------------------------------------------------ a GPT that uses it


def media(run_of, **changes):
  """The tiny multimodal experiment on learned tokenizers."""
  paths = {name: str(run_of(name)) for name in ('image', 'audio')}
  sections = {
    'image': tiny_runs.CODECS['image']['image'] | {'path': paths['image']},
    'audio': {'kind': 'fsq', 'path': paths['audio']},
  }
  return config.build(config.Config, tiny_runs.media(**sections | changes))


@pytest.mark.slow
def test_a_gpt_trains_on_the_codes_and_keeps_the_tokenizers(run_of, tmp_path):
  cfg = media(run_of, train__steps=4, train__eval_every=0)
  result = train.train(cfg, tmp_path / 'run')
  assert result['loss'] < math.log(298) - 0.3
  run = trained.load(tmp_path / 'run')
  for name, module in (('image', image), ('audio', audio)):
    assert getattr(run.tokenizers, name) == module.load(run_of(name) / 'codec')
  assert run.tokenizers.vocabulary.count('image0') == 16
  images = data.load_images(cfg.data, (8, 8, 1), 'valid')[:3]
  np.testing.assert_array_equal(
    run.tokenizers.image.encode(images), image.load(run_of('image') / 'codec').encode(images)
  )


@pytest.mark.parametrize(
  'changes, cause',
  [
    ({'image__levels': (4, 3)}, 'levels'),
    ({'image__patch': 4}, 'patch'),
    ({'image__height': 16}, 'height'),
    ({'image__kind': 'vq', 'image__levels': (8, 6, 5)}, 'kind'),
    ({'audio__levels': (4, 3)}, 'audio.levels'),
    ({'image__path': ''}, "image.path=''"),
    ({'audio__path': ''}, "audio.path=''"),
    ({'image__path': '/nowhere'}, '/nowhere'),
    ({'audio__path': '/nowhere'}, '/nowhere'),
  ],
)
def test_settings_unlike_those_of_the_trained_tokenizer_are_refused(run_of, changes, cause, tmp_path):
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    run_tokenizers.build(media(run_of, **changes), tmp_path)
  assert_two_lines(error.value, cause)


@pytest.mark.parametrize('modality', ['image', 'audio'])
def test_an_altered_codec_is_refused(run_of, modality, tmp_path):
  shutil.copytree(run_of(modality) / 'codec', tmp_path / 'base/codec')
  path = tmp_path / f'base/codec/{modality}.safetensors'
  content = bytearray(path.read_bytes())
  content[-5] ^= 1
  path.write_bytes(bytes(content))
  with pytest.raises(ValueError) as error:
    train.train(media(run_of, **{f'{modality}__path': str(tmp_path / 'base')}), tmp_path / 'run')
  assert_two_lines(error.value, 'altered')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_eight_devices_train_the_same(run_of, tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'make_mesh', sharding.make_mesh)
  train.train(tiny_runs.codec('image'), tmp_path / 'run')
  actual, expected = tiny_runs.arrays(tmp_path / 'run'), tiny_runs.arrays(run_of('image'))
  for path, value in expected.items():
    np.testing.assert_allclose(actual[path], value, rtol=2e-3, atol=2e-3, err_msg=path)
