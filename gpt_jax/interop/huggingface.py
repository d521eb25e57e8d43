"""Import and export of Hugging Face models: folders of config.json, *.safetensors, tokenizer files.

Only safetensors: a pickle can run code when it is loaded. A tensor that is missing, left over, of
another shape or of a quantized type is an error that names it. families.py raises for a model
that cannot be reproduced exactly.

  import_model  files -> ModelConfig, GPT, Tokenizers        export_model  their inverse
  import_run    files -> a run folder at step 0              export_run    a run folder -> files
"""

import contextlib
import dataclasses
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from gpt_jax import config
from gpt_jax.evaluation import trained
from gpt_jax.interop import families, tensors, tokenizer_files
from gpt_jax.model import costs, gpt, param_trees
from gpt_jax.model.config import ModelConfig
from gpt_jax.runs import records, run_folder
from gpt_jax.runs.loggers import say
from gpt_jax.runs.text_table import join_some
from gpt_jax.sample import SampleConfig
from gpt_jax.step import TrainState
from gpt_jax.train import TrainConfig
from gpt_jax.training import checkpoint, checkpoint_writer

INDEX = 'model.safetensors.index.json'
DTYPES = ('F32', 'F16', 'BF16')
PICKLES = ('*.bin', '*.pt', '*.pth', '*.ckpt')
# Of a hub repository: weights once, configs, tokenizer; not its other formats and their folders.
HUB_FILES = ['*.safetensors', '*.json', '*.model', 'merges.txt']
HUB_LEAVE = ['*/*', 'consolidated*', 'adapter*']


class ImportedModel(NamedTuple):
  """A model and its tokenizers, read from a folder."""

  family: str  # a row of families.FAMILIES
  cfg: ModelConfig
  model: gpt.GPT
  tokenizers: Any  # None without tokenizer files
  tokenizer: Any  # TokenizerConfig of where they came from, or None
  begin: str  # special that stands before every prompt, or ''


# ---------------------------------------------------------------------------------------- reading


def import_model(source):
  """A folder or a hub id -> (ModelConfig, GPT, Tokenizers or None).

  The model's own config has every `auto` decided for this machine. Parameters are float32, on the
  default device; rows of padding are zero. Raises ValueError or FileNotFoundError with a fix.
  """
  imported = _read(find_folder(source))
  return imported.cfg, imported.model, imported.tokenizers


def check_format(source):
  """Raise ValueError, with the way to convert it, for GGUF or a lone PEFT adapter; note other adapters."""
  ggufs = [source] if source.suffix == '.gguf' else sorted(source.glob('*.gguf'))
  has_config, has_adapter = ((source / name).is_file() for name in ('config.json', 'adapter_config.json'))
  if ggufs and not has_config:
    raise ValueError(
      f'--source={source} is GGUF ({ggufs[0].name}), which is not read\n'
      'fix: AutoModelForCausalLM.from_pretrained(DIR, gguf_file=NAME).save_pretrained(NEW), the same with '
      'AutoTokenizer, then import NEW'
    )
  if has_adapter and not has_config:
    raise ValueError(
      f'--source={source} is a PEFT adapter without its base model\n'
      'fix: AutoPeftModelForCausalLM.from_pretrained(X).merge_and_unload().save_pretrained(NEW), import NEW'
    )
  if has_adapter:
    say(f'note: {source} has a PEFT adapter beside its model, which is left out')


def _read(folder, needs_tokenizer=False):
  check_format(folder)
  hf = tokenizer_files.read_json(folder / 'config.json')
  family, fields = families.read_config(hf)
  cfg = config.build(ModelConfig, fields, 'model')
  tokenizer = tokenizer_files.find(folder)
  if tokenizer is None and needs_tokenizer:
    raise FileNotFoundError(
      f'{folder} has no tokenizer files\n'
      'fix: add tokenizer.json (or vocab.json and merges.txt, or tokenizer.model) of the model'
    )
  path = folder / 'generation_config.json'
  generation = tokenizer_files.read_json(path) if path.exists() else {}
  toks = None if tokenizer is None else tokenizer_files.read(tokenizer, hf, cfg.vocab, generation)
  model = read_weights(folder, families.FAMILIES[family], cfg)
  begin = '' if toks is None else tokenizer_files.begin(toks, folder)
  return ImportedModel(family, cfg, model, toks, tokenizer, begin)


def find_folder(source):
  """A local folder, or the snapshot of a hub id -> Path."""
  folder = Path(source).expanduser()
  if folder.is_dir():
    return folder
  if folder.is_file():
    check_format(folder)
  if not re.fullmatch(r'[\w-][\w.-]*(/[\w-][\w.-]*)?', str(source)) or folder.exists():
    raise FileNotFoundError(
      f'--source={source} is neither a folder nor a hub id\n'
      'fix: give a folder with config.json and *.safetensors, or an id such as Qwen/Qwen3-0.6B'
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


def weight_files(folder):
  """The safetensors files of a model: those of its index, or the only one."""
  index = folder / INDEX
  if index.is_file():
    names = tokenizer_files.read_json(index).get('weight_map', {})
    shards = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
    absent = [name for name in shards if Path(name).name != name or not (folder / name).is_file()]
    if absent or not shards:
      raise FileNotFoundError(
        f'{index} names {_few(absent) or "no files"}, not there\nfix: download all shards again'
      )
    return [folder / name for name in shards]
  files = sorted(folder.glob('*.safetensors'))
  whole = folder / 'model.safetensors'
  if whole in files or len(files) == 1:
    return [whole if whole in files else files[0]]
  pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
  if pickles and not files:
    raise ValueError(
      f'{folder} has its weights only as pickles, which can run code: {_few(pickles)}\n'
      'fix: where you trust it, AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW), '
      'then import NEW'
    )
  raise FileNotFoundError(
    f'{folder} has {len(files)} safetensors files and no {INDEX}\n'
    'fix: give a folder with model.safetensors, or with all shards and their index'
  )


class Weights:
  """The tensors of all files by the names of the family, read one at a time."""

  def __init__(self, files, family, stack):
    self.files = {}
    for path in files:
      try:
        opened = stack.enter_context(safetensors.safe_open(path, 'numpy'))
      except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
          f'{path} is not a whole safetensors file: {error}\nfix: download or copy it again'
        ) from error
      self.files |= dict.fromkeys(opened.keys(), opened)
    if not any(name.startswith(family.prefix) for name in self.files):  # the bare model's files
      rename = lambda name: name if name.startswith('lm_head.') else family.prefix + name
      self.bare = {rename(name): name for name in self.files}
    else:
      self.bare = {name: name for name in self.files}
    self.names = {name for name in self.bare if not re.fullmatch(family.buffers, name)}

  def read(self, name):
    """One tensor as it is stored."""
    return self.files[self.bare[name]].get_tensor(self.bare[name])

  def check(self, name, shape):
    """Raise ValueError for another shape or type; reads nothing."""
    stored = self.bare[name]
    about = self.files[stored].get_slice(stored)
    if tuple(about.get_shape()) != shape or about.get_dtype() not in DTYPES:
      raise ValueError(
        f'tensor {stored} is {about.get_dtype()}{about.get_shape()}, by config.json it should be '
        f'{"/".join(DTYPES)} {list(shape)}\n'
        'fix: use the config.json that came with these weights, and weights that are not quantized'
      )


def read_weights(folder, family, cfg):
  """The parameters of a folder -> GPT with its config resolved for this machine."""
  sizes, abstract = tensors.sizes_of(cfg), gpt.GPT(cfg.resolved())
  wanted = {
    path: tensors.names(family.tensors[path], cfg.layers)
    for path, _ in param_trees.named_params(abstract)
    if path not in family.zeros
  }
  with contextlib.ExitStack() as stack:
    weights = Weights(weight_files(folder), family, stack)
    drop_tied_head(weights, family, cfg, sizes)
    check_names(weights.names, {name for names in wanted.values() for name in names}, folder)
    for path, names in wanted.items():  # all of them before any is read
      for name in names:
        weights.check(name, tensors.shape_of(family.tensors[path], sizes))

    def fill(path, p):
      whole = np.zeros(p.get_value().shape, np.float32)
      for l, name in enumerate(wanted.get(path, ())):
        tensor, array = family.tensors[path], weights.read(name)
        array = tensors.to_parameter(array, tensor, p.axes.lstrip('L'), sizes)
        into = whole[l] if p.axes[0] == 'L' else whole
        into[: len(array)] = array  # the rest are padding rows of the vocabulary
      return jnp.asarray(whole)

    return param_trees.map_params(fill, abstract)


def drop_tied_head(weights, family, cfg, sizes):
  """A tied head that was saved all the same counts once; ValueError if it differs."""
  head, embedding = family.tensors['head_VD'].name, family.tensors['embed_VD'].name
  if not cfg.tied_head or not {head, embedding} <= weights.names:
    return
  for name in (head, embedding):
    weights.check(name, (sizes['V'], sizes['D']))
  if not np.array_equal(weights.read(head), weights.read(embedding)):
    raise ValueError(
      f'tie_word_embeddings is true, but {head} differs from {embedding}\n'
      'fix: set tie_word_embeddings to false in config.json if the head was trained on its own'
    )
  weights.names.remove(head)


def check_names(names, expected, folder):
  """Raise ValueError that names tensors which are missing or have no place in the model."""
  if names != expected:
    raise ValueError(
      f'{folder} does not hold the tensors of its config.json: missing {_few(expected - names)}; '
      f'without a place in the model {_few(names - expected)}\n'
      'fix: use the config.json that came with these weights'
    )


def _few(names):
  return join_some(sorted(names)) or 'none'


# ---------------------------------------------------------------------------------------- writing


def export_model(model_config, model, toks, out):
  """Write a model as files that transformers and `import_model` read -> its model_type.

  toks: Tokenizers or None. out: a new or empty folder. Weights are float32, in one file. Raises
  ValueError listing the settings that no family has.
  """
  cfg = dataclasses.replace(model_config, vocab=model.cfg.vocab)
  name, hf = families.write_config(cfg)
  family, folder, sizes = families.FAMILIES[name], Path(out).expanduser(), tensors.sizes_of(cfg)
  check_empty(folder, 'out')
  files = {}
  for path, p in param_trees.named_params(model):
    tensor, value = family.tensors[path], np.asarray(p.get_value()).astype(np.float32)
    layers = value if p.axes[0] == 'L' else value[None]
    for file_name, array in zip(tensors.names(tensor, cfg.layers), layers, strict=True):
      axes, into = p.axes.lstrip('L'), files.get(file_name)
      files[file_name] = tensors.to_tensor(array, tensor, axes, sizes, into)
  folder.mkdir(parents=True, exist_ok=True)
  if toks is not None and (note := tokenizer_files.write(toks, folder, cfg.context)):
    say(f'note: {note}')
  save_file(files, folder / 'model.safetensors', {'format': 'pt'})
  specials = tokenizer_files.special_ids(toks)
  if any(value is not None for value in specials.values()):
    records.write_atomically(folder / 'generation_config.json', json.dumps(specials, indent=2) + '\n')
  content = hf | specials  # last: a folder with it is complete
  records.write_atomically(folder / 'config.json', json.dumps(content, indent=2) + '\n')
  return name


def check_empty(folder, flag):
  """Raise ValueError unless the folder is new or empty."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise ValueError(f'--{flag}={folder} is not empty\nfix: give a new or empty folder')


# ------------------------------------------------------------------------------------ run folders


def import_run(source, workdir):
  """Make a run folder of a model at step 0: sample, evaluate and train.init_from take it.

  It holds parameters and no optimizer: training goes on elsewhere, with train.init_from=<workdir>.
  Raises ValueError or FileNotFoundError for what `import_model` refuses, for a model without
  tokenizer files, and if workdir is not new or empty.
  """
  workdir = Path(workdir).expanduser()
  check_empty(workdir, 'workdir')
  run_folder.check_workdir(workdir, {})
  imported = _read(find_folder(source), needs_tokenizer=True)
  # Rows whose logits fit, a number that all devices share: a long context is for sampling.
  rows = -(-8 // jax.device_count()) * jax.device_count()
  train = TrainConfig(length=min(imported.cfg.context, 1024), batch_size=rows)
  sample = SampleConfig(begin=imported.begin)
  cfg = config.Config(model=imported.cfg, tokenizer=imported.tokenizer, train=train, sample=sample)
  imported.tokenizers.save(workdir / 'tokenizer')
  state = TrainState(jnp.int32(0), imported.model, None, jax.random.key(train.seed), {})
  extra = {
    'config': dataclasses.asdict(cfg),
    'vocab': imported.cfg.vocab,
    'widths': [imported.cfg.patch_values, imported.cfg.frame_values],
    'tokenizer': checkpoint.pack_folder(workdir / 'tokenizer'),
    'tokens': 0.0,
    'seconds': 0.0,
    'imported': str(source),
  }
  settings = checkpoint.CheckpointConfig(background=False)
  checkpoints = checkpoint_writer.CheckpointWriter(workdir / 'checkpoints', settings)
  checkpoints.save(0, state, extra)
  checkpoints.close()
  records.write_json(workdir / 'config.json', dataclasses.asdict(cfg))  # last: now it is a run
  params = costs.count_params(imported.cfg)
  say(
    f'imported {source}: {imported.family}, {params:,} parameters\n'
    f"next: launch.py sample --workdir={workdir} --prompt='Once upon a time'"
  )


def export_run(workdir, out):
  """Write the newest good checkpoint of a run as Hugging Face files into a new or empty folder."""
  run = trained.load(workdir)
  family = export_model(run.model.cfg, run.model, run.tokenizers, out)
  params = costs.count_params(run.model.cfg)
  say(
    f'exported step {run.step} of {workdir}: {family}, {params:,} parameters\n'
    f"next: transformers.AutoModelForCausalLM.from_pretrained('{out}')"
  )
