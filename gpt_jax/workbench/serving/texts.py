"""The endpoints of texts: /v1/completions and /v1/chat/completions, whole or as server-sent events."""

import time

from gpt_jax.sampling.prompts import chat_ends
from gpt_jax.workbench.serving import fields as request_fields
from gpt_jax.workbench.serving import replies, streams
from gpt_jax.workbench.serving.errors import error_body, json_response
from gpt_jax.workbench.serving.fields import Fields, invalid

MOST_CHOICES = 16  # texts of one request
KNOWN = ('n', 'stream', 'stream_options', 'stop', 'source', *request_fields.SAMPLING)


async def completions(server, request):
  """POST /v1/completions."""
  forms, fields = await server.json_fields(request, 'completions')
  values = take_prompts(fields)
  count = fields.take('logprobs', int, None, 0, 20)
  options = take_options(fields, len(values))
  options |= dict(alternatives=count or 0, wants_tokens=count is not None)
  source, most = fields.take('source', str, ''), fields.take('max_tokens', int, None, 1)
  overrides, stop = request_fields.take_sampling(fields), request_fields.take_stop(fields)
  fields.refuse_rest('prompt', 'max_tokens', 'logprobs', *KNOWN)

  def prepare():
    prompts = [forms.as_prompt(value, source) for value in values]
    end_ids = server.engine.batches['text'].end_ids
    return forms.text_jobs(prompts, overrides, options['n'], most, end_ids, stop=stop, **job_options(options))

  return await answer(server, request, replies.Completion, await server.in_thread(prepare), options)


async def chat(server, request):
  """POST /v1/chat/completions."""
  forms, fields = await server.json_fields(request, 'chat/completions')
  messages = fields.require('messages', list)
  wants = fields.take('logprobs', bool, False)
  count = fields.take('top_logprobs', int, 0, 0, 20)
  if count and not wants:
    raise invalid('top_logprobs', count, 'has no effect without logprobs', 'set logprobs to true')
  options = take_options(fields, 1) | dict(alternatives=count, wants_tokens=wants)
  most = [fields.take(name, int, None, 1) for name in ('max_completion_tokens', 'max_tokens')]
  most = next((value for value in most if value), None)
  overrides, stop = request_fields.take_sampling(fields), request_fields.take_stop(fields)
  fields.refuse_rest('messages', 'max_tokens', 'top_logprobs', *KNOWN)
  ends, own_stop = chat_ends(forms.run)

  def prepare():
    jobs = dict(kind='chat', ends=ends, stop=(*own_stop, *stop), **job_options(options))
    prompt = forms.chat_prompt(request_fields.read_messages(messages))
    end_ids = server.engine.batches['chat'].end_ids
    return forms.text_jobs([prompt], overrides, options['n'], most, end_ids, **jobs)

  return await answer(server, request, replies.Chat, await server.in_thread(prepare), options)


def take_prompts(fields):
  """Return the prompts of a completion: texts, or lists of token ids."""
  value = fields.values.pop('prompt', '')
  is_ids = lambda x: isinstance(x, list) and x != [] and all(type(i) is int for i in x)
  values = value if isinstance(value, list) and not is_ids(value) else [value]
  if not values or not all(isinstance(x, str) or is_ids(x) for x in values):
    raise invalid(
      'prompt', value, 'is not a text, a list of token ids, or a list of them', 'give one of them'
    )
  return values


def take_options(fields, prompts):
  """Return the fields n, stream and include_usage of a request for texts."""
  n = fields.take('n', int, 1, 1)
  if n * prompts > MOST_CHOICES:
    raise invalid('n', n, f'for {prompts} prompts is too many', f'ask for at most {MOST_CHOICES} texts')
  stream, options = fields.take('stream', bool, False), Fields(fields.take('stream_options', dict, {}))
  include_usage = options.take('include_usage', bool, False)
  options.take('include_obfuscation', bool)
  options.refuse_rest('include_usage')
  return dict(n=n, stream=stream, include_usage=include_usage)


def job_options(options):
  """Return those of the options that a TextJob has."""
  return {name: options[name] for name in ('alternatives', 'wants_tokens')}


# ----------------------------------------------------------------------------------------- answers


async def answer(server, request, form, jobs, options):
  """Run jobs and answer with their texts, whole or as events; form: a class of replies.py."""
  reply = replies.Reply(form, jobs[0].model)
  if options['stream']:
    generation = streams.Generation(server.engine, jobs)
    chunks = stream_chunks(server, reply, generation, options, time.monotonic())
    return streams.EventStream(chunks, lambda: close(server, generation))
  choices, pieces = [], await server.run_jobs(request, jobs)
  for row in pieces:
    tokens = [token for piece in row for token in piece.tokens] if options['wants_tokens'] else None
    choices.append((''.join(piece.text for piece in row), tokens, row[-1].finish))
  return json_response(reply.whole(choices, count_usage([row[-1] for row in pieces], options['n'])))


async def stream_chunks(server, reply, generation, options, start):
  """Yield the events of a stream; an error is its last one."""
  ends, begun = [None] * len(generation.jobs), set()
  try:
    while (item := await generation.next()) is not None:
      index, piece = item
      if not begun:
        server.metrics.observe('first_token_seconds', time.monotonic() - start)
      yield replies.event(reply.chunk(index, piece, options['wants_tokens'], index not in begun))
      begun.add(index)
      ends[index] = piece
  except Exception as error:
    generation.close()
    generation.open = 0
    yield replies.event(error_body(error)[1])
    return
  if options['include_usage']:
    yield replies.event(reply.last(count_usage(ends, options['n'])))
  yield replies.DONE


def close(server, generation):
  """Free the slots of a stream that its client has left."""
  if generation.open:
    server.metrics.count('aborted')
  generation.close()


def count_usage(ends, n):
  """Return the usage of the last events of n texts for each prompt."""
  return replies.usage([(*piece.counts, i % n == 0) for i, piece in enumerate(ends)])
