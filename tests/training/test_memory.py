"""Whether a run fits: what a process may still allocate, and what it needs."""

import math

import jax
import jax.numpy as jnp
import pytest

from gpt_jax.training import memory


def machine(folder, groups, **limits):
  """Write a /proc with 3 GiB free and its cgroups' limits -> arguments of host_bytes."""
  (folder / 'proc/self').mkdir(parents=True)
  meminfo = f'MemTotal: 9 kB\nMemAvailable:   {2 * 2**20} kB\nSwapTotal: 1 kB\nSwapFree: {2**20} kB\n'
  (folder / 'proc/meminfo').write_text(meminfo)
  (folder / 'proc/self/cgroup').write_text(groups)
  for path, text in limits.items():
    path = folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return folder / 'proc', folder


LIMITS = {
  'no limit': ('', {}, 3 * 2**30),
  'version 2': ('0::/job/step\n', {'job/step/memory.max': 'max\n', 'job/memory.max': '1000\n'}, 1000),
  'version 1': ('4:memory:/a\n0::/\n', {'memory/memory.limit_in_bytes': '2000\n'}, 2000),
  'other controllers': ('4:cpu:/a\n', {'cpu/a/memory.max': '1\n'}, 3 * 2**30),
}


@pytest.mark.parametrize('name', LIMITS)
def test_memory_of_the_host_is_bounded_by_its_cgroups(tmp_path, name):
  groups, limits, expected = LIMITS[name]
  assert memory.host_bytes(*machine(tmp_path, groups, **limits)) == expected


def test_memory_of_the_host_is_unbounded_where_nothing_tells(tmp_path):
  assert memory.host_bytes(tmp_path, tmp_path) == math.inf


def test_a_step_needs_what_it_allocates_beside_its_arguments(monkeypatch):
  x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
  compiled = jax.jit(lambda a, b: jnp.sin(a @ b) @ a @ b, donate_argnums=0).lower(x, x).compile()
  monkeypatch.setattr(memory, 'available_bytes', lambda: 3 * x.size * 4)
  memory.check_program(compiled)
  monkeypatch.setattr(memory, 'available_bytes', lambda: x.size * 4 - 1)
  with pytest.raises(RuntimeError, match='0.0 GiB are available\nfix: '):
    memory.check_program(compiled)
