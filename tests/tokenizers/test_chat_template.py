"""Chat templates: text and ids as of transformers, and the spans that the assistant wrote."""

import json
import random

import numpy as np
import pytest

from gpt_jax.data import templates
from gpt_jax.data.documents import decode_media, encode_batch
from gpt_jax.tokenizers import TokenizerConfig, Tokenizers, subword, text
from gpt_jax.tokenizers.chat_template import ChatTemplate
from tests import data_helpers

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
  "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}{%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message['content'] | trim }}
    {{- '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
LLAMA3 = """{% set loop_messages = messages %}
{% for message in loop_messages %}
{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}
{% set content = header + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}
{{- content -}}
{% endfor %}
{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{% endif %}
"""
MISTRAL = """{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}
{%- set turns = messages[1:] if system is not none else messages -%}
{{- bos_token }}
{%- for message in turns -%}
  {%- if message['role'] == 'user' -%}
    {%- if system is not none and loop.last -%}
      {{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}
    {%- else -%}{{ '[INST] ' + message['content'] + '[/INST]' }}{%- endif -%}
  {%- else -%}{{ ' ' + message['content'] + eos_token }}{%- endif -%}
{%- endfor -%}"""
THINKING = (
  '{% for m in messages %}'
  "{% set content = m['content'].split('</think>')[-1].lstrip('\n') if not loop.last"
  " else m['content'] %}{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
  "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
  "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
TEMPLATES = {'chatml': CHATML, 'gemma': GEMMA, 'llama3': LLAMA3, 'mistral': MISTRAL}
# What stands around a reply in each of the formats.
BORDERS = {
  'chatml': ('<|im_start|>assistant\n', '<|im_end|>'),
  'gemma': ('<start_of_turn>model\n', '<end_of_turn>'),
  'llama3': ('<|start_header_id|>assistant<|end_header_id|>\n\n', '<|eot_id|>'),
  'mistral': ('[/INST]', '</s>'),
}
MARKERS = (
  *('<s>', '</s>', '<|im_start|>', '<|im_end|>', '<start_of_turn>', '<end_of_turn>'),
  *('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>', '[INST]', '[/INST]'),
)
WORDS = ('a', 'cat', ' sat', '\n', 'Zürich', '東京', '🙂', '  two', '"quoted"', '{x}', '12.5', '<b>', "it's")


def write_tokenizer(folder, template=''):
  """A byte-level BPE of a few merges with the markers of all formats as special tokens."""
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
  tokenizer.train_from_iterator([' the cat sat on the mat assistant user system model'] * 9, trainer)
  tokenizer.add_special_tokens([AddedToken(marker, normalized=False) for marker in MARKERS])
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = dict(bos_token='<s>', eos_token='</s>', tokenizer_class='PreTrainedTokenizerFast')
  config |= {'chat_template': template} if template else {}
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  return Tokenizers.build(subword.read_huggingface(folder), specials=())


def conversations(count):
  """Conversations of one to four exchanges, some with a system message."""
  rng = random.Random(0)
  say = lambda: ''.join(rng.choice(WORDS) for _ in range(rng.randint(1, 8)))
  for _ in range(count):
    messages = [{'role': 'system', 'content': say()}] if rng.random() < 0.4 else []
    for _ in range(rng.randint(1, 4)):
      messages += [{'role': 'user', 'content': say()}, {'role': 'assistant', 'content': say()}]
    yield messages


def encode(tokenizers, messages):
  return encode_batch(tokenizers, [templates.chat_pieces(messages, 'messages', 'here')])[0]


def reference_targets(ids, tokenizers, borders):
  """The mask by a scan of the ids of the known format: learn from after the header to the end marker."""
  header, end = (tokenizers.encode_text(marker) for marker in borders)
  mask, place = np.zeros(len(ids), np.uint8), 0
  while place < len(ids):
    if list(ids[place : place + len(header)]) == header:
      place += len(header)
      stop = place + next((n for n, i in enumerate(ids[place:]) if [i] == end), len(ids))
      mask[place : stop + 1] = 1
      place = stop
    place += 1
  return mask


@pytest.mark.parametrize('name', TEMPLATES)
def test_ids_equal_those_of_transformers(name, tmp_path):
  transformers = pytest.importorskip('transformers')
  tokenizers = write_tokenizer(tmp_path, TEMPLATES[name])
  original = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
  template = ChatTemplate.of(tokenizers.text)
  for messages in conversations(200):
    expected = original.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert encode(tokenizers, messages).ids.tolist() == expected
    prompt = original.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert template.render(messages[:-1], add_generation_prompt=True) == prompt


@pytest.mark.parametrize('name', TEMPLATES)
def test_the_assistant_alone_is_learned(name, tmp_path):
  tokenizers = write_tokenizer(tmp_path, TEMPLATES[name])
  for messages in conversations(40):
    encoded = encode(tokenizers, messages)
    expected = reference_targets(encoded.ids, tokenizers, BORDERS[name])
    assert encoded.targets.tolist() == expected.tolist()


# What transformers 5.23 renders for GOLDEN_CHAT.
GOLDEN_CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': ' Hi '},
  {'role': 'assistant', 'content': 'Ho '},
  {'role': 'user', 'content': 'Bye'},
]
GOLDEN = {
  'chatml': (
    '<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n<|im_star'
    't|>assistant\nHo <|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n'
  ),
  'gemma': (
    '<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHo<end_of'
    '_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n'
  ),
  'llama3': (
    '<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header'
    '_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header'
    '_id|>\n\nHo<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|star'
    't_header_id|>assistant<|end_header_id|>\n\n'
  ),
  'mistral': ('<s>[INST]  Hi [/INST] Ho </s>[INST] Be brief.\n\nBye[/INST]'),
}


@pytest.mark.parametrize('name', TEMPLATES)
def test_texts_equal_those_of_transformers(name, tmp_path):
  template = ChatTemplate(TEMPLATES[name], (('bos_token', '<s>'), ('eos_token', '</s>')))
  assert template.render(GOLDEN_CHAT, add_generation_prompt=True) == GOLDEN[name]


def spans(source, messages, tokens=()):
  rendering = ChatTemplate(source, tokens).render_with_spans(messages)
  return [rendering.text[first:end] for first, end in rendering.spans]


def exchange(*contents):
  return [{'role': ('user', 'assistant')[n % 2], 'content': text} for n, text in enumerate(contents)]


def test_a_system_message_that_moves_to_the_last_turn_moves_no_span():
  messages = [{'role': 'system', 'content': 'S'}, *exchange('a', 'b', 'c', 'd', 'e', 'f')]
  assert spans(MISTRAL, messages, (('eos_token', '</s>'),)) == [' b</s>', ' d</s>', ' f</s>']


def test_thoughts_that_a_template_drops_are_not_learned():
  messages = exchange('a', '<think>\nx\n</think>\n\nb', 'c', '<think>\ny\n</think>\n\nd')
  assert spans(THINKING, messages) == ['b<|im_end|>', '<think>\ny\n</think>\n\nd<|im_end|>']


def test_generation_blocks_name_the_spans():
  assert spans(GENERATION, exchange('a', 'b', 'c', 'd')) == ['b<|im_end|>', 'd<|im_end|>']


def test_what_a_template_refuses_or_rewrites_is_an_error():
  with data_helpers.two_lines(ValueError, 'roles must alternate'):
    spans(GEMMA, exchange('a', 'b')[::-1])
  with data_helpers.two_lines(ValueError, 'rewrites message 1'):
    spans(CHATML.replace("m['content']", "m['content'][:1]"), exchange('abc', 'def'))
  with data_helpers.two_lines(ValueError, 'malformed'):
    spans('{% for %}', exchange('a', 'b'))


def test_a_template_cannot_reach_python():
  with data_helpers.two_lines(ValueError, 'refuses'):
    ChatTemplate('{{ messages.__class__.__mro__[1].__subclasses__() }}').render(exchange('a'))


def native(kind):
  own = text.build(TokenizerConfig(kind), lambda: iter(['user\nassistant\nabcdéf ü']))
  return Tokenizers.build(own)


@pytest.mark.parametrize('kind', ['bytes', 'chars'])
def test_our_own_template_has_special_tokens_around_turns(kind):
  tokenizers = native(kind)
  bot, eot = map(tokenizers.vocabulary.special, ('bot', 'eot'))
  encoded = encode(tokenizers, exchange('ab', 'cé', 'd', ''))
  words = lambda string: tokenizers.encode_text(string)
  turn = lambda string: [bot, *words(string), eot]
  expected = [*turn('user\nab'), *turn('assistant\ncé'), *turn('user\nd'), *turn('assistant\n')]
  assert encoded.ids.tolist() == expected
  learned = [i for i, is_target in zip(encoded.ids.tolist(), encoded.targets, strict=True) if is_target]
  assert learned == [*words('cé'), eot, eot]


def test_media_stand_in_their_places_in_a_message():
  tokenizers = data_helpers.media_tokenizers()
  image = np.full((4, 4, 1), 100, np.uint8)
  content = [{'type': 'text', 'text': 'see '}, {'type': 'image', 'image': image}, {'text': '!'}]
  messages = [{'role': 'user', 'content': content}, {'role': 'assistant', 'content': [{'image': image}]}]
  encoded = encode(tokenizers, messages)
  boi, eoi = map(tokenizers.vocabulary.special, ('boi', 'eoi'))
  ids = encoded.ids.tolist()
  assert ids.count(boi) == ids.count(eoi) == 2
  second = ids.index(boi, ids.index(eoi))
  assert encoded.targets[second:].all() and encoded.targets.sum() == len(ids) - second
  hidden = '{% for m in messages %}{{ m.role }}{% endfor %}'
  pieces = templates.chat_pieces(messages[:1], 'messages', 'line 1')
  tokenizers.text.chat_template = hidden
  with data_helpers.two_lines(ValueError, 'line 1', 'shows 0 of them'):
    decode_media(tokenizers, pieces, 'line 1')
