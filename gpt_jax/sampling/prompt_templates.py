"""Match a prompt's text, images and sounds to a template of the mixture.

A model answers in the formats that it was trained on. The inputs and the modality to make choose the
template; the template gives their order, the words around them, and codes or continuous features.
"""

import collections
import dataclasses
import itertools
import re

from gpt_jax.data import clips, templates
from gpt_jax.data.documents import MARKERS
from gpt_jax.data.templates import MODALITY, Piece

PLACEHOLDER = re.compile(r'\{(image|audio|vectors)\}')  # the place of the next of these in a prompt's text
ARROW = Piece('arrow')


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
  """A template of the mixture as a prompt format."""

  template: str
  source: str = ''  # the first source that has it

  @property
  def signature(self):
    """(kinds of the condition, kinds of the target)."""
    return templates.signature(self.template)

  @property
  def to(self):
    """The modality of its target: text, image, audio, or any for a mixture of them."""
    target = self.signature[1]
    kind = 'audio' if target == ('codes',) else target[0]
    return kind if len(target) == 1 and kind in ('text', *MARKERS) else 'any'

  def __str__(self):
    words = [', '.join(MODALITY.get(kind, kind) for kind in kinds) for kinds in self.signature if kinds]
    return ' -> '.join(words)


def trained_templates(cfg, source=''):
  """Return the PromptTemplates of a run's mixture without repeats; only those of `source` if it is named.

  Raises ValueError for a source that is not in the mixture.
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


def match_template(candidates, text, images, sounds, to, vectors=()):
  """Return the condition's pieces with its arrow; None for a text that is continued as it is.

  Raises ValueError where no candidate takes these inputs, or several would encode them differently.
  """
  inputs = {'image': list(images), 'audio': list(sounds), 'vectors': list(vectors)}
  matches = []
  for candidate in candidates:
    match = None
    if not candidate.signature[0]:  # no condition: any beginning of a document may be a prompt
      match = start_document(candidate, text, inputs, to)
    elif candidate.to == to:
      match = fill_template(candidate.template, text, inputs)
    if match is not None:
      matches.append((*match, candidate))
  if not matches:
    raise ValueError(
      f'the model was not trained to make {to} from {describe("text" if text else "", inputs) or "nothing"}\n'
      f'fix: ask for one of: {"; ".join(dict.fromkeys(map(str, candidates)))}'
    )
  best = max(score for score, _, _ in matches)
  matches = [(pieces, candidate) for score, pieces, candidate in matches if score == best]
  readings = [
    pieces and [(p.kind, p.value if p.kind == 'text' else '') for p in pieces] for pieces, _ in matches
  ]
  if any(reading != readings[0] for reading in readings):
    texts = [[value for kind, value in reading or () if kind == 'text'] for reading in readings]
    fix = 'name its source with --source'  # they differ in order, or in codes and continuous features
    if any(words != texts[0] for words in texts):
      fix = f'give all the words of one, or {fix}'
    names = '; '.join(f'{candidate.source} {candidate.template}'.strip() for _, candidate in matches)
    raise ValueError(
      f'{describe(text and repr(text), inputs)} could be meant for several templates\nfix: {fix}: {names}'
    )
  return matches[0][0]


def describe(text, inputs):
  """Describe inputs for an error: text, 1 image, 2 audio."""
  return ', '.join([*filter(None, [text]), *(f'{len(x)} {name}' for name, x in inputs.items() if x)])


def start_document(candidate, text, inputs, to):
  """Match the beginning of a document without condition: (score, pieces or None), or None."""
  kinds = {MODALITY.get(kind, kind) for kind in candidate.signature[1]}
  if templates.is_chat(candidate.template) and to == 'text' and not any(inputs.values()):
    return (-2, 0), None  # any text may be continued
  if 'parts' in kinds:
    kinds |= {'text', 'image', 'audio'}
  used = {name for name, files in inputs.items() if files} | ({'text'} if text else set())
  if not used <= kinds or (to != candidate.to if to == 'any' else to not in kinds):
    return None
  if templates.is_plain(candidate.template):
    return (-1, 0), None
  # The target comes last: words stand next to a text that goes on.
  pieces = order_pieces(text, inputs, media_first=to == 'text')
  if pieces and 'codes' in candidate.signature[1]:
    pieces = [Piece('codes', p.value) if p.kind == 'audio' else p for p in pieces]
  return None if pieces is None else ((-2, 0), pieces)


def order_pieces(text, inputs, media_first):
  """Return the pieces of a prompt in the order of its placeholders, if it has any, else as named.

  Returns None where placeholders and files do not match in number.
  """
  if PLACEHOLDER.search(text):
    counts = collections.Counter(PLACEHOLDER.findall(text))
    if any(counts[name] != len(values) for name, values in inputs.items()):
      return None
    files = {name: iter(values) for name, values in inputs.items()}
    parts = PLACEHOLDER.split(text)  # text, name, text, name, .. text
    pieces = [Piece(p, next(files[p])) if i % 2 else Piece('text', p) for i, p in enumerate(parts)]
    return [piece for piece in pieces if piece.kind != 'text' or piece.value]
  media = [Piece(name, value) for name, files in inputs.items() for value in files]
  words = [Piece('text', text)] if text else []
  return [*media, *words] if media_first else [*words, *media]


def fill_template(template, text, inputs):
  """Match inputs to a template's condition: (score, pieces with the arrow), or None.

  A higher score means that more of the template's own words are in the text.
  """
  slots = list(itertools.takewhile(lambda slot: slot[0] != 'arrow', templates.parse(template)))
  if slots[0][0] == 'parts':
    pieces = order_pieces(text, inputs, media_first=True)
    return ((0, 0), [*pieces, ARROW]) if pieces else None
  groups = [
    (is_text, list(group))
    for is_text, group in itertools.groupby(slots, lambda slot: slot[0] in ('literal', 'text'))
  ]
  expected = collections.Counter(MODALITY[kind] for kind, _ in slots if kind in MODALITY)
  is_clip = [isinstance(field, clips.Field) for kind, field in slots if MODALITY.get(kind) == 'image']
  if is_clip == [True] and inputs['image']:  # files are the frames of the only clip
    inputs = inputs | {'image': [inputs['image']]}
  if any(expected[name] != len(values) for name, values in inputs.items()):
    return None
  chunks = [chunk for i, chunk in enumerate(PLACEHOLDER.split(text)) if i % 2 == 0 and chunk.strip()]
  blanks = [group for is_text, group in groups if is_text and any(kind == 'text' for kind, _ in group)]
  words = ''.join(value for kind, value in slots if kind == 'literal').strip()
  if not blanks and [chunk.strip() for chunk in chunks] == [words]:  # they choose among questions
    chunks = []
  if len(chunks) != len(blanks):
    return None
  files = {name: iter(values) for name, values in inputs.items()}
  words, score, pieces = iter(chunks), (1, 0), []
  for is_text, group in groups:
    if not is_text:
      pieces += [_media(kind, field, next(files[MODALITY[kind]])) for kind, field in group]
      continue
    wording = ''.join(value for _, value in group)
    if group in blanks:
      part, wording = fill_blanks(group, next(words))
      if wording is None:
        return None
      score = (min(score[0], part[0]), score[1] + part[1])
    pieces.append(Piece('text', wording))
  return score, [*pieces, ARROW]


def _media(kind, field, value):
  """Return the piece of a file, or of the files of a clip."""
  if not isinstance(field, clips.Field):
    return Piece(kind, value)
  frames = []
  for file in value if isinstance(value, list) else [value]:
    frames += [*file] if getattr(file, 'ndim', 0) == 4 else [file]
  return Piece(kind, clips.Clip(tuple(frames), field.frames, field.every))


def fill_blanks(group, text):
  """Return (score, words) for literals and text fields in a row.

  A text that already has the literals stays as it is, else they are put around it; words are None
  where several fields leave open which one is meant.
  """
  literal = sum(len(value) for kind, value in group if kind == 'literal')
  pattern = ''.join(re.escape(v) if kind == 'literal' else '(?:.+)' for kind, v in group)
  if re.fullmatch(pattern, text, re.DOTALL):
    return (1, literal), text
  if sum(kind == 'text' for kind, _ in group) > 1:
    return (0, 0), None
  return (0, 0), ''.join(value if kind == 'literal' else text for kind, value in group)
