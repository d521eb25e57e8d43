"""Gemma 3 270M, a real model: logits and greedy texts equal those of transformers.

GPT_JAX_GEMMA names its Hugging Face folder, or a GGUF file; GPT_JAX_GEMMA_HF the folder for transformers.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax import sample
from gpt_jax.interop import huggingface
from gpt_jax.sample import SampleConfig
from gpt_jax.sampling import completions, decoding_layout
from gpt_jax.tokenizers import grammar
from tests.interop.test_interop import hf

__all__ = ['hf']  # the fixture
LENGTHS = [1500, 1000, 700, *range(100, 100 + 17 * 9, 9)]  # tokens; the window is 512
KEPT = 64  # last positions of each text whose logits are compared
PROMPTS, PROMPT, NEW = 20, 12, 64


@pytest.fixture(scope='module')
def gemma(hf):
  """(the GPT, transformers' model, the ids of a page)."""
  source = os.environ.get('GPT_JAX_GEMMA')
  if not source:
    pytest.skip('no Gemma 3 270M: set GPT_JAX_GEMMA to its Hugging Face folder')
  folder = os.environ.get('GPT_JAX_GEMMA_HF', source)
  theirs = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
  _, ours, _ = huggingface.import_model(source)
  page = Path(__file__).parents[2] / 'docs/data.md'
  ids = hf.AutoTokenizer.from_pretrained(folder)(page.read_text(), add_special_tokens=False)['input_ids']
  return ours, theirs, ids


def text_ids(gemma, number, length):
  """The ids of text `number`, which begins with bos."""
  _, theirs, ids = gemma
  return [theirs.config.bos_token_id, *ids[number * 97 : number * 97 + length - 1]]


@pytest.mark.slow
def test_gemma_logits_equal_transformers(gemma):
  import torch

  ours, theirs, _ = gemma

  @jax.jit
  def last_logits(model, ids_BT, last):
    x_BTD, _, _ = model.trunk(ids_BT)
    return model.logits(jax.lax.dynamic_slice_in_dim(x_BTD, last - KEPT, KEPT, 1))

  worst = 0.0
  for number, length in enumerate(LENGTHS):
    ids = text_ids(gemma, number, length)
    assert len(ids) == length
    row = np.zeros((1, 256 if length <= 256 else 1536), np.int32)  # padding follows: no token sees it
    row[0, :length] = ids
    actual = np.asarray(last_logits(ours, jnp.asarray(row), length))[..., : ours.cfg.vocab]
    with torch.no_grad():
      expected = theirs(torch.tensor([ids]), logits_to_keep=KEPT).logits.numpy()
    worst = max(worst, float(np.abs(actual - expected).max()))
  print(f'largest difference of {len(LENGTHS)} texts: {worst:.1e}')
  assert worst < 1e-3


@pytest.mark.slow
def test_gemma_greedy_texts_equal_transformers(gemma):
  import torch

  ours, theirs, _ = gemma
  prompts = [text_ids(gemma, number, PROMPT) for number in range(PROMPTS)]
  options = dict(max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
  # The minimum forbids the end token, so every row has all tokens.
  expected = theirs.generate(torch.tensor(prompts), **options).numpy()[:, PROMPT:]
  cfg = SampleConfig(max_new_tokens=NEW, temperature=0.0)
  sampled = jax.jit(decoding_layout.for_sampling, static_argnums=1)(ours, 'float32')
  allowed_V = np.ones(ours.cfg.V, bool)
  allowed_V[list(np.atleast_1d(theirs.generation_config.eos_token_id or []))] = False
  state = sample.generate(sampled, prompts, cfg, grammar.plain(allowed_V))
  actual = [ids for ids, _ in completions.new_tokens(state, prompts, 1)]
  np.testing.assert_array_equal(np.array(actual), expected)
