"""What a run can make of what, and requests as jobs of the engine."""

import dataclasses
import secrets

import jax
import numpy as np

from gpt_jax import sample
from gpt_jax.data.templates import MODALITY
from gpt_jax.sampling import prompt_batch, prompts, validate
from gpt_jax.sampling.prompt_templates import match_template, trained_templates
from gpt_jax.workbench.serving.errors import RequestError
from gpt_jax.workbench.serving.jobs import MediaJob, TextJob
from gpt_jax.workbench.serving.rows import MOST_K

CHARACTERS = 32  # of a prompt for each token that may be in it: beyond this nothing is tokenized
MEDIA = {  # endpoint: (text, sounds) of a prompt, the modality of the answer
  'audio/transcriptions': (('', 1), 'text'),
  'audio/speech': (('x', 0), 'audio'),
  'images/generations': (('x', 0), 'image'),
}
FIXED = {  # fields of SampleConfig that a server cannot vary: the value that it needs
  'judge': '',
  'beams': 0,
  'filters': '',
  'guidance': 1.0,
}


def check_servable(cfg):
  """Raise ValueError for a SampleConfig that needs what a decode of many requests does not do."""
  for name, value in FIXED.items():
    if getattr(cfg, name) != value:
      raise ValueError(
        f'sample.{name}={getattr(cfg, name)} of this run is not supported by serve\n'
        f'fix: add --{name}={value}, or use `launch.py sample`'
      )
  if cfg.top_k > MOST_K:
    raise ValueError(f'sample.top_k={cfg.top_k} is more than serve supports\nfix: add --top_k={MOST_K}')


class Forms:
  """Turns requests of one run into jobs.

  run: a trained.TrainedRun whose model is laid out for decoding. name: of the model in requests. longest:
  most tokens of prompt and text. adapter: its number in an AdapterBank; 0 = none.
  """

  def __init__(self, run, name, longest=0, adapter=0):
    check_servable(run.cfg.sample)
    self.run, self.name, self.adapter = run, name, adapter
    self.longest = min(longest or run.model.cfg.context, run.model.cfg.context)
    self.endpoints = {'completions': True, 'chat/completions': knows_chat(run)}
    self.endpoints |= {endpoint: self._can_make(*pair) for endpoint, pair in MEDIA.items()}

  def _can_make(self, prompt, to):
    text, sounds = prompt
    for template in trained_templates(self.run.cfg):
      try:
        pieces = match_template([template], text, (), [b'x'] * sounds, to)
      except ValueError:
        continue
      if pieces is not None and all(map(self.run.tokenizers.reader, kinds(pieces, to))):
        return True
    return False

  def describe(self):
    """Return what /v1/models says of the run beside its name."""
    templates = [t for t in trained_templates(self.run.cfg) if t.template]
    return {
      'step': self.run.step,
      'context': self.longest,
      'sources': {t.source: t.template for t in templates},
    }

  # ------------------------------------------------------------------------------------- prompts

  def check_length(self, text, name):
    """Raise RequestError for a text that is too long to be tokenized."""
    if len(text) > CHARACTERS * self.longest:
      raise RequestError(
        f'{name} has {len(text)} characters, more than {CHARACTERS * self.longest}\nfix: shorten it',
        param=name,
      )

  def prompt(self, text, images=(), sounds=(), to='text', source=''):
    """Encode a prompt as `launch.py sample` does -> prompt_batch.Prompt. Images and sounds are bytes."""
    self.check_length(text, 'prompt')
    begin = self.run.cfg.sample.begin
    return prompts.build_prompt(self.run, text, images, sounds, to, begin, source, reads_data=False)

  def as_prompt(self, value, source=''):
    """Encode a text, or take its token ids, as /v1/completions accepts them -> prompt_batch.Prompt."""
    if isinstance(value, list):
      return prompt_batch.Prompt(value, mask=prompts.prompt_mask(self.run))
    return self.prompt(value, source=source)

  def chat_prompt(self, messages):
    """Encode a conversation -> prompt_batch.Prompt."""
    parts = [[{'text': c}] if isinstance(c := m['content'], str) else c for m in messages]
    self.check_length(''.join(part.get('text', '') for content in parts for part in content), 'messages')
    return prompts.build_chat(self.run, messages)

  # ---------------------------------------------------------------------------------------- jobs

  def sampling(self, overrides):
    """Return the SampleConfig of a request: the run's, but a seed of its own where the request has none."""
    cfg = validate.override(self.run.cfg.sample, num_samples=1, **overrides)
    return cfg if 'seed' in overrides else dataclasses.replace(cfg, seed=secrets.randbelow(2**32))

  def text_jobs(self, prompt_list, overrides, n, most_tokens, end_ids, **fields):
    """Return n TextJobs for each prompt, in order; the i-th samples as sample i of `launch.py sample`.

    most_tokens: after the prompt; None: as the run's max_new_tokens says. end_ids: those that end a text.
    """
    cfg = self.sampling(overrides)
    keys_B = jit_row_keys(np.uint32(cfg.seed), len(prompt_list) * n)
    jobs = []
    for prompt in prompt_list:
      own = dataclasses.replace(cfg, max_new_tokens=self._new_tokens(prompt, cfg, most_tokens))
      for _ in range(n):
        b = len(jobs)
        same = dict(tokenizers=self.run.tokenizers, end_ids=end_ids, **self._model(), **fields)
        jobs.append(TextJob(prompt, own, None, keys_B[b : b + 1], **same))
    return jobs

  def _new_tokens(self, prompt, cfg, most_tokens):
    """Return the number of tokens after a prompt; RequestError if the request does not fit."""
    prompt_batch.check_prompts([prompt.ids], 1, self.run.model.cfg)
    room = self.longest - len(prompt.ids)
    if room < 1 or (most_tokens or 1) > room:
      raise RequestError(
        f'{len(prompt.ids)} tokens of the prompt and {most_tokens or 1} of the answer are more than '
        f'{self.longest}\nfix: shorten the prompt, or set max_tokens to {max(room, 1)} or less',
        param='max_tokens',
        code='context_length_exceeded',
      )
    return most_tokens or min(cfg.max_new_tokens, room)

  def media_job(self, prompt, to, overrides, n, guidance=1.0):
    """Return the MediaJob that makes n images or sounds of a prompt."""
    cfg = dataclasses.replace(self.sampling(overrides), num_samples=n, guidance=guidance)
    cfg = prompts.resolve_max_new_tokens(self.run, [prompt], cfg, to)
    prompt_batch.check_prompts([prompt.ids], cfg.max_new_tokens, self.run.model.cfg)
    if len(prompt.ids) + cfg.max_new_tokens > self.longest:
      raise RequestError(
        f'{len(prompt.ids)} tokens of the prompt and {cfg.max_new_tokens} of the answer are more than '
        f'{self.longest}\nfix: shorten the prompt',
        code='context_length_exceeded',
      )
    return MediaJob(prompt, cfg, None, jit_row_keys(np.uint32(cfg.seed), n), to=to, **self._model())

  def _model(self):
    return {'model': self.name, 'adapter': self.adapter}


def knows_chat(run):
  """Whether a run was trained on conversations, or its tokenizer has a template of them."""
  try:
    prompts.chat_source(run)
  except ValueError:
    return False
  return True


def kinds(pieces, to):
  """Return the kinds of media that a prompt and its answer need."""
  return {piece.kind for piece in pieces if piece.kind in MODALITY} | ({to} - {'text'})


jit_row_keys = jax.jit(sample.row_keys, static_argnames='rows')  # of np.uint32 seeds; eager, it takes 10 ms
