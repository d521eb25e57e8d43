"""The endpoints of sounds and images: transcription, speech, image generation."""

import asyncio
import base64
import time

from gpt_jax.data import media_io
from gpt_jax.workbench.serving import fields as request_fields
from gpt_jax.workbench.serving.errors import RequestError, json_response
from gpt_jax.workbench.serving.fields import Fields, invalid

MOST_IMAGES = 8
MOST_SIDE = 2048  # pixels of an enlarged image
SOUNDS = {'wav': 'audio/wav', 'flac': 'audio/flac', 'pcm': 'audio/pcm'}


async def transcribe(server, request):
  """POST /v1/audio/transcriptions."""
  from starlette.datastructures import UploadFile

  if not request.headers.get('content-type', '').startswith('multipart/form-data'):
    raise RequestError('the body is not a form\nfix: send multipart/form-data with a file', status=415)
  async with request.form(max_files=1, max_fields=16) as parts:
    upload = parts.get('file')
    if not isinstance(upload, UploadFile):
      raise RequestError('file is missing\nfix: send a sound as the form field file', param='file')
    content = await upload.read()
    fields = Fields({name: value for name, value in parts.items() if name != 'file'})
  forms = server.forms_of(fields.take('model', str), 'audio/transcriptions')
  reply_format = fields.take('response_format', str, 'json')
  if reply_format not in ('json', 'text'):
    raise invalid('response_format', reply_format, 'is not supported', 'use json or text')
  if (temperature := fields.take('temperature', str)) is not None:
    fields.values['temperature'] = parse_number('temperature', temperature)
  text, source = fields.take('prompt', str, ''), fields.take('source', str, '')
  overrides = {'temperature': 0.0} | request_fields.take_sampling(fields)
  fields.refuse_rest('file', 'prompt', 'temperature', 'response_format')

  def prepare():
    prompt = forms.prompt(text, sounds=[content], source=source)
    return forms.text_jobs([prompt], overrides, 1, None, server.engine.batches['text'].end_ids)

  [[*pieces]] = await server.run_jobs(request, await server.in_thread(prepare))
  text = ''.join(piece.text for piece in pieces)
  if reply_format == 'text':
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text + '\n')
  tokens = pieces[-1].counts
  counts = {'input_tokens': tokens[0], 'output_tokens': tokens[1], 'total_tokens': sum(tokens)}
  return json_response({'text': text, 'usage': {'type': 'tokens'} | counts})


async def speak(server, request):
  """POST /v1/audio/speech; the voice is the name of a source, or default."""
  from starlette.responses import Response

  forms, fields = await server.json_fields(request, 'audio/speech')
  text, voice = fields.require('input', str), fields.take('voice', str, 'default')
  sound_format = fields.take('response_format', str, 'wav')
  if sound_format not in SOUNDS:
    raise invalid('response_format', sound_format, 'is not supported', f'use one of {", ".join(SOUNDS)}')
  source = source_of(forms, 'voice', voice)
  sounds, _ = await generate(server, request, forms, fields, text, 'audio', source, 1)
  rate = forms.run.tokenizers.audio.sample_rate
  encode = media_io.to_flac if sound_format == 'flac' else media_io.to_wav
  content = await asyncio.to_thread(encode, sounds[0], rate)
  return Response(content[44:] if sound_format == 'pcm' else content, media_type=SOUNDS[sound_format])


async def draw(server, request):
  """POST /v1/images/generations; the answer holds PNG files in base64."""
  forms, fields = await server.json_fields(request, 'images/generations')
  text, n = fields.require('prompt', str), fields.take('n', int, 1, 1, MOST_IMAGES)
  if (carrier := fields.take('response_format', str, 'b64_json')) != 'b64_json':
    raise invalid('response_format', carrier, 'is not supported', 'use b64_json')
  if (kind := fields.take('output_format', str, 'png')) != 'png':
    raise invalid('output_format', kind, 'is not supported', 'use png')
  scale = image_scale(fields.take('size', str, 'auto'), forms.run.tokenizers.image.shape)
  source = source_of(forms, 'source', fields.take('source', str, 'default'))
  images, counts = await generate(server, request, forms, fields, text, 'image', source, n)
  encode = lambda image: {'b64_json': base64.b64encode(media_io.to_png(image, scale)).decode()}
  data = await asyncio.to_thread(lambda: [*map(encode, images)])
  tokens = {'input_tokens': counts[0], 'output_tokens': counts[1], 'total_tokens': sum(counts)}
  return json_response({'created': int(time.time()), 'data': data, 'usage': tokens})


async def generate(server, request, forms, fields, text, to, source, n):
  """Make n images or sounds of a text -> (arrays, tokens of prompt and answer)."""
  guidance = fields.take('guidance', float, 1.0, 0, 100)
  overrides = request_fields.take_sampling(fields)
  fields.refuse_rest('source', 'guidance', *request_fields.SAMPLING)

  def prepare():
    prompt = forms.prompt(text, to=to, source=source)
    return [forms.media_job(prompt, to, overrides, n, guidance)]

  [[event]] = await server.run_jobs(request, await server.in_thread(prepare))
  return event.values, event.counts


def source_of(forms, name, value):
  """Return the source that a field names, '' for default."""
  sources = forms.run.cfg.data.mixture
  if value != 'default' and value not in sources:
    names = ', '.join(['default', *sources])
    raise invalid(name, value, 'is not known', f'use one of {names}')
  return '' if value == 'default' else value


def parse_number(name, text):
  """Return a number of a form field."""
  try:
    return float(text)
  except ValueError:
    raise invalid(name, text, 'is not a number', 'give a number') from None


def image_scale(size, shape):
  """Return the factor that enlarges images [Y, X, A] to a size such as 256x256; auto: 1."""
  height, width = shape[:2]
  if size == 'auto':
    return 1
  for scale in range(1, MOST_SIDE // max(height, width) + 1):
    if size == f'{width * scale}x{height * scale}':
      return scale
  raise invalid(
    'size', size, 'is not a multiple of what the run draws', f'use auto or {width}x{height} times a number'
  )
