"""The training loop, in process, on runs of a dozen steps."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from gpt_jax import config, data, sharding, step, train
from gpt_jax.jobs import language_model, run_tokenizers
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import records, run_folder
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint, evaluations, meter, session
from gpt_jax.training.start import FREE_ON_RESUME
from tests import tiny_runs
from tests.tiny_runs import assert_two_lines, experiment, snapshot

STEPS = 12
TIMED = ('time', 'tokens_per_second', 'mfu', 'mfu_causal', 'memory_gib', 'step_seconds')


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture
def all_devices(monkeypatch):
  """Train on all eight devices."""
  monkeypatch.setattr(train, 'make_mesh', sharding.make_mesh)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The tiny experiment, trained to the end. Do not change it."""
  return tiny_runs.finished(tmp_path_factory)


def metrics(workdir):
  """{step: what was logged}."""
  lines = records.read_lines(workdir / 'metrics.jsonl')
  assert len({line['step'] for line in lines}) == len(lines)
  return {line.pop('step'): line for line in lines}


def untimed(workdir):
  """Metrics that the machine's speed has no part in."""
  return {
    step: {name: value for name, value in line.items() if name not in TIMED}
    for step, line in metrics(workdir).items()
  }


def events(workdir):
  """[(event, step)]; an error has no step."""
  return [(event['event'], event.get('step')) for event in run_folder.read_events(workdir)]


def start(cfg, workdir):
  """A Session that has been set up; nothing is written."""
  mesh = train.make_mesh(cfg.mesh)
  with jax.set_mesh(mesh):
    return session.setup(cfg, workdir, mesh, train.JOBS[cfg.train.job])


# --------------------------------------------------------------------------- what a run leaves


def test_metrics_hold_every_step_once(run):
  logged = metrics(run)
  assert list(logged) == list(range(1, STEPS + 1))
  for number, line in logged.items():
    expected = {'loss', 'objective', 'grad_norm', 'lr', 'tokens', 'targets', *TIMED}
    if number in (4, 8, 12):
      expected.add('valid_loss')
    assert line.keys() == expected
    assert line['tokens'] == line['targets'] == number * 16 * 32
    assert line['loss'] == line['objective']  # no regularizer is on
    assert line['step_seconds'] > 0 and line['tokens_per_second'] > 0
  cfg = experiment()
  for number, line in logged.items():
    share = min(1, number / cfg.optim.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * max(0, number - 1 - 2) / 10))
    expected = cfg.optim.lr * share * (0.1 + 0.9 * fall)
    assert line['lr'] == pytest.approx(expected, rel=1e-5)


def test_loss_falls_on_learnable_data(run):
  logged = metrics(run)
  assert logged[1]['loss'] == pytest.approx(math.log(272), abs=0.1)  # bytes and 16 specials
  assert logged[12]['loss'] < logged[1]['loss'] - 1.5
  valid = [logged[number]['valid_loss'] for number in (4, 8, 12)]
  assert valid == sorted(valid, reverse=True)
  assert valid[-1] < math.log(272) - 1


def test_the_result_is_the_last_of_everything(run):
  result, last = run_folder.read_result(run), metrics(run)[12]
  assert result['steps'] == STEPS
  assert result['loss'] == last['loss'] and result['tokens'] == last['tokens']
  # Of the whole text, where metrics are of its first train.eval_tokens.
  assert result['valid_loss'] != last['valid_loss'] == pytest.approx(result['valid_loss'], abs=0.1)
  bits = result['valid_loss'] / math.log(2)  # a token is a byte, or one of few ends of documents
  assert bits == pytest.approx(result['valid_bits_per_byte'], rel=0.01)
  assert result['parameters'] == 272 * 16 + 4 * 16 * 16 + 3 * 16 * 64 + 3 * 16
  assert result['tokens_per_second'] == pytest.approx(result['tokens'] / result['seconds'])
  assert result['flops'] > 6 * result['parameters'] * result['tokens']
  rows = {row['metric']: row for row in result['evaluations']}
  assert rows['nats_per_token']['value'] == result['valid_loss']
  assert rows['bits_per_byte']['source'] == 'text'
  assert result['targets'] == result['tokens']  # crops are full
  assert result['replicas'] == 1 and 0 < result['goodput'] < 1
  expected = step.hyper_of(experiment())
  assert result['hyper'] == {name: float(value) for name, value in expected.items()}
  assert result['tokenizer'] == Tokenizers.load(run / 'tokenizer').hash
  assert result['defaults_diff']['train.steps'] == config.Config().train.steps
  assert 'train.seed' not in result['defaults_diff']


def test_events_are_in_the_order_of_the_loop(run):
  assert events(run) == [
    ('start', 0),
    ('compile', 0),
    ('checkpoint', 3),
    ('evaluate', 4),
    ('checkpoint', 6),
    ('sample', 6),
    ('evaluate', 8),
    ('checkpoint', 9),
    ('checkpoint', 12),
    ('evaluate', 12),
    ('sample', 12),
    ('done', 12),
  ]


def test_the_rest_of_the_folder(run):
  assert config.of_run(run) == experiment()
  samples = sorted(path.name for path in (run / 'samples').iterdir())
  assert samples == ['step_00000006.txt', 'step_00000012.txt']
  for name in samples:
    text = (run / 'samples' / name).read_text()
    assert text.startswith('\n') and 1 < len(text) <= 9
  report = (run / 'report.html').read_text()
  assert '<svg' in report or 'base64' in report
  steps = sorted(path.name for path in (run / 'checkpoints').iterdir())
  assert steps == ['12', '9', 'digests']
  assert Tokenizers.load(run / 'tokenizer').text.kind == 'bytes'
  assert not (run / 'tensorboard').exists() and not (run / 'profile').exists()


def test_a_finished_run_may_be_started_again(run, tmp_path):
  again = tmp_path / 'again'
  shutil.copytree(run, again)
  (again / 'report.html').unlink()  # killed before it was written
  assert train.train(experiment(), again) == run_folder.read_result(run)
  assert 'It has not finished' not in (again / 'report.html').read_text()
  (again / 'result.json').unlink()  # killed after the last checkpoint
  (again / 'report.html').unlink()
  train.train(experiment(), again)
  before, after = run_folder.read_result(run), run_folder.read_result(again)
  for name in ('loss', 'valid_loss', 'tokens', 'seconds', 'steps'):
    assert after[name] == before[name], name
  assert untimed(again) == untimed(run)
  assert (again / 'report.html').exists()


# ------------------------------------------------------------------------ the same by other ways


def assert_same_end(workdir, run, tolerance=2e-5):
  actual, expected = tiny_runs.arrays(workdir), tiny_runs.arrays(run)
  assert actual.keys() == expected.keys()
  for path, value in expected.items():
    np.testing.assert_allclose(actual[path], value, rtol=tolerance, atol=tolerance, err_msg=path)


@pytest.fixture
def traces(monkeypatch):
  """A list that grows with a step's number whenever the step is traced, or compiled for a run."""
  seen, real, step_function = [], step.train_step, session.step_function

  def traced(*arguments):
    seen.append('traced')
    return real(*arguments)

  def compiled(s, batch):
    seen.extend([] if s.compiled_step else ['compiled'])
    return step_function(s, batch)

  monkeypatch.setattr(step, 'train_step', traced)
  monkeypatch.setattr(session, 'step_function', compiled)
  return seen


def test_accumulation_reaches_the_same_end_and_logs_by_interval(run, tmp_path):
  cfg = experiment(train__accumulate=2, log__every=5, checkpoint__every=0, train__sample_prompts=())
  train.train(cfg, tmp_path / 'run')
  assert_same_end(tmp_path / 'run', run)
  logged, one_by_one = metrics(tmp_path / 'run'), metrics(run)
  assert [number for number, line in logged.items() if 'loss' in line] == [5, 10, 12]
  for first, last in ((1, 5), (6, 10), (11, 12)):
    mean = np.mean([one_by_one[number]['loss'] for number in range(first, last + 1)])
    assert logged[last]['loss'] == pytest.approx(mean, rel=1e-5)
    assert logged[last]['lr'] == pytest.approx(one_by_one[last]['lr'], rel=1e-6)
    assert logged[last]['tokens'] == one_by_one[last]['tokens']
  assert [name for name, _ in events(tmp_path / 'run')].count('checkpoint') == 1
  assert not list((tmp_path / 'run/samples').iterdir())  # no prompts, no samples


def test_several_steps_a_call_reach_the_same_end(run, tmp_path, traces):
  cfg = experiment(train__steps_per_call=2, train__eval_every=0, train__sample_every=0, checkpoint__every=6)
  train.train(cfg, tmp_path / 'run')
  # Once to see that it can be, before anything is written, and once to run: never in the loop.
  assert traces == ['traced', 'compiled', 'traced']
  assert_same_end(tmp_path / 'run', run)
  logged, one_by_one = metrics(tmp_path / 'run'), metrics(run)
  assert list(logged) == [2, 4, 6, 8, 10, 12]
  for number, line in logged.items():
    pair = (one_by_one[number - 1]['loss'], one_by_one[number]['loss'])
    assert line['loss'] == pytest.approx(np.mean(pair), rel=1e-5)
    assert line['tokens'] == one_by_one[number]['tokens']
  actual = events(tmp_path / 'run')
  assert [event for event in actual if event[0] in ('evaluate', 'sample')] == [
    ('evaluate', 12),
    ('sample', 12),
  ]


@pytest.mark.parametrize('step', [4, 12])
def test_a_request_does_not_wait_for_the_end_of_an_evaluation(run, tmp_path, step):
  """Its step is saved, and the same command evaluates there again."""
  asked = []
  stop = lambda made: bool(asked.append(made)) or asked.count(step) == 2  # after its first batch
  assert train.train(experiment(), tmp_path / 'run', stop) is None
  assert ('evaluate', step) not in events(tmp_path / 'run')
  assert events(tmp_path / 'run')[-2:] == [('checkpoint', step), ('preempted', step)]
  train.train(experiment(), tmp_path / 'run')
  assert_same_end(tmp_path / 'run', run)


@pytest.mark.slow
def test_resumed_on_another_mesh_reaches_the_same_end(run, tmp_path, all_devices):
  assert train.train(experiment(), tmp_path / 'run', tiny_runs.stop_before(5)) is None
  train.train(experiment(mesh__data=2, mesh__fsdp=4), tmp_path / 'run')
  assert_same_end(tmp_path / 'run', run)
  [resume] = [e for e in run_folder.read_events(tmp_path / 'run') if e['event'] == 'resume']
  assert resume['changed'] == {'mesh.data': [-1, 2], 'mesh.fsdp': [1, 4]}


def test_what_another_process_saved_meanwhile_is_not_cut(tmp_path):
  """A process that took long to start, its folder free again when it is ready."""
  workdir = tmp_path / 'run'
  stale = start(experiment(), workdir)
  assert train.train(experiment(), workdir, tiny_runs.stop_before(5)) is None
  stopped = start(experiment(), workdir)
  before = tiny_runs.snapshot(workdir)
  with pytest.raises(ValueError) as error:
    session.acquire_run_dir(stale).__enter__()
  assert_two_lines(error.value, str(workdir), 'another process has saved')
  assert tiny_runs.snapshot(workdir) == before
  with session.acquire_run_dir(stopped):
    pass


# ---------------------------------------------------------------------- mixtures, packing, loggers


def stories(folder, name, words):
  """A text file of short documents of different lengths."""
  rng = np.random.default_rng(len(words))
  pick = lambda: ' '.join(rng.choice(words, rng.integers(1, 6)))
  (folder / name).write_text('\n\n'.join(pick() for _ in range(300)))
  return {'kind': 'text', 'path': str(folder / name), 'separator': '\n\n'}


@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
  """(config, run folder) of two sources, whole documents packed, every logger on."""
  folder = tmp_path_factory.mktemp('mixed')
  cfg = experiment(
    data__mixture={
      'cats': stories(folder, 'cats.txt', ['mew', 'purr', 'hiss']) | {'weight': 3.0},
      'dogs': stories(folder, 'dogs.txt', ['bark', 'woof']),
    },
    data__packing='first_fit',
    train__steps=4,
    train__eval_every=0,
    train__profile=(1, 4),
    log__tensorboard=True,
  )
  train.train(cfg, folder / 'run')
  return cfg, folder / 'run'


def test_every_source_has_its_validation_loss(mixed):
  _, workdir = mixed
  logged = metrics(workdir)
  names = {name for line in logged.values() for name in line if name.startswith('valid')}
  assert names == {'valid_loss', 'valid_loss/cats', 'valid_loss/dogs', 'valid_bits_per_byte'}
  last = logged[4]
  assert last['valid_loss'] == np.mean([last['valid_loss/cats'], last['valid_loss/dogs']])
  assert last['valid_loss/cats'] != last['valid_loss/dogs']
  assert not any('valid_loss' in logged[number] for number in (1, 2, 3))  # eval_every=0
  assert {row['source'] for row in run_folder.read_result(workdir)['evaluations']} == {'cats', 'dogs'}


def test_tokens_are_of_documents_and_targets_carry_loss(mixed):
  cfg, workdir = mixed
  loader = data.Loader(
    cfg.data,
    Tokenizers.load(workdir / 'tokenizer'),
    split='train',
    batch_size=16,
    length=32,
    seed=cfg.train.seed,
    cache_dir=workdir / 'cache',
  )
  batches = [next(loader) for _ in range(4)]
  tokens = np.cumsum([(batch['segment_ids_BT'] > 0).sum() for batch in batches])
  targets = np.cumsum([batch['loss_mask_BT'].sum() for batch in batches])
  logged, result = metrics(workdir), run_folder.read_result(workdir)
  assert [logged[number]['tokens'] for number in (1, 2, 3, 4)] == tokens.tolist()
  assert [logged[number]['targets'] for number in (1, 2, 3, 4)] == targets.tolist()
  assert targets[-1] < 0.99 * tokens[-1] < 0.98 * 4 * 16 * 32  # ends of documents, padding
  assert (result['tokens'], result['targets']) == (tokens[-1], targets[-1])
  assert result['tokens_per_second'] == pytest.approx(tokens[-1] / result['seconds'])
  flops = start(cfg, workdir).job.flops['full']
  assert result['flops'] == pytest.approx(flops * tokens[-1])


def test_data_are_named_by_their_content_and_not_by_their_order(mixed, tmp_path):
  cfg, workdir = mixed
  name = run_folder.read_result(workdir)['data']
  assert len(name) == 16
  of = lambda cfg: meter.data_hash(start(cfg, tmp_path / 'other').job.loader.fingerprint)
  other = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, seed=5))
  assert of(cfg) == of(other) == name
  assert of(dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, packing='split'))) != name


def test_tensorboard_and_profile_are_written(mixed):
  _, workdir = mixed
  assert list((workdir / 'tensorboard').glob('events.out.tfevents.*'))
  [trace] = workdir.glob('profile/**/*.xplane.pb')
  assert trace.stat().st_size > 10_000


def test_a_run_in_progress_can_be_profiled(tmp_path):
  """The same command with train.profile resumes it, and traces the steps ahead."""
  quiet = dict(train__eval_every=0, train__sample_every=0, train__sample_prompts=())
  assert train.train(experiment(**quiet), tmp_path / 'run', tiny_runs.stop_before(5)) is None
  assert (
    train.train(experiment(**quiet, train__profile=(6, 8)), tmp_path / 'run', tiny_runs.stop_before(9))
    is None
  )
  [trace] = (tmp_path / 'run').glob('profile/**/*.xplane.pb')
  assert trace.stat().st_size > 10_000


# -------------------------------------------------------------------------------- other beginnings


def test_init_from_takes_the_weights_and_nothing_else(run, tmp_path):
  cfg = experiment(train__init_from=str(run))
  training = start(cfg, tmp_path / 'fresh')
  assert not (tmp_path / 'fresh/config.json').exists()
  state, stored = training.state, tiny_runs.arrays(run)
  for path, value in step.params_of(state.model).items():
    np.testing.assert_array_equal(value, stored[f'opt_state/ema/{path}'], err_msg=path)
    np.testing.assert_array_equal(state.opt_state.ema[path], value, err_msg=path)
  assert training.step == state.step == state.opt_state.updates == 0
  moments = jax.tree.leaves(state.opt_state.direction)
  assert moments and not any(np.asarray(moment).any() for moment in moments)
  assert training.job.tokenizers.hash == Tokenizers.load(run / 'tokenizer').hash

  assert train.train(cfg, tmp_path / 'run', tiny_runs.stop_before(1)) is None
  [first] = metrics(tmp_path / 'run').values()
  assert first['loss'] < metrics(run)[1]['loss'] - 1
  assert first['lr'] == metrics(run)[1]['lr']  # the schedule begins anew


def test_init_from_a_model_with_another_tokenizer(run, tmp_path):
  cfg = experiment(train__init_from=str(run), tokenizer__kind='chars')
  with pytest.raises(ValueError) as error:
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, f'train.init_from={run}')


def test_init_from_a_model_of_another_shape(run, tmp_path):
  cfg = experiment(train__init_from=str(run), model__width=32)
  with pytest.raises(ValueError) as error:
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, f'{run}/checkpoints/12 does not fit the model: model.width 16 -> 32')
  assert not (tmp_path / 'run/config.json').exists()


def test_tokenizer_files_that_were_half_written_are_made_again(tmp_path, run):
  (tmp_path / 'tokenizer').mkdir()
  shutil.copy(run / 'tokenizer/text.json', tmp_path / 'tokenizer')  # killed after this one
  made = run_tokenizers.build(experiment(tokenizer__kind='bytes'), tmp_path)
  assert made.hash == Tokenizers.load(run / 'tokenizer').hash


def test_an_altered_tokenizer_is_refused(run, tmp_path):
  again = tmp_path / 'again'
  shutil.copytree(run, again)
  path = again / 'tokenizer/vocabulary.json'
  content = json.loads(path.read_text())
  content['specials'][0][1], content['specials'][1][1] = 257, 256
  path.write_text(json.dumps(content))
  before = snapshot(again)
  with pytest.raises(ValueError) as error:
    train.train(experiment(), again)
  assert_two_lines(error.value, str(path), 'was altered')
  assert snapshot(again) == before


def test_changed_data_are_refused_or_begun_anew(tmp_path, capsys):
  (tmp_path / 'a.txt').write_text('to be or not to be ' * 200)
  source = {'text': {'kind': 'text', 'path': str(tmp_path / 'a.txt')}}
  cfg = experiment(data__mixture=source, train__eval_every=0, train__sample_prompts=())
  workdir = tmp_path / 'run'
  assert train.train(cfg, workdir, tiny_runs.stop_before(4)) is None
  assert events(workdir)[-2:] == [('checkpoint', 4), ('preempted', 4)]
  assert not (workdir / 'result.json').exists()

  (tmp_path / 'a.txt').write_text('to be or to do ' * 300)
  before = {k: v for k, v in snapshot(workdir).items() if not k.startswith('cache')}
  with pytest.raises(ValueError) as error:
    train.train(cfg, workdir)
  assert_two_lines(error.value, 'the data differ', 'mixture.text.content')
  assert {k: v for k, v in snapshot(workdir).items() if not k.startswith('cache')} == before

  capsys.readouterr()
  reset = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, reset=True))
  train.train(reset, workdir)
  assert 'data.reset: mixture.text.content' in capsys.readouterr().out
  assert list(metrics(workdir)) == list(range(1, STEPS + 1))
  [resume] = [event for event in run_folder.read_events(workdir) if event['event'] == 'resume']
  assert (resume['step'], resume['changed']) == (4, {'data.reset': [False, True]})


# -------------------------------------------------------------------------------------- failures


def test_gradients_that_stay_non_finite_end_the_run(tmp_path, monkeypatch):
  made, setup = [], session.setup
  monkeypatch.setattr(session, 'setup', lambda *arguments: made.append(setup(*arguments)) or made[0])
  cfg = experiment(optim__lr=1e20, train__max_skipped=3)
  with pytest.raises(FloatingPointError) as error:
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, 'not finite in 3 steps in a row, up to step 4')
  [training] = made
  state = jax.device_get(step.params_of(training.state.model))
  assert all(np.isfinite(value).all() for value in state.values())
  assert any(np.abs(value).max() > 1e15 for value in state.values())  # of the one good update
  # Since the report comes a step late, one more step was made, and skipped as well.
  assert (training.state.opt_state.updates, training.state.opt_state.skipped) == (1, 4)
  logged = metrics(tmp_path / 'run')
  assert [line.get('skipped', 0) for line in logged.values()] == [0, 1, 1, 1]
  assert events(tmp_path / 'run')[:3] == [('start', 0), ('compile', 0), ('skipped', 2)]
  last = run_folder.read_events(tmp_path / 'run')[-1]
  assert (last['event'], last['type']) == ('error', 'FloatingPointError')
  saved = tiny_runs.arrays(tmp_path / 'run')  # step 3, whose writing was under way, is whole
  np.testing.assert_array_equal(saved['model/embed_VD'], state['embed_VD'])


def test_an_error_in_the_loop_frees_the_folder(run, tmp_path, monkeypatch):
  monkeypatch.setattr(evaluations, 'evaluate', lambda s: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    train.train(experiment(), tmp_path / 'run')
  monkeypatch.undo()
  assert events(tmp_path / 'run')[-2][0] == 'checkpoint'
  assert run_folder.read_events(tmp_path / 'run')[-1]['type'] == 'ZeroDivisionError'
  train.train(experiment(), tmp_path / 'run')  # goes on from step 3
  assert untimed(tmp_path / 'run') == untimed(run)
  assert ('resume', 3) in events(tmp_path / 'run')


@pytest.mark.parametrize(
  'changes, part',
  [
    (dict(train__sample_prompts=('x' * 40,)), 'the prompt has 40 tokens'),
    (dict(tokenizer__kind='chars', train__sample_prompts=('Ж',)), "character 'Ж'"),
    (dict(model__vocab=100), 'the tokenizer has 272 ids and model.vocab=100'),
    (dict(train__length=64), 'train.length=64 is longer than model.context=32'),
    (dict(mesh__tensor=3), 'tensor=3 does not fit 8 device(s)'),
    (dict(train__batch_size=6), 'a batch of 6 rows'),
    (dict(optim__lr_multipliers=('embd.*=1',)), 'optim.lr_multipliers'),
    (dict(train__init_from='nowhere'), 'nowhere'),
    (dict(model__tied_head=False, mesh__fsdp=8, model__width=12), 'D=12'),
  ],
)
def test_what_cannot_work_is_refused_before_the_run_folder_is_one(tmp_path, all_devices, changes, part):
  workdir = tmp_path / 'run'
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    train.train(experiment(**changes), workdir)
  assert_two_lines(error.value, part)
  assert all(name.startswith('cache/') for name in snapshot(workdir) or ())


@pytest.mark.parametrize(
  'wrong, part',
  [
    (dict(steps=0), 'train.steps=0'),
    (dict(batch_size=8, accumulate=3), 'train.accumulate=3'),
    (dict(steps=10, steps_per_call=4), 'train.steps=10'),
    (dict(steps=8, steps_per_call=4, eval_every=6), 'train.eval_every=6'),
    (dict(profile=(3,)), 'train.profile=(3,)'),
    (dict(profile=(5, 3)), 'train.profile=(5, 3)'),
    (dict(max_skipped=0), 'train.max_skipped=0'),
  ],
)
def test_settings_that_cannot_be(wrong, part):
  with pytest.raises(ValueError) as error:
    train.TrainConfig(**wrong)
  assert_two_lines(error.value, part)


def test_a_checkpoint_between_two_calls_is_refused(tmp_path):
  cfg = experiment(train__steps_per_call=2, train__sample_every=0, checkpoint__every=3)
  with pytest.raises(ValueError) as error:
    train.train(cfg, tmp_path / 'run')
  assert_two_lines(error.value, 'checkpoint.every=3 is not a multiple of train.steps_per_call=2')
  assert not (tmp_path / 'run').exists()


# ------------------------------------------------------------------------------------ small parts


def test_the_tail_is_the_last_tenth_of_the_steps():
  lines = [{'step': s, 'time': 0.0, 'tokens': s, 'targets': s, 'loss': float(s)} for s in range(1, 41)]
  lines[-1]['valid_loss'] = 7.0
  assert meter.tail(lines, 40) == {'loss': 38.5, 'valid_loss': 7.0}
  assert math.isnan(meter.tail([*lines, {'step': 40, 'loss': math.nan}], 40)['loss'])
  assert meter.tail(lines[:2], 2) == {'loss': 2.0}
  assert meter.tail([], 0) == {}


@pytest.mark.parametrize(
  'every, steps, expected', [(0, 6, [6]), (1, 3, [1, 2, 3]), (2, 6, [2, 4, 6]), (4, 6, [4, 6]), (10, 6, [6])]
)
def test_due(every, steps, expected):
  assert [number for number in range(steps + 1) if evaluations.due(every, number, steps)] == expected


def test_the_vocabulary_is_that_of_the_tokenizer_unless_it_is_given(run):
  toks = Tokenizers.load(run / 'tokenizer')
  assert language_model.resolve_model(experiment(), toks).vocab == 272
  assert language_model.resolve_model(experiment(model__vocab=300), toks).vocab == 300
  resolved = dataclasses.asdict(language_model.resolve_model(experiment(), toks))
  assert 'auto' not in {v for k, v in resolved.items() if k != 'kernel'}
  assert resolved['layers'] == ModelConfig(layers=1).layers


def test_what_is_free_on_resume_cannot_change_a_result():
  """Each prefix names something, so that a renamed key cannot slip out of the comparison."""
  keys = records.flatten(records.to_json(config.to_dict(config.Config())))
  for prefix in FREE_ON_RESUME:
    assert any(f'{key}.'.startswith(prefix.rstrip('.') + '.') for key in keys), prefix


def test_an_evaluation_that_fails_loses_no_step(tmp_path, monkeypatch):
  """The checkpoint of its step is written before it."""

  def fail(s):
    raise ValueError('no validation data\nfix: add some')

  monkeypatch.setattr(evaluations, 'evaluate', fail)
  cfg = experiment(train__eval_every=6)
  with pytest.raises(RuntimeError, match='no validation data'):
    train.train(cfg, tmp_path)
  assert checkpoint.Checkpoints(tmp_path / 'checkpoints').latest_good() == 6
