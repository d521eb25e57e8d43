"""The verb `serve`: a trained model behind the endpoints of OpenAI."""

import dataclasses
import importlib.util

from absl import flags

from gpt_jax.cli import config_help
from gpt_jax.cli.flags import DEFINE, define_sampling, define_workdir, sampling_overrides

FLAGS = flags.FLAGS


def serve_flags():
  """Flags of `serve`."""
  from gpt_jax.workbench.serving.server import ServeConfig

  define_workdir()
  texts = config_help.comments(ServeConfig)
  for field in dataclasses.fields(ServeConfig):
    DEFINE[field.type](field.name, field.default, texts[field.name])
  flags.DEFINE_list('adapters', [], 'NAME=RUN,...: runs of adapters on --workdir, each a model of its own')
  define_sampling(but=('num_samples', 'seed'))


def serve(argv):
  """Serve a trained model to programs that speak OpenAI's API, until Ctrl-C.

  /v1/completions, chat/completions, audio/transcriptions, audio/speech and images/generations, as far as the
  run was trained for them: /v1/models says. Also /health, and /metrics for Prometheus. Sampling flags are
  defaults for requests. With GPT_JAX_TOKEN in the environment every request needs it.
  """
  from gpt_jax.evaluation import trained
  from gpt_jax.sampling import validate
  from gpt_jax.workbench.serving import server

  for name in ('starlette', 'uvicorn', 'python_multipart'):
    if importlib.util.find_spec(name) is None:
      raise ValueError(f"serve needs the package {name}\nfix: pip install -e '.[serve]'")
  cfg = server.ServeConfig(**{f.name: FLAGS[f.name].value for f in dataclasses.fields(server.ServeConfig)})

  def with_sampling(run):
    sampling = validate.override(run.cfg.sample, num_samples=1, **sampling_overrides())
    return run._replace(cfg=dataclasses.replace(run.cfg, sample=sampling))

  folders, run = adapter_folders(FLAGS.adapters), trained.load(FLAGS.workdir)
  adapters = {
    name: with_sampling(trained.load(folder, base=run, key=f'--adapters={name}'))
    for name, folder in folders.items()
  }
  server.serve(with_sampling(run), cfg, adapters)
  return 0


def adapter_folders(texts):
  """Return {name: run folder} of NAME=RUN texts."""
  folders = dict(text.partition('=')[::2] for text in texts)
  if len(folders) < len(texts) or not all(name and folder for name, folder in folders.items()):
    raise ValueError(
      f'--adapters={",".join(texts)} is not a list of NAME=RUN with different names\n'
      'fix: use --adapters=french=runs/french,polite=runs/polite'
    )
  return folders
