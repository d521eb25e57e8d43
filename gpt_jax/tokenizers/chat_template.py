"""Conversations as text: a Jinja chat template renders messages, and says what the assistant wrote.

The environment is that of transformers, so a model's own template gives the same text and ids. A model
without one has `DEFAULT`, whose turns stand between the specials bot and eot.

Spans: the template renders the conversation again with a mark on each side of a reply. The span covers the
reply, what the template puts between its generation prompt and the reply, and the end of turn after it, so
that the model learns to stop. A template with `{% generation %}` blocks names its spans itself.

Source: transformers, utils/chat_template_utils.py.
"""

import dataclasses
import datetime
import functools
import json
import re
from typing import NamedTuple

# Noncharacters of Unicode, which no text has: marks of a reply, places of media, our specials.
FIRST, LAST, BEGIN, END = '\ufdd0', '\ufdd1', '\ufdd2', '\ufdd3'
MEDIA = {'image': '\ufdd4', 'audio': '\ufdd5'}
SPECIALS = {'bot': '\ufdd6', 'eot': '\ufdd7'}
MARKS = re.compile('[\ufdd0-\ufdd3]')
RESERVED = re.compile('[\ufdd0-\ufdd7]')
PLACES = re.compile(f'([{"".join([*MEDIA.values(), *SPECIALS.values()])}])')
PARTS = re.compile(r"""\[['"]type['"]\]|\.type\b|selectattr\(\s*['"]type""")  # it reads lists of typed parts
GENERATION = re.compile(r'\{%-?\s*generation\s*-?%\}')
DEFAULT = (
  "{% for message in messages %}{{ bot + message['role'] + '\n' + message['content'] + eot }}{% endfor %}"
  "{% if add_generation_prompt %}{{ bot + 'assistant\n' }}{% endif %}"
)
PROBE = [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
FIX = 'fix: leave the conversation out, or use a model whose template allows it'


class Rendering(NamedTuple):
  """A conversation as text, with the characters of MEDIA and SPECIALS in their places."""

  text: str
  spans: tuple[tuple[int, int], ...] = ()  # (first, end) of what the assistant wrote, in characters


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """The chat template of a model. A message is a dict of role, content and whatever else it reads."""

  source: str = DEFAULT
  tokens: tuple[tuple[str, str], ...] = tuple(SPECIALS.items())  # variables, such as bos_token
  media: tuple[tuple[str, str], ...] = ()  # (what it writes for one of the media, character of MEDIA)

  @classmethod
  def of(cls, text_tokenizer, media: tuple[tuple[str, str], ...] = ()) -> 'ChatTemplate':
    """Return the template of a text tokenizer, else our own. media: of Tokenizers.media_marks."""
    source = text_tokenizer.chat_template
    return cls(source, tuple(text_tokenizer.special_tokens().items()), media) if source else cls()

  def render(self, messages: list[dict], add_generation_prompt: bool = False, marks: bool = False) -> str:
    """Return a conversation as text, with the beginning of a reply if asked.

    marks: put BEGIN and END around `{% generation %}` blocks. ValueError for one that the template refuses.
    """
    import jinja2

    if self.media and PARTS.search(self.source):
      messages = [_in_parts(message) for message in messages]
    try:
      text = _compile(self.source, marks).render(
        messages=messages,
        tools=None,
        documents=None,
        add_generation_prompt=add_generation_prompt,
        **dict(self.tokens),
      )
      for mark, character in self.media:
        text = text.replace(mark, character)
      return text
    except (jinja2.TemplateError, TypeError) as error:  # TypeError: it joins text with a missing content
      cause = ' '.join(str(error).split())
      raise ValueError(f'the chat template refuses this conversation: {cause}\n{FIX}') from error

  def render_with_spans(self, messages: list[dict]) -> Rendering:
    """Return a conversation with what the assistant wrote; ValueError where that is ambiguous."""
    text = self.render(messages)
    if GENERATION.search(self.source):
      marked = self.render(messages, marks=True)
      pieces = [(m.start() - n, m[0]) for n, m in enumerate(re.finditer(f'[{BEGIN}{END}]', marked))]
      first, last = ([place for place, mark in pieces if mark == kind] for kind in (BEGIN, END))
      return Rendering(text, tuple(zip(first, last, strict=True)))
    replies = [n for n, message in enumerate(messages) if message['role'] == 'assistant']
    return Rendering(text, tuple(self._span(messages, n, text)[:2] for n in replies))

  def _span(self, messages: list[dict], n: int, text: str) -> tuple[int, int, str]:
    """Return (first, end) of message n in the whole text, and the text that ends its turn."""
    if not isinstance(messages[n].get('content'), str):
      raise ValueError(f'message {n} of the assistant has no text to learn\n{FIX}')
    before = [*messages[: n - 1], _mark(messages[n - 1], BEGIN, END)] if n else []
    marked = [*before, _mark(messages[n], FIRST, LAST)]
    whole, places = _unmark(self.render([*marked, *messages[n + 1 :]]))
    alone, alone_places = _unmark(self.render(marked))
    if whole != text or LAST not in places or LAST not in alone_places:
      raise ValueError(f'the chat template rewrites message {n} of the assistant\n{FIX}')
    last, ending = places[LAST], alone[alone_places[LAST] :]
    ending = ending.rstrip() or ending  # a line break after the end of a turn is not part of it
    if not text.startswith(ending, last):
      raise ValueError(f'the chat template ends message {n} otherwise where others follow\n{FIX}')
    return self._first(messages[:n], before, n, text, places), last + len(ending), ending

  def _first(self, history: list[dict], marked: list[dict], n: int, text: str, places: dict) -> int:
    """Return where message n begins: after the prompt to which the model answers."""
    prompt, prompt_places = _unmark(self.render(marked, add_generation_prompt=True) if n else '')
    if FIRST not in places:  # its beginning was left out, as thoughts are: the turn begins after its header
      header = prompt.removeprefix(self.render(history)) if n else ''
      place = text.rfind(header, 0, places[LAST]) if header else -1
      if place < 0:
        raise ValueError(f'the chat template does not show where message {n} begins\n{FIX}')
      return place + len(header)
    if END in places and END in prompt_places:
      between, header = text[places[END] : places[FIRST]], prompt[prompt_places[END] :]
      return places[FIRST] - (len(between) - len(header) if between.startswith(header) else 0)
    return places[FIRST]

  def ending(self) -> str:
    """Return the text that ends a reply, '' where the template has none or refuses a plain exchange."""
    try:
      return self._span(PROBE, 1, self.render(PROBE))[2]
    except ValueError:
      return ''


def _in_parts(message: dict) -> dict:
  """Return a message whose content is a list of typed parts, as templates of several modalities read it."""
  if not isinstance(content := message.get('content'), str):
    return message
  kinds, parts, first = {character: kind for kind, character in MEDIA.items()}, [], ''
  for part in filter(None, re.split(f'([{"".join(kinds)}])', content)):
    if part in kinds:
      parts.append({'type': kinds[part]})
    elif MARKS.sub('', part):
      parts.append({'type': 'text', 'text': first + part})
      first = ''
    elif parts and parts[-1]['type'] == 'text':  # a mark alone is no part of its own
      parts[-1]['text'] += part
    else:
      first = part
  return {**message, 'content': parts}


def _mark(message: dict, first: str, last: str) -> dict:
  """Return a message with marks around its content, inside of white space that may be stripped."""
  if not isinstance(content := message.get('content'), str):
    return message
  core = content.strip()
  before, _, after = content.partition(core) if core else (content, '', '')
  return {**message, 'content': f'{before}{first}{core}{last}{after}'}


def _unmark(text: str) -> tuple[str, dict[str, int]]:
  """Return a text without marks, and {mark: its last place}; a mark that the template dropped has none."""
  places = {m[0]: m.start() - n for n, m in enumerate(MARKS.finditer(text))}
  return MARKS.sub('', text), places


@functools.lru_cache(maxsize=16)
def _compile(source: str, marks: bool):
  """Return the compiled template; ValueError for one that is malformed."""
  import jinja2
  from jinja2.ext import Extension, loopcontrols
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  class Generation(Extension):
    """`{% generation %}` .. `{% endgeneration %}` around what the assistant writes."""

    tags = {'generation'}

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.CallBlock(self.call_method('_write'), [], [], body).set_lineno(line)

    def _write(self, caller):
      return f'{BEGIN}{caller()}{END}' if marks else caller()

  def raise_exception(message):
    raise jinja2.TemplateError(message)

  def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    options = dict(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return json.dumps(value, **options)

  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
  )
  environment.filters['tojson'] = tojson
  environment.globals['raise_exception'] = raise_exception
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  try:
    return environment.from_string(source)
  except jinja2.TemplateError as error:
    raise ValueError(
      f'the chat template is malformed: {error}\nfix: restore chat_template.jinja of the tokenizer'
    ) from error
