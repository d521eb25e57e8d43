"""Subword tokenizers, run by the `tokenizers` and `sentencepiece` libraries.

Each wraps the bytes of one model file. In text for a tokenizer of our own, GPT-2's or SentencePiece's,
the literal `<|endoftext|>` is encoded as characters; an imported tokenizer.json reads its special tokens
in text, as transformers does, since chat prompts are written with them.
"""

import itertools
import json
import pathlib
import re

import numpy as np

from gpt_jax.runs.reading import check_types, reading
from gpt_jax.tokenizers import base, bpe, tekken

# Roles of a tokenizer.json without a tokenizer_config.json, by the usual spellings.
ROLES = {
  'pad': ('<pad>', '[PAD]', '<|pad|>', '<|padding|>'),
  'bos': ('<s>', '<|begin_of_text|>', '<bos>', '[BOS]', '<|startoftext|>'),
  'eos': ('</s>', '<|endoftext|>', '<|end_of_text|>', '<eos>', '[EOS]'),
}
# Spellings of tokens that Gemma, Llama 3, BERT, Mistral and others set aside.
RESERVED = re.compile(r'<\|?(unused|reserved_special_token_|SPECIAL_)\d+\|?>|\[unused\d+\]')
OWN_ROLES = 'gpt_jax_roles'  # key of a tokenizer_config.json: {special name: token}, of an export
BATCH = 512  # pieces of text a library call, to bound its memory


class LibraryTokenizer(base.TextTokenizer):
  """Any tokenizer.json: the kinds bpe, gpt2 and huggingface.

  `model` is the JSON content. Its truncation and padding are switched off, since they would lose text;
  templates that add special tokens are not applied. Added tokens that are not special (runs of spaces,
  for example) are matched in user text.
  """

  def __init__(
    self,
    kind: str,
    model: dict,
    specials: dict[str, int],
    source: str,
    parse_specials: bool = False,
    chat_template: bytes = b'',
  ):
    from tokenizers import Tokenizer

    self.kind, self.specials = kind, specials
    self._parse_specials, self._chat_template = parse_specials, chat_template
    self._model = base.to_json({**model, 'truncation': None, 'padding': None})
    try:
      self._tokenizer = Tokenizer.from_str(self._model.decode())
    except Exception as error:  # the library raises no narrower type
      raise ValueError(
        f'{source} is not a valid tokenizer: {error}\n'
        'fix: give an unaltered tokenizer.json, or unaltered GPT-2 vocab and merges files'
      ) from None
    self._tokenizer.encode_special_tokens = not parse_specials
    self.size = max(self.vocab().values(), default=-1) + 1
    special = tuple(token['content'] for token in model['added_tokens'] if token['special'])
    self.unparsed = () if parse_specials else special
    added = ((token['content'], token['id']) for token in model['added_tokens'])
    self.reserved = tuple(index for token, index in added if RESERVED.fullmatch(token))
    # Only GPT-2's pattern is known to allow cutting a text, if no other rule sees the text.
    self._cuts = (
      model['pre_tokenizer'] == bpe.BYTE_LEVEL
      and model['normalizer'] is None
      and len(self.unparsed) == len(model['added_tokens'])
    )

  def vocab(self) -> dict[str, int]:
    """Return {token as the library spells it: id}."""
    return self._tokenizer.get_vocab(with_added_tokens=True)

  def encode_batch(self, texts):
    """Return the token ids of each text, in threads; long texts are cut where that changes no token."""
    rows = [self._pieces(base.checked_text(text)) for text in texts]
    stream = self._stream(itertools.chain.from_iterable(rows))
    return [list(itertools.chain.from_iterable(itertools.islice(stream, len(row)))) for row in rows]

  def encode_with_offsets(self, texts):
    """Return the token ids of each text with their places."""
    texts = [base.checked_text(text) for text in texts]
    rows = [self._tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [(row.ids, np.array(row.offsets, np.int64).reshape(-1, 2)) for row in rows]

  @property
  def chat_template(self):
    """The Jinja source of the model's chat template, '' without one."""
    return self._chat_template.decode()

  def token_bytes(self):
    """Return the bytes of each id by the decoder of the file; ids that it lacks have none."""
    decode = piece_decoder(json.loads(self._model).get('decoder'))
    pieces = [b''] * self.size
    for token, index in self.vocab().items():
      pieces[index] = decode(token)
    return pieces

  def special_tokens(self):
    """Return {bos_token: its spelling, ...}."""
    by_id = {index: token for token, index in self.vocab().items()}
    return {f'{role}_token': by_id[self.specials[role]] for role in ROLES if role in self.specials}

  def _pieces(self, text):
    return list(bpe.pieces(text)) if self._cuts else [text]

  def begin(self):
    """Return the ids that the file's template puts before every text, such as bos."""
    return self._tokenizer.encode('').ids

  def _stream(self, texts):
    while batch := list(itertools.islice(texts, BATCH)):
      try:
        encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
      except Exception as error:  # the library raises no narrower type
        raise ValueError(
          f'the tokenizer cannot encode this text: {error}\n'
          'fix: leave out characters that it does not know, or use a byte-level tokenizer'
        ) from error
      for encoding in encodings:
        yield encoding.ids

  def _decode(self, ids):
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def files(self):
    """Return tokenizer.json, which other libraries read too, and the chat template if it has one."""
    template = {'chat_template.jinja': self._chat_template} if self._chat_template else {}
    return {'tokenizer.json': self._model, **template}

  def fields(self):
    """Return the size, the special ids and whether special tokens are read in text."""
    return super().fields() | ({'parse_specials': True} if self._parse_specials else {})


class SentencePieceTokenizer(base.TextTokenizer):
  """A SentencePiece model as in Llama: a space in front, unknown characters as byte tokens.

  Decoding drops only the space before the first word. A literal U+2581 is decoded as a space, which
  SentencePiece spells so.
  """

  kind = 'sentencepiece'

  def __init__(self, model: bytes, source: str, fields: dict | None = None):
    """fields: of a saved tokenizer; None = the roles that the model names."""
    from sentencepiece import SentencePieceProcessor

    self._model = model
    try:
      self._processor = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
      raise ValueError(
        f'{source} is not a valid SentencePiece model: {error}\n'
        'fix: tokenizer.path names a .model file that SentencePiece wrote'
      ) from None
    self.size = len(self._processor)
    roles = {role: getattr(self._processor, f'{role}_id')() for role in (*ROLES, 'unk')}
    roles = _without_shared_pad({role: index for role, index in roles.items() if index >= 0})
    own = {role: index for role, index in roles.items() if role in ROLES}
    self.specials = own if fields is None else fields['specials']
    self.begins_with_bos = (fields or {}).get('begins_with_bos', False)  # which no model file says
    self.unparsed = tuple(self._processor.id_to_piece(index) for index in self.specials.values())

  def encode_batch(self, texts):
    """Return the token ids of each text, in threads."""
    return self._processor.encode([base.checked_text(text) for text in texts])

  def encode_with_offsets(self, texts):
    """Return the token ids of each text with their places."""
    protos = [self._processor.encode(base.checked_text(text), return_type='proto') for text in texts]
    places = lambda proto: np.array([(piece.begin, piece.end) for piece in proto.pieces], np.int64)
    return [([p.id for p in proto.pieces], places(proto).reshape(-1, 2)) for proto in protos]

  def token_bytes(self):
    """Return the bytes of each piece."""
    model, ids = self._processor, range(self.size)
    pieces = [b'' if model.is_control(i) else piece_bytes(model.id_to_piece(i)) for i in ids]
    for index in filter(model.is_unknown, ids):
      pieces[index] = model.decode([index]).encode()
    return pieces

  def _decode(self, ids):
    return self._processor.decode(ids)

  def begin(self):
    """Return the ids that a model was trained to see before every text, such as bos."""
    return [self.specials['bos']] if self.begins_with_bos and 'bos' in self.specials else []

  def fields(self):
    """Return the size, the special ids and whether bos begins a text."""
    return super().fields() | ({'begins_with_bos': True} if self.begins_with_bos else {})

  def files(self):
    """Return the unchanged model file."""
    return {'tokenizer.model': self._model}


def piece_bytes(piece: str) -> bytes:
  """Return the bytes of a SentencePiece piece: <0x41> is a byte, U+2581 a space."""
  byte = re.fullmatch('<0x([0-9A-F]{2})>', piece)
  return bytes.fromhex(byte[1]) if byte else piece.replace('\u2581', ' ').encode()


def piece_decoder(decoder):
  """Return a function from a token to its bytes for the decoder of a tokenizer.json.

  Raises ValueError for a decoder whose text is not that of its tokens in a row.
  """
  rows = decoder['decoders'] if decoder and decoder['type'] == 'Sequence' else [decoder or {'type': 'none'}]
  kinds = [row['type'] for row in rows]
  if kinds == ['ByteLevel']:
    byte_of = {character: byte for byte, character in enumerate(bpe.byte_characters())}
    spelled = lambda token: all(character in byte_of for character in token)
    return lambda token: bytes(map(byte_of.get, token)) if spelled(token) else token.encode()
  for row in rows:
    is_space = row.get('pattern') == {'String': '\u2581'} and row.get('content') == ' '
    is_space |= row['type'] == 'Metaspace' and row.get('replacement') == '\u2581'
    is_start = row['type'] == 'Strip' and row['stop'] == 0 and row['content'] == ' '
    if not (is_space or is_start or row['type'] in ('ByteFallback', 'Fuse')):
      raise ValueError(
        f'the tokenizer has the decoder {row["type"]}, which changes text between tokens\n'
        'fix: leave sample.block out, or use a model with a byte-level or SentencePiece tokenizer'
      )
  is_byte = 'ByteFallback' in kinds
  return lambda token: piece_bytes(token) if is_byte else token.replace('\u2581', ' ').encode()


def read_huggingface(path: pathlib.Path) -> LibraryTokenizer:
  """Read a tokenizer.json or tekken.json, or its folder, whose tokenizer_config.json may name the roles."""
  fix = 'tokenizer.path names a tokenizer.json of the tokenizers library, or its folder'
  if path.is_dir():
    files = (path / name for name in ('tokenizer.json', tekken.NAME))
    path = next(filter(pathlib.Path.is_file, files), path / 'tokenizer.json')
  added = [{'content': str, 'special': bool}]
  is_tekken = path.name == tekken.NAME
  model = (
    tekken.read(path) if is_tekken else base.read_json(path, fix, {'model': dict, 'added_tokens?': added})
  )
  optional = {'added_tokens': [], 'normalizer': None, 'pre_tokenizer': None}
  config = path.with_name('tokenizer_config.json')
  template = _chat_template(path.with_name('chat_template.jinja'), config)
  model = {**optional, **model}
  tokenizer = LibraryTokenizer('huggingface', model, {}, str(path), True, template)
  tokens = _named_roles(config) if config.exists() else _usual_roles(model)
  ids = tokenizer.vocab()
  roles = {role: ids[token] for role, token in tokens.items() if token in ids}
  tokenizer.specials = _without_shared_pad(roles)
  return tokenizer


def read_sentencepiece(path: pathlib.Path) -> SentencePieceTokenizer:
  """Read a .model file, or a folder that holds exactly one."""
  fix = 'tokenizer.path names a .model file that SentencePiece wrote, or a folder with one'
  if path.is_dir():
    models = sorted(path.glob('*.model'))
    if len(models) != 1:
      raise FileNotFoundError(f'{path} holds {len(models)} .model files, not one\nfix: {fix}')
    path = models[0]
  return SentencePieceTokenizer(base.read_file(path, fix), str(path))


def _chat_template(path, config):
  """Return the chat template of a file of its own or of tokenizer_config.json, b'' without one."""
  if path.is_file():
    with reading(path, 'UTF-8 text', 'restore chat_template.jinja, or remove it'):
      return path.read_bytes().decode().encode()
  if (older := path.with_suffix('.json')).is_file():  # of processors
    content = base.read_json(older, f'restore {older.name}, or remove it', {'chat_template': str})
    return content['chat_template'].encode()
  template = _read_config(config).get('chat_template') if config.exists() else None
  if isinstance(template, list):  # of several the one that transformers uses by itself
    template = {entry['name']: entry['template'] for entry in template}.get('default')
  return (template or '').encode()


def _named_roles(path):
  """Return {role: token} of a tokenizer_config.json; a role may be absent or null."""
  config = _read_config(path)
  tokens = config.get(OWN_ROLES, {}) | {role: config.get(f'{role}_token') for role in ROLES}
  return {role: t['content'] if isinstance(t, dict) else t for role, t in tokens.items()}


def _read_config(path):
  """Return a tokenizer_config.json whose tokens and chat templates have their types."""
  fix = 'restore tokenizer_config.json, or remove it to find the roles by their usual spellings'
  keys = {f'{role}_token?': str | dict | None for role in ROLES} | {'chat_template?': str | list | None}
  keys[f'{OWN_ROLES}?'] = {str: str}
  config = base.read_json(path, fix, keys)
  with reading(path, 'a tokenizer_config.json', fix):
    for role in ROLES:
      if isinstance(token := config.get(f'{role}_token'), dict):
        check_types(token, {'content': str}, f'{role}_token')
    if isinstance(templates := config.get('chat_template'), list):
      check_types(templates, [{'name': str, 'template': str}], 'chat_template')
  return config


def _usual_roles(model):
  """Return {role: token} by the spellings in ROLES among the special tokens of a tokenizer.json."""
  added = [token['content'] for token in model.get('added_tokens', ()) if token['special']]
  tokens = {role: [t for t in spellings if t in added] for role, spellings in ROLES.items()}
  return {role: candidates[0] for role, candidates in tokens.items() if candidates}


def _without_shared_pad(roles):
  """Drop a pad that shares its id, such as eos, since padding is never sampled: it gets its own id."""
  others = [index for role, index in roles.items() if role != 'pad']
  return {role: index for role, index in roles.items() if role != 'pad' or index not in others}
