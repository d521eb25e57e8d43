"""Plugins: rows from outside the package in every table; copies, digests, consent, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import config, losses, optim, step
from gpt_jax.ablation import design
from gpt_jax.data.sources import open_source
from gpt_jax.model import gpt
from gpt_jax.runs import metric_names, plugins, run_folder
from gpt_jax.sampling import samplers
from gpt_jax.training import ineffective
from tests import command_line, tiny_runs

CALLS = []  # names of tables whose rows were called
EVERY = """
import functools
import jax
import jax.numpy as jnp
import optax
from gpt_jax.data.splits import Corpus
from gpt_jax.data.sources import SourceKind
from gpt_jax.evaluation.tasks.common import Task
from gpt_jax.model.attention import xla_attention
from gpt_jax.model.kernels.choice import Kernel
from gpt_jax.model.position_schemes import RopeScaling
from gpt_jax.model.positions import Position
from gpt_jax.optim import OPTIMIZERS, OptimizerRow
from gpt_jax.runs.metric_names import Metric
from tests.runs.test_plugins import CALLS


def seen(name, fn):
  def wrapped(*args, **options):
    CALLS.append(name)
    return fn(*args, **options)
  return wrapped


bias = lambda cfg, t_BT, s_BS: jnp.zeros((1, cfg.heads, 1, 1))
rms = lambda x, eps: x.astype(jnp.float32)
POSITIONS = {'p_own': Position(bias=seen('POSITIONS', bias))}
ROPE_SCALINGS = {'r_own': RopeScaling(seen('ROPE_SCALINGS', lambda cfg, frequencies_k: frequencies_k))}
FUSED_KERNELS = {'k_own': Kernel(seen('FUSED_KERNELS', xla_attention), is_definition=True)}
NORMS = {'n_own': seen('NORMS', rms)}
ACTIVATIONS = {'a_own': seen('ACTIVATIONS', lambda up, gate: up)}
GATED = {'g_own': seen('GATED', lambda up, gate: up * gate)}
INITS = {'i_own': seen('INITS', lambda cfg: 0.01)}
OPTIMIZERS = {'o_own': OptimizerRow(seen('OPTIMIZERS', OPTIMIZERS['sgd'].make), ('b1',))}
SCHEDULES = {'s_own': seen('SCHEDULES', lambda cfg, update, steps: cfg.cooldown * 1.0)}
TERMS = {'t_own': seen('TERMS', lambda logits_BTV, target_ids_BT, log_z_BT: log_z_BT)}
FILTERS = {'f_own': (1.0, seen('FILTERS', lambda logits_BV, p: logits_BV > p))}
SOURCES = {'d_own': SourceKind(
  seen('SOURCES', lambda source, split: Corpus(lambda: iter([('a', {'text': 'b'})]), lambda: 'c')), ())}
TASKS = {'e_own': Task(lambda *args: [], seen('TASKS', lambda *kinds: True), '{text}')}
METRICS = {'m_own': Metric('my score', unit='dB')}
"""


@pytest.fixture
def store(tmp_path, monkeypatch):
  """A store of its own; the tables are as before at the end."""
  tables = {name: (plugins._table(name), dict(plugins._table(name))) for name in plugins.TABLES}
  monkeypatch.setattr(plugins, '_loaded', {})
  monkeypatch.setattr(plugins, '_owners', {})
  monkeypatch.setenv(plugins.STORE, str(tmp_path / 'store'))
  yield tmp_path / 'store'
  for table, rows in tables.values():
    table.clear()
    table.update(rows)


def write(tmp_path, text, name='mine.py'):
  """A plugin file."""
  (tmp_path / name).write_text(text)
  return str(tmp_path / name)


def build(path, **changes):
  """The tiny experiment with a plugin, as a Config."""
  return tiny_runs.experiment(plugins=(path,), **changes)


def forward(cfg):
  """Trace a forward pass of a model."""
  model = gpt.GPT(dataclasses.replace(cfg.model, vocab=50).resolved('cpu'))
  jax.eval_shape(lambda model, ids_BT: model(ids_BT).logits_BTV, model, jnp.zeros((1, 8), jnp.int32))


def use_optimizer(cfg):
  """Make an optimizer and its state."""
  jax.eval_shape(optim.Optimizer(cfg.optim, 10, {'w': 'D'}, 1.0).init, {'w': jnp.zeros(3)})


def use_term(cfg):
  """Compute the objective, and compare the term of weight 2."""
  hyper = step.hyper_of(cfg)
  logits_BTV, ids_BT = jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), jnp.int32)
  loss_BT, nats_BT = losses.objective(logits_BTV, ids_BT, 4, hyper)
  np.testing.assert_allclose(loss_BT - nats_BT, 2 * np.log(4), rtol=1e-6)


def use_filter(cfg):
  """Apply the one active filter."""
  [(keep, value)] = samplers.active_filters(cfg.sample)
  assert value == 0.5 and not keep(jnp.zeros((1, 4)), value).any()


def use_source(cfg):
  """Read the records; the description names the plugin's content."""
  source = cfg.data.mixture['text']
  assert list(open_source(source, 'train').records()) == [('a', {'text': 'b'})]
  assert source.describe('train')['plugin'] == cfg.plugins[0]


USES = {  # table: (row, changes of the config, what calls it)
  'POSITIONS': ('p_own', {'model__positions': 'p_own'}, forward),
  'ROPE_SCALINGS': ('r_own', {'model__rope_scaling': 'r_own'}, forward),
  'FUSED_KERNELS': ('k_own', {'model__kernel': 'k_own'}, forward),
  'NORMS': ('n_own', {'model__norm': 'n_own'}, forward),
  'ACTIVATIONS': ('a_own', {'model__mlp': 'a_own'}, forward),
  'GATED': ('g_own', {'model__mlp': 'g_own'}, forward),
  'INITS': ('i_own', {'model__init_projections': 'i_own'}, forward),
  'OPTIMIZERS': ('o_own', {'optim__name': 'o_own'}, use_optimizer),
  'SCHEDULES': ('s_own', {'optim__schedule': 's_own'}, ineffective.schedule_keys),
  'TERMS': ('t_own', {'loss__terms': 't_own=2'}, use_term),
  'FILTERS': ('f_own', {'sample__filters': 'f_own=0.5'}, use_filter),
  'SOURCES': ('d_own', {'data__mixture': {'text': {'kind': 'd_own'}}}, use_source),
  'TASKS': ('e_own', {'train__tasks': ('e_own',)}, lambda cfg: plugins._table('TASKS')['e_own'].fits()),
}


@pytest.mark.parametrize('table', USES)
def test_a_row_of_a_plugin_is_chosen_and_used(store, tmp_path, table):
  row, changes, use = USES[table]
  cfg = build(write(tmp_path, EVERY), **changes)
  [entry] = cfg.plugins
  CALLS.clear()
  use(cfg)
  assert table in CALLS
  assert (row, entry) in [used[1:] for used in plugins.used_rows(config.to_dict(cfg))]


def test_a_metric_of_a_plugin_has_its_title(store, tmp_path):
  build(write(tmp_path, EVERY))
  assert metric_names.title('m_own') == 'my score, dB'


@pytest.mark.parametrize('table', sorted({*USES} - {'SOURCES', 'TASKS'}))
def test_a_wrong_name_lists_the_rows_of_plugins(store, tmp_path, table):
  row, changes, _ = USES[table]
  [(key, value)] = changes.items()
  path = write(tmp_path, EVERY)
  with pytest.raises(ValueError) as error:
    build(path, **{key: value.replace(row, 'wrong')})
  assert row in tiny_runs.assert_two_lines(error.value, 'wrong', 'is not known')[1]


@pytest.mark.parametrize(
  ('text', 'parts'),
  [
    ('x = 1', ('adds no row',)),
    ("POSITIONS = {'rope': 1}", ("POSITIONS['rope']", 'exists already, in the package')),
    ("GATED = {'gelu': max}", ("GATED['gelu']", 'exists already')),
    ("POSITIONS = {'own': max}", ("POSITIONS['own']", 'expected a Position')),
    ("NORMS = {'own': 1}", ("NORMS['own'] is a int, expected a function",)),
    ("TERMS = {'dropout': max}", ('is the name of a setting',)),
    ("NORMS = {'a,b': max}", ('is not a name',)),
    ("POSITION = {'own': 1}", ('POSITION is not a table',)),
    ('import nothing_of_this_name', ('ModuleNotFoundError', 'mine.py:1')),
    ('x = (', ('SyntaxError', 'mine.py:1')),
    ("token = 'hf_canary0123456789'\nNORMS = {'own': max}", ('holds a secret',)),
    ('#' * (plugins.MOST_BYTES + 1), ('has more than',)),
  ],
  ids=lambda value: str(value)[:40],
)
def test_a_plugin_that_cannot_be_is_refused(store, tmp_path, text, parts):
  rows = {name: list(plugins._table(name)) for name in plugins.TABLES}
  with pytest.raises(ValueError) as error:
    build(write(tmp_path, text))
  tiny_runs.assert_two_lines(error.value, *parts)
  assert rows == {name: list(plugins._table(name)) for name in plugins.TABLES}


def test_two_plugins_cannot_have_one_row(store, tmp_path):
  build(write(tmp_path, "NORMS = {'own': max}"))
  with pytest.raises(ValueError) as error:
    build(write(tmp_path, "NORMS = {'own': min}", 'other.py'))
  tiny_runs.assert_two_lines(error.value, 'exists already, in mine.py')


def test_a_config_without_the_plugin_cannot_use_its_row(store, tmp_path):
  build(write(tmp_path, EVERY))
  with pytest.raises(ValueError) as error:
    tiny_runs.experiment(model__norm='n_own')
  tiny_runs.assert_two_lines(error.value, "model.norm='n_own'", 'mine.py')


def test_a_missing_file_is_an_error(store, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    build(str(tmp_path / 'none.py'))
  tiny_runs.assert_two_lines(error.value, 'none.py is not a file')


FAULTY = """
import jax
import jax.numpy as jnp
from gpt_jax.model.positions import Position
from gpt_jax.optim import OPTIMIZERS, OptimizerRow


def helper(x):
  return jnp.dot(x, jnp.zeros((3, 7)))


def fails(*args):
  return helper(jnp.zeros((2, 5)))


def widens(*args):
  return jnp.zeros((2, 5, 9))


POSITIONS = {'fails': Position(bias=fails), 'widens': Position(bias=widens),
  'embeds': Position(embed=widens), 'turns': Position(rotate=widens)}
NORMS = {'fails': fails, 'widens': widens}
ACTIVATIONS = {'fails': fails, 'widens': widens}
INITS = {'widens': widens}
SCHEDULES = {'fails': fails, 'widens': widens}
TERMS = {'widens': widens}
FILTERS = {'widens': (1.0, widens)}
OPTIMIZERS = {'fails': OptimizerRow(fails)}
"""


@pytest.mark.parametrize(
  ('table', 'key'),
  [
    ('POSITIONS', 'model__positions'),
    ('NORMS', 'model__norm'),
    ('ACTIVATIONS', 'model__mlp'),
    ('SCHEDULES', 'optim__schedule'),
    ('OPTIMIZERS', 'optim__name'),
  ],
)
def test_an_error_of_a_plugin_names_its_file_line_and_function(store, tmp_path, table, key):
  cfg = build(write(tmp_path, FAULTY), **{key: 'fails'})
  with pytest.raises(Exception) as error:
    USES[table][2](cfg)
  cause, fix = tiny_runs.assert_two_lines(plugins.as_user_error(error.value), 'plugins=mine.py: TypeError: ')
  assert cause.endswith('(mine.py:9, in helper)') and fix.endswith('correct helper in mine.py')


@pytest.mark.parametrize(
  ('table', 'changes', 'got', 'expected'),
  [
    ('POSITIONS', {'model__positions': 'widens'}, "POSITIONS['widens'].bias returns", '(1, 2, 8, 8)'),
    ('POSITIONS', {'model__positions': 'embeds'}, "POSITIONS['embeds'].embed returns", '(1, 8, 16)'),
    ('POSITIONS', {'model__positions': 'turns'}, "POSITIONS['turns'].rotate returns", '(1, 8, 2, 8)'),
    ('NORMS', {'model__norm': 'widens'}, "NORMS['widens'] returns", '(1, 8, 16)'),
    ('ACTIVATIONS', {'model__mlp': 'widens'}, "ACTIVATIONS['widens'] returns", '(1, 8, 64)'),
    ('INITS', {'model__init_projections': 'widens'}, "INITS['widens'] returns", 'expected ()'),
    ('SCHEDULES', {'optim__schedule': 'widens'}, "SCHEDULES['widens'] returns", 'expected ()'),
    ('TERMS', {'loss__terms': 'widens=2'}, "TERMS['widens'] returns", '(1, 2)'),
    ('FILTERS', {'sample__filters': 'widens=0.5'}, "FILTERS['widens'] returns", '(1, 4)'),
  ],
)
def test_a_wrong_shape_of_a_plugin_names_the_row_and_both_shapes(
  store, tmp_path, table, changes, got, expected
):
  with pytest.raises(ValueError) as error:
    USES[table][2](build(write(tmp_path, FAULTY), **changes))
  parts = ('plugins=mine.py: ', got, 'the shape (2, 5, 9)', expected, '(mine.py:16, in widens)')
  tiny_runs.assert_two_lines(error.value, *parts)


def test_errors_of_the_package_and_of_divergence_stay_as_they_are(store, tmp_path):
  build(write(tmp_path, FAULTY))
  for error in (KeyError('own'), FloatingPointError('loss is nan'), ValueError('a\nfix: b')):
    assert plugins.as_user_error(error) is error


def test_the_command_line_prints_an_error_of_a_plugin_in_two_lines(tmp_path):
  path, base = write(tmp_path, FAULTY), command_line.experiment(tmp_path)
  options = {'folder': tmp_path, 'env': {plugins.STORE: str(tmp_path / 'store')}}
  train = ('train', f'--config={base}', f"--config.plugins=('{path}',)", f'--workdir={tmp_path}/run')
  code, output = command_line.launch(*train, '--config.model.norm=fails', **options)
  assert code == 2 and 'Traceback' not in output
  tiny_runs.assert_two_lines('\n'.join(output.strip().splitlines()[-2:]), '(mine.py:9, in helper)')


# ------------------------------------------------------------------------------- copies and consent


@pytest.fixture
def folder(store, tmp_path):
  """A run folder with a plugin; the plugin's own file is gone, and no process has loaded it."""
  cfg = build(write(tmp_path, EVERY), model__norm='n_own')
  section = config.to_dict(cfg)
  with run_folder.acquire_run_dir(tmp_path / 'run', section, log=cfg.log, total_steps=1):
    pass
  (tmp_path / 'mine.py').unlink()
  yield tmp_path / 'run'


def forget():
  """Behave as a new process does."""
  for table, row in list(plugins._owners):
    del plugins._table(table)[row]
  plugins._owners.clear()
  plugins._loaded.clear()


def test_a_run_goes_on_with_its_copy(folder, store):
  cfg = config.of_run(folder)
  forget()
  assert config.of_run(folder) == cfg
  assert cfg.plugins[0].startswith('mine.py@') and len(list((folder / 'plugins').iterdir())) == 1


def test_code_of_a_stranger_needs_consent(folder, tmp_path, monkeypatch):
  forget()
  monkeypatch.setenv(plugins.STORE, str(tmp_path / 'of another machine'))
  with pytest.raises(ValueError) as error:
    config.of_run(folder)
  copy = next((folder / 'plugins').iterdir())
  digest = copy.stem.partition('-')[2]
  cause, fix = tiny_runs.assert_two_lines(error.value, 'mine.py', digest)
  assert str(copy) in fix and '--trust_plugins' in fix
  assert not plugins._loaded and 'n_own' not in plugins._table('NORMS')
  monkeypatch.setenv(plugins.CONSENT, '1')
  config.of_run(folder)
  forget()
  monkeypatch.delenv(plugins.CONSENT)
  config.of_run(folder)  # remembered


@pytest.mark.parametrize('how', ['altered', 'missing'])
def test_a_copy_that_is_not_the_content_is_refused(folder, tmp_path, monkeypatch, how):
  forget()
  monkeypatch.setenv(plugins.STORE, str(tmp_path / 'empty'))
  monkeypatch.setenv(plugins.CONSENT, '1')
  copy = next((folder / 'plugins').iterdir())
  copy.write_text('import os') if how == 'altered' else copy.unlink()
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    config.of_run(folder)
  tiny_runs.assert_two_lines(error.value, copy.name if how == 'altered' else 'no file of this content')


def test_a_name_in_a_config_is_never_a_path(folder, tmp_path):
  path = folder / 'config.json'
  content = json.loads(path.read_text())
  del content['sha256']
  content['plugins'] = ['../../mine.py@' + '0' * 24]
  path.write_text(json.dumps(content))
  forget()
  with pytest.raises((ValueError, FileNotFoundError)) as error:
    config.of_run(folder)
  tiny_runs.assert_two_lines(error.value)


def test_a_store_that_others_can_write_is_not_used(store, tmp_path, monkeypatch):
  store.mkdir(mode=0o777)
  store.chmod(0o777)
  build(write(tmp_path, EVERY))
  assert not list(store.iterdir())


def test_an_edited_plugin_is_another_config(folder, store, tmp_path):
  forget()
  cfg = build(write(tmp_path, EVERY + '\n# edited'), model__norm='n_own')
  with pytest.raises(ValueError) as error:
    run_folder.check_workdir(folder, config.to_dict(cfg))
  tiny_runs.assert_two_lines(error.value, 'plugins', 'another config')


def test_an_export_is_refused(folder):
  with pytest.raises(ValueError) as error:
    plugins.check_exportable(config.to_dict(config.of_run(folder)), folder)
  tiny_runs.assert_two_lines(error.value, "model.norm='n_own'", 'mine.py', 'cannot be exported')


# ------------------------------------------------------------------------------------------ studies


def test_a_plugin_is_an_arm(store, tmp_path):
  path = write(tmp_path, EVERY)
  base = tmp_path / 'base.py'
  base.write_text('from tests import tiny_runs\n\n\ndef get_config(arg=""):\n  return tiny_runs.section()\n')
  levels = {'rope': {}, 'own': {'plugins': (path,), 'positions': 'p_own'}}
  study = design.Study(str(base), {'scheme': levels}, seeds=1)
  arms = design.make_arms(study, tmp_path)
  assert [arm.config.plugins for arm in arms] == [(), arms[1].config.plugins]
  digest = arms[1].config.plugins[0].split('@')[1]
  assert plugins.used_digests(config.to_dict(arms[1].config)) == {'mine.py': digest}
  assert plugins.used_digests(config.to_dict(arms[0].config)) == {}
