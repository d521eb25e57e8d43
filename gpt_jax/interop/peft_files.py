"""Adapters as PEFT stores them: adapter_config.json and adapter_model.safetensors.

PEFT names the modules of the base model. A module of several parameters of ours (GPT-2's c_attn) has one A
for all: different As of ours become one of their joint rank, with zeros in B, which computes the same.

Letters: r rank; the others as in tensors.py. Source: peft 0.21, `utils/save_and_load.py`, `tuners/lora/`.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from gpt_jax.cluster import bootstrap
from gpt_jax.evaluation import trained
from gpt_jax.interop import families, huggingface, json_files, tensors, weight_files
from gpt_jax.interop.tensors import Tensor
from gpt_jax.model import adapters, gpt, param_trees
from gpt_jax.runs import ancestry, plugins, records
from gpt_jax.runs.loggers import say
from gpt_jax.runs.reading import check_types, reading
from gpt_jax.training import checkpoint

PREFIX, FILE, WEIGHTS = 'base_model.model.', 'adapter_config.json', 'adapter_model.safetensors'
FACTORS = {'a': 'lora_A.weight', 'b': 'lora_B.weight', 'magnitude': 'lora_magnitude_vector'}
CONFIG = {
  'peft_type': str,
  'r': int,
  'lora_alpha': int | float,
  'lora_dropout?': int | float,
  'use_rslora?': bool,
  'use_dora?': bool,
  'alpha_pattern?': {str: int | float},
}
MERGE = 'fix: merge_and_unload() it in PEFT, and import the merged model'
OFF = {'bias': 'none', 'modules_to_save': None, 'trainable_token_indices': None, 'lora_bias': False}
OFF |= {'alora_invocation_tokens': None}  # of an adapter that acts on some tokens alone
CHANGES_BASE = ('pissa', 'corda', 'olora', 'loftq', 'lora_ga')  # values of init_lora_weights


class Module(NamedTuple):
  """A matrix of the base's files, which holds one or several parameters of ours."""

  name: str  # {l} is the layer
  members: dict  # {path of our parameter: Tensor of its weight}

  @property
  def suffix(self):
    """The name after the layer, by which PEFT finds the module in all layers."""
    return self.name.rpartition('{l}.')[2]


def base_modules(base):
  """Return [Module] of a base run, named as in the files that it was imported from.

  A run that was not imported has the names of its export.
  """
  hf, path = None, Path(source_of(base)).expanduser() / 'config.json'
  if path.is_file() and path.parent != base.workdir:
    hf = json_files.read_config(path)
  modules = {}
  for our_path, row in families.tensors_of(
    hf or families.write_config(base.model.cfg)[1], base.model.cfg
  ).items():
    if row.name.endswith('.weight') and len(row.layout.split()) == 2 and '{e}' not in row.name:
      modules.setdefault(row.name.removesuffix('.weight'), {})[our_path] = row
  return [Module(name, members) for name, members in modules.items()]


def source_of(base):
  """Return where a base run was imported from, or its folder."""
  extra = checkpoint.Checkpoints(base.workdir / 'checkpoints').read_extra(base.step)
  return extra.get('imported', str(base.workdir))


def factor_rows(module, path, adapter):
  """Return {factor: (Tensor, letters of one layer's part)} of an adapter of ours in its module."""
  row, inputs = module.members[path], set(adapter.inputs)
  word_in = next(word for word in row.layout.split() if set(word.upper()) == inputs)
  word_out = next(word for word in row.layout.split() if word != word_in)
  tensor = lambda factor, layout, part=0: Tensor(f'{module.name}.{FACTORS[factor]}', layout, part)
  rows = {
    'a': (tensor('a', f'r {word_in}'), f'{adapter.inputs}r'),
    'b': (tensor('b', f'{word_out} r', row.part), f'r{adapter.outputs}'),
  }
  if adapter.magnitude is not None:
    rows['magnitude'] = tensor('magnitude', word_out, row.part), adapter.outputs
  return rows


# ---------------------------------------------------------------------------------------- writing


def export_adapter(workdir, out):
  """Write the adapters of a run in PEFT's format into a new or empty folder."""
  folder, run = Path(out).expanduser(), trained.load(workdir)
  plugins.check_exportable(dataclasses.asdict(run.cfg), workdir)
  settings = run.cfg.adapter
  if not settings.rank or settings.train:
    cause = f'trains {settings.train} whole' if settings.train else 'has no adapters'
    raise ValueError(f'{workdir} {cause}\nfix: export merged weights, without --adapter')
  if run.tokenizers.places:
    raise ValueError(
      f'{workdir} has an encoder of pictures or sounds, which PEFT would give adapters, too\n'
      'fix: export merged weights, without --adapter'
    )
  huggingface.check_empty(folder, 'out')
  checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints')
  reference = checkpoints.read_extra(run.step)['base']
  base = trained.load(checkpoint.open_base(reference).folder.parent, reference['step'])
  tree, _ = adapters.split(settings, gpt.GPT(run.model.cfg))
  tree = checkpoints.restore_model(run.step, checkpoint.with_shardings(tree, run.mesh))
  modules, files, ranks = base_modules(base), {}, {}
  members = {path for module in modules for path in module.members}
  if others := sorted(tree.keys() - members):
    raise ValueError(
      f'{workdir} has adapters that PEFT has no names for: {", ".join(others)}\nfix: export merged'
    )
  sizes = tensors.sizes_of(run.model.cfg)
  for module in modules:
    if module.members.keys() & tree.keys():
      ranks[module.suffix] = write_module(module, tree, sizes, files)
  content = peft_config(settings, ranks, source_of(base), any(map(is_fan_in_first, modules)))
  folder.mkdir(parents=True, exist_ok=True)
  save_file({f'{PREFIX}{name}': x for name, x in files.items()}, folder / WEIGHTS, {'format': 'pt'})
  records.write_atomically(folder / FILE, json.dumps(content, indent=2) + '\n')
  say(
    f'exported the adapters of step {run.step} of {workdir}: {len(files)} tensors\n'
    f"next: peft.PeftModel.from_pretrained(BASE_MODEL, '{out}')"
  )


def write_module(module, tree, sizes, files):
  """Add the tensors of a module's adapters to `files` -> their rank."""
  paths = [path for path in module.members if path in tree]
  if tree[paths[0]].magnitude is not None and len(paths) < len(module.members):
    raise ValueError(
      f"DoRA's magnitudes of {module.suffix} need adapters of {', '.join(module.members)}\n"
      'fix: export merged weights, without --adapter'
    )
  factors = [
    {n: np.asarray(p.get_value()) for n, p in param_trees.named_params(tree[path])} for path in paths
  ]
  is_shared = all(np.array_equal(x['a'], factors[0]['a']) for x in factors)
  r = factors[0]['a'].shape[-1]
  rank = r if is_shared else r * len(paths)
  joint_a = np.concatenate([x['a'] for x in factors], -1)
  for number, (path, values) in enumerate(zip(paths, factors, strict=True)):
    if not is_shared:
      zeros = [(0, 0)] * values['b'].ndim
      zeros[tree[path].a.axes.startswith('L')] = number * r, rank - (number + 1) * r
      values |= {'a': joint_a, 'b': np.pad(values['b'], zeros)}
    for name, (row, axes) in factor_rows(module, path, tree[path]).items():
      value = values[name] if 'V' not in axes else values[name][..., : sizes['V']]
      for index, file_name in tensors.places(row, sizes):
        into = files.get(file_name)
        files[file_name] = tensors.to_tensor(value[index], row, axes, sizes | {'r': rank}, into)
  return rank


def is_fan_in_first(module):
  """Whether a module's matrix is [in, out], as those of GPT-2."""
  return any(
    adapters.split_axes(path.rpartition('_')[2])[1] == row.layout.split()[0]
    for path, row in module.members.items()
  )


def peft_config(settings, ranks, source, fan_in_first):
  """Return the content of adapter_config.json; ranks: {suffix of a module: r}."""
  scale = adapters.ADAPTERS[settings.kind].scale(settings.alpha, settings.rank)
  alpha_of = lambda r: scale * (math.sqrt(r) if settings.kind == 'rslora' else r)
  others = {name: r for name, r in ranks.items() if r != settings.rank}
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': source,
    'r': settings.rank,
    'lora_alpha': settings.alpha,
    'lora_dropout': settings.dropout,
    'use_rslora': settings.kind == 'rslora',
    'use_dora': settings.kind == 'dora',
    'target_modules': sorted(ranks),
    'rank_pattern': others,
    'alpha_pattern': {name: alpha_of(r) for name, r in others.items()},
    'fan_in_fan_out': fan_in_first,
    'bias': 'none',
    'inference_mode': True,
  }


# ---------------------------------------------------------------------------------------- reading


def import_adapter(source, base, workdir):
  """Make a run folder at step 0 of adapters in PEFT's format, on a base run."""
  source, workdir = Path(source).expanduser(), Path(workdir).expanduser()
  huggingface.check_new_run(workdir)
  if not (source / FILE).is_file() or not (source / WEIGHTS).is_file():
    raise FileNotFoundError(
      f'--source={source} has no {FILE} and {WEIGHTS}\nfix: name the folder of an adapter'
    )
  run = trained.load(base, key='--base')
  settings, tree = read_adapter(source, run)
  cfg = dataclasses.replace(
    run.cfg, adapter=settings, train=dataclasses.replace(run.cfg.train, init_from=str(base))
  )
  checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints')
  extra = {'imported': str(source), 'base': checkpoint.refer_to_base(checkpoints, run.step)}
  of_base = ancestry.describe_run('train.init_from', run.workdir, run.step, checkpoints.read_extra(run.step))
  parents = [of_base, ancestry.describe_import(source, source)]
  huggingface.save_tokenizers(run.tokenizers, workdir)
  huggingface.write_run(workdir, cfg, run.model.cfg, tree, extra, parents)
  bootstrap.print_once(
    f'imported {source}: {settings.kind} of rank {settings.rank}, {param_trees.count(tree):,} parameters\n'
    f"next: launch.py sample --workdir={workdir} --prompt='Once upon a time'"
  )


def read_adapter(source, base):
  """Read an adapter of PEFT -> (AdapterConfig, trained tree on the base's mesh)."""
  with reading(source / FILE, "PEFT's description of an adapter", 'download it again'):
    hf = check_types(json.loads((source / FILE).read_text()), CONFIG)
  used = {key: hf[key] for key, off in OFF.items() if (hf.get(key) or off) != off}
  if str(hf.get('init_lora_weights')).lower().startswith(CHANGES_BASE):
    used['init_lora_weights'] = hf['init_lora_weights']
  if hf['peft_type'] != 'LORA' or used:
    raise ValueError(f'{source / FILE}: {used or hf["peft_type"]} is not supported\n{MERGE}')
  opened = weight_files.open_safetensors(source / WEIGHTS).items()
  # `_vector.weight` is of older versions; a base layer is saved beside the adapter of a head.
  stored = {name.removeprefix(PREFIX).replace('_vector.weight', '_vector'): x for name, x in opened}
  stored = {name: x for name, x in stored.items() if not name.endswith('.base_layer.weight')}
  targets, ranks, sizes = {}, {}, tensors.sizes_of(base.model.cfg)
  for module in base_modules(base):
    first = tensors.places(Tensor(f'{module.name}.{FACTORS["a"]}'), sizes)[0][1]
    if first in stored:
      targets |= dict.fromkeys(module.members, module)
      ranks[module.suffix] = stored[first].shape[0]
  if not targets:
    raise ValueError(
      f'{source / WEIGHTS} names no matrix of the base\nfix: name the run of its base in --base'
    )
  kind = 'dora' if hf.get('use_dora') else 'rslora' if hf.get('use_rslora') else 'lora'
  rank, scale = max(ranks.values()), adapters.ADAPTERS['rslora' if hf.get('use_rslora') else 'lora'].scale
  alpha = hf['lora_alpha'] * (rank**0.5 if kind == 'dora' and hf.get('use_rslora') else 1)
  settings = adapters.AdapterConfig(
    rank=rank,
    kind=kind,
    targets=tuple(f'^{path}$' for path in targets),
    alpha=float(alpha),
    dropout=float(hf.get('lora_dropout', 0.0)),
  )
  tree = checkpoint.with_shardings(adapters.split(settings, gpt.GPT(base.model.cfg))[0], base.mesh)
  own_scale, used_names = adapters.ADAPTERS[kind].scale(settings.alpha, rank), set()
  for path, module in targets.items():
    r = ranks[module.suffix]
    patterns = hf.get('alpha_pattern', {}).items()
    matches = (x for key, x in patterns if re.match(rf'(.*\.)?({key})$', module.suffix))
    factor = scale(next(matches, hf['lora_alpha']), r) / own_scale
    rows = factor_rows(module, path, tree[path])
    tree[path], names = fill_adapter(tree[path], rows, sizes | {'r': r}, factor, stored)
    used_names |= names
  if stored.keys() - used_names:
    left = weight_files.list_names(stored.keys() - used_names)
    raise ValueError(f'{source / WEIGHTS} has tensors without a place in the base: {left}\n{MERGE}')
  return settings, tree


def fill_adapter(adapter, rows, sizes, factor, stored):
  """Return an Adapter with the arrays of its tensors, and their names.

  rows: of `factor_rows`. factor: on B, where the files have another scale. A smaller rank is filled with 0.
  """
  values = {}
  for name, (tensor, axes) in rows.items():
    whole = np.zeros(getattr(adapter, name).get_value().shape, np.float32)
    for index, file_name in tensors.places(tensor, sizes):
      if file_name not in stored:
        raise ValueError(f'the adapter has no {file_name}\n{MERGE}')
      weight_files.check_shape(stored[file_name], tensors.shape_of(tensor, sizes))
      part = tensors.to_parameter(stored[file_name].read(), tensor, axes, sizes)
      whole[index][tuple(map(slice, part.shape))] = part * (factor if name == 'b' else 1)
    values[name] = whole
  used = {file_name for tensor, _ in rows.values() for _, file_name in tensors.places(tensor, sizes)}
  place = lambda name, p: jax.device_put(values[name], p.get_value().sharding)
  return param_trees.map_params(place, adapter), used
