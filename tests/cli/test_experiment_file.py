"""Experiment files and command-line overrides."""

import dataclasses

import pytest

from gpt_jax import config
from gpt_jax.cli import experiment_file
from gpt_jax.data import Source
from tests.tiny_runs import assert_two_lines


def write(folder, body, name='experiment'):
  """An experiment file whose get_config has this body."""
  path = folder / f'{name}.py'
  lines = ''.join(f'  {line}\n' for line in body.splitlines())
  path.write_text(f'from gpt_jax import config as configs\n\ndef get_config(arg=""):\n{lines}')
  return path


@pytest.mark.parametrize(
  'path, near',
  [
    ('modle.width', 'model'),
    ('model.widht', 'width'),
    ('data.mixture.txt.path', 'text'),
    ('data.mixture.text.pth', 'path'),
  ],
)
def test_an_unknown_override_suggests_the_nearest_key(path, near):
  with pytest.raises(ValueError) as error:
    experiment_file.value_of(config.default(), path)
  _, fix = assert_two_lines(error.value, f'config.{path}')
  assert fix == f'fix: did you mean {near}?'


def test_an_override_below_a_value_fails():
  with pytest.raises(ValueError) as error:
    experiment_file.value_of(config.default(), 'optim.lr.peak')
  assert_two_lines(error.value, 'optim.lr.peak')
  assert experiment_file.value_of(config.default(), 'optim.lr') == config.default().optim.lr


@pytest.mark.parametrize(
  'text, number', [('1e3', 1000), ('2.5E2', 250), ('3.0', 3), ('1e+1', 10), ('-2e1', -20)]
)
def test_an_integer_may_have_an_exponent(text, number):
  arg = experiment_file.normalize_override(config.default(), f'--config.train.steps={text}')
  assert arg == f'--config.train.steps={number}'
  same = f'--config.optim.lr={text}'
  assert experiment_file.normalize_override(config.default(), same) == same


def test_names_with_commas_are_a_list():
  resolve = lambda key, text: experiment_file.normalize_override(config.default(), f'--config.{key}={text}')
  assert resolve('train.tasks', 'answer,cloze') == "--config.train.tasks=('answer', 'cloze')"
  assert resolve('adapter.train', 'embed_VD') == '--config.adapter.train=embed_VD'
  assert resolve('train.tasks', "('a', 'b')") == "--config.train.tasks=('a', 'b')"
  assert resolve('train.sample_prompts', 'Hello,World') == '--config.train.sample_prompts=Hello,World'
  assert resolve('data.packing', 'a,b') == '--config.data.packing=a,b'


@pytest.mark.parametrize('text', ['1.5', '1e-3', '2.55e1'])
def test_a_fraction_is_refused_where_an_integer_belongs(text):
  with pytest.raises(ValueError) as error:
    experiment_file.normalize_override(config.default(), f'--config.train.steps={text}')
  _, fix = assert_two_lines(error.value, f'config.train.steps={text} is not an integer')
  assert '2000' in fix


def test_escapes_of_a_separator_are_resolved_and_said(capsys):
  arg = '--config.data.mixture.text.separator='
  resolve = lambda text: experiment_file.normalize_override(config.default(), arg + text)
  assert resolve('a\n') == arg + 'a\n' and capsys.readouterr().err == ''
  assert resolve(r'\n\t\\n') == arg + '\n\t\\n'
  assert r"escapes are resolved, to '\n\t\\n'" in capsys.readouterr().err


@pytest.mark.parametrize(
  'line, near',
  [
    ('config.optm.lr = 1.0', 'optim'),
    ('config.optim.lrr = 1.0', 'lr'),
    ('config.optim.update(warmpu=3)', 'warmup'),
    ('config.data.mixture = {"text": {"kind": "synthetic", "documnts": 3}}', 'documents'),
    ('config.train.steps = "many"', ''),
  ],
)
def test_a_wrong_line_of_an_experiment_file_has_a_cause_and_a_fix(tmp_path, line, near):
  path = write(tmp_path, f'config = configs.default()\n{line}\nreturn config')
  with pytest.raises(ValueError) as error:
    config.build(config.Config, experiment_file.load_config(str(path)))
  cause, fix = assert_two_lines(error.value)
  assert near in cause + fix
  assert str(path) in cause + fix or 'data.mixture.text' in cause


def test_the_argument_after_the_colon_reaches_get_config(tmp_path):
  body = """args = configs.arguments(arg, size='small', layers=2, lr=0.5, deep=False, wide=True)
config = configs.default()
config.train.sample_prompts = (args.size,)
config.model.layers = args.layers
config.optim.lr = args.lr
config.log.tensorboard = args.deep
config.checkpoint.background = args.wide
return config"""
  path = write(tmp_path, body)
  read = lambda spec: config.build(config.Config, experiment_file.load_config(f'{path}{spec}'))
  plain = read('')
  assert (plain.train.sample_prompts, plain.model.layers, plain.optim.lr) == (('small',), 2, 0.5)
  assert (plain.log.tensorboard, plain.checkpoint.background) == (False, True)
  chosen = read(':size=a=b,layers=3,lr=1e-2,deep,wide=false')
  assert (chosen.train.sample_prompts, chosen.model.layers, chosen.optim.lr) == (('a=b',), 3, 1e-2)
  assert (chosen.log.tensorboard, chosen.checkpoint.background) == (True, False)


@pytest.mark.parametrize(
  'spec',
  [
    'hear.py:base=,adapter=8',
    'transcribe.py:adapter=16',
    'see.py:encoder_train=frozen',
    'summarize.py:adapter=8',
    'private.py:adapter=8',
    'sums.py:base=runs/x',
    'multimodal.py:only=read,audio=runs/x',
  ],
)
def test_an_argument_without_effect_is_refused(spec):
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(f'experiments/{spec}')
  assert_two_lines(error.value, spec.rpartition(',')[2].rpartition(':')[2].partition('=')[0])


def test_missing_and_wrong_files_have_a_cause_and_a_fix(tmp_path):
  path = write(tmp_path, 'return configs.default()')
  with pytest.raises(FileNotFoundError) as error:
    experiment_file.load_config(str(path).replace('experiment.py', 'experimnt.py'))
  _, fix = assert_two_lines(error.value, 'experimnt.py')
  assert fix == f'fix: did you mean {path}?'
  with pytest.raises(FileNotFoundError) as error:
    experiment_file.load_config(str(tmp_path / 'none' / 'else.py'))
  assert_two_lines(error.value, 'else.py')
  (tmp_path / 'empty.py').write_text('x = 1\n')
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(str(tmp_path / 'empty.py'))
  assert_two_lines(error.value, 'has no get_config')
  with pytest.raises(ValueError) as error:
    experiment_file.load_config(str(write(tmp_path, 'config = configs.default()')))
  assert_two_lines(error.value, 'get_config returns a NoneType')


def test_every_key_of_a_mixture_source_can_be_overridden(tmp_path):
  body = """config = configs.default()
config.data.mixture = {'a': {'kind': 'synthetic'}, 'b': {'kind': 'synthetic', 'seed': 1}}
return config"""
  loaded = experiment_file.load_config(str(write(tmp_path, body)))
  for key in dataclasses.asdict(Source()):
    experiment_file.value_of(loaded, f'data.mixture.b.{key}')
  loaded.data.mixture.b.documents = 9
  loaded.train.sample_prompts = ('x', 'y')
  cfg = config.build(config.Config, loaded)
  assert list(cfg.data.mixture) == ['a', 'b']
  assert cfg.data.mixture['b'] == Source(kind='synthetic', seed=1, documents=9)
  assert cfg.train.sample_prompts == ('x', 'y')
  with pytest.raises(AttributeError):  # a wrong key of a ConfigDict is refused at once
    loaded.data.mixture.b.documnts = 9


@pytest.mark.parametrize(
  'overrides, left_out, remaining',
  [
    (['tokenizer.kind=chars'], 'tokenizer.vocab=512', 4096),
    (['tokenizer.kind=gpt2', 'tokenizer.path=files'], 'tokenizer.vocab=512', 4096),
    (['tokenizer.kind=bpe'], '', 512),
    (['tokenizer.kind=chars', 'tokenizer.vocab=512'], '', 512),
  ],
)
def test_a_chosen_kind_leaves_out_what_the_experiment_set_for_another(capsys, overrides, left_out, remaining):
  section = config.default()
  section.tokenizer.update(kind='bpe', vocab=512)
  experiment_file.reset_unread(section, [f'--config.{override}' for override in overrides])
  assert section.tokenizer.vocab == remaining
  err = capsys.readouterr().err
  assert (f'note: {left_out} of the experiment has no use' in err) if left_out else not err


def test_a_chosen_kind_of_source_leaves_out_the_fields_of_another():
  section = experiment_file.complete_sources(config.default())
  section.data.mixture.text.update(kind='text', separator=';', path='a.txt')
  experiment_file.reset_unread(section, ['--config.data.mixture.text.kind=jsonl'])
  assert (section.data.mixture.text.separator, section.data.mixture.text.path) == ('', 'a.txt')
