"""Where each parameter of each shipped experiment lies, as files: a change is seen in review.

On a mesh whose fsdp, expert and tensor axes have two devices. Nothing is compiled, no data are
read: a vocabulary that a tokenizer would tell has 1,024 ids here.
Write the files anew: python -m tests.system.test_golden_sharding
"""

import dataclasses
import json
import pathlib

import pytest
from jax.sharding import AbstractMesh, AxisType

from gpt_jax import config
from gpt_jax.cli import experiment_file
from gpt_jax.model import gpt, param_trees
from gpt_jax.sharding import AXES
from gpt_jax.tokenizers import audio, image
from gpt_jax.tokenizers.learned import autoencoder
from tests import data_helpers

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / 'tests/golden/sharding'
EXPERIMENTS = sorted([*ROOT.glob('experiments/*.py'), *ROOT.glob('experiments/tokenizers/*.py')])
SIZES = dict.fromkeys(AXES, 1) | dict(fsdp=2, expert=2, tensor=2)
MESH = AbstractMesh(tuple(SIZES.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def load(path, folder):
  """The experiment's Config; one that continues a run continues GPT-2, one of a folder reads two classes."""
  arguments = []
  if path == FOLDER:
    data_helpers.write_classes(folder / 'shapes')
    arguments.append(f'path={folder}/shapes')
  for name, text in FILES.items():
    if path.stem == name.partition('.')[0]:
      (folder / name).write_text(text)
      arguments.append(f'path={folder}/{name}')
  for name in ('base', 'teacher'):
    if f' {name}=' in path.read_text() and path.stem != 'sums':  # sums trains its own first
      (folder / 'config.json').write_text(json.dumps(config.to_dict(load(GPT2, folder))))
      arguments.append(f'{name}={folder}')
  return config.build(config.Config, experiment_file.load_config(f'{path}:{",".join(arguments)}'))


def abstract_model(cfg):
  """The model that the experiment trains, without values."""
  if cfg.train.job == 'image_tokenizer':
    return autoencoder.Autoencoder(image.autoencoder_config(cfg.image))
  if cfg.train.job == 'audio_tokenizer':
    return autoencoder.Autoencoder(audio.autoencoder_config(cfg.audio))
  return gpt.GPT(dataclasses.replace(cfg.model, vocab=cfg.model.vocab or 1024).resolved('cpu'))


def layout(path, folder):
  """{parameter: its axis, axes or null by dimension}."""
  placed = gpt.shardings(abstract_model(load(path, folder)), MESH)
  return {name: list(p.get_value().spec) for name, p in param_trees.named_params(placed)}


def written(layout):
  """One parameter a line."""
  lines = [f'  {json.dumps(name)}: {json.dumps(spec)}' for name, spec in layout.items()]
  return '{\n' + ',\n'.join(lines) + '\n}\n'


FILES = {  # data that a recipe measures
  'table.csv': 'question,answer\nOne?,1\nTwo?,2\n',
  'text.txt': 'One line and another.\n' * 200,
}
GPT2 = ROOT / 'experiments/gpt2.py'
FOLDER = ROOT / 'experiments/folder.py'


def name_of(path):
  return path.relative_to(ROOT / 'experiments').with_suffix('').as_posix().replace('/', '_')


@pytest.mark.parametrize('path', EXPERIMENTS, ids=name_of)
def test_layouts_are_those_that_were_reviewed(path, tmp_path):
  golden = json.loads((GOLDEN / f'{name_of(path)}.json').read_text())
  assert layout(path, tmp_path) == golden, 'if it is meant: python -m tests.system.test_golden_sharding'


def test_every_file_has_its_experiment():
  assert {path.stem for path in GOLDEN.iterdir()} == {name_of(path) for path in EXPERIMENTS}


def main():
  """Write the files anew."""
  import tempfile

  GOLDEN.mkdir(parents=True, exist_ok=True)
  for path in GOLDEN.iterdir():
    path.unlink()
  for path in EXPERIMENTS:
    with tempfile.TemporaryDirectory() as folder:
      text = written(layout(path, pathlib.Path(folder)))
    (GOLDEN / f'{name_of(path)}.json').write_text(text)


if __name__ == '__main__':
  main()
