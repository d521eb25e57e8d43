"""Does muP transfer the learning rate from a small width to a larger one? `python -m benchmarks.mup`.

Character models of four widths train with AdamW at five learning rates, with and without muP of the smallest
width, where both are the same model. The rate that is best there is used at every width: what that loses is
the difference to the width's own best of the five. --workdir keeps the runs: the same command goes on
after a stop. Writes results/ablations/mup.json and mup.png.
"""

import argparse
import json
import math
import os

import jax
import numpy as np

from benchmarks import record
from experiments import shakespeare_char
from gpt_jax import config as configs
from gpt_jax.runs import compilation_cache
from gpt_jax.train import train

WIDTHS = (32, 64, 128, 256)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
NAME = 'ablations/mup'
CLAIM = 'Learning rate against width, with and without muP'


def make_config(width, rate, has_mup, steps=300, base=WIDTHS[0]):
  """The Config of one run: a plain Transformer, whose best rate depends on its width without muP."""
  section = shakespeare_char.get_config('adamw,small')
  section.model.update(
    **dict(width=width, heads=width // 16, context=64, mlp='gelu', qk_norm=False, init_projections='scaled'),
    **(dict(mup_base=base, head_dim=16) if has_mup else {}),  # heads grow in number, not in width
  )
  section.optim.update(lr=rate, weight_decay=0.0, warmup=steps // 10)
  section.train.update(steps=steps, eval_every=0, eval_tokens=0, sample_every=0)
  return configs.build(configs.Config, section)


def train_once(cfg, folder):
  """The loss on the whole validation text, None if the run diverged."""
  try:
    loss = train(cfg, folder)['valid_loss']
  except FloatingPointError:
    return None
  return loss if math.isfinite(loss) else None


def measure(workdir, widths=WIDTHS, rates=RATES, steps=300):
  """Train all runs that are not done -> [{mup, width, rate, loss}]; loss None where it diverged."""
  rows = []
  for has_mup in (False, True):
    for width in widths:
      for rate in rates:
        is_base = width == widths[0]  # the same model, trained once
        name = f'{"mup" if has_mup and not is_base else "standard"}-{width}-{rate:g}'
        cfg = make_config(width, rate, has_mup and not is_base, steps, widths[0])
        loss = train_once(cfg, f'{workdir}/{name}')
        rows.append({'mup': has_mup, 'width': width, 'rate': rate, 'loss': loss})
        print(f'{name}: {"diverged" if loss is None else f"{loss:.4f}"}', flush=True)
  return rows


def summarize(rows):
  """{'muP', 'without'}: by width {best rate, its loss, loss at the base's best rate, what that loses}."""
  tables = {}
  for has_mup, name in ((True, 'muP'), (False, 'without')):
    losses = {}
    for row in (row for row in rows if row['mup'] == has_mup):
      losses.setdefault(row['width'], {})[row['rate']] = math.inf if row['loss'] is None else row['loss']
    best = {width: min(of, key=of.get) for width, of in losses.items()}
    base = best[min(best)]
    tables[name] = {
      str(width): {
        'best rate': best[width],
        'loss': of[best[width]],
        "at the smallest width's rate": of[base],
        'lost': of[base] - of[best[width]],
      }
      for width, of in losses.items()
    }
  return tables


def draw(rows, path):
  """Plot loss against rate, a line a width, without muP and with it."""
  import matplotlib.pyplot as plt

  fig, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout='constrained', sharey=True)
  for panel, has_mup, title in zip(panels, (False, True), ('without muP', 'with muP'), strict=True):
    widths = sorted({row['width'] for row in rows})
    for width, shade in zip(widths, np.linspace(0.75, 0.0, len(widths)), strict=True):
      points = [(r['rate'], r['loss']) for r in rows if (r['mup'], r['width']) == (has_mup, width)]
      rates, losses = zip(*[(rate, math.nan if loss is None else loss) for rate, loss in points], strict=True)
      panel.plot(rates, losses, 'o-', color=plt.cm.viridis(shade), label=f'width {width}')
      best = int(np.nanargmin(losses))
      panel.plot(rates[best], losses[best], 'o', color=plt.cm.viridis(shade), markersize=11, alpha=0.4)
    panel.set(xscale='log', xlabel='learning rate', title=title)
  finite = [row['loss'] for row in rows if row['loss'] is not None]
  panels[0].set(ylabel='validation loss', ylim=(min(finite) - 0.05, min(max(finite), min(finite) + 1.5)))
  panels[1].legend(frameon=False)
  fig.savefig(path, dpi=110)
  plt.close(fig)


def main():
  """Train, write the result file, and plot."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--workdir', default='runs/mup')
  parser.add_argument('--steps', type=int, default=300)
  arguments = parser.parse_args()
  folder = compilation_cache.enable_compilation_cache(os.environ, [arguments.workdir])
  jax.config.update('jax_compilation_cache_dir', folder and str(folder))  # rates share a program
  rows = measure(arguments.workdir, steps=arguments.steps)
  numbers = {'steps': arguments.steps, 'summary': summarize(rows), 'runs': rows}
  record.write_result(NAME, CLAIM, numbers)
  draw(rows, record.RESULTS / f'{NAME}.png')
  print(json.dumps(numbers['summary'], indent=1))


if __name__ == '__main__':
  main()
