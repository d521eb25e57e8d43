"""The model that the lab has loaded: one at a time, used by one request at a time."""

import base64
import binascii
import contextlib
import threading

from gpt_jax.workbench.lab import args

MAX_FILES = 8  # pictures, sounds or files of vectors of one request


class Models:
  """Keeps the last run that was asked for in memory, until another is, or it has a newer checkpoint."""

  def __init__(self):
    self._lock, self._key, self._run, self._decoding = threading.Lock(), None, None, None

  @contextlib.contextmanager
  def use(self, folder):
    """Yield the trained.TrainedRun of a folder; ValueError for a run without a checkpoint or GPT."""
    from gpt_jax.evaluation import trained

    with self._lock:
      key = folder, newest_checkpoint(folder)
      if key != self._key:
        self._key = self._run = self._decoding = None  # frees its memory before the next is read
        self._run = trained.load(folder)
        self._key = key
      yield self._run

  def decoding_model(self, run):
    """Return the model of the run in use laid out for decoding, made once."""
    from gpt_jax.sampling import decoding_layout

    if self._decoding is None:
      self._decoding = decoding_layout.prepare_model(run.model)
    return self._decoding


def newest_checkpoint(folder):
  """Return the number of the last step with a checkpoint, -1 without any."""
  folder = folder / 'checkpoints'
  steps = [int(path.name) for path in folder.glob('*') if path.name.isdecimal()] if folder.is_dir() else []
  return max(steps, default=-1)


def list_models(lab, query):
  """GET /api/models: runs that can be tried.

  Returns {models: [{name, step, inputs, outputs, sources, chat, sampling}]}. inputs, outputs: modalities that
  its templates read and make. chat: whether it answers conversations. sampling: its own SampleConfig.
  """
  rows = []
  for name, folder in lab.index.runs().items():
    step, config = newest_checkpoint(folder), lab.index.config(folder)
    job = str(args.section(config, 'train').get('job', ''))
    if step >= 0 and not job.endswith('_tokenizer'):
      rows.append({'name': name, 'step': step} | abilities(config, folder))
  return {'models': rows}


def abilities(config, folder):
  """Return what a run reads and makes: by its templates, or as an imported model; else texts."""
  from gpt_jax.data import templates

  inputs, outputs, chat, sources = set(), set(), False, {}
  for name, source in args.section(args.section(config, 'data'), 'mixture').items():
    template = source.get('template', '') if isinstance(source, dict) else ''
    with contextlib.suppress(ValueError, TypeError):
      condition, target = templates.signature(template)
      kinds = lambda slots: {templates.MODALITY.get(slot, 'text') for slot in slots}
      chat = chat or templates.is_chat(template)
      inputs |= kinds(condition) or {'text'}
      outputs |= kinds(target)
      sources[name] = template
  inputs |= read_by_import(folder)
  chat = chat or knows_chat_by_import(folder)
  facts = {'inputs': sorted(inputs or {'text'}), 'outputs': sorted(outputs or {'text'}), 'chat': chat}
  return facts | {'sources': sources, 'sampling': args.section(config, 'sample')}


def read_by_import(folder):
  """Return the modalities that an imported model reads, 'text' among them; an empty set for other runs."""
  from gpt_jax.model.continuous import KINDS
  from gpt_jax.runs import records
  from gpt_jax.tokenizers import readers

  try:
    rows = records.read_json(folder / 'tokenizer' / readers.FILE, {str: dict})
  except (ValueError, OSError):  # said when the model is loaded
    return set()
  kinds = [kind for kind, fields in rows.items() if fields.get('places') and kind in KINDS]
  return {'text', *(KINDS[kind].modality for kind in kinds)} if kinds else set()


def knows_chat_by_import(folder):
  """Whether a run is an imported model whose tokenizer has a chat template."""
  from gpt_jax.runs import ancestry

  try:
    parents = ancestry.read_parents(folder)
  except (ValueError, OSError):
    return False
  is_import = any(parent['how'] == 'import' for parent in parents)
  return is_import and (folder / 'tokenizer' / 'chat_template.jinja').is_file()


def files(body, name):
  """Return the bytes of the files of a request, a list of base64 texts."""
  values = body.get(name) or []
  if not isinstance(values, list) or len(values) > MAX_FILES:
    raise ValueError(f'{name} is not a list of up to {MAX_FILES} files\nfix: send fewer')
  try:
    return [base64.b64decode(value, validate=True) for value in values]
  except (binascii.Error, TypeError, ValueError) as error:
    raise ValueError(f'{name} holds a file that is not base64\nfix: send the bytes of the file') from error


def prompt_of(run, body, to='text'):
  """Return the Prompt of a request: {text, images, sounds, vectors, source}."""
  from gpt_jax.sampling import prompts

  begin, source = run.cfg.sample.begin, args.text(body, 'source')
  images, sounds, vectors = (files(body, name) for name in ('images', 'sounds', 'vectors'))
  text = args.text(body, 'text')
  return prompts.build_prompt(run, text, images, sounds, to, begin, source, vectors=vectors)
