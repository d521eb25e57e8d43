"""From words and files to prompts, and from ids to text, pictures and sounds.

A model answers in the forms that it was trained on: the templates of its mixture. What is given and
what is asked for choose the form, and the form says how it is encoded: in which order, with which
words around it, as codes or as continuous features.

Letters: Y X A rows, columns and channels of an image, N samples of a sound.
"""

import collections
import dataclasses
import itertools
import re

import numpy as np

from gpt_jax import sample
from gpt_jax.data import templates
from gpt_jax.data.documents import MARKERS, decode_media, encode_batch
from gpt_jax.data.row_fields import PLACES
from gpt_jax.data.templates import MODALITY, Piece
from gpt_jax.sampling import completions, prompt_batch
from gpt_jax.tokenizers import grammar as grammars

MARK = re.compile(r'\{(image|audio)\}')  # where in a prompt's text its next image or sound stands


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
  """A template of the mixture, as something to ask for."""

  template: str
  source: str = ''  # the first source that has it

  @property
  def kinds(self):
    """(kinds of the condition, kinds of the target)."""
    return templates.signature(self.template)

  @property
  def to(self):
    """What it makes: text, image, audio, or any for a mixture of them."""
    target = self.kinds[1]
    return target[0] if len(target) == 1 and target[0] in ('text', *MARKERS) else 'any'

  @property
  def is_open(self):
    """Whether a document has no condition, so that any beginning of it may be given."""
    return not self.kinds[0]

  def __str__(self):
    words = [', '.join(MODALITY.get(kind, kind) for kind in kinds) for kinds in self.kinds if kinds]
    return ' -> '.join(words)


def trained_templates(cfg, source=''):
  """The forms that a run was trained on, each once; of one source, if it is named.

  Raises ValueError for a name that is not in the mixture.
  """
  mixture = cfg.data.mixture
  if source:
    if source not in mixture:
      raise ValueError(f'--source={source} is not in data.mixture\nfix: use {", ".join(mixture)}')
    return [PromptTemplate(mixture[source].template, source)]
  first = {}
  for name, row in mixture.items():
    first.setdefault(row.template, name)
  return [PromptTemplate(template, name) for template, name in first.items()]


def build_prompt(run, text='', images=(), sounds=(), to='text', begin='', source=''):
  """What is given, in the form in which the run was trained to make `to` of it -> feed.Prompt.

  run: a Trained or a Subject. images, sounds: paths, bytes or arrays. text: the words that the form
  leaves open, or all of its words; `{image}` and `{audio}` in it say where media stand, if the form
  leaves it open. begin: special before a text that is only continued. source: whose form it is, ''
  for any that fits. What had to be converted is printed. Raises ValueError for what was not
  trained, and where forms would read it differently.
  """
  pieces = match_template(trained_templates(run.cfg, source), text, images, sounds, to)
  if pieces is None:
    return prompt_batch.Prompt(completions.encode_prompt(run.tokenizers, text, begin))
  notes = collections.Counter()
  pieces = decode_media(run.tokenizers, pieces, notes=notes)
  for note, count in notes.items():
    print(f'{count} {note}')
  return encode(run, [pieces], to)[0]


def encode(run, beginnings, to):
  """Beginnings of documents (lists of Piece), after which `to` comes -> list of feed.Prompt.

  A condition ends with its arrow. One call encodes them all.
  """
  special = run.tokenizers.vocabulary.special
  start = [special(MARKERS[to][0])] if to in MARKERS else []
  made = []
  for e in encode_batch(run.tokenizers, beginnings):
    ids = np.array([*e.ids, *start] or [special('eos')], np.int32)
    features = {}
    for name, place in PLACES.items():
      if getattr(e, name) is not None:
        features[name] = np.zeros((len(ids), getattr(e, name).shape[1]), np.float32)
        features[name][ids == special(place)] = getattr(e, name)
    made.append(prompt_batch.Prompt(ids.tolist(), prefix=run.cfg.data.prefix, **features))
  return made


def generate(subject, conditions, to='text', rows=64, **sampling):
  """What the model makes of each condition -> list of str, uint8 [Y, X, A] or float32 [N].

  subject: an evaluate.Subject. conditions: lists of Piece, as in the documents of a source. rows:
  how many at once, which changes no result. sampling: fields of SampleConfig that differ from those
  of the run.
  """
  arrow = Piece('arrow')
  beginnings = [[*(p for p in pieces if p != arrow), arrow] for pieces in conditions]
  ready = encode(subject, beginnings, to)
  cfg = dataclasses.replace(subject.cfg.sample, **{'num_samples': 1} | sampling)
  cfg = resolve_max_new_tokens(subject, ready, cfg, to, 'max_new_tokens' in sampling)
  keys_B, values = sample.row_keys(cfg.seed, len(ready)), []
  for first in range(0, len(ready), rows):
    chosen = [min(i, len(ready) - 1) for i in range(first, first + min(rows, len(ready)))]
    batch = [ready[i] for i in chosen]  # the last one is filled up: another size compiles again
    groups = completions.generate_ids(
      subject.model, subject.tokenizers, batch, cfg, to, keys_B[np.array(chosen)]
    )
    real = len(range(first, min(first + rows, len(ready))))
    for one, [(ids, _), *_] in zip(batch[:real], groups, strict=False):
      pieces = decode_pieces(subject, ids, one.ids)
      found = [piece.value for piece in pieces if piece.kind == to]
      values.append(''.join(found) if to == 'text' else found[-1])
    subject.between()
  return values


# ------------------------------------------------------------------------------ which form it is


def match_template(forms, text, images, sounds, to):
  """The pieces of the condition (with its arrow), None for a text to continue as it is.

  Raises ValueError where no form takes this, or several do and would read it differently.
  """
  given = {'image': list(images), 'audio': list(sounds)}
  found = []
  for form in forms:
    if form.is_open:
      fits = begin_document(form, text, given, to)
    else:
      fits = fill(form, text, given) if form.to == to else None
    if fits is not None:
      found.append((*fits, form))
  if not found:
    words = [f'{len(files)} {name}' for name, files in given.items() if files]
    words = ', '.join((['text'] if text else []) + words) or 'nothing'
    raise ValueError(
      f'the model was not trained to make {to} from {words}\n'
      f'fix: it knows {"; ".join(dict.fromkeys(map(str, forms)))}'
    )
  best = max(score for score, _, _ in found)
  found = [(pieces, form) for score, pieces, form in found if score == best]
  readings = [
    pieces and [(p.kind, p.value if p.kind == 'text' else '') for p in pieces] for pieces, _ in found
  ]
  if any(reading != readings[0] for reading in readings):
    texts = [[value for kind, value in reading or () if kind == 'text'] for reading in readings]
    wanted = 'name its source with --source'  # as codes and as continuous features, or in order
    if any(words != texts[0] for words in texts):
      wanted = f'give all the words of one, or {wanted}'
    named = '; '.join(f'{form.source} {form.template}'.strip() for _, form in found)
    raise ValueError(f'{asked(text, given)} could be meant for several forms\nfix: {wanted}: {named}')
  return found[0][0]


def asked(text, given):
  """What is given, in words."""
  words = [f'{len(files)} {name}' for name, files in given.items() if files]
  return ', '.join(([repr(text)] if text else []) + words)


def begin_document(form, text, given, to):
  """(score, pieces or None) if a document without condition may begin like this, else None."""
  kinds = {MODALITY.get(kind, kind) for kind in form.kinds[1]}
  if 'parts' in kinds:
    kinds |= {'text', 'image', 'audio'}
  used = {name for name, files in given.items() if files} | ({'text'} if text else set())
  if not used <= kinds or (to != form.to if to == 'any' else to not in kinds):
    return None
  if templates.is_plain(form.template):
    return (-1, 0), None
  order = [('text', text)] if text and not MARK.search(text) else []
  media = [(name, value) for name, files in given.items() for value in files]
  sequence = marked(text, given) if MARK.search(text) else None
  if MARK.search(text) and sequence is None:
    return None
  if sequence is None:  # what is made comes last, so words stand next to a text that goes on
    sequence = [*media, *order] if to == 'text' else [*order, *media]
  return (-2, 0), [Piece(kind, value) for kind, value in sequence]


def marked(text, given):
  """[(kind, value)] of a text with marks, None where marks and media do not match in number."""
  files = {name: iter(values) for name, values in given.items()}
  marks = collections.Counter(MARK.findall(text))
  if any(marks[name] != len(values) for name, values in given.items()):
    return None
  parts = MARK.split(text)  # text, name, text, name, .. text
  sequence = [('text', part) if i % 2 == 0 else (part, next(files[part])) for i, part in enumerate(parts)]
  return [(kind, value) for kind, value in sequence if kind != 'text' or value]


def fill(form, text, given):
  """(score, pieces with the arrow) of a condition, None if it is not of this form.

  A higher score: more of the form's own words are in the text.
  """
  slots = list(itertools.takewhile(lambda slot: slot[0] != 'arrow', templates.parse(form.template)))
  if slots[0][0] == 'parts':
    return begin_parts(text, given)
  groups = [
    (is_text, list(group))
    for is_text, group in itertools.groupby(slots, lambda slot: slot[0] in ('literal', 'text'))
  ]
  asked = collections.Counter(MODALITY[kind] for kind, _ in slots if kind in MODALITY)
  if any(asked[name] != len(values) for name, values in given.items()):
    return None
  chunks = [chunk for i, chunk in enumerate(MARK.split(text)) if i % 2 == 0 and chunk.strip()]
  blanks = [group for is_text, group in groups if is_text and any(k == 'text' for k, _ in group)]
  if len(chunks) != len(blanks):
    return None
  files = {name: iter(values) for name, values in given.items()}
  words, score, pieces = iter(chunks), (1, 0), []
  for is_text, group in groups:
    if not is_text:
      pieces += [Piece(kind, next(files[MODALITY[kind]])) for kind, _ in group]
      continue
    if group in blanks:
      part, wording = reword(group, next(words))
      if wording is None:
        return None
      score = (min(score[0], part[0]), score[1] + part[1])
    else:
      wording = ''.join(value for _, value in group)
    pieces.append(Piece('text', wording))
  return score, [*pieces, Piece('arrow')]


def begin_parts(text, given):
  """(score, pieces) of a condition that is any list of parts."""
  sequence = marked(text, given)
  if sequence is None and not MARK.search(text):
    sequence = [(name, value) for name, files in given.items() for value in files]
    sequence += [('text', text)] if text else []
  if not sequence:
    return None
  return (0, 0), [*(Piece(kind, value) for kind, value in sequence), Piece('arrow')]


def reword(group, text):
  """(score, words) of a run of literals and fields: the text itself where it is in their form, else
  with the literals around it; words are None where several fields leave open what is meant.
  """
  literal = sum(len(value) for kind, value in group if kind == 'literal')
  pattern = ''.join(re.escape(v) if kind == 'literal' else '(?:.+)' for kind, v in group)
  if re.fullmatch(pattern, text, re.DOTALL):
    return (1, literal), text
  if sum(kind == 'text' for kind, _ in group) > 1:
    return (0, 0), None
  return (0, 0), ''.join(value if kind == 'literal' else text for kind, value in group)


# -------------------------------------------------------------------------- what comes of a prompt


def resolve_max_new_tokens(run, prompts, cfg, to, has_length=False):
  """cfg (SampleConfig) with as many new tokens as there is room and use for.

  has_length: the user chose max_new_tokens, which then stays. Raises ValueError for guidance of a
  model that never saw an empty condition.
  """
  if cfg.guidance != 1.0 and not run.cfg.data.condition_dropout:
    raise ValueError(
      f'sample.guidance={cfg.guidance} needs a model that knows the empty condition, and this one '
      'was trained with data.condition_dropout=0.0\n'
      'fix: set guidance=1, or train with data.condition_dropout=0.1'
    )
  if has_length:
    return cfg
  grammar = completions.build_grammar(run.tokenizers, run.model.cfg.V, to)
  lengths_B = np.array([len(p.ids) for p in prompts])
  ids_BP = prompt_batch.padded([p.ids for p in prompts], int(lengths_B.max()))
  state, _ = grammars.read_prompts(grammar, ids_BP, lengths_B, np.zeros(len(prompts)))
  most = int(grammars.max_new_tokens(grammar, state).max()) or cfg.max_new_tokens
  room = max(1, run.model.cfg.context - int(lengths_B.max()))
  return dataclasses.replace(cfg, max_new_tokens=min(most, room))


def continues_text(run, prompt_):
  """Whether what is made of a prompt continues its text, rather than answering it."""
  return run.tokenizers.layout.sep not in prompt_.ids


def decode_pieces(run, ids, prompt_ids=()):
  """What ids hold -> list of Piece: text (str), image (uint8 [Y, X, A]), audio (float32 [N]).

  prompt_ids: what stood before; an image or a sound that was begun there is part of it.
  """
  toks = run.tokenizers
  ids, modality_V = [*begun(toks.layout, prompt_ids), *ids], toks.modality_V()
  pieces = []
  for number, group in itertools.groupby(ids, lambda i: modality_V[i]):
    kind, run_of = toks.modalities[number], list(group)
    if kind == 'text':
      text = toks.decode_text(run_of)
      pieces += [Piece('text', text)] if text else []
      continue
    ends = {toks.vocabulary.special(name) for name in MARKERS[kind][1:]}
    for is_end, codes in itertools.groupby(run_of, lambda i, ends=ends: i in ends):
      if not is_end:
        codes_PQ = toks.decode_codes(kind, list(codes))
        pieces.append(Piece(kind, getattr(toks, kind).decode(np.stack([codes_PQ]))[0]))
  return pieces


def begun(layout, ids):
  """The end of a prompt from where an image or a sound began that has not ended yet."""
  places = [i for i, token in enumerate(ids) if token in (layout.boi, layout.boa)]
  tail = list(ids[places[-1] :]) if places else []
  return [] if {layout.eoi, layout.eoa} & set(tail) else tail
