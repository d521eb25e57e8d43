"""JAX's persistent compilation cache: enabled by default, in a folder that only its owner can write.

JAX executes the programs in it, so anyone who can write there can run code as this user: the folder is
never shared, and never part of a run, a checkpoint or a download.

  JAX_COMPILATION_CACHE_DIR   another folder than ~/.cache/gpt_jax/compiled/HOST; '' disables the cache

One folder a host: machines that share a home may have different processors.
"""

import os
import platform
import stat
from pathlib import Path

VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
OWNER_ONLY, OTHERS_MAY_WRITE = 0o700, stat.S_IWGRP | stat.S_IWOTH
MIN_COMPILE_SECONDS = '0.5'  # programs that compile faster are not worth a file


def enable_compilation_cache(environ, run_folders=()):
  """Set the variables that JAX reads; call before importing it. Returns the folder, or None.

  environ: os.environ. run_folders: those of this command.
  Raises ValueError for a chosen folder that others can write to, or that lies in a run.
  """
  home = Path(environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
  chosen = environ.get(VARIABLE, str(home / 'gpt_jax' / 'compiled' / platform.node()))
  if not chosen:
    del environ[VARIABLE]
    return None
  folder = Path(chosen).expanduser().absolute()
  try:
    for place in reversed([folder, *folder.parents]):  # new parents are private, too
      place.mkdir(mode=OWNER_ONLY, exist_ok=True)
    check_cache_folder(folder, run_folders)
  except (OSError, ValueError):
    if VARIABLE in environ:
      raise
    return None  # the default folder is not private or not writable: compile each time
  environ[VARIABLE] = str(folder)
  environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', MIN_COMPILE_SECONDS)
  return folder


def check_cache_folder(folder, run_folders=()):
  """Raise ValueError unless only we can write to the folder, and it lies outside every run."""
  status = folder.resolve().stat()
  if status.st_uid != os.getuid() or status.st_mode & OTHERS_MAY_WRITE:
    raise ValueError(
      f'{VARIABLE}={folder} can be written by others, and JAX executes the programs in it\n'
      f'fix: chmod 700 {folder} if it is yours, or set another folder'
    )
  places = [folder.resolve(), *folder.resolve().parents]
  runs = [Path(name).expanduser().resolve() for name in run_folders if name]
  if any((place / 'config.json').exists() or place in runs for place in places):
    raise ValueError(
      f'{VARIABLE}={folder} lies in a run, which may come from another user\n'
      'fix: set a folder of your own, or leave it out'
    )
