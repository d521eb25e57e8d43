"""Meshes, the two rule tables and the way onto devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from gpt_jax import sharding, step
from gpt_jax.cluster import batches, sharding_table
from gpt_jax.cluster.meshes import PRESETS
from gpt_jax.sharding import ACTIVATION_RULES, AXES, PARAM_RULES, MeshConfig
from tests import models

ONE = dict.fromkeys(AXES, 1)


def two_lines(error):
  cause, fix = str(error.value).split('\n')
  assert fix.startswith('fix: ')
  return cause, fix


# -------------------------------------------------------------------------------------------- specs


def test_letters_say_the_layout():
  sizes = ONE | dict(data=2, fsdp=2, tensor=2)
  assert sharding.spec('LDHK', PARAM_RULES, sizes) == P(None, 'fsdp', 'tensor', None)
  assert sharding.spec('VD', PARAM_RULES, sizes) == P('tensor', 'fsdp')
  assert sharding.spec('BTD', ACTIVATION_RULES, sizes) == P(('data', 'fsdp'), None, None)
  assert sharding.spec('BTV', ACTIVATION_RULES, sizes) == P(('data', 'fsdp'), None, 'tensor')
  everything = dict.fromkeys(AXES, 2)
  assert sharding.spec('LEDF', PARAM_RULES, everything) == P(None, 'expert', 'fsdp', 'tensor')
  batch = P(('data', 'fsdp', 'expert'), 'sequence')
  assert sharding.spec('BT', ACTIVATION_RULES, everything) == batch


def test_axes_of_one_device_are_left_out():
  assert sharding.spec('LDHK', PARAM_RULES, ONE) == P(None, None, None, None)


def test_two_letters_on_one_axis_are_refused_by_name():
  with pytest.raises(ValueError, match='both map to') as error:
    sharding.spec('DHF', PARAM_RULES, ONE | dict(tensor=2), 'blocks/odd_DHF')
  cause, fix = two_lines(error)
  assert cause == 'blocks/odd_DHF: letters H and F of DHF both map to mesh axis tensor'
  assert 'gpt_jax/sharding.py' in fix


def test_dimensions_that_do_not_divide_are_named():
  sizes = ONE | dict(fsdp=4, tensor=2)
  with pytest.raises(ValueError, match='not divisible') as error:
    sharding.spec('LDF', PARAM_RULES, sizes, 'blocks/mlp/up_DF', (2, 6, 8))
  cause, fix = two_lines(error)
  assert cause == 'blocks/mlp/up_DF: dimension D=6 of LDF is not divisible by fsdp=4'
  assert fix == 'fix: choose a mesh whose fsdp divides 6, or change the model'
  assert sharding.spec('LDF', PARAM_RULES, sizes, shape=(2, 8, 8)) == P(None, 'fsdp', 'tensor')


# ------------------------------------------------------------------------------------------- meshes


def test_sizes_fill_what_is_left():
  assert MeshConfig().sizes(8) == ONE | dict(data=8)
  assert MeshConfig(tensor=2).sizes(8) == ONE | dict(data=4, tensor=2)
  assert MeshConfig(data=2, fsdp=-1).sizes(8) == ONE | dict(data=2, fsdp=4)
  assert list(MeshConfig().sizes(1)) == list(AXES)


@pytest.mark.parametrize(
  ('config', 'cause'),
  [
    (dict(tensor=3), 'mesh data=-1 x tensor=3 does not fit 8 device(s)'),
    (dict(data=2, tensor=2), 'mesh data=2 x tensor=2 does not fit 8 device(s)'),
    (dict(data=1), 'mesh one device does not fit 8 device(s)'),
    (dict(fsdp=-1), "mesh axes ['data', 'fsdp'] are both -1"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(config, cause):
  with pytest.raises(ValueError, match='mesh') as error:
    MeshConfig(**config).sizes(8)
  assert two_lines(error)[0] == cause


@pytest.mark.parametrize(
  ('config', 'cause'),
  [
    (dict(preset='tpu'), 'mesh.preset=tpu is not a known mesh'),
    (dict(fsdp=0), 'mesh.fsdp=0 is not a size'),
    (dict(tensor=-2), 'mesh.tensor=-2 is not a size'),
    (dict(slices=-1), 'mesh.slices=-1 is not a number of slices'),
    (dict(preset='gpu8-fsdp', data=4), 'mesh.data=4, but mesh.preset=gpu8-fsdp sets 1'),
  ],
)
def test_configs_that_make_no_sense_are_refused(config, cause):
  with pytest.raises(ValueError, match='mesh') as error:
    MeshConfig(**config)
  assert two_lines(error)[0] == cause


PRESET_SIZES = {  # on so many devices in so many slices
  'laptop': (1, 1, dict()),
  'gpu8': (8, 1, dict(data=8)),
  'gpu8-fsdp': (8, 1, dict(fsdp=8)),
  'gpu8-tensor2': (8, 1, dict(fsdp=4, tensor=2)),
  'h200-8': (8, 1, dict(fsdp=8)),
  '4xh100-8': (32, 4, dict(data=4, fsdp=8)),
  'v5e-256': (256, 1, dict(fsdp=256)),
  'v5p-128': (128, 1, dict(fsdp=128)),
  'v6e-256': (256, 1, dict(fsdp=256)),
  'multi-slice': (512, 2, dict(data=2, fsdp=256)),
}


@pytest.mark.parametrize('name', PRESETS)
def test_presets_use_all_devices_of_their_machine(name):
  devices, slices, sizes = PRESET_SIZES[name]
  assert MeshConfig(preset=name).sizes(devices, slices) == ONE | sizes
  again = {axis: n for axis, n in PRESETS[name].items() if not isinstance(n, str)}
  assert MeshConfig(preset=name, **again).sizes(devices, slices) == ONE | sizes


def test_a_mesh_has_all_axes_and_leaves_layout_to_the_compiler():
  mesh = sharding.make_mesh(MeshConfig(tensor=2))
  assert mesh.axis_names == AXES
  assert dict(mesh.shape) == ONE | dict(data=4, tensor=2)
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


# ------------------------------------------------------------------------------------------- slices


class Device:
  """What a mesh asks of a device of a pod."""

  platform = device_kind = 'cpu'

  def __init__(self, number, slice_index):
    self.id, self.slice_index, self.process_index = number, slice_index, slice_index


def pod(slices, each):
  """Devices of several slices, in no order."""
  devices = [Device(number, number % slices) for number in range(slices * each)]
  return devices[3:] + devices[:3]


@pytest.mark.parametrize(
  'sizes',
  [
    dict(data=2, fsdp=4),
    dict(data=4, tensor=2),
    dict(fsdp=8),
    dict(preset='multi-slice'),
    dict(data=2, fsdp=4, slices=2),
  ],
  ids=str,
)
def test_only_the_outermost_axis_leaves_a_slice(sizes):
  mesh = sharding.make_mesh(MeshConfig(**({'data': 1} if 'preset' not in sizes else {}) | sizes), pod(2, 4))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}
  slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
  rows = slices.reshape(2, 4)  # the two halves of the outermost axis larger than 1
  assert [set(row) for row in rows.tolist()] == [{0}, {1}]
  assert len({device.id for device in mesh.devices.flat}) == 8


class Chip(Device):
  """What a mesh asks of a TPU chip of a torus."""

  platform, device_kind, core_on_chip = 'tpu', 'TPU v5', 0

  def __init__(self, coords):
    super().__init__(hash(coords), 0)
    self.coords = coords


def test_an_axis_may_take_half_of_a_physical_one():
  torus = [Chip((x, y, z)) for x in range(8) for y in range(8) for z in range(8)]
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1, tensor=4), torus)
  assert (mesh.shape['fsdp'], mesh.shape['tensor']) == (128, 4)
  groups = mesh.devices.reshape(128, 4)
  assert len({chip.coords for chip in groups.flat}) == 512
  for group in groups:  # neighbors, on one line
    places = np.array([chip.coords for chip in group])
    assert sorted(np.ptp(places, 0)) == [0, 0, 3]


def test_slices_that_do_not_divide_the_outermost_axis_are_refused():
  with pytest.raises(ValueError, match='slices') as error:
    sharding.make_mesh(MeshConfig(data=2, fsdp=6), pod(4, 3))
  cause, fix = two_lines(error)
  assert cause == 'mesh.data=2, the outermost axis, does not split over 4 slices'
  assert 'such as mesh.data=4' in fix
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=6, slices=1), pod(4, 3))
  assert mesh.shape['fsdp'] == 6
  for devices, wanted, actual in ((pod(2, 4), 4, 2), (jax.devices(), 2, 1)):
    with pytest.raises(ValueError, match='slices') as error:
      sharding.make_mesh(MeshConfig(slices=wanted), devices)
    assert two_lines(error)[0] == (f'mesh.slices={wanted}, but the 8 device(s) are in {actual} slice(s)')


# ------------------------------------------------------------------------------------- onto devices


def test_batches_are_spread_over_rows_and_tokens():
  mesh = models.mesh(data=2, fsdp=2, sequence=2)
  batch = models.batch(rows=8, length=8)
  placed = batches.to_devices(batch, mesh)
  for name, value in placed.items():
    np.testing.assert_array_equal(value, batch[name])
    assert value.addressable_shards[0].data.shape == (2, 4)
  stacked = {name: np.stack([value] * 3) for name, value in batch.items()}
  for value in batches.to_devices(stacked, mesh, stacked=True).values():
    assert value.shape == (3, 8, 8)
    assert value.addressable_shards[0].data.shape == (3, 2, 4)


@pytest.mark.parametrize(
  ('sizes', 'rows', 'length', 'said'),
  [
    (dict(data=2, fsdp=2), 6, 8, ('6 rows', 'data x fsdp x expert = 4')),
    (dict(expert=4), 6, 8, ('6 rows', 'data x fsdp x expert = 4')),
    (dict(sequence=2), 6, 7, ('7 tokens', 'sequence = 2')),
    (dict(sequence=2), 6, 6, ('6 tokens', 'two chunks of a row each')),
  ],
)
def test_batches_that_do_not_divide_are_refused(sizes, rows, length, said):
  for stacked in (False, True):
    batch = models.batch(rows, length)
    batch = {k: v[None] for k, v in batch.items()} if stacked else batch
    with pytest.raises(ValueError, match='does not split') as error:
      batches.to_devices(batch, models.mesh(**sizes), stacked)
    cause, fix = two_lines(error)
    assert all(part in cause for part in said)
    assert 'train.batch_size' in fix


def test_activations_that_do_not_divide_stay_whole():
  """One prompt on eight devices."""
  constrain = jax.jit(lambda x: sharding.constrain(x, 'BTH'))
  with jax.set_mesh(models.mesh(data=4, tensor=2)):
    placed = constrain(jnp.zeros((1, 3, 4)))
  assert placed.sharding.spec == P(None, None, 'tensor')


# ------------------------------------------------------------------------------- what lies where


def test_the_table_says_where_each_tensor_lies():
  mesh = models.mesh(fsdp=4, tensor=2)
  cfg = models.tiny(positions='learned')
  program = step.gpt_program(models.experiment(cfg), cfg, mesh)
  lines = sharding_table.table(program.abstract.model, mesh)
  cells = {line.split()[0]: re.split('  +', line)[1:] for line in lines}
  assert cells['embed_VD'] == ['64 x 16 float32', 'tensor, fsdp', '512']
  assert cells['blocks/attention/wo_HKD'] == ['2 x 4 x 4 x 16 float32', '-, tensor, -, fsdp', '256']
  held = sum(int(row[-1].replace(',', '')) for name, row in cells.items() if row[0][0].isdigit())
  whole = 4 * sum(value.size for value in models.params(models.fill(cfg)).values())
  assert cells['total'] == ['fsdp=4 x tensor=2', f'{held:,} of {whole:,}']
  [line] = [line for line in sharding_table.table(program.abstract, mesh) if line.startswith('step')]
  assert re.split('  +', line)[1:] == ['scalar int32', '-', '4']


def test_the_summary_names_what_is_large_and_whole_on_each_device():
  mesh = models.mesh(data=2, tensor=2)
  placed = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))
  array = lambda rows, *axes: jax.ShapeDtypeStruct((rows, 2**18), np.float32, sharding=placed(*axes))
  tree = {'a': array(8, 'tensor'), 'b': array(1), 'c': array(4), 'd': array(2)}
  tree['small'] = jax.ShapeDtypeStruct((4,), np.float32, sharding=placed())
  line = '5 arrays on data=2 x tensor=2, 11.0 MiB of 15.0 MiB per device'
  assert sharding_table.summary(tree, mesh) == f'{line}, whole on each: c 4.0 MiB, d 2.0 MiB, b 1.0 MiB'
  more = sharding_table.summary(tree | {'e': array(3)}, mesh)
  assert more.endswith('whole on each: c 4.0 MiB, e 3.0 MiB, d 2.0 MiB and 1 more')
  assert sharding_table.summary({'a': tree['a']}, mesh).endswith('4.0 MiB of 8.0 MiB per device')
