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
  run = trained.load(FLAGS.workdir)
  sampling = validate.override(run.cfg.sample, num_samples=1, **sampling_overrides())
  run = run._replace(cfg=dataclasses.replace(run.cfg, sample=sampling))
  server.serve(run, cfg)
  return 0
