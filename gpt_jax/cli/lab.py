"""The verb `lab`: runs and studies in a browser."""

from absl import flags

from gpt_jax.runs.loggers import say

FLAGS = flags.FLAGS


def lab_flags():
  """Flags of `lab`."""
  flags.DEFINE_string('root', 'runs', 'folder with runs and studies, at any depth')
  flags.DEFINE_integer(
    'port', 8017, 'port on this machine; 0: any free one', lower_bound=0, upper_bound=65535
  )


def lab(argv):
  """Serve a web application over the runs and studies below --root, on this machine only; it changes none.

  From another machine: ssh -L 8017:localhost:8017 HOST, then open http://localhost:8017.
  """
  from gpt_jax.workbench.lab import app

  app.serve(FLAGS.root, FLAGS.port, say)
  return 0
