"""Load a trained model from its run folder; no code of the folder is executed."""

import base64
import contextlib
import dataclasses
import functools
import math
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from gpt_jax import config
from gpt_jax.data.templates import Piece
from gpt_jax.evaluation import label_judge, likelihood
from gpt_jax.evaluation.subject import Subject
from gpt_jax.jobs.base import trains_gpt
from gpt_jax.losses import bits
from gpt_jax.model import adapters, continuous, gpt
from gpt_jax.runs import run_folder
from gpt_jax.runs.reading import reading
from gpt_jax.sampling import completions, validate
from gpt_jax.sampling.prompts import (
  build_chat,
  build_prompt,
  chat_ends,
  check_output,
  decode_pieces,
  resolve_max_new_tokens,
)
from gpt_jax.sharding import make_mesh
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint

POLL = 10.0  # seconds between polls for a new checkpoint
# Fields of ModelConfig that may differ between adapters and their base.
OF_TRAINING = ('context', 'dropout', 'attention_dropout', 'kernel', 'unroll', 'remat', 'dtype', 'param_dtype')
OF_TRAINING += ('init_std', 'init_projections')


class TextScore(NamedTuple):
  """The log-likelihood of a text."""

  nats: float  # minus the log-likelihood, natural logarithm
  tokens: int  # that were scored
  bytes: int  # of the text in UTF-8, with white space that ends its context

  @property
  def bits_per_byte(self):
    """Comparable between models with different tokenizers."""
    return bits(self.nats) / max(1, self.bytes)


class TrainedRun(NamedTuple):
  """A trained model on this machine's devices, with its config and tokenizers."""

  workdir: Path
  cfg: Any  # config.Config
  model: Any  # gpt.GPT, parameters as trained (their average, if the run kept one)
  tokenizers: Tokenizers
  mesh: Any
  step: int
  imported: str = ''  # the source of an imported model, which has no data of its own

  def subject(self, **fields):
    """The Subject that tasks evaluate."""
    run = self.cfg, self.model, self.tokenizers, self.mesh, self.workdir
    return Subject.of_run(*run, load_judge=load_judge, **fields)

  def generate(self, prompts, to='text', stop=(), **sampling):
    """Continue each prompt, or turn it into an image or a sound -> list of results.

    Args:
      prompts: a list of strings, or of dicts with `text`, `source` (whose template is used), `images`,
        `sounds` and `vectors` (lists of paths, bytes or arrays).
      to: text, image (uint8 [Y, X, A]), audio (float32 [N]) or codes of audio (int32 [P, Q]).
      stop: strings; a text ends before the first of them.
      **sampling: fields of SampleConfig in the place of the run's own; with num_samples > 1 each result is
        a list.
    """
    check_output(self.tokenizers, to)
    cfg, as_codes = validate.override(self.cfg.sample, **sampling), to == 'codes'
    to, stop = 'audio' if as_codes else to, (stop,) if isinstance(stop, str) else stop
    fields = [prompt_fields(prompt) for prompt in as_list('prompts', prompts)]
    if not fields:
      return []
    encoded = [build_prompt(self, **field, to=to, begin=cfg.begin) for field in fields]
    cfg = resolve_max_new_tokens(self, encoded, cfg, to, 'max_new_tokens' in sampling)
    groups = self.complete(encoded, cfg, to, stop)
    if to != 'text':
      last = lambda prompt, ids: cfg.refusal if ids is None else self.pieces(prompt, ids, as_codes)[-1].value
      pairs = zip(encoded, groups, strict=True)
      groups = [[(last(prompt, ids), scores) for ids, scores in group] for prompt, group in pairs]
    groups = [[value for value, _ in group] for group in groups]
    return groups if cfg.num_samples > 1 else [group[0] for group in groups]

  def complete(self, prompts, cfg, to='text', stop=(), ends=()):
    """Continue encoded prompts -> for each a list of (text, or ids of media, and scores).

    What cfg.judge refuses is sampled again; after cfg.judge_tries a text is cfg.refusal, ids are None.
    """

    def make(prompts, cfg, keys_B=None):
      if to == 'text':
        return completions.complete(self.model, self.tokenizers, prompts, cfg, stop, ends, keys_B)
      return completions.generate_ids(self.model, self.tokenizers, prompts, cfg, to, keys_B)

    if not cfg.judge:
      return make(prompts, cfg)
    if to == 'audio':
      raise ValueError(f'sample.judge={cfg.judge} judges texts and images, not audio\nfix: leave it out')
    pieces = lambda prompt, row: [Piece('text', row[0])] if to == 'text' else self.pieces(prompt, row[0])
    refused = (cfg.refusal if to == 'text' else None, [])
    groups = label_judge.resample(load_judge(cfg.judge), cfg, prompts, make, pieces)
    return [[refused if row is None else row for row in group] for group in groups]

  def pieces(self, prompt, ids, as_codes=False):
    """Return the Pieces of ids after an encoded prompt; see prompts.decode_pieces."""
    return decode_pieces(self, ids, prompt.ids, as_codes)

  def chat(self, messages, **sampling):
    """Return the assistant's reply to a conversation as text.

    Args:
      messages: dicts of role (system, user, assistant or tool) and content: a text, or a list of parts such
        as [{'text': 'What is this?'}, {'image': 'cat.png'}].
      **sampling: fields of SampleConfig in the place of the run's own.
    """
    return ''.join(self.stream_chat(messages, **sampling))

  def stream_chat(self, messages, history=None, **sampling):
    """Yield the pieces of the reply of `chat` while they are generated; history: see completions.stream."""
    cfg = validate.override(self.cfg.sample, **{'num_samples': 1} | sampling)
    prompt, (ends, stop) = build_chat(self, messages), chat_ends(self)
    cfg = resolve_max_new_tokens(self, [prompt], cfg, 'text')  # at most the room that the conversation leaves
    if cfg.beams or cfg.judge:  # shown when whole: a judge may refuse it
      [[(text, _), *_]] = self.complete([prompt], cfg, 'text', stop, ends)
      yield text
    else:
      yield from completions.stream_text(self.model, self.tokenizers, prompt, cfg, stop, ends, history)

  def score(self, texts, contexts=()):
    """Score texts -> list of TextScore; contexts: a text before each of them, not scored.

    Without contexts a text has any length. ValueError for one after a context that exceeds the model's.
    """
    subject, texts, contexts = self.subject(), as_list('texts', texts), as_list('contexts', contexts)
    if contexts and len(contexts) != len(texts):
      raise ValueError(
        f'contexts has {len(contexts)} items, and texts {len(texts)}\nfix: give each text a context, or none'
      )
    pairs = list(zip(contexts or [''] * len(texts), texts, strict=True))
    if contexts:
      requests = [[likelihood.encode_pair(subject, context, text)] for context, text in pairs]
    else:
      requests = [likelihood.windows(subject, text) for text in texts]
    nats = iter(likelihood.score_requests(subject, [r for group in requests for r in group]).nats)
    return [
      TextScore(
        float(sum(next(nats) for _ in group)),
        sum(len(r.targets) for r in group),
        likelihood.count_bytes(*pair),
      )
      for group, pair in zip(requests, pairs, strict=True)
    ]


def as_list(name, values):
  """Return `values` as a list; ValueError for one text, whose letters would be taken for texts."""
  if isinstance(values, str | bytes | dict):
    raise ValueError(f'{name}={values!r:.60} is not a list\nfix: put it into one: [{values!r:.60}]')
  return list(values)


def prompt_fields(prompt):
  """Return the arguments of build_prompt for a prompt of `generate`; ValueError for another type."""
  if isinstance(prompt, str):
    return {'text': prompt}
  names = ('text', 'images', 'sounds', 'vectors', 'source')
  if not isinstance(prompt, dict) or {*prompt} - {*names}:
    raise ValueError(
      f'the prompt {prompt!r:.60} is neither a string nor a dict of known keys\nfix: use {", ".join(names)}'
    )
  return prompt


def load(workdir, step=None, base=None, key='workdir'):
  """Load a checkpoint of a run, by default the newest good one -> TrainedRun.

  The mesh is the run's own where these devices form it, else all of them on the data axis, where each
  holds the whole model. Raises ValueError for a folder that is not a run or has no good checkpoint.

  base: the TrainedRun that the adapters of this run were trained on; then `model` is the tree of adapters
  alone, on the base's mesh. key: what named the folder, for errors.
  """
  workdir = Path(workdir).expanduser()
  cfg = config.of_run(workdir, key)
  checkpoints = checkpoint.Checkpoints(workdir / 'checkpoints', verify=cfg.checkpoint.verify)
  newest = checkpoints.latest_good(math.inf if step is None else step)
  if newest is None and step is None:
    raise ValueError(f'{workdir} has no checkpoint yet\nfix: train there first')
  if step not in (None, newest):
    steps = ', '.join(map(str, sorted(checkpoints.steps()))) or 'none'
    raise ValueError(f'step={step} is not a good checkpoint of {workdir}\nfix: use one of {steps}, or all')
  step = newest
  if not trains_gpt(cfg.train.job):
    raise ValueError(
      f'{workdir} holds an {cfg.train.job.replace("_", " ")}, not a GPT\n'
      f'fix: name it in {cfg.train.job.partition("_")[0]}.path of an experiment'
    )
  extra = checkpoints.read_extra(step, {**continuous.EXTRA, 'tokenizer': {str: str}})
  with reading(f'{workdir}/checkpoints/{step}/extra', 'what a run keeps', 'copy a good one back'):
    sizes = continuous.of_extra(extra)
    files = unpack_files(extra['tokenizer'])
  model_cfg = dataclasses.replace(cfg.model, **sizes).resolved()
  imported, toks = str(extra.get('imported', '')), load_tokenizers(files, workdir)
  if base is not None:
    check_adapters(workdir, cfg, toks, model_cfg, checkpoints.read_extra(step).get('base'), base)
    tree, _ = adapters.split(cfg.adapter, gpt.GPT(model_cfg))
    tree = checkpoints.restore_model(step, checkpoint.with_shardings(tree, base.mesh))
    return TrainedRun(workdir, cfg, tree, toks, base.mesh, step, imported)
  try:
    mesh = make_mesh(dataclasses.replace(cfg.mesh, replica=1))
  except ValueError:  # the run had another number of devices
    mesh = make_mesh(config.MeshConfig())
  model = checkpoints.restore_model(step, checkpoint.with_shardings(gpt.GPT(model_cfg), mesh))
  return TrainedRun(workdir, cfg, model, toks, mesh, step, imported)


def check_adapters(workdir, cfg, toks, model_cfg, reference, base):
  """Raise ValueError for a run whose adapters are not of this base alone."""
  if reference is None or not cfg.adapter.rank:
    raise ValueError(
      f'{workdir} has no adapters\nfix: name a run with adapter.rank, or use --workdir={workdir}'
    )
  own = checkpoint.refer_to_base(checkpoint.Checkpoints(base.workdir / 'checkpoints'), base.step)
  if reference['digest'] != own['digest']:
    raise ValueError(
      f'the adapters of {workdir} were trained on step {reference["step"]} of {reference["path"]}, not on '
      f'step {base.step} of {base.workdir}\nfix: use --workdir={reference["path"]}, or serve {workdir} alone'
    )
  names = [f.name for f in dataclasses.fields(model_cfg) if f.name not in OF_TRAINING]
  differing = [f'model.{name}' for name in names if getattr(model_cfg, name) != getattr(base.model.cfg, name)]
  causes = {
    f'has another {", ".join(differing)} than its base': bool(differing),
    'has another tokenizer than its base': toks.hash != base.tokenizers.hash,
    f'trains {", ".join(cfg.adapter.train)} whole': bool(cfg.adapter.train),
    f'has a base in {cfg.adapter.base_dtype}': bool(cfg.adapter.base_dtype),
  }
  for cause, holds in causes.items():
    if holds:
      raise ValueError(f'{workdir} {cause}\nfix: serve it alone, with --workdir={workdir}')


@functools.lru_cache(2)
def load_judge(value, key='sample.judge'):
  """Return the label_judge.Judge of RUN:LABEL|LABEL; ValueError, which names `key`, for anything else."""
  workdir, labels = label_judge.parse_judge(value, key)
  return label_judge.Judge(load(workdir, key=key), labels)


def good_steps(workdir, after=-1, report=print):
  """Return the steps of all good checkpoints after a step, oldest first.

  All processes of a job call it together. Without a newer step no file is read.
  """
  cfg = config.of_run(Path(workdir).expanduser())
  folder = Path(workdir).expanduser() / 'checkpoints'
  checkpoints = checkpoint.Checkpoints(folder, verify=cfg.checkpoint.verify, report=report)
  steps, last = [], math.inf
  if checkpoint.from_process_0(max(checkpoints.steps(), default=-1)) <= after:
    return []
  with contextlib.suppress(checkpoint.Corrupt):  # none below the last good one
    while (step := checkpoints.latest_good(last, after)) is not None:
      steps.insert(0, step)
      last = step - 1
  return steps


def watch(workdir, poll=POLL):
  """Yield a TrainedRun for each checkpoint of a run in training, until the run has its result.

  Checkpoints that the training removes before their turn are left out. poll: seconds between polls.
  """
  seen = -1
  while True:
    done = checkpoint.from_process_0(int(bool(run_folder.read_result(workdir))))  # before the last poll
    new = good_steps(workdir, seen, report=lambda line: None)
    if new:
      seen = new[0]
      try:
        run = load(workdir, seen)
      except (FileNotFoundError, ValueError):
        if (Path(workdir).expanduser() / 'checkpoints' / str(seen)).exists():
          raise
        continue  # training removed it meanwhile
      yield run
    elif done:
      return
    else:
      time.sleep(poll)


def unpack_files(files):
  """Inverse of `checkpoint.pack_folder` -> {file name: bytes}; a name is never a path."""
  return {Path(name).name: base64.b64decode(text) for name, text in files.items()}


def load_tokenizers(files, workdir=None):
  """Load the Tokenizers of {file name: bytes}, the files of a saved folder of a run."""
  with tempfile.TemporaryDirectory() as folder:
    for name, content in files.items():
      (Path(folder) / name).write_bytes(content)
    return Tokenizers.load(folder, workdir)
