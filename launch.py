"""The command line of gpt_jax without installing it: `python launch.py VERB --help`."""

from gpt_jax.cli.entry import run

if __name__ == '__main__':
  run()
