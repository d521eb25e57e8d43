"""Every file in experiments/ loads, builds, trains and samples; its arguments change something."""

import ast
import json

import pytest

from gpt_jax import config, data, runs, train
from gpt_jax.model import gpt
from gpt_jax.tokenizers import Tokenizers
from tests import cli, tiny_runs

FILES = sorted((cli.ROOT / 'experiments').glob('*.py'))
# How to make an experiment one of seconds, whatever it is: small, two steps, four new tokens.
SMALL = {
  'train': dict(steps=2, batch_size=8, accumulate=1, steps_per_call=1, length=0, eval_every=0,
                eval_tokens=256, sample_every=0),
  'sample': dict(max_new_tokens=4),
  'checkpoint': dict(every=0),
}  # fmt: skip
SMALL_MODEL = dict(layers=1, width=16, heads=2, kv_heads=0, head_dim=0, hidden=0, context=32)


@pytest.fixture(scope='module', autouse=True)
def compiled(tmp_path_factory):
  """Equal programs are compiled once."""
  with tiny_runs.compiled_programs(tmp_path_factory):
    yield


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A run to continue."""
  return tiny_runs.finished(tmp_path_factory)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
  """GPT_JAX_DATA with a small text in the place of each corpus that an experiment names."""
  words = 'First Citizen: Before we proceed any further, hear me speak.\n\nAll: Speak, speak.\n'
  path = tmp_path / 'data/tinyshakespeare/input.txt'
  path.parent.mkdir(parents=True)
  path.write_text(words * 100)
  monkeypatch.setenv('GPT_JAX_DATA', str(tmp_path / 'data'))


def arguments(path):
  """{name: default} that the file's get_config takes, read from its source."""
  calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
  [call] = [c for c in calls if getattr(c.func, 'attr', '') == 'arguments']
  return {word.arg: ast.literal_eval(word.value) for word in call.keywords}


def load(path, base, **chosen):
  """The experiment's ConfigDict with these arguments."""
  given = ({'base': base} if 'base' in arguments(path) else {}) | chosen
  return config.load_file(f'{path}:' + ','.join(f'{k}={v}' for k, v in given.items()))


def needs_downloads(cfg, request):
  """Point GPT_JAX_DATA to the development data, or skip, if the stand-in has not all of them."""
  try:
    next(data.documents(cfg.data, 'train'))
  except ValueError:
    folder = request.getfixturevalue('data_dir')
    request.getfixturevalue('monkeypatch').setenv('GPT_JAX_DATA', str(folder))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_builds_with_each_of_its_arguments(path, base):
  defaults = arguments(path)
  plain = config.build(config.Config, load(path, base))
  assert config.from_json(json.dumps(config.to_dict(plain))) == plain
  for name, default in defaults.items():
    if isinstance(default, bool):
      changed = config.build(config.Config, load(path, base, **{name: not default}))
      assert changed != plain, name
  with pytest.raises(ValueError) as error:
    config.load_file(f'{path}:nonsense')
  tiny_runs.assert_two_lines(error.value, "'nonsense' is not known")


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_the_docstring_has_a_command_and_every_argument(path):
  docstring = ast.get_docstring(ast.parse(path.read_text()))
  assert 'Command: ' in docstring and 'launch.py train' in docstring
  for name in arguments(path):
    assert name in docstring, name


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_every_experiment_trains_and_samples(path, base, stand_in, tmp_path, request):
  made = load(path, base, **({'runlocal': 'true'} if 'runlocal' in arguments(path) else {}))
  for section, values in SMALL.items():
    made[section].update(values)
  if not made.train.init_from:
    made.model.update(SMALL_MODEL)
  if made.tokenizer.kind == 'bpe':
    made.tokenizer.vocab = 300
  made.data.valid_fraction = 0.01  # the end always scores all of it
  cfg = config.build(config.Config, made)
  needs_downloads(cfg, request)
  result = train.train(cfg, tmp_path / 'run')
  assert result['steps'] == 2
  assert result['loss'] < 20 and result['valid_loss'] < 20
  assert [event['event'] for event in runs.read_events(tmp_path / 'run')][-1] == 'done'
  [sample] = (tmp_path / 'run/samples').iterdir()
  texts = sample.read_text().split('\n---\n')
  assert len(texts) == len(cfg.train.sample_prompts)
  toks = Tokenizers.load(tmp_path / 'run/tokenizer')
  for prompt, text in zip(cfg.train.sample_prompts, texts, strict=True):
    assert text.startswith(prompt)
    assert len(text) > len(prompt) or toks.text.kind != 'chars'


@pytest.mark.parametrize(
  'size, parameters', [('small', 124e6), ('medium', 355e6), ('large', 774e6), ('xl', 1558e6)]
)
def test_the_sizes_of_gpt2(size, parameters):
  made = config.load_file(f'experiments/gpt2.py:size={size}')
  made.model.vocab = 50257
  count = gpt.count_params(config.build(config.Config, made).model)
  assert count == pytest.approx(parameters, rel=0.01)


@pytest.mark.parametrize('preset', ['llama', 'modern'])
def test_the_presets_of_gpt2(preset):
  made = config.build(config.Config, config.load_file(f'experiments/gpt2.py:preset={preset}'))
  assert made.model.mlp == {'llama': 'swiglu', 'modern': 'relu2'}[preset]


@pytest.mark.parametrize('argument', ['size=huge', 'preset=gpt9'])
def test_wrong_choices_of_gpt2(argument):
  with pytest.raises(ValueError) as error:
    config.load_file(f'experiments/gpt2.py:{argument}')
  tiny_runs.assert_two_lines(error.value, argument)


def test_finetuning_continues_the_base(base, stand_in, tmp_path):
  cfg = config.build(config.Config, load(cli.ROOT / 'experiments/finetune_gpt2.py', base))
  assert cfg.train.init_from == str(base)
  assert cfg.model == config.of_run(base).model
  assert cfg.tokenizer == config.of_run(base).tokenizer


def test_finetuning_without_a_base():
  with pytest.raises(FileNotFoundError) as error:
    config.load_file('experiments/finetune_gpt2.py:base=runs/none-such')
  tiny_runs.assert_two_lines(error.value, 'none-such')
