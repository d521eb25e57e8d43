"""Adapters in PEFT's format: its logits, loss and gradients are ours, in both directions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import step
from gpt_jax.evaluation import trained
from gpt_jax.interop import huggingface, peft_files, tensors
from gpt_jax.model import adapters, gpt, param_trees
from gpt_jax.model.adapters import AdapterConfig
from gpt_jax.runs import ancestry
from gpt_jax.tokenizers import Tokenizers
from gpt_jax.training import checkpoint
from tests import models, tiny_runs
from tests.interop.test_interop import write
from tests.tokenizers.test_tokenizers import make

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
TARGETS = {
  'gpt2': ['c_attn', 'c_proj', 'c_fc'],
  'llama': ['q_proj', 'v_proj', 'o_proj', 'down_proj', 'gate_proj', 'lm_head'],
}
IDS = np.random.default_rng(0).integers(0, 256, (2, 8), dtype=np.int32)


def base_of(folder, name):
  """A tiny model of others and its run folder."""
  write(folder / 'source', name, Tokenizers.build(make('bytes'), specials=()))
  huggingface.import_run(folder / 'source', folder / 'base')
  return folder / 'source', folder / 'base'


def random_adapter(source, name, out, **options):
  """Write an adapter of PEFT with random factors -> its model."""
  peft, torch = pytest.importorskip('peft'), pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  model = transformers.AutoModelForCausalLM.from_pretrained(source)
  torch.manual_seed(0)
  settings = peft.LoraConfig(
    r=3,
    lora_alpha=5,
    target_modules=TARGETS[name],
    fan_in_fan_out=name == 'gpt2',
    task_type='CAUSAL_LM',
    **options,
  )
  model = peft.get_peft_model(model, settings)
  for key, p in model.named_parameters():
    if 'lora_' in key:
      p.data += 0.1 * torch.randn_like(p)
  model.save_pretrained(out)
  return model.eval()


def torch_logits(model):
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    return model(torch.tensor(IDS, dtype=torch.long)).logits.numpy()


def our_logits(run):
  return np.asarray(models.logits(run.model, IDS))[..., : run.model.cfg.vocab]


@pytest.mark.parametrize(
  ('name', 'options'),
  [
    ('gpt2', {}),
    ('gpt2', {'use_dora': True}),
    ('llama', {'use_rslora': True, 'rank_pattern': {'v_proj': 2}, 'alpha_pattern': {'o_proj': 9}}),
    ('llama', {'use_dora': True}),
    ('llama', {'use_dora': True, 'use_rslora': True}),
  ],
)
def test_adapters_of_peft_have_its_logits_here_and_back(name, options, tmp_path):
  source, base = base_of(tmp_path, name)
  theirs = random_adapter(source, name, tmp_path / 'peft', **options)
  before = tiny_runs.snapshot(base)
  peft_files.import_adapter(tmp_path / 'peft', base, tmp_path / 'run')
  run = trained.load(tmp_path / 'run')
  links = [(parent['how'], parent['path']) for parent in ancestry.read_parents(run.workdir)]
  assert links == [('train.init_from', str(base)), ('import', str(tmp_path / 'peft'))]
  np.testing.assert_allclose(our_logits(run), torch_logits(theirs), rtol=1e-4, atol=1e-4)
  assert np.abs(our_logits(run) - our_logits(trained.load(base))).max() > 1e-2
  peft_files.export_adapter(tmp_path / 'run', tmp_path / 'back')
  assert_peft_reads(source, tmp_path / 'back', run)
  assert tiny_runs.snapshot(base) == before
  huggingface.export_run(tmp_path / 'run', tmp_path / 'merged')
  transformers = pytest.importorskip('transformers')
  merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'merged')
  np.testing.assert_allclose(torch_logits(merged), torch_logits(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('fields', [{'init_lora_weights': 'pissa_niter_4'}, {'alora_invocation_tokens': [3]}])
def test_an_adapter_that_is_not_added_to_the_base_alone_is_refused(fields, tmp_path):
  content = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4} | fields
  (tmp_path / peft_files.FILE).write_text(json.dumps(content))
  with pytest.raises(ValueError) as error:
    peft_files.read_adapter(tmp_path, None)
  tiny_runs.assert_two_lines(error.value, *fields, 'is not supported')


def assert_peft_reads(source, folder, run):
  """PEFT's model of an exported adapter has our logits."""
  peft, transformers = pytest.importorskip('peft'), pytest.importorskip('transformers')
  model = transformers.AutoModelForCausalLM.from_pretrained(source)
  model = peft.PeftModel.from_pretrained(model, folder).eval()
  np.testing.assert_allclose(torch_logits(model), our_logits(run), rtol=1e-4, atol=1e-4)


def write_adapters(base, settings, folder):
  """A run folder of random adapters on a base run."""
  run = trained.load(base)
  tree, _ = adapters.split(settings, gpt.GPT(run.model.cfg))
  rng = np.random.default_rng(1)
  tree = param_trees.map_params(
    lambda path, p: jnp.asarray(0.1 * rng.standard_normal(p.get_value().shape)), tree
  )
  checkpoints = checkpoint.Checkpoints(run.workdir / 'checkpoints')
  train = dataclasses.replace(run.cfg.train, init_from=str(base))
  cfg = dataclasses.replace(run.cfg, adapter=settings, train=train)
  run.tokenizers.save(folder / 'tokenizer')
  extra = {'base': checkpoint.refer_to_base(checkpoints, run.step)}
  parent = ancestry.describe_run('train.init_from', run.workdir, run.step, checkpoints.read_extra(run.step))
  huggingface.write_run(folder, cfg, run.model.cfg, tree, extra, parent)
  return trained.load(folder)


@pytest.mark.parametrize('targets', [('attention/w',), ('attention/w[qo]', 'mlp/up')])
def test_factors_of_packed_queries_keys_and_values_are_joined(targets, tmp_path):
  source, base = base_of(tmp_path, 'gpt2')
  run = write_adapters(base, AdapterConfig(rank=2, targets=targets), tmp_path / 'run')
  peft_files.export_adapter(tmp_path / 'run', tmp_path / 'out')
  content = json.loads((tmp_path / 'out' / 'adapter_config.json').read_text())
  assert content['rank_pattern'] == ({'attn.c_attn': 6} if targets == ('attention/w',) else {})
  assert_peft_reads(source, tmp_path / 'out', run)


@pytest.mark.parametrize('kind', ['lora', 'dora'])
def test_loss_and_gradients_are_those_of_peft(kind, tmp_path):
  torch = pytest.importorskip('torch')
  source, base = base_of(tmp_path, 'llama')
  theirs = random_adapter(source, 'llama', tmp_path / 'peft', use_dora=kind == 'dora')
  their_loss = theirs(torch.tensor(IDS, dtype=torch.long), labels=torch.tensor(IDS, dtype=torch.long)).loss
  their_loss.backward()
  _, tree = peft_files.read_adapter(tmp_path / 'peft', trained.load(base))
  model = trained.load(base).model
  frozen = adapters.take_base(model, checkpoint.with_shardings(gpt.GPT(model.cfg), trained.load(base).mesh))
  batch = dict(token_ids_BT=IDS[:, :-1], target_ids_BT=IDS[:, 1:], loss_mask_BT=np.ones((2, 7), np.float32))

  @jax.jit
  def loss(tree):
    return step.loss_fn(adapters.attach(frozen, tree), batch, 14.0, {}, None)[0]

  value, grads = jax.value_and_grad(loss)(tree)
  np.testing.assert_allclose(value, their_loss.item(), rtol=1e-5)
  usual = lambda key: (
    key.removeprefix('base_model.model.').replace('.default', '').replace('vector.weight', 'vector')
  )
  named = {usual(key): p.grad.numpy() for key, p in theirs.named_parameters() if 'lora_' in key}
  sizes, seen = tensors.sizes_of(model.cfg) | {'r': 3}, 0
  modules = {
    path: module for module in peft_files.base_modules(trained.load(base)) for path in module.members
  }
  for path, adapter in grads.items():
    for factor, (row, axes) in peft_files.factor_rows(modules[path], path, adapter).items():
      ours = np.asarray(getattr(adapter, factor)[...])
      for index, name in tensors.places(row, sizes):
        theirs_as_ours = tensors.to_parameter(named[name], row, axes, sizes)
        part = ours[index][tuple(map(slice, theirs_as_ours.shape))]
        np.testing.assert_allclose(part, theirs_as_ours, rtol=1e-4, atol=1e-6, err_msg=name)
        seen += 1
  assert seen == len(named)
