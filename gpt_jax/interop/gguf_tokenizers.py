"""The tokenizer in a GGUF file, as tokenizer.json or as a SentencePiece model.

Source: llama.cpp's llama-vocab.cpp, for the meaning of token types and the patterns that split text.
"""

from gpt_jax.runs.reading import check_types, reading
from gpt_jax.tokenizers import bpe, subword

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # as in SentencePiece
LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
QWEN2 = LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}')
DIGITS = {'type': 'Sequence'}
DIGITS |= {'pretokenizers': [{'type': 'Digits', 'individual_digits': True}, bpe.BYTE_LEVEL]}
SPLITS = {  # tokenizer.ggml.pre -> (pre-tokenizer, normalizer, like Llama 3)
  'gpt-2': (bpe.BYTE_LEVEL, None, False),
  'gpt2': (bpe.BYTE_LEVEL, None, False),
  'llama-bpe': (bpe.split_by(LLAMA3), None, True),
  'llama3': (bpe.split_by(LLAMA3), None, True),
  'qwen2': (bpe.split_by(QWEN2), {'type': 'NFC'}, False),
  'deepseek-r1-qwen': (bpe.split_by(QWEN2), None, False),
  'smollm': (DIGITS, None, False),
  'starcoder': (DIGITS, None, False),
}


def read_tokenizer(file):
  """Return the text tokenizer of a GGUF, or None where its kind is not read."""
  get = lambda key, default=None: file.metadata.get(f'tokenizer.ggml.{key}', default)
  kind, pre = get('model'), get('pre', 'default')
  if kind == 'llama':
    tokenizer = _sentencepiece(file, get)
    tokenizer.begins_with_bos = bool(get('add_bos_token', True))
    return tokenizer
  return _byte_level(file, get, *SPLITS[pre]) if kind == 'gpt2' and pre in SPLITS else None


def _checked(file, get, *names):
  """Return lists of the metadata that have one entry for each token."""
  with reading(file.path, 'a GGUF with a tokenizer', 'add its tokenizer.json to the same folder'):
    types = {'tokens': [str], 'merges': [str], 'token_type': [int], 'scores': [float]}
    lists = [check_types(get(name, []), types[name], name) for name in names]
    if not lists[0] or len({len(values) for values in lists}) != 1:
      raise ValueError(f'its lists {", ".join(names)} have {[len(values) for values in lists]} entries')
  return lists


def _sentencepiece(file, get):
  """Return the SentencePiece model of tokens with scores; other special tokens are read in text."""
  from sentencepiece import sentencepiece_model_pb2

  tokens, scores, types = _checked(file, get, 'tokens', 'scores', 'token_type')
  model = sentencepiece_model_pb2.ModelProto()
  trainer = model.trainer_spec
  trainer.model_type, trainer.byte_fallback, trainer.vocab_size = trainer.BPE, BYTE in types, len(tokens)
  roles = {'bos': 'bos', 'eos': 'eos', 'unk': 'unknown', 'pad': 'padding'}
  for role, name in roles.items():
    index = get(f'{name}_token_id', 0 if role == 'unk' else -1)
    setattr(trainer, f'{role}_id', index)
    if index >= 0:
      setattr(trainer, f'{role}_piece', tokens[index])
  ids = {getattr(trainer, f'{role}_id') for role in roles}
  normalizer = model.normalizer_spec
  normalizer.name, normalizer.remove_extra_whitespaces = 'identity', False
  normalizer.add_dummy_prefix = bool(get('add_space_prefix', True))
  for index, (token, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
    kind = USER_DEFINED if kind == CONTROL and index not in ids else kind
    # The converter wrote user-defined tokens with plain spaces.
    token = token.replace(' ', '\u2581') if kind == USER_DEFINED else token
    kind = UNKNOWN if index == trainer.unk_id else NORMAL if kind == UNKNOWN else kind
    model.pieces.add(piece=token, score=score, type=kind)
  return subword.SentencePieceTokenizer(model.SerializeToString(), str(file.path))


def _byte_level(file, get, split, normalizer, is_llama3):
  """Return the byte-level BPE of tokens and merges as a tokenizer.json.

  What a file does not say is as in llama.cpp: Llama 3 begins texts with bos, and a word that is a token is
  not merged.
  """
  tokens, types = _checked(file, get, 'tokens', 'token_type')
  [merges] = _checked(file, get, 'merges')
  ids = {token: index for index, token in enumerate(tokens)}
  model = bpe.tokenizer_json(ids, [merge.split(' ') for merge in merges])
  added = [index for index, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
  flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
  model['model']['ignore_merges'] = is_llama3
  model['added_tokens'] = [
    {'id': i, 'content': tokens[i], 'special': types[i] == CONTROL, **flags} for i in added
  ]
  model |= {'pre_tokenizer': split, 'normalizer': normalizer}
  roles = {'bos': 'bos', 'eos': 'eos', 'pad': 'padding'}
  specials = {role: get(f'{name}_token_id') for role, name in roles.items()}
  if get('add_bos_token', is_llama3) and specials['bos'] is not None:
    bos, text = {'SpecialToken': {'id': 'bos', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}
    special = {'bos': {'id': 'bos', 'ids': [specials['bos']], 'tokens': [tokens[specials['bos']]]}}
    model['post_processor'] = {'type': 'TemplateProcessing', 'single': [bos, text], 'pair': [bos, text]}
    model['post_processor']['special_tokens'] = special
  template = file.metadata.get('tokenizer.chat_template')
  template = template.encode() if isinstance(template, str) else b''
  tokenizer = subword.LibraryTokenizer('huggingface', model, {}, str(file.path), True, template)
  tokenizer.specials = {role: index for role, index in specials.items() if index is not None}
  return tokenizer
