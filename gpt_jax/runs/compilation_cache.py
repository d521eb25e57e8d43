"""Where compiled programs are kept between processes, so that a second start is a quick one.

Whoever can write there can make us run what they like: JAX loads what it finds. So the folder is
its owner's alone, and never one that came with a run, a checkpoint or a download.

  JAX_COMPILATION_CACHE_DIR   another folder than ~/.cache/gpt_jax/compiled/HOST; '' for none

One a host: machines that share a home may have different processors.
"""

import os
import platform
import stat
from pathlib import Path

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
OWNER_ONLY, OTHERS_MAY_WRITE = 0o700, stat.S_IWGRP | stat.S_IWOTH
SECONDS = '0.5'  # programs that compile faster are not worth a file


def keep(environ, folders=()):
  """Set what JAX reads, before it is imported -> the folder, None for none.

  environ: os.environ. folders: run folders of this command.
  Raises ValueError for a place that others can write to, or that lies in a run.
  """
  home = Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  chosen = environ.get(VARIABLE, str(home / 'gpt_jax' / 'compiled' / platform.node()))
  if not chosen:
    del environ[VARIABLE]
    return None
  folder = Path(chosen).expanduser().absolute()
  try:
    for place in reversed([folder, *folder.parents]):  # what is made on the way is ours alone, too
      place.mkdir(mode=OWNER_ONLY, exist_ok=True)
    check(folder, folders)
  except (OSError, ValueError):
    if VARIABLE in environ:
      raise
    return None  # a home that is not ours alone, or cannot be written to: compile each time
  environ[VARIABLE] = str(folder)
  environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', SECONDS)
  return folder


def check(folder, folders=()):
  """Raise ValueError unless only we can write there, and it belongs to no run."""
  about = folder.resolve().stat()
  if about.st_uid != os.getuid() or about.st_mode & OTHERS_MAY_WRITE:
    raise ValueError(
      f'{VARIABLE}={folder} can be written by others, and what lies there is run\n'
      f'fix: chmod 700 {folder} if it is yours, or set another folder'
    )
  runs = [Path(name).expanduser().resolve() for name in folders if name]
  inside = folder.resolve()
  if any((place / 'config.json').exists() for place in (inside, *inside.parents)) or any(
    inside.is_relative_to(run) for run in runs
  ):
    raise ValueError(
      f'{VARIABLE}={folder} lies in a run, which may come from somewhere else\n'
      'fix: set a folder of your own, or leave it out'
    )
