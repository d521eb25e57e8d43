"""Adapters chosen for each row: the logits of a row are those of the model with its adapter merged."""

import jax
import numpy as np
import pytest

from gpt_jax.interop.encoders import families
from gpt_jax.model import adapters, gpt, towers
from gpt_jax.model.adapter_bank import AdapterBank
from gpt_jax.model.param_trees import map_params, named_params
from gpt_jax.sampling import decoding_layout
from tests import encoders, models, tiny_runs

SETTINGS = {
  'lora': adapters.AdapterConfig(rank=2),
  'rslora': adapters.AdapterConfig(rank=3, kind='rslora', targets=('attention/wq', 'mlp/down')),
  'dora': adapters.AdapterConfig(rank=2, kind='dora', targets=('attention/w[qo]', 'mlp/up')),
}


def random_tree(settings, cfg, seed):
  """Adapters of a model with random factors, and magnitudes near 1."""
  tree, _ = adapters.split(settings, gpt.GPT(cfg))
  rng = np.random.default_rng(seed)
  draw = lambda path, p: np.float32(
    path.endswith('magnitude') + 0.2 * rng.standard_normal(p.get_value().shape)
  )
  return map_params(draw, tree)


def test_each_row_has_its_own_adapter():
  cfg = models.tiny(kv_heads=2)
  base = models.fill(cfg)
  trees = {name: random_tree(s, cfg, n) for n, (name, s) in enumerate(SETTINGS.items())}
  bank = AdapterBank(base, trees)
  logits = jax.jit(lambda model, ids_BT: model(ids_BT).logits_BTV)
  laid_out = decoding_layout.prepare_model(base)
  ids_BT = np.random.default_rng(5).integers(0, 50, (5, 6))
  index = (3, 0, 1, 2, 1)
  rows = logits(bank.attach(laid_out, index), ids_BT)
  merged = [base, *(adapters.merge(base, tree) for tree in trees.values())]
  for b, number in enumerate(index):
    expected = logits(merged[number], ids_BT[b : b + 1])[0]
    np.testing.assert_allclose(rows[b], expected, atol=2e-4)
    alone = logits(bank.attach(laid_out, (number,)), ids_BT[b : b + 1])[0]
    np.testing.assert_allclose(rows[b], alone, atol=2e-5)
  differences = [np.abs(rows[b] - logits(base, ids_BT[b : b + 1])[0]).max() for b in range(5)]
  assert differences[1] < 1e-4 < 1e-2 < min(differences[0], *differences[2:])


@pytest.mark.parametrize(
  'settings, changes',
  [
    (adapters.AdapterConfig(rank=2, targets=('head_VD',)), dict(tied_head=False)),
    (adapters.AdapterConfig(rank=2, targets=('mlp/up',)), dict(experts=2)),
    (adapters.AdapterConfig(rank=0, train=('final_norm',)), dict()),
  ],
)
def test_what_rows_cannot_have_of_their_own(settings, changes):
  cfg = models.tiny(**changes)
  with pytest.raises(ValueError) as error:
    AdapterBank(models.fill(cfg), {'french': random_tree(settings, cfg, 0)})
  tiny_runs.assert_two_lines(error.value, '--adapters: french trains')


def test_adapters_of_an_encoder_in_the_model_are_refused():
  tower = towers.Tower('patches', families.read_spec(encoders.CLIP), 'adapters', '', '', (0.5,), (0.5,))
  base = gpt.GPT(models.tiny(patch_values=tower.output_width, encoders=(tower.to_json(),)))
  path = 'image_encoder/blocks/attention/wq_DHK'
  tree = {path: adapters.Adapter(SETTINGS['lora'], dict(named_params(base))[path])}
  with pytest.raises(ValueError) as error:
    AdapterBank(base, {'eye': tree})
  tiny_runs.assert_two_lines(error.value, f'eye trains {path}')
