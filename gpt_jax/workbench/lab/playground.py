"""Try a model: text, pictures and sounds in and out, sampled as `launch.py sample` does."""

import itertools
import time

from gpt_jax.workbench.lab import args, models, pieces

OUTPUTS = ('text', 'image', 'audio', 'any')
# Fields of SampleConfig that a request may set: (default's type and least, most) of each.
LIMITS = {
  'temperature': (0.0, 10.0),
  'top_k': (0, 1 << 20),
  'top_p': (0.0, 1.0),
  'min_p': (0.0, 1.0),
  'repetition_penalty': (0.01, 10.0),
  'guidance': (0.0, 20.0),
  'max_new_tokens': (1, 4096),
  'num_samples': (1, 16),
  'seed': (0, 2**31 - 1),
}
MAX_MESSAGES = 200


def sample(lab, body):
  """POST /api/sample: a sample of a model.

  {run, text, images, sounds, vectors, to, source, stop, sampling} or {run, messages, sampling}.
  Yields {sample, text}, pieces of a text while it is generated, {sample, image} and {sample, audio} with data
  addresses, and at last {done: {seconds, samples}}. With messages the reply of the assistant.
  """
  folder, start = lab.index.run(args.text(body, 'run')), time.monotonic()
  sampling, to = sampling_of(body), args.choice(body, 'to', OUTPUTS)
  with lab.models.use(folder) as run:
    run = run._replace(model=lab.models.decoding_model(run))
    if body.get('messages'):
      outputs = chat(run, body, sampling)
    else:
      outputs = complete(run, body, to, sampling)
    count = 0
    for number, kind, value in outputs:
      count = max(count, number + 1)
      yield {'sample': number, kind: value}
  yield {'done': {'seconds': time.monotonic() - start, 'samples': count}}


def complete(run, body, to, sampling):
  """Yield (number of the sample, kind, text or data address)."""
  from gpt_jax.data.templates import Piece
  from gpt_jax.sampling import completions, prompts, validate

  cfg, stop = validate.override(run.cfg.sample, **sampling), args.texts(body, 'stop')
  prompt = models.prompt_of(run, body, to)
  cfg = prompts.resolve_max_new_tokens(run, [prompt], cfg, to, 'max_new_tokens' in sampling)
  if to == 'text' and cfg.num_samples == 1 and not (cfg.beams or cfg.judge):
    for piece in completions.stream_text(run.model, run.tokenizers, prompt, cfg, stop):
      yield 0, 'text', piece
    return
  [group] = run.complete([prompt], cfg, to, stop if to == 'text' else ())
  rate = getattr(run.tokenizers.audio, 'sample_rate', 0)
  for number, (value, _) in enumerate(group):
    if to == 'text':
      outputs = [Piece('text', value)]
    else:
      outputs = [Piece('text', cfg.refusal)] if value is None else run.pieces(prompt, value)
    for piece in outputs:
      yield number, *to_reply(piece, rate)


def chat(run, body, sampling):
  """Yield the pieces of the reply to a conversation, as `complete` does."""
  messages = body['messages']
  if not isinstance(messages, list) or len(messages) > MAX_MESSAGES:
    raise ValueError(f'messages is not a list of up to {MAX_MESSAGES}\nfix: begin a new conversation')
  sampling = {name: value for name, value in sampling.items() if name not in ('num_samples', 'guidance')}
  return zip(
    itertools.repeat(0), itertools.repeat('text'), run.stream_chat(messages, **sampling), strict=False
  )


def to_reply(piece, rate):
  """Return (kind, value) of a piece: a text, or the data address of a picture or a sound.

  Codes of a sound that no codec plays are a text.
  """
  if piece.kind == 'image':
    return 'image', pieces.png_uri(piece.value)
  if piece.kind == 'audio':
    return 'audio', pieces.wav_uri(piece.value, rate)
  return 'text', piece.value if piece.kind == 'text' else str(piece.value.tolist())


def sampling_of(body):
  """Return {field of SampleConfig: number} of a request; ValueError outside the LIMITS."""
  chosen = body.get('sampling') or {}
  if not isinstance(chosen, dict) or set(chosen) - set(LIMITS):
    raise ValueError(f'sampling has unknown settings\nfix: use {", ".join(LIMITS)}')
  return {
    name: args.number(chosen, name, low, low, high)
    for name, (low, high) in LIMITS.items()
    if chosen.get(name) not in (None, '')
  }
