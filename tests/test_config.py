"""From experiment files and command lines to dataclasses, to JSON and back."""

import dataclasses
import json
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from gpt_jax import config
from gpt_jax.data import Source
from gpt_jax.runs import records
from tests.tiny_runs import assert_two_lines

SECTIONS = [field.name for field in dataclasses.fields(config.Config) if field.name != 'plugins']


def built(**changes):
  """A Config from the default ConfigDict with changes by dotted key ('.' written as '__')."""
  made = config.default()
  with made.unlocked():
    made.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return config.build(config.Config, made)


# ------------------------------------------------------------------------------- there and back


def test_defaults_live_once():
  assert config.default().to_dict() == dataclasses.asdict(config.Config())
  assert built() == config.Config()


def test_a_default_is_never_shared_between_configs():
  one, two = config.default(), config.default()
  one.optim.lr = 3.0
  one.data.mixture.text.weight = 2.0
  assert two.optim.lr == config.Config().optim.lr
  assert two.data.mixture.text.weight == 1.0


def test_json_round_trip_of_a_config_with_all_kinds_of_values():
  mixture = {
    'a': Source(kind='synthetic', documents=7, weight=0.25),
    'b.c-d': Source(kind='text', path='x/*.txt', separator='\n\n', template='Q: {text}'),
  }
  cfg = config.Config(data=dataclasses.replace(config.Config().data, mixture=mixture))
  changes = {
    'train': dict(sample_prompts=('To be', 'é\n', ''), profile=(1, 3)),
    'optim': dict(lr_multipliers=('embed_VD=0.1', '.*=1'), lr=1.0),
  }
  parts = {name: dataclasses.replace(getattr(cfg, name), **v) for name, v in changes.items()}
  cfg = dataclasses.replace(cfg, **parts)
  back = config.build(config.Config, json.loads(json.dumps(config.to_dict(cfg))))
  assert back == cfg
  assert hash(back.train) == hash(cfg.train)  # a list in the place of a tuple would not hash


def test_the_config_json_of_a_run_reads_back_equal(tmp_path):
  cfg = built(train__sample_prompts=('a', 'b'), optim__lr=1, mesh__data=2)
  records.write_json(tmp_path / 'config.json', config.to_dict(cfg))
  assert config.of_run(tmp_path) == cfg


def values_of(hint):
  """Random values that a field of this type may hold before it is validated."""
  if typing.get_origin(hint) is tuple:
    return st.lists(values_of(typing.get_args(hint)[0]), max_size=3).map(tuple)
  return {
    bool: st.booleans(),
    int: st.integers(-2, 4096),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
  }[hint]


@st.composite
def sections(draw):
  """(dataclass, {some of its fields: random values}) of any section but those of choices only."""
  cls = draw(st.sampled_from([type(getattr(config.Config(), name)) for name in SECTIONS]))
  hints = {k: v for k, v in typing.get_type_hints(cls).items() if typing.get_origin(v) is not dict}
  names = draw(st.lists(st.sampled_from(sorted(hints)), unique=True, max_size=4))
  return cls, {name: draw(values_of(hints[name])) for name in names}


@settings(max_examples=200, deadline=None)
@given(sections())
def test_whatever_a_section_accepts_comes_back_from_json_equal(drawn):
  cls, chosen = drawn
  try:
    section = config.build(cls, chosen)
  except ValueError as error:
    assert str(error).split('\n')[-1].startswith('fix: ')
    return
  as_json = json.loads(json.dumps(dataclasses.asdict(section)))
  assert config.build(cls, as_json) == section


@dataclasses.dataclass(frozen=True)
class Nested:
  """Tuples in tuples, and a dict of dataclasses."""

  grid: tuple[tuple[int, ...], ...] = ()
  rates: tuple[float, ...] = ()
  sources: dict[str, Source] = dataclasses.field(default_factory=dict)


def test_nested_tuples_and_dicts_of_dataclasses():
  nested = Nested(((1, 2), (), (3,)), (0.5, 2.0), {'x': Source(kind='synthetic')})
  as_json = json.loads(json.dumps(dataclasses.asdict(nested)))
  assert config.build(Nested, as_json) == nested
  assert config.build(Nested, ConfigDict({'rates': (1, 2)})).rates == (1.0, 2.0)
  with pytest.raises(ValueError, match=r'grid\[1\]\[0\]=True is of type bool'):
    config.build(Nested, {'grid': [[1], [True]]})


@pytest.mark.parametrize('name', SECTIONS)
def test_every_section_is_frozen(name):
  section = getattr(config.Config(), name)
  field = dataclasses.fields(section)[0].name
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(section, field, getattr(section, field))


# ------------------------------------------------------------------------------------ wrong keys


@pytest.mark.parametrize(
  'tree, cause, near',
  [
    ({'optm': {}}, 'optm is not', 'optim'),
    ({'optim': {'lrr': 1.0}}, 'optim.lrr is not', 'lr'),
    ({'data': {'mixtures': {}}}, 'data.mixtures is not', 'mixture'),
    ({'data': {'mixture': {'a': {'pth': 'x'}}}}, 'data.mixture.a.pth is not', 'path'),
  ],
)
def test_an_unknown_key_of_a_dict_names_the_nearest(tree, cause, near):
  with pytest.raises(ValueError) as error:
    config.build(config.Config, tree)
  _, fix = assert_two_lines(error.value, cause)
  assert fix == f'fix: did you mean {near}?'


def test_a_key_like_no_other_lists_them_all():
  with pytest.raises(ValueError) as error:
    config.build(config.Config, {'checkpoint': {'zzzzz': 1}})
  _, fix = assert_two_lines(error.value, 'checkpoint.zzzzz')
  assert fix == 'fix: use one of every, keep, keep_every, background, verify'


# ----------------------------------------------------------------------------------- wrong types


@pytest.mark.parametrize(
  'key, value, wanted',
  [
    ('train.steps', 1.0, 'int'),
    ('train.steps', '12', 'int'),
    ('train.steps', True, 'int'),
    ('optim.lr', '1e-3', 'float'),
    ('optim.lr', True, 'float'),
    ('log.tensorboard', 1, 'bool'),
    ('data.cache', 3, 'str'),
    ('data.cache', None, 'str'),
    ('train.sample_prompts', 'To be', 'tuple'),
    ('train.profile', 3, 'tuple'),
  ],
)
def test_a_value_of_the_wrong_type(key, value, wanted):
  section, name = key.split('.')
  with pytest.raises(ValueError) as error:
    config.build(config.Config, {section: {name: value}})
  _, fix = assert_two_lines(error.value, f'{key}={value!r} is of type {type(value).__name__}')
  assert fix == f'fix: use type {wanted}'


def test_an_entry_of_a_tuple_of_the_wrong_type():
  with pytest.raises(ValueError, match=r"train\.profile\[1\]='x' is of type str\nfix: .* int"):
    config.build(config.Config, {'train': {'profile': (1, 'x')}})
  with pytest.raises(ValueError, match=r'optim\.lr_multipliers\[0\]=1 is of type int\nfix: '):
    config.build(config.Config, {'optim': {'lr_multipliers': (1,)}})


@pytest.mark.parametrize(
  ('tree', 'cause'),
  [
    ({'train': {'steps': 2**31}}, 'train.steps=2147483648 is out of range'),
    ({'train': {'steps': 10**19}}, f'train.steps={10**19} has more than 64 bits'),
    ({'optim': {'lr': 10**400}}, 'optim.lr=1000'),
  ],
)
def test_a_huge_number_is_refused_before_it_overflows(tree, cause):
  with pytest.raises(ValueError) as error:
    config.build(config.Config, tree)
  assert_two_lines(error.value, cause)


@pytest.mark.parametrize('tree', [{'optim': 3}, {'data': {'mixture': 'x'}}, {'optim': [1]}])
def test_a_value_in_the_place_of_a_section(tree):
  with pytest.raises(ValueError) as error:
    config.build(config.Config, tree)
  assert_two_lines(error.value, 'is not a section')


def test_an_int_serves_as_a_float_and_becomes_one():
  lr = config.build(config.Config, {'optim': {'lr': 1}}).optim.lr
  assert type(lr) is float and lr == 1.0
  assert type(built(optim__lr=2).optim.lr) is float


# -------------------------------------------------------------------------- files and arguments


@pytest.mark.parametrize(
  'item, cause, hint',
  [
    ('sise=3', "'sise' is not known", 'did you mean size?'),
    ('zzz', "'zzz' is not known", 'use one of size, layers, deep'),
    ('layers=1.5', "'layers=1.5' is not of type int", 'give one; default: layers=2'),
    ('layers=two', "'layers=two' is not of type int", 'give one; default: layers=2'),
    ('layers', "'layers' is not of type int", 'give one; default: layers=2'),
    ('size', "'size' is not of type str", 'give one; default: size=small'),
    ('deep=maybe', "'deep=maybe' is not of type bool", 'give one; default: deep=False'),
    ('deep=', "'deep=' is not of type bool", 'give one; default: deep=False'),
  ],
)
def test_a_wrong_argument(item, cause, hint):
  with pytest.raises(ValueError) as error:
    config.arguments(item, size='small', layers=2, deep=False)
  _, fix = assert_two_lines(error.value, cause)
  assert fix == f'fix: {hint}'


@pytest.mark.parametrize('text, number', [('1e3', 1000), ('2.0', 2), ('-2e1', -20), ('7', 7)])
def test_an_integer_argument_may_have_an_exponent(text, number):
  layers = config.arguments(f'layers={text}', layers=2).layers
  assert type(layers) is int and layers == number


def test_an_argument_for_a_file_that_takes_none():
  with pytest.raises(ValueError) as error:
    config.arguments('x=1')
  assert_two_lines(error.value, "'x' is not known")


def test_a_key_of_an_older_run_is_refused_with_its_new_name():
  with pytest.raises(ValueError, match='window_pattern is not a .*\nfix: did you mean layer_pattern'):
    config.build(config.Config, {'model': {'window_pattern': 'SSSL'}})
