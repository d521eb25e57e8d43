"""Exports besides their weights: model card, sampling settings, roles, keys that other readers need."""

import json
import shutil

import numpy as np
import pytest

from gpt_jax import config
from gpt_jax import train as training
from gpt_jax.evaluation import trained
from gpt_jax.interop import card_sections, generation, huggingface, model_card
from gpt_jax.runs import records
from gpt_jax.sample import SampleConfig
from gpt_jax.step import params_of
from gpt_jax.tokenizers import SPECIALS, Tokenizers
from tests.interop.test_interop import OURS, fails, hf, our_logits, rows, their_logits, write
from tests.tiny_runs import assert_two_lines
from tests.tokenizers.test_tokenizers import make

__all__ = ['hf']  # a fixture


@pytest.mark.parametrize(
  'fields',
  [
    {},
    dict(temperature=0.7, top_k=9, top_p=0.8, min_p=0.05, repetition_penalty=1.2, max_new_tokens=33),
    dict(temperature=0.0, max_new_tokens=7),
    dict(beams=4),
  ],
)
def test_sampling_settings_survive_an_export(fields, hf, tmp_path):
  cfg = SampleConfig(**fields)
  content = generation.to_generation(cfg)
  assert generation.from_generation(content) == cfg
  theirs = hf.GenerationConfig(**content)
  theirs.validate(strict=True)
  assert theirs.max_new_tokens == cfg.max_new_tokens


@pytest.mark.parametrize(
  ('content', 'fields'),
  [
    ({'eos_token_id': [1]}, {}),
    ({'do_sample': False}, dict(temperature=0.0)),
    ({'do_sample': True, 'temperature': 1, 'top_p': 0.95}, dict(top_k=50, top_p=0.95)),
    ({'do_sample': True, 'temperature': 0.6, 'top_k': 0, 'top_p': None}, dict(temperature=0.6)),
    ({'do_sample': False, 'num_beams': 3, 'repetition_penalty': 1.1}, dict(beams=3)),
    ({'temperature': 0.3}, {}),  # which transformers does not read without do_sample
  ],
)
def test_sampling_settings_of_others_mean_what_transformers_takes_them_for(content, fields):
  assert generation.from_generation(content) == SampleConfig(**fields)


def test_sampling_settings_out_of_range_are_named(tmp_path):
  write(tmp_path, 'llama', Tokenizers.build(make('bytes')))
  (tmp_path / 'generation_config.json').write_text('{"do_sample": true, "top_p": 1.5}')
  with fails('generation_config.json', 'top_p=1.5'):
    huggingface.import_model(tmp_path)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """The folder of a tiny imported model, trained on prompts and answers, exported and imported again."""
  folder = tmp_path_factory.mktemp('exported')
  write(folder / 'source', 'llama', Tokenizers.build(make('bytes'), specials=('eos',)))
  huggingface.import_run(folder / 'source', folder / 'base')
  base = config.of_run(folder / 'base')
  (folder / 'qa.jsonl').write_text(''.join(f'{{"q": "q{i}", "a": "two"}}\n' for i in range(40)))
  cfg = config.default()
  cfg.model, cfg.tokenizer = config.section(base.model), config.section(base.tokenizer)
  cfg.data.mixture = {'qa': dict(kind='jsonl', path=str(folder / 'qa.jsonl'), template='{q} -> {a}')}
  cfg.data.packing = 'first_fit'
  cfg.train.update(init_from=str(folder / 'base'), steps=1, batch_size=8, length=16)
  cfg.train.update(eval_every=0, sample_every=0, tasks=())
  cfg.sample.update(temperature=0.5, top_k=7, max_new_tokens=11)
  training.train(config.build(config.Config, cfg), folder / 'tuned')
  row = dict(task='answer', metric='exact_match', value=0.5, source='qa', split='valid', n=2)
  with open(folder / 'tuned/evaluations.jsonl', 'a') as file:
    file.write(json.dumps(row | dict(interval=[0.1, 0.9])) + '\n')
    file.write(json.dumps(row | dict(value=0.75, step=9)) + '\n')  # of another checkpoint
  huggingface.export_run(folder / 'tuned', folder / 'out')
  huggingface.import_run(folder / 'out', folder / 'again')
  return folder


def test_roles_and_sampling_settings_survive_export_and_import(exported):
  tuned, again = trained.load(exported / 'tuned'), trained.load(exported / 'again')
  specials = dict(tuned.tokenizers.vocabulary.specials)
  assert dict(again.tokenizers.vocabulary.specials) == specials
  assert set(specials) == set(SPECIALS)
  assert again.tokenizers.start == tuned.tokenizers.start
  assert again.cfg.sample == tuned.cfg.sample
  huggingface.export_run(exported / 'again', exported / 'out2')
  for name in ('model.safetensors', 'config.json', 'tokenizer.json', 'tokenizer_config.json'):
    assert (exported / 'out2' / name).read_bytes() == (exported / 'out' / name).read_bytes(), name
  assert generation.from_generation(json.loads((exported / 'out2/generation_config.json').read_text())) == (
    tuned.cfg.sample
  )


def test_added_ids_get_rows_that_transformers_reads(exported, hf):
  """Missing specials get rows after the ids in use."""
  base, tuned = trained.load(exported / 'base'), trained.load(exported / 'tuned')
  specials = dict(tuned.tokenizers.vocabulary.specials)
  old = base.tokenizers.vocabulary.size
  assert {name for name, index in specials.items() if index < old} == {'eos'}
  tables = [np.asarray(params_of(run.model)['embed_VD']) for run in (base, tuned)]
  np.testing.assert_allclose(tables[1][:old], tables[0][:old], atol=0.01)
  assert np.std(tables[1][specials['sep']]) > 0
  theirs, ids_BT = hf.AutoModelForCausalLM.from_pretrained(exported / 'out'), rows(tuned.model.cfg.vocab)
  np.testing.assert_allclose(their_logits(theirs, ids_BT), our_logits(tuned.model, ids_BT), atol=2e-5)
  tokenizer = hf.AutoTokenizer.from_pretrained(exported / 'out')
  assert tokenizer('one<|sep|>')['input_ids'][-1] == specials['sep']
  assert theirs.generation_config.top_k == 7


def test_a_prompt_and_its_answer_are_read_as_in_training(exported):
  """The run that is imported again knows where the answer begins."""
  tuned, again = trained.load(exported / 'tuned'), trained.load(exported / 'again')
  sep = tuned.tokenizers.vocabulary.special('sep')
  assert again.tokenizers.vocabulary.special('sep') == sep
  assert again.tokenizers.encode_text('one<|sep|>')[-1] == sep  # as transformers reads it


def test_model_card_states_what_the_run_recorded(exported):
  card = (exported / 'out/README.md').read_text()
  _, front, body = card.split('---\n', 2)
  assert front.startswith(
    'library_name: transformers\npipeline_tag: text-generation\ntags:\n- "gpt_jax"\n- "llama"\nmodel-index: ['
  )
  model = trained.load(exported / 'tuned').model
  for line in (
    '# tuned',
    'Step 1 of a gpt_jax run, exported as `llama`.',
    'Not stated.',  # intended use
    '| architecture | LlamaForCausalLM |',
    f'| vocabulary | {model.cfg.vocab} ids |',
    '| license | not stated |',
    '| begins with | base at step 0 (train.init_from) |',
    '| steps | 1 of 8 rows of 16 tokens |',
    '| optimizer | adamw, learning rate 0.001, schedule cosine, weight decay 0.1 |',
    '| answer | qa valid | exact_match | 0.5 | 0.1 to 0.9 |  |  | 2 |',
    'Trained without differential privacy: nothing bounds what the model reveals of its data.',
    'Not measured: `launch.py evaluate --tasks=extraction,membership`.',
    'Not measured: `launch.py evaluate --tasks=unsuitable --classifier=RUN:LABEL|LABEL`.',
    "model = AutoModelForCausalLM.from_pretrained('out')",
  ):
    assert line in body.split('\n'), (line, body)
  assert '| qa | jsonl qa.jsonl | `{q} -> {a}` | not stated | 36 documents, ' in body
  assert '0.75' not in body
  assert str(exported) not in card
  result = records.read_json(exported / 'tuned/result.json')
  assert f'| tokens | {result["tokens"]:,.0f} |' in body
  assert f'| hardware | {result["hardware"]} |' in body
  assert f'| data | {result["data"]} |' in body
  digest = result['parents'][0]['digest']
  assert (
    f'- begins with base at step 0 (train.init_from), checkpoint {digest}\n  - begins with import of' in body
  )
  [change] = [line for line in body.split('\n') if line.startswith('- base at step 0')]
  assert f'vocabulary 257 -> {model.cfg.vocab} ids' in change
  assert '`sep`' in change
  assert '`eos`' not in change
  again = (exported / 'out2/README.md').read_text() if (exported / 'out2').exists() else ''
  assert not again or 'import of out: the weights are unchanged' in again


def test_the_hub_reads_the_front_matter_of_a_card(exported):
  hub = pytest.importorskip('huggingface_hub')
  card = hub.ModelCard((exported / 'out/README.md').read_text())
  assert card.data.tags == ['gpt_jax', 'llama']
  assert card.data.library_name == 'transformers'
  [result] = [r for r in card.data.eval_results if r.metric_type == 'exact_match']
  assert (result.task_type, result.dataset_type, result.metric_value) == ('answer', 'qa', 0.5)


def test_a_run_has_the_same_card_with_what_people_and_attacks_add(exported, tmp_path):
  run = tmp_path / 'tuned'
  shutil.copytree(exported / 'tuned', run)
  (run / 'notes.md').write_text(
    '## Intended use\nTests.\n## License\nmit\n## Known failures\nIt knows two.\n'
  )
  row = dict(task='membership', source='qa', split='valid', attack='loss', n=36)
  guess = row | dict(task='answer', metric='f1', value=0.1, interval=[0.0, 0.2], chance=0.1)
  private = dict(epsilon=2.0, delta=1e-6, unit='document', units=9, mechanism='noise', neighbors='one unit')
  private |= dict(clip=1.0, noise_multiplier=0.5, sampling_rate=0.1, steps=6, accountant='PLD')
  private['not_covered'] = ['the tokenizer']
  result = records.read_json(run / 'result.json')
  records.write_json(run / 'result.json', result | {'privacy': private})
  for more in (
    row | dict(metric='auc', value=0.6),
    row | dict(metric='epsilon_lower_bound', value=0.25, proved=2.0),
    guess,
  ):
    records.append_line(run / 'evaluations.jsonl', more)
  cleaned = {'qa': {'removed': {'duplicates': 3}, 'replaced': {}}}
  event = dict(event='clean', time='2026-01-01T00:00:00+00:00', sources=cleaned)
  records.append_line(run / 'events.jsonl', event)
  card = model_card.write_run_card(run).read_text()
  assert card.startswith('---\nlibrary_name: gpt_jax\npipeline_tag: text-generation\nlicense: mit\n')
  for part in (
    '## Intended use\n\nTests.\n',
    '## Known failures\n\nIt knows two.\n',
    '- answer on qa valid: f1 0.1 does not differ from chance (0.1)',
    '| license | mit |',
    'removed duplicates: 3 |',
    'Trained with differential privacy: (epsilon 2, delta 1e-06) for each document.',
    '- the tokenizer',
    '| membership | qa | loss | 0.25 | 2 |',
    '| membership | qa valid | auc, attack loss | 0.6 |',
    'launch.py sample --workdir=tuned',
  ):
    assert part in card, (part, card)
  assert str(tmp_path) not in card
  [*_, ids] = sorted((run / 'cache').glob('qa-train-*.ids.npy'))
  ids.write_bytes(ids.read_bytes()[:-1])  # a card needs no data
  records.write_json(run / 'result.json', result | {'privacy': {'epsilon': 'x'}})
  card = model_card.write_run_card(run).read_text()
  assert f'| {card_sections.NOT_RECORDED} |' in card and 'without differential privacy' in card
  (run / 'notes.md').write_text('no heading')
  with pytest.raises(ValueError) as error:
    model_card.write_run_card(run)
  assert_two_lines(error.value, 'notes.md', 'without a heading')


# Keys that readers of config.json demand besides transformers: llama.cpp's convert_hf_to_gguf.py, by class.
LLAMA_CPP = ['hidden_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads', 'rope_theta']
LLAMA_CPP += ['intermediate_size', 'max_position_embeddings', 'rms_norm_eps', 'vocab_size']
NEEDED = {
  'gpt2': ['n_layer', 'n_ctx', 'n_embd', 'n_head', 'n_positions', 'layer_norm_epsilon', 'vocab_size'],
  'llama': LLAMA_CPP,
  'mistral': [*LLAMA_CPP, 'head_dim', 'sliding_window'],
  'qwen3': [*LLAMA_CPP, 'head_dim'],
}


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'mistral', 'qwen3'])
def test_exports_have_the_keys_that_llama_cpp_and_vllm_read(name, tmp_path):
  """Architecture and type of the weights at the top level, tokenizer files by the names of the library."""
  toks = Tokenizers.build(make('bytes'))
  cfg, _ = write(tmp_path, name, toks)
  content = json.loads((tmp_path / 'config.json').read_text())
  assert [OURS[name][0]] == [content['model_type']]
  assert content['architectures'][0].endswith(('ForCausalLM', 'LMHeadModel'))
  assert content['torch_dtype'] == content['dtype'] == cfg.param_dtype
  for key in [*NEEDED[name], 'tie_word_embeddings', 'bos_token_id', 'eos_token_id', 'pad_token_id']:
    assert content[key] is not None, key
  settings = json.loads((tmp_path / 'tokenizer_config.json').read_text())
  assert settings['tokenizer_class'] == 'PreTrainedTokenizerFast'
  assert settings['model_max_length'] == cfg.context
  tokenizer = json.loads((tmp_path / 'tokenizer.json').read_text())
  assert tokenizer['model']['type'] == 'BPE'  # whose merges and vocabulary llama.cpp copies
  assert {token['id'] for token in tokenizer['added_tokens']} >= {content['eos_token_id']}
