"""The verb `chat`: a conversation with a trained model in the terminal, or with turns from a pipe."""

import contextlib
import signal
import sys

from absl import flags

from gpt_jax.cli.flags import define_sampling, define_workdir, sampling_overrides
from gpt_jax.runs.loggers import say

FLAGS = flags.FLAGS
HELP = '/reset begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops a reply, /help repeats this'


def chat_flags():
  """Flags of `chat`."""
  define_workdir()
  flags.DEFINE_string('system', '', 'system message before the conversation')
  define_sampling(but=('num_samples', 'begin', 'guidance'))


def chat(argv):
  """Converse with a model that was trained on conversations; each line of a pipe is a turn.

  /reset begins a new conversation, /exit or Ctrl-D ends, Ctrl-C stops a reply.
  """
  from gpt_jax.evaluation import trained
  from gpt_jax.sampling import decoding_layout, prompts, validate
  from gpt_jax.sampling.history import History

  run, is_terminal, history = trained.load(FLAGS.workdir), sys.stdin.isatty(), History()
  prompts.chat_source(run)
  validate.override(run.cfg.sample, num_samples=1, **sampling_overrides())  # now, not at each turn
  run = run._replace(model=decoding_layout.prepare_model(run.model, donate=True))
  if is_terminal:
    import readline  # edits and repeats lines

    readline.set_auto_history(True)
    say(HELP)
  signal.set_wakeup_fd(-1)  # where the watchdog hears of Ctrl-C and ends the process
  signal.signal(signal.SIGINT, signal.default_int_handler)
  first = [{'role': 'system', 'content': FLAGS.system}] if FLAGS.system else []
  messages = list(first)
  for line in read_turns('> ' if is_terminal else ''):
    if line == '/exit':
      break
    if line == '/help':
      say(HELP)
      continue
    if line == '/reset':
      messages = list(first)
      continue
    messages.append({'role': 'user', 'content': line})
    reply = write_reply(run, messages, history)
    if reply is None:
      messages.pop()
    else:
      messages.append({'role': 'assistant', 'content': reply})
  return 0


def read_turns(prompt):
  """Yield the lines of the user that are not blank, until the end of the input; Ctrl-C drops a line."""
  while True:
    try:
      line = input(prompt)
    except KeyboardInterrupt:
      say('')
      continue
    except EOFError:
      say('', end='\n' if prompt else '')
      return
    if line.strip():
      yield line.strip()


def write_reply(run, messages, history):
  """Print the reply while it is generated -> its text; None for a conversation that cannot go on."""
  reply = ''
  try:
    with contextlib.suppress(KeyboardInterrupt):
      for piece in run.stream_chat(messages, history, **sampling_overrides()):
        reply += piece
        say(piece, end='', flush=True)
  except ValueError as error:  # such as a conversation longer than the context
    say(f'error: {error}, or begin again with /reset')
    return None
  say('')
  return reply
