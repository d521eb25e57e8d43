"""Prompts from text and files, and text, images and sounds from sampled ids.

Letters: Y X A rows, columns and channels of an image, N samples of a sound.
"""

import contextlib
import dataclasses
import itertools
import json

import numpy as np

from gpt_jax import sample
from gpt_jax.data import templates
from gpt_jax.data.documents import MARKERS, check_pieces, check_places, decode_media, encode_batch, examples
from gpt_jax.data.row_fields import mask_of
from gpt_jax.data.templates import Piece
from gpt_jax.model.continuous import KINDS
from gpt_jax.runs.progress import Progress
from gpt_jax.runs.text_table import join_some
from gpt_jax.sampling import completions, prompt_batch, validate
from gpt_jax.sampling.prompt_templates import ARROW, PromptTemplate, match_template, trained_templates
from gpt_jax.tokenizers import grammar as grammars
from gpt_jax.tokenizers.chat_template import SPECIALS, ChatTemplate, Rendering
from gpt_jax.tokenizers.text import UnknownCharacter

MOST_READ = 20_000  # training records whose conditions an error names


def build_prompt(
  run, text='', images=(), sounds=(), to='text', begin='', source='', notes=None, vectors=(), reads_data=True
):
  """Encode text and files in a format that the run was trained on -> prompt_batch.Prompt.

  run: a trained.TrainedRun or a Subject. images, sounds, vectors: paths, bytes or arrays. text: the
  words for the template's fields, or all of its words; `{image}` and `{audio}` in it say where media
  stand, if the template leaves it open. to: the modality to make. begin: special before a text that is
  only continued. source: name of the source whose template to use, '' for any that fits. notes: a
  Counter that gets what was converted. reads_data: whether an error names the conditions of training.

  Raises ValueError where no template takes these inputs or several encode them differently.
  """
  candidates = trained_templates(run.cfg, source)
  # An imported model takes any text with media.
  if run.tokenizers.places and (images or sounds) and not source:
    candidates = [*candidates, PromptTemplate('{prompt:parts}')]
  pieces = match_template(candidates, text, images, sounds, to, vectors)
  if pieces is None:
    return prompt_batch.Prompt(
      completions.encode_prompt(
        run.tokenizers, text, begin or completions.begin_special(run.cfg, run.tokenizers)
      )
    )
  if run.tokenizers.places and ARROW not in pieces:
    pieces = [*pieces, ARROW]
  try:
    return encode(run, [decode_media(run.tokenizers, pieces, notes=notes)], to)[0]
  except UnknownCharacter as error:
    if not reads_data or not (names := known_conditions(run.cfg.data, source)):
      raise
    cause = str(error).split('\n')[0]
    raise ValueError(
      f'prompt {text!r}: {cause}\nfix: use a condition of training: {join_some(names, 20)}'
    ) from error


def known_conditions(cfg, source='', most=50):
  """Return the sorted conditions of the training data that are texts; [] for more than `most`, or no data.

  cfg: a DataConfig. source: the one to read; '' = all.
  """
  names = set()
  for name in [source] if source else cfg.mixture:
    if templates.signature(cfg.mixture[name].template)[0] == ('text',):
      with contextlib.suppress(ValueError, OSError):  # the data may be gone
        for _, pieces in itertools.islice(examples(cfg, name, 'train'), MOST_READ):
          condition, _ = templates.split(pieces)
          names.add(''.join(piece.value for piece in condition))
  return sorted(names) if len(names) <= most else []


def build_chat(run, messages):
  """Encode a conversation that the assistant answers next -> prompt_batch.Prompt.

  messages: dicts of role and content, a text or a list of parts. Raises ValueError for a run that knows no
  conversations, and for messages that its template or its tokenizers refuse.
  """
  chat_source(run)
  pieces = templates.chat_pieces(messages, 'messages', 'the conversation')
  check_pieces(run.tokenizers, pieces, 'the conversation')
  template = ChatTemplate.of(run.tokenizers.text, run.tokenizers.media_marks)
  text = template.render(json.loads(pieces[0].value), add_generation_prompt=True)
  check_places(Rendering(text), pieces, 'the conversation')
  return encode(run, [[Piece('chat', Rendering(text)), *pieces[1:]]], 'text')[0]


def chat_source(run):
  """Raise ValueError for a run that was never trained on conversations, nor its tokenizer made for them."""
  trained = any(templates.is_chat(source.template) for source in run.cfg.data.mixture.values())
  if not trained and not run.tokenizers.text.chat_template:
    raise ValueError(
      'this run was never trained on conversations, and its tokenizer has no chat template\n'
      "fix: train it on a source with template='{messages:chat}', as experiments/instruct.py does"
    )


def chat_ends(run):
  """Return (ids, stop strings) that end a reply, as its chat template ends it."""
  ending = ChatTemplate.of(run.tokenizers.text, run.tokenizers.media_marks).ending()
  for name, mark in SPECIALS.items():
    if ending == mark:
      return (run.tokenizers.vocabulary.special(name),), ()
  ids = run.tokenizers.encode_text(ending)
  return ((ids[0],), ()) if len(ids) == 1 else ((), (ending,) if ending else ())


def encode(run, beginnings, to):
  """Encode beginnings of documents (lists of Piece) that `to` follows -> list of Prompt.

  A condition ends with its arrow. One call encodes them all.
  """
  special = run.tokenizers.vocabulary.special
  start = [special(MARKERS[to][0])] if to in MARKERS else []
  prompts = []
  for encoded in encode_batch(run.tokenizers, beginnings):
    ids = np.array([*encoded.ids, *start] or [special(run.tokenizers.start)], np.int32)
    features = {}
    for name, kind in KINDS.items():
      if (values := getattr(encoded, name)) is not None:
        features[name] = np.zeros((len(ids), values.shape[1]), np.float32)
        features[name][ids == special(kind.place)] = values
    prompts.append(prompt_batch.Prompt(ids.tolist(), mask=prompt_mask(run, features), **features))
  return prompts


def prompt_mask(run, features=()):
  """Return the mask of a prompt with these continuous inputs: causal without the items of mask=items."""
  mask = mask_of(run.cfg.data, run.tokenizers)
  return 'causal' if mask == 'items' and not features else mask


def generate(subject, conditions, to='text', rows=64, choose=None, **sampling):
  """Generate one `to` for each condition -> list of str, uint8 [Y, X, A] or float32 [N].

  subject: a Subject. conditions: lists of Piece, as in the documents of a source. rows:
  batch size, which changes no result. choose: list of a prompt's texts -> one of them; default: the first.
  sampling: fields of SampleConfig that differ from the run's.
  """
  prompts = encode(subject, [[*(p for p in pieces if p != ARROW), ARROW] for pieces in conditions], to)
  cfg = validate.override(subject.cfg.sample, **{'num_samples': 1} | sampling)
  cfg = resolve_max_new_tokens(subject, prompts, cfg, to, 'max_new_tokens' in sampling)
  n, values = cfg.num_samples, []
  keys_BN = sample.row_keys(cfg.seed, len(prompts) * n).reshape(-1, n)
  progress, at_once = Progress(f'generating {to}', 'examples', len(prompts)), min(n, rows)
  rows //= at_once
  for first in range(0, len(prompts), rows):
    progress.report(first)
    # The last batch is filled up: another size would compile again.
    index = np.minimum(np.arange(first, first + min(rows, len(prompts))), len(prompts) - 1)
    batch = [prompts[i] for i in index]
    groups = [[] for _ in batch]
    for start in range(0, n, at_once):
      keys_Bn = keys_BN[index, start : start + at_once]
      part = dataclasses.replace(cfg, num_samples=keys_Bn.shape[1])
      keys_B = keys_Bn.reshape(-1)
      samples = completions.generate_ids(subject.model, subject.tokenizers, batch, part, to, keys_B)
      groups = [group + more for group, more in zip(groups, samples, strict=True)]
    for prompt, group in list(zip(batch, groups, strict=True))[: len(prompts) - first]:
      outputs = [_output(subject, ids, prompt.ids, to) for ids, _ in (group if choose else group[:1])]
      values.append(choose(outputs) if choose else outputs[0])
    subject.raise_if_preempted()
  return values


def _output(subject, ids, prompt_ids, to):
  """The text, image or sound of generated ids."""
  outputs = [p.value for p in decode_pieces(subject, ids, prompt_ids) if p.kind in (to, 'codes')]
  return ''.join(outputs) if to == 'text' else outputs[-1]


def resolve_max_new_tokens(run, prompts, cfg, to, is_chosen=False):
  """Return cfg (SampleConfig) with max_new_tokens cut to the room in the context and the need of `to`.

  is_chosen: the user set max_new_tokens, which then stays. Raises ValueError for guidance of a model
  that was never trained on an empty condition, and for flow_steps of one without a flow head.
  """
  check_guidance(cfg, run.cfg.data)
  if cfg.flow_steps != type(cfg).flow_steps and not run.cfg.model.flow_layers:
    raise ValueError(
      f'flow_steps={cfg.flow_steps} has no effect: this model has no flow head\nfix: leave it at its default'
    )
  if is_chosen:
    return cfg
  grammar = completions.build_grammar(run.tokenizers, run.model.cfg.V, to)
  lengths_B = np.array([len(p.ids) for p in prompts])
  ids_BP = prompt_batch.pad_right([p.ids for p in prompts], int(lengths_B.max()))
  state, _ = grammars.read_prompts(grammar, ids_BP, lengths_B, np.zeros(len(prompts)))
  longest = int(grammars.max_new_tokens(grammar, state).max()) or cfg.max_new_tokens
  room = max(1, run.model.cfg.context - int(lengths_B.max()))
  return dataclasses.replace(cfg, max_new_tokens=min(longest, room))


def check_guidance(cfg, data_cfg):
  """Raise ValueError if a SampleConfig has guidance and the model never sees an empty condition."""
  if cfg.guidance != 1.0 and not data_cfg.condition_dropout:
    raise ValueError(
      f'sample.guidance={cfg.guidance} needs a model that knows the empty condition, and this one '
      'is trained with data.condition_dropout=0.0\n'
      'fix: set sample.guidance=1.0, or train with data.condition_dropout=0.1'
    )


def check_output(tokenizers, to):
  """Raise ValueError for sounds of a model whose codes have no codec, and pictures of one without decoder."""
  if to == 'image' and not getattr(tokenizers.image, 'has_decoder', True):
    raise ValueError('to=image: the picture tokenizer of this model has no decoder\nfix: use --to=text')
  if to == 'audio' and getattr(tokenizers.audio, 'sample_rate', 1) == 0:
    raise ValueError('to=audio: the codes of this model have no codec that plays them\nfix: use to=codes')


def continues_text(run, prompt):
  """Whether the completion continues the prompt's own text, rather than answering a condition."""
  return run.tokenizers.layout.sep not in prompt.ids


def decode_pieces(run, ids, prompt_ids=(), as_codes=False):
  """Decode ids -> list of Piece: text, image (uint8 [Y, X, A]), audio (float32 [N]), codes (int32 [P, Q]).

  prompt_ids: the ids before; an image or a sound that began there is decoded whole. as_codes: sounds are left
  as codes, as they always are without a codec.
  """
  tokenizers, values_TA = run.tokenizers, getattr(ids, 'values_TA', None)
  modality_V = tokenizers.modality_V()
  ids = [*unfinished_media(tokenizers.layout, prompt_ids), *ids]
  place = 0 if values_TA is None else len(values_TA) - len(ids)  # of the next id in values_TA
  pieces = []
  for number, group in itertools.groupby(ids, lambda i: modality_V[i]):
    kind, group_ids = tokenizers.modalities[number], list(group)
    place += len(group_ids)
    if kind == 'text':
      text = tokenizers.decode_text(group_ids)
      pieces += [Piece('text', text)] if text else []
      continue
    if kind == 'image' and tokenizers.makes_patches:
      pieces += _pictures(tokenizers, group_ids, values_TA[place - len(group_ids) : place])
      continue
    ends = {tokenizers.vocabulary.special(name) for name in MARKERS[kind][1:]}
    for is_end, codes in itertools.groupby(group_ids, lambda i, ends=ends: i in ends):
      if not is_end:
        codes_PQ = tokenizers.decode_codes(kind, list(codes))
        if kind == 'audio' and (as_codes or not tokenizers.audio.sample_rate):
          pieces.append(Piece('codes', codes_PQ))
        else:
          pieces.append(Piece(kind, getattr(tokenizers, kind).decode(np.stack([codes_PQ]))[0]))
  return pieces


def _pictures(tokenizers, ids, values_TA):
  """Return the Pieces of whole pictures of patches with these values."""
  is_patch_T = np.asarray(ids) == tokenizers.vocabulary.special('patch')
  patches_NPA = values_TA[is_patch_T].reshape(-1, tokenizers.image.positions, values_TA.shape[1])
  return [Piece('image', image) for image in tokenizers.image.decode_features(patches_NPA)]


def unfinished_media(layout, ids):
  """Return the end of a prompt from the start marker of an image or a sound that has not ended; else []."""
  starts = [i for i, token in enumerate(ids) if token in (layout.boi, layout.boa)]
  tail = list(ids[starts[-1] :]) if starts else []
  return [] if {layout.eoi, layout.eoa} & set(tail) else tail
