"""Import and export of Hugging Face models: config.json, *.safetensors, tokenizer files. Import of GGUF.

No pickles: they can run code when they are loaded. A tensor that is missing, left over, of
another shape or of a quantized type is an error that names it. families.py raises for a model
that cannot be reproduced exactly.

  import_model  files -> ModelConfig, GPT, Tokenizers        export_model  their inverse
  import_run    files -> a run folder at step 0              export_run    a run folder -> files
"""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from gpt_jax import config, sharding
from gpt_jax.cluster import agreement, bootstrap, processes
from gpt_jax.evaluation import trained
from gpt_jax.interop import (
  families,
  generation,
  gguf_files,
  gguf_tokenizers,
  json_files,
  model_card,
  multimodal,
  tensors,
  tokenizer_files,
  weight_files,
)
from gpt_jax.model import continuous, costs, gpt, param_trees
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import ancestry, plugins, records, run_folder
from gpt_jax.runs.loggers import say
from gpt_jax.runs.reading import reading
from gpt_jax.sample import SampleConfig
from gpt_jax.step import TrainState
from gpt_jax.train import TrainConfig
from gpt_jax.training import checkpoint, checkpoint_writer

# Of a hub repository: weights once, configs, tokenizer; not its other formats and their folders.
HUB_FILES = ['*.safetensors', '*.json', '*.jinja', '*.model', 'merges.txt']
GENERATION = 'generation_config.json'
HUB_LEAVE = ['*/*', 'consolidated*', 'adapter*']


class ImportedModel(NamedTuple):
  """A model and its tokenizers, read from a folder."""

  family: str  # a row of families.FAMILIES
  cfg: ModelConfig
  model: gpt.GPT
  tokenizers: Any  # None without tokenizer files
  tokenizer: Any  # TokenizerConfig of where they came from, or None
  sample: SampleConfig  # of generation_config.json, with the special that stands before every prompt
  path: Path  # of its files


# ---------------------------------------------------------------------------------------- reading


def import_model(source, mesh=None):
  """A folder, a GGUF file or a hub id -> (ModelConfig, GPT, Tokenizers or None).

  The model's own config has every `auto` decided for this machine. Parameters keep the type of the files, or
  are float32 where these mix types; they lie on the default device, or sharded on a mesh; rows of padding
  are zero. Raises ValueError or FileNotFoundError with a fix.
  """
  imported = _read(open_source(source), lambda cfg: mesh)
  return imported.cfg, imported.model, imported.tokenizers


class ModelFiles(NamedTuple):
  """Files of a model that were found and not yet read, but for their JSON."""

  path: Path  # a folder, or a GGUF file
  hf: dict  # config.json
  generation: dict  # generation_config.json
  tokenizer_config: Any  # TokenizerConfig, or None
  read_tokenizer: Callable  # () -> text tokenizer, or None
  open_tensors: Callable  # names of the family's tensors -> {name: StoredTensor}


def _read(files, make_mesh, needs_tokenizer=False, workdir=None):
  """Read ModelFiles. workdir: the run that keeps the encoder of a model of several modalities."""
  model_type, family = files.hf.get('model_type'), multimodal.find(files.hf)
  with reading(files.path, f'a model whose config.json fits its family, {model_type!r:.40}', json_files.FIX):
    name, fields = families.read_config(files.hf)
    cfg = config.build(ModelConfig, fields, 'model')
  tokenizer = files.read_tokenizer()
  if model_type != name and (not family or tokenizer is None):
    bootstrap.print_once(f'note: of this {model_type}, only the text decoder ({name}) is imported')
  if tokenizer is None and needs_tokenizer:
    raise FileNotFoundError(
      f'{files.path} has no tokenizer that can be read\n'
      'fix: add tokenizer.json (or tekken.json, or vocab.json and merges.txt, or tokenizer.model) of the '
      'model to its folder'
    )
  with reading(files.path / GENERATION, 'sampling settings', json_files.FIX):
    sample = generation.from_generation(files.generation)
  toks, reader = None, None
  if family and tokenizer is not None:
    with reading(files.path, f'a {model_type} as its files have it', json_files.FIX):
      reader = multimodal.open_reader(family, files, tokenizer, workdir)
    cfg = dataclasses.replace(cfg, **multimodal.fields(family, reader, files.hf))
  if tokenizer is not None:
    ids = families.text_config(files.hf)[1] | files.hf  # of the language model, where they are nowhere else
    toks = tokenizer_files.with_roles(tokenizer, ids, files.generation, cfg.vocab, files.path)
    toks = toks if reader is None else multimodal.with_reader(family, toks, reader)
  rows, sizes = families.tensors_of(files.hf, cfg), tensors.sizes_of(cfg)
  rows |= multimodal.rows_of(family, files.hf) if reader else {}
  stored = files.open_tensors({name for row in rows.values() for _, name in tensors.places(row, sizes)})
  names = families.stored_names(files.hf, stored)
  names |= multimodal.stored_names(family, stored) if reader else {}
  stored = {usual: stored[name] for usual, name in names.items()}
  cfg = dataclasses.replace(cfg, param_dtype=weight_files.param_dtype(stored))
  model = weight_files.read_params(stored, rows, cfg, files.path, make_mesh(cfg))
  if reader:  # when all else is known to be complete
    multimodal.keep_encoder(family, files.path, reader, workdir)
  begin = 'bos' if toks is not None and toks.start == 'bos' else ''
  sample = dataclasses.replace(sample, begin=begin)
  return ImportedModel(name, cfg, model, toks, files.tokenizer_config, sample, files.path)


def open_source(source):
  """Return the ModelFiles of a folder, a GGUF file or a hub id; ValueError for a lone PEFT adapter."""
  path = find_source(source)
  if path.is_file():
    return open_gguf(path)
  has_config, has_adapter = ((path / name).is_file() for name in ('config.json', 'adapter_config.json'))
  if has_adapter and not has_config:
    raise ValueError(
      f'--source={path} is a PEFT adapter without its base model\n'
      'fix: import its base model, and name that run in --base'
    )
  if has_adapter:
    bootstrap.print_once(f'note: {path} has a PEFT adapter beside its model, which is left out')
  ggufs = sorted(path.glob('*.gguf'))
  if not ggufs or has_config:
    return open_folder(path)
  if len(ggufs) > 1:
    raise ValueError(
      f'--source={path} holds {len(ggufs)} GGUF files\nfix: name one, such as --source={ggufs[0]}'
    )
  return open_gguf(ggufs[0])


def open_folder(folder):
  """Return the ModelFiles of a folder as save_pretrained writes it."""
  hf, path = json_files.read_config(folder / 'config.json'), folder / GENERATION
  generation = json_files.read(path, json_files.GENERATION) if path.exists() else {}
  tokenizer = tokenizer_files.find(folder)
  read = lambda: None if tokenizer is None else tokenizer_files.read(tokenizer, folder)
  return ModelFiles(folder, hf, generation, tokenizer, read, lambda names: weight_files.open_folder(folder))


def open_gguf(path):
  """Return the ModelFiles of a GGUF file; tokenizer files beside it serve where its own cannot be read."""
  file = gguf_files.open_gguf(path)
  hf = gguf_files.read_config(file)
  json_files.check_config(hf, path)
  tokenizer = tokenizer_files.find(path.parent)
  try:
    own = gguf_tokenizers.read_tokenizer(file)
  except ValueError:
    if tokenizer is None:
      raise
    own = None
  tokenizer = None if own else tokenizer

  def read():
    return tokenizer_files.read(tokenizer, path.parent) if tokenizer else own

  return ModelFiles(path, hf, {}, tokenizer, read, lambda names: gguf_files.named_tensors(file, names, hf))


def find_source(source):
  """Return a local folder, a GGUF file, or the snapshot of a hub id."""
  folder = Path(source).expanduser()
  if folder.is_dir() or (folder.is_file() and folder.suffix == '.gguf'):
    return folder
  if not re.fullmatch(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', str(source)) or folder.exists():
    raise FileNotFoundError(
      f'--source={source} is neither a folder, a GGUF file nor a hub id\n'
      'fix: give a folder with config.json and *.safetensors, FILE.gguf, or an id such as Qwen/Qwen3-0.6B'
    )
  try:
    from huggingface_hub import snapshot_download
  except ImportError as error:
    raise ValueError(
      f'--source={source} is not a folder, and huggingface_hub, which could download it, is not installed\n'
      'fix: pip install huggingface_hub, or give a local folder'
    ) from error
  try:
    snapshot = snapshot_download(str(source), allow_patterns=HUB_FILES, ignore_patterns=HUB_LEAVE)
  except Exception as error:  # the library lets through its own errors, httpx's and the system's
    reason = ' '.join(str(error).split())[:200]
    raise ValueError(
      f'--source={source} is not a folder and could not be downloaded: {reason}\n'
      'fix: check the id, the network and (for gated models) HF_TOKEN, or give a local folder'
    ) from error
  return Path(snapshot)


# ---------------------------------------------------------------------------------------- writing


def export_model(model_config, model, toks, out, family=None, sample=None, write_card=None):
  """Write a model as files that transformers and `import_model` read -> its model_type.

  toks: Tokenizers or None. out: a new or empty folder. Weights keep their type, in one file. family:
  the model_type to write; None: the first that has all settings. sample: SampleConfig of
  generation_config.json, or None. write_card: (model_type, class of transformers) -> text of README.md, or
  None. Raises ValueError listing what no family has.
  """
  is_whole = toks is not None and bool(toks.places)
  read = [name for name, kind in continuous.KINDS.items() if getattr(model.cfg, kind.setting)]
  if read and not is_whole:
    raise ValueError(
      f'the model reads {" and ".join(read)} through a projector, which no family of transformers here has\n'
      'fix: use it from its run folder; the language model alone can be exported from before it was joined'
    )
  if model.cfg.encoders:
    raise ValueError(
      'the model holds an encoder that was a part of its training, which no export here writes\n'
      'fix: use it from its run folder; a run with encoder.train=cached can be exported'
    )
  cfg = dataclasses.replace(model_config, vocab=model.cfg.vocab)
  params = dict(param_trees.named_params(model))
  value_of = lambda path: np.asarray(params[path].get_value()) if path in params else None
  joint = multimodal.Export.of(toks) if is_whole else None
  cfg = cfg if joint is None else joint.language_model(cfg)
  name, hf = families.write_config(cfg, value_of, family if joint is None else joint.text_family)
  rows, folder, sizes = families.tensors_of(hf, cfg), Path(out).expanduser(), tensors.sizes_of(cfg)
  check_empty(folder, 'out')
  files = {}
  for path, p in params.items():
    if joint is not None and path not in rows:  # of a projector
      continue
    tensor, value = rows[path], value_of(path)
    axes = tensors.axes_of(tensor, p.axes)
    for index, file_name in tensors.places(tensor, sizes):
      files[file_name] = tensors.to_tensor(value[index], tensor, axes, sizes, files.get(file_name))
  if joint is not None:
    name, hf, files = joint.model_type, joint.config(hf), joint.tensors(cfg, params, files)
  folder.mkdir(parents=True, exist_ok=True)
  if toks is not None and (note := tokenizer_files.write(toks, folder, cfg.context)):
    say(f'note: {note}')
  if joint is not None:
    joint.copy_files(folder)
  save_file(files, folder / 'model.safetensors', {'format': 'pt'})
  specials = tokenizer_files.special_ids(toks)
  settings = specials | (generation.to_generation(sample) if sample else {})
  if any(value is not None for value in settings.values()):
    records.write_atomically(folder / GENERATION, json.dumps(settings, indent=2) + '\n')
  if write_card:
    records.write_atomically(folder / 'README.md', write_card(name, hf['architectures'][0]))
  dtype = model.cfg.param_dtype  # transformers 5 reads the first spelling, older ones the second
  content = hf | {'dtype': dtype, 'torch_dtype': dtype} | specials  # last: a folder with it is complete
  records.write_atomically(folder / 'config.json', json.dumps(content, indent=2) + '\n')
  return name


def check_empty(folder, flag):
  """Raise ValueError unless the folder of a flag is new or empty, and can be written."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'--{flag}={folder} is not empty\nfix: give a new or empty folder')
  records.check_writable(f'--{flag}={folder}', folder)


# ------------------------------------------------------------------------------------ run folders


def fsdp_mesh(cfg):
  """Return a mesh of all devices that shards the width over as many of them as divide it."""
  shards = math.gcd(cfg.width, jax.device_count())
  return sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=shards))


def import_run(source, workdir):
  """Make a run folder of a model at step 0: sample, evaluate and train.init_from take it.

  It holds parameters and no optimizer: training goes on elsewhere, with train.init_from=<workdir>. All
  processes of a job call it together: each reads and saves the shards of its devices, process 0 the rest.
  Raises ValueError or FileNotFoundError for what `import_model` refuses, for a model without
  tokenizer files, and if workdir is not new or empty.
  """
  workdir = Path(workdir).expanduser()
  check_new_run(workdir)
  imported = _read(open_source(source), fsdp_mesh, needs_tokenizer=True, workdir=workdir)
  # Rows whose logits fit, a number that all devices share: a long context is for sampling.
  rows = -(-8 // jax.device_count()) * jax.device_count()
  train = TrainConfig(length=min(imported.cfg.context, 1024), batch_size=rows)
  save_tokenizers(imported.tokenizers, workdir)
  tokenizer = imported.tokenizer or tokenizer_files.find(workdir / 'tokenizer')  # None: inside a GGUF file
  cfg = config.Config(model=imported.cfg, tokenizer=tokenizer, train=train, sample=imported.sample)
  parents = [ancestry.describe_import(source, imported.path)]
  write_run(workdir, cfg, imported.cfg, imported.model, {'imported': str(source)}, parents)
  params = costs.count_params(imported.cfg)
  bootstrap.print_once(
    f'imported {source}: {imported.family}, {params:,} parameters\n'
    f"next: launch.py sample --workdir={workdir} --prompt='Once upon a time'"
  )


def check_new_run(workdir):
  """Raise ValueError unless a folder can become a run; all processes of a job look before any writes."""

  def check():
    check_empty(workdir, 'workdir')
    run_folder.check_workdir(workdir, {})

  agreement.require_equal('import', check, lambda _: {'workdir': str(workdir)})


def save_tokenizers(tokenizers, workdir):
  """Write the tokenizers of a run, once for all processes of a job."""
  if bootstrap.is_primary():
    tokenizers.save(workdir / 'tokenizer')
  processes.barrier('tokenizers')


def write_run(workdir, cfg, model_cfg, tree, extra, parents):
  """Write a run folder at step 0, whose tokenizer is written; tree: a model or adapters.

  extra: entries of its checkpoint. parents: the entries of ancestry that it comes from.
  """
  replicated = jax.sharding.NamedSharding(fsdp_mesh(model_cfg), jax.sharding.PartitionSpec())
  start = jax.jit(lambda: (jnp.int32(0), jax.random.key(cfg.train.seed)), out_shardings=replicated)
  step, key = start()  # arrays of all processes, as the weights are
  state = TrainState(step, tree, None, key, {})
  extra = extra | {
    'config': dataclasses.asdict(cfg),
    **continuous.to_extra(model_cfg),
    'tokenizer': checkpoint.pack_folder(workdir / 'tokenizer'),
    'tokens': 0.0,
    'seconds': 0.0,
  }
  settings = checkpoint.CheckpointConfig(background=False)
  checkpoints = checkpoint_writer.CheckpointWriter(workdir / 'checkpoints', settings)
  checkpoints.save(0, state, extra)
  checkpoints.close()
  if bootstrap.is_primary():
    ancestry.write_parents(workdir, parents)
    records.write_json(workdir / 'config.json', dataclasses.asdict(cfg))  # last: now it is a run
  processes.barrier('run folder')


def export_run(workdir, out):
  """Write the newest good checkpoint of a run as Hugging Face files into a new or empty folder."""
  run = trained.load(workdir)
  plugins.check_exportable(dataclasses.asdict(run.cfg), workdir)
  card = lambda *names: model_card.write_card(run, *names, Path(out).expanduser())
  family = export_model(run.model.cfg, run.model, run.tokenizers, out, sample=run.cfg.sample, write_card=card)
  params = costs.count_params(run.model.cfg)
  is_whole = bool(run.tokenizers.places)
  loader = multimodal.Export.of(run.tokenizers).family.architecture if is_whole else 'AutoModelForCausalLM'
  say(
    f'exported step {run.step} of {workdir}: {family}, {params:,} parameters\n'
    f"next: transformers.{loader}.from_pretrained('{out}')"
  )
