"""Tokenizer files of Hugging Face models.

A folder may hold several tokenizers: the first row of FILES whose files exist is read. A written
tokenizer.json encodes and decodes exactly as the original tokenizer, specials included.
"""

import json

from gpt_jax.interop import json_files
from gpt_jax.tokenizers import TokenizerConfig, Tokenizers, base, bpe, subword, tekken, text

# Tokenizer kinds and the files that they need, the most exact first.
FILES = (
  ('huggingface', ('tokenizer.json',)),
  ('huggingface', (tekken.NAME,)),
  ('gpt2', ('vocab.json', 'merges.txt')),
  ('sentencepiece', ('tokenizer.model',)),
)
GPT2_TOKENIZERS = ('gpt2', 'GPT2Tokenizer', 'GPT2TokenizerFast')
ROLES = tuple(subword.ROLES)  # pad, bos, eos: specials that transformers knows, too


# ---------------------------------------------------------------------------------------- reading


def find(folder):
  """The TokenizerConfig of a folder's tokenizer files, or None if it has none.

  Raises ValueError for vocab.json and merges.txt of another family than GPT-2.
  """
  kinds = [kind for kind, names in FILES if all((folder / n).is_file() for n in names)]
  if not kinds:
    return None
  if kinds[0] == 'gpt2':
    _check_gpt2(folder)
  path = folder / 'tokenizer.model' if kinds[0] == 'sentencepiece' else folder
  return TokenizerConfig(kind=kinds[0], path=str(path.resolve()))


def _check_gpt2(folder):
  """Raise ValueError unless vocab.json and merges.txt are GPT-2's: other families split text differently."""
  settings = read_settings(folder)
  name = settings.get('tokenizer_class') or json_files.read_config(folder / 'config.json').get('model_type')
  if name not in GPT2_TOKENIZERS or settings.get('add_prefix_space'):
    raise ValueError(
      f'{folder}: vocab.json and merges.txt of {name} with add_prefix_space='
      f'{settings.get("add_prefix_space", False)} may not split text as GPT-2 does\n'
      'fix: add its tokenizer.json, which AutoTokenizer.from_pretrained(...).save_pretrained writes'
    )


def read(config, folder):
  """Return the text tokenizer of `find`."""
  tokenizer, settings = text.build(config), read_settings(folder)
  if isinstance(tokenizer, subword.SentencePieceTokenizer):  # whose file does not say it: Llama's begin so
    tokenizer.begins_with_bos = settings.get('add_bos_token') is not False
  return tokenizer


def read_settings(folder):
  """Return tokenizer_config.json of a folder, {} without one."""
  path = folder / 'tokenizer_config.json'
  return json_files.read(path, json_files.TOKENIZER_CONFIG) if path.exists() else {}


def with_roles(tokenizer, hf, generation, vocab, source):
  """Return the Tokenizers of an imported model; no specials are added.

  hf: config.json, for specials that the tokenizer files do not name. generation: generation_config.json; each
  end token that it or config.json lists ends a text: eos, eos2, eos3. vocab: rows of the embedding. source:
  what errors call the files. Raises ValueError if the tokenizer has more ids.
  """
  if tokenizer.size > vocab:
    raise ValueError(
      f'{source}: the tokenizer has {tokenizer.size} ids, the model only {vocab}\n'
      'fix: use the tokenizer files that came with these weights'
    )
  is_id = lambda i: type(i) is int and 0 <= i < tokenizer.size
  ends = [i for i in _end_ids(generation) + _end_ids(hf) if is_id(i)]
  ids = {role: hf.get(f'{role}_token_id') for role in ROLES} | {'eos': next(iter(ends), None)}
  roles = {role: i for role, i in ids.items() if is_id(i)} | tokenizer.specials
  others = dict.fromkeys(i for i in ends if i != roles['eos'])
  roles |= {f'eos{number}': i for number, i in enumerate(others, 2)}
  # Many models pad with eos. Padding is never sampled, so it may not share an id.
  if list(roles.values()).count(roles.get('pad')) > 1:
    del roles['pad']
  tokenizer.specials = roles
  return Tokenizers.build(tokenizer, specials=())


def _end_ids(content):
  """Return eos_token_id of a JSON object as a list."""
  ids = content.get('eos_token_id')
  return ids if isinstance(ids, list) else [ids]


# ---------------------------------------------------------------------------------------- writing


def special_ids(tokenizers):
  """{'eos_token_id': 5, ...} for config.json; null for an absent role, a list for several ends."""
  specials = {} if tokenizers is None else dict(tokenizers.vocabulary.specials)
  ids = {f'{role}_token_id': specials.get(role) for role in ROLES}
  ends = [index for name, index in specials.items() if name.rstrip('0123456789') == 'eos']
  return ids | ({'eos_token_id': ends} if len(ends) > 1 else {})


def write(tokenizers, folder, context):
  """Write tokenizer.json and tokenizer_config.json -> a note for the user, or ''.

  A tokenizer that the `tokenizers` library cannot express is saved in its own format, which the note says.
  """
  settings = {'model_max_length': context, 'clean_up_tokenization_spaces': False}
  library, note = to_library(tokenizers), ''
  if library is None:
    tokenizers.save(folder)
    # The most similar class of transformers, which would guess another one by itself.
    settings['tokenizer_class'] = 'LlamaTokenizer'
    note = (
      f'a {tokenizers.text.kind} tokenizer has no exact tokenizer.json, so {folder} holds its own '
      'files; AutoTokenizer may give other ids'
    )
  else:
    model, tokens = library
    settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
    if template := tokenizers.text.files().get('chat_template.jinja'):
      base.write_file(folder / 'chat_template.jinja', template)
    settings |= {f'{role}_token': tokens[role] for role in ROLES if role in tokens}
    own = {name: token for name, token in tokens.items() if not _is_usual(name)}
    settings |= {subword.OWN_ROLES: own} if own else {}
    base.write_file(folder / 'tokenizer.json', base.to_json(model))
  base.write_file(folder / 'tokenizer_config.json', base.to_json(settings, indent=2))
  return note


def _is_usual(name):
  """Whether transformers knows a special by its role, or eos_token_id of config.json lists it."""
  return name in ROLES or name.rstrip('0123456789') == 'eos'


def to_library(tokenizers):
  """Return (content of a tokenizer.json, {special name: its token}), or None if it cannot be exact.

  Specials become added tokens such as <|eos|>, after the ids of the text tokenizer.
  """
  model = _model(tokenizers.text)
  if model is None:
    return None
  from tokenizers import Tokenizer

  by_id = {i: t for t, i in Tokenizer.from_str(json.dumps(model)).get_vocab().items()}
  specials, flags = {}, dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
  for name, index in sorted(tokenizers.vocabulary.specials, key=lambda special: special[1]):
    if index not in by_id:
      token = f'<|{name}|>'
      while token in by_id.values():
        token = f'<{token}>'
      by_id[index] = token
      added = {'id': index, 'content': token, 'special': True, **flags}
      model['added_tokens'] = [*model['added_tokens'], added]
    specials[name] = by_id[index]
  # The library numbers added tokens itself, so gaps among the ids would change them.
  vocabulary = Tokenizer.from_str(json.dumps(model)).get_vocab(with_added_tokens=True)
  return (model, specials) if vocabulary == {token: i for i, token in by_id.items()} else None


def _model(tokenizer):
  """The text tokenizer as the content of a tokenizer.json, or None."""
  files = tokenizer.files()
  if 'tokenizer.json' in files:
    return {'added_tokens': []} | json.loads(files['tokenizer.json'])
  if tokenizer.kind == 'bytes':
    return bpe.tokenizer_json({c: byte for byte, c in enumerate(bpe.byte_characters())}, [])
  if tokenizer.kind == 'chars':
    characters = json.loads(files['characters.json'])
    model = bpe.tokenizer_json({c: i for i, c in enumerate(characters)}, [])
    # A text is one word without merges. An unknown character is an error, as this token is unknown.
    model['model']['unk_token'] = '<|unknown character|>'
    return model | {'pre_tokenizer': None, 'decoder': {'type': 'Fuse'}}
  return None
